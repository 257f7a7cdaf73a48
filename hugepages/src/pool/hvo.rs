//! Switching on HVO for pages that are added later.

use super::PoolError;
use super::counter::write;
use super::journal::Change;
use super::locked_pools::LockedPools;
use crate::kernel::hvo;

impl LockedPools {
    /// Switches on HVO for pages that are added from now on. Returns `false` if HVO was on.
    ///
    /// # Errors
    /// [`PoolError::NoHvo`] and others.
    pub fn switch_on_hvo(&mut self) -> Result<bool, PoolError> {
        let path = self.root.path(hvo::SETTING);
        let Some(before) = hvo::setting(&self.root) else {
            return Err(PoolError::NoHvo(path));
        };
        if before == 1 {
            return Ok(false);
        }
        let id = self.journal.intend(Change::Hvo { before })?;
        write(&path, "1")?;
        self.journal.happened(id, 0)?;
        Ok(true)
    }
}
