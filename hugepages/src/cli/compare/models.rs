//! The models of a comparison: the user's, or temporary demo models.

use std::env;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use hugepages::compare::Scratch;
use hugepages::demo_model::{Output, Spec};

use super::arguments::{Args, Demo};

/// A model. A demo model is removed when the value is dropped.
#[derive(Debug)]
pub struct Model {
    /// Name in the report.
    pub name: String,
    /// First file.
    pub path: PathBuf,
    _dir: Option<Scratch>,
}

/// All models that the arguments name.
pub fn all(args: &Args, stop: &AtomicBool) -> Result<Vec<Model>> {
    let given = args.model.iter().map(|path| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Ok(Model {
            name: name.into_owned(),
            path: path.clone(),
            _dir: None,
        })
    });
    let made = args.demo.iter().map(|demo| make(*demo, stop));
    given.chain(made).collect()
}

fn make(demo: Demo, stop: &AtomicBool) -> Result<Model> {
    let name = format!("{} {}", demo.size, demo.weights);
    eprintln!("compare: making a model with random weights: {name}");
    let layout = Spec {
        size: demo.size,
        weights: demo.weights,
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
