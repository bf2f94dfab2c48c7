//! What the kernel of a host has for its peers, beside what their leases say it should have; and packets that count.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::cluster::Store;
use crate::host::Host;
use crate::wait::{look_until, wait_until};

/// The routes, neighbours and forwarding entries that the leases of the other nodes ask for.
fn planned(store: &Store, host: &Host) -> BTreeSet<String> {
    let text = store.etcdctl(&["get", "--prefix", "/coreos.com/network/subnets/"]);
    let lines: Vec<_> = text.lines().collect();
    let mut planned = BTreeSet::new();
    for pair in lines.chunks(2) {
        let subnet = pair[0]
            .replace("/coreos.com/network/subnets/", "")
            .replace('-', "/");
        let lease: Value = serde_json::from_str(pair[1]).expect("a lease");
        let public_ip = &lease["PublicIP"];
        if *public_ip == host.address.to_string() {
            continue;
        }
        let mac = &lease["BackendData"]["VtepMAC"];
        let gateway = subnet.replace("/24", "");
        planned.insert(format!("route {subnet:?} {gateway:?}"));
        planned.insert(format!("neighbour {gateway:?} {mac}"));
        planned.insert(format!("fdb {mac} {public_ip}"));
    }
    planned
}

/// The same objects as the kernel has them.
fn present(host: &Host) -> BTreeSet<String> {
    let dump = |line: &str| match serde_json::from_str(&host.namespace.run(line)) {
        Ok(Value::Array(objects)) => objects,
        _ => Vec::new(),
    };
    let routes = dump("ip -j -4 route show dev flannel.1");
    let neighbours = dump("ip -j neighbor show dev flannel.1 nud permanent");
    let entries = dump("bridge -j fdb show dev flannel.1");
    let with = |objects: Vec<Value>, what: &str, a: &str, b: &str| -> Vec<String> {
        let both = objects.into_iter().filter(|object| !object[b].is_null());
        both.map(|object| format!("{what} {} {}", object[a], object[b]))
            .collect()
    };
    with(routes, "route", "dst", "gateway")
        .into_iter()
        .chain(with(neighbours, "neighbour", "dst", "lladdr"))
        .chain(with(entries, "fdb", "mac", "dst"))
        .collect()
}

/// Waits until the kernel is just what the leases ask for.
pub(crate) fn wait_for_plan(store: &Store, host: &Host) {
    let difference = || {
        let (planned, present) = (planned(store, host), present(host));
        let only_in = |one: &BTreeSet<String>, other| one.difference(other).cloned().collect();
        let missing: Vec<String> = only_in(&planned, &present);
        let too_much: Vec<String> = only_in(&present, &planned);
        (missing, too_much)
    };
    look_until(
        "no object to be missing and none to be too much",
        difference,
        |(missing, too_much)| missing.is_empty() && too_much.is_empty(),
    );
}

/// An established flow: echo requests from one container to another's, some milliseconds apart.
pub(crate) struct Flow {
    ping: Child,
    /// A pipe that nobody reads would hold ping up.
    output: tempfile::NamedTempFile,
}

impl Flow {
    pub(crate) fn start(from: &Host, to: Ipv4Addr) -> Self {
        Self::start_every("0.005", from, to)
    }

    /// The same with another number of seconds between two requests.
    pub(crate) fn start_every(seconds: &str, from: &Host, to: Ipv4Addr) -> Self {
        let output = tempfile::NamedTempFile::new().expect("a file for ping's output");
        let ping = from
            .container()
            .command("ping")
            .args(["-n", "-i", seconds, &to.to_string()])
            .stdout(Stdio::from(output.reopen().expect("the file")))
            .spawn()
            .expect("ping");
        Self { ping, output }
    }

    /// The requests that were answered so far.
    fn answered(&self) -> BTreeSet<usize> {
        let text = std::fs::read_to_string(self.output.path()).expect("ping's output");
        text.split_inclusive('\n')
            // The last line may be there in part.
            .filter(|line| line.ends_with('\n'))
            // Errors name the packet that they are about as well.
            .filter_map(|line| line.split_once(" bytes from ")?.1.split_once("icmp_seq="))
            .filter_map(|(_, rest)| rest.split_whitespace().next()?.parse().ok())
            .collect()
    }

    /// Waits until so many requests more than now were answered.
    pub(crate) fn wait_answered(&self, more: usize) {
        let last = |flow: &Self| flow.answered().last().copied().unwrap_or_default();
        let wanted = last(self) + more;
        wait_until("packets to be answered", || last(self) >= wanted);
    }

    /// Ends the flow, which must not have ceased. Every request up to the last one that was answered must have been.
    pub(crate) fn finish(self) {
        self.finish_losing(0);
    }

    /// The same where some may be lost, but no more than so many in a row.
    pub(crate) fn finish_losing(mut self, most: usize) {
        self.wait_answered(10);
        let id = i32::try_from(self.ping.id()).expect("a process id");
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(id),
            nix::sys::signal::Signal::SIGINT,
        )
        .expect("to stop ping");
        self.ping.wait().expect("ping's end");
        let answered = self.answered();
        let last = answered.last().copied().unwrap_or_default();
        let lost: Vec<_> = (1..=last).filter(|n| !answered.contains(n)).collect();
        let longest = lost.chunk_by(|one, next| one + 1 == *next).map(<[_]>::len);
        assert!(
            longest.max().unwrap_or(0) <= most,
            "of {last} packets these were lost: {lost:?}"
        );
    }
}
