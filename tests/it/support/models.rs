//! Models with random weights, made once for all runs.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FlockOperation, flock};

use super::{gguf, programs, target_dir};

/// The demo model of a size and a type: `demo("100M", "Q8_0")`.
pub fn demo(size: &str, kind: &str) -> PathBuf {
    make(size, kind, 1, &[])
}

/// A demo model with other options of `hugepages demo-model`.
pub fn demo_with(size: &str, kind: &str, args: &[&str]) -> PathBuf {
    make(size, kind, 1, args)
}

/// A demo model in shards. Returns the first shard, which a server expects.
pub fn demo_in_shards(size: &str, kind: &str, shards: u32) -> PathBuf {
    make(size, kind, shards, &[])
}

/// A model of 100 MB. A third repeats the same bytes, which any file system can compress; the rest is practically random.
pub fn compressible_demo() -> PathBuf {
    let plain = demo("100M", "F16");
    once("100M-F16-compressible", |path| {
        fs::copy(&plain, path).expect("the disk has space");
        let file = OpenOptions::new()
            .write(true)
            .open(path)
            .expect("just made");
        let table = gguf::Gguf::read(path);
        let feed_forward = |tensor: &&gguf::Tensor| tensor.name.contains(".ffn_up.");
        for tensor in table.tensors.iter().filter(feed_forward) {
            // 0.0078 in F16
            let bytes = [0, 0x20].repeat((tensor.end - tensor.start) as usize / 2);
            file.write_all_at(&bytes, tensor.start)
                .expect("the disk has space");
        }
    })
}

fn make(size: &str, kind: &str, shards: u32, args: &[&str]) -> PathBuf {
    let name = format!("{size}-{kind}-{shards}{}", args.concat());
    once(&name, |path| {
        let mut tool = Command::new(programs::hugepages());
        tool.arg("demo-model")
            .arg(path)
            .args(["--size", size, "--type", kind])
            .args(args);
        if shards > 1 {
            tool.args(["--split", &shards.to_string()]);
        }
        let output = tool.output().expect("the tool can be started");
        assert!(
            output.status.success(),
            "{tool:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    })
}

/// The first file of a folder that one test makes for all.
fn once(name: &str, write: impl FnOnce(&Path)) -> PathBuf {
    let models = target_dir().join("models/test");
    fs::create_dir_all(&models).expect("target/ can be written");
    let dir = models.join(name.to_lowercase());

    // Tests ask for the same model at the same time.
    let lock = File::create(models.join("lock")).expect("target/ can be written");
    flock(&lock, FlockOperation::LockExclusive).expect("the lock can be waited for");
    if !dir.is_dir() {
        let unfinished = tempfile::tempdir_in(&models).expect("target/ can be written");
        write(&unfinished.path().join("demo.gguf"));
        fs::rename(unfinished.keep(), &dir).expect("the same file system");
    }
    first_file(&dir)
}

fn first_file(dir: &Path) -> PathBuf {
    let files = fs::read_dir(dir)
        .expect("just made")
        .map(|entry| entry.expect("an entry").path());
    let models = files.filter(|path| {
        path.extension()
            .is_some_and(|extension| extension == "gguf")
    });
    models.min().expect("the tool makes at least one file")
}

/// A copy that a test may damage.
pub fn copy_to(dir: &Path, model: &Path) -> PathBuf {
    let files = gguf::files(model);
    for file in &files {
        fs::copy(file, dir.join(file.file_name().expect("a file"))).expect("the disk has space");
    }
    dir.join(files[0].file_name().expect("a file"))
}

/// SmolLM2-135M-Instruct: a real model that answers in English.
pub fn smollm2() -> Result<PathBuf, String> {
    let path = target_dir().join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("{} is missing: cargo xtask model", path.display()))
    }
}
