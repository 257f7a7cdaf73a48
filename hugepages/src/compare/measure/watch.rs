//! The memory of a process during a load: its peak and its course.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::kernel::{Fields, Root, processes};

/// Interval of the samples.
const TICK: Duration = Duration::from_millis(20);

/// Maximum number of samples for the diagram.
const MOMENTS: usize = 200;

/// The memory of a process at one moment. Source: `/proc/PID/status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Moment {
    /// Seconds since the start of the process.
    pub seconds: f64,
    /// `RssAnon` + `HugetlbPages`, which the kernel cannot drop.
    pub own_bytes: u64,
    /// `RssAnon`.
    pub anon_bytes: u64,
    /// `RssFile`: the mapped model.
    pub file_bytes: u64,
}

/// The observed memory.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The maximum of each value.
    pub peak: Moment,
    /// Samples in order, thinned out.
    pub moments: Vec<Moment>,
}

/// Samples the memory of a process until the watch is stopped.
pub struct Watch {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: JoinHandle<()>,
}

impl Watch {
    pub fn start(pid: u32, began: Instant) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (stopped, seeing) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let Ok(status) = processes::status(&Root::system(), pid) else {
                    return;
                };
                let now = Moment::new(began.elapsed().as_secs_f64(), &status);
                seeing
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .note(now);
                thread::sleep(TICK);
            }
        });
        Self { stop, seen, thread }
    }

    pub fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        // The thread does not panic; after a panic the samples so far would be correct.
        let _ = self.thread.join();
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone()
    }
}

impl Seen {
    fn note(&mut self, now: Moment) {
        self.peak.own_bytes = self.peak.own_bytes.max(now.own_bytes);
        self.peak.anon_bytes = self.peak.anon_bytes.max(now.anon_bytes);
        self.peak.file_bytes = self.peak.file_bytes.max(now.file_bytes);
        self.moments.push(now);
        if self.moments.len() > MOMENTS {
            let mut keep = false;
            self.moments.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }
}

impl Moment {
    fn new(seconds: f64, status: &Fields) -> Self {
        let of = |name| status.bytes(name).unwrap_or(0);
        Self {
            seconds,
            own_bytes: of("RssAnon") + of("HugetlbPages"),
            anon_bytes: of("RssAnon"),
            file_bytes: of("RssFile"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_is_what_nobody_can_take_away() {
        let status = "RssAnon:\t 100 kB\nRssFile:\t7 kB\nRssShmem: 3 kB\nHugetlbPages:\t 2048 kB\n";
        let now = Moment::new(0.5, &Fields::new(status.to_owned()));
        assert_eq!((now.own_bytes, now.file_bytes), (2148 * 1024, 7 * 1024));
    }

    #[test]
    fn a_long_load_keeps_its_peak_and_its_shape() {
        let mut seen = Seen::default();
        for tick in 0..5000 {
            seen.note(Moment {
                seconds: f64::from(tick),
                own_bytes: if tick == 1234 { 99 } else { 7 },
                file_bytes: 1,
                ..Moment::default()
            });
        }
        assert_eq!(seen.peak.own_bytes, 99);
        assert!((MOMENTS / 3..=MOMENTS).contains(&seen.moments.len()));
        assert!(seen.moments.is_sorted_by(|a, b| a.seconds < b.seconds));
    }
}
