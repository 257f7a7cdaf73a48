//! The units in `deploy/systemd/`, and what a service manager hears of a server. They are not run here: that takes a systemd on a
//! machine of its own, see `deploy/systemd/README.md`.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{self, Command};
use std::time::Duration;

use crate::support::server::Launch;
use crate::support::{models, or_skip, programs};

/// What systemd says of our units; nothing is what it should be.
fn verify(dir: &Path, names: &[String]) -> String {
    let output = Command::new("systemd-analyze")
        .arg("verify")
        .args(names.iter().map(|name| dir.join(name)))
        .env("SYSTEMD_LOG_LEVEL", "notice")
        .output()
        .expect("it ran before");
    let said = String::from_utf8_lossy(&output.stderr);
    // It reads the units of the machine too, and those are not ours.
    let ours = said
        .lines()
        .filter(|line| line.contains("llama") || line.contains("hugepages"));
    ours.collect::<Vec<_>>().join("\n")
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let found = Command::new("systemd-analyze").arg("--version").output();
    or_skip!(found.map_err(|error| format!("systemd-analyze cannot be run: {error}")));
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd");
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    // It wants the programs to be there.
    let bin = programs::hugepages();
    let bin = bin
        .parent()
        .expect("it lies in a folder")
        .display()
        .to_string();
    let mut names = Vec::new();
    for entry in fs::read_dir(units).expect("they are there").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".service") {
            let text = fs::read_to_string(entry.path()).expect("a text");
            let text = text.replace("/usr/bin/", &format!("{bin}/"));
            fs::write(dir.path().join(&name), text).expect("just made");
            // A template is checked as one of its instances.
            let instance = name.replace('@', "@demo");
            if instance != name {
                fs::copy(dir.path().join(&name), dir.path().join(&instance)).expect("just made");
            }
            names.push(instance);
        }
    }
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(verify(dir.path(), &names), "");

    // That it would say something.
    let unit = dir.path().join("llama-hugepages-pool.service");
    let text = fs::read_to_string(&unit).expect("just made");
    fs::write(&unit, text.replace("Type=oneshot", "Type=oneshoot")).expect("just made");
    assert!(verify(dir.path(), &names).contains("oneshoot"));
}

/// Starts a server that shall tell somebody, and checks that it is ready when it does.
fn tells(socket: &UnixDatagram, name: &str) {
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("not zero");
    let server = Launch::ours()
        .model(&models::demo("100M", "Q8_0"))
        .env("NOTIFY_SOCKET", name)
        .spawn();
    let mut message = [0; 256];
    let n = socket
        .recv(&mut message)
        .unwrap_or_else(|error| panic!("nothing was told: {error}\n{}", server.log()));
    assert!(server.is_ready(), "told too soon\n{}", server.log());
    let message = String::from_utf8_lossy(&message[..n]).into_owned();
    assert!(message.starts_with("READY=1\n"), "{message}");
    socket.set_nonblocking(true).expect("it is ours");
    assert!(socket.recv(&mut [0; 256]).is_err(), "told twice");
}

#[test]
fn a_service_manager_is_told_when_the_model_answers_and_not_before() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("just made");
    tells(&socket, path.to_str().expect("a plain path"));

    let name = format!("llama-hugepages-test-{}", process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("it is short");
    let socket = UnixDatagram::bind_addr(&address).expect("nobody has it");
    tells(&socket, &format!("@{name}"));
}
