//! Loading a model: the pages it takes, its failures, its cancellation.

use std::ops::ControlFlow;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::thread;

use llama_hugepages::HugePageSize;
use llama_hugepages::{
    Backing, Cause, Context, ContextParams, Error, HugePages, Kind, Model, Said, Sampler, report,
};

use super::compute::generate;
use super::{FOR_CONTEXTS, context, load, model_file, params};
use crate::support::pool::{Counts, PAGE, Pool};
use crate::support::{gguf, or_skip};

#[test]
fn the_report_tells_what_the_weights_lie_on() {
    let path = model_file();
    let need = gguf::pages(&path);
    let mut pool = or_skip!(Pool::with(need));
    assert_eq!(report().expect("this is Linux").wanted(), 0);

    let model = load(&path, HugePages::Require);
    let all = report().expect("this is Linux");
    let tensors: u64 = gguf::Gguf::read(&path)
        .tensors
        .iter()
        .map(|tensor| tensor.end - tensor.start)
        .sum();
    assert_eq!(
        (all.wanted(), all.on_huge(), all.on_file(), all.huge_pages()),
        (tensors, tensors, 0, need)
    );
    let size = HugePageSize::new(PAGE).expect("2 MiB");
    assert_eq!(all.usages[0].backing, Backing::Huge(size));
    assert_eq!(model.size(), tensors);
    drop(model);
    // A child that another test has just forked may hold the pages until its exec.
    pool.assert_all_back();

    pool.set(need / 3);
    let model = load(&path, HugePages::Prefer);
    let some = report().expect("this is Linux");
    assert_eq!(
        (some.wanted(), some.huge_pages()),
        (tensors, need / 3),
        "{some}"
    );
    assert_eq!(some.on_huge() + some.on_file(), tensors, "{some}");
    assert!(some.on_huge() > 0 && some.on_file() > 0, "{some}");
    drop(model);
    assert_eq!(report().expect("this is Linux").wanted(), 0);
    pool.assert_all_back();
}

#[test]
fn a_model_lives_as_long_as_its_last_handle() {
    let path = model_file();
    let need = gguf::pages(&path);
    let pool = or_skip!(Pool::with(need + FOR_CONTEXTS));
    let model = load(&path, HugePages::Require);
    assert_eq!(pool.taken(), need);
    let (mut context, mut sampler) = (context(&model), Sampler::greedy(&model));
    let taken = pool.taken();
    assert!(taken > need, "a context has buffers of its own");
    let report = report().expect("this is Linux");
    assert_eq!(report.huge_pages(), taken, "{report}");
    assert!(report.bytes(Kind::Compute) > 0, "{report}");
    drop(model);
    assert_eq!(pool.taken(), taken);
    generate(&mut context, &mut sampler, 2);
    drop(context);
    pool.assert_all_back();
}

#[test]
fn a_context_without_pages_is_an_error_under_require_and_goes_on_under_prefer() {
    let path = model_file();
    let need = gguf::pages(&path);
    let pool = or_skip!(Pool::with(need));
    let make = |model: &Model| {
        Context::new(
            model,
            &ContextParams::default().with_n_ctx(512).with_threads(2),
        )
    };
    let model = load(&path, HugePages::Require);
    let error = make(&model).unwrap_err();
    let Error::Context(said) = &error else {
        panic!("{error}")
    };
    assert_eq!(
        said.refusal.as_ref().map(|refusal| refusal.cause),
        Some(Cause::Short)
    );
    let (size, needed, usable) = shortage(said).expect("pages are short");
    assert!((size, usable) == (PAGE, 0) && needed > 0, "{error}");
    assert_eq!(pool.taken(), need, "the failed context returned its pages");
    drop(model);

    let model = load(&path, HugePages::Prefer);
    let mut context = make(&model).expect("ordinary memory suffices");
    generate(&mut context, &mut Sampler::greedy(&model), 2);
    drop((model, context));
    pool.assert_all_back();
}

#[test]
fn a_pool_that_is_short_is_an_error_with_the_need_and_the_way() {
    let path = model_file();
    let need = gguf::pages(&path);
    let pool = or_skip!(Pool::with(need - 1));
    let error = Model::load(&path, &params(HugePages::Require)).unwrap_err();
    let Error::Load { said, path: named } = &error else {
        panic!("{error}")
    };
    assert_eq!(named, &path);
    assert_eq!(shortage(said), Some((PAGE, need, need - 1)), "{error}");
    assert!(
        said.message.contains(&format!("needs {need} huge pages")),
        "{error}"
    );
    let total = pool.counts.total + 1;
    assert!(
        said.hint
            .as_ref()
            .is_some_and(|hint| hint.contains(&total.to_string())),
        "{error}"
    );
    pool.assert_all_back();
}

/// Bytes of a page, needed pages and usable pages.
fn shortage(said: &Said) -> Option<(u64, u64, u64)> {
    let shortage = said.refusal.as_ref()?.shortage?;
    Some((shortage.page_size.bytes(), shortage.needed, shortage.usable))
}

/// A context that needs pages for its KV cache and its compute buffers.
fn wide() -> ContextParams {
    ContextParams::default().with_n_ctx(4096).with_threads(2)
}

/// Pages that others cannot use any more: taken, or reserved for a context.
fn held(pool: &Pool) -> u64 {
    pool.counts.usable() - Counts::read().usable()
}

#[test]
fn a_load_counts_and_keeps_the_pages_of_its_context() {
    let path = model_file();
    let mut pool = or_skip!(Pool::with(gguf::pages(&path) + FOR_CONTEXTS));
    let params = params(HugePages::Require).with_context(&wide());
    let (need, report) = {
        let model = Model::load(&path, &params).expect("the pool is large enough");
        let kept = held(&pool);
        let context = Context::new(&model, &wide()).expect("the load kept its pages");
        assert_eq!(held(&pool), kept, "the context took what the load kept");
        let report = model.report().expect("this is Linux");
        assert_eq!(report.huge_pages(), kept, "{report}");
        drop(context);
        (kept, report)
    };
    assert!(
        report.bytes(Kind::Kv) > 0 && report.bytes(Kind::Compute) > 0,
        "{report}"
    );
    pool.assert_all_back();

    pool.set(need - 1);
    let mut is_read = false;
    let result = Model::load_with_progress(&path, &params, |_| {
        is_read = true;
        ControlFlow::Continue(())
    });
    let error = result.expect_err("a page is missing");
    let Error::Load { said, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(shortage(said), Some((PAGE, need, need - 1)), "{error}");
    assert!(!is_read, "the load refuses before it reads");
    pool.assert_all_back();

    pool.set(need);
    let model = Model::load(&path, &params).expect("the pool has the pages");
    assert_eq!(held(&pool), need);
    drop(model); // without a context
    pool.assert_all_back();
}

#[test]
fn a_context_that_cannot_exist_is_an_error_before_the_load() {
    let path = model_file();
    let pool = or_skip!(Pool::with(gguf::pages(&path) + FOR_CONTEXTS));
    let impossible = wide().with_n_seq_max(100_000);
    let params = params(HugePages::Require).with_context(&impossible);
    let mut is_read = false;
    let result = Model::load_with_progress(&path, &params, |_| {
        is_read = true;
        ControlFlow::Continue(())
    });
    assert!(matches!(result, Err(Error::Context(_))), "{result:?}");
    assert!(!is_read);
    pool.assert_all_back();
}

#[test]
fn each_model_has_a_report_and_keeps_pages_of_its_own() {
    let path = model_file();
    let pool = or_skip!(Pool::with(2 * (gguf::pages(&path) + FOR_CONTEXTS)));
    let params = params(HugePages::Require).with_context(&wide());
    let load = || Model::load(&path, &params).expect("the pool is large enough");
    let context = |model: &Model| Context::new(model, &wide()).expect("the load kept its pages");
    let pages = |model: &Model| model.report().expect("this is Linux").huge_pages();

    let first = load();
    let need = held(&pool);
    let second = load();
    let in_second = context(&second);
    assert_eq!(
        held(&pool),
        2 * need,
        "the first model still keeps the pages of its context"
    );
    assert!(pages(&first) < need);
    assert_eq!(pages(&second), need);
    let in_first = context(&first);
    assert_eq!((pages(&first), held(&pool)), (need, 2 * need));
    assert_eq!(report().expect("this is Linux").huge_pages(), 2 * need);
    let load_of = |model: &Model| model.report().expect("this is Linux").load;
    assert!(load_of(&first).threads > 0 && load_of(&first) != load_of(&second));

    drop((second, in_second));
    assert_eq!((pages(&first), held(&pool)), (need, need));
    drop((first, in_first));
    assert_eq!(
        load_plain()
            .report()
            .expect("no kernel file is read")
            .wanted(),
        0
    );
    pool.assert_all_back();
}

/// A model without huge pages.
fn load_plain() -> Model {
    load(&model_file(), HugePages::Off)
}

#[test]
fn an_error_names_its_cause() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let not_gguf = dir.path().join("not.gguf");
    std::fs::write(&not_gguf, "hello").expect("the folder is ours");
    for (path, cause) in [
        (not_gguf.as_path(), "magic"),
        (Path::new("/no/such/model"), "No such file"),
        (dir.path(), ""),
    ] {
        let error = Model::load(path, &params(HugePages::Off)).unwrap_err();
        let Error::Load { said, .. } = &error else {
            panic!("{error}")
        };
        assert!(
            said.message.contains(cause) && !said.lines.is_empty(),
            "{error}"
        );
    }
    assert_eq!(
        Model::load("a\0b", &params(HugePages::Off)).unwrap_err(),
        Error::ZeroByte { what: "the path" }
    );
}

#[test]
fn loads_on_two_threads_do_not_get_each_others_causes() {
    let fail = |name: &'static str| {
        for _ in 0..20 {
            let error = Model::load(name, &params(HugePages::Off)).unwrap_err();
            let Error::Load { said, .. } = &error else {
                panic!("{error}")
            };
            assert!(
                said.lines
                    .iter()
                    .all(|line| line.contains(name) || line.contains("failed to load")),
                "{said:?}"
            );
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| fail("/no/such/one"));
        scope.spawn(|| fail("/no/such/other"));
    });
}

/// Progress at which the test cancels: before the first read, in the middle, at the end.
const STOPS: [f32; 3] = [0.0, 0.3, 1.0];

#[test]
fn a_cancelled_load_is_told_from_a_failed_one_and_keeps_no_page() {
    let path = model_file();
    let pool = or_skip!(Pool::with(gguf::pages(&path)));
    for hugepages in [HugePages::Off, HugePages::Require] {
        for stop in STOPS {
            let mut calls_after = 0;
            let mut stopped = false;
            let result = Model::load_with_progress(&path, &params(hugepages), |done| {
                calls_after += i32::from(stopped);
                stopped = done >= stop;
                if stopped {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            assert_eq!(
                result.err(),
                Some(Error::Cancelled),
                "{hugepages:?} at {stop}"
            );
            assert_eq!(calls_after, 0, "{hugepages:?} at {stop}");
            pool.assert_all_back();
        }
    }
}

#[test]
fn progress_goes_from_0_to_1() {
    let path = model_file();
    let pool = or_skip!(Pool::with(gguf::pages(&path)));
    for hugepages in [HugePages::Off, HugePages::Require] {
        let mut seen = Vec::new();
        let model = Model::load_with_progress(&path, &params(hugepages), |done| {
            seen.push(done);
            ControlFlow::Continue(())
        });
        drop(model.expect("the pool is large enough"));
        assert!(
            seen.is_sorted() && seen.last() == Some(&1.0) && seen[0] < 0.5,
            "{hugepages:?}: {seen:?}"
        );
        pool.assert_all_back();
    }
}

#[test]
fn a_panic_in_the_callback_goes_on_after_the_load_has_given_everything_back() {
    let path = model_file();
    let pool = or_skip!(Pool::with(gguf::pages(&path)));
    for stop in STOPS {
        let load = || {
            Model::load_with_progress(&path, &params(HugePages::Require), |done| {
                if done >= stop {
                    // `resume_unwind` prints no message, because it skips the panic hook.
                    panic::resume_unwind(Box::new("from the callback"));
                }
                ControlFlow::Continue(())
            })
        };
        let payload = panic::catch_unwind(AssertUnwindSafe(load)).expect_err("it panics");
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"from the callback"));
        pool.assert_all_back();
    }
}
