//! The measures of a comparison, and their sources.

use super::{Load, Parallel, Sample, Speed};

/// One number of a sample.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// Name in JSON and in bounds.
    pub id: &'static str,
    /// Name in reports.
    pub name: &'static str,
    /// Unit of the printed value.
    pub unit: &'static str,
    /// Source.
    pub source: &'static str,
    /// Decimals.
    pub digits: usize,
    /// The value of a sample; 0 if the sample has none.
    pub of: fn(&Sample) -> f64,
    /// Whether the plot shows it.
    pub drawn: bool,
}

const MIB: f64 = 1024.0 * 1024.0;

macro_rules! measure {
    ($id:ident, $name:literal, $unit:literal, $digits:literal, $source:literal, $of:expr) => {
        measure!($id, $name, $unit, $digits, $source, $of, false)
    };
    ($id:ident, $name:literal, $unit:literal, $digits:literal, $source:literal, $of:expr, $drawn:literal) => {
        Measure {
            id: stringify!($id),
            name: $name,
            unit: $unit,
            source: $source,
            digits: $digits,
            of: $of,
            drawn: $drawn,
        }
    };
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

fn speed(sample: &Sample, of: impl Fn(&Speed) -> f64) -> f64 {
    sample.speed.as_ref().map_or(0.0, of)
}

fn parallel(sample: &Sample, of: impl Fn(&Parallel) -> f64) -> f64 {
    speed(sample, |speed| speed.parallel.as_ref().map_or(0.0, &of))
}

/// All measures, in the order of the report.
#[rustfmt::skip]
pub const MEASURES: [Measure; 25] = [
    measure!(to_token, "to first token", "s", 2, "clock: process start to the answer of /completion for one token", |s| s.seconds_to_token, true),
    measure!(to_health, "to /health ok", "s", 2, "clock: process start to /health with status 200", |s| s.seconds_to_health),
    measure!(cpu, "CPU", "s", 2, "/proc/PID/stat: utime + stime at the first token", Sample::cpu_seconds, true),
    measure!(cpu_user, "  user part of CPU", "s", 2, "/proc/PID/stat: utime", |s| s.user_seconds),
    measure!(minor_faults, "minor faults", "", 0, "/proc/PID/stat: minflt at the first token", |s| s.minor_faults as f64),
    measure!(major_faults, "major faults", "", 0, "/proc/PID/stat: majflt at the first token", |s| s.major_faults as f64),
    measure!(peak_own, "peak of own memory", "MiB", 0, "/proc/PID/status every 20 ms: RssAnon + HugetlbPages", |s| mib(s.peak_own_bytes), true),
    measure!(peak_file, "peak of mapped files", "MiB", 0, "/proc/PID/status every 20 ms: RssFile", |s| mib(s.peak_file_bytes)),
    measure!(residue, "in the page cache", "MiB", 0, "mincore(2) over the model's files after the first token", |s| mib(s.residue_bytes), true),
    measure!(placed, "load speed", "GB/s", 2, "/props: bytes over us_total of the load on huge pages", |s| s.load.as_ref().map_or(0.0, Load::bytes_per_second) / 1e9),
    measure!(prompt, "prompt", "t/s", 1, "timings of /completion: prompt_n over prompt_ms, one request", |s| speed(s, |v| v.prompt_per_second), true),
    measure!(generation, "generation", "t/s", 2, "timings of /completion: predicted_n over predicted_ms, one request", |s| speed(s, |v| v.generation_per_second), true),
    measure!(prompt_4, "prompt, 4 requests", "t/s", 1, "timings of /completion, 4 requests at once: all tokens over the longest time", |s| parallel(s, |v| v.prompt_per_second)),
    measure!(generation_4, "generation, 4 requests", "t/s", 2, "the same", |s| parallel(s, |v| v.generation_per_second)),
    measure!(latency_p50, "between tokens, p50", "ms", 2, "clock: arrival of the tokens of a streamed answer", |s| speed(s, |v| v.latency_ms(50))),
    measure!(latency_p99, "between tokens, p99", "ms", 2, "the same", |s| speed(s, |v| v.latency_ms(99))),
    measure!(rss, "RSS", "MiB", 0, "/proc/PID/smaps_rollup: Rss, after all requests", |s| mib(s.footprint.rss)),
    measure!(pss, "PSS", "MiB", 0, "/proc/PID/smaps_rollup: Pss", |s| mib(s.footprint.pss)),
    measure!(hugetlb, "HugetlbPages", "MiB", 0, "/proc/PID/status: HugetlbPages", |s| mib(s.footprint.hugetlb)),
    measure!(page_tables, "page tables", "KiB", 0, "/proc/PID/status: VmPTE", |s| s.footprint.page_tables as f64 / 1024.0, true),
    measure!(file_pmd, "FilePmdMapped", "MiB", 0, "/proc/PID/smaps_rollup: FilePmdMapped", |s| mib(s.footprint.file_pmd_mapped)),
    measure!(anon_thp, "AnonHugePages", "MiB", 0, "/proc/PID/smaps_rollup: AnonHugePages", |s| mib(s.footprint.anon_huge_pages)),
    measure!(file_thp, "FileHugePages, machine", "MiB", 0, "/proc/meminfo: FileHugePages", |s| mib(s.footprint.machine_file_huge_pages)),
    measure!(pool, "taken from pools, machine", "MiB", 0, "/sys/kernel/mm/hugepages: nr_hugepages - free_hugepages", |s| mib(s.footprint.machine_pool)),
    measure!(nodes, "on the fullest node", "MiB", 0, "/proc/PID/numa_maps: the largest sum of a node", |s| mib(s.footprint.nodes.values().copied().max().unwrap_or(0))),
];

impl Measure {
    /// The measure with this id.
    pub fn named(id: &str) -> Option<&'static Self> {
        MEASURES.iter().find(|measure| measure.id == id)
    }

    /// `to first token, s`
    pub fn title(&self) -> String {
        match self.unit {
            "" => self.name.to_owned(),
            unit => format!("{}, {unit}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guide_names_the_source_of_each() {
        let guide = include_str!("../../../../docs/comparing.md");
        for measure in &MEASURES {
            let row = format!("| {} | {} |", measure.title().trim_start(), measure.source);
            assert!(guide.contains(&row), "docs/comparing.md lacks `{row}`");
        }
    }
}
