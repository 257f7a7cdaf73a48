//! What the server says of its reads on file systems of many kinds, against what the kernel says of the page cache and the device.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::guardian::Guardian;
use crate::support::pool::Pool;
use crate::support::server::{Launch, Server};
use crate::support::{http, is_root, models, or_skip, page_cache, programs, skip};

/// Enough for the model, KV cache and compute buffers.
const PAGES: u64 = 40;

/// The header, which is read as any file, and what the kernel reads ahead of it.
const HEADER: u64 = 4 << 20;

/// Unmounts what was told, the last first.
const UNMOUNT: &str = r#"
    trap '' INT TERM HUP QUIT PIPE
    all=
    while read -r dir; do all="$dir $all"; done
    for dir in $all; do
        grep -qF " $dir " /proc/self/mountinfo || continue
        for i in 1 2 3 4 5 6 7 8 9 10; do umount "$dir" 2>/dev/null && break; sleep 0.2; done
        grep -qF " $dir " /proc/self/mountinfo && umount -l "$dir"
    done
    exit 0
"#;

/// How a kind is made, and what `O_DIRECT` does on it.
struct Kind {
    name: &'static str,
    /// `$1` is the image, `$2` a folder whose files it shall hold.
    make: &'static str,
    mount: &'static [&'static str],
    is_read_only: bool,
    /// `None`: depends on the kernel.
    is_direct: Option<bool>,
}

const EMPTY: &str = "truncate -s 400M \"$1\" && ";

const KINDS: [Kind; 8] = [
    Kind {
        name: "ext4",
        make: "mkfs.ext4 -q \"$1\"",
        mount: &[],
        is_read_only: false,
        is_direct: Some(true),
    },
    Kind {
        name: "ext4 with data=journal",
        make: "mkfs.ext4 -q \"$1\"",
        mount: &["-o", "data=journal"],
        is_read_only: false,
        is_direct: Some(false),
    },
    Kind {
        name: "xfs",
        make: "mkfs.xfs -q \"$1\"",
        mount: &[],
        is_read_only: false,
        is_direct: Some(true),
    },
    Kind {
        name: "btrfs",
        make: "mkfs.btrfs -q \"$1\"",
        mount: &[],
        is_read_only: false,
        is_direct: None,
    },
    Kind {
        name: "btrfs with compression",
        make: "mkfs.btrfs -q \"$1\"",
        mount: &["-o", "compress-force=zstd"],
        is_read_only: false,
        is_direct: None,
    },
    Kind {
        name: "squashfs",
        make: "rm \"$1\" && mksquashfs \"$2\" \"$1\" -quiet -no-progress",
        mount: &[],
        is_read_only: true,
        is_direct: Some(false),
    },
    Kind {
        name: "erofs",
        make: "rm \"$1\" && mkfs.erofs --quiet \"$1\" \"$2\"",
        mount: &[],
        is_read_only: true,
        is_direct: None,
    },
    Kind {
        name: "overlayfs on ext4",
        make: "mkfs.ext4 -q \"$1\"",
        mount: &[],
        is_read_only: false,
        is_direct: Some(true),
    },
];

/// A file system with a model in it, gone at the end.
struct Mounted {
    model: PathBuf,
    /// The file whose pages are cached: on overlayfs that of the layer.
    below: PathBuf,
    /// `loop0`
    device: String,
    // Before the folder.
    _guardian: Guardian,
    _dir: TempDir,
}

impl Mounted {
    fn new(kind: &Kind, model: &Path) -> Result<Self, String> {
        let dir =
            tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
        let path = |name: &str| dir.path().join(name);
        let (image, root, source) = (path("image"), path("root"), path("source"));
        for folder in [&root, &source, &path("upper"), &path("work"), &path("over")] {
            fs::create_dir(folder).expect("just made");
        }
        let copy =
            |to: &Path| fs::copy(model, to.join("model.gguf")).map_err(|error| error.to_string());
        if kind.is_read_only {
            copy(&source)?;
        }
        programs::run(
            Command::new("sh")
                .args(["-c", &format!("{EMPTY}{}", kind.make), "sh"])
                .args([&image, &source]),
        )?;
        let mut guardian = Guardian::start(UNMOUNT, None);
        guardian.tell(root.to_str().expect("a plain path"));
        programs::run(
            Command::new("mount")
                .args(["-o", "loop"])
                .args(kind.mount)
                .args([&image, &root]),
        )?;
        if !kind.is_read_only {
            copy(&root)?;
        }
        let below = root.join("model.gguf");
        let mut top = below.clone();
        if kind.name.starts_with("overlayfs") {
            let over = path("over");
            guardian.tell(over.to_str().expect("a plain path"));
            let layers = format!(
                "lowerdir={},upperdir={},workdir={}",
                root.display(),
                path("upper").display(),
                path("work").display()
            );
            programs::run(
                Command::new("mount")
                    .args(["-t", "overlay", "-o", &layers, "none"])
                    .arg(&over),
            )?;
            top = over.join("model.gguf");
        }
        let source = Command::new("findmnt")
            .args(["-n", "-o", "SOURCE"])
            .arg(&root)
            .output()
            .map_err(|error| error.to_string())?;
        let device = String::from_utf8_lossy(&source.stdout).trim().to_owned();
        Ok(Self {
            model: top,
            below,
            device: device.trim_start_matches("/dev/").to_owned(),
            _guardian: guardian,
            _dir: dir,
        })
    }

    /// Bytes that were read from the device since it is there.
    fn read_bytes(&self) -> u64 {
        let stat = fs::read_to_string(format!("/sys/block/{}/stat", self.device))
            .expect("a loop device has figures");
        let sectors = stat.split_whitespace().nth(2).expect("block/stat.rst");
        sectors.parse::<u64>().expect("a number") * 512
    }

    fn cached(&self) -> u64 {
        page_cache::cached_bytes(&self.below).expect("asked before")
    }
}

fn answer(server: &Server) -> Value {
    server.complete(
        "Once upon a time",
        &json!({ "temperature": 0, "n_predict": 6 }),
    )
}

/// Bytes that came direct, from the page cache, and through it, as `/props` has them.
fn read(server: &Server) -> [u64; 3] {
    let load = &http::get_json(&server.url("/props"))["hugepages"]["load"];
    ["bytes_direct", "bytes_cached", "bytes_buffered"]
        .map(|name| load[name].as_u64().expect("a number"))
}

fn says_what_is_so(kind: &Kind) {
    if !is_root() {
        return skip("root is needed to mount");
    }
    let model = models::demo("20M", "Q8_0");
    or_skip!(page_cache::cached_bytes(&model).map(drop));
    let expected = answer(&or_skip!(Launch::stock()).model(&model).start());
    let mounted = or_skip!(Mounted::new(kind, &model));
    let size = fs::metadata(&mounted.below).expect("just copied").len();
    let pool = or_skip!(Pool::with(PAGES));
    let name = kind.name;
    for is_repacked in [false, true] {
        let launch = Launch::ours();
        let launch = if is_repacked {
            launch.repacked_model(&mounted.model)
        } else {
            launch.model(&mounted.model)
        };
        let launch = launch.hugepages("require");

        page_cache::drop_file(&mounted.below);
        let before = mounted.cached();
        assert!(before < HEADER, "{name}: {before} bytes stay cached");
        let server = launch.clone().start();
        let after = mounted.cached();
        let [direct, cached, buffered] = read(&server);
        let said = format!(
            "{name}, repacked {is_repacked}: {direct} direct, {cached} cached, {buffered} buffered, {after} stay\n{}",
            server.log()
        );
        assert!(after < HEADER, "cold, {said}");
        assert!(cached < HEADER, "readahead is no page cache: {said}");
        match kind.is_direct {
            Some(true) => assert!(direct > size / 2, "{said}"),
            Some(false) => assert_eq!(direct, 0, "{said}"),
            None => assert!(direct + buffered > size / 2, "{said}"),
        }
        if !is_repacked {
            assert_eq!(answer(&server), expected, "cold, {name}");
        }
        drop(server);

        fs::read(&mounted.below).expect("it can be read");
        let before = mounted.cached();
        assert!(before > size - size / 10, "{name}: {before} of {size}");
        let from_device = mounted.read_bytes();
        let server = launch.start();
        let from_device = mounted.read_bytes() - from_device;
        let [direct, cached, buffered] = read(&server);
        let said = format!(
            "{name}, repacked {is_repacked}: {direct} direct, {cached} cached, {buffered} buffered, {from_device} from the device\n{}",
            server.log()
        );
        assert!(from_device < size / 10, "warm, {said}");
        assert!(cached > size / 2 && direct + buffered < size / 10, "{said}");
        assert!(mounted.cached() > size - size / 10, "it stays: {said}");
        drop(server);
    }
    pool.assert_all_back();
}

#[test]
fn what_is_said_of_reads_is_so_on_each_file_system() {
    for kind in &KINDS {
        says_what_is_so(kind);
    }
}

/// `cachestat` tells such a user nothing, and `mincore` that all is there.
#[test]
fn a_user_who_may_only_read_the_model_is_told_the_truth_too() {
    if !is_root() {
        return skip("root is needed to be another user");
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    programs::run(Command::new("chmod").arg("755").arg(dir.path())).expect("just made");
    let model = models::copy_to(dir.path(), &models::demo("20M", "Q8_0"));
    programs::run(Command::new("chmod").arg("644").arg(&model)).expect("just made");
    let size = fs::metadata(&model).expect("just made").len();
    let pool = or_skip!(Pool::with(PAGES));
    let launch = || {
        let launch = Launch::ours().model(&model).hugepages("require");
        launch.under_uid(65534)
    };
    page_cache::drop_file(&model);
    let server = launch().start();
    let stays = or_skip!(page_cache::cached_bytes(&model));
    let [direct, cached, buffered] = read(&server);
    assert!(stays < HEADER, "{stays} bytes stay");
    assert!(
        direct > size / 2 && cached < HEADER && buffered < HEADER,
        "{direct} {cached} {buffered}"
    );
    drop(server);

    fs::read(&model).expect("it can be read");
    let server = launch().start();
    let [direct, cached, buffered] = read(&server);
    // It may say that it does not know and read the file again. It never says what is not so.
    assert!(
        cached > size / 2 || direct > size / 2,
        "{direct} {cached} {buffered}"
    );
    assert!(page_cache::cached_bytes(&model).expect("asked before") > size - size / 10);
    drop(server);
    pool.assert_all_back();
}
