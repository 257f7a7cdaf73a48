//! Parses the report of the guest: text from the kernel and the server, in sections that start with `@@` lines.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Pages of one size on one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pool {
    pub total: u64,
    pub free: u64,
}

/// Pools by node and page size in KiB.
pub type Pools = BTreeMap<(u32, u64), Pool>;

/// A mapping in `numa_maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// File or memfd, without the path's escapes and without ` (deleted)`; empty for other memory.
    pub file: String,
    pub page_kb: u64,
    /// Pages by node, in the mapping's page size.
    pub pages: BTreeMap<u32, u64>,
}

/// A mapping in `smaps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Area {
    pub file: String,
    pub bytes: u64,
    pub page_kb: u64,
    pub flags: Vec<String>,
}

/// MiB of huge pages by kind of memory and node.
pub type Table = BTreeMap<(String, u32), u64>;

/// One case in the guest. Mappings and answer exist only if the server became ready.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    pub before: Pools,
    pub after: Pools,
    pub mappings: Vec<Mapping>,
    /// The same after the answer.
    pub mappings_after: Vec<Mapping>,
    pub areas: Vec<Area>,
    pub tokens: Option<String>,
    /// What the threads have read of the weights.
    pub reads: Option<Reads>,
    /// The CPUs that each thread may use after the answer, by the number of the thread.
    pub threads: BTreeMap<u32, String>,
    /// The exit code of a shell: 128 and more means a signal.
    pub exit: Option<u32>,
    pub log: String,
    /// What the server foretold before its start, for weights that are placed by rows and within a limit.
    pub plan: Option<Plan>,
    /// The same within a limit of one page less than the plan asks for.
    pub plan_of_a_page_less: Option<Plan>,
    pub memory: Memory,
}

/// Memory of the cgroup of the server, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// None: no limit.
    pub limit: Option<u64>,
    /// Before the first request.
    pub used: u64,
    /// Processes that the kernel killed in all cases until this one.
    pub killed: u64,
}

/// The plan of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub fits: bool,
    /// Pages of 2 MiB of weights, by node.
    pub pages: BTreeMap<u32, u64>,
    /// Pages of 2 MiB of weights that no thread reads by rows: on any node.
    pub pages_anywhere: u64,
    pub local_bytes: u64,
    pub remote_bytes: u64,
}

/// Bytes of rows on the node of the thread that read them, and on other nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reads {
    pub local: u64,
    pub remote: u64,
}

impl Reads {
    pub fn all(self) -> u64 {
        self.local + self.remote
    }
}

/// Puts the lines of the report together.
#[derive(Debug, Default)]
pub struct Reader {
    name: String,
    sections: BTreeMap<String, String>,
    section: String,
}

#[derive(Debug)]
pub enum Event {
    Case(String, Box<Seen>),
    /// All cases have run.
    Done,
}

impl Reader {
    pub fn line(&mut self, line: &str) -> Result<Option<Event>> {
        // The serial line ends lines with both characters.
        let line = line.trim_end_matches(['\r', '\n']);
        let Some(mark) = line.strip_prefix("@@ ") else {
            let text = self.sections.entry(self.section.clone()).or_default();
            text.push_str(line);
            text.push('\n');
            return Ok(None);
        };
        match mark.split_once(' ').unwrap_or((mark, "")) {
            ("case", name) => {
                name.clone_into(&mut self.name);
                self.sections.clear();
            }
            ("end", _) => {
                let name = std::mem::take(&mut self.name);
                let seen = self
                    .seen()
                    .with_context(|| format!("cannot read the report of `{name}`"))?;
                return Ok(Some(Event::Case(name, Box::new(seen))));
            }
            ("done", _) => return Ok(Some(Event::Done)),
            (section, _) => section.clone_into(&mut self.section),
        }
        Ok(None)
    }

    fn seen(&mut self) -> Result<Seen> {
        let mut section = |name: &str| self.sections.remove(name).unwrap_or_default();
        Ok(Seen {
            before: pools(&section("before"))?,
            after: pools(&section("after"))?,
            mappings: section("numa_maps").lines().filter_map(mapping).collect(),
            mappings_after: section("numa_maps_after")
                .lines()
                .filter_map(mapping)
                .collect(),
            areas: areas(&section("smaps")),
            tokens: tokens(&section("answer")),
            reads: reads(&section("reads")),
            threads: threads(&section("threads")),
            exit: section("exit").trim().parse().ok(),
            log: section("log"),
            plan: plan(&section("plan")),
            plan_of_a_page_less: plan(&section("plan_of_a_page_less")),
            memory: memory(&section("memory")),
        })
    }
}

/// `node0/hugepages/hugepages-2048kB/free_hugepages:256`, and so on.
fn pools(text: &str) -> Result<Pools> {
    let mut pools = Pools::new();
    for line in text.lines() {
        let read = || {
            let (path, value) = line.split_once(':')?;
            let mut parts = path.split('/');
            let node = parts.next()?.strip_prefix("node")?.parse().ok()?;
            let size = parts.nth(1)?.strip_prefix("hugepages-")?;
            let size = size.strip_suffix("kB")?.parse().ok()?;
            Some(((node, size), parts.next()?, value.parse().ok()?))
        };
        let (key, name, value) = read().with_context(|| format!("`{line}` is not a pool"))?;
        let pool = pools.entry(key).or_default();
        match name {
            "nr_hugepages" => pool.total = value,
            "free_hugepages" => pool.free = value,
            _ => {}
        }
    }
    Ok(pools)
}

/// `7f… bind:1 file=/memfd:llama-weights\040(deleted) huge dirty=2 N1=2 kernelpagesize_kB=2048`; numa(7).
fn mapping(line: &str) -> Option<Mapping> {
    let mut mapping = Mapping {
        file: String::new(),
        page_kb: 0,
        pages: BTreeMap::new(),
    };
    for word in line.split(' ') {
        let Some((key, value)) = word.split_once('=') else {
            continue;
        };
        if key == "file" {
            mapping.file = file(&value.replace("\\040", " "));
        } else if key == "kernelpagesize_kB" {
            mapping.page_kb = value.parse().ok()?;
        } else if let Some(node) = key.strip_prefix('N').and_then(|node| node.parse().ok()) {
            mapping.pages.insert(node, value.parse().ok()?);
        }
    }
    // A mapping without a page size has no pages.
    (mapping.page_kb > 0).then_some(mapping)
}

/// The head of each mapping in smaps, with its page size and flags; `proc_pid_smaps(5)`.
fn areas(text: &str) -> Vec<Area> {
    let mut areas: Vec<Area> = Vec::new();
    for line in text.lines() {
        let (first, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        if let Some((start, end)) = first.split_once('-') {
            let address = |text| u64::from_str_radix(text, 16).unwrap_or_default();
            let path = rest.splitn(5, ' ').nth(4).unwrap_or_default();
            areas.push(Area {
                file: file(path.trim_start()),
                bytes: address(end).saturating_sub(address(start)),
                page_kb: 0,
                flags: Vec::new(),
            });
        } else if let Some(area) = areas.last_mut() {
            match first {
                "KernelPageSize:" => {
                    let size = rest.trim().trim_end_matches(" kB");
                    area.page_kb = size.parse().unwrap_or_default();
                }
                "VmFlags:" => area.flags = rest.split_whitespace().map(str::to_owned).collect(),
                _ => {}
            }
        }
    }
    areas
}

/// The file without the kernel's suffix for files without a name, such as a memfd.
fn file(path: &str) -> String {
    path.strip_suffix(" (deleted)").unwrap_or(path).to_owned()
}

/// `"tokens":[1,2,3]` of the server's answer, as text, because the judge only compares tokens.
fn tokens(answer: &str) -> Option<String> {
    let (_, rest) = answer.split_once("\"tokens\":[")?;
    let (tokens, _) = rest.split_once(']')?;
    (!tokens.is_empty()).then(|| tokens.to_owned())
}

/// The JSON of `llama-server --hugepage-plan`.
fn plan(text: &str) -> Option<Plan> {
    let json: Value = text
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str(line).ok())?;
    let mut plan = Plan {
        fits: json["fits"] == true,
        ..Plan::default()
    };
    for need in json["needs"].as_array()? {
        let number = |name: &str| need[name].as_u64().unwrap_or_default();
        plan.local_bytes += number("local_bytes");
        plan.remote_bytes += number("remote_bytes");
        let nodes = need["node_pages"].as_array();
        let is_weights = need["kind"] == "weights" || need["kind"] == "repacked";
        if is_weights && nodes.is_none() && number("page_size") == 2 << 20 {
            plan.pages_anywhere += number("pages");
        }
        let nodes = nodes.into_iter().flatten();
        for (node, pages) in (0..).zip(nodes.filter_map(Value::as_u64)) {
            if pages > 0 {
                *plan.pages.entry(node).or_default() += pages;
            }
        }
    }
    Some(plan)
}

/// `current 1234`, `limit max`, and lines of `memory.events`; cgroup-v2.rst.
fn memory(text: &str) -> Memory {
    let value = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.find_map(|(key, value)| (key == name).then(|| value.parse().ok())?)
    };
    Memory {
        limit: value("limit"),
        used: value("current").unwrap_or_default(),
        killed: value("oom_kill").unwrap_or_default(),
    }
}

/// `00012 00034`, from `recorder.cpp`.
fn reads(text: &str) -> Option<Reads> {
    let (local, remote) = text.trim().split_once(' ')?;
    Some(Reads {
        local: local.parse().ok()?,
        remote: remote.parse().ok()?,
    })
}

/// `123 0-1`: a thread, and the CPUs that it may use.
fn threads(text: &str) -> BTreeMap<u32, String> {
    let thread = |line: &str| {
        let (id, cpus) = line.split_once(' ')?;
        Some((id.parse().ok()?, cpus.to_owned()))
    };
    text.lines().filter_map(thread).collect()
}

/// MiB of matrices on the nodes that read them, and of all matrices, from the lines below the table:
/// `0.1 I hugepages: weights on 2M: 39.50 of 40.20 MiB of matrices are on the node that reads them (98.2 %)`.
pub fn locality(log: &str) -> (f64, f64) {
    let mut sums = (0.0, 0.0);
    for line in log
        .lines()
        .filter(|line| line.contains(" MiB of matrices "))
    {
        let words: Vec<_> = line.split_whitespace().collect();
        let numbers = words.windows(3).find_map(|three| match three {
            [local, "of", all] => Some((local.parse::<f64>().ok()?, all.parse::<f64>().ok()?)),
            _ => None,
        });
        if let Some((local, all)) = numbers {
            sums = (sums.0 + local, sums.1 + all);
        }
    }
    sums
}

/// From the table in a server's log, with a column for each node:
/// `0.00.556.715 I hugepages: weights    2M              40.20       21           0.00          42.00`.
pub fn table(log: &str) -> Table {
    let mut table = Table::new();
    for line in log.lines() {
        let Some((_, row)) = line.split_once("hugepages: ") else {
            continue;
        };
        let words: Vec<_> = row.split_whitespace().collect();
        let [kind, on, _, _, nodes @ ..] = &words[..] else {
            continue;
        };
        if !matches!(*on, "2M" | "1G") {
            continue;
        }
        for (node, mib) in (0..).zip(nodes) {
            // Whole pages are whole MiB.
            let whole = mib.split_once('.').map_or(*mib, |(whole, _)| whole);
            let mib: u64 = whole.parse().unwrap_or_default();
            if mib > 0 {
                *table.entry(((*kind).to_owned(), node)).or_default() += mib;
            }
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
a line of the boot\r
@@ case numactl\r
@@ before\r
node0/hugepages/hugepages-1048576kB/free_hugepages:1\r
node0/hugepages/hugepages-1048576kB/nr_hugepages:1\r
node0/hugepages/hugepages-1048576kB/surplus_hugepages:0\r
node1/hugepages/hugepages-2048kB/free_hugepages:256\r
node1/hugepages/hugepages-2048kB/nr_hugepages:256\r
@@ numa_maps\r
55d8e7200000 default file=/bin/llama-server mapped=3 N0=3 kernelpagesize_kB=4\r
7f0000000000 bind:1 file=/memfd:llama-weights\\040(deleted) huge dirty=3 N0=1 N1=2 kernelpagesize_kB=2048\r
7f0000600000 default\r
@@ smaps\r
7f0000000000-7f0000600000 r--p 00200000 00:0f 1029                       /memfd:llama-weights (deleted)\r
KernelPageSize:     2048 kB\r
VmFlags: rd mr mw me dc dd ht \r
7f0000600000-7f0000601000 rw-p 00000000 00:00 0 \r
KernelPageSize:        4 kB\r
VmFlags: rd wr mr mw me rr \r
@@ answer\r
{\"index\":0,\"content\":\"x\",\"tokens\":[5,6],\"id_slot\":0}\r
@@ threads\r
99 2-3\r
100 0-3\r
@@ memory\r
current 800\r
limit 900\r
low 0\r
max 7\r
oom 3\r
oom_kill 2\r
@@ exit\r
0\r
@@ log\r
first\r
second\r
@@ after\r
node1/hugepages/hugepages-2048kB/free_hugepages:255\r
node1/hugepages/hugepages-2048kB/nr_hugepages:256\r
@@ end\r
@@ done\r
";

    fn read(text: &str) -> (String, Seen) {
        let mut reader = Reader::default();
        let mut events = text
            .lines()
            .filter_map(|line| reader.line(line).unwrap())
            .collect::<Vec<_>>();
        assert!(matches!(events.pop(), Some(Event::Done)));
        match events.pop() {
            Some(Event::Case(name, seen)) => (name, *seen),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_report_is_taken_apart() {
        let (name, seen) = read(REPORT);
        assert_eq!(name, "numactl");
        assert_eq!(seen.before[&(0, 1_048_576)], Pool { total: 1, free: 1 });
        assert_eq!(seen.before[&(1, 2048)].free, 256);
        assert_eq!(seen.after[&(1, 2048)].free, 255);
        assert_eq!(seen.tokens.as_deref(), Some("5,6"));
        assert_eq!(
            seen.threads.into_iter().collect::<Vec<_>>(),
            [(99, "2-3".to_owned()), (100, "0-3".to_owned())]
        );
        assert_eq!(seen.exit, Some(0));
        assert_eq!(seen.log, "first\nsecond\n");
        let expected = Memory {
            limit: Some(900),
            used: 800,
            killed: 2,
        };
        assert_eq!(seen.memory, expected);
    }

    #[test]
    fn pages_are_counted_by_mapping_and_node() {
        let (_, seen) = read(REPORT);
        assert_eq!(seen.mappings.len(), 2);
        let weights = &seen.mappings[1];
        assert_eq!(weights.file, "/memfd:llama-weights");
        assert_eq!(weights.page_kb, 2048);
        assert_eq!(weights.pages, [(0, 1), (1, 2)].into());
    }

    #[test]
    fn areas_have_their_size_and_flags() {
        let (_, seen) = read(REPORT);
        let [weights, heap] = &seen.areas[..] else {
            panic!("{:?}", seen.areas);
        };
        assert_eq!(weights.file, "/memfd:llama-weights");
        assert_eq!((weights.bytes, weights.page_kb), (6 << 20, 2048));
        assert!(weights.flags.iter().any(|flag| flag == "ht"));
        assert_eq!((heap.file.as_str(), heap.bytes), ("", 4096));
        assert!(heap.flags.iter().any(|flag| flag == "rr"));
    }

    #[test]
    fn the_servers_own_table_is_read_by_kind_and_node() {
        let log = "\
0.556.715 I hugepages: kind       on                MiB    pages     node 0 MiB     node 1 MiB
0.557.029 I hugepages: weights    2M              40.20       21          22.00          20.00
0.557.029 I hugepages: weights    1G             100.00        1           0.00        1024.00
0.557.101 I hugepages: kv         base             1.31        0           0.00           0.00
0.557.279 I hugepages: 48.58 of 49.89 MiB on huge pages (97.3 %)
";
        let kind = || "weights".to_owned();
        assert_eq!(table(log), [((kind(), 0), 22), ((kind(), 1), 1044)].into());
    }

    #[test]
    fn a_plan_has_the_pages_of_each_node() {
        let text = r#"a line of the log
{"needs":[
"#;
        assert_eq!(plan(text), None);
        let needs = r#"{"fits":true,"needs":[{"pages":3,"node_pages":[2,1,0],"local_bytes":5,"remote_bytes":1},{"pages":4,"node_pages":[0,4],"local_bytes":7,"remote_bytes":0},{"kind":"kv","page_size":2097152,"pages":9},{"kind":"weights","page_size":2097152,"pages":3}]}"#;
        let expected = Plan {
            pages: [(0, 2), (1, 5)].into(),
            pages_anywhere: 3,
            local_bytes: 12,
            remote_bytes: 1,
            fits: true,
        };
        assert_eq!(
            plan(&format!("a line of the log\n{needs}\n")),
            Some(expected)
        );
    }

    #[test]
    fn the_local_bytes_are_summed_over_the_lines() {
        let log = "\
0.557.029 I hugepages: weights    2M              40.20       21          22.00          20.00
0.557.279 I hugepages: weights on 2M: 1.50 of 2.00 MiB of matrices are on the node that reads them (75.0 %)
0.557.279 I hugepages: repacked on 2M: 39.50 of 40.00 MiB of matrices are on the node that reads them (98.7 %)
0.557.279 I hugepages: 48.58 of 49.89 MiB on huge pages (97.3 %)
";
        assert_eq!(locality(log), (41.0, 42.0));
        assert_eq!(locality(""), (0.0, 0.0));
    }

    #[test]
    fn a_server_that_ended_early_has_no_mappings_and_no_answer() {
        let (_, seen) = read("@@ case short\n@@ before\n@@ exit\n1\n@@ log\nno\n@@ end\n@@ done\n");
        assert!(seen.mappings.is_empty() && seen.areas.is_empty() && seen.tokens.is_none());
        assert_eq!(seen.exit, Some(1));
    }

    #[test]
    fn a_report_that_the_kernel_wrote_into_is_an_error() {
        let mut reader = Reader::default();
        for line in ["@@ case x", "@@ before", "node0/huge[ 1.5] oops"] {
            assert!(reader.line(line).unwrap().is_none());
        }
        assert!(reader.line("@@ end").is_err());
    }
}
