//! What a diagnosis asks a cluster: its nodes, and the rights that the agent has there. Nothing is written: a
//! SelfSubjectAccessReview is a question, though it is sent by POST.

use std::str::FromStr;

use hyper::Method;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::json;

use super::KubeStore;
use super::client::{Failure, Question};
use super::node::{Annotations, MOST_PAGES, Node, NodeList};
use crate::cluster::lease::StoreError;

/// A node as the cluster has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeenNode {
    /// Its name.
    pub name: String,
    /// Its podCIDRs; one that cannot be read is left out.
    pub cidrs: Vec<IpNet>,
    /// Whether it has flannel's annotation, which makes it a peer.
    pub takes_part: bool,
    /// The reason of its condition `NetworkUnavailable`, if that is `True`.
    pub unavailable: Option<String>,
}

/// Something that a role allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Right {
    /// The resource, such as `nodes/status`.
    pub resource: &'static str,
    /// The verb, such as `patch`.
    pub verb: &'static str,
    /// The namespace, of what is in one.
    namespace: Option<&'static str>,
}

impl Right {
    const fn new(resource: &'static str, verb: &'static str) -> Self {
        Self {
            resource,
            verb,
            namespace: None,
        }
    }
}

/// What the agent does in a cluster; the last right is the only one that it can do without.
const RIGHTS: [Right; 5] = [
    Right::new("nodes", "get"),
    Right::new("nodes", "list"),
    Right::new("nodes", "watch"),
    Right::new("nodes/status", "patch"),
    Right {
        resource: "events",
        verb: "create",
        namespace: Some("default"),
    },
];

impl KubeStore {
    /// This host's node.
    ///
    /// # Errors
    /// It, or the pod that this is, cannot be read.
    pub async fn seen_node(&self) -> Result<SeenNode, StoreError> {
        let node = self.shared.node().await?;
        Ok(node.seen(&self.shared.annotations))
    }

    /// All nodes of the cluster, in the order of their names.
    ///
    /// # Errors
    /// They cannot be listed.
    pub async fn seen_nodes(&self) -> Result<Vec<SeenNode>, StoreError> {
        let mut nodes = Vec::new();
        let mut next = String::new();
        for _ in 0..MOST_PAGES {
            let answer = self.shared.ask(&Question::get(NodeList::path(&next))).await;
            let page = answer.and_then(|answer| NodeList::parse(&answer).map_err(Failure::Answer));
            let page = page.map_err(|failure| self.shared.client.error(failure))?;
            let seen = |node: &Node| node.seen(&self.shared.annotations);
            nodes.extend(page.items.iter().map(seen));
            next = page.metadata.next;
            if next.is_empty() {
                return Ok(nodes);
            }
        }
        let text = format!("the list of nodes has more than {MOST_PAGES} pages");
        Err(self.shared.client.error(Failure::Answer(text)))
    }

    /// Which of the rights that the agent needs it has not.
    ///
    /// # Errors
    /// The server does not say.
    pub async fn missing_rights(&self) -> Result<Vec<Right>, StoreError> {
        #[derive(Deserialize)]
        struct Review {
            status: Verdict,
        }
        #[derive(Deserialize)]
        struct Verdict {
            allowed: bool,
        }
        let mut missing = Vec::new();
        for right in RIGHTS {
            let (resource, subresource) = right
                .resource
                .split_once('/')
                .unwrap_or((right.resource, ""));
            let review = json!({
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": {
                    "verb": right.verb, "resource": resource, "subresource": subresource,
                    "namespace": right.namespace.unwrap_or_default(),
                }},
            });
            let question = Question {
                method: Method::POST,
                path: "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews".to_owned(),
                content_type: "application/json",
                body: review.to_string(),
            };
            let answer = self.shared.ask(&question).await;
            let answer = answer.map_err(|failure| self.shared.client.error(failure))?;
            let review: Review = self.shared.parse(&answer)?;
            if !review.status.allowed {
                missing.push(right);
            }
        }
        Ok(missing)
    }
}

impl Node {
    fn seen(&self, annotations: &Annotations) -> SeenNode {
        let unavailable = self.status.conditions.iter();
        let mut unavailable =
            unavailable.filter(|is| is.kind == "NetworkUnavailable" && is.status == "True");
        let cidrs = self.pod_cidrs().iter();
        SeenNode {
            name: self.metadata.name.clone(),
            cidrs: cidrs
                .filter_map(|cidr| IpNet::from_str(cidr).ok())
                .collect(),
            takes_part: annotations.takes_part(self),
            unavailable: unavailable.next().map(|is| is.reason.clone()),
        }
    }
}
