//! The memory of a process while it loads: its peak, and how it got there.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::kernel_files;

/// How often it is looked at.
const TICK: Duration = Duration::from_millis(20);

/// More than a picture can show are thinned out.
const MOMENTS: usize = 200;

/// The memory of a process at one moment. Source: `/proc/PID/status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Moment {
    /// Since the start of the process.
    pub seconds: f64,
    /// `RssAnon` and `HugetlbPages`: what nobody can take away.
    pub own_bytes: u64,
    /// Of it `RssAnon`.
    pub anon_bytes: u64,
    /// `RssFile`: the model as it is mapped.
    pub file_bytes: u64,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The highest of each.
    pub peak: Moment,
    /// In order, thinned out.
    pub moments: Vec<Moment>,
}

/// Looks at a process until it is stopped.
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
                let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
                    return;
                };
                let now = Moment::parse(began.elapsed().as_secs_f64(), &status);
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
        // It panics nowhere; if it did, what was seen so far would be right.
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
    fn parse(seconds: f64, status: &str) -> Self {
        let of = |name| kernel_files::kib_field(status, name).unwrap_or(0);
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
        let now = Moment::parse(
            0.5,
            "RssAnon:\t 100 kB\nRssFile:\t7 kB\nRssShmem: 3 kB\nHugetlbPages:\t 2048 kB\n",
        );
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
