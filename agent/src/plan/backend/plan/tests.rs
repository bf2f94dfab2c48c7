//! The plan with the vxlan backend: claims, refusals, and that incremental updates equal a full plan.

use std::net::Ipv4Addr;

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::plan::backend::vxlan::tests::{self, lease};
use crate::plan::state::Key;

fn backend(config: &str) -> Arc<dyn Backend> {
    Arc::new(tests::backend(config))
}

/// A plan for these peers.
fn plan(backend: &Arc<dyn Backend>, peers: &[Lease]) -> Plan {
    let peers = peers.iter().cloned().map(Arc::new);
    let (plan, state) = Plan::with_state(Arc::clone(backend), &own(), peers);
    assert_eq!(plan.state(), state);
    plan
}

fn set(plan: &mut Plan, peer: &Lease) -> Delta {
    plan.set_peer(&Arc::new(peer.clone()))
}

fn own() -> SubnetKey {
    lease(0, 0, 0).key
}

fn apply(state: &mut State, delta: Delta) {
    for (key, object) in delta {
        match object {
            Some(object) => state.insert(key, object),
            None => state.remove(&key),
        };
    }
}

#[test]
fn own_lease_among_the_peers_is_skipped() {
    let backend = backend("{}");
    let plan = plan(&backend, &[lease(0, 9, 0), lease(1, 1, 1)]);
    assert_eq!(plan.accepted(), 1);
    assert_eq!(plan.state().len(), 2 + 4);
    assert_eq!(plan.refused().count(), 0);
}

#[test]
fn the_older_lease_has_the_mac_and_the_younger_waits_for_it() {
    let backend = backend("{}");
    let (old, young) = (lease(1, 7, 1), lease(2, 7, 2));
    for order in [[&old, &young], [&young, &old]] {
        let mut plan = plan(&backend, &[]);
        let mut state = plan.state();
        for peer in order {
            apply(&mut state, set(&mut plan, peer));
        }
        assert_eq!(state, plan.state());
        let refused: Vec<_> = plan.refused().collect();
        let [(key, PeerRefusal::Taken { holder, .. })] = refused.as_slice() else {
            panic!("{refused:?}")
        };
        assert_eq!((**key, *holder), (young.key, old.key));
        assert!(state.contains_key(&Key::Route(IpNet::V4(old.key.v4.unwrap()))));
        assert!(!state.contains_key(&Key::Route(IpNet::V4(young.key.v4.unwrap()))));

        apply(&mut state, plan.remove_peer(&old.key));
        assert_eq!(state, plan.state());
        assert_eq!(plan.refused().count(), 0);
        assert!(state.contains_key(&Key::Route(IpNet::V4(young.key.v4.unwrap()))));
    }
}

#[test]
fn a_peer_whose_data_turns_bad_is_refused_alone() {
    let backend = backend("{}");
    let mut plan = plan(&backend, &[lease(1, 1, 1), lease(2, 2, 2)]);
    let mut state = plan.state();
    let mut bad = lease(1, 1, 1);
    bad.attrs.backend_data = None;
    apply(&mut state, set(&mut plan, &bad));
    assert_eq!(state, plan.state());
    assert_eq!(
        plan.refusal(&bad.key),
        Some(&PeerRefusal::NoBackendData("10.5.0.0/16".parse().unwrap()))
    );
    assert_eq!(plan.accepted(), 1);
}

#[test]
fn a_change_names_no_keys_of_other_peers() {
    let backend = backend("{}");
    let peers: Vec<Lease> = (1..200).map(|n| lease(n, n, n)).collect();
    let mut plan = plan(&backend, &peers);
    assert_eq!(set(&mut plan, &lease(5, 5, 250)).len(), 4);
    assert_eq!(set(&mut plan, &lease(5, 201, 250)).len(), 5);
    assert_eq!(plan.remove_peer(&peers[5].key).len(), 4);
    assert!(plan.remove_peer(&peers[5].key).is_empty());
}

#[test]
fn peers_may_share_a_next_hop() {
    let backend = backend(r#"{"DirectRouting":true}"#);
    let near = |n| {
        let mut lease = lease(n, n, n);
        lease.attrs.public_ip = Some(Ipv4Addr::new(192, 0, 2, 77));
        lease
    };
    let mut plan = plan(&backend, &[near(1), near(2)]);
    assert_eq!(plan.accepted(), 2);
    let mut state = plan.state();
    assert_eq!(state.len(), 2 + 1 + 2);
    for n in [1, 2] {
        apply(&mut state, plan.remove_peer(&near(n).key));
        assert_eq!(state, plan.state());
    }
    assert_eq!(state.len(), 2);
}

#[derive(Clone, Debug)]
enum Step {
    Set(Lease),
    Remove(SubnetKey),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let subnets = 0..8u8;
    // MAC 9 is our own, 0 is not unicast; public IP 200 is on the underlay's link, 1 is our own.
    let peer = (subnets.clone(), 0..10u8, 0..4u8, 0..6u64, any::<bool>());
    let set = peer.prop_map(|(n, mac, ip, created, near)| {
        let mut lease = lease(n, mac, ip);
        lease.created = created;
        if near {
            lease.attrs.public_ip = Some(Ipv4Addr::new(192, 0, 2, ip));
        }
        Step::Set(lease)
    });
    let remove = subnets.prop_map(|n| Step::Remove(lease(n, 0, 0).key));
    prop::collection::vec(prop_oneof![3 => set, 1 => remove], 0..40)
}

proptest! {
    #[test]
    fn steps_lead_where_a_fresh_plan_would(steps in steps(), direct in any::<bool>()) {
        let backend = backend(&format!(r#"{{"DirectRouting":{direct}}}"#));
        let own = lease(100, 9, 1).key;
        let mut plan = Plan::new(Arc::clone(&backend), &own, []);
        let mut state = plan.state();
        let mut peers = BTreeMap::new();
        for step in steps {
            let delta = match step {
                Step::Set(lease) => {
                    let delta = set(&mut plan, &lease);
                    peers.insert(lease.key, lease);
                    delta
                }
                Step::Remove(key) => {
                    peers.remove(&key);
                    plan.remove_peer(&key)
                }
            };
            apply(&mut state, delta);
            prop_assert_eq!(&state, &plan.state());
        }
        let peers = peers.into_values().map(Arc::new);
        let (fresh, wanted) = Plan::with_state(backend, &own, peers);
        prop_assert_eq!(&fresh.state(), &state);
        prop_assert_eq!(wanted, state);
        prop_assert_eq!(
            fresh.refused().collect::<Vec<_>>(),
            plan.refused().collect::<Vec<_>>()
        );
        let routes = plan.state().keys().filter(|key| matches!(key, Key::Route(_))).count();
        prop_assert_eq!(routes, plan.accepted());
    }
}
