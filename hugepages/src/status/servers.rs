//! `llama-server` processes: their models, addresses and reports.

use std::ffi::OsStr;

use serde::Serialize;

use super::ask;
use crate::kernel::{Root, processes};

/// Whether the tool asks servers over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asking {
    /// One short request to each server.
    Allowed,
    /// No request: the kernel is the only source.
    Never,
}

/// A `llama-server`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Server {
    /// The model file, from its arguments or its environment.
    pub model: Option<String>,
    /// Address, from its arguments or its environment.
    pub address: String,
    /// `hugepages` of its `/props`. `null` also if the option is off.
    pub report: Option<serde_json::Value>,
    /// Why the report is missing.
    pub no_report: Option<String>,
}

/// `None` for any other process.
pub fn read(root: &Root, pid: u32, asking: Asking) -> Option<Server> {
    let words = processes::arguments(root, pid);
    let program = words.first()?.rsplit('/').next()?;
    if program != "llama-server" {
        return None;
    }
    // Unreadable without rights. Then only the arguments are known.
    let environment = words_of_environment(root, pid);
    let get = |options: &[&str], variable: &str| {
        argument(&words, options).or_else(|| {
            let mut set = environment.iter();
            set.find_map(|entry| {
                entry
                    .strip_prefix(variable)?
                    .strip_prefix('=')
                    .map(str::to_owned)
            })
        })
    };
    let host = get(&["--host"], "LLAMA_ARG_HOST").unwrap_or_else(|| "127.0.0.1".to_owned());
    let port = get(&["--port"], "LLAMA_ARG_PORT").unwrap_or_else(|| "8080".to_owned());
    let prefix = get(&["--api-prefix"], "LLAMA_ARG_API_PREFIX").unwrap_or_default();
    let reason = if asking == Asking::Never {
        Some("not asked")
    } else if get(&["--api-key", "--api-key-file"], "LLAMA_API_KEY").is_some() {
        Some("the server requires an API key")
    } else if get(&["--ssl-key-file"], "LLAMA_ARG_SSL_KEY_FILE").is_some() {
        Some("the server uses HTTPS")
    } else if processes::is_in_another_network(root, pid) {
        // There, 127.0.0.1 is not this machine's loopback address.
        Some("the server is in another network namespace")
    } else {
        None
    };
    let answer = match reason {
        Some(reason) => Err(reason.to_owned()),
        None => ask::props(&host, &port, &prefix),
    };
    let (report, no_report) = match answer {
        Ok(mut props) => match props.get_mut("hugepages").map(serde_json::Value::take) {
            Some(serde_json::Value::Null) => (None, Some("--hugepages is off".to_owned())),
            Some(report) => (Some(report), None),
            None => (
                None,
                Some("the server does not support huge pages".to_owned()),
            ),
        },
        Err(reason) => (None, Some(reason)),
    };
    Some(Server {
        model: get(&["-m", "--model"], "LLAMA_ARG_MODEL"),
        address: format!("{host}:{port}"),
        report,
        no_report,
    })
}

fn words_of_environment(root: &Root, pid: u32) -> Vec<String> {
    let mut words = processes::environment(root, pid);
    words.retain(|word| word.starts_with("LLAMA_"));
    words
}

/// The value of the last of these options, in llama.cpp's form `--option value`.
pub fn argument<T: AsRef<OsStr> + Clone>(words: &[T], options: &[&str]) -> Option<T> {
    let is_one = |word: &T| options.iter().any(|option| word.as_ref() == *option);
    let pair = words.windows(2).rfind(|pair| is_one(&pair[0]))?;
    Some(pair[1].clone())
}
