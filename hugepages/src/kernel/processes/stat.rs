//! `/proc/PID/stat`: start, CPU time and page faults of a process.

use crate::kernel::{Root, files};

/// The kernel's counts for a process.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Stat {
    /// CPU time in user mode.
    pub user_seconds: f64,
    /// CPU time in the kernel.
    pub system_seconds: f64,
    /// Page faults without I/O.
    pub minor_faults: u64,
    /// Page faults with I/O.
    pub major_faults: u64,
    /// Start of the process, in clock ticks since boot.
    pub started: u64,
}

impl Stat {
    /// Reads the counts. `None` if the process has ended.
    pub fn read(root: &Root, pid: u32) -> Option<Self> {
        let stat = files::text(root, &format!("/proc/{pid}/stat"))?;
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
            started: field(22)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_moves_no_field() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 11 0 12 0 300 40 0 0 20 0 1 0 99";
        let counts = Stat::parse(stat).unwrap();
        assert_eq!((counts.minor_faults, counts.major_faults), (11, 12));
        assert_eq!(counts.started, 99);
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert!((counts.user_seconds * ticks - 300.0).abs() < 1e-9);
        assert!((counts.system_seconds * ticks - 40.0).abs() < 1e-9);
    }
}
