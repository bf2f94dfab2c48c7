//! Routes that dead nodes left, on a provider where changes take their time.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::time::sleep;

use super::{net, wanted};
use crate::cloud::error::CloudError;
use crate::cloud::pass::{self, Accepted, Pass, Round};
use crate::cloud::table::{Forwarding, Later, Mark, Route, RouteTable, TableId, Target};

/// One table whose changes take a while.
struct Slow {
    routes: Vec<Route>,
    takes: Duration,
    removed: Vec<Ipv4Net>,
    lists: usize,
}

fn route(destination: &str, target: Target) -> Route {
    Route {
        destination: net(destination),
        target,
        mark: Mark::None,
        handle: String::new(),
    }
}

fn dead(destination: &str) -> Route {
    route(destination, Target::Dead("gone".to_owned()))
}

fn slow(secs: u64, routes: Vec<Route>) -> Slow {
    Slow {
        routes,
        takes: Duration::from_secs(secs),
        removed: Vec::new(),
        lists: 0,
    }
}

impl RouteTable for Slow {
    fn tables(&mut self) -> Later<'_, Vec<TableId>> {
        Box::pin(async { Ok(vec!["t".to_owned()]) })
    }

    fn list<'a>(&'a mut self, _: &'a TableId) -> Later<'a, Vec<Route>> {
        Box::pin(async {
            self.lists += 1;
            Ok(self.routes.clone())
        })
    }

    fn add<'a>(&'a mut self, _: &'a TableId, destination: Ipv4Net) -> Later<'a, ()> {
        Box::pin(async move {
            sleep(self.takes).await;
            self.routes
                .push(route(&destination.to_string(), Target::Own));
            Ok(())
        })
    }

    fn replace<'a>(&'a mut self, _: &'a TableId, route: &'a Route) -> Later<'a, ()> {
        Box::pin(async move {
            Err(CloudError::Unfit(format!(
                "{} is replaced",
                route.destination
            )))
        })
    }

    fn remove<'a>(&'a mut self, _: &'a TableId, route: &'a Route) -> Later<'a, ()> {
        Box::pin(async move {
            sleep(self.takes).await;
            self.removed.push(route.destination);
            self.routes
                .retain(|known| known.destination != route.destination);
            Ok(())
        })
    }

    fn allow_forwarding<'a>(&'a mut self, _: &'a [Ipv4Net]) -> Later<'a, Forwarding> {
        Box::pin(async { Ok(Forwarding::Allowed) })
    }

    fn take_over_command(&self, _: &TableId, _: &Route) -> String {
        String::new()
    }
}

async fn pass(
    table: &mut Slow,
    accepted: &mut Accepted,
    is_leased: &(dyn Fn(&Ipv4Net) -> bool + Sync),
) -> Pass {
    let mut pass = Pass::default();
    let round = Round {
        wanted: &wanted(),
        is_leased,
        except: &[],
    };
    pass::run(table, &round, accepted, &mut pass).await;
    pass
}

#[tokio::test(start_paused = true)]
async fn none_is_removed_by_a_list_that_is_old() {
    let mut table = slow(6, vec![dead("10.5.8.0/24")]);
    let mut accepted = Accepted::default();
    let first = pass(&mut table, &mut accepted, &|_| false).await;
    // Adding the own route took six seconds.
    assert_eq!(first.made.added, 1);
    assert_eq!(table.removed, []);
    assert!(first.has_more && !first.is_done());
    let second = pass(&mut table, &mut accepted, &|_| false).await;
    assert_eq!(table.removed, [net("10.5.8.0/24")]);
    // The node need not wait for that.
    assert!(second.is_settled() && second.has_more);
    assert!(pass(&mut table, &mut accepted, &|_| false).await.is_done());
}

#[tokio::test(start_paused = true)]
async fn each_is_removed_by_a_list_of_its_own() {
    let all = ["10.5.6.0/24", "10.5.7.0/24", "10.5.8.0/24", "10.5.9.0/24"];
    let mut routes: Vec<Route> = all.iter().map(|destination| dead(destination)).collect();
    routes.push(route("10.5.1.0/24", Target::Own));
    let mut table = slow(1, routes);
    let mut accepted = Accepted::default();
    for count in 1..=all.len() {
        pass(&mut table, &mut accepted, &|_| false).await;
        assert_eq!((table.removed.len(), table.lists), (count, count));
    }
    // Nodes begin with different ones.
    let mut begun = BTreeSet::new();
    for seed in 0..20 {
        begun.extend(first_of(seed, &all).await);
    }
    assert!(begun.len() > 1, "{begun:?}");
}

/// What a node with this seed removes first.
async fn first_of(seed: u64, all: &[&str]) -> Vec<Ipv4Net> {
    let mut routes: Vec<Route> = all.iter().map(|destination| dead(destination)).collect();
    routes.push(route("10.5.1.0/24", Target::Own));
    let mut table = slow(1, routes);
    let mut accepted = Accepted::seeded(seed);
    pass(&mut table, &mut accepted, &|_| false).await;
    table.removed
}

/// The lease came after the pass began.
#[tokio::test(start_paused = true)]
async fn none_is_removed_that_a_node_leases_by_now() {
    let mut table = slow(1, vec![dead("10.5.8.0/24")]);
    let mut accepted = Accepted::default();
    let leased = Mutex::new(BTreeSet::new());
    let is_leased = |subnet: &Ipv4Net| leased.lock().unwrap().contains(subnet);
    leased.lock().unwrap().insert(net("10.5.8.0/24"));
    pass(&mut table, &mut accepted, &is_leased).await;
    assert_eq!(table.removed, []);
    leased.lock().unwrap().clear();
    pass(&mut table, &mut accepted, &is_leased).await;
    assert_eq!(table.removed, [net("10.5.8.0/24")]);
}

/// Of another network than the present one.
#[tokio::test(start_paused = true)]
async fn a_former_own_subnets_route_goes_if_it_still_leads_here() {
    let foreign = Route {
        mark: Mark::Foreign,
        ..route("10.4.3.0/24", Target::Own)
    };
    let mut table = slow(
        0,
        vec![
            route("10.4.1.0/24", Target::Own),
            route("10.4.2.0/24", Target::Other("i-2".to_owned())),
            foreign,
            route("10.4.4.0/24", Target::Own),
        ],
    );
    let mut wanted = wanted();
    wanted.former = ["10.4.1.0/24", "10.4.2.0/24", "10.4.3.0/24"]
        .map(net)
        .into();
    super::run(&mut table, &wanted, &mut Accepted::default()).await;
    assert_eq!(table.removed, [net("10.4.1.0/24")]);
}
