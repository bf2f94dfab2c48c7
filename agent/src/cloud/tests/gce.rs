//! `gce` against a local server that plays Compute Engine.

use super::compute::Compute;
use super::server::Double;
use super::{Node, told};
use crate::plan::backend::CloudConfig;

const OWN: &str = "flannel-10-5-1-0-24";

fn start() -> (Double<Compute>, Node) {
    let double = Double::start("127.0.0.1:0", Compute::new());
    let node = Node::new("gce", &double.url(), CloudConfig::default());
    (double, node)
}

#[tokio::test]
async fn a_node_adds_its_route_by_flannels_name_and_waits_for_the_operation() {
    let (double, mut node) = start();
    node.settle().await;
    let state = double.state();
    assert_eq!(state.hop(OWN).as_deref(), Some("node-1"));
    let route = &state.routes[OWN];
    assert_eq!(route["destRange"], "10.5.1.0/24");
    assert_eq!(route["priority"], 1000);
    let looks = state
        .calls
        .iter()
        .filter(|call| call.contains("operations"));
    assert_eq!(looks.count(), 1);
}

#[tokio::test]
async fn what_was_left_goes_and_what_is_others_stays_on_whatever_page() {
    let (double, mut node) = start();
    {
        let mut state = double.state();
        // A dead node's, an earlier one of this node's, and another node's old one for our subnet.
        state.put(
            "flannel-10-5-8-0-24",
            "10.5.8.0/24",
            "gone",
            Some("NEXT_HOP_INSTANCE_NOT_FOUND"),
        );
        state.put("flannel-10-5-9-0-24", "10.5.9.0/24", "node-1", None);
        state.put(OWN, "10.5.1.0/24", "node-2", None);
        // A node's that is off for a while, a live node's, and an administrator's.
        state.put(
            "flannel-10-5-2-0-24",
            "10.5.2.0/24",
            "node-3",
            Some("NEXT_HOP_NOT_RUNNING"),
        );
        state.put("flannel-10-5-7-0-24", "10.5.7.0/24", "node-4", None);
        state.put("admins", "10.5.6.0/24", "node-1", None);
    }
    node.settle().await;
    let state = double.state();
    let names: Vec<&str> = state.routes.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "admins",
            "default-route",
            OWN,
            "flannel-10-5-2-0-24",
            "flannel-10-5-7-0-24",
        ]
    );
    assert_eq!(state.hop(OWN).as_deref(), Some("node-1"));
}

/// Two nodes that cannot reach the lease store, and both believe that they have the subnet.
#[tokio::test]
async fn two_nodes_do_not_take_a_route_from_each_other_for_ever() {
    let (double, mut node) = start();
    node.settle().await;
    let take = || double.state().put(OWN, "10.5.1.0/24", "node-2", None);
    for _ in 0..2 {
        take();
        node.settle().await;
        assert_eq!(double.state().hop(OWN).as_deref(), Some("node-1"));
    }
    take();
    let told = told(&node.pass().await);
    assert!(told[0].contains("instances/node-2"), "{told:?}");
    assert_eq!(double.state().hop(OWN).as_deref(), Some("node-2"));
    // It gives way.
    double.state().routes.remove(OWN);
    node.settle().await;
    assert_eq!(double.state().hop(OWN).as_deref(), Some("node-1"));
}

#[tokio::test]
async fn an_administrators_route_to_our_subnet_is_reported() {
    let (double, mut node) = start();
    double.state().put("mine", "10.5.1.0/24", "router", None);
    let pass = node.pass().await;
    let told = told(&pass);
    assert!(
        told[0].contains("instances/router, which this agent did not make"),
        "{told:?}"
    );
    assert!(
        told[0].ends_with("gcloud compute routes delete mine"),
        "{told:?}"
    );
    assert!(double.state().hop("mine").is_some());
}

#[tokio::test]
async fn faults_are_told_apart() {
    let (double, mut node) = start();
    double
        .state()
        .denied
        .insert("compute.networks.updatePolicy");
    let denied = told(&node.pass().await);
    assert!(
        denied[0].ends_with("the permission compute.networks.updatePolicy"),
        "{denied:?}"
    );
    {
        let mut state = double.state();
        state.denied.clear();
        state.quota = 1;
    }
    let full = told(&node.pass().await);
    assert!(
        full[0].contains("\"Routes\" of the project is used up"),
        "{full:?}"
    );
    double.state().quota = 250;
    double
        .state()
        .faults
        .push_back(("POST", 403, "rateLimitExceeded", "Rate Limit Exceeded"));
    let slow = node.pass().await;
    assert!(slow.problems[0].is_transient(), "{slow:?}");
    // The token is no longer good.
    double.state().token = "ya29.second".to_owned();
    let stale = told(&node.pass().await);
    assert!(stale[0].contains("no usable credentials"), "{stale:?}");
    assert!(!stale[0].contains("ya29"), "{stale:?}");
    node.settle().await;
    double.state().may_forward = false;
    let closed = told(&node.pass().await);
    assert!(
        closed[0]
            .contains("gcloud compute instances update-from-file node-1 --zone=europe-west1-b"),
        "{closed:?}"
    );
}

#[tokio::test]
async fn another_networks_route_of_the_same_name_is_named() {
    let (double, mut node) = start();
    {
        let mut state = double.state();
        state.put(OWN, "10.5.1.0/24", "node-9", None);
        let network = "https://www.googleapis.com/compute/v1/projects/web-1/global/networks/blue";
        state.routes.get_mut(OWN).unwrap()["network"] = network.into();
    }
    let told = told(&node.pass().await);
    assert!(
        told[0].contains("in the network projects/web-1/global/networks/blue"),
        "{told:?}"
    );
    assert_eq!(double.state().hop(OWN).as_deref(), Some("node-9"));
}
