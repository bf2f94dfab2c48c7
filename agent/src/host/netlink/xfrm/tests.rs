use ipnet::Ipv4Net;
use proptest::prelude::*;

use super::*;
use crate::plan::state::{Direction, Policy};

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn networks() -> Vec<IpNet> {
    vec!["10.5.0.0/16".parse().unwrap()]
}

fn tunnel() -> Policy {
    Policy::Tunnel {
        from: [192, 0, 2, 1].into(),
        to: [192, 0, 2, 7].into(),
    }
}

/// A policy of ours as the kernel lists it.
fn listed(policy: Policy) -> Vec<u8> {
    let mut payload = encode::policy(
        Direction::Out,
        net("10.5.1.0/24"),
        net("10.5.2.0/24"),
        policy,
    );
    // The kernel adds the type of the policy, `struct xfrm_userpolicy_type`.
    payload.extend([10, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    payload
}

fn read(payload: &[u8]) -> Option<Object> {
    Some(encode::read(payload, &networks())?.1)
}

#[test]
fn policies_read_back() {
    let (from, to) = (net("10.5.1.0/24"), net("10.5.0.0/16"));
    for direction in Direction::ALL {
        for policy in [tunnel(), Policy::Pass, Policy::Block] {
            let payload = encode::policy(direction, from, to, policy);
            let expected = (Key::Policy(direction, from, to), Object::Policy(policy));
            assert_eq!(encode::read(&payload, &networks()), Some(expected));
        }
    }
    assert_eq!(read(&listed(tunnel())), Some(Object::Policy(tunnel())));
}

/// A policy as flannel's `AddXFRMPolicy` makes it, with the network, nodes and reqid of its issue 1027, as bytes: it leaves
/// out the limits, the family of the template and its algorithms, which the kernel fills in or never looks at.
#[test]
fn a_policy_that_flannel_made_is_as_ours() {
    let mut payload = vec![0; 168];
    payload[0..4].copy_from_slice(&[172, 17, 69, 0]);
    payload[16..20].copy_from_slice(&[172, 17, 96, 0]);
    payload[40..44].copy_from_slice(&[2, 0, 24, 24]);
    payload[160] = 1;
    payload.extend([68, 0, 5, 0]);
    let mut template = [0; 64];
    template[0..4].copy_from_slice(&[10, 193, 37, 216]);
    template[20] = 50;
    template[24] = 2; // filled in by `validate_tmpl()`
    template[28..32].copy_from_slice(&[10, 193, 37, 153]);
    template[44] = 11;
    template[48] = 1;
    payload.extend(template);
    let networks = ["172.17.0.0/16".parse().unwrap()];
    let (key, object) = encode::read(&payload, &networks).unwrap();
    assert_eq!(
        crate::plan::state::describe(&key, &object),
        "xfrm policy dir out src 172.17.96.0/24 dst 172.17.69.0/24 tmpl src 10.193.37.153 dst 10.193.37.216 proto esp mode tunnel"
    );
}

#[test]
fn other_programs_policies_are_not_ours() {
    let change = |at: usize, byte: u8| {
        let mut payload = listed(tunnel());
        payload[at] = byte;
        payload
    };
    let with = |attribute: &[u8]| [&listed(tunnel())[..], attribute].concat();
    for (why, payload) in [
        ("a socket's", change(160, 3)),
        ("for TCP alone", change(44, 6)),
        ("for a port", change(33, 80)),
        ("IPv6", change(40, 10)),
        ("to another network", change(1, 6)),
        ("from another network", change(17, 6)),
        ("wider than the network", change(42, 8)),
        ("no prefix", change(42, 33)),
        ("another reqid", change(168 + 4 + 44, 12)),
        ("of AH", change(168 + 4 + 20, 51)),
        (
            "with a mark",
            with(&[12, 0, 21, 0, 1, 0, 0, 0, 255, 0, 0, 0]),
        ),
        ("of an interface", with(&[8, 0, 31, 0, 7, 0, 0, 0])),
        (
            "a sub-policy",
            with(&[10, 0, 16, 0, 1, 0, 0, 0, 0, 0, 0, 0]),
        ),
        ("cut short", listed(tunnel())[..100].to_vec()),
    ] {
        assert_eq!(read(&payload), None, "{why}");
    }
    // An administrator's own block, which has another priority.
    let mut block = listed(Policy::Block);
    block[152..156].copy_from_slice(&[0; 4]);
    assert_eq!(read(&block), None);
    let everything = ["0.0.0.0/0".parse().unwrap()];
    assert_eq!(encode::read(&listed(tunnel()), &everything), None);
}

#[test]
fn a_hosts_policies_are_ours_by_their_priorities() {
    let host = net("203.0.113.5/32");
    let read = |direction, from, policy| {
        let payload = encode::policy(direction, from, net("10.5.0.0/16"), policy);
        encode::read(&payload, &networks())
    };
    for policy in [Policy::Pass, Policy::Block] {
        let key = Key::Policy(Direction::Out, host, net("10.5.0.0/16"));
        let expected = Some((key, Object::Policy(policy)));
        assert_eq!(read(Direction::Out, host, policy), expected);
        assert_eq!(read(Direction::In, host, policy), None);
        assert_eq!(read(Direction::Out, net("203.0.113.4/31"), policy), None);
    }
    // Another program's tunnel with the same reqid.
    assert_eq!(read(Direction::Out, host, tunnel()), None);
    let elsewhere = encode::policy(Direction::Out, host, net("10.6.0.0/16"), Policy::Block);
    assert_eq!(encode::read(&elsewhere, &networks()), None);
}

/// charon's `add_policy_internal()`: an SPI for packets that leave, and none for those that come.
#[test]
fn charons_policies_stand_for_ours() {
    let with = |priority, spi: [u8; 4]| {
        let mut payload = listed(tunnel());
        payload[152..156].copy_from_slice(&u32::to_ne_bytes(priority));
        payload[168 + 4 + 16..][..4].copy_from_slice(&spi);
        read(&payload)
    };
    let spi = [0xc4, 0x17, 0x26, 0xd2];
    assert_eq!(with(CHARON_PRIORITY, spi), Some(Object::Policy(tunnel())));
    assert_eq!(
        with(CHARON_PRIORITY, [0; 4]),
        Some(Object::Policy(tunnel()))
    );
    // Of somebody else, who has a state of his own.
    assert_eq!(with(0, spi), Some(Object::Odd));
    assert_eq!(with(CHARON_PRIORITY + 1, spi), Some(Object::Odd));
}

#[test]
fn ours_of_another_form_are_set_again() {
    for (at, byte) in [(152, 7), (161, 1), (168 + 4 + 48, 0), (168 + 4 + 50, 1)] {
        let mut payload = listed(tunnel());
        payload[at] = byte;
        assert_eq!(read(&payload), Some(Object::Odd), "{at}");
    }
    let mut pass = listed(Policy::Pass);
    pass[161] = 1;
    assert_eq!(read(&pass), Some(Object::Odd));
}

#[test]
fn notifications_about_others_mean_nothing() {
    let message = |kind, payload| XfrmMessage { kind, payload };
    let of = |kind, policy| judge(&message(kind, listed(policy)), &networks());
    let key = Key::Policy(Direction::Out, net("10.5.1.0/24"), net("10.5.2.0/24"));
    for kind in [NEW_POLICY, UPDATE_POLICY] {
        let set = Notice::Set(key.clone(), Some(Object::Policy(tunnel())));
        assert_eq!(of(kind, tunnel()), set);
        let others = [IpNet::from(net("10.6.0.0/16"))];
        let others = judge(&message(kind, listed(tunnel())), &others);
        assert_eq!(others, Notice::None);
    }
    for kind in [DELETE_POLICY, EXPIRE_POLICY, FLUSH_POLICIES] {
        assert_eq!(of(kind, tunnel()), Notice::Gone);
    }
    // Another program's in the place of ours.
    let mut replaced = listed(Policy::Block);
    replaced[152..156].copy_from_slice(&[0; 4]);
    let replaced = judge(&message(UPDATE_POLICY, replaced), &networks());
    assert_eq!(replaced, Notice::Set(key, None));
    // A new state is none of ours to judge.
    assert_eq!(of(0x10, tunnel()), Notice::None);
}

/// flannel's issue 1027: `src 10.193.37.153 dst 10.193.37.216 proto esp spi 0xc41726d2 reqid 11 mode tunnel`.
#[test]
fn a_state_of_a_tunnel_is_found_and_named() {
    let mut payload = vec![0; 224];
    payload[56..60].copy_from_slice(&[10, 193, 37, 216]);
    payload[72..76].copy_from_slice(&[0xc4, 0x17, 0x26, 0xd2]);
    payload[76] = 50;
    payload[80..84].copy_from_slice(&[10, 193, 37, 153]);
    payload[208] = 11;
    payload[212] = 2;
    payload[214] = 1;
    let state = encode::read_state(&payload).unwrap();
    assert!(!state.has_keys);
    // `XFRMA_ALG_AEAD` with no more than its name, and `XFRMA_MARK`.
    for (kind, has_keys) in [(18, true), (2, true), (21, false)] {
        let attribute = [8, 0, kind, 0, b'r', b'f', b'c', 0];
        let with = encode::read_state(&[&payload[..], &attribute].concat()).unwrap();
        assert_eq!(with, encode::State { has_keys, ..state });
    }
    assert_eq!(state.from, Ipv4Addr::new(10, 193, 37, 153));
    let id = encode::state_id(state);
    assert_eq!(id[..4], [10, 193, 37, 216]);
    assert_eq!(id[16..], [0xc4, 0x17, 0x26, 0xd2, 2, 0, 50, 0]);
    // Of AH, with another reqid, IPv6, in transport mode; cut short.
    for (at, byte) in [(76, 51), (208, 12), (212, 10), (214, 0)] {
        let mut other = payload.clone();
        other[at] = byte;
        assert_eq!(encode::read_state(&other), None);
    }
    assert_eq!(encode::read_state(&payload[..223]), None);
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = encode::read(&bytes, &["0.0.0.0/1".parse().unwrap()]);
        let _ = encode::read_state(&bytes);
    }

    #[test]
    fn no_changed_byte_makes_the_reader_panic(at in 0usize..240, byte: u8) {
        let mut payload = listed(tunnel());
        payload[at] = byte;
        let _ = encode::read(&payload, &networks());
    }
}
