//! The cases of the guest, and their expectations.

/// Pages of each node at boot: enough for half of the largest model and its buffers, so that only the short cases lack pages.
pub const PAGES_PER_NODE: u64 = 256;
/// Fewer pages than the smallest model needs.
const SHORT: u64 = 4;

/// An emulated machine with CPUs on each node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    pub nodes: u32,
    pub cpus_per_node: u32,
    /// Memory of each node.
    pub node_gib: u32,
    /// Whether each node has a page of 1 GiB.
    pub has_large: bool,
}

pub const TWO_NODES: Machine = Machine {
    nodes: 2,
    cpus_per_node: 2,
    node_gib: 4,
    has_large: true,
};
/// The host needs room for all nodes, so they have no pages of 1 GiB.
pub const FOUR_NODES: Machine = Machine {
    nodes: 4,
    cpus_per_node: 2,
    node_gib: 2,
    has_large: false,
};

/// A model in the guest.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Model {
    pub name: &'static str,
    /// Arguments of `hugepages demo-model`.
    pub arguments: &'static str,
    /// The prompt of the request, and the tokens of its answer: few, because an emulated CPU takes seconds for a token of a dense model.
    request: (&'static str, u32),
}

impl Model {
    /// The model's path in the guest.
    pub fn path(&self) -> String {
        format!("/{}.gguf", self.name)
    }

    /// Whether each token reads all matrices.
    pub fn is_dense(&self) -> bool {
        !self.arguments.contains("--experts")
    }
}

pub const MODELS: &[&Model] = &[EXPERTS, EXPERTS_REPACKED, DENSE, DENSE_REPACKED];

/// An emulated CPU repacks no `Q8_0`, so the weights stay mapped.
pub const EXPERTS: &Model = &Model {
    name: "experts",
    arguments: "--size 40M --type Q8_0 --experts 16 --experts-used 1",
    request: ("Once upon a time", 8),
};
/// One layer with tensors that are much larger than a page, of experts that are smaller than a page.
const EXPERTS_REPACKED: &Model = &Model {
    name: "experts-repacked",
    arguments: "--size 200M --type Q4_0 --experts 64 --experts-used 2 --layers 1",
    request: ("Once upon a time", 8),
};
/// One layer, because its matrices must be much larger than a page. F32 has the most bytes for each multiplication.
pub const DENSE: &Model = &Model {
    name: "dense",
    arguments: "--size 430M --type F32 --layers 1",
    request: ("a", 3),
};
const DENSE_REPACKED: &Model = &Model {
    name: "dense-repacked",
    arguments: "--size 265M --type Q4_0 --layers 1",
    request: ("a", 3),
};

/// The two page sizes, in KiB.
pub const SMALL_KB: u64 = 2 << 10;
pub const LARGE_KB: u64 = 1 << 20;

/// One start of the server.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub machine: Machine,
    pub name: &'static str,
    pub model: &'static Model,
    cpus: &'static str,
    /// Pages of 2 MiB in the pool of node 1.
    pub pages: u64,
    /// MiB above the plan that the server's cgroup may use, huge pages included; None: no limit.
    pub room: Option<i64>,
    arguments: &'static str,
    pub expect: Expect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// No huge page. The other cases must give the same answer.
    Plain,
    /// No huge page, and upstream's threads: each runs on another node than the thread before.
    Off,
    /// All weights are on huge pages, and this percentage of their matrices is on the nodes of the threads that read it. Adjacent threads
    /// run on one node.
    ByRows(u32),
    /// All weights are on huge pages.
    Anywhere,
    /// All huge pages are on this node, and the weights are on pages of this size.
    On(u32, u64),
    /// All pages of this node are used, and the other weights stay in the file's mapping.
    PartlyOn(u32),
    /// The load fails with this node's count in the message, not with a signal.
    RefusedFor(u32),
    /// The load fails with the limit of the cgroup in the message, not with a signal.
    RefusedByLimit,
}

/// Of each machine and model, the plain cases run first, because the other cases need their answers for the same number of threads.
///
/// A page has rows of two nodes at the beginning, the end and the borders of a matrix. So experts that are smaller than a page have no
/// expected share, unless they are repacked, in node order.
#[rustfmt::skip]
pub const CASES: &[Case] = &[
    two("plain-1",          EXPERTS, NODE_0, "", Expect::Plain),
    two("plain-4",          EXPERTS, BOTH,   "", Expect::Plain),
    two("distribute",       EXPERTS, BOTH,   "--numa distribute --hugepages", Expect::ByRows(0)),
    two("distribute-off",   EXPERTS, BOTH,   "--numa distribute", Expect::Off),
    two("numactl",          EXPERTS, NODE_1, "--numa numactl --hugepages", Expect::On(1, SMALL_KB)),
    two("isolate",          EXPERTS, NODE_0, "--numa isolate --hugepages", Expect::On(0, SMALL_KB)),
    // Pages of 1 GiB would replace the small ones.
    two("short-require",    EXPERTS, NODE_1, "--numa numactl --hugepages --hugepage-size 2M", Expect::RefusedFor(1)).short(),
    two("short-prefer",     EXPERTS, NODE_1, "--numa numactl --hugepages --hugepage-size 2M --hugepage-policy prefer", Expect::PartlyOn(1)).short(),
    two("short-distribute", EXPERTS, BOTH,   "--numa distribute --hugepages --hugepage-size 2M", Expect::RefusedFor(1)).short(),
    // If one node lacks pages, the other node provides them.
    two("short-distribute-prefer", EXPERTS, BOTH, "--numa distribute --hugepages --hugepage-size 2M --hugepage-policy prefer", Expect::Anywhere).short(),
    // Huge pages count as memory here. The plan keeps 32 MiB for the server, and the load 16.
    two("limit",             EXPERTS, NODE_1, "--numa numactl --hugepages --hugepage-size 2M", Expect::On(1, SMALL_KB)).within(34),
    two("limit-short",       EXPERTS, NODE_1, "--numa numactl --hugepages --hugepage-size 2M", Expect::RefusedByLimit).within(12),
    // The weights need one page, and all buffers together another one. Each node has one.
    two("size-1g",          EXPERTS, BOTH,   "--numa numactl --hugepages --hugepage-size 1G", Expect::Anywhere),
    // A page of 1 GiB would waste memory on this model, so `auto` uses none.
    two("size-auto",        EXPERTS, NODE_1, "--numa numactl --hugepages --hugepage-size auto", Expect::On(1, SMALL_KB)),
    two("experts-repacked-plain",      EXPERTS_REPACKED, BOTH, "", Expect::Plain),
    two("experts-repacked-distribute", EXPERTS_REPACKED, BOTH, "--numa distribute --hugepages --hugepage-size 2M", Expect::ByRows(95)),
    // The prompt has another number of threads than the load planned for, and one thread reads the rows of both nodes.
    two("experts-repacked-prompt",     EXPERTS_REPACKED, BOTH, "--numa distribute --hugepages --hugepage-size 2M -tb 1", Expect::ByRows(95)),
    two("experts-repacked-3-plain",    EXPERTS_REPACKED, THREE, "", Expect::Plain),
    two("experts-repacked-3",          EXPERTS_REPACKED, THREE, "--numa distribute --hugepages --hugepage-size 2M", Expect::ByRows(95)),
    two("dense-plain",                 DENSE,            BOTH, "", Expect::Plain),
    two("dense-distribute",            DENSE,            BOTH, "--numa distribute --hugepages --hugepage-size 2M", Expect::ByRows(97)),
    two("dense-repacked-plain",        DENSE_REPACKED,   BOTH, "", Expect::Plain),
    two("dense-repacked-distribute",   DENSE_REPACKED,   BOTH, "--numa distribute --hugepages --hugepage-size 2M", Expect::ByRows(97)),
    four("four-experts-plain",      EXPERTS, "", Expect::Plain),
    four("four-experts-distribute", EXPERTS, "--numa distribute --hugepages", Expect::ByRows(0)),
    four("four-experts-repacked-plain",      EXPERTS_REPACKED, "", Expect::Plain),
    four("four-experts-repacked-distribute", EXPERTS_REPACKED, "--numa distribute --hugepages", Expect::ByRows(93)),
    four("four-dense-plain",        DENSE,   "", Expect::Plain),
    four("four-dense-distribute",   DENSE,   "--numa distribute --hugepages", Expect::ByRows(97)),
];

/// The CPUs that the process may use: one of a node, or all of both nodes.
const NODE_0: &str = "0";
const NODE_1: &str = "2";
const BOTH: &str = "0,1,2,3";
const THREE: &str = "0,1,2";
const ALL_OF_FOUR: &str = "0,1,2,3,4,5,6,7";

const fn two(
    name: &'static str,
    model: &'static Model,
    cpus: &'static str,
    arguments: &'static str,
    expect: Expect,
) -> Case {
    Case {
        machine: TWO_NODES,
        name,
        model,
        cpus,
        pages: PAGES_PER_NODE,
        room: None,
        arguments,
        expect,
    }
}

const fn four(
    name: &'static str,
    model: &'static Model,
    arguments: &'static str,
    expect: Expect,
) -> Case {
    Case {
        machine: FOUR_NODES,
        ..two(name, model, ALL_OF_FOUR, arguments, expect)
    }
}

impl Case {
    /// Gives node 1 too few pages.
    const fn short(mut self) -> Self {
        self.pages = SHORT;
        self
    }

    /// Limits the memory of the cgroup.
    const fn within(mut self, room: i64) -> Self {
        self.room = Some(room);
        self
    }

    /// A line of the guest's script.
    pub fn command(&self) -> String {
        let Self {
            name,
            model,
            cpus,
            pages,
            room,
            arguments,
            ..
        } = self;
        let room = room.map_or("-".to_owned(), |mib| mib.to_string());
        let (prompt, tokens) = model.request;
        let (path, threads) = (model.path(), self.threads());
        format!(
            "run {name} {cpus} {pages} {room} {tokens} '{prompt}' -m {path} -t {threads} {arguments}\n"
        )
    }

    /// One thread for each CPU, because more threads would wait for each other.
    pub fn threads(&self) -> usize {
        self.cpus.split(',').count()
    }

    /// Whether the answers of both must be equal.
    pub fn is_compared_with(&self, plain: &Self) -> bool {
        (plain.expect, plain.model, plain.threads(), plain.machine)
            == (Expect::Plain, self.model, self.threads(), self.machine)
    }

    /// Whether the prompt has the number of threads that the load planned for.
    pub fn reads_as_planned(&self) -> bool {
        !self.arguments.contains("-tb ")
    }

    pub fn exit_code(&self) -> u32 {
        match self.expect {
            // More pages would help.
            Expect::RefusedFor(_) | Expect::RefusedByLimit => 3,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_case_has_a_plain_answer_for_its_threads() {
        for case in CASES {
            assert!(
                CASES.iter().any(|one| case.is_compared_with(one)),
                "{}",
                case.name
            );
        }
    }

    #[test]
    fn a_case_is_a_line_of_the_guests_script() {
        assert_eq!(
            CASES[2].command(),
            "run distribute 0,1,2,3 256 - 8 'Once upon a time' -m /experts.gguf -t 4 --numa distribute --hugepages\n"
        );
    }
}
