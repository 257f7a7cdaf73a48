//! Every architecture for which upstream's test tool writes a small model.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use llama_hugepages::{
    Batch, Context, ContextParams, HugePages, LogTarget, Model, ModelParams, Report, Token, ffi,
    log_to, report,
};
use tempfile::TempDir;

use crate::support::pool::Pool;
use crate::support::{or_skip, programs};

/// More pages than the largest model takes.
const PAGES: u64 = 200;

/// Token numbers, because the models have no vocabulary for text.
const TOKENS: [i32; 8] = [1, 5, 2, 9, 4, 7, 3, 8];

/// The logits of every token, or the model's error, and the report of its memory.
fn run(path: &Path, hugepages: HugePages) -> (Result<Vec<f32>, String>, Option<Report>) {
    let params = ModelParams::default().with_hugepages(hugepages);
    let model = match Model::load(path, &params) {
        Ok(model) => model,
        Err(error) => return (Err(format!("{error:#}")), None),
    };
    let params = ContextParams::default().with_n_ctx(64).with_threads(1);
    let mut context = match Context::new(&model, &params) {
        Ok(context) => context,
        Err(error) => return (Err(format!("{error:#}")), None),
    };
    let tokens: Vec<Token> = TOKENS.iter().map(|&id| Token(id)).collect();
    let logits = || {
        context.decode(&Batch::all_outputs(&tokens))?;
        let mut all = Vec::new();
        for index in 0..tokens.len() {
            all.extend_from_slice(context.logits(index)?);
        }
        Ok(all)
    };
    let logits: Result<_, llama_hugepages::Error> = { logits }();
    (logits.map_err(|error| error.to_string()), report().ok())
}

/// Writes one model of each architecture to a folder that its handle removes, and reserves pages for any of them. An error is the reason to
/// skip the test.
fn prepared() -> Result<(Pool, TempDir, Vec<PathBuf>), String> {
    let tool = programs::patched("test-llama-archs")?;
    let pool = Pool::with(PAGES)?;
    log_to(LogTarget::Nowhere);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let made = Command::new(tool).arg("-o").arg(dir.path()).output();
    let made = made.expect("the tool can be started");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let mut models: Vec<_> = fs::read_dir(dir.path())
        .expect("just made")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    models.sort();
    assert!(models.len() > 100, "{}", models.len());
    Ok((pool, dir, models))
}

/// Whether it is known without a run that the model's memory can drop a part of a sequence, and whether the memory drops the last of two
/// tokens after a run. `None`: the model cannot run.
fn forgets(path: &Path) -> Option<(bool, bool)> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("the path contains no zero");
    // SAFETY: this block frees its objects in reverse order, and the batch outlives the run.
    unsafe {
        let params = ffi::llama_model_default_params();
        let model = ffi::llama_model_load_from_file(path.as_ptr(), params);
        if model.is_null() {
            return None;
        }
        let mut params = ffi::llama_context_default_params();
        params.n_ctx = 64;
        params.n_threads = 1;
        let context = ffi::llama_init_from_model(model, params);
        let mut result = None;
        if !context.is_null() {
            let memory = ffi::llama_get_memory(context);
            let known =
                ffi::llama_memory_can_seq_rm(memory) && !ffi::llama_model_has_encoder(model);
            let mut tokens = [1, 5];
            let batch = ffi::llama_batch_get_one(tokens.as_mut_ptr(), 2);
            if !memory.is_null() && ffi::llama_decode(context, batch) == 0 {
                result = Some((known, ffi::llama_memory_seq_rm(memory, 0, 1, -1)));
            }
            ffi::llama_free(context);
        }
        ffi::llama_model_free(model);
        result
    }
}

#[test]
fn what_a_kv_cache_can_forget_is_known_without_a_run() {
    let (_pool, _dir, models) = or_skip!(prepared());
    let mut kinds = BTreeMap::<_, Vec<_>>::new();
    for path in &models {
        let name = path.file_stem().expect("a name").to_string_lossy();
        if let Some((known, does)) = forgets(path) {
            assert!(does || !known, "{name}: the memory keeps the token");
            kinds.entry((known, does)).or_default().push(name);
        }
    }
    // Most models have only a KV cache. The others have a state, or a combined cache that keeps the run.
    for (kind, at_least) in [((true, true), 60), ((false, false), 5)] {
        let n = kinds.get(&kind).map_or(0, Vec::len);
        assert!(n >= at_least, "{kind:?}: {kinds:#?}");
    }
}

#[test]
fn every_architecture_has_the_same_logits_on_huge_pages() {
    let (pool, _dir, models) = or_skip!(prepared());
    let mut without_logits = BTreeMap::new();
    for path in &models {
        let name = path.file_stem().expect("a name").to_string_lossy();
        let (expected, _) = run(path, HugePages::Off);
        let (logits, report) = run(path, HugePages::Require);
        match (&expected, &logits) {
            (Ok(expected), Ok(logits)) => {
                let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert!(
                    bits(expected) == bits(logits),
                    "{name}: not the same logits"
                );
                let report = report.expect("this is Linux");
                assert_eq!(report.on_file(), 0, "{name}: {report}");
                // also buffers smaller than a page, of which small models have many
                assert_eq!(report.wanted(), report.on_huge(), "{name}: {report}");
            }
            (Err(expected), Err(said)) => {
                assert_eq!(said, expected, "{name}");
                without_logits.insert(name.into_owned(), expected.clone());
            }
            _ => panic!("{name}: {expected:?} without huge pages, {logits:?} with"),
        }
        pool.assert_all_back();
    }
    // A few architectures generate no text. If many did not, this test would prove little.
    assert!(without_logits.len() <= 8, "{without_logits:#?}");
}
