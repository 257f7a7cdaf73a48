//! One plan for all that a server loads: the model, a draft, an adapter, a projector, and the context that the pool can hold.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::gguf::Gguf;
use crate::support::pool::Pool;
use crate::support::server::Launch;
use crate::support::trace::bytes_read;
use crate::support::{http, made, models, or_skip, plan, smaps, wait_for};

const MIB: u64 = 1 << 20;

/// What a server loads beside its model.
struct Company {
    dir: tempfile::TempDir,
    model: PathBuf,
    draft: PathBuf,
    adapter: PathBuf,
    control: PathBuf,
    projector: PathBuf,
}

impl Company {
    fn new() -> Self {
        let dir =
            tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
        let path = fs::canonicalize(dir.path()).expect("just made");
        let made = Self {
            model: models::copy_to(&path, &models::demo("100M", "Q8_0")),
            draft: models::demo("20M", "Q8_0"),
            adapter: path.join("adapter.gguf"),
            control: path.join("control.gguf"),
            projector: path.join("projector.gguf"),
            dir,
        };
        made::lora(&made.model, 64, &made.adapter);
        made::control_vector(&made.model, &made.control);
        made::projector(&made.model, &made.projector);
        made
    }

    /// Each combination of one kind, and all of them together.
    fn lines(&self) -> Vec<Vec<OsString>> {
        let [mut draft, adapter, control, projector] = [
            ("--model-draft", &self.draft),
            ("--lora", &self.adapter),
            ("--control-vector", &self.control),
            ("--mmproj", &self.projector),
        ]
        .map(|(option, path)| vec![OsString::from(option), path.into()]);
        // Otherwise upstream frees the draft after its load.
        draft.extend(["--spec-type", "draft-simple"].map(OsString::from));
        let all = [&draft[..], &adapter[..], &control[..], &projector[..]].concat();
        let mut sizes = draft.clone();
        sizes.extend(["--spec-draft-type-k", "f32"].map(OsString::from));
        vec![draft, adapter, control, projector, sizes, all]
    }
}

fn pages_of(plan: &Value, model: Option<&Path>) -> u64 {
    let needs = plan["needs"].as_array().expect("a list").iter();
    let of_model = needs.filter(|need| {
        model.is_none_or(|model| need["model"].as_str() == Some(&model.to_string_lossy()))
    });
    of_model
        .map(|need| need["pages"].as_u64().expect("a number"))
        .sum()
}

/// Asserts that the server takes exactly the pages of its plan, and with one page less reads no tensor. Returns an answer.
fn takes_what_is_planned(launch: &Launch, model: &Path, dir: &Path) -> Result<Value, String> {
    let plan = plan::of(launch);
    let pages = pages_of(&plan, None);
    let mut pool = Pool::with(pages)?;
    let server = launch.clone().hugepages("require").start();
    let taken = smaps::hugetlb_bytes(server.pid()) / (2 * MIB);
    assert_eq!(taken, pages, "{plan}\n{}", server.log());
    let answer = server.complete("Once upon a time", &json!({ "temperature": 0 }));
    drop(server);
    pool.assert_all_back();

    pool.set(pages - 1);
    let trace = dir.join("trace");
    let ended = launch
        .clone()
        .hugepages("require")
        .traced("read,pread64,readv,preadv,preadv2", &trace)
        .run();
    assert_eq!(ended.status.code(), Some(3), "{}", ended.log);
    let need = format!("{pages} huge pages of 2 MiB");
    assert!(ended.log.contains(&need), "{plan}: {}", ended.log);
    let read = bytes_read(&trace, model);
    // Upstream reads the header more than once.
    let header = Gguf::read(model).data;
    assert!(read <= 8 * (header + MIB), "{plan}: {read} bytes");
    pool.assert_all_back();
    Ok(answer)
}

#[test]
fn the_plan_of_several_models_is_what_they_take_and_one_page_less_is_refused_before_the_first_byte()
{
    let company = Company::new();
    for line in company.lines() {
        let launch = Launch::ours().repacked_model(&company.model).args(&line);
        let plan = plan::of(&launch);
        for file in line.iter().map(Path::new).filter(|file| file.is_file()) {
            assert_ne!(pages_of(&plan, Some(file)), 0, "{}: {plan}", file.display());
        }
        or_skip!(takes_what_is_planned(
            &launch,
            &company.model,
            company.dir.path()
        ));
    }
}

#[test]
fn a_context_for_multi_token_prediction_is_part_of_the_plan() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let model = dir.path().join("mimo2.gguf");
    made::mimo2(&model);
    let with_mtp = |launch: Launch| {
        let launch = launch.repacked_model(&model);
        launch.args(["--spec-type", "draft-mtp"])
    };
    let stock = with_mtp(or_skip!(Launch::stock())).start();
    let expected = stock.complete("Once upon a time", &json!({ "temperature": 0 }));
    drop(stock);
    let launch = with_mtp(Launch::ours());
    let without = plan::of(&Launch::ours().repacked_model(&model));
    let plan = plan::of(&launch);
    assert!(
        pages_of(&plan, None) > pages_of(&without, None),
        "{without}\n{plan}"
    );
    let answer = or_skip!(takes_what_is_planned(&launch, &model, dir.path()));
    assert_eq!(answer, expected);
}

/// With a million tokens, the context needs far more than the weights.
#[test]
fn without_a_size_the_context_is_what_the_pool_holds() {
    let model = models::demo_with("100M", "Q8_0", &["--context", "1048576"]);
    let launch = Launch::ours().repacked_model(&model).without_context();
    let least = plan::of(&launch.clone().args(["--ctx-size", "4096"]));
    let least = pages_of(&least, None);

    // No page: the plan tells what this machine could give.
    let mut pool = or_skip!(Pool::with(0));
    let none = plan::of(&launch);
    assert_eq!(none["fits"], false, "{none}");

    let mut before = 0;
    for more in [0, 1, 100, 333] {
        pool.set(least + more);
        let plan = plan::of(&launch);
        assert_eq!(plan["fits"], true, "{plan}");
        let context = &plan["context"];
        let tokens = context["tokens"].as_u64().expect("a number");
        assert!(context["full_tokens"].as_u64() > Some(tokens), "{plan}");
        assert!(tokens >= 4096 && tokens >= before, "{plan}");
        before = tokens;
        let pages = pages_of(&plan, None);
        // One step of 256 tokens more would not fit.
        let next = (tokens + 256).to_string();
        let next = plan::of(&launch.clone().args(["--ctx-size", &next]));
        assert!(pages_of(&next, None) >= least + more, "{plan}: {next}");

        let server = launch.clone().hugepages("require").start();
        let taken = smaps::hugetlb_bytes(server.pid()) / (2 * MIB);
        assert_eq!(taken, pages, "{plan}\n{}", server.log());
        let props = http::get_json(&server.url("/props"));
        assert_eq!(
            props["default_generation_settings"]["n_ctx"].as_u64(),
            Some(tokens),
            "{props}"
        );
        server.assert_answers();
        drop(server);
        pool.assert_all_back();
    }
    pool.set(least - 1);
    let ended = launch.hugepages("require").run();
    assert_eq!(ended.status.code(), Some(3), "{}", ended.log);
    pool.assert_all_back();
}

/// Its clients know the context, so it does not change when the server wakes up.
#[test]
fn a_server_without_a_size_keeps_its_context_when_it_wakes_up() {
    let model = models::demo_with("100M", "Q8_0", &["--context", "1048576"]);
    let launch = Launch::ours().repacked_model(&model).without_context();
    let least = pages_of(
        &plan::of(&launch.clone().args(["--ctx-size", "4096"])),
        None,
    );
    let mut pool = or_skip!(Pool::with(least + 50));
    let server = launch
        .args(["--sleep-idle-seconds", "1"])
        .hugepages("require")
        .start();
    let props = || http::get_json(&server.url("/props"));
    let context = |props: &Value| props["default_generation_settings"]["n_ctx"].clone();
    let before = context(&props());
    let body = json!({ "prompt": "Hello", "n_predict": 4 });
    let ask = || http::post(&server.url("/completion"), &body);
    let fall_asleep = || {
        assert!(
            wait_for(Duration::from_secs(60), || server.is_asleep()),
            "{}",
            server.log()
        );
    };
    for (pages, code) in [(least, 503), (least + 50, 200), (least + 400, 200)] {
        fall_asleep();
        pool.set(pages);
        let (status, answer) = ask();
        assert_eq!(status, code, "{answer}\n{}", server.log());
        assert_eq!(context(&props()), before);
        if code == 200 {
            let slots = http::get_json(&server.url("/slots"));
            assert_eq!(slots[0]["n_ctx"], before);
        }
    }
    drop(server);
    pool.assert_all_back();
}

#[test]
fn a_file_of_another_kind_has_no_plan() {
    let model = models::demo("20M", "Q8_0");
    let no_model = Path::new("/no/such.gguf");
    for option in ["--lora", "--control-vector", "--mmproj"] {
        for file in [no_model, &model] {
            let launch = Launch::ours().model(&model);
            let launch = launch.args([OsStr::new(option), file.as_os_str()]);
            let output = plan::command(&launch).output().expect("the tool starts");
            assert_eq!(
                output.status.code(),
                Some(1),
                "{option} {file:?}: {output:?}"
            );
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains(&*file.to_string_lossy()), "{option}: {said}");
        }
    }
}
