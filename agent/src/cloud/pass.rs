//! One comparison of all tables with what they should have, and the changes that it makes.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::Ipv4Net;
use thiserror::Error;
use tokio::time::Instant;

use super::error::CloudError;
use super::plan::{Step, Wanted, diff};
use super::table::{Forwarding, Route, RouteTable, TableId, Target};

/// How long an accepted change may take to show in a list. EC2 names no limit; its documentation on eventual consistency
/// suggests to go on asking for up to five minutes, but a route shows within seconds.
const SETTLE: Duration = Duration::from_secs(60);

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
}

impl Pass {
    /// Whether the provider routes everything as it should: every table was seen to be complete, and nothing is left to
    /// do.
    pub(crate) fn is_settled(&self) -> bool {
        self.problems.is_empty() && !self.is_pending
    }

    fn failed(&mut self, table: Option<&TableId>, error: CloudError) {
        let problem = Problem::Call {
            table: table.cloned(),
            error,
        };
        self.problems.push(problem);
    }
}

/// What was accepted and did not show in a list yet. Kept from pass to pass.
#[derive(Debug, Default)]
pub(crate) struct Accepted(BTreeMap<(TableId, Ipv4Net), Instant>);

impl Accepted {
    /// Whether a change was accepted so recently that it need not show yet.
    fn is_recent(&self, table: &TableId, destination: Ipv4Net, now: Instant) -> bool {
        let since = self.0.get(&(table.clone(), destination));
        since.is_some_and(|since| now.duration_since(*since) < SETTLE)
    }
}

/// Compares all tables and makes the changes, as [`run_except`].
pub(crate) async fn run(
    routes: &mut dyn RouteTable,
    wanted: &Wanted,
    accepted: &mut Accepted,
) -> Pass {
    run_except(routes, wanted, accepted, &[]).await
}

/// Compares all tables but some and makes the changes. A failure in one table does not keep the others from being
/// changed, unless it shows that no call can succeed now.
pub(crate) async fn run_except(
    routes: &mut dyn RouteTable,
    wanted: &Wanted,
    accepted: &mut Accepted,
    except: &[Seen],
) -> Pass {
    let mut pass = Pass::default();
    // First, so that no packet is sent here that the provider then drops.
    if let Err(error) = allow_forwarding(routes, wanted, &mut pass).await {
        let stop = stops(&error);
        pass.failed(None, error);
        if stop {
            return pass;
        }
    }
    let tables = match routes.tables().await {
        Ok(tables) => tables,
        Err(error) => {
            if !pass.problems.iter().any(|problem| is_same(problem, &error)) {
                pass.failed(None, error);
            }
            return pass;
        }
    };
    for table in &tables {
        if except.iter().any(|seen| seen.id == *table) {
            continue;
        }
        if let Err(error) = keep(routes, table, wanted, accepted, &mut pass).await {
            pass.failed(Some(table), error);
            break;
        }
    }
    pass
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
    wanted: &Wanted,
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
    let is_there = |own: &Ipv4Net| {
        let mut to_own = has.iter().filter(|route| route.target == Target::Own);
        to_own.any(|route| route.destination == *own)
    };
    pass.tables.push(Seen {
        id: table.clone(),
        routes: has.len(),
        is_complete: wanted.own.iter().all(is_there),
    });
    let steps = diff(wanted, &has);
    for route in &steps.held {
        pass.problems.push(held(routes, table, route));
    }
    let differs = |destination: Ipv4Net| {
        let mut steps = steps.changes.iter();
        steps.any(|step| step.destination() == destination)
    };
    accepted
        .0
        .retain(|(of, destination), _| of != table || differs(*destination));
    for step in &steps.changes {
        let now = Instant::now();
        if accepted.is_recent(table, step.destination(), now) {
            pass.is_pending = true;
            continue;
        }
        match make(routes, table, step, &mut pass.made).await {
            Ok(()) => {
                pass.is_pending = true;
                accepted.0.insert((table.clone(), step.destination()), now);
            }
            Err(error) if stops(&error) => return Err(error),
            Err(error) => pass.failed(Some(table), error),
        }
    }
    Ok(())
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
