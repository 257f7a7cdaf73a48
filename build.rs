//! Builds llama.cpp from the pin, and links it.

#[path = "build/bindings.rs"]
mod bindings;
#[path = "build/mod.rs"]
#[allow(dead_code, reason = "xtask uses the rest")]
mod build;
#[path = "build/docs.rs"]
mod docs;
#[path = "build/features.rs"]
mod features;
#[path = "build/shim.rs"]
mod shim;

use std::path::Path;
use std::process::ExitCode;
use std::thread;

use anyhow::{Result, anyhow};
use build::cargo::Package;
use build::cmake::{self, Build, commit_label};
use build::patch::Series;
use build::{cargo, link, lock, source, ui};

/// The libraries of a program that only uses the API. They include upstream's parser of options, because the API reads the same
/// variables.
const LIBRARY: &[&str] = &["llama-common"];
/// The server's libraries, without the page and the files that include it.
const SERVER: &[&str] = &["server-context", "cpp-httplib"];

/// With the feature `rpc`: the program of the other machines.
const WORKER: &str = "ggml-rpc-server";

fn run() -> Result<()> {
    let Package { root, out, version } = Package::from_env()?;
    let (patches, tree) = (root.join("patches"), out.join("llama.cpp"));
    cargo::rerun_if_changed(&root.join("build"));
    cargo::rerun_if_changed(&patches);
    cargo::metadata("out", &out);

    if cargo::env("DOCS_RS").is_some() {
        return docs::write_names(&root.join("src"), &out);
    }
    features::check()?;
    cmake::check()?;
    bindings::check()?;
    let lock = lock::read(&root.join("vendor/llama.cpp.lock"))?;
    let source = source::prepare(&root, &lock, &out.join("cache"))?;
    let series = Series::read(&patches)?;
    let applied = series.apply(&source.dir, &tree, &source.accepts)?;
    if !applied.others.is_empty() {
        let files: Vec<_> = applied
            .others
            .iter()
            .map(|it| it.display().to_string())
            .collect();
        cargo::warning(&format!(
            "{} is not the pinned llama.cpp, and our tests did not run on it: these files differ, and the patches were merged into them: {}",
            source.dir.display(),
            files.join(", ")
        ));
    }
    bindings::generate(&root, &tree, &out)?;
    shim::compile(&root, &tree, &out, features::is_on("SERVER"))?;
    let commit = commit_label(&source, Some((&version, &series)));
    let options = features::options();
    let part = |targets| Build {
        dir: &out,
        commit: &commit,
        targets,
        args: &options,
    };
    let last: &[&str] = if features::is_on("RPC") {
        &["llama-server-impl", WORKER]
    } else {
        &["llama-server-impl"]
    };
    if !features::is_on("SERVER") {
        return finish(&part(LIBRARY).run()?, &out, false);
    }
    if !features::is_on("UI") {
        return finish(&part(last).run()?, &out, true);
    }
    // Node.js builds the page on one core for minutes, so the libraries without the page compile at the same time.
    let page = thread::scope(|scope| {
        let page = scope.spawn(|| ui::provide(&root, &source.dir, &tree, &out.join("ui")));
        part(SERVER).run()?;
        page.join()
            .map_err(|_| anyhow!("the build of the page panicked"))
    })?;
    if let Err(error) = page {
        let cause = format!("{error:#}").replace("\nhint: ", "; ");
        cargo::warning(&format!(
            "llama-server is built without its chat page: {cause}"
        ));
    }
    finish(&part(last).run()?, &out, true)
}

/// `is_whole`: see [`link::emit`].
fn finish(build: &Path, out: &Path, is_whole: bool) -> Result<()> {
    link::copy_beside_programs(build, out, &[WORKER])?;
    link::emit(build, is_whole)
}

fn main() -> ExitCode {
    let Err(error) = run() else {
        return ExitCode::SUCCESS;
    };
    let message = format!("{error:#}");
    cargo::error(&message);
    // The error lines alone make Cargo fail. After a failing exit code, Cargo also prints the whole output of this script. The
    // output helps if a compiler failed, but buries a cause that has a hint.
    if message.contains("\nhint: ") {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
