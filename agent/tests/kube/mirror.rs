//! The objects of the tests' server and those of the real one behind it, kept alike.

use hyper::Method;
use serde_json::{Value, json};

use crate::objects::Kind;
use crate::real::Real;
use crate::server::Cluster;

/// Takes over what the real server has.
pub(crate) fn read(real: &Real, cluster: &mut Cluster) {
    let list = real.must(Method::GET, "/api/v1/nodes", None);
    let items = list["items"].as_array().expect("nodes");
    let named = |node: &Value| {
        let name = node["metadata"]["name"].as_str().expect("a name");
        (name.to_owned(), node.clone())
    };
    cluster.nodes = items.iter().map(named).collect();
    let revision = list["metadata"]["resourceVersion"].as_str();
    cluster.revision = revision
        .and_then(|text| text.parse().ok())
        .expect("a revision");
    let list = real.must(Method::GET, "/api/v1/namespaces/default/events", None);
    cluster.events = list["items"].as_array().expect("events").clone();
    // A real server has events of its own, of how it started.
    let is_ours = |event: &Value| event["source"]["component"] == "selvage";
    cluster.events.retain(is_ours);
    cluster.events.sort_by_key(|event| {
        let revision = event["metadata"]["resourceVersion"]
            .as_str()
            .unwrap_or_default();
        revision.parse::<u64>().unwrap_or_default()
    });
}

/// Does in the real server what a test has done since the last time.
pub(crate) fn write(real: &Real, cluster: &mut Cluster) {
    for (kind, node) in std::mem::take(&mut cluster.writes) {
        let name = node["metadata"]["name"].as_str().expect("a name");
        let path = format!("/api/v1/nodes/{name}");
        match kind {
            Kind::Added => create(real, &node),
            Kind::Modified => replace(real, &path, &node),
            Kind::Deleted => {
                real.must(Method::DELETE, &path, None);
            }
        }
    }
    for (name, pod) in &cluster.pods {
        let (namespace, name) = name.split_once('/').expect("a namespace");
        let body = json!({"metadata": {"name": namespace}});
        real.ask(crate::real::Ask::new(
            Method::POST,
            "/api/v1/namespaces",
            Some(&body),
        ));
        let mut pod = pod.clone();
        pod["metadata"] = json!({"name": name});
        pod["spec"]["containers"] = json!([{"name": "c", "image": "c"}]);
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        real.ask(crate::real::Ask::new(Method::POST, &path, Some(&pod)));
    }
}

/// The object without what the server gives it.
fn cleaned(node: &Value) -> Value {
    let mut node = node.clone();
    let metadata = node["metadata"].as_object_mut().expect("metadata");
    for name in [
        "resourceVersion",
        "uid",
        "creationTimestamp",
        "managedFields",
        "selfLink",
    ] {
        metadata.remove(name);
    }
    node
}

fn create(real: &Real, node: &Value) {
    real.must(Method::POST, "/api/v1/nodes", Some(&cleaned(node)));
}

/// The podCIDRs of a node, of which the first may be given alone.
fn subnets(node: &Value) -> Vec<Value> {
    let spec = &node["spec"];
    match spec["podCIDRs"].as_array() {
        Some(all) => all.clone(),
        None => spec["podCIDR"]
            .as_str()
            .map(Value::from)
            .into_iter()
            .collect(),
    }
}

fn replace(real: &Real, path: &str, node: &Value) {
    let is = real.must(Method::GET, path, None);
    // The real server lets nobody change a node's subnets, nor add a second: a node that has others was created again.
    if !subnets(&is).is_empty() && subnets(&is) != subnets(node) {
        real.must(Method::DELETE, path, None);
        return create(real, node);
    }
    let (is, wanted) = (cleaned(&is), cleaned(node));
    if is["metadata"] != wanted["metadata"] || is["spec"] != wanted["spec"] {
        real.must(Method::PUT, path, Some(&wanted));
    }
    if is["status"] != wanted["status"] {
        real.must(Method::PUT, &format!("{path}/status"), Some(&wanted));
    }
}
