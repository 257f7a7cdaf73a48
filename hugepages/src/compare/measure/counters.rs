//! The kernel's counters of a process: CPU time and page faults.

use crate::kernel::Root;
use crate::kernel::files;

/// The kernel's counts for a process.
pub struct Counts {
    pub user_seconds: f64,
    pub system_seconds: f64,
    pub minor_faults: u64,
    pub major_faults: u64,
}

impl Counts {
    pub fn read(pid: u32) -> Option<Self> {
        let stat = files::text(&Root::system(), &format!("/proc/{pid}/stat"))?;
        Self::parse(&stat)
    }

    /// proc(5): the name in brackets may contain any character, so the fields count from its end: field 3 is the state.
    fn parse(stat: &str) -> Option<Self> {
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        Some(Self {
            minor_faults: field(10)?,
            major_faults: field(12)?,
            user_seconds: field(14)? as f64 / ticks,
            system_seconds: field(15)? as f64 / ticks,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_moves_no_field() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 11 0 12 0 300 40 0 0 20 0 1 0 0";
        let counts = Counts::parse(stat).unwrap();
        assert_eq!((counts.minor_faults, counts.major_faults), (11, 12));
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert!((counts.user_seconds * ticks - 300.0).abs() < 1e-9);
        assert!((counts.system_seconds * ticks - 40.0).abs() < 1e-9);
    }
}
