//! The cases of the guest, and their expectations.

/// Pages of each node at boot: twelve times the model, so that only the short cases lack pages.
pub const PAGES_PER_NODE: u64 = 256;
/// Fewer pages than the model needs.
const SHORT: u64 = 4;

/// The model's path in the guest.
pub const MODEL: &str = "/model.gguf";

/// The two page sizes, in KiB.
pub const SMALL_KB: u64 = 2 << 10;
pub const LARGE_KB: u64 = 1 << 20;

/// One start of the server.
#[derive(Debug)]
pub struct Case {
    pub name: &'static str,
    cpus: &'static str,
    /// Pages of 2 MiB in the pool of node 1.
    pub pages: u64,
    arguments: &'static str,
    pub expect: Expect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// No huge page. The other cases must give the same answer.
    Plain,
    /// Every mapping of weights has the same number of pages on both nodes. A difference of one page is allowed.
    Spread,
    /// All weights are on huge pages.
    Anywhere,
    /// All huge pages are on this node, and the weights are on pages of this size.
    On(u32, u64),
    /// All pages of this node are used, and the other weights stay in the file's mapping.
    PartlyOn(u32),
    /// The load fails with this node's count in the message, not with a signal.
    RefusedFor(u32),
}

/// The plain cases run first, because the other cases need their answers for the same number of threads.
#[rustfmt::skip]
pub const CASES: &[Case] = &[
    case("plain-1",          NODE_0, "", Expect::Plain),
    case("plain-2",          BOTH,   "", Expect::Plain),
    case("distribute",       BOTH,   "--numa distribute --hugepages", Expect::Spread),
    case("numactl",          NODE_1, "--numa numactl --hugepages", Expect::On(1, SMALL_KB)),
    case("isolate",          NODE_0, "--numa isolate --hugepages", Expect::On(0, SMALL_KB)),
    case("short-require",    NODE_1, "--numa numactl --hugepages", Expect::RefusedFor(1)).short(),
    case("short-prefer",     NODE_1, "--numa numactl --hugepages --hugepage-policy prefer", Expect::PartlyOn(1)).short(),
    // `distribute` is a preference: if one node lacks pages, the other node provides them.
    case("short-distribute", BOTH,   "--numa distribute --hugepages", Expect::Anywhere).short(),
    case("size-1g",          NODE_1, "--numa numactl --hugepages --hugepage-size 1G", Expect::On(1, LARGE_KB)),
    // A page of 1 GiB would waste memory on this model, so `auto` uses none.
    case("size-auto",        NODE_1, "--numa numactl --hugepages --hugepage-size auto", Expect::On(1, SMALL_KB)),
];

/// The CPUs that the process may use. Each node has one.
const NODE_0: &str = "0";
const NODE_1: &str = "1";
const BOTH: &str = "0,1";

const fn case(
    name: &'static str,
    cpus: &'static str,
    arguments: &'static str,
    expect: Expect,
) -> Case {
    Case {
        name,
        cpus,
        pages: PAGES_PER_NODE,
        arguments,
        expect,
    }
}

impl Case {
    /// Gives node 1 too few pages.
    const fn short(mut self) -> Self {
        self.pages = SHORT;
        self
    }

    /// A line of the guest's script.
    pub fn command(&self) -> String {
        let Self {
            name,
            cpus,
            pages,
            arguments,
            ..
        } = self;
        format!(
            "run {name} {cpus} {pages} -t {} {arguments}\n",
            self.threads()
        )
    }

    /// One thread for each CPU, because more threads would wait for each other.
    pub fn threads(&self) -> usize {
        self.cpus.split(',').count()
    }

    pub fn exit_code(&self) -> u32 {
        match self.expect {
            // More pages would help.
            Expect::RefusedFor(_) => 3,
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
            let plain =
                |one: &&Case| one.expect == Expect::Plain && one.threads() == case.threads();
            assert!(CASES.iter().any(|one| plain(&one)), "{}", case.name);
        }
    }

    #[test]
    fn a_case_is_a_line_of_the_guests_script() {
        assert_eq!(
            CASES[2].command(),
            "run distribute 0,1 256 -t 2 --numa distribute --hugepages\n"
        );
    }
}
