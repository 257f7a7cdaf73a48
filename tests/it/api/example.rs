//! `examples/generate.rs`.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use super::{FOR_CONTEXTS, model_file};
use crate::support::pool::Pool;
use crate::support::table::Table;
use crate::support::{gguf, or_skip};

/// The built `examples/generate.rs`, where Cargo puts it.
fn generate_example() -> Result<PathBuf, String> {
    let test = env::current_exe().expect("the test has a path");
    let path = test
        .ancestors()
        .nth(2)
        .expect("target/PROFILE/deps")
        .join("examples/generate");
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!(
            "{} is missing: `cargo build --examples` builds it",
            path.display()
        ))
    }
}

#[test]
fn the_example_prints_the_text_to_stdout_and_the_report_to_stderr() {
    let path = model_file();
    let need = gguf::pages(&path);
    let pool = or_skip!(Pool::with(need + FOR_CONTEXTS));
    let example = or_skip!(generate_example());
    let run = |args: &[&str]| {
        let mut command = Command::new(&example);
        command
            .arg("-m")
            .arg(&path)
            .args(["-p", "Hello", "-n", "8", "-c", "256"])
            .args(args);
        command
            .env("LLAMA_ARG_REPACK", "0")
            .output()
            .expect("the example can be started")
    };
    let on = run(&["--hugepages"]);
    let stderr = String::from_utf8_lossy(&on.stderr);
    assert!(
        on.status.success() && on.stdout.starts_with(b"Hello") && on.stdout.len() > 6,
        "{stderr}"
    );
    assert_eq!(Table::of(&stderr).pages("weights", "2M"), need, "{stderr}");
    assert_eq!(
        run(&[]).stdout,
        on.stdout,
        "the text does not depend on the memory of the weights"
    );
    assert_eq!(run(&["--seed", "7"]).stdout, run(&["--seed", "7"]).stdout);
    pool.assert_all_back();
}
