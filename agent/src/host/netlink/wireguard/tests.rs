//! Byte-exact requests, replies in parts, and malformed replies.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use proptest::prelude::*;
use rtnetlink::packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};

use super::decode::{Part, assemble};
use super::*;
use crate::host::netlink::generic::Attributes;
use crate::plan::wireguard_key::{PresharedKey, PrivateKey};

/// The family's number in these tests.
const NUMBER: u16 = 0x1c;

/// When replies are read in these tests: 1,000,000 s after 1970.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000)
}

fn key(n: u8) -> PublicKey {
    PublicKey::new([n; 32]).unwrap()
}

fn peer(endpoint: &str, allowed: &[&str]) -> WireguardPeer {
    WireguardPeer {
        endpoint: endpoint.parse().ok(),
        preshared_key: None,
        keepalive: 0,
        allowed: allowed.iter().map(|net| net.parse().unwrap()).collect(),
        in_session: false,
    }
}

fn bytes(message: &GenericMessage) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Bytes of a little-endian machine, in hexadecimal digits and white space.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let octet = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(octet).collect()
}

const KEY_1: &str = "0101010101010101 0101010101010101 0101010101010101 0101010101010101";

#[test]
#[cfg(target_endian = "little")]
fn a_device_is_asked_for_by_its_index() {
    let message = encode::get_device(NUMBER, 7);
    assert_eq!(message.message_type(), NUMBER);
    assert_eq!(bytes(&message), hex("00 01 0000  0800 0100 07000000"));
}

#[test]
#[cfg(target_endian = "little")]
fn a_new_device_gets_port_and_key() {
    let want = Wireguard {
        private_key: Some(PrivateKey::new([0x41; 32])),
        listen_port: 51820,
        fwmark: 0,
    };
    let message = encode::set_device(NUMBER, 7, &Wireguard::default(), &want).unwrap();
    let expected = "01 01 0000  0800 0100 07000000  0600 0600 6cca 0000
         2400 0300 4041414141414141 4141414141414141 4141414141414141 4141414141414141";
    assert_eq!(bytes(&message), hex(expected));
    assert_eq!(encode::set_device(NUMBER, 7, &want, &want), None);
    let moved = Wireguard {
        listen_port: 51821,
        ..want.clone()
    };
    let message = encode::set_device(NUMBER, 7, &want, &moved).unwrap();
    let expected = "01 01 0000  0800 0100 07000000  0600 0600 6dca 0000";
    assert_eq!(bytes(&message), hex(expected), "the key ends sessions");
}

#[test]
#[cfg(target_endian = "little")]
fn a_new_peer_is_written_as_wg_writes_it() {
    let want = WireguardPeer {
        preshared_key: PresharedKey::new([2; 32]),
        keepalive: 25,
        ..peer("192.0.2.3:51820", &["10.5.1.0/24", "fd00:10:5:1::/64"])
    };
    let message = encode::set_peer(NUMBER, 7, &key(1), None, &want);
    let expected = format!(
        "01 01 0000  0800 0100 07000000
         b400 0880
           b000 0080
             2400 0100 {KEY_1}
             2400 0200 {}
             1400 0400 0200 ca6c c0000203 0000000000000000
             0600 0500 1900 0000
             4800 0980
               1c00 0080  0600 0100 0200 0000  0800 0200 0a050100  0500 0300 18 000000
               2800 0080  0600 0100 0a00 0000
                          1400 0200 fd00001000050001 0000000000000000  0500 0300 40 000000",
        KEY_1.replace("01", "02"),
    );
    let expected = hex(&expected);
    // Lengths first: a wrong one is easier to find than a wrong byte.
    assert_eq!(bytes(&message).len(), expected.len());
    assert_eq!(bytes(&message), expected);
}

/// A greeting leaves the peer unchanged and enables the keepalive in between: `0600 0500`, then the seconds.
#[test]
#[cfg(target_endian = "little")]
fn a_handshake_request_turns_keepalives_on_and_leaves_the_peer_as_it_was() {
    let keepalive = |message: &GenericMessage| {
        let bytes = bytes(message);
        let at = bytes.windows(4).position(|four| four == hex("0600 0500"));
        at.map(|at| u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]))
    };
    for (seconds, unanswered, expected) in [
        (0, false, vec![Some(1), Some(0)]),
        (0, true, vec![None, Some(1), Some(0)]),
        (25, false, vec![Some(0), Some(25)]),
        (25, true, vec![None, Some(25)]),
    ] {
        let want = WireguardPeer {
            preshared_key: PresharedKey::new([2; 32]),
            keepalive: seconds,
            ..peer("192.0.2.3:51820", &["10.5.1.0/24"])
        };
        let messages = encode::start_handshake(NUMBER, 7, &key(1), &want, unanswered);
        let seen: Vec<_> = messages.iter().map(keepalive).collect();
        assert_eq!(seen, expected, "{seconds} {unanswered}");
        let mut messages = messages.iter().map(bytes);
        if unanswered {
            let removal = bytes(&encode::delete_peer(NUMBER, 7, &key(1)));
            assert_eq!(messages.next(), Some(removal));
            let whole = WireguardPeer {
                keepalive: seconds.max(1),
                ..want.clone()
            };
            let whole = bytes(&encode::set_peer(NUMBER, 7, &key(1), None, &whole));
            assert_eq!(messages.next(), Some(whole), "with all that it has");
        }
        for message in messages {
            assert!(message.len() < 80, "nothing but a keepalive is changed");
        }
    }
}

#[test]
#[cfg(target_endian = "little")]
fn a_peer_is_removed_by_its_key() {
    let message = encode::delete_peer(NUMBER, 7, &key(1));
    let expected = format!(
        "01 01 0000  0800 0100 07000000  3400 0880 3000 0080 2400 0100 {KEY_1}  0800 0300 01000000"
    );
    assert_eq!(bytes(&message), hex(&expected));
}

/// The attributes of the one peer in a message, and the allowed IPs among them.
fn sent(message: &GenericMessage) -> (Vec<(u16, Vec<u8>)>, Vec<IpNet>) {
    let (_, peers) = message
        .attributes
        .iter()
        .find(|(kind, _)| *kind == WGDEVICE_A_PEERS)
        .unwrap();
    let (_, peer) = generic::attributes(peers).next().unwrap();
    let attributes = generic::attributes(peer).map(|(kind, value)| (kind, value.to_vec()));
    let device = assemble(vec![Part::read(message, now())]);
    let (_, read) = device.peers.into_iter().next().unwrap();
    (attributes.collect(), read.allowed.into())
}

#[test]
fn what_a_peer_has_is_not_touched() {
    let was = WireguardPeer {
        preshared_key: PresharedKey::new([2; 32]),
        in_session: true,
        ..peer("198.51.100.9:4711", &["10.5.1.0/24"])
    };
    let kinds = |want: &WireguardPeer| -> Vec<u16> {
        let (attributes, _) = sent(&encode::set_peer(NUMBER, 7, &key(1), Some(&was), want));
        attributes.iter().map(|(kind, _)| *kind).collect()
    };

    let more = WireguardPeer {
        preshared_key: PresharedKey::new([2; 32]),
        ..peer("192.0.2.3:51820", &["10.5.1.0/24", "10.5.2.0/24"])
    };
    let always = [
        WGPEER_A_PUBLIC_KEY,
        WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL,
        WGPEER_A_ALLOWEDIPS,
    ];
    assert_eq!(kinds(&more), always, "it roamed, and lost no prefix");
    let message = encode::set_peer(NUMBER, 7, &key(1), Some(&was), &more);
    assert_eq!(sent(&message).1, ["10.5.2.0/24".parse().unwrap()]);

    let other = peer("192.0.2.3:51820", &["10.5.2.0/24"]);
    let dead = WireguardPeer {
        in_session: false,
        ..was
    };
    let (attributes, allowed) = sent(&encode::set_peer(NUMBER, 7, &key(1), Some(&dead), &other));
    assert_eq!(allowed, ["10.5.2.0/24".parse().unwrap()]);
    let value = |kind| {
        let (_, value) = attributes.iter().find(|(k, _)| *k == kind)?;
        Some(value.as_slice())
    };
    let replace = 2u32.to_ne_bytes();
    assert_eq!(value(WGPEER_A_FLAGS), Some(&replace[..]));
    assert_eq!(value(WGPEER_A_PRESHARED_KEY), Some(&[0; 32][..]), "none");
    assert!(value(WGPEER_A_ENDPOINT).is_some(), "the session is dead");
}

/// A reply of the kernel, with the attributes added by `fill`.
fn answer(fill: impl FnOnce(&mut Attributes)) -> GenericMessage {
    let mut attributes = Attributes::default();
    fill(&mut attributes);
    GenericMessage {
        family: NUMBER,
        command: WG_CMD_GET_DEVICE,
        version: VERSION,
        attributes,
    }
}

/// Appends allowed IPs in the kernel's order of attributes.
fn put_allowed(peer: &mut Attributes, nets: &[&str]) {
    peer.nest(WGPEER_A_ALLOWEDIPS, |list| {
        for net in nets {
            let net: IpNet = net.parse().unwrap();
            list.nest(0, |item| {
                item.put(WGALLOWEDIP_A_CIDR_MASK, &[net.prefix_len()]);
                match net {
                    IpNet::V4(net) => item.put(WGALLOWEDIP_A_IPADDR, &net.network().octets()),
                    IpNet::V6(net) => item.put(WGALLOWEDIP_A_IPADDR, &net.network().octets()),
                }
            });
        }
    });
}

#[test]
fn a_peer_that_goes_on_in_the_next_message_is_one_peer() {
    let private = PrivateKey::new([9; 32]);
    let first = answer(|device| {
        device.put(WGDEVICE_A_LISTEN_PORT, &51820u16.to_ne_bytes());
        device.put(WGDEVICE_A_FWMARK, &0u32.to_ne_bytes());
        device.put(WGDEVICE_A_IFINDEX, &7u32.to_ne_bytes());
        device.put(WGDEVICE_A_PRIVATE_KEY, private.expose());
        device.nest(WGDEVICE_A_PEERS, |peers| {
            peers.nest(0, |peer| {
                peer.put(WGPEER_A_PUBLIC_KEY, &[1; 32]);
                put_allowed(peer, &["10.5.1.0/24"]);
            });
            peers.nest(0, |peer| {
                peer.put(WGPEER_A_PUBLIC_KEY, &[2; 32]);
                peer.put(WGPEER_A_PRESHARED_KEY, &[5; 32]);
                peer.put(WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, &[25, 0]);
                let endpoint = hex("0200 ca6c c0000203 0000000000000000");
                peer.put(WGPEER_A_ENDPOINT, &endpoint);
                put_allowed(peer, &["10.5.3.0/24"]);
            });
        });
    });
    let second = answer(|device| {
        device.nest(WGDEVICE_A_PEERS, |peers| {
            peers.nest(0, |peer| {
                peer.put(WGPEER_A_PUBLIC_KEY, &[2; 32]);
                put_allowed(peer, &["fd00::/64", "10.5.2.0/24"]);
            });
            peers.nest(0, |peer| peer.put(WGPEER_A_PUBLIC_KEY, &[3; 32]));
        });
    });
    let parts = [first, second].map(|message| Part::read(&message, now()));
    let device = assemble(parts.into());
    let options = Wireguard {
        private_key: Some(private),
        listen_port: 51820,
        fwmark: 0,
    };
    assert_eq!(device.options, options);
    let second = WireguardPeer {
        preshared_key: PresharedKey::new([5; 32]),
        keepalive: 25,
        ..peer(
            "192.0.2.3:51820",
            &["10.5.2.0/24", "10.5.3.0/24", "fd00::/64"],
        )
    };
    let expected = [
        (key(1), peer("", &["10.5.1.0/24"])),
        (key(2), second),
        (key(3), peer("", &[])),
    ];
    assert_eq!(device.peers, expected);
}

#[test]
fn a_session_lasts_three_minutes() {
    for (seconds, expected) in [
        (0, false),
        (-5, false),
        (999_820, false),
        (999_821, true),
        (1_000_000, true),
        // The clock was set back since.
        (1_000_500, true),
    ] {
        let message = answer(|device| {
            device.nest(WGDEVICE_A_PEERS, |peers| {
                peers.nest(0, |peer| {
                    peer.put(WGPEER_A_PUBLIC_KEY, &[1; 32]);
                    let seconds = i64::to_ne_bytes(seconds);
                    peer.put(WGPEER_A_LAST_HANDSHAKE_TIME, &[seconds, [1; 8]].concat());
                });
            });
        });
        let device = assemble(vec![Part::read(&message, now())]);
        assert_eq!(device.peers[0].1.in_session, expected, "{seconds}");
    }
}

#[test]
fn traffic_and_handshake_are_counted_once_for_each_peer() {
    let peer = |peers: &mut Attributes, key: u8, counters: Option<(i64, u64, u64)>| {
        peers.nest(0, |peer| {
            peer.put(WGPEER_A_PUBLIC_KEY, &[key; 32]);
            if let Some((handshake, rx, tx)) = counters {
                let handshake = [i64::to_ne_bytes(handshake), [1; 8]].concat();
                peer.put(WGPEER_A_LAST_HANDSHAKE_TIME, &handshake);
                peer.put(WGPEER_A_RX_BYTES, &rx.to_ne_bytes());
                peer.put(WGPEER_A_TX_BYTES, &tx.to_ne_bytes());
            }
            put_allowed(peer, &["10.5.1.0/24"]);
        });
    };
    let first = answer(|device| {
        device.nest(WGDEVICE_A_PEERS, |peers| {
            peer(peers, 1, Some((0, 0, 148)));
            peer(peers, 2, Some((999_990, 1 << 40, 7)));
        });
    });
    // The second peer continues, without its counters.
    let second = answer(|device| device.nest(WGDEVICE_A_PEERS, |peers| peer(peers, 2, None)));
    let parts = [first, second].map(|message| Part::read(&message, now()));
    let session = |handshake, rx_bytes, tx_bytes| Session {
        rx_bytes,
        tx_bytes,
        handshake,
    };
    let expected = [
        (key(1), session(None, 0, 148)),
        (key(2), session(Some(999_990), 1 << 40, 7)),
    ];
    assert_eq!(decode::sessions(parts.into()), expected.into());
}

#[test]
fn nothing_of_a_message_is_shown() {
    let want = Wireguard {
        private_key: Some(PrivateKey::new([0x41; 32])),
        ..Wireguard::default()
    };
    let message = encode::set_device(NUMBER, 7, &Wireguard::default(), &want).unwrap();
    let shown = format!(
        "{:?} {want:?}",
        Request::<GenericMessage>::new(Verb::Plain, message)
    );
    assert!(!shown.contains("41"), "{shown}");
    assert!(!shown.contains("65, 65"), "{shown}");
}

fn endpoints() -> impl Strategy<Value = Option<SocketAddr>> {
    let v4 = any::<([u8; 4], u16)>().prop_map(SocketAddr::from);
    let v6 = any::<([u8; 16], u16)>().prop_map(SocketAddr::from);
    prop::option::of(prop_oneof![v4, v6])
}

fn nets() -> impl Strategy<Value = Vec<IpNet>> {
    let v4 = (any::<[u8; 4]>(), 0u8..=32);
    let v6 = (any::<[u8; 16]>(), 0u8..=128);
    let net = prop_oneof![
        v4.prop_map(|(address, len)| IpNet::new(address.into(), len).unwrap().trunc()),
        v6.prop_map(|(address, len)| IpNet::new(address.into(), len).unwrap().trunc()),
    ];
    prop::collection::btree_set(net, 0..5).prop_map(|nets| nets.into_iter().collect())
}

proptest! {
    #[test]
    fn peers_read_back(
        public: [u8; 32],
        secret: [u8; 32],
        endpoint in endpoints(),
        keepalive: u16,
        allowed in nets(),
    ) {
        let Some(public) = PublicKey::new(public) else { return Ok(()) };
        let want = WireguardPeer {
            endpoint,
            preshared_key: PresharedKey::new(secret),
            keepalive,
            allowed: allowed.into(),
            in_session: false,
        };
        let message = encode::set_peer(NUMBER, 7, &public, None, &want);
        let header = NetlinkHeader::default();
        let message = GenericMessage::deserialize(&header, &bytes(&message)).unwrap();
        let device = assemble(vec![Part::read(&message, now())]);
        prop_assert_eq!(device.peers, [(public, want)]);
    }

    /// Random bytes, and a valid reply with some bytes replaced.
    #[test]
    fn no_bytes_make_the_reader_panic(
        noise in prop::collection::vec(any::<u8>(), 0..120),
        at in 0usize..150,
    ) {
        let want = peer("192.0.2.3:51820", &["10.5.1.0/24", "fd00::/64"]);
        let mut damaged = bytes(&encode::set_peer(NUMBER, 7, &key(1), None, &want));
        for (old, new) in damaged.iter_mut().skip(at).zip(&noise) {
            *old = *new;
        }
        for bytes in [&noise, &damaged] {
            if let Ok(message) = GenericMessage::deserialize(&NetlinkHeader::default(), bytes) {
                let _ = assemble(vec![Part::read(&message, now())]);
                let _ = generic::family_id(&message);
            }
        }
    }
}
