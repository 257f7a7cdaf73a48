//! What the arguments of llama-server say: a model, a policy, or the value of an option.
//!
//! Lives here: arguments of a server that this tool starts. Not here: arguments of a running server, which `status` reads.

use std::env;
use std::ffi::{OsStr, OsString};

/// Options that name a model, and their environment variables.
const MODEL: [&str; 7] = [
    "-m",
    "--model",
    "-mu",
    "--model-url",
    "-hf",
    "--hf-repo",
    "-hfr",
];
const MODEL_VARIABLES: [&str; 3] = [
    "LLAMA_ARG_MODEL",
    "LLAMA_ARG_MODEL_URL",
    "LLAMA_ARG_HF_REPO",
];
const POLICY: &str = "--hugepage-policy";
const POLICY_VARIABLE: &str = "LLAMA_ARG_HUGEPAGE_POLICY";
const OFF: &str = "--no-hugepages";
/// The option that chooses a store.
pub const STORE: &str = "--hugepage-store";
/// Its environment variable.
pub const STORE_VARIABLE: &str = "LLAMA_ARG_HUGEPAGE_STORE";

/// Whether the arguments or the environment name a model.
pub fn names_model(arguments: &[OsString]) -> bool {
    let is_option = |argument: &OsString| MODEL.iter().any(|name| is(argument, name));
    let is_set = |name: &&str| env::var_os(name).is_some_and(|value| !value.is_empty());
    arguments.iter().any(is_option) || MODEL_VARIABLES.iter().any(is_set)
}

/// Whether the arguments ask for a server without huge pages.
pub fn switches_off(arguments: &[OsString]) -> bool {
    arguments.iter().any(|argument| argument == OFF)
}

/// Whether the arguments or the environment choose a policy.
pub fn chooses_policy(arguments: &[OsString]) -> bool {
    arguments.iter().any(|argument| is(argument, POLICY)) || env::var_os(POLICY_VARIABLE).is_some()
}

/// Whether the arguments or the environment contain `--numa distribute`, so that the server takes pages from all nodes in turn.
pub fn is_interleaved(arguments: &[OsString]) -> bool {
    value(arguments, "--numa", "LLAMA_ARG_NUMA").is_some_and(|numa| numa == "distribute")
}

/// `--port` and `--port=8081` are both the option `--port`.
fn is(argument: &OsStr, option: &str) -> bool {
    let text = argument.as_encoded_bytes();
    text.strip_prefix(option.as_bytes())
        .is_some_and(|rest| rest.is_empty() || rest[0] == b'=')
}

/// The value of an option, the last one if it is given more than once, or of its environment variable.
pub fn value(arguments: &[OsString], option: &str, variable: &str) -> Option<String> {
    value_of(arguments, &[option], variable)
}

/// The same for an option with several names.
pub fn value_of(arguments: &[OsString], names: &[&str], variable: &str) -> Option<String> {
    let given = arguments
        .iter()
        .enumerate()
        .rev()
        .find_map(|(index, argument)| {
            if names.iter().any(|name| argument == name) {
                return arguments.get(index + 1)?.to_str().map(str::to_owned);
            }
            let text = argument.to_str()?;
            let rest = names.iter().find_map(|name| text.strip_prefix(name))?;
            Some(rest.strip_prefix('=')?.to_owned())
        });
    given.or_else(|| env::var(variable).ok().filter(|value| !value.is_empty()))
}

/// The arguments without an option that has a value.
pub fn without(arguments: &[OsString], option: &str) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == option {
            rest.next();
        } else if !is(argument, option) {
            kept.push(argument.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(Into::into).collect()
    }

    #[test]
    fn the_last_value_of_an_option_counts_as_for_the_server() {
        let of = |text| value(&words(text), "--port", "LLAMA_HUGEPAGES_NO_SUCH_VARIABLE");
        assert_eq!(of("--port 1 -c 2 --port 3").as_deref(), Some("3"));
        assert_eq!(of("--port=7").as_deref(), Some("7"));
        assert_eq!(of("--portal 7"), None);
        assert_eq!(of("--port"), None);
    }

    #[test]
    fn an_option_is_found_by_each_of_its_names_and_left_out_with_its_value() {
        let names = ["-c", "--ctx-size"];
        let of = |text| value_of(&words(text), &names, "LLAMA_HUGEPAGES_NO_SUCH_VARIABLE");
        assert_eq!(of("-c 1 --ctx-size 2").as_deref(), Some("2"));
        assert_eq!(of("--ctx-size=2 -c 1").as_deref(), Some("1"));
        assert_eq!(of("-cram 1"), None);
        assert_eq!(
            without(
                &words("-m a --hugepage-store b --hugepage-store=c -v"),
                STORE
            ),
            words("-m a -v")
        );
    }

    #[test]
    fn a_model_is_named_by_any_of_its_options() {
        assert!(names_model(&words("-c 4096 -m a.gguf")));
        assert!(names_model(&words("--hf-repo a/b")));
        assert!(!names_model(&words("-md draft.gguf --port 1")));
    }
}
