//! Hosts of a network that is this machine's own: namespaces with addresses, joined by a bridge, whose links can be cut.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// Tells networks of one process apart.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Hosts on one bridge. Dropped, all of it is gone.
#[derive(Debug)]
pub struct Network {
    name: String,
    hosts: u32,
}

impl Network {
    /// A network of `hosts` hosts; `None`, after saying why, where this is not permitted.
    pub fn make(hosts: u32) -> Option<Network> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let network = Network { name: format!("zf{}x{number}", std::process::id()), hosts };
        match network.build() {
            Ok(()) => Some(network),
            Err(why) => {
                let needs = "namespaces need root and iproute2 (apt-get install iproute2)";
                crate::not_tested(&format!("no network namespaces here: {why}; {needs}"));
                None
            }
        }
    }

    fn build(&self) -> Result<(), String> {
        let switch = self.switch();
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "bridge", "up"])?;
        for host in 0..self.hosts {
            let (name, port) = (self.host(host), format!("port{host}"));
            ip(&["netns", "add", &name])?;
            let link = ["-n", &name, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", &switch];
            ip(&link)?;
            ip(&["-n", &switch, "link", "set", &port, "master", "bridge", "up"])?;
            ip(&["-n", &name, "address", "add", &format!("{}/24", self.address(host)), "dev", "eth0"])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
        }
        Ok(())
    }

    fn switch(&self) -> String {
        format!("{}s", self.name)
    }

    /// The namespace of a host.
    pub fn host(&self, host: u32) -> String {
        format!("{}h{host}", self.name)
    }

    /// The address of a host.
    pub fn address(&self, host: u32) -> String {
        format!("10.77.0.{}", host + 1)
    }

    /// Cuts the link of a host: nothing comes through, and nobody is told.
    pub fn cut(&self, host: u32) {
        ip(&["-n", &self.switch(), "link", "set", &format!("port{host}"), "down"]).expect("a link is cut");
    }

    /// Mends it.
    pub fn heal(&self, host: u32) {
        ip(&["-n", &self.switch(), "link", "set", &format!("port{host}"), "up"]).expect("a link is mended");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let hosts = (0..self.hosts).map(|host| self.host(host));
        for name in hosts.chain([self.switch()]) {
            let _gone = ip(&["netns", "delete", &name]);
        }
    }
}

fn ip(words: &[&str]) -> Result<(), String> {
    let Output { status, stderr, .. } =
        Command::new("ip").args(words).output().map_err(|error| format!("ip: {error}"))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&stderr).trim())),
    }
}
