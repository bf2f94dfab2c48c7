//! The leases of the cluster's nodes, each once per subnet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tracing::{info, warn};

use super::node::{Annotations, Node, Reading};
use crate::cluster::lease::{Lease, SubnetKey};
use crate::cluster::network_config::Families;

/// What is known of all other nodes. For each some 300 bytes: the rest of the object, some 15 KB of JSON, is dropped
/// as it is read.
#[derive(Clone, Debug, Default)]
pub(super) struct Nodes {
    /// By the node's name.
    leases: BTreeMap<Arc<str>, Lease>,
    /// The same by subnet, when the node was created, and name: the first of a subnet has it.
    by_subnet: BTreeSet<(SubnetKey, u64, Arc<str>)>,
    /// Nodes whose annotations make no sense, and why.
    unreadable: BTreeMap<String, (SubnetKey, String)>,
}

/// Changed leases; `None` for those that are gone.
pub(super) type Changes = BTreeMap<SubnetKey, Option<Lease>>;

impl Nodes {
    /// Takes what a node says now; returns what that changes. Nonsense leaves the last good lease in use for as long
    /// as the node has its subnet.
    pub(super) fn set(
        &mut self,
        node: &Node,
        annotations: &Annotations,
        families: Families,
    ) -> Changes {
        let name = node.metadata.name.as_str();
        match annotations.read(node, families) {
            Reading::Nothing => self.replace(name, None, None),
            Reading::Lease(key, attrs) => {
                let lease = Lease {
                    key,
                    attrs: *attrs,
                    created: node.created(),
                };
                if self.unreadable.contains_key(name) {
                    info!(node = name, "the node's annotations can be used again");
                }
                self.replace(name, Some(lease), None)
            }
            Reading::Unreadable(key, reason) => {
                let is_last_good =
                    |lease: &&Lease| lease.key == key && lease.created == node.created();
                let last_good = self.leases.get(name).filter(is_last_good).cloned();
                self.warn(name, &reason);
                self.replace(name, last_good, Some((key, reason)))
            }
        }
    }

    /// A node is gone.
    pub(super) fn remove(&mut self, name: &str) -> Changes {
        self.replace(name, None, None)
    }

    /// All nodes but these are gone.
    pub(super) fn keep_only(&mut self, names: &BTreeSet<String>) {
        self.leases.retain(|name, _| names.contains(&**name));
        self.by_subnet
            .retain(|(_, _, name)| names.contains(&**name));
        self.unreadable.retain(|name, _| names.contains(name));
    }

    /// All leases, and the subnets of the nodes whose annotations make no sense.
    pub(super) fn all(&self) -> (Vec<Lease>, Vec<SubnetKey>) {
        let mut last = None;
        let firsts = self.by_subnet.iter().filter(|(key, _, _)| {
            let is_first = last != Some(*key);
            last = Some(*key);
            is_first
        });
        let leases = firsts.filter_map(|(_, _, name)| self.leases.get(name));
        let unreadable = self.unreadable.values().map(|(key, _)| *key);
        let unreadable = unreadable.filter(|key| self.holder(key).is_none());
        (leases.cloned().collect(), unreadable.collect())
    }

    /// Logs a node's nonsense, unless that is known.
    fn warn(&self, name: &str, reason: &str) {
        let known = self.unreadable.get(name);
        if known.is_none_or(|(_, known)| known != reason) {
            warn!(
                node = name,
                "the node's annotations cannot be used: {reason}; what it published before stays in use"
            );
        }
    }

    fn replace(
        &mut self,
        name: &str,
        lease: Option<Lease>,
        nonsense: Option<(SubnetKey, String)>,
    ) -> Changes {
        let nonsense_of = nonsense.as_ref().map(|(key, _)| *key);
        let old_nonsense = match nonsense {
            Some(nonsense) => self.unreadable.insert(name.to_owned(), nonsense),
            None => self.unreadable.remove(name),
        };
        let old = self.put(name, lease.clone());
        let mut keys = BTreeSet::new();
        if old != lease {
            keys.extend(old.iter().chain(&lease).map(|lease| lease.key));
        }
        // What was in use before this table knew the node stayed so while its annotations made no sense.
        keys.extend(
            old_nonsense
                .map(|(key, _)| key)
                .filter(|key| old.is_none() && nonsense_of != Some(*key)),
        );
        let holder = |key| (key, self.holder(&key).cloned());
        keys.into_iter().map(holder).collect()
    }

    /// Replaces a node's lease in both tables; returns the old one.
    fn put(&mut self, name: &str, lease: Option<Lease>) -> Option<Lease> {
        let known = self.leases.get_key_value(name);
        let name = known.map_or_else(|| name.into(), |(name, _)| Arc::clone(name));
        let old = self.leases.remove(&name);
        if let Some(old) = &old {
            self.by_subnet
                .remove(&(old.key, old.created, Arc::clone(&name)));
        }
        if let Some(lease) = lease {
            self.by_subnet
                .insert((lease.key, lease.created, Arc::clone(&name)));
            self.leases.insert(name, lease);
        }
        old
    }

    /// The lease of a subnet: of several nodes with one podCIDR, which is a fault of the cluster, the oldest has it,
    /// and of several that are of one second the first by name.
    fn holder(&self, key: &SubnetKey) -> Option<&Lease> {
        let mut from = self.by_subnet.range((*key, 0, Arc::from(""))..);
        let (found, _, name) = from.next()?;
        (found == key).then(|| self.leases.get(name)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::cluster::network_config::NetworkConfig;

    fn node(name: &str, cidr: &str, second: u8, public: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": {
                "name": name,
                "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
                "annotations": {
                    "x.org/kube-subnet-manager": "true",
                    "x.org/backend-type": "host-gw",
                    "x.org/backend-data": "null",
                    "x.org/public-ip": public,
                },
            },
            "spec": {"podCIDR": cidr},
        }))
        .unwrap()
    }

    struct Table(Nodes);

    impl Table {
        /// The owners of the changed subnets.
        fn set(&mut self, node: &Node) -> Vec<(String, Option<String>)> {
            let families = NetworkConfig::parse(r#"{"Network":"10.244.0.0/16"}"#);
            let families = families.unwrap().families();
            owners(self.0.set(node, &Annotations::new("x.org/"), families))
        }
    }

    fn owners(changes: Changes) -> Vec<(String, Option<String>)> {
        let owner = |lease: Lease| lease.attrs.owner;
        (changes.into_iter())
            .map(|(key, lease)| (key.to_string(), lease.and_then(owner)))
            .collect()
    }

    fn change(cidr: &str, owner: Option<&str>) -> (String, Option<String>) {
        (cidr.to_owned(), owner.map(str::to_owned))
    }

    const ONE: &str = "10.244.1.0/24";
    const TWO: &str = "10.244.2.0/24";

    #[test]
    fn only_what_changed_is_reported() {
        let mut table = Table(Nodes::default());
        let first = node("a", ONE, 1, "10.0.0.1");
        assert_eq!(table.set(&first), [change(ONE, Some("a"))]);
        assert_eq!(table.set(&first), []);
        assert_eq!(
            table.set(&node("a", ONE, 1, "10.0.0.9")),
            [change(ONE, Some("a"))]
        );
        // Deleted and created again with another podCIDR while nobody watched.
        assert_eq!(
            table.set(&node("a", TWO, 7, "10.0.0.9")),
            [change(ONE, None), change(TWO, Some("a"))]
        );
        // The annotation is gone, the node is not.
        let mut left = node("a", TWO, 7, "10.0.0.9");
        left.metadata.annotations = None;
        assert_eq!(table.set(&left), [change(TWO, None)]);
        assert_eq!(owners(table.0.remove("a")), []);
    }

    #[test]
    fn of_two_nodes_with_one_subnet_the_older_has_it() {
        let mut table = Table(Nodes::default());
        table.set(&node("young", ONE, 5, "10.0.0.1"));
        assert_eq!(
            table.set(&node("old", ONE, 1, "10.0.0.2")),
            [change(ONE, Some("old"))]
        );
        let (leases, _) = table.0.all();
        assert_eq!(leases.len(), 1);
        assert_eq!(leases[0].attrs.owner.as_deref(), Some("old"));
        assert_eq!(owners(table.0.remove("old")), [change(ONE, Some("young"))]);
    }

    #[test]
    fn nonsense_leaves_the_last_good_lease_and_all_others_alone() {
        let mut table = Table(Nodes::default());
        table.set(&node("a", ONE, 1, "10.0.0.1"));
        table.set(&node("b", TWO, 1, "10.0.0.2"));
        assert_eq!(table.set(&node("a", ONE, 1, "nonsense")), []);
        let (leases, unreadable) = table.0.all();
        assert_eq!((leases.len(), unreadable.len()), (2, 0));
        // Nobody knows a good lease of one that was always nonsense.
        assert_eq!(table.set(&node("c", "10.244.3.0/24", 1, "")), []);
        let (leases, unreadable) = table.0.all();
        assert_eq!((leases.len(), unreadable.len()), (2, 1));
        // It may be in use since before this table, so its end is told.
        assert_eq!(owners(table.0.remove("c")), [change("10.244.3.0/24", None)]);
        // The one that is made of nonsense after it was created again has none either.
        assert_eq!(table.set(&node("b", TWO, 9, "")), [change(TWO, None)]);
        assert_eq!(
            table.set(&node("a", ONE, 1, "10.0.0.3")),
            [change(ONE, Some("a"))]
        );
    }

    #[test]
    fn who_is_not_in_a_list_is_forgotten_nonsense_and_all() {
        let mut table = Table(Nodes::default());
        table.set(&node("a", ONE, 1, "10.0.0.1"));
        table.set(&node("a", ONE, 1, "nonsense"));
        table.set(&node("b", TWO, 1, "nonsense"));
        table.0.keep_only(&BTreeSet::from(["a".to_owned()]));
        let (leases, unreadable) = table.0.all();
        assert_eq!((leases.len(), unreadable.len()), (1, 0));
        table.0.keep_only(&BTreeSet::new());
        assert_eq!(table.0.all(), (Vec::new(), Vec::new()));
    }

    /// What the tables must say, by looking at every lease.
    fn by_scan(nodes: &Nodes) -> BTreeMap<SubnetKey, &Lease> {
        let mut holders: BTreeMap<SubnetKey, &Lease> = BTreeMap::new();
        for lease in nodes.leases.values() {
            let holder = holders.entry(lease.key).or_insert(lease);
            if lease.created < holder.created {
                *holder = lease;
            }
        }
        holders
    }

    /// A step of a history: which node, its podCIDR, when it was created, and what it says; or that it is gone, or that
    /// only nodes up to it are left.
    #[derive(Clone, Debug)]
    enum Step {
        Says(u8, u8, u8, &'static str),
        Gone(u8),
        OnlyUpTo(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let says = prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "nonsense", ""]);
        let step = prop_oneof![
            8 => (0..6u8, 0..4u8, 0..3u8, says)
                .prop_map(|(node, subnet, second, says)| Step::Says(node, subnet, second, says)),
            2 => (0..6u8).prop_map(Step::Gone),
            1 => (0..6u8).prop_map(Step::OnlyUpTo),
        ];
        prop::collection::vec(step, 1..40)
    }

    proptest! {
        /// Whatever happens, the tables say the same as a scan, and each change is told: who adds them up has the same.
        #[test]
        fn tables_agree_with_a_scan(steps in steps()) {
            let mut table = Table(Nodes::default());
            let mut told: BTreeMap<String, Option<String>> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Says(name, subnet, second, says) => {
                        let cidr = format!("10.244.{subnet}.0/24");
                        let node = node(&format!("n{name}"), &cidr, second, says);
                        told.extend(table.set(&node));
                    }
                    Step::Gone(name) => told.extend(owners(table.0.remove(&format!("n{name}")))),
                    Step::OnlyUpTo(last) => {
                        table.0.keep_only(&(0..=last).map(|name| format!("n{name}")).collect());
                        // After a list, all leases are told anew.
                        told = table.0.all().0.into_iter()
                            .map(|lease| (lease.key.to_string(), lease.attrs.owner))
                            .collect();
                    }
                }
                let nodes = &table.0;
                let scan = by_scan(nodes);
                let (all, unreadable) = nodes.all();
                prop_assert_eq!(&all, &scan.values().map(|lease| (*lease).clone()).collect::<Vec<_>>());
                let expected = nodes.unreadable.values().map(|(key, _)| *key);
                let expected: Vec<_> = expected.filter(|key| !scan.contains_key(key)).collect();
                prop_assert_eq!(unreadable, expected);
                for (key, lease) in &scan {
                    prop_assert_eq!(nodes.holder(key), Some(*lease));
                }
                let index: BTreeSet<_> = nodes.leases.iter()
                    .map(|(name, lease)| (lease.key, lease.created, Arc::clone(name)))
                    .collect();
                prop_assert_eq!(&nodes.by_subnet, &index, "nothing is left of who is gone");
                told.retain(|_, owner| owner.is_some());
                let told: Vec<_> = told.iter().map(|(key, owner)| (key.clone(), owner.clone())).collect();
                let mut current: Vec<_> = all.into_iter()
                    .map(|lease| (lease.key.to_string(), lease.attrs.owner))
                    .collect();
                current.sort();
                prop_assert_eq!(told, current);
            }
        }
    }
}
