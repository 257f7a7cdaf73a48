//! A network with latency: not every kernel can delay packets (`sch_netem`), so a program between client and server delays them.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub struct Relay {
    /// `HOST:PORT`
    pub address: String,
    is_over: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Relay {
    /// Listens on `host`, and passes all bytes to and from the server on `to`, each after `delay`.
    pub fn start(host: &str, to: &str, delay: Duration) -> Self {
        let listener = TcpListener::bind((host, 0)).expect("the address is ours");
        let address = listener.local_addr().expect("just bound").to_string();
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, to) = (is_over.clone(), to.to_owned());
        let accepting = thread::spawn(move || {
            for client in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    break;
                }
                let client = client.expect("a connection");
                // Without a server, the client's connection ends.
                if let Ok(server) = TcpStream::connect(&to) {
                    pass(&client, &server, delay);
                    pass(&server, &client, delay);
                }
            }
        });
        Self {
            address,
            is_over,
            accepting: Some(accepting),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(&self.address);
        let _ = self.accepting.take().map(JoinHandle::join);
    }
}

/// Passes the bytes of one direction until it ends.
fn pass(from: &TcpStream, to: &TcpStream, delay: Duration) {
    let mut from = from.try_clone().expect("a descriptor is free");
    let mut to = to.try_clone().expect("a descriptor is free");
    to.set_nodelay(true).expect("a connection");
    let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if sender
                .send((Instant::now(), bytes[..count].to_vec()))
                .is_err()
            {
                break;
            }
        }
    });
    thread::spawn(move || -> io::Result<()> {
        for (arrived, bytes) in receiver {
            thread::sleep((arrived + delay).saturating_duration_since(Instant::now()));
            to.write_all(&bytes)?;
        }
        to.shutdown(Shutdown::Write)
    });
}
