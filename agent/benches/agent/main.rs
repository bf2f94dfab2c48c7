//! What the agent costs, in one table: with the real etcd, the tests' API server, and the real kernel in network
//! namespaces.
//!
//! `SELVAGE_BIN` names the binary to measure, `FLANNELD` a rival that takes flannel's flags: then both take turns in the
//! same namespaces, against the same etcd, in one run. Without a rival, what can only be judged beside one is not counted
//! as met. Every figure is the median of its turns, with the least, the greatest and their number, since machines are
//! noisy; none ends the program. `TURNS` limits them, for a quick look, and `ONLY` names one part of the
//! table ([`PARTS`]). `HISTORY=1` with `NOTES` adds a line to `benches/history.md`. Progress goes to standard error, the table to standard output.
//!
//! The program is also the writer of leases, their observer, the sender of netlink requests and the two ends of a
//! connection, which it starts in the namespaces.

#![expect(
    clippy::expect_used,
    reason = "what the tests share with this program ends it when hosts and etcd cannot be had"
)]
#![expect(
    clippy::unwrap_used,
    reason = "what the tests share with this program ends it when servers cannot be had"
)]

#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../../tests/etcd/authority.rs"]
mod authority;
mod by_hand;
#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../../tests/overlay/cluster.rs"]
mod cluster;
mod ends;
#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../../tests/etcd/server.rs"]
mod etcd;
mod growth;
mod history;
#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../../tests/overlay/host.rs"]
mod host;
mod kubernetes;
mod latency;
mod leases;
mod limit;
#[path = "../../tests/kube/mirror.rs"]
mod mirror;
#[path = "../../tests/overlay/namespace.rs"]
mod namespace;
#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../../tests/kube/node.rs"]
mod node;
#[path = "../../tests/kube/objects.rs"]
mod objects;
mod process;
mod program;
#[path = "../../tests/kube/rbac.rs"]
mod rbac;
#[path = "../../tests/kube/real.rs"]
mod real;
mod scale;
#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../../tests/kube/server.rs"]
mod server;
#[path = "../../tests/kube/stream.rs"]
mod stream;
mod table;
#[path = "../../../qemu-tests/src/bench/table_file.rs"]
mod table_file;
mod tools;
mod traffic;
mod turns;
#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../../tests/overlay/wait.rs"]
mod wait;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::cluster::Store;
use crate::host::Host;
use crate::program::{Program, Running};
use crate::table::Table;

/// What all measurements share: one etcd, two hosts, and the programs that are compared.
struct Bench {
    store: Store,
    hosts: [Host; 2],
    /// Ours first; then the rival, if one was given.
    programs: Vec<Program>,
}

impl Bench {
    fn new() -> Result<Self> {
        let own = std::env::var_os("SELVAGE_BIN")
            .map_or_else(|| env!("CARGO_BIN_EXE_selvage").into(), PathBuf::from);
        let mut programs = vec![Program::new("selvage", own, &["run"])?];
        if let Some(path) = std::env::var_os("FLANNELD").filter(|path| !path.is_empty()) {
            programs.push(Program::new("flanneld", path.into(), &[])?);
        }
        let store = Store::start(&leases::network("vxlan"));
        let hosts = [1, 2].map(|number| store.host(number));
        Ok(Self {
            store,
            hosts,
            programs,
        })
    }

    /// Names of the programs, in their order.
    fn names(&self) -> Vec<&'static str> {
        self.programs.iter().map(|program| program.name).collect()
    }

    /// Starts a program on both hosts, and waits until they have their subnets.
    fn join(&self, place: usize) -> Result<Vec<Running>> {
        self.hosts
            .iter()
            .map(|host| {
                let mut one = self.programs[place].start(host)?;
                one.wait_subnet_env()?;
                Ok(one)
            })
            .collect()
    }

    /// Changes the network's backend, for programs that are started from now on.
    fn set_backend(&self, backend: &str) {
        let config = leases::network(backend);
        self.store
            .etcdctl(&["put", "/coreos.com/network/config", &config]);
    }

    /// Takes away what a program has left on the hosts and in etcd, so that the next starts from nothing.
    fn scrub(&self) {
        for host in &self.hosts {
            if let Some(subnet) = program::subnet_of(host) {
                let key = format!(
                    "/coreos.com/network/subnets/{}-{}",
                    subnet.network(),
                    subnet.prefix_len()
                );
                self.store.etcdctl(&["del", &key]);
            }
            let _ = std::fs::remove_file(host.subnet_file());
            for program in &self.programs {
                program.forget(host);
            }
            for line in [
                "ip link del flannel.1",
                "ip link del flannel0",
                "ip link del pod",
                "ip route flush table main scope global",
                "ip nexthop flush",
                "nft flush ruleset",
            ] {
                // Most of it is not there.
                let _ = host.namespace.try_run(line);
            }
        }
    }
}

/// A part of the measurement, which adds its rows to the table.
type Part = fn(&Bench, &mut Table) -> Result<()>;

/// All parts in their order, by the names that `ONLY` has for them.
const PARTS: [(&str, Part); 10] = [
    ("size", Bench::size),
    ("start", |bench, table| {
        bench.start(table);
        Ok(())
    }),
    ("memory", Bench::memory),
    ("idle", |bench, table| {
        bench.idle(table);
        Ok(())
    }),
    ("latency", |bench, table| {
        bench.latency(table);
        Ok(())
    }),
    ("leases", Bench::ten_thousand),
    ("growth", Bench::growth),
    ("kubernetes", Bench::kubernetes),
    ("udp", |bench, table| {
        bench.udp(table);
        Ok(())
    }),
    ("by-hand", |bench, table| {
        bench.by_hand(table);
        Ok(())
    }),
];

/// The parts that are asked for: all, or the one that `ONLY` names.
fn parts() -> Result<Vec<Part>> {
    let only = std::env::var("ONLY").unwrap_or_default();
    let asked = |(name, _): &&(&str, Part)| only.is_empty() || only == *name;
    let parts: Vec<_> = PARTS.iter().filter(asked).map(|(_, part)| *part).collect();
    if parts.is_empty() {
        let names = PARTS.map(|(name, _)| name).join(", ");
        bail!("ONLY={only}: no such part; there are {names}");
    }
    Ok(parts)
}

fn measure() -> Result<()> {
    let parts = parts()?;
    let bench = Bench::new()?;
    let mut table = Table::new(bench.programs.get(1).map(|rival| rival.name));
    for part in parts {
        part(&bench, &mut table)?;
    }
    print!("{table}");
    history::add_if_asked(&table)
}

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        // cargo adds the flag.
        [] | ["--bench"] => measure(),
        [leases::WRITER, ref what @ ..] => leases::write(what),
        [latency::OBSERVER] => latency::observe(),
        [limit::SENDER, ref what @ ..] => limit::send(what),
        [ends::SINK, what, address] => ends::sink(what, address),
        [ends::SOURCE, what, address] => ends::source(what, address),
        _ => bail!("unknown arguments {words:?}: the settings are variables"),
    }
    .context("the measurement ended early")
}
