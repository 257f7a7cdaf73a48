//! The container image: programs and their libraries on a base image. Two builds of the same files give the same id.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::build::source::sha256;
use crate::hint::Hint as _;
use crate::release::{
    NAME, Origin, VERSION, copy, empty, libraries, programs, remove, write_notices,
};
use crate::repo::Repo;
use crate::run::{output, run};

/// In the order of preference. Their commands take the same options.
const BUILDERS: [&str; 2] = ["buildah", "podman"];

/// Builds and tags the image, and returns its id.
pub fn build(repo: &Repo, dir_of_programs: &Path, base: Option<&str>) -> Result<String> {
    let builder = builder()?;
    let origin = Origin::of(repo)?;
    let dir = repo.target().join("image");
    // Two builds at once would use the same folder.
    let lock = File::create(repo.target().join("image.lock")).context("cannot create a lock")?;
    lock.lock().context("cannot wait for another build")?;
    let context = dir.join("context");
    stage(repo, dir_of_programs, &context.join("app"))?;

    let id_file = dir.join("id");
    let mut command = Command::new(builder);
    command
        .args([
            "build",
            "--format",
            "docker",
            "--timestamp",
            &origin.time.to_string(),
        ])
        .args(base.map(|base| format!("--build-arg=BASE={base}")))
        .arg("--label=org.opencontainers.image.title=llama-hugepages")
        .arg(format!(
            "--label=org.opencontainers.image.version={VERSION}"
        ))
        .args(
            origin
                .revision
                .map(|revision| format!("--label=org.opencontainers.image.revision={revision}")),
        )
        .arg("--file")
        .arg(repo.root().join("deploy/image/Containerfile"))
        .arg("--iidfile")
        .arg(&id_file)
        .arg(&context)
        .stdout(io::stderr());
    run(&mut command)?;
    let built = fs::read_to_string(&id_file).context("no image id")?;
    let built = built.trim();

    let layout = dir.join("layout");
    remove(&layout)?;
    let place = format!("dir:{}", layout.display());
    run(Command::new(builder)
        .args(["push", "--quiet", "--format", "v2s2", built, &place])
        .stdout(io::stderr()))?;
    forget_container(&layout)?;
    let pulled = output(Command::new(builder).args(["pull", "--quiet", &place]))?;
    let id = pulled.trim().trim_start_matches("sha256:").to_owned();
    run(Command::new(builder).args([
        "tag",
        &id,
        &format!("{NAME}:latest"),
        &format!("{NAME}:{VERSION}"),
    ]))?;
    if !built.ends_with(&id) {
        run(Command::new(builder)
            .args(["rmi", built])
            .stdout(io::stderr()))?;
    }
    remove(&dir)?;
    Ok(format!("sha256:{id}"))
}

fn builder() -> Result<&'static str> {
    let runs = |name: &&str| {
        let status = Command::new(name)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    };
    BUILDERS
        .into_iter()
        .find(runs)
        .context("neither buildah nor podman is installed")
        .hint("apt-get install buildah")
}

/// The files of the image, with the same modes on all machines.
fn stage(repo: &Repo, dir: &Path, app: &Path) -> Result<()> {
    empty(app)?;
    for name in programs(dir) {
        copy(&dir.join(name), app, 0o755).hint("make build")?;
    }
    for library in libraries(dir)? {
        copy(&library, app, 0o644)?;
    }
    write_notices(repo, app)
}

/// Removes the random name of the container in which the image was built. Otherwise two builds would give two ids.
fn forget_container(layout: &Path) -> Result<()> {
    let manifest_path = layout.join("manifest.json");
    let mut manifest = json(&manifest_path)?;
    let described = &mut manifest["config"];
    let digest = described["digest"].as_str().context("no digest")?;
    let old = layout.join(digest.trim_start_matches("sha256:"));
    let mut config = json(&old)?;
    config
        .as_object_mut()
        .context("the configuration is no object")?
        .remove("container");
    for part in ["config", "container_config"] {
        if let Some(part) = config.get_mut(part).and_then(Value::as_object_mut) {
            part.insert("Hostname".to_owned(), "".into());
        }
    }
    let text = serde_json::to_vec(&config)?;
    fs::write(&old, &text)?;
    let digest = sha256(&old)?;
    fs::rename(&old, layout.join(&digest))?;
    described["digest"] = format!("sha256:{digest}").into();
    described["size"] = text.len().into();
    Ok(fs::write(&manifest_path, serde_json::to_vec(&manifest)?)?)
}

fn json(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("`{}` is not JSON", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The image of one build, as buildah writes it.
    fn built_in(container: &str) -> Value {
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            r#"{{"container":"{container}","config":{{"Hostname":"{container}","User":"1"}},"os":"linux"}}"#
        );
        fs::write(dir.path().join("0a"), config).unwrap();
        let manifest = r#"{"config":{"size":1,"digest":"sha256:0a"},"layers":[]}"#;
        fs::write(dir.path().join("manifest.json"), manifest).unwrap();
        forget_container(dir.path()).unwrap();
        let manifest = json(&dir.path().join("manifest.json")).unwrap();
        let digest = manifest["config"]["digest"].as_str().unwrap();
        let path = dir.path().join(digest.strip_prefix("sha256:").unwrap());
        assert_eq!(format!("sha256:{}", sha256(&path).unwrap()), digest);
        assert_eq!(manifest["config"]["size"], fs::read(path).unwrap().len());
        manifest
    }

    #[test]
    fn the_id_does_not_depend_on_the_container_of_the_build() {
        assert_eq!(built_in("b66b9f638a05"), built_in("d205ab0becae"));
    }
}
