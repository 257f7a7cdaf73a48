//! The models of a comparison: the user's, or temporary demo models.

use std::collections::BTreeSet;
use std::env;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};

use hugepages::compare::Scratch;
use hugepages::demo_model::{Output, Spec};

use super::arguments::{Args, Demo, SWITCH, TRAFFIC};

/// A model. A demo model is removed when the value is dropped.
#[derive(Debug)]
pub struct Model {
    /// Name in the report.
    pub name: String,
    /// First file.
    pub path: PathBuf,
    _dir: Option<Scratch>,
}

/// Checks the number of models, and that no two are the same file, before anything is made or started.
pub fn check(args: &Args) -> Result<()> {
    for case in [SWITCH, TRAFFIC] {
        if args.cases.iter().any(|wanted| wanted == case)
            && let Some((reason, hint)) = too_few(case, args)
        {
            bail!("{reason}\nhint: {hint}");
        }
    }
    if args.shards.is_some() && args.model.len() > 1 {
        bail!(
            "`--shards` belongs to one model, but {} are given",
            args.model.len()
        );
    }
    let mut files = BTreeSet::new();
    for path in &args.model {
        // A missing file is reported when it is used.
        if let Ok(file) = path.canonicalize()
            && !files.insert(file)
        {
            bail!("model `{}` is given twice", path.display());
        }
    }
    Ok(())
}

/// Why a case with a router cannot run with these models, and the hint for the user.
pub fn too_few(case: &str, args: &Args) -> Option<(String, &'static str)> {
    let hint = match (args.model.len(), args.demo.len()) {
        (1, 0) => "add another `--model FILE`",
        (0, 1) => "add another `--demo SIZE,TYPE`",
        _ => return None,
    };
    Some((format!("the case `{case}` needs two models or more"), hint))
}

/// All models that the arguments name, each with a name of its own in the report.
pub fn all(args: &Args, stop: &AtomicBool) -> Result<Vec<Model>> {
    let mut models: Vec<Model> = Vec::new();
    for path in &args.model {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let (name, _) = unused(&name, &models);
        models.push(Model {
            name,
            path: path.clone(),
            _dir: None,
        });
    }
    for demo in &args.demo {
        let name = format!("{} {}", demo.size, demo.weights);
        // The same weights twice would be the same image in a store.
        let (name, seed) = unused(&name, &models);
        models.push(make(*demo, name, seed, stop)?);
    }
    Ok(models)
}

/// The name, or the name with a number if another model has it. Also returns the number of earlier models with this name.
fn unused(name: &str, models: &[Model]) -> (String, u64) {
    let is_free = |name: &str| models.iter().all(|model| model.name != name);
    let numbered = (0..).map(|before| match before {
        0 => (name.to_owned(), 0),
        _ => (format!("{name} ({})", before + 1), before),
    });
    let mut free = numbered.filter(|(name, _)| is_free(name));
    free.next().unwrap_or_default()
}

fn make(demo: Demo, name: String, seed: u64, stop: &AtomicBool) -> Result<Model> {
    eprintln!("compare: making a model with random weights: {name}");
    let layout = Spec {
        size: demo.size,
        weights: demo.weights,
        seed,
        ..Spec::default()
    }
    .layout()?;
    let dir = Scratch::new_in(&place()).context("cannot create a directory for the demo model")?;
    let path = dir.path().join("demo.gguf");
    let progress = |_, _| {
        if stop.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    layout.write(&Output {
        progress: &progress,
        ..Output::file(&path)
    })?;
    Ok(Model {
        name,
        path,
        _dir: Some(dir),
    })
}

/// Prefers a disk, because files in a /tmp on tmpfs cannot be dropped from memory.
pub fn place() -> PathBuf {
    let on_disk = Path::new("/var/tmp");
    match env::var_os("TMPDIR") {
        Some(chosen) => chosen.into(),
        None if on_disk.is_dir() => on_disk.to_owned(),
        None => env::temp_dir(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_two_models_share_gets_a_number() {
        let mut models = Vec::new();
        for seed in 0..3 {
            let (name, before) = unused("m", &models);
            assert_eq!(before, seed);
            models.push(Model {
                name,
                path: PathBuf::new(),
                _dir: None,
            });
        }
        let names: Vec<_> = models.iter().map(|model| model.name.as_str()).collect();
        assert_eq!(names, ["m", "m (2)", "m (3)"]);
    }
}
