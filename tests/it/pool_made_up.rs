//! `hugepages pool` on made-up kernels: no root, any page sizes, any number of nodes.

use crate::support::programs;
use std::fs;
use std::path::PathBuf;

use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use tempfile::TempDir;

/// A folder with a `sys` and a `proc`. Its files accept any number.
struct Kernel {
    dir: TempDir,
}

impl Kernel {
    fn new(sizes_kb: &[u64], nodes: u32) -> Self {
        let kernel = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        kernel.write("run/here", "");
        kernel.write(
            "proc/meminfo",
            "MemTotal: 67108864 kB\nMemAvailable: 60000000 kB\n",
        );
        for kb in sizes_kb {
            let dirs = (0..nodes).map(|node| format!("devices/system/node/node{node}/hugepages"));
            for dir in dirs.chain(["kernel/mm/hugepages".to_owned()]) {
                for name in ["nr", "free", "resv", "surplus"] {
                    let file = format!("sys/{dir}/hugepages-{kb}kB/{name}_hugepages");
                    kernel.write(&file, "0\n");
                }
            }
        }
        kernel
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.path(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path(file))
            .unwrap()
            .trim()
            .to_owned()
    }

    fn total(&self, kb: u64) -> String {
        self.read(&format!(
            "sys/kernel/mm/hugepages/hugepages-{kb}kB/nr_hugepages"
        ))
    }

    fn pool(&self, args: &[&str]) -> assert_cmd::assert::Assert {
        assert_cmd::Command::new(programs::hugepages())
            .arg("pool")
            .args(args)
            .arg("--root")
            .arg(self.dir.path())
            .env_remove("LLAMA_HUGEPAGES_STATE")
            .assert()
    }
}

#[test]
fn a_kernel_without_huge_pages_is_told_from_one_without_that_size() {
    Kernel::new(&[], 0)
        .pool(&["reserve", "1"])
        .code(1)
        .stderr("error: this kernel has no pool of huge pages\n");
    Kernel::new(&[2048], 1)
        .pool(&["reserve", "1", "--size", "1G"])
        .code(1)
        .stderr("error: this kernel has no pool of 1 GiB pages\n");
    Kernel::new(&[2048], 1)
        .pool(&["reserve", "1", "--node", "3"])
        .code(1)
        .stderr(contains("node 3 has no pool"));
}

#[test]
fn the_default_size_is_the_smallest_of_at_least_2_mib() {
    let arm64 = Kernel::new(&[64, 2048, 32768, 1_048_576], 1);
    arm64.pool(&["reserve", "64M"]).success().stdout(contains(
        "added 32 pages of 2 MiB (64 MiB): nr_hugepages 0 -> 32",
    ));
    let large_base = Kernel::new(&[2048 * 256, 16 << 20], 1);
    large_base
        .pool(&["reserve", "1GB"])
        .success()
        .stdout(contains("added 2 pages of 512 MiB (1 GiB)"));
}

#[test]
fn a_node_has_a_pool_of_its_own() {
    let kernel = Kernel::new(&[2048], 2);
    kernel
        .pool(&["reserve", "5", "--node", "1"])
        .success()
        .stdout(contains("added 5 pages of 2 MiB on node 1 (10 MiB)"));
    let nr = |node| {
        format!("sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages")
    };
    assert_eq!(
        (kernel.read(&nr(0)), kernel.read(&nr(1))),
        ("0".into(), "5".into())
    );
    kernel
        .pool(&["restore"])
        .success()
        .stdout("returned 5 pages of 2 MiB on node 1\n");
    assert_eq!(kernel.read(&nr(1)), "0");
}

#[test]
fn a_dry_run_changes_nothing() {
    let kernel = Kernel::new(&[2048], 1);
    kernel
        .pool(&["reserve", "5", "--dry-run"])
        .success()
        .stdout("would add 5 pages of 2 MiB (10 MiB): nr_hugepages 0 -> 5\n");
    assert_eq!(kernel.total(2048), "0");
    assert!(!kernel.path("run/llama-hugepages").exists());
}

#[test]
fn json_has_a_schema_and_both_sides_of_a_change() {
    let kernel = Kernel::new(&[2048], 1);
    let output = kernel
        .pool(&["reserve", "5", "--format", "json"])
        .success()
        .get_output()
        .stdout
        .clone();
    let json: serde_json::Value = serde_json::from_slice(&output).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["added"], 5);
    assert_eq!(json["page_bytes"], 2 << 20);
    assert_eq!(json["before"]["total"], 0);
    assert_eq!(json["after"]["total"], 5);
}

#[test]
fn hvo_is_switched_on_first_and_off_by_restore() {
    let kernel = Kernel::new(&[2048], 1);
    let hvo = "proc/sys/vm/hugetlb_optimize_vmemmap";
    kernel
        .pool(&["reserve", "5", "--hvo"])
        .code(1)
        .stderr(contains("hugetlb_optimize_vmemmap"));
    assert_eq!(kernel.total(2048), "0");
    kernel.write(hvo, "0\n");
    kernel.pool(&["reserve", "5", "--hvo"]).success();
    assert_eq!(
        (kernel.read(hvo), kernel.total(2048)),
        ("1".into(), "5".into())
    );
    kernel.pool(&["restore"]).success();
    assert_eq!(
        (kernel.read(hvo), kernel.total(2048)),
        ("0".into(), "0".into())
    );
}

#[test]
fn amounts_that_make_no_sense_end_with_exit_code_2() {
    let kernel = Kernel::new(&[2048], 1);
    for (amount, reason) in [
        ("-1", "cannot be negative"),
        ("1e99", "unknown unit `e99`"),
        ("0", "at least one page"),
        ("lots", "start with a number"),
    ] {
        kernel
            .pool(&["reserve", amount])
            .code(2)
            .stderr(contains(reason));
    }
    kernel
        .pool(&["reserve", "15360 pages", "--dry-run"])
        .success();
    for (amount, pages) in [("30GB", 14306), ("30G", 15360)] {
        kernel
            .pool(&["reserve", amount, "--dry-run"])
            .success()
            .stdout(contains(format!("would add {pages} pages")));
    }
}

#[test]
fn a_release_without_pages_says_that_it_returned_none() {
    let kernel = Kernel::new(&[2048], 1);
    kernel
        .pool(&["release"])
        .success()
        .stdout(contains("returned 0 pages"));
    kernel
        .pool(&["release", "--dry-run"])
        .success()
        .stdout(contains("would return 0 pages"));
}

#[test]
fn changes_of_an_earlier_boot_are_void() {
    let kernel = Kernel::new(&[2048], 1);
    let boot = "proc/sys/kernel/random/boot_id";
    kernel.write(boot, "first\n");
    kernel.pool(&["reserve", "5"]).success();
    kernel.write(boot, "second\n");
    kernel
        .pool(&["restore"])
        .success()
        .stdout("nothing to undo\n");
    assert_eq!(kernel.total(2048), "5");
}

#[test]
fn a_damaged_journal_is_refused_and_half_a_line_is_not() {
    let kernel = Kernel::new(&[2048], 1);
    kernel.pool(&["reserve", "5"]).success();
    let journal = "run/llama-hugepages/journal";
    let whole = kernel.read(journal) + "\n";
    kernel.write(journal, &format!("{whole}nonsense\n"));
    kernel
        .pool(&["restore"])
        .code(1)
        .stderr(contains("line 4 of").and(contains("hint: check the file")));
    assert_eq!(kernel.total(2048), "5");
    kernel.write(journal, &format!("{whole}{{\"intent\":"));
    kernel.pool(&["restore"]).success();
    assert_eq!(kernel.total(2048), "0");
}

#[test]
fn what_persist_wrote_unpersist_removes_and_nothing_else() {
    let kernel = Kernel::new(&[2048, 1_048_576], 1);
    kernel.write(
        "proc/meminfo",
        "MemAvailable: 9 kB\nHugepagesize:    2048 kB\n",
    );
    let theirs = "etc/sysctl.d/60-llama-hugepages-theirs.conf";
    kernel.write(theirs, "vm.swappiness = 1\n");
    kernel.write("etc/default/grub.d/README", "");
    let sysctl = "etc/sysctl.d/60-llama-hugepages.conf";
    let grub = "etc/default/grub.d/60-llama-hugepages-1G.cfg";

    kernel
        .pool(&["persist", "--pages", "627"])
        .code(1)
        .stdout(contains("+vm.nr_hugepages = 627"))
        .stderr(contains("hint: --yes"));
    assert!(!kernel.path(sysctl).exists());
    kernel
        .pool(&["persist", "--pages", "627", "--yes"])
        .success();
    assert!(kernel.read(sysctl).ends_with("\nvm.nr_hugepages = 627"));
    kernel
        .pool(&["persist", "--pages", "627", "--yes"])
        .success()
        .stdout("nothing to change\n");
    kernel
        .pool(&["persist", "--size", "1G", "--pages", "4", "--yes"])
        .success()
        .stdout(contains("reboot").and(contains("hugepagesz=1G hugepages=4")));
    assert!(
        kernel
            .read(grub)
            .contains("$GRUB_CMDLINE_LINUX hugepagesz=1G hugepages=4")
    );

    kernel.pool(&["unpersist", "--yes"]).success();
    assert!(!kernel.path(sysctl).exists() && !kernel.path(grub).exists());
    assert_eq!(kernel.read(theirs), "vm.swappiness = 1");
}

#[test]
fn a_persistent_setting_of_a_node_is_for_tmpfiles() {
    let kernel = Kernel::new(&[2048], 2);
    kernel
        .pool(&["persist", "--node", "1", "--pages", "8", "--yes"])
        .success();
    assert!(kernel.read("etc/tmpfiles.d/60-llama-hugepages-2M-node1.conf").ends_with(
        "\nw /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages - - - - 8"
    ));
}

#[test]
fn a_setting_that_was_edited_is_kept_without_force() {
    let kernel = Kernel::new(&[2048], 1);
    let file = "etc/tmpfiles.d/60-llama-hugepages-2M.conf";
    kernel.pool(&["persist", "--pages", "8", "--yes"]).success();
    let edited = kernel.read(file).replace(" 8", " 9") + "\n";
    kernel.write(file, &edited);
    for command in [
        &["persist", "--pages", "7", "--yes"][..],
        &["unpersist", "--yes"],
    ] {
        kernel
            .pool(command)
            .code(1)
            .stderr(contains("was edited").and(contains("hint: --force")));
    }
    assert_eq!(kernel.read(file) + "\n", edited);
    kernel.pool(&["unpersist", "--yes", "--force"]).success();
    assert!(!kernel.path(file).exists());
}
