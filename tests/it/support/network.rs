//! Machines on a network of their own: network namespaces, joined by a bridge with 10 Gbit/s on each port.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::{self, Command};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::guardian::Guardian;
use super::{is_root, programs};

/// Removes the namespaces, and with them their interfaces.
const REMOVE: &str = r#"
    trap '' INT TERM HUP QUIT PIPE
    names=
    while read -r name; do names="$names $name"; done
    for name in $names; do ip netns del "$name"; done
"#;

/// A network of machines 0, 1, 2, … Dropping the value removes it.
pub struct Network {
    prefix: String,
    /// The namespace of the thread that made the network, which returns there.
    home: File,
    guardian: Guardian,
}

impl Network {
    /// An error is the reason to skip the test.
    pub fn with(machines: usize) -> Result<Self, String> {
        if !is_root() {
            return Err("network namespaces need root".to_owned());
        }
        programs::found("ip")?;
        programs::found("tc")?;
        programs::found("nsenter")?;
        let home = File::open("/proc/thread-self/ns/net").map_err(|error| error.to_string())?;
        let mut network = Self {
            prefix: format!("llama-hugepages-{}", process::id()),
            home,
            guardian: Guardian::start(REMOVE, None),
        };
        let hub = network.hub();
        network.add_namespace(&hub)?;
        ip(&["-n", &hub, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "bridge", "up"])?;
        for machine in 0..machines {
            network.add_machine(machine)?;
        }
        Ok(network)
    }

    fn add_namespace(&mut self, name: &str) -> Result<(), String> {
        self.guardian.tell(name);
        ip(&["netns", "add", name])
    }

    fn add_machine(&mut self, machine: usize) -> Result<(), String> {
        let (hub, name, port) = (self.hub(), self.name(machine), port(machine));
        self.add_namespace(&name)?;
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        let pair = [
            "-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns",
            &name,
        ];
        ip(&pair)?;
        ip(&["-n", &hub, "link", "set", &port, "master", "bridge", "up"])?;
        let address = format!("{}/24", Self::address(machine));
        ip(&["-n", &name, "address", "add", &address, "dev", "eth0"])?;
        ip(&["-n", &name, "link", "set", "eth0", "up"])?;
        let rate = ["tbf", "rate", "10gbit", "burst", "4mb", "latency", "50ms"];
        let mut tc = Command::new("tc");
        tc.args(["-n", &hub, "qdisc", "add", "dev", &port, "root"]);
        programs::run(tc.args(rate))
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }

    fn name(&self, machine: usize) -> String {
        format!("{}-{machine}", self.prefix)
    }

    /// The address of a machine.
    pub fn address(machine: usize) -> String {
        format!("10.77.0.{}", machine + 1)
    }

    /// Words in front of a program that run it on a machine.
    pub fn on(&self, machine: usize) -> [String; 3] {
        let namespace = format!("--net=/run/netns/{}", self.name(machine));
        ["nsenter".to_owned(), namespace, "--".to_owned()]
    }

    /// Moves this thread to a machine, and the programs that it starts from now on.
    pub fn enter(&self, machine: usize) {
        let namespace = File::open(format!("/run/netns/{}", self.name(machine)));
        move_thread(&namespace.expect("the namespace exists"));
    }

    /// Cuts the cable of a machine, or repairs it.
    pub fn set_cable(&self, machine: usize, is_whole: bool) {
        let state = if is_whole { "up" } else { "down" };
        ip(&["-n", &self.hub(), "link", "set", &port(machine), state]).expect("the port exists");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        move_thread(&self.home);
    }
}

fn port(machine: usize) -> String {
    format!("port{machine}")
}

fn move_thread(namespace: &File) {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .expect("root may change the namespace of a thread");
}

fn ip(words: &[&str]) -> Result<(), String> {
    programs::run(Command::new("ip").args(words))
}
