//! Filling a store for a server that starts next: `hugepages serve --keep`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use rustix::process::geteuid;

use hugepages::kernel::{Root, sizes};
use hugepages::store::mount::{self as mounts, Options};
use hugepages::store::{Loader, Store, StoreError};

use super::pages::Added;
use crate::cli::output;

/// Each user creates images, and only their owner removes them.
const SHARED: u32 = 0o1777;

/// Loads the model in the server's arguments into a store, unless the store already holds it. Returns the path of the store. If no store
/// exists and none is `wanted`, root mounts one. `wrapper` holds the words before the server's program.
pub fn fill(
    server: &Path,
    arguments: &[OsString],
    wrapper: Vec<OsString>,
    wanted: Option<String>,
    stop: &AtomicBool,
) -> Result<PathBuf> {
    let store = match wanted {
        Some(wanted) => Store::open(wanted)?,
        None => open(!wrapper.is_empty())?,
    };
    let loader = Loader {
        server: server.to_owned(),
        store: store.path().into(),
        arguments: arguments.to_vec(),
        wrapper,
    };
    let arguments = loader.arguments_of_store();
    let mut added = Added::default();
    added.reserve(&loader.plan(&arguments)?.pages_of_weights())?;
    let bar = output::progress_bar(output::LOADING);
    bar.set_prefix("loading");
    let result = loader.load_as(&arguments, stop, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    result?;
    added.keep();
    Ok(store.path().to_owned())
}

/// The store that `auto` finds, or a new one.
fn open(is_for_user: bool) -> Result<Store, StoreError> {
    let found = Store::open(Store::AUTO);
    let size = sizes::of_images(&Root::system());
    let (Err(StoreError::NoStore { .. }), Some(size), true) = (&found, size, geteuid().is_root())
    else {
        return found;
    };
    let mut options = Options::new(size);
    if is_for_user {
        options.mode = SHARED;
    }
    let path = mounts::default_path(size);
    mounts::make(&path, &options)?;
    Store::open(&path)
}
