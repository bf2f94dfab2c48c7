//! Which of IPsec's states no tunnel uses any more. charon deletes them itself, unless it has ended: they would decrypt what
//! a former peer still sends.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::plan::state::{Change, Connection, Direction, Key, Object, Policy};

/// The peers whose states are to go, by their public addresses: those whose connection goes or is for other subnets now, and
/// those that only a policy of an earlier run was for. `is_kept` says whether there was a connection so far.
pub(super) fn stale<'a>(
    connections: &[Change],
    policies: impl Iterator<Item = &'a Change>,
    is_kept: impl Fn(Ipv4Addr) -> bool,
) -> Vec<Ipv4Addr> {
    let changed = connections.iter().filter_map(stale_connection);
    let has_connection = |peer: Ipv4Addr| {
        is_kept(peer)
            || connections
                .iter()
                .any(|change| *change.key() == Key::Connection(peer))
    };
    let left = policies.filter_map(former_end);
    let stale: BTreeSet<_> = changed
        .chain(left.filter(|peer| !has_connection(*peer)))
        .collect();
    stale.into_iter().collect()
}

/// The peer whose tunnel a change of its connection ends.
fn stale_connection(change: &Change) -> Option<Ipv4Addr> {
    let Key::Connection(peer) = change.key() else {
        return None;
    };
    match change {
        Change::Del { .. } => Some(*peer),
        Change::Set {
            object: Object::Connection(now),
            was: Some(Object::Connection(was)),
            ..
        } if ends(was) != ends(now) => Some(*peer),
        Change::Set { .. } => None,
    }
}

/// What a tunnel is between, at this end and with its content.
fn ends(connection: &Connection) -> impl PartialEq + use<> {
    let Connection {
        local,
        subnet,
        peer_subnet,
        ..
    } = *connection;
    (local, subnet, peer_subnet)
}

/// Where the tunnel of a policy ended that is changed or removed.
fn former_end(change: &Change) -> Option<Ipv4Addr> {
    let end = |object: &Object| match object {
        Object::Policy(Policy::Tunnel { to, .. }) => Some(*to),
        _ => None,
    };
    match change {
        Change::Del {
            key: Key::Policy(Direction::Out, ..),
            was,
        } => end(was),
        Change::Set {
            key: Key::Policy(Direction::Out, ..),
            object,
            was: Some(was),
        } => end(was).filter(|_| end(was) != end(object)),
        Change::Del { .. } | Change::Set { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Secret;

    const PEER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
    const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 8);

    fn connection(peer_subnet: &str, psk: &str) -> Object {
        Object::Connection(Box::new(Connection {
            local: [192, 0, 2, 1].into(),
            public: [192, 0, 2, 1].into(),
            subnet: "10.5.1.0/24".parse().unwrap(),
            peer_subnet: peer_subnet.parse().unwrap(),
            psk: Secret::new(psk.to_owned()),
            udp_encap: false,
            esp_proposal: "aes128gcm16".to_owned(),
            fenced: true,
        }))
    }

    fn set(was: Option<Object>, object: Object) -> Change {
        Change::Set {
            key: Key::Connection(PEER),
            object,
            was,
        }
    }

    fn policy(direction: Direction, peer_subnet: &str) -> Key {
        let own = "10.5.1.0/24".parse().unwrap();
        Key::Policy(direction, own, peer_subnet.parse().unwrap())
    }

    fn tunnel(to: Ipv4Addr) -> Object {
        Object::Policy(Policy::Tunnel {
            from: [192, 0, 2, 1].into(),
            to,
        })
    }

    #[test]
    fn a_connection_for_other_subnets_has_no_use_for_its_states() {
        let before = connection("10.5.2.0/24", "a");
        let stale = |change: Change| stale(&[change], [].iter(), |_| true);
        let moved = connection("10.5.3.0/24", "a");
        assert_eq!(stale(set(Some(before.clone()), moved)), [PEER]);
        // A new secret is for the next keys.
        let renewed = connection("10.5.2.0/24", "b");
        assert!(stale(set(Some(before.clone()), renewed)).is_empty());
        // What is set after a restart may be there already.
        assert!(stale(set(None, before.clone())).is_empty());
        let key = Key::Connection(PEER);
        assert_eq!(stale(Change::Del { key, was: before }), [PEER]);
    }

    #[test]
    fn an_earlier_runs_policy_tells_whose_states_are_left() {
        let del = |direction, was| Change::Del {
            key: policy(direction, "10.5.2.0/24"),
            was,
        };
        let stale = |change: Change, kept: &[Ipv4Addr]| {
            stale(&[], [change].iter(), |peer| kept.contains(&peer))
        };
        let out = del(Direction::Out, tunnel(PEER));
        assert_eq!(stale(out.clone(), &[]), [PEER]);
        // The peer has a tunnel for another subnet.
        assert!(stale(out, &[PEER]).is_empty());
        assert!(stale(del(Direction::Out, Object::Policy(Policy::Block)), &[]).is_empty());
        let set = |to| Change::Set {
            key: policy(Direction::Out, "10.5.2.0/24"),
            object: tunnel(to),
            was: Some(tunnel(PEER)),
        };
        assert_eq!(stale(set(OTHER), &[]), [PEER]);
        assert!(stale(set(PEER), &[]).is_empty());
    }
}
