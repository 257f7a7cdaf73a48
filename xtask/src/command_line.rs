//! The commands of `cargo xtask`, and their arguments.

use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::build::lock::Registry;
use crate::repo::Repo;
use crate::upstream_tests;

const EXIT_CODES: &str = "Exit codes:
  0  success
  1  finding: a difference, a failed check, or a patch that does not apply
  2  invalid arguments
  3  failure; stderr contains the reason";

/// Maintain this repository: the pin, the patch series, upstream's programs, tests on an emulated machine.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// Repository to work on [default: the repository of this build]
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Fetch, verify or change the pinned source
    #[command(subcommand)]
    Vendor(Vendor),
    /// Edit the patch series as git commits, export it, check it
    #[command(subcommand)]
    Patches(Patches),
    /// Build upstream's chat page into vendor/ui/ for all later builds; does nothing if it exists
    Ui,
    /// Download the small model of `make run` into target/models/; does nothing if it exists
    Model,
    /// Build upstream's programs without the series into target/stock/, with the flags of our build
    Stock,
    /// Build upstream's programs with the series into target/tools/
    Tools,
    /// Build the programs of the long tests: for Valgrind (target/portable-*/) and with sanitizers (target/{address,thread}/)
    Instrumented,
    /// Build llama-server with the backends Vulkan and BLAS: stock into target/backends-stock/, ours into target/backends/
    Backends {
        /// Succeed if Vulkan's headers are missing or too old, and print the reason
        #[arg(long)]
        if_possible: bool,
    },
    /// Install programs of others that contain llama.cpp into target/other-programs/: packages of npm and of Python
    OtherPrograms {
        /// Succeed if a program cannot be installed, and print the reason
        #[arg(long)]
        if_possible: bool,
    },
    /// Build the wheel of llama-cpp-python with the series into target/python/
    ///
    /// `CMAKE_ARGS` and `LLAMA_HUGEPAGES_CMAKE_ARGS` add arguments for CMake. Without `-DGGML_NATIVE=OFF`, the wheel is for the CPU of
    /// this machine.
    PythonWheel,
    /// Copy the crate llama-cpp-sys-2 with the series into target/sys-crate/, for [patch.crates-io]
    ///
    /// The crate's llama.cpp is another version than the pin. The command prints a warning for each hunk that git had to merge, and
    /// copies nothing if a hunk fails.
    SysCrate {
        /// Version of the crate [default: the version that examples/llama-cpp-2/Cargo.lock names]
        version: Option<String>,
    },
    /// Build the container image `llama-hugepages`, and print its id
    ///
    /// Two builds of the same commit on the same base give the same id. `SOURCE_DATE_EPOCH` overrides the time of the commit.
    Image {
        #[command(flatten)]
        programs: Programs,
        /// Base image; Debian or a derivative [default: the one in deploy/image/Containerfile]
        #[arg(long, value_name = "IMAGE")]
        base: Option<String>,
    },
    /// Build a tarball with the programs, man pages, units, licences and SBOM, and print its path
    ///
    /// Two builds of the same programs give the same bytes. `SOURCE_DATE_EPOCH` overrides the time of the commit.
    Dist(Packages),
    /// Build a Debian package with the same files, and print its path
    ///
    /// `DEBFULLNAME` and `DEBEMAIL` name the maintainer [default: the author of the commit].
    Deb {
        #[command(flatten)]
        packages: Packages,
        /// Revision of the package, which follows the version of the programs
        #[arg(long, value_name = "N", default_value_t = 1)]
        revision: u32,
    },
    /// Write a list of the crates and of llama.cpp as CycloneDX into target/sbom/
    Sbom,
    /// Run upstream's tests of llama-server against stock and ours; each test must end in the same way on all servers
    UpstreamTests {
        /// Run only these: a file (`test_sleep.py`), a test of it (`test_sleep.py::test_server_sleep`), or tests whose
        /// names contain a word
        #[arg(value_name = "FILTER")]
        filters: Vec<String>,
        /// Run all files [default: files that take about a minute for each server]
        #[arg(long)]
        all: bool,
        /// Servers to compare
        #[arg(long, value_delimiter = ',', default_value = "stock,off,on")]
        servers: Vec<upstream_tests::Server>,
        /// Succeed if Python packages cannot be installed, and print the reason; without a pool of huge pages, use THP
        #[arg(long)]
        if_possible: bool,
    },
    /// Test huge pages on an emulated machine with two NUMA nodes
    QemuTest {
        /// Run only these cases, and those whose answers they need; `limit` stands for `limit-short` too [default: all]
        #[arg(value_name = "CASE")]
        cases: Vec<String>,
        /// Kernel to boot [default: the kernel from `scripts/setup --test` in target/qemu/kernel/]
        #[arg(long, value_name = "FILE")]
        kernel: Option<PathBuf>,
        /// Also answer for a minute in each case whose pages NUMA balancing must not move
        #[arg(long)]
        all: bool,
        /// Succeed if a required program is missing, and print its name
        #[arg(long)]
        if_possible: bool,
    },
}

#[derive(Subcommand)]
pub enum Vendor {
    /// Download and unpack the pinned source into vendor/cache/; does nothing if it exists
    Fetch,
    /// Download the pinned archive again, and compare its hash, the unpacked cache and the upstream commit
    Verify,
    /// Pin another version of the carrier package, or another carrier, and try the series on it
    Bump {
        /// Version of the carrier package
        version: String,
        /// Name of the carrier package [default: the pinned one]
        #[arg(long, value_name = "NAME")]
        package: Option<String>,
        /// Program that downloads the carrier package [default: the pinned one]
        #[arg(long)]
        registry: Option<Registry>,
        /// Upstream commit, if the package does not contain it
        #[arg(long, value_name = "SHA", value_parser = commit_id)]
        commit: Option<String>,
    },
}

#[derive(Subcommand)]
pub enum Patches {
    /// Create a git work tree with the pristine source, our files, and one commit for each patch
    Import(Place),
    /// Write the commits of the work tree back to patches/
    Export(Place),
    /// Check that patches/ applies, matches an export, and contains the reason for each patch
    Check,
    /// Apply the series to the pinned source, with merges, and export it
    Refresh(Place),
    /// Try each hunk of the series on another llama.cpp, and change nothing
    Try {
        /// Tree of llama.cpp, or an archive (.tar.gz, .crate) that contains it [default: the source of a build]
        source: Option<PathBuf>,
    },
}

#[derive(Args)]
pub struct Programs {
    /// Folder of the programs [default: target/release]
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

impl Programs {
    pub fn dir(&self, repo: &Repo) -> PathBuf {
        self.programs.clone().unwrap_or_else(|| repo.programs())
    }
}

#[derive(Args)]
pub struct Packages {
    #[command(flatten)]
    pub programs: Programs,
    /// Folder of the package and of `SHA256SUMS` [default: target/dist]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Packages {
    pub fn out(&self, repo: &Repo) -> PathBuf {
        let out = self.out.clone();
        out.unwrap_or_else(|| repo.target().join("dist"))
    }
}

#[derive(Args)]
pub struct Place {
    /// Work tree [default: target/patches/llama.cpp]
    dir: Option<PathBuf>,
    /// Continue even if work is lost: import and refresh drop changes that were not exported, export overwrites changes in
    /// patches/ after the import
    #[arg(long)]
    pub force: bool,
}

impl ValueEnum for Registry {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Pip, Self::Cargo]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(self.name().into())
    }
}

fn commit_id(text: &str) -> Result<String, String> {
    let is_id = text.len() == 40
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_id {
        Ok(text.to_owned())
    } else {
        Err("expected 40 hex digits".to_owned())
    }
}

impl Place {
    pub fn dir(&self, repo: &Repo) -> PathBuf {
        self.dir.clone().unwrap_or_else(|| repo.work_tree())
    }
}
