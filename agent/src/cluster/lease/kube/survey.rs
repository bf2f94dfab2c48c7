//! What a diagnosis and a move ask a cluster: its nodes, other objects, and the rights that the agent has there. Nothing is
//! written: a SelfSubjectAccessReview is a question, though it is sent by POST.

use std::str::FromStr;

use hyper::Method;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::KubeStore;
use super::access::{Access, Surroundings};
use super::client::{Question, Session};
use super::node::{Annotations, MOST_PAGES, Node, NodeList, page_of};
use crate::cluster::lease::StoreError;
use crate::settings::Kubernetes;

/// A node as the cluster has it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SeenNode {
    /// Its name.
    pub name: String,
    /// Its podCIDRs; one that cannot be read is left out.
    pub cidrs: Vec<IpNet>,
    /// Whether it has flannel's annotation, which makes it a peer.
    pub takes_part: bool,
    /// The backend that it publishes; empty for udp and alloc, and where it publishes none.
    pub backend: String,
    /// The reason of its condition `NetworkUnavailable`, if that is `True`.
    pub unavailable: Option<String>,
    /// What its kubelet says of it.
    pub facts: NodeFacts,
}

/// A node's `status.nodeInfo`; what is missing is empty.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeFacts {
    /// `linux` or `windows`.
    #[serde(rename(deserialize = "operatingSystem"))]
    pub os: String,
    /// `amd64`, `arm64`, …
    #[serde(rename(deserialize = "architecture"))]
    pub arch: String,
    /// The kernel's version.
    #[serde(rename(deserialize = "kernelVersion"))]
    pub kernel: String,
    /// The kubelet's version.
    #[serde(rename(deserialize = "kubeletVersion"))]
    pub kubelet: String,
    /// The container runtime with its version: `containerd://2.0.5`.
    #[serde(rename(deserialize = "containerRuntimeVersion"))]
    pub runtime: String,
}

/// The part of a list's page that [`NodeList`] leaves out.
#[derive(Deserialize)]
struct FactsList {
    items: Vec<WithFacts>,
}

#[derive(Deserialize)]
struct WithFacts {
    #[serde(default)]
    status: WithInfo,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WithInfo {
    #[serde(default)]
    node_info: NodeFacts,
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

/// The objects in one page of a list, other than nodes.
const PAGE: usize = 100;

/// Asks a cluster, without being one of its nodes.
#[derive(Debug)]
pub struct Survey {
    session: Session,
    annotations: Annotations,
}

impl Survey {
    /// Connects to nothing yet.
    pub fn new(settings: &Kubernetes, surroundings: Surroundings) -> Self {
        Self {
            session: Session::new(Access::new(settings, surroundings)),
            annotations: Annotations::new(&settings.annotation_prefix),
        }
    }

    /// What the names of annotations begin with: `flannel.alpha.coreos.com/`.
    pub fn annotation_prefix(&self) -> &str {
        self.annotations.prefix()
    }

    /// All nodes of the cluster, in the order of their names.
    ///
    /// # Errors
    /// They cannot be listed.
    pub async fn nodes(&self) -> Result<Vec<SeenNode>, StoreError> {
        let mut nodes = Vec::new();
        let mut next = String::new();
        for _ in 0..MOST_PAGES {
            let answer = self.session.get(NodeList::path(&next)).await?;
            let page = NodeList::parse(&answer).map_err(|what| self.session.bad_answer(what))?;
            let facts: FactsList = self.session.parse(&answer)?;
            for (node, with) in page.items.iter().zip(facts.items) {
                let mut seen = node.seen(&self.annotations);
                seen.facts = with.status.node_info;
                nodes.push(seen);
            }
            next = page.metadata.next;
            if next.is_empty() {
                return Ok(nodes);
            }
        }
        Err(self.endless("nodes"))
    }

    /// The object at a path; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be read, or it is no JSON.
    pub async fn object(&self, path: &str) -> Result<Option<Value>, StoreError> {
        match self.session.ask(&Question::get(path)).await {
            Ok(answer) => self.session.parse(&answer).map(Some),
            Err(failure) if failure.status() == Some(404) => Ok(None),
            Err(failure) => Err(self.session.client.error(failure)),
        }
    }

    /// All objects of the list at a path, which is of this kind: `DaemonSetList`.
    ///
    /// # Errors
    /// They cannot be listed.
    pub async fn objects(&self, path: &str, kind: &str) -> Result<Vec<Value>, StoreError> {
        let mut all = Vec::new();
        let mut next = String::new();
        for _ in 0..MOST_PAGES {
            let answer = self.session.get(page_of(path, PAGE, &next)).await?;
            let mut page: Value = self.session.parse(&answer)?;
            let token = page.pointer("/metadata/continue").and_then(Value::as_str);
            next = token.unwrap_or_default().to_owned();
            let is_one = page.get("kind").and_then(Value::as_str) == Some(kind);
            match page.get_mut("items").map(Value::take) {
                Some(Value::Array(items)) if is_one => all.extend(items),
                _ => return Err(self.session.bad_answer(format!("no {kind}"))),
            }
            if next.is_empty() {
                return Ok(all);
            }
        }
        Err(self.endless(kind))
    }

    fn endless(&self, what: &str) -> StoreError {
        let text = format!("the list of {what} has more than {MOST_PAGES} pages");
        self.session.bad_answer(text)
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
            let answer = self.session.ask(&question).await;
            let answer = answer.map_err(|failure| self.session.client.error(failure))?;
            let review: Review = self.session.parse(&answer)?;
            if !review.status.allowed {
                missing.push(right);
            }
        }
        Ok(missing)
    }
}

impl KubeStore {
    /// This host's node; without what its kubelet says of it.
    ///
    /// # Errors
    /// It, or the pod that this is, cannot be read.
    pub async fn seen_node(&self) -> Result<SeenNode, StoreError> {
        let node = self.shared.node().await?;
        Ok(node.seen(&self.shared.annotations))
    }
}

impl Node {
    fn seen(&self, annotations: &Annotations) -> SeenNode {
        let unavailable = self.status.conditions.iter();
        let mut unavailable = unavailable.filter(|is| is.status == "True");
        let cidrs = self.pod_cidrs().iter();
        SeenNode {
            name: self.metadata.name.clone(),
            cidrs: cidrs
                .filter_map(|cidr| IpNet::from_str(cidr).ok())
                .collect(),
            takes_part: annotations.takes_part(self),
            backend: annotations.backend(self).to_owned(),
            unavailable: unavailable.next().map(|is| is.reason.clone()),
            facts: NodeFacts::default(),
        }
    }
}
