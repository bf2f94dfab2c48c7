//! What the store makes of others' words, without a server: for whoever feeds it anything, such as `agent/fuzz`.

use super::event::Event;
use super::kubeconfig;
use super::node::{Annotations, NodeList};
use super::nodes::Nodes;
use crate::cluster::lease::{Lease, SubnetKey};
use crate::cluster::network_config::{Families, NetworkConfig};

/// The nodes of a cluster, as an API server tells of them.
#[derive(Debug)]
pub struct Told {
    nodes: Nodes,
    annotations: Annotations,
    families: Families,
}

impl Told {
    /// No nodes yet, in a network with these families.
    pub fn new(config: &NetworkConfig) -> Self {
        Self {
            nodes: Nodes::default(),
            annotations: Annotations::new("flannel.alpha.coreos.com/"),
            families: config.families(),
        }
    }

    /// Takes in a page of a list.
    ///
    /// # Errors
    /// It is none: nothing was taken in.
    pub fn page(&mut self, body: &[u8]) -> Result<(), String> {
        let next = NodeList::token_after(body);
        let page = NodeList::parse(body)?;
        debug_assert!(next.is_empty() || next == page.metadata.next, "{next}");
        for node in &page.items {
            self.nodes.set(node, &self.annotations, self.families);
        }
        Ok(())
    }

    /// Takes in a line of a watch.
    ///
    /// # Errors
    /// It is no event: nothing was taken in.
    pub fn event(&mut self, line: &[u8]) -> Result<(), String> {
        match Event::read(line)? {
            Event::Set(node) => drop(self.nodes.set(&node, &self.annotations, self.families)),
            Event::Deleted(node) => drop(self.nodes.remove(&node.metadata.name)),
            Event::Bookmark(_) | Event::Error(_) | Event::Other => {}
        }
        Ok(())
    }

    /// All leases, and the subnets of nodes whose annotations make no sense.
    pub fn all(&self) -> (Vec<Lease>, Vec<SubnetKey>) {
        self.nodes.all()
    }
}

/// Whether a kubeconfig names a cluster and a user that the agent can use, as far as its text alone shows.
///
/// # Errors
/// It does not; the error says why.
pub fn check_kubeconfig(text: &str) -> Result<(), String> {
    kubeconfig::current(text).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the fuzzer begins with is what it looks like.
    #[test]
    fn the_corpus_is_read() {
        let list = include_str!("../../../../fuzz/corpus/kubernetes/list");
        let watch = include_str!("../../../../fuzz/corpus/kubernetes/watch");
        let told = |text: &str| {
            let mut lines = text.lines();
            let config = NetworkConfig::parse(lines.next().unwrap()).unwrap();
            (
                Told::new(&config),
                lines.map(str::to_owned).collect::<Vec<_>>(),
            )
        };
        let (mut first, lines) = told(list);
        first.page(lines[0].as_bytes()).unwrap();
        assert_eq!(first.all().0[0].key.to_string(), "10.244.1.0/24");
        let (mut second, lines) = told(watch);
        let mut known = Vec::new();
        for line in &lines[1..] {
            second.event(line.as_bytes()).unwrap();
            let (leases, unreadable) = second.all();
            known.push((leases.len(), unreadable.len()));
        }
        assert_eq!(known, [(1, 0), (0, 1), (0, 1), (0, 0), (0, 0)]);
        check_kubeconfig(include_str!("../../../../fuzz/corpus/kubeconfig/kubeadm")).unwrap();
        let refused = check_kubeconfig(include_str!("../../../../fuzz/corpus/kubeconfig/json"));
        assert!(refused.unwrap_err().starts_with("exec is not supported"));
    }
}
