//! `from_env` follows the rules of the programs. A process has only one environment, so child processes read it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::process::{Command, Output};
use std::{env, fs, process};

use llama_hugepages::{ContextParams, HugePages, LogTarget, Model, ModelParams, ffi, log_to};

use super::compute::logits;
use super::model_file;
use crate::equality::PROMPT;
use crate::support::pool::{PAGE, Pool};
use crate::support::{or_skip, smaps};

/// Not a test: the child process that reads its environment for the tests below.
#[test]
#[ignore = "started by the tests of `from_env`"]
fn print_params_from_env() {
    log_to(LogTarget::Nowhere);
    let loaded = ModelParams::from_env().map(|params| {
        (
            params.hugepages(),
            params.gpu_layers(),
            params.repack(),
            params.load_mode(),
        )
    });
    let context = ContextParams::from_env().map(|params| (params.n_ctx(), params.threads()));
    match (loaded, context) {
        (Ok((hugepages, layers, repack, mode)), Ok((n_ctx, threads))) => {
            println!(
                "hugepages={hugepages:?} layers={layers} repack={repack} mode={mode:?} ctx={n_ctx} threads={threads}"
            );
            let explicit = ModelParams::from_env()
                .expect("just read")
                .with_hugepages(HugePages::Off)
                .with_gpu_layers(3);
            println!(
                "explicit={:?},{}",
                explicit.hugepages(),
                explicit.gpu_layers()
            );
        }
        (Err(error), _) | (_, Err(error)) => println!("error={error}"),
    }
}

fn this_test_with(name: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env::current_exe().expect("the test has a path"));
    command.args(["--ignored", "--exact", "--nocapture", name]);
    for (name, _) in
        env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"LLAMA_ARG_"))
    {
        command.env_remove(name);
    }
    command
        .envs(environment.iter().copied())
        .output()
        .expect("this binary can be started")
}

/// The values that the child process printed, by name.
fn from_env(environment: &[(&str, &str)]) -> BTreeMap<String, String> {
    let output = this_test_with("api::env::print_params_from_env", environment);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = text
        .lines()
        .find_map(|line| line.split_once("error="))
        .map(|(_, error)| ("error".to_owned(), error.to_owned()));
    let values = text
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()));
    let values: BTreeMap<_, _> = values.collect();
    let values = error.map_or(values, |error| BTreeMap::from([error]));
    assert!(
        !values.is_empty(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    values
}

#[test]
fn from_env_has_the_rules_of_the_programs() {
    const ON: &str = "LLAMA_ARG_HUGEPAGES";
    const NO: &str = "LLAMA_ARG_NO_HUGEPAGES";
    const POLICY: &str = "LLAMA_ARG_HUGEPAGE_POLICY";
    let cases: [(&[(&str, &str)], &str); 9] = [
        (&[], "Off"),
        (&[(ON, "1")], "Require"),
        (&[(ON, "enabled")], "Require"),
        (&[(ON, "true"), (POLICY, "prefer")], "Prefer"),
        (&[(ON, "on"), (POLICY, "require")], "Require"),
        (&[(ON, "0")], "Off"),
        (&[(ON, "disabled"), (POLICY, "prefer")], "Off"),
        (&[(ON, "1"), (NO, "")], "Off"),
        (&[(NO, "0")], "Off"),
    ];
    for (environment, expected) in cases {
        assert_eq!(
            from_env(environment)["hugepages"],
            expected,
            "{environment:?}"
        );
    }
}

#[test]
fn from_env_names_the_variable_with_a_nonsense_value() {
    for (name, value) in [
        ("LLAMA_ARG_HUGEPAGES", "perhaps"),
        ("LLAMA_ARG_HUGEPAGES", ""),
        ("LLAMA_ARG_HUGEPAGE_POLICY", "Require"),
        ("LLAMA_ARG_CTX_SIZE", "many"),
        ("LLAMA_ARG_LOAD_MODE", "hope"),
    ] {
        let error = &from_env(&[(name, value)])["error"];
        assert!(
            error.starts_with(&format!("cannot use the environment variable `{name}`: ")),
            "{error}"
        );
    }
}

#[test]
fn from_env_reads_what_else_the_programs_read_and_an_explicit_call_wins() {
    let values = from_env(&[
        ("LLAMA_ARG_HUGEPAGES", "1"),
        ("LLAMA_ARG_N_GPU_LAYERS", "7"),
        ("LLAMA_ARG_REPACK", "off"),
        ("LLAMA_ARG_LOAD_MODE", "none"),
        ("LLAMA_ARG_CTX_SIZE", "1234"),
        ("LLAMA_ARG_THREADS", "3"),
        ("LLAMA_ARG_OVERRIDE_TENSOR", "blk=CPU"),
        ("LLAMA_ARG_PORT", "not for us"),
    ]);
    let expected = [
        ("hugepages", "Require"),
        ("layers", "7"),
        ("repack", "false"),
        ("mode", "None"),
        ("ctx", "1234"),
        ("threads", "3"),
    ];
    for (name, value) in expected {
        assert_eq!(values[name], value, "{name}");
    }
    assert_eq!(values["explicit"], "Off,3");
}

/// Not a test: the child process of the test below.
#[test]
#[ignore = "started by `a_model_loads_with_what_the_environment_points_to`"]
fn load_with_the_environment() {
    let params = ModelParams::from_env().expect("the values are right");
    let copy = params.clone();
    drop(params);
    let model =
        Model::load(env::var_os("MODEL").expect("given"), &copy).expect("the file is a model");
    drop(copy);
    println!(
        "answer={}",
        logits(&model, PROMPT).len() / 4 / model.n_vocab()
    );
}

/// The parameters point into data that `from_env` allocates, so the data must outlive them.
#[test]
fn a_model_loads_with_what_the_environment_points_to() {
    let path = model_file();
    let environment = [
        ("MODEL", path.to_str().expect("UTF-8")),
        ("LLAMA_ARG_OVERRIDE_TENSOR", "ffn_up=CPU"),
        ("LLAMA_ARG_TENSOR_SPLIT", "1,2"),
    ];
    let output = this_test_with("api::env::load_with_the_environment", &environment);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Not a test: a program that knows nothing of huge pages, as a binding of another language does.
#[test]
#[ignore = "started by `a_program_that_knows_nothing_of_huge_pages_has_them`"]
fn load_with_the_defaults() {
    let path = CString::new(env::var("MODEL").expect("given")).expect("no NUL");
    // SAFETY: a path and default parameters; each object is freed once, after its last use.
    unsafe {
        let model =
            ffi::llama_model_load_from_file(path.as_ptr(), ffi::llama_model_default_params());
        if model.is_null() {
            println!("loaded=no");
            return;
        }
        let mut params = ffi::llama_context_default_params();
        params.n_ctx = 512;
        let context = ffi::llama_init_from_model(model, params);
        println!("loaded={}", if context.is_null() { "model" } else { "all" });
        println!("huge={}", smaps::hugetlb_bytes(process::id()));
        println!("policies={}", policies_of_huge_pages());
        ffi::llama_free(context);
        ffi::llama_model_free(model);
    }
}

/// The memory policies of this process' huge pages, separated by spaces; numa(7).
fn policies_of_huge_pages() -> String {
    let maps = fs::read_to_string("/proc/self/numa_maps").expect("this kernel knows NUMA");
    let policy = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        words.contains(&"huge").then(|| words[1].to_owned())
    };
    let policies: BTreeSet<_> = maps.lines().filter_map(policy).collect();
    policies.into_iter().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_program_that_knows_nothing_of_huge_pages_has_them() {
    const WARNING: &str = "huge pages stay off, because ";
    let path = model_file();
    let model = path.to_str().expect("UTF-8");
    let run = |environment: &[(&str, &str)]| {
        let environment = [&[("MODEL", model)], environment].concat();
        let output = this_test_with("api::env::load_with_the_defaults", &environment);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = text(&output.stdout);
        assert!(output.status.success(), "{said}{}", text(&output.stderr));
        let value = |name: &str| {
            let value = said.lines().find_map(|line| line.split_once(name));
            value.map(|(_, value)| value.to_owned()).unwrap_or_default()
        };
        (value("loaded="), value("huge="), text(&output.stderr))
    };
    let bytes = fs::metadata(&path).expect("the model exists").len();
    let pages = 2 * bytes / PAGE + 100;
    let mut pool = or_skip!(Pool::with(pages));

    let (loaded, huge, _) = run(&[("LLAMA_ARG_HUGEPAGES", "1")]);
    assert_eq!(loaded, "all");
    assert!(huge.parse::<u64>().expect("a number") > bytes, "{huge}");
    pool.assert_all_back();

    // A nonsense value is one warning, and the program works as before.
    for (name, value) in [
        ("LLAMA_ARG_HUGEPAGES", "perhaps"),
        ("LLAMA_ARG_HUGEPAGE_SIZE", "huge"),
        ("LLAMA_ARG_HUGEPAGE_THREADS", "0"),
        ("LLAMA_ARG_HUGEPAGE_PLACEMENT", "distribute"),
    ] {
        let (loaded, huge, log) = run(&[("LLAMA_ARG_HUGEPAGES", "1"), (name, value)]);
        assert_eq!((loaded.as_str(), huge.as_str()), ("all", "0"), "{name}");
        assert_eq!(log.matches(WARNING).count(), 1, "{log}");
        assert!(
            log.contains(&format!("{name} has the invalid value '{value}'")),
            "{log}"
        );
    }
    for environment in [
        &[][..],
        &[
            ("LLAMA_ARG_HUGEPAGES", "1"),
            ("LLAMA_ARG_NO_HUGEPAGES", "1"),
        ],
    ] {
        let (loaded, huge, log) = run(environment);
        assert_eq!((loaded.as_str(), huge.as_str()), ("all", "0"));
        assert!(!log.contains(WARNING), "{log}");
    }

    // A shortage is an error value.
    pool.set(1);
    let (loaded, _, log) = run(&[("LLAMA_ARG_HUGEPAGES", "1")]);
    assert_eq!(loaded, "no");
    assert!(log.contains(" huge pages of 2 MiB"), "{log}");
    let prefer = [
        ("LLAMA_ARG_HUGEPAGES", "1"),
        ("LLAMA_ARG_HUGEPAGE_POLICY", "prefer"),
    ];
    assert_eq!(run(&prefer).0, "all");
    pool.assert_all_back();
}

#[test]
fn the_environment_chooses_the_nodes_of_the_pages() {
    let path = model_file();
    let model = path.to_str().expect("UTF-8");
    let pages = 2 * fs::metadata(&path).expect("the model exists").len() / PAGE + 100;
    let pool = or_skip!(Pool::with(pages));
    for (placement, policy) in [("default", "default"), ("interleave", "interleave:")] {
        let environment = [
            ("MODEL", model),
            ("LLAMA_ARG_HUGEPAGES", "1"),
            ("LLAMA_ARG_HUGEPAGE_PLACEMENT", placement),
        ];
        let output = this_test_with("api::env::load_with_the_defaults", &environment);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let found = said.lines().find_map(|line| line.split_once("policies="));
        let (_, found) = found.unwrap_or_else(|| panic!("{said}"));
        let as_expected = |one: &str| one.starts_with(policy);
        assert!(
            !found.is_empty() && found.split(' ').all(as_expected),
            "{placement}: {found}"
        );
        pool.assert_all_back();
    }
}
