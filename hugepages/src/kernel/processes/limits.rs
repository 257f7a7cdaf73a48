//! Limits of this process: `/proc/self/limits` and `vm.max_map_count`.

use crate::kernel::{Root, files};

/// The resource limits of this process.
#[derive(Debug, Clone)]
pub struct Limits(String);

impl Limits {
    /// Reads the limits.
    pub fn read(root: &Root) -> Self {
        Self(files::text(root, "/proc/self/limits").unwrap_or_default())
    }

    /// The soft limit in this line, for example `Max address space`. `None` if it is unlimited.
    pub fn soft(&self, name: &str) -> Option<u64> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    }
}

/// Maximum number of mappings of a process.
pub fn max_map_count(root: &Root) -> Option<u64> {
    files::number(root, "/proc/sys/vm/max_map_count")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unlimited_resource_has_no_limit() {
        let limits = Limits(
            "Limit                     Soft Limit           Hard Limit           Units\n\
             Max locked memory         8388608              unlimited            bytes\n\
             Max address space         unlimited            unlimited            bytes\n"
                .to_owned(),
        );
        assert_eq!(limits.soft("Max locked memory"), Some(8 << 20));
        assert_eq!(limits.soft("Max address space"), None);
        assert_eq!(limits.soft("Max stack size"), None);
    }
}
