//! Lists, patches and events, as an API server handles them.

use std::collections::BTreeMap;
use std::ops::Bound;

use hyper::{Method, Response};
use serde_json::{Value, json};

use crate::rbac;
use crate::server::{Body, Cluster, status, whole, written};

/// What happened to an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Added,
    Modified,
    Deleted,
}

impl Kind {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// A query's parameters.
pub(crate) fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    let decoded = |text: &str| {
        percent_encoding::percent_decode_str(text)
            .decode_utf8()
            .expect("text")
            .into_owned()
    };
    pairs
        .map(|(name, value)| (name.to_owned(), decoded(value)))
        .collect()
}

/// Nodes as text, for as long as they have the revision with which they were written down: thousands are listed often.
#[derive(Default)]
pub(crate) struct Texts(BTreeMap<String, (Value, String)>);

impl Texts {
    /// Writes all nodes down, so that no list waits for that.
    pub(crate) fn write_down(&mut self, nodes: &BTreeMap<String, Value>) {
        for (name, node) in nodes {
            self.of(name, node);
        }
    }

    fn of(&mut self, name: &str, node: &Value) -> &str {
        let revision = &node["metadata"]["resourceVersion"];
        if self.0.get(name).is_none_or(|(known, _)| known != revision) {
            let text = (revision.clone(), node.to_string());
            self.0.insert(name.to_owned(), text);
        }
        &self.0[name].1
    }
}

/// A page of the nodes. The token for the next is the list's revision and the last name.
pub(crate) fn list(cluster: &mut Cluster, query: &BTreeMap<String, String>) -> Response<Body> {
    let limit: usize = query
        .get("limit")
        .map_or(0, |limit| limit.parse().expect("a number"));
    let (revision, after) = match query.get("continue") {
        Some(token) => {
            let (revision, after) = token.split_once(':').expect("a token of ours");
            (revision.parse().expect("a revision"), after.to_owned())
        }
        None => (cluster.revision, String::new()),
    };
    if revision < cluster.compacted {
        return status(410, "The provided continue parameter is too old");
    }
    let rest = (Bound::Excluded(after.as_str()), Bound::Unbounded);
    let mut rest = cluster.nodes.range::<str, _>(rest);
    let items: Vec<_> = match limit {
        0 => rest.by_ref().collect(),
        limit => rest.by_ref().take(limit).collect(),
    };
    let next = match (rest.next(), items.last()) {
        (Some(_), Some((last, _))) => format!("{revision}:{last}"),
        _ if cluster.faults.endless => format!("{revision}:"),
        _ => String::new(),
    };
    let metadata = json!({"resourceVersion": revision.to_string(), "continue": next});
    let mut text =
        format!(r#"{{"kind":"NodeList","apiVersion":"v1","metadata":{metadata},"items":["#);
    for (place, (name, node)) in items.into_iter().enumerate() {
        if place > 0 {
            text.push(',');
        }
        text.push_str(cluster.texts.of(name, node));
    }
    text.push_str("]}");
    written(200, text)
}

/// An object other than nodes, pods and events, or a page of all DaemonSets; `None`: it is not asked for one of them. The
/// token for the next page is the last path.
pub(crate) fn other(
    cluster: &Cluster,
    method: &Method,
    path: &str,
    query: &BTreeMap<String, String>,
) -> Option<Response<Body>> {
    if method != Method::GET {
        return None;
    }
    if path != "/apis/apps/v1/daemonsets" {
        return cluster.objects.get(path).map(|object| whole(200, object));
    }
    let limit: usize = query["limit"].parse().expect("a number");
    let after = query.get("continue").cloned().unwrap_or_default();
    let mut rest = cluster.objects.iter().filter(|(path, _)| {
        path.starts_with("/apis/apps/") && path.contains("/daemonsets/") && **path > after
    });
    let items: Vec<_> = rest.by_ref().take(limit).collect();
    let next = match (rest.next(), items.last()) {
        (Some(_), Some((last, _))) => last.as_str(),
        _ => "",
    };
    // As a real server does, it leaves kind and version out of the items.
    let items: Vec<Value> = items
        .iter()
        .map(|(_, object)| {
            let mut object = (*object).clone();
            let fields = object.as_object_mut().expect("an object");
            fields.retain(|name, _| name != "kind" && name != "apiVersion");
            object
        })
        .collect();
    Some(whole(
        200,
        &json!({
            "kind": "DaemonSetList", "apiVersion": "apps/v1",
            "metadata": {"resourceVersion": cluster.revision.to_string(), "continue": next},
            "items": items,
        }),
    ))
}

/// A strategic merge patch of a node's status: annotations merge by name, conditions by type.
pub(crate) fn patch(
    cluster: &mut Cluster,
    name: &str,
    content_type: &str,
    body: &[u8],
) -> Response<Body> {
    if content_type != "application/strategic-merge-patch+json" {
        return status(415, "the body of the request was in an unknown format");
    }
    let Some(mut node) = cluster.nodes.get(name).cloned() else {
        return status(404, &format!("nodes \"{name}\" not found"));
    };
    let patch: Value = serde_json::from_slice(body).expect("JSON");
    for (section, fields) in patch.as_object().expect("an object") {
        for (field, values) in fields.as_object().expect("an object") {
            match (section.as_str(), field.as_str()) {
                ("metadata", "annotations") => merge_annotations(&mut node, values),
                ("status", "conditions") => merge_conditions(&mut node, values),
                _ => panic!("a patch of {section}.{field}"),
            }
        }
    }
    cluster.put(node);
    whole(200, &cluster.nodes[name])
}

fn merge_annotations(node: &mut Value, values: &Value) {
    let known = &mut node["metadata"]["annotations"];
    if known.is_null() {
        *known = json!({});
    }
    for (name, value) in values.as_object().expect("annotations") {
        assert!(value.is_string() || value.is_null(), "{name}: {value}");
        known[name] = value.clone();
    }
}

fn merge_conditions(node: &mut Value, values: &Value) {
    let known = &mut node["status"]["conditions"];
    if known.is_null() {
        *known = json!([]);
    }
    let known = known.as_array_mut().expect("conditions");
    for value in values.as_array().expect("conditions") {
        for field in ["status", "reason", "message", "lastTransitionTime"] {
            assert!(value[field].is_string(), "{field} of {value}");
        }
        known.retain(|condition| condition["type"] != value["type"]);
        known.push(value.clone());
    }
}

/// An event, with what a real server requires of it.
pub(crate) fn create_event(cluster: &mut Cluster, body: &[u8]) -> Response<Body> {
    let event: Value = serde_json::from_slice(body).expect("JSON");
    let is_named = event["metadata"]["generateName"].is_string();
    let message = event["message"].as_str().unwrap_or_default();
    if !is_named || event["metadata"]["namespace"] != "default" || message.len() > 1024 {
        return status(422, "Event is invalid");
    }
    cluster.events.push(event.clone());
    whole(201, &event)
}

/// Where a client asks for its own rights.
pub(crate) const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// Whether who asks may do something.
pub(crate) fn review(cluster: &Cluster, user: &str, body: &[u8]) -> Response<Body> {
    let mut review: Value = serde_json::from_slice(body).expect("JSON");
    let (resource, verb) = asked(&review);
    let allowed = !denies(cluster, &review) && rbac::has_right(cluster, user, &resource, &verb);
    review["status"] = rbac::verdict(allowed);
    whole(201, &review)
}

/// Whether a request asks for a right that the test denies, which a real server would give.
pub(crate) fn is_denied(cluster: &Cluster, path: &str, body: &[u8]) -> bool {
    path == REVIEWS && denies(cluster, &serde_json::from_slice(body).expect("JSON"))
}

fn denies(cluster: &Cluster, review: &Value) -> bool {
    let (resource, verb) = asked(review);
    let right = format!("{verb} {resource}");
    cluster.faults.denied.contains(&right.as_str())
}

/// The resource and the verb that a review is about.
fn asked(review: &Value) -> (String, String) {
    let asked = &review["spec"]["resourceAttributes"];
    let text = |name: &str| asked[name].as_str().expect("text").to_owned();
    let resource = match text("subresource").as_str() {
        "" => text("resource"),
        part => format!("{}/{part}", text("resource")),
    };
    (resource, text("verb"))
}
