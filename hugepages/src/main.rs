//! `hugepages`: tools around llama.cpp on huge pages. The commands are in `cli/`.

mod cli;

fn main() -> cli::Exit {
    match cli::run() {
        Ok(exit) => exit,
        Err(error) => cli::report(&error),
    }
}
