//! What the fleet wrote into etcd, read as who had the lock and what each machine did. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use selvage::appliance::fleet::records::{Holder, Node};

/// The folders of the group that machines are in unless they are told.
const HOLDERS: &str = "/selvage/fleet/default/holders/";
const NODES: &str = "/selvage/fleet/default/nodes/";
const FAILED: &str = "/selvage/fleet/default/failed/";

/// Seconds since the Unix epoch.
pub(crate) fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

/// One change of a key.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Change {
    /// When it was seen, in seconds since the Unix epoch.
    pub at: f64,
    /// The key.
    pub key: String,
    /// Its new value; none: it was deleted.
    pub value: Option<String>,
}

/// A machine had the lock.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hold {
    /// Its name.
    pub node: String,
    /// From when on.
    pub from: f64,
    /// Until when; none: it still has it.
    pub until: Option<f64>,
}

impl Hold {
    /// Whether the machine had the lock at a time, or within `margin` seconds of it.
    pub(crate) fn covers(&self, at: f64, margin: f64) -> bool {
        at >= self.from - margin && self.until.is_none_or(|until| at <= until + margin)
    }
}

/// A machine told what it does.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Told {
    /// When.
    pub at: f64,
    /// What.
    pub node: Node,
}

/// Who had the lock, in the order in which they took it.
pub(crate) fn holds(changes: &[Change]) -> Vec<Hold> {
    let mut holds: Vec<(&str, Hold)> = Vec::new();
    for change in changes {
        let Some(id) = change.key.strip_prefix(HOLDERS) else {
            continue;
        };
        let open = holds
            .iter_mut()
            .find(|(holder, hold)| *holder == id && hold.until.is_none());
        match (&change.value, open) {
            (None, Some((_, hold))) => hold.until = Some(change.at),
            (Some(value), None) => {
                let holder = serde_json::from_str::<Holder>(value);
                let node = holder.map_or_else(|_| id.to_owned(), |holder| holder.node);
                let hold = Hold {
                    node,
                    from: change.at,
                    until: None,
                };
                holds.push((id, hold));
            }
            _ => {}
        }
    }
    holds.into_iter().map(|(_, hold)| hold).collect()
}

/// How many machines had the lock at a time, at the most. Counts keys, whatever their values and times are.
pub(crate) fn most_holders(changes: &[Change]) -> usize {
    let mut holders = std::collections::BTreeSet::new();
    let mut most = 0;
    for change in changes {
        let Some(id) = change.key.strip_prefix(HOLDERS) else {
            continue;
        };
        match change.value {
            Some(_) => holders.insert(id),
            None => holders.remove(id),
        };
        most = most.max(holders.len());
    }
    most
}

/// What the machine of this name told, in order.
pub(crate) fn told(changes: &[Change], name: &str) -> Vec<Told> {
    changes
        .iter()
        .filter(|change| change.key.starts_with(NODES))
        .filter_map(|change| {
            let node: Node = serde_json::from_str(change.value.as_deref()?).ok()?;
            let at = change.at;
            (node.node == name).then_some(Told { at, node })
        })
        .collect()
}

/// The holder's last word, if a machine of this name has the lock.
pub(crate) fn holder(changes: &[Change], name: &str) -> Option<Holder> {
    let mut held: Option<(&str, Holder)> = None;
    for change in changes {
        let Some(id) = change.key.strip_prefix(HOLDERS) else {
            continue;
        };
        match &change.value {
            None => drop(held.take_if(|(holder, _)| *holder == id)),
            Some(value) => {
                let holder = serde_json::from_str::<Holder>(value).ok();
                if let Some(holder) = holder.filter(|holder| holder.node == name) {
                    held = Some((id, holder));
                }
            }
        }
    }
    held.map(|(_, holder)| holder)
}

/// How many machines have told that a version failed there.
pub(crate) fn failures(changes: &[Change], version: &str) -> usize {
    let folder = format!("{FAILED}{version}/");
    let mut failed = std::collections::BTreeSet::new();
    for change in changes
        .iter()
        .filter(|change| change.key.starts_with(&folder))
    {
        match change.value {
            Some(_) => failed.insert(&change.key),
            None => failed.remove(&change.key),
        };
    }
    failed.len()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn put(at: f64, key: &str, value: &str) -> Change {
        Change {
            at,
            key: format!("/selvage/fleet/default/{key}"),
            value: Some(value.to_owned()),
        }
    }

    pub(crate) fn delete(at: f64, key: &str) -> Change {
        Change {
            value: None,
            ..put(at, key, "")
        }
    }

    /// As machines write it.
    pub(crate) fn hold(at: f64, name: &str, state: &str) -> Change {
        let value = format!(
            r#"{{"node":"{name}","machine_id":"id-{name}","version":"2","state":"{state}","since":1}}"#
        );
        put(at, &format!("holders/id-{name}"), &value)
    }

    /// As machines write it.
    pub(crate) fn tell(at: f64, name: &str, version: &str, slot: &str, state: &str) -> Change {
        let value = format!(
            r#"{{"node":"{name}","machine_id":"id-{name}","version":"{version}","slot":"{slot}","state":"{state}","at":1}}"#
        );
        put(at, &format!("nodes/id-{name}"), &value)
    }

    #[test]
    fn turns_are_found_with_their_ends() {
        let changes = [
            hold(1.0, "a", "draining"),
            hold(2.0, "a", "rebooting"),
            tell(2.5, "b", "1", "a", "steady"),
            delete(3.0, "holders/id-a"),
            hold(3.5, "b", "draining"),
            hold(3.6, "b", "rebooting"),
            delete(4.0, "holders/id-a"),
        ];
        let found: Vec<_> = holds(&changes)
            .into_iter()
            .map(|hold| (hold.node, hold.from, hold.until))
            .collect();
        let expected = [
            ("a".to_owned(), 1.0, Some(3.0)),
            ("b".to_owned(), 3.5, None),
        ];
        assert_eq!(found, expected);
        assert_eq!(most_holders(&changes), 1);
        assert_eq!(holder(&changes, "b").unwrap().state.as_str(), "rebooting");
        assert!(holder(&changes[..4], "a").is_none());
        assert!(holder(&changes[..2], "b").is_none());
        assert_eq!(told(&changes, "b").len(), 1);
    }

    #[test]
    fn a_lock_that_was_held_twice_is_seen_whatever_the_values_say() {
        let twice = [
            hold(1.0, "a", "draining"),
            put(1.0, "holders/id-b", "not JSON"),
            delete(1.0, "holders/id-a"),
        ];
        assert_eq!(most_holders(&twice), 2);
        assert_eq!(holds(&twice)[1].node, "id-b");
        assert_eq!(most_holders(&[]), 0);
    }

    #[test]
    fn failures_count_until_they_are_reset() {
        let changes = [
            put(1.0, "failed/2/id-a", "{}"),
            put(1.0, "failed/2/id-b", "{}"),
            put(1.0, "failed/2/id-b", "{}"),
            put(1.0, "failed/2.1/id-b", "{}"),
            delete(2.0, "failed/2/id-a"),
        ];
        assert_eq!(failures(&changes[..4], "2"), 2);
        assert_eq!(failures(&changes, "2"), 1);
    }
}
