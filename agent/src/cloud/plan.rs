//! What has to change in a route table: a pure function of what it has and what it should have.
//!
//! | a route | is |
//! |---|---|
//! | own subnet, to this instance | kept |
//! | own subnet, to nothing that lives, or marked as ours | replaced |
//! | own subnet, to somebody else's next hop | reported, never touched |
//! | a possible subnet of the network, not the own one, to this instance | removed: left by an earlier lease |
//! | a subnet that this node had in another network, to this instance | removed |
//! | a possible subnet of the network that nobody leases, to nothing that lives | removed: left by a dead node, as flannel does |
//! | anything else | never touched |

use std::collections::BTreeSet;

use ipnet::Ipv4Net;

use super::table::{Mark, Route, Target};

/// What the tables should have.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Wanted {
    /// The own subnets.
    pub(crate) own: BTreeSet<Ipv4Net>,
    /// The network, and the prefix length of its subnets; `None` if nothing is known to be ours but the own subnets.
    pub(crate) network: Option<(Ipv4Net, u8)>,
    /// The subnets that other nodes lease.
    pub(crate) leased: BTreeSet<Ipv4Net>,
    /// Subnets that this node had, perhaps of another network, until nothing leads here from them any more.
    pub(crate) former: BTreeSet<Ipv4Net>,
}

/// One change of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Add a route to this instance.
    Add(Ipv4Net),
    /// Point it to this instance.
    Replace(Route),
    /// Remove it.
    Remove(Route),
}

/// What has to change, and what is in the way.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Steps {
    /// In the order in which they are made: the own routes first.
    pub(crate) changes: Vec<Step>,
    /// Routes to an own subnet that are somebody else's.
    pub(crate) held: Vec<Route>,
}

impl Step {
    /// The destination of the route.
    pub(crate) fn destination(&self) -> Ipv4Net {
        match self {
            Self::Add(destination) => *destination,
            Self::Replace(route) | Self::Remove(route) => route.destination,
        }
    }

    /// Whether it takes a route from another live instance.
    pub(crate) fn takes_over(&self) -> bool {
        matches!(self, Self::Replace(route) if matches!(route.target, Target::Other(_)))
    }

    /// Whether it removes what a dead node left.
    pub(crate) fn is_of_dead_node(&self) -> bool {
        matches!(self, Self::Remove(route) if matches!(route.target, Target::Dead(_)))
    }
}

impl Wanted {
    /// Whether a destination can be a subnet of one of the network's nodes.
    fn is_subnet(&self, destination: Ipv4Net) -> bool {
        self.network.is_some_and(|(network, prefix)| {
            destination.prefix_len() == prefix && network.contains(&destination)
        })
    }

    /// Whether a route that is not for an own subnet was left by an earlier lease or a dead node.
    fn is_left(&self, route: &Route) -> bool {
        if route.mark == Mark::Foreign {
            return false;
        }
        let is_subnet = self.is_subnet(route.destination);
        match route.target {
            Target::Own => is_subnet || self.former.contains(&route.destination),
            Target::Dead(_) => is_subnet && !self.leased.contains(&route.destination),
            Target::Other(_) => false,
        }
    }
}

/// Compares a table with what it should have.
pub(crate) fn diff(wanted: &Wanted, has: &[Route]) -> Steps {
    let mut steps = Steps::default();
    for &own in &wanted.own {
        // A provider may hold several routes to one destination; one of ours is enough.
        let found: Vec<&Route> = (has.iter())
            .filter(|route| route.destination == own)
            .collect();
        let foreign = found.iter().find(|route| !may_replace(route));
        match (found.first(), foreign) {
            _ if found.iter().any(|route| route.target == Target::Own) => (),
            (None, _) => steps.changes.push(Step::Add(own)),
            (Some(_), Some(foreign)) => steps.held.push((*foreign).clone()),
            (Some(&first), None) => steps.changes.push(Step::Replace(first.clone())),
        }
    }
    let left = has
        .iter()
        .filter(|route| !wanted.own.contains(&route.destination))
        .filter(|route| wanted.is_left(route));
    steps.changes.extend(left.cloned().map(Step::Remove));
    steps
}

/// Whether a route to an own subnet that leads elsewhere is ours to replace.
fn may_replace(route: &Route) -> bool {
    match (&route.target, route.mark) {
        (_, Mark::Foreign) => false,
        (Target::Dead(_), _) | (_, Mark::Ours) => true,
        (Target::Own | Target::Other(_), Mark::None) => false,
    }
}
