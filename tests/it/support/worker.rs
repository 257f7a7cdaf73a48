//! Workers of llama.cpp's RPC backend: processes that lend their CPU as a device.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hugepages::port::Port;
use tempfile::TempDir;

use super::server::QUIET_THREADS;
use super::{programs, wait_for};

const PATIENCE: Duration = Duration::from_secs(30);

pub struct Worker {
    child: Child,
    /// `HOST:PORT`
    pub address: String,
    dir: TempDir,
    /// Only its drop matters.
    reserved: Option<Port>,
}

impl Worker {
    /// A worker on this machine. An error is the reason to skip the test.
    pub fn start() -> Result<Self, String> {
        Self::start_with(&[])
    }

    /// A worker on this machine, with these options.
    pub fn start_with(options: &[&str]) -> Result<Self, String> {
        let port = Port::reserve().expect("a port is free");
        let address = format!("127.0.0.1:{}", port.number);
        let mut worker = Self::start_at(&address, &[] as &[&str], options)?;
        worker.reserved = Some(port);
        Ok(worker)
    }

    /// A worker on an address, behind programs that each change something and then become the next.
    pub fn start_at<A: AsRef<OsStr>>(
        address: &str,
        wrapper: &[A],
        options: &[&str],
    ) -> Result<Self, String> {
        let program = programs::patched("ggml-rpc-server")?;
        let (host, port) = address.split_once(':').expect("HOST:PORT");
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let log = File::create(dir.path().join("log")).expect("just made");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args(wrapper)
            .arg(program)
            .args(["--host", host, "--port", port, "--threads", "2"])
            .args(options)
            .env(QUIET_THREADS.0, QUIET_THREADS.1)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("the worker can be started");
        let worker = Self {
            child,
            address: address.to_owned(),
            dir,
            reserved: None,
        };
        let listens = || TcpStream::connect(&worker.address).is_ok();
        assert!(
            wait_for(PATIENCE, listens),
            "the worker is not listening on {}\n{}",
            worker.address,
            worker.log()
        );
        Ok(worker)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            println!("--- log of the worker on {}\n{}", self.address, self.log());
        }
    }
}
