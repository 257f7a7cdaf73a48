//! Continues a text with a model on huge pages: text to stdout, what the weights lie on to stderr.
//!
//! ```sh
//! cargo run --release --example generate -- -m model.gguf --hugepages -p "Once upon a time"
//! ```
//!
//! Whatever has no option here is taken from llama.cpp's environment variables, such as `LLAMA_ARG_HUGEPAGES`,
//! `LLAMA_ARG_THREADS` or `LLAMA_ARG_CTX_SIZE`.

#![expect(clippy::doc_markdown, reason = "doc comments are the help text")]

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use indicatif::ProgressBar;
use llama_hugepages::{
    Batch, Context, ContextParams, Error, HugePages, LogTarget, Model, ModelParams, Sampler,
    Specials, log_to,
};

/// Continue a text with a model on huge pages
#[derive(Parser)]
struct Args {
    /// The model: a GGUF file, or the first of several
    #[arg(short, long, value_name = "FILE", env = "LLAMA_ARG_MODEL")]
    model: PathBuf,

    /// The text to continue
    #[arg(short, long, default_value = "Once upon a time")]
    prompt: String,

    /// How many tokens to generate at most
    #[arg(short = 'n', long, default_value_t = 64)]
    predict: u32,

    /// How many tokens the context holds, 0 for what the model was trained with [default: LLAMA_ARG_CTX_SIZE, or 0]
    #[arg(short, long, value_name = "N")]
    ctx_size: Option<u32>,

    /// Choose by chance with this seed instead of the most likely token
    #[arg(short, long)]
    seed: Option<u32>,

    /// With --seed: more than 1 is wilder, less is tamer
    #[arg(long, default_value_t = 0.8, value_name = "T")]
    temp: f32,

    /// Whether the weights lie on huge pages [default: LLAMA_ARG_HUGEPAGES, or off]
    #[arg(long, value_name = "POLICY", num_args = 0..=1, require_equals = true, default_missing_value = "require")]
    hugepages: Option<Policy>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Policy {
    Off,
    Require,
    Prefer,
}

/// With a bar while it is loaded, where there is a terminal.
fn load(path: &Path, params: &ModelParams) -> Result<Model, Error> {
    const STEPS: u16 = 1000;
    let bar = if io::stderr().is_terminal() {
        ProgressBar::new(STEPS.into())
    } else {
        ProgressBar::hidden()
    };
    let model = Model::load_with_progress(path, params, |done| {
        // From 0 to 1, so it fits.
        #[expect(clippy::cast_sign_loss, reason = "progress is never negative")]
        bar.set_position((done * f32::from(STEPS)) as u64);
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    model
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let mut params = ModelParams::from_env()?;
    if let Some(policy) = args.hugepages {
        params = params.with_hugepages(match policy {
            Policy::Off => HugePages::Off,
            Policy::Require => HugePages::Require,
            Policy::Prefer => HugePages::Prefer,
        });
    }
    let mut context_params = ContextParams::from_env()?;
    if let Some(tokens) = args.ctx_size {
        context_params = context_params.with_n_ctx(tokens);
    }
    let model = load(&args.model, &params.with_context(&context_params))?;
    let mut context = Context::new(&model, &context_params)?;
    eprintln!("{}: {}", model.description(), model.report()?);

    let mut sampler = match args.seed {
        Some(seed) => Sampler::chain(&model)
            .top_k(40)
            .top_p(0.95)
            .temperature(args.temp)
            .seeded(seed),
        None => Sampler::greedy(&model),
    };

    let mut out = io::stdout().lock();
    out.write_all(args.prompt.as_bytes())?;
    let mut tokens = model.tokenize(&args.prompt, Specials::Add)?;
    for _ in 0..args.predict {
        for chunk in tokens.chunks(context.max_batch()) {
            match context.decode(&Batch::prompt(chunk)) {
                Err(Error::ContextFull { .. }) => return Ok(writeln!(out)?),
                result => result?,
            }
        }
        let last = (tokens.len() - 1) % context.max_batch();
        let next = sampler.sample(&mut context, last)?;
        if model.is_end(next) {
            break;
        }
        out.write_all(&model.piece(next)?)?;
        out.flush()?;
        tokens = vec![next];
    }
    writeln!(out)?;
    Ok(())
}

fn main() -> ExitCode {
    env_logger::Builder::from_env("RUST_LOG")
        .format_timestamp(None)
        .init();
    log_to(LogTarget::LogCrate);
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that has seen enough, such as `head`.
        Err(error)
            if error
                .downcast_ref::<io::Error>()
                .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) =>
        {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
