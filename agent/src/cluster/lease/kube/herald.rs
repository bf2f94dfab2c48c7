//! The task that shows on the node whether its overlay is up: the condition `NetworkUnavailable`, which keeps the
//! scheduler from a node without network, and events for whoever asks `kubectl describe node`.
//!
//! Both are written with pauses and in few requests; without the right to do so the overlay goes on as well.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::Method;
use serde_json::json;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::Shared;
use super::client::{Failure, Question};
use super::node::{Condition, Node};
use crate::base::retry::{Backoff, random_seed};
use crate::base::time::rfc3339;
use crate::cluster::lease::NodeFault;

/// The condition's type.
const CONDITION: &str = Condition::NETWORK_UNAVAILABLE;

/// How long the overlay is down before the condition says so: a restart of the agent leaves the data plane in place,
/// and is over sooner.
const DOWN_AFTER: Duration = Duration::from_secs(30);

/// The shortest time between two corrections of a condition that somebody else writes, such as a cloud's route
/// controller.
const CORRECTION: Duration = Duration::from_secs(20);

/// How long what somebody else wrote is left alone: it may be older than what was written here.
const SETTLE: Duration = Duration::from_secs(2);

/// The time after which an event of the same kind is written again.
const SAME_EVENT: Duration = Duration::from_secs(600);

/// The shortest time between any two events.
const EVENTS: Duration = Duration::from_secs(5);

/// Pauses after failed requests.
const FAILURES: Backoff = Backoff::constant(Duration::from_secs(1), Duration::from_secs(60), 0.3);

/// The longest message of an event, in bytes (`maxMessageLength` of the API server is 1024).
const LONGEST_MESSAGE: usize = 1000;

/// Faults of which the API server cannot be told, and the one that is none.
const UNTOLD: [&str; 3] = ["store-unreachable", "store-tls", "starting"];

/// What the agent says about this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Health {
    pub(super) up: bool,
    pub(super) faults: Vec<NodeFault>,
}

/// What the condition should be.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Verdict {
    unavailable: bool,
    reason: String,
    message: String,
}

pub(super) struct Herald {
    shared: Arc<Shared>,
    health: Receiver<Option<Health>>,
    set_condition: bool,
    down_since: Option<Instant>,
    /// Whether the condition is unavailable, and the reason, as last written.
    written: Option<(bool, String)>,
    /// After a failure, not before this.
    next_condition: Instant,
    /// What somebody else wrote is corrected not before this.
    next_correction: Instant,
    /// When to compare the condition with what was written.
    compare: Option<Instant>,
    next_event: Instant,
    /// When each kind was last written.
    told: BTreeMap<&'static str, Instant>,
    failures: Backoff,
    /// Pauses after failed requests for events, beside [`EVENTS`].
    lost_events: Backoff,
}

impl Shared {
    /// Notes what condition the own node has, and wakes the herald if that is another than before.
    pub(super) fn note_condition(&self, node: &Node) {
        // A node that is created again has none.
        let found = node.status.conditions.first();
        let found = found.map(|found| (found.status == "True", found.reason.clone()));
        if std::mem::replace(&mut *self.condition(), found.clone()) != found {
            self.condition_changed.notify_one();
        }
    }
}

impl Herald {
    pub(super) fn new(
        shared: Arc<Shared>,
        set_condition: bool,
        health: Receiver<Option<Health>>,
    ) -> Self {
        let now = Instant::now();
        Self {
            shared,
            health,
            set_condition,
            down_since: None,
            written: None,
            next_condition: now,
            next_correction: now,
            compare: None,
            next_event: now,
            told: BTreeMap::new(),
            failures: FAILURES.seeded(random_seed()),
            lost_events: FAILURES.seeded(random_seed()),
        }
    }

    /// Runs until the store is dropped.
    pub(super) async fn run(mut self) {
        loop {
            let health = self.health.borrow_and_update().clone();
            let due = match health {
                Some(health) => self.turn(&health).await,
                None => None,
            };
            tokio::select! {
                changed = self.health.changed() => if changed.is_err() { return },
                () = self.shared.condition_changed.notified() => {
                    self.compare = Some(self.next_correction.max(Instant::now() + SETTLE));
                }
                () = until(due) => {}
            }
        }
    }

    /// Writes what is due; returns when to look again.
    async fn turn(&mut self, health: &Health) -> Option<Instant> {
        let now = Instant::now();
        if health.up {
            self.down_since = None;
        }
        let down_since = match health.up {
            true => None,
            false => Some(*self.down_since.get_or_insert(now)),
        };
        if self.compare.is_some_and(|at| at <= now) {
            self.compare = None;
            if *self.shared.condition() != self.written {
                self.written = None;
            }
        }
        let mut due: Vec<_> = self.compare.into_iter().collect();
        let verdict = verdict(health, down_since, now);
        match verdict.filter(|_| self.set_condition) {
            Some(verdict) if !self.is_written(&verdict) => {
                if now >= self.next_condition {
                    self.write_condition(verdict).await;
                }
                due.push(self.next_condition);
            }
            _ => due.extend(down_since.map(|since| since + DOWN_AFTER)),
        }
        due.extend(self.tell(health, now).await);
        due.into_iter().filter(|due| *due > now).min()
    }

    fn is_written(&self, verdict: &Verdict) -> bool {
        let wrote = self.written.as_ref();
        wrote.is_some_and(|(unavailable, reason)| {
            (*unavailable, reason) == (verdict.unavailable, &verdict.reason)
        })
    }

    async fn write_condition(&mut self, verdict: Verdict) {
        let now = rfc3339(SystemTime::now());
        let patch = json!({"status": {"conditions": [{
            "type": CONDITION,
            "status": if verdict.unavailable { "True" } else { "False" },
            "reason": verdict.reason,
            "message": verdict.message,
            "lastTransitionTime": now,
            "lastHeartbeatTime": now,
        }]}});
        let node = self.shared.node_name().await;
        let written = match node {
            Ok(node) => {
                self.shared
                    .ask(&Question::patch_status(&node, &patch))
                    .await
            }
            Err(error) => {
                debug!("the condition {CONDITION} waits: {error}");
                self.next_condition = Instant::now() + self.failures.next_delay();
                return;
            }
        };
        match written {
            Ok(_) => {
                info!(
                    unavailable = verdict.unavailable,
                    reason = verdict.reason,
                    "node condition {CONDITION} set"
                );
                self.written = Some((verdict.unavailable, verdict.reason));
                self.shared.condition().clone_from(&self.written);
                self.next_correction = Instant::now() + CORRECTION;
                self.failures.reset();
            }
            Err(failure) => {
                let error = self.shared.node_error(failure);
                warn!("failed to set the node condition {CONDITION}: {error}; retrying");
                self.next_condition = Instant::now() + self.failures.next_delay();
            }
        }
    }

    /// Writes an event for the first fault that is due for one; returns when the next is.
    async fn tell(&mut self, health: &Health, now: Instant) -> Option<Instant> {
        let mut next = None;
        for fault in &health.faults {
            if UNTOLD.contains(&fault.code) {
                continue;
            }
            let told = self.told.get(fault.code);
            let due = told.map_or(now, |told| *told + SAME_EVENT);
            if due <= now && self.next_event <= now {
                self.next_event = now + EVENTS;
                match self.write_event(fault).await {
                    Ok(()) => {
                        self.told.insert(fault.code, now);
                        self.lost_events.reset();
                    }
                    Err(failure) => {
                        debug!("failed to write an event: {failure}");
                        self.next_event += self.lost_events.next_delay();
                    }
                }
                return Some(self.next_event);
            }
            let due = due.max(self.next_event);
            next = Some(next.map_or(due, |next: Instant| next.min(due)));
        }
        next
    }

    async fn write_event(&self, fault: &NodeFault) -> Result<(), Failure> {
        // Without it there is nothing that the event could be about.
        let node = self.shared.node_name().await;
        let node = node.map_err(|error| Failure::Answer(error.to_string()))?;
        let now = rfc3339(SystemTime::now());
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": format!("{node}."), "namespace": "default"},
            // The kubelet gives the name as the node's UID, too, and `kubectl describe node` looks for that.
            "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
            "reason": camel_case(fault.code),
            "message": cut(&fault.text),
            "type": "Warning",
            "source": {"component": "selvage", "host": node},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        });
        let question = Question {
            method: Method::POST,
            path: "/api/v1/namespaces/default/events".to_owned(),
            content_type: "application/json",
            body: event.to_string(),
        };
        match self.shared.ask(&question).await {
            Ok(_) => Ok(()),
            // flannel's ClusterRole has no right to create events, so that is not worth a line in the log each time.
            Err(Failure::Refused { status: 403, text }) => {
                debug!("no event: {text}");
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }
}

/// What the condition should be; `None` to leave it as it is.
fn verdict(health: &Health, down_since: Option<Instant>, now: Instant) -> Option<Verdict> {
    let Some(since) = down_since else {
        // As flannel, which others may look for.
        return Some(Verdict {
            unavailable: false,
            reason: "FlannelIsUp".to_owned(),
            message: "Flannel is running on this node".to_owned(),
        });
    };
    if now < since + DOWN_AFTER {
        return None;
    }
    let fault = health.faults.first();
    Some(Verdict {
        unavailable: true,
        reason: fault.map_or_else(|| "FlannelIsDown".to_owned(), |it| camel_case(it.code)),
        message: fault.map_or_else(
            || "the overlay network is not up".to_owned(),
            |it| cut(&it.text),
        ),
    })
}

/// A code as the reason of a condition or event: `no-pod-cidr` becomes `NoPodCidr`.
fn camel_case(code: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    };
    code.split('-').map(word).collect()
}

fn cut(text: &str) -> String {
    text.chars()
        .scan(0, |length, letter| {
            *length += letter.len_utf8();
            (*length <= LONGEST_MESSAGE).then_some(letter)
        })
        .collect()
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(up: bool, code: &'static str) -> Health {
        let faults = vec![NodeFault {
            code,
            text: "words".to_owned(),
        }];
        Health { up, faults }
    }

    #[test]
    fn the_condition_is_flannels_or_names_the_fault() {
        let now = Instant::now();
        let up = verdict(&health(true, "docker-subnet"), None, now).unwrap();
        assert_eq!((up.unavailable, up.reason.as_str()), (false, "FlannelIsUp"));
        let down = health(false, "no-pod-cidr");
        assert_eq!(verdict(&down, Some(now), now), None);
        let later = now + DOWN_AFTER;
        let down = verdict(&down, Some(now), later).unwrap();
        assert_eq!(
            (down.unavailable, down.reason.as_str()),
            (true, "NoPodCidr")
        );
        assert_eq!(down.message, "words");
    }

    #[test]
    fn messages_and_reasons_are_what_the_api_server_takes() {
        assert_eq!(camel_case("store-login"), "StoreLogin");
        let long = "é".repeat(1000);
        let text = cut(&long);
        assert_eq!(text.len(), LONGEST_MESSAGE);
        assert_eq!(cut("short"), "short");
    }
}
