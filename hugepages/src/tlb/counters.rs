//! TLB misses, counted by the hardware through perf events.

use std::io;

use perf_event::events::{Cache, CacheId, CacheOp, CacheResult, Event};
use perf_event::{Builder, Counter};

/// Counts one kind of event of the calling thread, outside of the kernel.
pub struct Events(Counter);

impl Events {
    /// Counts loads that miss all levels of the data TLB, as the kernel defines this event for the CPU. On recent Intel CPUs it counts the
    /// page walks of loads.
    pub fn dtlb_load_misses() -> Result<Self, NoCounter> {
        Self::of(Cache {
            which: CacheId::DTLB,
            operation: CacheOp::READ,
            result: CacheResult::MISS,
        })
    }

    fn of(event: impl Event) -> Result<Self, NoCounter> {
        let counter = Builder::new(event).build().map_err(NoCounter::from)?;
        Ok(Self(counter))
    }

    /// Runs `work` and returns its result with the number of events. `None` if others used the CPU's counters for a part of the time,
    /// because the number would be an estimate.
    pub fn during<T>(&mut self, work: impl FnOnce() -> T) -> (T, Option<u64>) {
        let started = self.0.reset().and_then(|()| self.0.enable());
        let result = work();
        let count = started
            .and_then(|()| self.0.disable())
            .and_then(|()| self.0.read_full())
            .ok()
            .filter(|data| data.time_enabled() == data.time_running())
            .map(|data| data.count());
        (result, count)
    }
}

/// Why no misses are counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoCounter {
    /// No such hardware counter.
    #[error("no hardware counter for TLB misses, as in most virtual machines")]
    NoHardware,
    /// The kernel, a security module or a container's filter refuses the call.
    #[error("this user may not count events ({0})")]
    NoRight(String),
    /// A kernel without perf events.
    #[error("the kernel has no perf events")]
    NoPerfEvents,
    /// Another error.
    #[error("cannot open a perf event: {0}")]
    Other(String),
}

impl NoCounter {
    /// The hint for the user.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoRight(_) => Some(
                "as root: sysctl kernel.perf_event_paranoid=2 (in a container, also allow the system call perf_event_open)",
            ),
            _ => None,
        }
    }
}

impl From<io::Error> for NoCounter {
    fn from(error: io::Error) -> Self {
        // Source: perf_event_open(2).
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP) => Self::NoHardware,
            Some(libc::EACCES | libc::EPERM) => Self::NoRight(error.to_string()),
            Some(libc::ENOSYS) => Self::NoPerfEvents,
            _ => Self::Other(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use perf_event::events::Software;

    use super::*;
    use crate::tlb::Pages;
    use crate::tlb::memory::Mapping;
    use crate::tlb::pages::base_page;

    #[test]
    fn a_counter_that_every_kernel_has_counts_what_happens_in_between() {
        // Faults in the kernel do not count, but the stores of this test happen in user mode.
        let mut faults = match Events::of(Software::PAGE_FAULTS) {
            Ok(faults) => faults,
            // Only a missing right excuses a missing counter.
            Err(why) => return assert!(matches!(why, NoCounter::NoRight(_)), "{why}"),
        };
        let bytes = 8 << 20;
        let mapping = Mapping::new(Pages::Base, bytes).unwrap();
        let (touched, during) =
            faults.during(|| mapping.touch(&std::sync::atomic::AtomicBool::new(false)));
        let touch = touched.unwrap().1;
        let ((), nothing) = faults.during(|| ());
        let during = during.unwrap();
        assert!(during >= touch.faults.min(bytes / base_page()));
        assert!(nothing.unwrap() < during);
    }

    #[test]
    fn a_machine_without_a_hardware_pmu_says_so() {
        // The kernel names the CPU's PMU `cpu` on x86 and `armv8_…` on arm64.
        let folder = Path::new("/sys/bus/event_source/devices");
        let has_pmu = folder.read_dir().is_ok_and(|entries| {
            entries.flatten().any(|entry| {
                let name = entry.file_name().into_string().unwrap_or_default();
                name.starts_with("cpu") || name.starts_with("armv8")
            })
        });
        match Events::dtlb_load_misses() {
            Ok(mut misses) => {
                assert!(has_pmu, "no PMU, and yet a counter");
                assert!(misses.during(|| ()).1.is_some());
            }
            Err(NoCounter::NoHardware) => {}
            Err(why) => assert!(has_pmu, "{why}"),
        }
    }

    #[test]
    fn a_refusal_says_what_to_do_and_a_missing_counter_does_not() {
        let of = |errno| NoCounter::from(io::Error::from_raw_os_error(errno));
        for errno in [libc::EACCES, libc::EPERM] {
            let why = of(errno);
            assert!(why.to_string().contains("may not count events"));
            assert!(why.hint().unwrap().contains("perf_event_paranoid"));
        }
        for errno in [libc::ENOENT, libc::ENOSYS, libc::EMFILE] {
            assert_eq!(of(errno).hint(), None);
        }
        assert!(of(libc::ENOENT).to_string().contains("virtual machines"));
    }
}
