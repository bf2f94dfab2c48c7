//! A cluster of Kubernetes with thousands of nodes, from the tests' API server: joining it, and what that asks of the
//! server.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tempfile::TempDir;

use crate::Bench;
use crate::leases::{self, FIRST, LEN, mac, public_ip, subnet, subnets};
use crate::namespace::Namespace;
use crate::node::bare;
use crate::process::cpu_of_thread;
use crate::scale::{add_memory, add_memory_rows, milliseconds};
use crate::server::{ApiServer, Cluster, THREAD};
use crate::table::{Beside, Row, Table, Target, Unit};
use crate::turns::{self, Figures, Metric};

/// Turns of every program; an odd number, for the median.
const TURNS: usize = 5;
/// How many nodes there are besides; first those whose figures must be beside the rival's.
const FEW: u16 = 1_000;
const MANY: u16 = 5_000;
/// Images that a node says it has, of those fifty that a kubelet lists at the most: a node is 3 KB then.
const IMAGES: u32 = 10;
/// Until a program has nothing to do any more.
const REST: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(60);
/// The node that is measured, and where the server is.
const NODE: &str = "measured";
const ADDRESS: &str = "10.77.0.5";

/// The server, in a namespace on the hosts' switch.
struct Api {
    server: ApiServer,
    _namespace: Namespace,
    /// The network config, as the ConfigMap is mounted.
    directory: TempDir,
}

impl Api {
    fn start(switch: &Namespace) -> Result<Self> {
        let namespace = Namespace::new();
        namespace.connect("eth0", switch, "port5");
        switch.ip("link set port5 master switch up");
        namespace.ip(&format!("address add {ADDRESS}/24 dev eth0"));
        namespace.ip("link set eth0 up");
        let directory = TempDir::new().context("a directory for the network config")?;
        let api = Self {
            server: ApiServer::start_in(&namespace, &format!("{ADDRESS}:8001")),
            _namespace: namespace,
            directory,
        };
        std::fs::write(api.config(), leases::network("vxlan")).context("the network config")?;
        Ok(api)
    }

    fn add_nodes(&self, peers: Range<u16>) {
        self.server.change(|cluster| {
            for peer in peers {
                put_peer(cluster, peer);
            }
        });
    }

    fn config(&self) -> String {
        self.directory
            .path()
            .join("net-conf.json")
            .display()
            .to_string()
    }

    /// The measured node as a kubelet registers it, and no request yet.
    fn reset(&self) {
        self.server.change(|cluster| {
            let cidr = format!("{}/{LEN}", subnet(1));
            cluster.put(bare(NODE, &[&cidr]));
            cluster.asked.clear();
            // This program is not optimised; what it takes to write thousands of nodes down is not the agent's.
            cluster.texts.write_down(&cluster.nodes);
        });
    }

    /// Counts what was asked. The pages of a list after the first name the one before.
    fn add_requests(&self, figures: &mut Figures) {
        self.server.look(|cluster| {
            let asked = |line: &&String| line.starts_with("GET /api/v1/nodes?");
            let is_watch = |line: &&String| line.contains("watch=");
            let lists = cluster.asked.iter().filter(asked);
            let lists = lists.filter(|line| !is_watch(line) && !line.contains("continue="));
            let watches = cluster.asked.iter().filter(asked).filter(is_watch);
            for (metric, count) in [
                (Metric::Lists, lists.count()),
                (Metric::Watches, watches.count()),
                (Metric::Requests, cluster.asked.len()),
            ] {
                // Exact for numbers of requests.
                figures.add(metric, count as f64);
            }
        });
    }
}

/// A node whose agent runs.
fn put_peer(cluster: &mut Cluster, peer: u16) {
    let mut node = bare(
        &format!("node{peer:05}"),
        &[&format!("{}/{LEN}", subnet(peer))],
    );
    for (suffix, value) in [
        (
            "backend-data",
            format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(peer)),
        ),
        ("backend-type", "vxlan".to_owned()),
        ("kube-subnet-manager", "true".to_owned()),
        ("public-ip", public_ip(peer).to_string()),
    ] {
        node["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{suffix}")] =
            json!(value);
    }
    let images = (0..IMAGES).map(|number| {
        let digest = format!("{number:064x}");
        let names = [
            format!("registry.example/some/image@sha256:{digest}"),
            "registry.example/some/image:v1.2.3".to_owned(),
        ];
        json!({"names": names, "sizeBytes": 12_345_678})
    });
    node["status"]["images"] = images.collect();
    cluster.put(node);
}

impl Bench {
    /// Joining clusters of some and of many nodes.
    pub(crate) fn kubernetes(&self, table: &mut Table) -> Result<()> {
        let api = Api::start(&self.store.switch)?;
        let mut added = FIRST;
        for nodes in [FEW, MANY] {
            let what = format!("Kubernetes, {nodes} nodes");
            let peers = FIRST..FIRST + nodes;
            api.add_nodes(added..peers.end);
            added = peers.end;
            let all = turns::take(&what, TURNS, &self.names(), |place, figures| {
                self.scrub();
                api.reset();
                self.join_kubernetes(&api, place, peers.clone(), figures)
            });
            self.scrub();
            add_rows(table, &what, nodes == MANY, &all);
        }
        Ok(())
    }

    fn join_kubernetes(
        &self,
        api: &Api,
        place: usize,
        peers: Range<u16>,
        figures: &mut Figures,
    ) -> Result<()> {
        let url = format!("--kube-api-url=http://{ADDRESS}:8001");
        let config = format!("--net-config-path={}", api.config());
        let store = ["--kube-subnet-mgr", url.as_str(), config.as_str()];
        let before = cpu_of_thread(THREAD)?;
        let mut running = self.programs[place].start_with(&self.hosts[0], &store, Some(NODE))?;
        figures.add(Metric::Start, milliseconds(running.wait_subnet_env()?));
        let programmed = running.wait_routes(&subnets(peers), LIMIT)?;
        figures.add(Metric::Programmed, programmed.as_secs_f64());
        let process = running.process();
        figures.add(Metric::ProgrammedCpu, process.cpu()?.as_secs_f64());
        let served = cpu_of_thread(THREAD)?.saturating_sub(before);
        figures.add(Metric::ServerCpu, milliseconds(served));
        std::thread::sleep(REST);
        add_memory(figures, &process.memory()?);
        api.add_requests(figures);
        Ok(())
    }
}

fn add_rows(table: &mut Table, what: &str, is_large: bool, all: &[Figures]) {
    let mut add = |name: &str, unit, metric, targets: &[Target]| {
        table.add(&Row {
            what: format!("{what}: {name}"),
            unit,
            metric,
            own: &all[0],
            beside: Beside::Rival(all.get(1)),
            targets,
        });
    };
    let start: &[_] = &[Target::AtMost(200.0)];
    let once: &[_] = &[Target::AtMost(1.0)];
    let (start, once, programmed): (_, _, &[_]) = match is_large {
        true => (start, once, &[]),
        false => (&[][..], &[][..], &[Target::TimesAtMost(0.2)]),
    };
    add(
        "start to subnet.env",
        Unit::Milliseconds,
        Metric::Start,
        start,
    );
    let name = "start to all peers in the kernel, vxlan";
    add(name, Unit::Seconds, Metric::Programmed, programmed);
    // What the server takes is not in it.
    let name = "processor time until all peers are in the kernel";
    add(name, Unit::Seconds, Metric::ProgrammedCpu, &[]);
    let name = "processor time of the tests' API server, in all of these";
    add(name, Unit::Milliseconds, Metric::ServerCpu, &[]);
    add("lists of the nodes", Unit::Requests, Metric::Lists, once);
    add(
        "watches of the nodes",
        Unit::Requests,
        Metric::Watches,
        once,
    );
    add("all requests", Unit::Requests, Metric::Requests, &[]);
    let memory: &[_] = match is_large {
        true => &[Target::AtMost(40.0)],
        false => &[],
    };
    add_memory_rows(table, what, all, memory);
}
