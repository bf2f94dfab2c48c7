//! Passes over the tables of providers that a local server plays, and over one in memory.

mod aws;
#[path = "../../tests/clouds/compute.rs"]
mod compute;
mod dead;
#[path = "../../tests/clouds/ec2.rs"]
mod ec2;
mod gce;
mod properties;
#[path = "../../tests/clouds/server.rs"]
pub(super) mod server;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, UNIX_EPOCH};

use ipnet::Ipv4Net;

use super::access::Access;
use super::pass::{self, Accepted, Pass, Round};
use super::plan::Wanted;
use super::provider;
use super::table::RouteTable;
use super::transport::Transport;
use crate::plan::backend::CloudConfig;

/// The underlay address of the instance under test.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

/// The own subnet is 10.5.1.0/24; others lease 10.5.2.0/24.
fn wanted() -> Wanted {
    Wanted {
        own: BTreeSet::from([net("10.5.1.0/24")]),
        network: Some((net("10.5.0.0/16"), 24)),
        leased: BTreeSet::from([net("10.5.2.0/24")]),
        former: BTreeSet::new(),
    }
}

/// A pass during which no lease changes.
pub(super) async fn run(
    routes: &mut dyn RouteTable,
    wanted: &Wanted,
    accepted: &mut Accepted,
) -> Pass {
    let mut pass = Pass::default();
    let round = Round {
        wanted,
        is_leased: &|subnet| wanted.leased.contains(subnet),
        except: &[],
    };
    pass::run(routes, &round, accepted, &mut pass).await;
    pass
}

/// This node's side: a provider, and what it remembers from pass to pass.
struct Node {
    routes: Box<dyn RouteTable>,
    wanted: Wanted,
    accepted: Accepted,
}

impl Node {
    fn new(kind: &str, url: &str, config: CloudConfig) -> Self {
        Self::with(kind, url, config, |_| None)
    }

    fn with(
        kind: &str,
        url: &str,
        config: CloudConfig,
        variable: fn(&str) -> Option<String>,
    ) -> Self {
        let access = Access {
            transport: Transport::new(Some(url.to_owned()), Some(url.to_owned()))
                .with_clock(|| UNIX_EPOCH + Duration::from_secs(1_440_938_160)),
            config,
            address: ADDRESS,
            credentials_file: None,
            variable,
        };
        Self {
            routes: (provider::find(kind).unwrap().open)(access),
            wanted: wanted(),
            accepted: Accepted::default(),
        }
    }

    async fn pass(&mut self) -> Pass {
        run(&mut *self.routes, &self.wanted, &mut self.accepted).await
    }

    /// Passes until nothing is left to do.
    async fn settle(&mut self) {
        let mut last = Pass::default();
        for _ in 0..9 {
            last = self.pass().await;
            if last.is_done() {
                return;
            }
        }
        panic!("not settled: {last:?}");
    }
}

/// The problems as sentences.
fn told(pass: &Pass) -> Vec<String> {
    pass.problems.iter().map(ToString::to_string).collect()
}
