//! What the kernel of a host has for its peers, beside what their leases say it should have; and packets that count.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::Store;
use crate::host::Host;

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
pub(crate) fn wait_for_plan(store: &Store, host: &Host, limit: Duration) {
    let start = Instant::now();
    loop {
        let (planned, present) = (planned(store, host), present(host));
        if planned == present {
            return;
        }
        assert!(
            start.elapsed() < limit,
            "missing: {:#?}\ntoo much: {:#?}",
            planned.difference(&present).collect::<Vec<_>>(),
            present.difference(&planned).collect::<Vec<_>>()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An established flow: echo requests from one container to another's, five milliseconds apart.
pub(crate) struct Flow {
    ping: Child,
    /// A pipe that nobody reads would hold ping up.
    output: tempfile::NamedTempFile,
}

impl Flow {
    pub(crate) fn start(from: &Host, to: Ipv4Addr) -> Self {
        let output = tempfile::NamedTempFile::new().expect("a file for ping's output");
        let ping = from
            .container()
            .command("ping")
            .args(["-n", "-i", "0.005", &to.to_string()])
            .stdout(Stdio::from(output.reopen().expect("the file")))
            .spawn()
            .expect("ping");
        Self { ping, output }
    }

    /// Ends the flow. Every request up to the last one that was answered must have been.
    pub(crate) fn finish(mut self, at_least: usize) {
        let id = i32::try_from(self.ping.id()).expect("a process id");
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(id),
            nix::sys::signal::Signal::SIGINT,
        )
        .expect("to stop ping");
        self.ping.wait().expect("ping's end");
        let text = std::fs::read_to_string(self.output.path()).expect("ping's output");
        let answered: BTreeSet<usize> = text
            .lines()
            // Errors name the packet that they are about as well.
            .filter_map(|line| line.split_once(" bytes from ")?.1.split_once("icmp_seq="))
            .filter_map(|(_, rest)| rest.split_whitespace().next()?.parse().ok())
            .collect();
        let last = answered.last().copied().unwrap_or_default();
        let lost: Vec<_> = (1..=last).filter(|n| !answered.contains(n)).collect();
        assert!(
            lost.is_empty(),
            "of {last} packets these were lost: {lost:?}"
        );
        assert!(last >= at_least, "only {last} packets were answered");
        // Of those sent afterwards at most one was under way.
        let sent = text
            .lines()
            .find_map(|line| line.split_once(" packets transmitted"))
            .and_then(|(sent, _)| sent.parse::<usize>().ok());
        assert!(
            sent.is_some_and(|sent| sent <= last + 1),
            "{sent:?} sent, {last} answered"
        );
    }
}
