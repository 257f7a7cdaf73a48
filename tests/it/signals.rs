//! What signals do to the server, whichever thread of it they interrupt.

use std::fs;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::support::http;
use crate::support::models;
use crate::support::server::{Launch, Server};

fn start() -> Server {
    Launch::ours().model(&models::demo("100M", "Q8_0")).start()
}

/// How often the scheduler has taken the CPU away from a thread, or the thread has given it up.
fn switches(process: u32, thread: u32) -> u64 {
    let path = format!("/proc/{process}/task/{thread}/status");
    fs::read_to_string(path)
        .expect("the thread is alive")
        .lines()
        .filter_map(|line| line.split_once("ctxt_switches:"))
        .map(|(_, count)| count.trim().parse::<u64>().expect("a count"))
        .sum()
}

/// llama.cpp's handler locks a mutex, which the interrupted thread must not hold.
#[test]
fn the_thread_that_gets_the_signals_does_not_serve() {
    let server = start();
    let main = server.pid();
    let before = switches(main, main);
    server.assert_answers();
    assert_eq!(switches(main, main), before);
    let ended = server.stop(Signal::TERM);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
}

#[test]
fn a_second_signal_ends_a_server_that_answers_without_a_crash() {
    for delay in 0..20 {
        let server = start();
        let process = Pid::from_raw(server.pid().cast_signed()).expect("not zero");
        let asked = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                let body = json!({"prompt": "a", "n_predict": 4096, "ignore_eos": true});
                asked.wait();
                http::post_and_forget(&server.url("/completion"), &body);
            });
            asked.wait();
            thread::sleep(Duration::from_millis(20));
            kill_process(process, Signal::TERM).expect("the server is alive");
            thread::sleep(Duration::from_micros(200 * delay));
            // It may have ended already.
            let _ = kill_process(process, Signal::INT);
        });
        let ended = server.wait();
        assert!(
            matches!(ended.status.code(), Some(0 | 1)),
            "{}\n{}",
            ended.status,
            ended.log
        );
    }
}
