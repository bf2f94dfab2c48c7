//! One comparison of all tables with what they should have, and the changes that it makes.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::Ipv4Net;
use thiserror::Error;
use tokio::time::Instant;

use super::error::CloudError;
use super::plan::{Step, Wanted, diff};
use super::table::{Forwarding, Route, RouteTable, TableId, Target};
use crate::base::retry::next_random;

/// How long an accepted change may take to show in a list. EC2 names no limit; its documentation on eventual consistency
/// suggests to go on asking for up to five minutes, but a route shows within seconds.
pub(crate) const SETTLE: Duration = Duration::from_secs(60);

/// How old a list may be when a route is removed by it.
const FRESH: Duration = Duration::from_secs(5);

/// How long another live instance must leave an own subnet's route alone until it is taken back again.
const TRUCE: Duration = Duration::from_secs(3600);

/// What is wrong with the routes.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(crate) enum Problem {
    /// A call failed.
    #[error("{table}{error}", table = before(table.as_ref()))]
    Call {
        /// The table; `None` if the call was about none.
        table: Option<TableId>,
        /// Why.
        error: CloudError,
    },
    /// Somebody else's route leads our subnet elsewhere.
    #[error(
        "{table}: the route to {destination} leads to {target}, which this agent did not make; if it is left over: {command}"
    )]
    Held {
        /// The table.
        table: TableId,
        /// The own subnet.
        destination: Ipv4Net,
        /// The next hop, as the provider names it.
        target: String,
        /// What points it to this instance.
        command: String,
    },
    /// The provider drops forwarded packets.
    #[error(
        "the provider drops packets that this instance forwards: {problem}; to allow them: {command}"
    )]
    Forwarding {
        /// Why the agent cannot change that.
        problem: String,
        /// What does.
        command: String,
    },
}

impl Problem {
    /// Whether it may end without anybody's doing.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Call { error, .. } if error.is_transient())
    }

    /// How long the provider asks to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Call { error, .. } => error.retry_after(),
            Self::Held { .. } | Self::Forwarding { .. } => None,
        }
    }
}

fn before(table: Option<&TableId>) -> String {
    table.map_or_else(String::new, |table| format!("{table}: "))
}

/// A table after a pass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    /// The table.
    pub(crate) id: TableId,
    /// Its IPv4 routes, ours and others.
    pub(crate) routes: usize,
    /// Whether the list had all own routes.
    pub(crate) is_complete: bool,
}

/// How many changes were accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Made {
    pub(crate) added: u64,
    pub(crate) replaced: u64,
    pub(crate) removed: u64,
}

/// The result of a pass.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Pass {
    /// The tables that could be listed.
    pub(crate) tables: Vec<Seen>,
    /// The changes.
    pub(crate) made: Made,
    /// What is wrong; first what concerns all tables.
    pub(crate) problems: Vec<Problem>,
    /// Whether accepted changes do not show yet.
    pub(crate) is_pending: bool,
    /// Whether routes are left to be removed that lead nowhere, or that are in tables that are no longer used.
    pub(crate) has_more: bool,
    /// What keeps routes in tables that are no longer used.
    pub(crate) left: Vec<Problem>,
}

impl Pass {
    /// Whether the provider routes everything as it should: every table was seen to be complete, and nothing of this node's
    /// is left in it.
    pub(crate) fn is_settled(&self) -> bool {
        self.problems.is_empty() && !self.is_pending
    }

    /// Whether there is nothing left to do at all.
    pub(crate) fn is_done(&self) -> bool {
        self.is_settled() && !self.has_more && self.left.is_empty()
    }

    /// Records a failed call.
    pub(crate) fn failed(&mut self, table: Option<&TableId>, error: CloudError) {
        let problem = Problem::Call {
            table: table.cloned(),
            error,
        };
        self.problems.push(problem);
    }
}

/// What is known from earlier passes.
#[derive(Debug, Default)]
pub(crate) struct Accepted {
    /// What was accepted and did not show in a list yet.
    changes: BTreeMap<(TableId, Ipv4Net), Instant>,
    /// Own subnets whose routes another live instance took over: how often they were taken back, and when last.
    taken_back: BTreeMap<(TableId, Ipv4Net), (u32, Instant)>,
    /// For the choice among dead nodes' routes.
    seed: u64,
}

impl Accepted {
    /// Nothing yet. Nodes with different seeds do not remove the same routes at once.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    /// Whether another live instance insists on an own subnet: two nodes that cannot reach the lease store may both believe
    /// that they lease it.
    fn is_contested(&self, table: &TableId, step: &Step) -> bool {
        let taken = self.taken_back.get(&(table.clone(), step.destination()));
        let is_often = |(times, last): &(u32, Instant)| *times >= 2 && last.elapsed() < TRUCE;
        step.takes_over() && taken.is_some_and(is_often)
    }

    /// Whether a change was accepted so recently that it need not show yet.
    fn is_recent(&self, table: &TableId, destination: Ipv4Net) -> bool {
        let since = self.changes.get(&(table.clone(), destination));
        since.is_some_and(|since| since.elapsed() < SETTLE)
    }

    /// Records an accepted change.
    fn note(&mut self, table: &TableId, step: &Step, time: Instant) {
        let key = (table.clone(), step.destination());
        if step.takes_over() {
            let (times, last) = self.taken_back.entry(key.clone()).or_insert((0, time));
            let before = if last.elapsed() < TRUCE { *times } else { 0 };
            (*times, *last) = (before + 1, time);
        }
        self.changes.insert(key, time);
    }
}

/// What a pass is to bring about.
pub(crate) struct Round<'a> {
    /// What the tables should have.
    pub(crate) wanted: &'a Wanted,
    /// Whether a node leases a subnet by now.
    pub(crate) is_leased: &'a (dyn Fn(&Ipv4Net) -> bool + Sync),
    /// Tables to leave alone.
    pub(crate) except: &'a [Seen],
}

/// Compares all tables and makes the changes. A failure in one table does not keep the others from being changed, unless it
/// shows that no call can succeed now. If it is cancelled, `pass` has what was done until then.
pub(crate) async fn run(
    routes: &mut dyn RouteTable,
    round: &Round<'_>,
    accepted: &mut Accepted,
    pass: &mut Pass,
) {
    // First, so that no packet is sent here that the provider then drops.
    if let Err(error) = allow_forwarding(routes, round.wanted, pass).await {
        let stop = stops(&error);
        pass.failed(None, error);
        if stop {
            return;
        }
    }
    let tables = match routes.tables().await {
        Ok(tables) => tables,
        Err(error) => {
            if !pass.problems.iter().any(|problem| is_same(problem, &error)) {
                pass.failed(None, error);
            }
            return;
        }
    };
    for table in &tables {
        if round.except.iter().any(|seen| seen.id == *table) {
            continue;
        }
        if let Err(error) = keep(routes, table, round, accepted, pass).await {
            pass.failed(Some(table), error);
            break;
        }
    }
}

fn is_same(problem: &Problem, other: &CloudError) -> bool {
    matches!(problem, Problem::Call { error, .. } if error == other)
}

/// Whether further calls in the same pass are in vain.
fn stops(error: &CloudError) -> bool {
    matches!(
        error,
        CloudError::Unreachable { .. }
            | CloudError::Throttled { .. }
            | CloudError::Credentials { .. }
    )
}

async fn allow_forwarding(
    routes: &mut dyn RouteTable,
    wanted: &Wanted,
    pass: &mut Pass,
) -> Result<(), CloudError> {
    let own: Vec<Ipv4Net> = wanted.own.iter().copied().collect();
    if own.is_empty() {
        return Ok(());
    }
    match routes.allow_forwarding(&own).await? {
        Forwarding::Allowed => (),
        // Whether it shows already, the next pass sees.
        Forwarding::SwitchedOn => pass.is_pending = true,
        Forwarding::Forbidden { problem, command } => {
            pass.problems.push(Problem::Forwarding { problem, command });
        }
    }
    Ok(())
}

/// Brings one table in order. An error ends the pass; those that concern only this table are recorded.
async fn keep(
    routes: &mut dyn RouteTable,
    table: &TableId,
    round: &Round<'_>,
    accepted: &mut Accepted,
    pass: &mut Pass,
) -> Result<(), CloudError> {
    let has = match routes.list(table).await {
        Ok(has) => has,
        Err(error) if stops(&error) => return Err(error),
        Err(error) => {
            pass.failed(Some(table), error);
            return Ok(());
        }
    };
    let listed = Instant::now();
    let is_there = |own: &Ipv4Net| {
        let mut to_own = has.iter().filter(|route| route.target == Target::Own);
        to_own.any(|route| route.destination == *own)
    };
    pass.tables.push(Seen {
        id: table.clone(),
        routes: has.len(),
        is_complete: round.wanted.own.iter().all(is_there),
    });
    let steps = diff(round.wanted, &has);
    for route in &steps.held {
        pass.problems.push(held(routes, table, route));
    }
    let differs = |destination: Ipv4Net| {
        let mut steps = steps.changes.iter();
        steps.any(|step| step.destination() == destination)
    };
    (accepted.changes).retain(|(of, destination), _| of != table || differs(*destination));
    let (dead, ours): (Vec<Step>, Vec<Step>) =
        (steps.changes.into_iter()).partition(Step::is_of_dead_node);
    for step in &ours {
        let is_late = matches!(step, Step::Remove(_)) && listed.elapsed() >= FRESH;
        if let Step::Replace(route) = step
            && accepted.is_contested(table, step)
        {
            pass.problems.push(held(routes, table, route));
            continue;
        }
        if is_late || accepted.is_recent(table, step.destination()) {
            pass.is_pending = true;
            continue;
        }
        pass.is_pending |= change(routes, table, step, accepted, pass).await?;
    }
    let dead = dead
        .into_iter()
        .filter(|step| !(round.is_leased)(&step.destination()));
    clear(routes, table, (dead.collect(), listed), accepted, pass).await
}

/// Removes one of the routes that dead nodes left, chosen at random. Only one for each list, and none by an old one: a
/// node that leases such a subnet meanwhile adds its route under the same name or destination, and a provider does not
/// tell the two apart.
async fn clear(
    routes: &mut dyn RouteTable,
    table: &TableId,
    (dead, listed): (Vec<Step>, Instant),
    accepted: &mut Accepted,
    pass: &mut Pass,
) -> Result<(), CloudError> {
    pass.has_more |= !dead.is_empty();
    let is_open = |step: &&Step| !accepted.is_recent(table, step.destination());
    let open: Vec<&Step> = dead.iter().filter(is_open).collect();
    let count = u64::try_from(open.len()).unwrap_or(u64::MAX);
    let chosen = next_random(&mut accepted.seed).checked_rem(count);
    let chosen = chosen.and_then(|at| open.get(usize::try_from(at).ok()?));
    let Some(step) = chosen.filter(|_| listed.elapsed() < FRESH) else {
        return Ok(());
    };
    change(routes, table, step, accepted, pass).await.map(drop)
}

/// Makes a change; whether it was accepted. A failure that concerns only this one is recorded.
async fn change(
    routes: &mut dyn RouteTable,
    table: &TableId,
    step: &Step,
    accepted: &mut Accepted,
    pass: &mut Pass,
) -> Result<bool, CloudError> {
    let now = Instant::now();
    match make(routes, table, step, &mut pass.made).await {
        Ok(()) => {
            accepted.note(table, step, now);
            Ok(true)
        }
        Err(error) if stops(&error) => Err(error),
        Err(error) => {
            pass.failed(Some(table), error);
            Ok(false)
        }
    }
}

async fn make(
    routes: &mut dyn RouteTable,
    table: &TableId,
    step: &Step,
    made: &mut Made,
) -> Result<(), CloudError> {
    match step {
        Step::Add(destination) => {
            routes.add(table, *destination).await?;
            made.added += 1;
        }
        Step::Replace(route) => {
            routes.replace(table, route).await?;
            made.replaced += 1;
        }
        Step::Remove(route) => {
            routes.remove(table, route).await?;
            made.removed += 1;
        }
    }
    Ok(())
}

fn held(routes: &dyn RouteTable, table: &TableId, route: &Route) -> Problem {
    Problem::Held {
        table: table.clone(),
        destination: route.destination,
        target: match &route.target {
            Target::Own => "this instance".to_owned(),
            Target::Other(name) | Target::Dead(name) => name.clone(),
        },
        command: routes.take_over_command(table, route),
    }
}
