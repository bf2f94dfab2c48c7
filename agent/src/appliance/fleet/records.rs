//! What machines of a fleet write into etcd for each other: names of keys, and values in JSON.
//!
//! | key below `/selvage/fleet/GROUP/` | written by | value |
//! |---|---|---|
//! | `config` | an administrator | [`Config`] |
//! | `holders/ID` | the machine that holds the lock | [`Holder`] |
//! | `failed/VERSION/ID` | a machine on which that version failed | [`Failure`] |
//! | `nodes/ID` | each machine | [`Node`] |
//!
//! All of it is untrusted input. A key whose last part is no ID is none of ours and is skipped with a warning. One with an
//! unreadable value still says by its name what matters: that this machine holds the lock, or that the version failed
//! there.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::base::codes::codes;
use crate::base::words::harmless;
use crate::cluster::lease::etcd::PlainKey;

/// The most characters of a text from another machine that are kept.
const LONGEST_TEXT: usize = 200;

/// How many machines may hold the lock if nobody has said.
const HOLDERS: u32 = 1;

/// On how many machines a version may fail if nobody has said.
const BREAKER: u32 = 2;

/// The largest number for both.
pub const MOST: u32 = 10_000;

/// What an administrator has set for a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// How many machines may hold the lock at a time; 0 stops all updates of the group.
    pub holders: u32,
    /// A version that failed on so many machines is started nowhere any more.
    pub breaker: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            holders: HOLDERS,
            breaker: BREAKER,
        }
    }
}

impl Config {
    /// Reads what is stored. What cannot be read is as if it were not there: the defaults are the careful choice.
    pub(super) fn read(stored: Option<&PlainKey>) -> Self {
        let Some(stored) = stored else {
            return Self::default();
        };
        let config: Option<Self> = serde_json::from_str(&stored.value).ok();
        config
            .filter(|config| config.holders <= MOST && (1..=MOST).contains(&config.breaker))
            .unwrap_or_else(|| {
                warn!(
                    "{} holds {}: expected {{\"holders\":0 to {MOST},\"breaker\":1 to {MOST}}}; using the defaults",
                    stored.name,
                    foreign(&stored.value)
                );
                Self::default()
            })
    }
}

codes! {
    /// What a machine is doing; the texts are part of the records.
    pub enum NodeState {
        /// It runs a version that works, and is not about to change it.
        Steady = "steady",
        /// It has the lock and runs its drain hooks.
        Draining = "draining",
        /// It reboots.
        Rebooting = "rebooting",
        /// It runs a new version that has not passed its boot check.
        Trying = "trying",
    }
}

/// A machine that holds the lock.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Holder {
    /// The machine's host name.
    pub node: String,
    /// Its ID, as in its key.
    #[serde(default)]
    pub machine_id: String,
    /// The version that it updates to.
    pub version: String,
    /// What it is doing.
    pub state: NodeState,
    /// Since when it holds the lock, in seconds since the Unix epoch.
    pub since: u64,
}

/// A machine on which a version failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// The machine's host name.
    pub node: String,
    /// Its ID, as in its key.
    #[serde(default)]
    pub machine_id: String,
    /// Why, in a sentence.
    pub reason: String,
    /// When, in seconds since the Unix epoch.
    pub at: u64,
}

/// A machine, as it last told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    /// The machine's host name.
    pub node: String,
    /// Its ID, as in its key.
    #[serde(default)]
    pub machine_id: String,
    /// The version that it runs.
    pub version: String,
    /// The slot that this is in: `a` or `b`.
    pub slot: Option<String>,
    /// What it is doing.
    pub state: NodeState,
    /// When it told, in seconds since the Unix epoch.
    pub at: u64,
}

/// A value of a key that ends with a machine's ID.
pub(super) trait OfMachine: DeserializeOwned {
    /// Stands for a value that cannot be read.
    fn unreadable() -> Self;

    /// Makes the texts safe to print, and the ID that of the key.
    fn clean(&mut self, id: &str);
}

/// What is printed for a text that cannot be read.
const UNREADABLE: &str = "unreadable";

impl OfMachine for Holder {
    fn unreadable() -> Self {
        Self {
            node: UNREADABLE.to_owned(),
            machine_id: String::new(),
            version: UNREADABLE.to_owned(),
            state: NodeState::Unknown,
            since: 0,
        }
    }

    fn clean(&mut self, id: &str) {
        id.clone_into(&mut self.machine_id);
        self.node = foreign(&self.node);
        self.version = foreign(&self.version);
    }
}

impl OfMachine for Failure {
    fn unreadable() -> Self {
        Self {
            node: UNREADABLE.to_owned(),
            machine_id: String::new(),
            reason: UNREADABLE.to_owned(),
            at: 0,
        }
    }

    fn clean(&mut self, id: &str) {
        id.clone_into(&mut self.machine_id);
        self.node = foreign(&self.node);
        self.reason = foreign(&self.reason);
    }
}

impl OfMachine for Node {
    fn unreadable() -> Self {
        Self {
            node: UNREADABLE.to_owned(),
            machine_id: String::new(),
            version: UNREADABLE.to_owned(),
            slot: None,
            state: NodeState::Unknown,
            at: 0,
        }
    }

    fn clean(&mut self, id: &str) {
        id.clone_into(&mut self.machine_id);
        self.node = foreign(&self.node);
        self.version = foreign(&self.version);
        self.slot = self.slot.as_deref().map(foreign);
    }
}

/// The values of the keys of a folder that end with a machine's ID, one for each machine, in the order of the IDs.
pub(super) fn of_machines<T: OfMachine>(folder: &str, keys: &[PlainKey]) -> Vec<(T, i64)> {
    let mut found = Vec::new();
    for key in keys {
        let id = key.name.strip_prefix(folder).unwrap_or_default();
        if !is_id(id) {
            warn!(
                "{} is skipped: its last part is no machine ID",
                foreign(&key.name)
            );
            continue;
        }
        let mut value = serde_json::from_str::<T>(&key.value).unwrap_or_else(|error| {
            let error = foreign(&error.to_string());
            warn!(
                "the value of {} cannot be read ({error}): {}",
                key.name,
                foreign(&key.value)
            );
            T::unreadable()
        });
        value.clean(id);
        found.push((value, key.modified));
    }
    found
}

/// Whether a text may be the ID of a machine: what agents make, and what an administrator may set.
pub(super) fn is_id(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=64).contains(&text.len()) && text.bytes().all(good)
}

/// Whether a text may be the version of an image.
pub(super) fn is_version(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'~' | b'-');
    (1..=64).contains(&text.len()) && text.bytes().all(good)
}

/// Text from elsewhere, shortened and safe for a terminal.
pub(super) fn foreign(text: &str) -> String {
    let text: String = text.chars().take(LONGEST_TEXT).collect();
    harmless(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(name: &str, value: &str) -> PlainKey {
        PlainKey {
            name: name.to_owned(),
            value: value.to_owned(),
            modified: 1,
        }
    }

    #[test]
    fn a_config_is_read_and_a_bad_one_counts_as_none() {
        let read = |text: &str| Config::read(Some(&key("config", text)));
        let config = |holders, breaker| Config { holders, breaker };
        assert_eq!(Config::read(None), config(1, 2));
        for (text, expected) in [
            (r#"{"holders":3,"breaker":5}"#, config(3, 5)),
            (r#"{"holders":3}"#, config(3, 2)),
            (r#"{"holders":0,"breaker":1}"#, config(0, 1)),
            (r#"{"holders":2,"later":"field"}"#, config(2, 2)),
            (r#"{"holders":-1}"#, config(1, 2)),
            (r#"{"holders":4294967296}"#, config(1, 2)),
            (r#"{"holders":10001}"#, config(1, 2)),
            (r#"{"breaker":0}"#, config(1, 2)),
            (r#"{"holders":"3"}"#, config(1, 2)),
            ("[]", config(1, 2)),
            ("", config(1, 2)),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn a_holder_with_a_bad_value_holds_and_a_bad_name_does_not() {
        let good = r#"{"node":"node1","machine_id":"other","version":"1.1","state":"rebooting","since":17,"new":[]}"#;
        let keys = [
            key("f/a", good),
            key("f/b", "\u{1b}[2J"),
            key(
                "f/c",
                r#"{"node":"n\u001b[31m\u202e","version":"1","state":"dancing","since":1}"#,
            ),
            key("f/", good),
            key("f/a/b", good),
            key("f/\u{fffd}", good),
            key(&format!("f/{}", "x".repeat(65)), good),
        ];
        let found: Vec<(Holder, i64)> = of_machines("f/", &keys);
        let ids: Vec<&str> = found
            .iter()
            .map(|(holder, _)| holder.machine_id.as_str())
            .collect();
        assert_eq!(ids, ["a", "b", "c"], "the key says whose it is");
        let [a, b, c] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(
            (a.0.node.as_str(), a.0.state, a.0.since),
            ("node1", NodeState::Rebooting, 17)
        );
        assert_eq!(
            (b.0.node.as_str(), b.0.state),
            ("unreadable", NodeState::Unknown)
        );
        assert_eq!(c.0.state, NodeState::Unknown);
        assert!(
            !c.0.node.contains('\u{1b}') && !c.0.node.contains('\u{202e}'),
            "{:?}",
            c.0.node
        );
    }

    #[test]
    fn states_of_later_versions_are_unknown_and_ours_are_named() {
        for state in NodeState::ALL {
            let text = serde_json::to_string(state).unwrap();
            assert_eq!(text, format!("\"{state}\""));
            assert_eq!(serde_json::from_str::<NodeState>(&text).unwrap(), *state);
        }
    }

    /// Whatever bytes etcd holds, as they come from it.
    fn lossy(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_bad(
            name in proptest::collection::vec(any::<u8>(), 0..80),
            value in proptest::collection::vec(any::<u8>(), 0..300),
            number in any::<i128>(),
        ) {
            let numbers = format!(
                r#"{{"node":"n","version":"1","state":"steady","reason":"r","since":{number},"at":{number},"holders":{number}}}"#
            );
            for value in [lossy(&value), numbers, "[".repeat(100_000)] {
                let keys = [key(&format!("f/{}", lossy(&name)), &value), key("f/id", &value)];
                let holders: Vec<(Holder, i64)> = of_machines("f/", &keys);
                prop_assert_eq!(&holders.last().unwrap().0.machine_id, "id");
                let failures: Vec<(Failure, i64)> = of_machines("f/", &keys);
                let nodes: Vec<(Node, i64)> = of_machines("f/", &keys);
                prop_assert_eq!(failures.len(), nodes.len());
                let config = Config::read(Some(&keys[1]));
                prop_assert!(config.holders <= MOST && (1..=MOST).contains(&config.breaker));
            }
        }

        #[test]
        fn no_value_and_no_name_is_too_bad(name in ".{0,80}", value in ".{0,200}") {
            let keys = [key(&format!("f/{name}"), &value)];
            let holders: Vec<(Holder, i64)> = of_machines("f/", &keys);
            prop_assert_eq!(holders.len(), usize::from(is_id(&name)));
            let _: Vec<(Failure, i64)> = of_machines("f/", &keys);
            let _: Vec<(Node, i64)> = of_machines("f/", &keys);
            let _ = Config::read(Some(&keys[0]));
        }
    }
}
