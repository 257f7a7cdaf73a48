//! Recorded kernels: folders with a `sys` and a `proc` as the kernel writes them.
//! A builder instead of a tree of files, because code shows the differences between two kernels.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

/// A folder that looks like another machine.
pub struct Kernel(TempDir);

/// `nr`, `free`, `resv`, `surplus`, `nr_overcommit`.
type Counts = [u64; 5];

/// All recorded kernels, by name.
pub fn all() -> Vec<(&'static str, Kernel)> {
    vec![
        ("no-hugetlb", no_hugetlb()),
        ("2m-only", only_2m()),
        ("2m-and-1g", with_1g()),
        ("two-nodes", two_nodes()),
        ("container-v2", container_v2()),
        ("container-v1", container_v1()),
        ("arm64", arm64()),
    ]
}

/// Built without `CONFIG_HUGETLBFS`, and old.
pub fn no_hugetlb() -> Kernel {
    let kernel = Kernel::plain("5.10.0-8-amd64", X86);
    kernel.write("proc/filesystems", "nodev\tproc\n\text4\n");
    kernel
}

/// A laptop: no pages of 1 GiB, a pool in use, HVO not built in.
pub fn only_2m() -> Kernel {
    let kernel = Kernel::plain("6.1.0-18-amd64", &X86.replace(" pdpe1gb", ""));
    kernel.pool(2048, [1024, 512, 128, 0, 0]);
    kernel.write(
        "proc/77/status",
        "Name:\tpostgres\nPid:\t77\nHugetlbPages:\t 1048576 kB\n",
    );
    kernel.write(
        "proc/77/smaps",
        "7f0000000000-7f0040000000 rw-s 00000000 00:0f 9 /anon_hugepage (deleted)\n\
         Size:            1048576 kB\nKernelPageSize:     2048 kB\nShared_Hugetlb:  1048576 kB\nPrivate_Hugetlb:       0 kB\n",
    );
    kernel.write("proc/77/cmdline", "postgres\0-D\0/data\0");
    kernel
}

/// A server with both sizes, HVO on, a mount with a file in it, and a process whose map the tool may not read.
pub fn with_1g() -> Kernel {
    let kernel = Kernel::plain("6.12.9", X86);
    kernel.pool(2048, [4096, 3584, 0, 0, 0]);
    kernel.pool(1_048_576, [8, 6, 1, 0, 2]);
    kernel.write("proc/sys/vm/hugetlb_optimize_vmemmap", "1\n");
    // 64 GiB, of which 512 pages of 2 MiB have given back 7 pages each.
    kernel.write("sys/devices/system/memory/block_size_bytes", "80000000\n");
    for block in 0..32 {
        kernel.write(
            &format!("sys/devices/system/memory/memory{block}/online"),
            "1\n",
        );
    }
    kernel.write(
        "proc/vmstat",
        "nr_free_pages 9\nnr_memmap_pages 0\nnr_memmap_boot_pages 258560\n",
    );
    kernel.write(
        "proc/self/mountinfo",
        "30 1 0:30 / /mnt/huge\\040pages rw - hugetlbfs none rw,pagesize=2M,mode=1777\n",
    );
    fs::create_dir_all(kernel.path().join("mnt/huge pages")).expect("the folder is ours");
    kernel.write(
        "proc/4242/status",
        "Name:\tllama-server\nPid:\t4242\nHugetlbPages:\t 3145728 kB\n",
    );
    kernel.write(
        "proc/4242/smaps",
        "7f0000000000-7f0080000000 r--s 00000000 00:01 9 /memfd:llama-weights (deleted)\n\
         KernelPageSize:  1048576 kB\nShared_Hugetlb:        0 kB\nPrivate_Hugetlb: 2097152 kB\n\
         7f0100000000-7f0140000000 rw-s 00000000 00:01 10 /memfd:llama-kv (deleted)\n\
         KernelPageSize:     2048 kB\nShared_Hugetlb:        0 kB\nPrivate_Hugetlb: 1048576 kB\n",
    );
    kernel.write(
        "proc/4242/cmdline",
        "/usr/bin/llama-server\0-m\0/models/large.gguf\0--port\08081\0--hugepages\0",
    );
    kernel
}

/// Two sockets with NUMA balancing, THP always, swap in use, and memory in pieces.
pub fn two_nodes() -> Kernel {
    let kernel = Kernel::plain("6.8.0-45-generic", X86);
    kernel.pool(2048, [3000, 2500, 0, 0, 0]);
    for (node, [total, free]) in [[2000, 1900], [1000, 600]].into_iter().enumerate() {
        let dir = format!("sys/devices/system/node/node{node}/hugepages/hugepages-2048kB");
        kernel.write(&format!("{dir}/nr_hugepages"), &format!("{total}\n"));
        kernel.write(&format!("{dir}/free_hugepages"), &format!("{free}\n"));
        kernel.write(&format!("{dir}/surplus_hugepages"), "0\n");
        kernel.write(
            &format!("sys/devices/system/node/node{node}/cpulist"),
            &format!("{}-{}\n", 32 * node, 32 * node + 31),
        );
    }
    kernel.write("proc/sys/kernel/numa_balancing", "1\n");
    kernel.write("proc/sys/vm/hugetlb_optimize_vmemmap", "0\n");
    kernel.write(
        "sys/kernel/mm/transparent_hugepage/enabled",
        "[always] madvise never\n",
    );
    kernel.write(
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
        "powersave\n",
    );
    kernel.write(
        "proc/buddyinfo",
        "Node 0, zone   Normal   9   9   9   9   9   9   9   9   9   0   0\n\
         Node 1, zone   Normal   9   9   9   9   9   9   9   9   9   0   0\n",
    );
    kernel.write(
        "proc/meminfo",
        "MemTotal:       65536000 kB\nMemAvailable:    4096000 kB\nSwapTotal:       8388608 kB\nSwapFree:        4194304 kB\nPageTables:   1024 kB\n",
    );
    kernel.write(
        "proc/pressure/memory",
        "some avg10=12.50 avg60=8.25 avg300=2.00 total=9\nfull avg10=3.00 avg60=1.50 avg300=0.25 total=5\n",
    );
    kernel
}

/// A pod: its ancestor's limit leaves no page, and it may use few mappings and addresses.
pub fn container_v2() -> Kernel {
    let kernel = Kernel::plain("6.6.30", X86);
    kernel.pool(2048, [1024, 1024, 0, 0, 0]);
    kernel.write("proc/self/cgroup", "0::/pods/one\n");
    kernel.write(
        "proc/self/mountinfo",
        "31 1 0:27 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw,memory_hugetlb_accounting\n",
    );
    for (cgroup, max, rsvd) in [("pods/one", "max", "1073741824"), ("pods", "0", "max")] {
        let dir = format!("sys/fs/cgroup/{cgroup}/hugetlb.2MB");
        kernel.write(&format!("{dir}.max"), &format!("{max}\n"));
        kernel.write(&format!("{dir}.current"), "0\n");
        kernel.write(&format!("{dir}.rsvd.max"), &format!("{rsvd}\n"));
        kernel.write(&format!("{dir}.rsvd.current"), "4194304\n");
    }
    kernel.write("sys/fs/cgroup/pods/memory.max", "2147483648\n");
    kernel.write("proc/sys/vm/max_map_count", "1000\n");
    kernel.write(
        "proc/self/limits",
        "Limit                     Soft Limit           Hard Limit           Units     \n\
         Max locked memory         65536                65536                bytes     \n\
         Max address space         8589934592           unlimited            bytes     \n",
    );
    kernel
}

/// An older container: version 1, mounted below the top.
pub fn container_v1() -> Kernel {
    let kernel = Kernel::plain("5.15.0", X86);
    kernel.pool(2048, [1024, 1024, 0, 0, 0]);
    kernel.write("proc/self/cgroup", "4:hugetlb:/docker/abc/inner\n");
    kernel.write(
        "proc/self/mountinfo",
        "31 1 0:27 /docker/abc /sys/fs/cgroup/hugetlb ro - cgroup cgroup rw,hugetlb\n",
    );
    for (cgroup, limit) in [("/inner", "9223372036852678656"), ("", "536870912")] {
        let dir = format!("sys/fs/cgroup/hugetlb{cgroup}/hugetlb.2MB");
        kernel.write(&format!("{dir}.limit_in_bytes"), &format!("{limit}\n"));
        kernel.write(&format!("{dir}.usage_in_bytes"), "2097152\n");
    }
    kernel
}

/// Base pages of 4 KiB, four sizes, and no flags in cpuinfo.
pub fn arm64() -> Kernel {
    let kernel = Kernel::plain("6.11.0", "processor\t: 0\nFeatures\t: fp asimd sve\n");
    for (kib, total) in [(64, 160), (2048, 512), (32_768, 4), (1_048_576, 0)] {
        kernel.pool(kib, [total, total, 0, 0, 0]);
    }
    kernel
}

const X86: &str = "processor\t: 0\nflags\t\t: fpu pse pdpe1gb avx2\n";

impl Kernel {
    /// The files of every Linux.
    fn plain(release: &str, cpuinfo: &str) -> Self {
        let kernel = Self(tempfile::tempdir().expect("the disk has space"));
        kernel.write("proc/sys/kernel/osrelease", &format!("{release}\n"));
        kernel.write("proc/cpuinfo", cpuinfo);
        kernel.write(
            "proc/filesystems",
            "nodev\tproc\nnodev\thugetlbfs\n\text4\n",
        );
        kernel.write(
            "proc/self/mountinfo",
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n",
        );
        kernel.write("proc/self/cgroup", "0::/\n");
        kernel.write("proc/sys/vm/max_map_count", "65530\n");
        kernel.write(
            "sys/kernel/mm/transparent_hugepage/enabled",
            "always [madvise] never\n",
        );
        kernel.write(
            "sys/kernel/mm/transparent_hugepage/defrag",
            "always defer [madvise] never\n",
        );
        kernel.write(
            "proc/meminfo",
            "MemTotal:       16384000 kB\nMemAvailable:    8192000 kB\nSwapTotal:             0 kB\nSwapFree:              0 kB\n\
             AnonHugePages:      4096 kB\nFileHugePages:         0 kB\nFilePmdMapped:         0 kB\n",
        );
        kernel.write(
            "proc/buddyinfo",
            "Node 0, zone   Normal   9   9   9   9   9   9   9   9   9   5   20\n",
        );
        kernel.write(
            "proc/pressure/memory",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        );
        // A process without huge pages, which the tool leaves out.
        kernel.write(
            "proc/1/status",
            "Name:\tinit\nPid:\t1\nHugetlbPages:\t       0 kB\n",
        );
        kernel
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, and creates its folders.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("the folder is ours");
        fs::write(path, text).expect("the disk has space");
    }

    fn pool(&self, kib: u64, counts: Counts) {
        let names = [
            "nr_hugepages",
            "free_hugepages",
            "resv_hugepages",
            "surplus_hugepages",
            "nr_overcommit_hugepages",
        ];
        for (name, count) in names.into_iter().zip(counts) {
            let dir = format!("sys/kernel/mm/hugepages/hugepages-{kib}kB");
            self.write(&format!("{dir}/{name}"), &format!("{count}\n"));
        }
    }
}
