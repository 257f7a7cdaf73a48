//! Loading from a slow device and from a failing one.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use llama_hugepages::{Error, HugePages, Model, ModelParams};
use serde_json::json;

use crate::support::device::Device;
use crate::support::http;
use crate::support::pool::Pool;
use crate::support::server::{Launch, Server};
use crate::support::{full, gguf, models, need, or_skip, page_cache, programs};

/// Bytes a second: slower than the disk of any machine that runs this test.
const LIMIT: u64 = 64 << 20;

/// The period of the kernel's throttle.
const SLICE: Duration = Duration::from_millis(100);

fn size() -> &'static str {
    if full() { "1G" } else { "300M" }
}

/// Copies a model to the device and drops it from the page cache.
fn on(device: &Device, model: &Path) -> PathBuf {
    let copy = models::copy_to(&device.path(), model);
    File::open(&copy)
        .and_then(|file| file.sync_all())
        .expect("the device works");
    page_cache::drop_file(&copy);
    copy
}

fn room_for(model: &Path) -> u64 {
    fs::metadata(model).expect("the model exists").len()
}

/// One launch with mapped weights, and one with repacked weights.
fn launches(model: &Path) -> [Launch; 2] {
    [
        Launch::ours().model(model),
        Launch::ours().repacked_model(model),
    ]
    .map(|launch| launch.hugepages("require"))
}

/// Bandwidth of the last load in bytes a second, as the server reports it.
fn bandwidth(server: &Server) -> f64 {
    let load = http::get_json(&server.url("/props"))["hugepages"]["load"].clone();
    let number = |name: &str| load[name].as_f64().expect("a number");
    assert!(
        number("bytes_direct") > 0.9 * (number("bytes_direct") + number("bytes_cached")),
        "{load}"
    );
    number("bytes_direct") * 1e6 / number("us_total")
}

#[test]
fn a_slow_device_is_read_as_fast_as_it_gives() {
    let demo = models::demo(size(), "Q4_K");
    let mut device = or_skip!(Device::with(room_for(&demo)));
    let model = on(&device, &demo);
    let needs = launches(&model).map(|launch| need::of(&launch));
    let answers = launches(&demo).map(|launch| {
        let _pool = Pool::with(need::of(&launch));
        launch
            .start()
            .complete("Once", &json!({ "temperature": 0 }))
    });
    or_skip!(device.throttle(LIMIT));
    for ((launch, need), expected) in launches(&model).into_iter().zip(needs).zip(answers) {
        let pool = or_skip!(Pool::with(need));
        let start = || {
            page_cache::drop_file(&model);
            launch.clone().start()
        };
        let mut server = start();
        // Other tests may take the CPU that the reads need, so a slow load gets two more tries.
        for _ in 0..2 {
            if bandwidth(&server) >= 0.95 * LIMIT as f64 {
                break;
            }
            drop(server);
            server = start();
        }
        let ratio = bandwidth(&server) / LIMIT as f64;
        println!("{ratio:.3} of the limit\n{}", server.log());
        // The throttle lets some bytes through before it counts, so the ratio may exceed 1.
        assert!(
            (0.95..1.5).contains(&ratio),
            "{ratio} of the limit\n{}",
            server.log()
        );
        assert_eq!(
            server.complete("Once", &json!({ "temperature": 0 })),
            expected
        );
        drop(server);
        pool.assert_all_back();
    }
}

#[test]
fn a_load_from_a_slow_device_stops_at_once_when_it_is_told_to() {
    let demo = models::demo("300M", "Q8_0");
    let mut device = or_skip!(Device::with(room_for(&demo)));
    let model = on(&device, &demo);
    let pool = or_skip!(Pool::with(gguf::pages(&model)));
    or_skip!(device.throttle(LIMIT));
    for stop in [0.1, 0.3, 0.5] {
        let mut told = None;
        let params = ModelParams::default()
            .with_repack(false)
            .with_hugepages(HugePages::Require);
        let result = Model::load_with_progress(&model, &params, |done| {
            if done < stop {
                return ControlFlow::Continue(());
            }
            told = Some(Instant::now());
            ControlFlow::Break(())
        });
        let took = told.expect("the test cancelled the load").elapsed();
        assert_eq!(result.err(), Some(Error::Cancelled));
        // The engine promises 100 ms. It cannot stop a running read, so reads from a slow device are short. The kernel's throttle releases
        // them ten times a second (THROTL_SLICE), which adds up to one slice.
        assert!(
            took < Duration::from_millis(100) + SLICE,
            "{took:?} at {stop}"
        );
        pool.assert_all_back();
        page_cache::drop_file(&model);
    }
}

#[test]
fn a_device_that_fails_in_the_middle_ends_the_load_with_the_place() {
    let demo = models::demo("100M", "Q4_K");
    for variant in 0..2 {
        let device = or_skip!(Device::with(room_for(&demo)));
        let model = on(&device, &demo);
        let launch = launches(&model)[variant].clone();
        let need = need::of(&launch);
        let (first, last) = or_skip!(Device::extent(&model));
        page_cache::drop_file(&model);
        device.cut(first.midpoint(last));
        let pool = or_skip!(Pool::with(need));
        let ended = launch.run();
        ended.assert_clean_failure();
        assert_eq!(ended.status.code(), Some(1), "\n{}", ended.log);
        let cause = format!("cannot read '{}' at offset ", model.display());
        let line = ended.log.lines().find(|line| line.contains(&cause));
        let line = line.unwrap_or_else(|| panic!("no line names the offset\n{}", ended.log));
        assert!(line.ends_with(": Input/output error"), "{line}");
        pool.assert_all_back();
    }
}

/// strace interrupts every seventh read before it begins.
#[test]
fn reads_that_are_interrupted_are_read_again() {
    let model = models::demo("100M", "Q4_K");
    for launch in launches(&model) {
        let need = need::of(&launch);
        let pool = or_skip!(Pool::with(need));
        let expected = launch
            .clone()
            .start()
            .complete("Once", &json!({ "temperature": 0 }));
        pool.assert_all_back();
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let trace = dir.path().join("trace");
        or_skip!(programs::found("strace"));
        let server = launch
            .wrapped(["strace", "-D", "-f", "-q", "-o"])
            .wrapped([&trace])
            .wrapped([Path::new("-P"), &model])
            .wrapped([
                "-e",
                "trace=pread64",
                "-e",
                "inject=pread64:error=EINTR:when=1+7",
            ])
            .start();
        assert_eq!(
            server.complete("Once", &json!({ "temperature": 0 })),
            expected
        );
        drop(server);
        pool.assert_all_back();
        let trace = fs::read_to_string(trace).expect("strace writes it");
        assert!(
            trace.contains("EINTR") && trace.contains("(INJECTED)"),
            "strace interrupted no read"
        );
    }
}
