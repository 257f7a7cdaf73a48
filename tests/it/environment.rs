//! `LLAMA_ARG_HUGEPAGES` and `LLAMA_ARG_HUGEPAGE_POLICY` act like the options, and the options win.

use std::path::PathBuf;

use crate::support::pool::{PAGE, Pool};
use crate::support::server::Launch;
use crate::support::{models, need, or_skip, smaps};

fn model() -> PathBuf {
    models::demo("20M", "Q8_0")
}

/// The pages that a server takes from a large enough pool, and the pages that it needs.
fn taken(environment: &[(&str, &str)], args: &[&str]) -> Result<(u64, u64), String> {
    let need = need::of(&Launch::ours().model(&model()));
    let pool = Pool::with(need)?;
    let launch = environment
        .iter()
        .fold(Launch::ours().model(&model()), |launch, (name, value)| {
            launch.env(name, value)
        });
    let server = launch.args(args).start();
    server.assert_answers();
    let pages = smaps::hugetlb_bytes(server.pid()) / PAGE;
    assert_eq!(pool.taken(), pages);
    Ok((pages, need))
}

fn assert_on(environment: &[(&str, &str)], args: &[&str]) {
    let (taken, need) = or_skip!(taken(environment, args));
    assert_eq!(
        taken, need,
        "{environment:?} {args:?} should put the weights on huge pages"
    );
}

fn assert_off(environment: &[(&str, &str)], args: &[&str]) {
    let (taken, _) = or_skip!(taken(environment, args));
    assert_eq!(taken, 0, "{environment:?} {args:?} should take no page");
}

#[test]
fn the_variable_does_what_the_flag_does() {
    assert_on(&[], &["--hugepages"]);
    assert_on(&[("LLAMA_ARG_HUGEPAGES", "1")], &[]);
    assert_on(&[("LLAMA_ARG_HUGEPAGES", "on")], &[]);
}

#[test]
fn the_variable_set_to_0_is_off() {
    assert_off(&[("LLAMA_ARG_HUGEPAGES", "0")], &[]);
    assert_off(&[("LLAMA_ARG_HUGEPAGES", "off")], &[]);
    assert_off(&[], &[]);
}

#[test]
fn the_flag_wins_over_the_variable() {
    assert_on(&[("LLAMA_ARG_HUGEPAGES", "0")], &["--hugepages"]);
    assert_off(&[("LLAMA_ARG_HUGEPAGES", "1")], &["--no-hugepages"]);
}

/// Needs no privilege: with an empty pool `prefer` serves and `require` does not.
#[test]
fn the_policy_variable_does_what_the_option_does_and_the_option_wins() {
    let _pool = or_skip!(Pool::with(0));
    let launch = |policy: &str| {
        Launch::ours()
            .model(&model())
            .args(["--hugepages"])
            .env("LLAMA_ARG_HUGEPAGE_POLICY", policy)
    };
    launch("prefer").start().assert_answers();
    launch("require")
        .args(["--hugepage-policy", "prefer"])
        .start()
        .assert_answers();
    for strict in [
        launch("require"),
        launch("prefer").args(["--hugepage-policy", "require"]),
    ] {
        let ended = strict.run();
        ended.assert_clean_failure();
        assert!(ended.log.contains("huge pages"), "{}", ended.log);
    }
}

#[test]
fn the_default_policy_is_require() {
    let _pool = or_skip!(Pool::with(0));
    Launch::ours()
        .model(&model())
        .args(["--hugepages"])
        .run()
        .assert_clean_failure();
}

#[test]
fn a_nonsense_value_in_a_variable_is_an_error_that_names_it() {
    for (name, value) in [
        ("LLAMA_ARG_HUGEPAGES", "perhaps"),
        ("LLAMA_ARG_HUGEPAGES", "2"),
        ("LLAMA_ARG_HUGEPAGES", ""),
        ("LLAMA_ARG_HUGEPAGE_POLICY", "perhaps"),
        ("LLAMA_ARG_HUGEPAGE_POLICY", "Require"),
        ("LLAMA_ARG_HUGEPAGE_POLICY", ""),
    ] {
        let ended = Launch::ours().model(&model()).env(name, value).run();
        ended.assert_clean_failure();
        let line = ended.line_with(name);
        assert!(line.contains("invalid"), "{name}={value}: {line}");
    }
}

#[test]
fn a_nonsense_size_or_number_is_an_error_that_says_what_can_be() {
    for (option, value, can_be) in [
        ("SIZE", "perhaps", "auto, thp or a size"),
        ("SIZE", "", "auto, thp or a size"),
        ("THREADS", "0", "between 1 and 256"),
        ("THREADS", "257", "between 1 and 256"),
    ] {
        let name = format!("LLAMA_ARG_HUGEPAGE_{option}");
        let by_variable = Launch::ours().model(&model()).env(&name, value);
        let option = format!("--hugepage-{}", option.to_lowercase());
        let by_option = Launch::ours().model(&model()).args([&option, value]);
        for (named, launch) in [(&name, by_variable), (&option, by_option)] {
            let ended = launch.run();
            ended.assert_clean_failure();
            let text = &ended.log;
            assert!(text.contains(named.as_str()), "{named}={value}: {text}");
            assert!(text.contains(can_be), "{named}={value}: {text}");
        }
    }
}

#[test]
fn a_size_that_the_kernel_has_no_pool_of_is_an_error_with_those_that_it_has() {
    let launch = Launch::ours().model(&model()).hugepages("require");
    let ended = launch.args(["--hugepage-size", "512K"]).run();
    ended.assert_clean_failure();
    let line = ended.line_with("no pool of huge pages of");
    assert!(line.contains("2 MiB"), "{line}");
    ended.line_with("hint: use --hugepage-size auto");
}

#[test]
fn a_nonsense_policy_on_the_command_line_is_an_error_that_names_the_option() {
    let ended = Launch::ours()
        .model(&model())
        .args(["--hugepage-policy", "perhaps"])
        .run();
    ended.assert_clean_failure();
    assert!(ended.log.contains("--hugepage-policy"), "{}", ended.log);
}

#[test]
fn help_has_all_options_with_their_variables() {
    let ended = Launch::ours().args(["--help"]).run();
    assert_eq!(ended.status.code(), Some(0));
    for text in [
        "--hugepages",
        "--no-hugepages",
        "--hugepage-policy",
        "LLAMA_ARG_HUGEPAGES)",
        "LLAMA_ARG_HUGEPAGE_POLICY)",
        "--hugepage-size",
        "LLAMA_ARG_HUGEPAGE_SIZE)",
        "--hugepage-threads",
        "LLAMA_ARG_HUGEPAGE_THREADS)",
        "--hugepage-drop-cache",
        "LLAMA_ARG_HUGEPAGE_DROP_CACHE)",
    ] {
        assert!(ended.log.contains(text), "--help has no {text}");
    }
}
