//! The ipsec backend: IP in ESP tunnels of the kernel, whose keys strongSwan's charon negotiates by IKEv2.
//!
//! | object | is | as flannel, except |
//! |---|---|---|
//! | policy per peer, for packets to it | own subnet to the peer's: an ESP tunnel between the nodes, reqid 11 | from the interface's address where the public IP is a NAT's |
//! | two policies per peer, for packets from it | peer's subnet to the own one, received or forwarded: the same tunnel in reverse | likewise |
//! | connection per peer | IKEv2 with the pre-shared key, by the names that flannel gives | both ends are named by their public IPs, so that a NAT does not matter; the end with the lower address begins |
//! | policies between own subnet and network | block what no peer's policy is for; within the own subnet all passes | flannel sends such packets in plain text |
//! | two policies from the host's own address | to the network all is blocked, to the own subnet all passes | likewise |
//! | route to the network | over the underlay device | flannel relies on the default route |
//!
//! While there is a tunnel, charon's policies are in the place of the peer's, and name its SPI, so that no packet is lost when
//! keys are renewed.
//!
//! Without a policy a packet would leave in plain text: flannel's do once a peer's lease is gone. The last three kinds are
//! left out where the underlay is inside the network, since its hosts must be reached; then each peer has a route.
//!
//! IPv4 only, as in flannel. A tunnel carries packets between subnets: those that a host itself sends to another host's
//! containers, from its own address on the underlay, are not its content, and are dropped. Packets from the addresses of other
//! interfaces are not touched: a network behind one of them may lie inside the overlay's.
//!
//! The MTU leaves 77 bytes for outer header 20, ESP header 8, initialisation vector 16, padding 15, trailer 2 and check
//! value 16 (RFC 4303, AES-CBC with HMAC-SHA-256-128); with `UDPEncap` 8 more (RFC 3948). AES-GCM needs less.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::table::{Definition, Options};
use super::{
    Backend, BackendConfigError, MIN_MTU, Opening, Setup, Unfit, attrs, device_route, needs_ipv4,
    no_loop, public_address, same_kind,
};
use crate::base::go_json::{self, GoJsonError};
use crate::cluster::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::cluster::network_config::NetworkConfig;
use crate::cluster::refusal::PeerRefusal;
use crate::plan::state::{Connection, Direction, Key, Object, Policy, Scope, State};
use crate::plan::underlay::Underlay;
use crate::settings::Secret;

/// The name of this backend in network configs and leases.
pub(crate) const KIND: &str = "ipsec";

/// Its entry in the table.
pub(super) static BACKEND: Definition = Definition {
    // The policies are looked at after the route, whatever that is.
    leaves_routes: true,
    ..Definition::new(KIND, |options, network| {
        Ok(Box::new(IpsecConfig::parse(options, network)?))
    })
};

/// flannel's default: AES-GCM with a check value of 16 bytes; a new key exchange at each rekeying.
const DEFAULT_PROPOSAL: &str = "aes128gcm16-sha256-prfsha256-ecp256";

/// flannel's minimum for the pre-shared key, in bytes.
const MIN_PSK: usize = 96;

/// What a value of VICI can hold, in bytes.
const MAX_PSK: usize = 65_535;

/// The longest `ESPProposal`, in bytes; strongSwan's longest names are some 100.
const MAX_PROPOSAL: usize = 255;

/// See the table above.
const OVERHEAD: u32 = 77;

/// The UDP header of `UDPEncap`.
const UDP_OVERHEAD: u32 = 8;

/// The ipsec keys of the network config's `Backend`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IpsecConfig {
    /// The secret that all nodes share, at least 96 bytes.
    pub psk: Secret,
    /// Whether ESP goes in UDP even without a NAT between the nodes, default off.
    pub udp_encap: bool,
    /// The algorithms of ESP, as swanctl.conf(5) has them in `esp_proposals`.
    pub esp_proposal: String,
}

impl IpsecConfig {
    fn parse(
        options: &go_json::Object<'_>,
        network: &NetworkConfig,
    ) -> Result<Self, BackendConfigError> {
        needs_ipv4(KIND, network)?;
        Ok(Self {
            psk: psk(options)?,
            udp_encap: options.get("UDPEncap", "true or false")?.unwrap_or(false),
            esp_proposal: proposal(options)?,
        })
    }

    /// What encapsulation adds to a packet, in bytes.
    fn overhead(&self) -> u32 {
        OVERHEAD + if self.udp_encap { UDP_OVERHEAD } else { 0 }
    }
}

/// The pre-shared key. Errors never contain it.
fn psk(options: &go_json::Object<'_>) -> Result<Secret, GoJsonError> {
    let unusable = || GoJsonError::Field {
        name: "PSK",
        value: "(redacted)".to_owned(),
        expected: format!(
            "a secret of {MIN_PSK} to {MAX_PSK} bytes, as `openssl rand -hex 48` makes them"
        )
        .into(),
    };
    let text: Option<String> = options.get("PSK", "").map_err(|_| unusable())?;
    match text {
        Some(text) if (MIN_PSK..=MAX_PSK).contains(&text.len()) => Ok(Secret::new(text)),
        Some(_) => Err(unusable()),
        None => Err(GoJsonError::Missing {
            name: "PSK",
            expected: "a secret of at least 96 bytes, as `openssl rand -hex 48` makes them",
        }),
    }
}

fn proposal(options: &go_json::Object<'_>) -> Result<String, GoJsonError> {
    let expected = "an ESP proposal of strongSwan, such as \"aes256gcm16-ecp384\"";
    let text: Option<String> = options.get("ESPProposal", expected)?;
    let text = text.unwrap_or_else(|| DEFAULT_PROPOSAL.to_owned());
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    match (1..=MAX_PROPOSAL).contains(&text.len()) && text.bytes().all(is_word) {
        true => Ok(text),
        false => Err(GoJsonError::Field {
            name: "ESPProposal",
            value: go_json::shorten(&text),
            expected: expected.into(),
        }),
    }
}

impl Options for IpsecConfig {
    fn open(&self, setup: Setup<'_>) -> Result<Opening, Unfit> {
        let backend = IpsecBackend::new(self, setup.config, setup.underlay);
        Ok(Opening::ready(backend))
    }
}

/// The ipsec backend of one node.
#[derive(Clone, Debug)]
pub(super) struct IpsecBackend {
    config: IpsecConfig,
    network: Option<Ipv4Net>,
    underlay: Underlay,
}

impl IpsecBackend {
    fn new(config: &IpsecConfig, network: &NetworkConfig, underlay: &Underlay) -> Self {
        Self {
            config: config.clone(),
            network: network.ipv4.map(|range| range.network),
            underlay: underlay.clone(),
        }
    }

    /// The network, if all of it can be the overlay's: no host of the underlay is in it.
    fn whole_network(&self) -> Option<Ipv4Net> {
        self.network
            .filter(|network| !self.underlay.is_inside((*network).into()))
    }

    /// The peer's subnet and its public IP; `None` for a peer without IPv4.
    fn place(&self, peer: &Lease) -> Result<Option<(Ipv4Net, Ipv4Addr)>, PeerRefusal> {
        same_kind(&peer.attrs, KIND)?;
        let Some(subnet) = peer.key.v4 else {
            return Ok(None);
        };
        let Some(face) = self.underlay.face(subnet.into()) else {
            return Ok(None);
        };
        let public = public_address(peer.attrs.public_ip, subnet.into(), &face)?;
        let networks: Vec<IpNet> = self.network.into_iter().map(IpNet::V4).collect();
        let address = IpAddr::V4(public);
        no_loop(address, &networks, &self.underlay, &self.underlay.name)?;
        Ok(Some((subnet, public)))
    }
}

/// A policy, as an object.
fn policy(direction: Direction, from: Ipv4Net, to: Ipv4Net, policy: Policy) -> (Key, Object) {
    (Key::Policy(direction, from, to), Object::Policy(policy))
}

/// The policies for what the host itself sends: no tunnel is for it.
fn host_fences(
    host: Ipv4Addr,
    own: Ipv4Net,
    network: Ipv4Net,
) -> impl Iterator<Item = (Key, Object)> {
    let host = Ipv4Net::from(host);
    let out = move |to, what| policy(Direction::Out, host, to, what);
    let fences = [out(network, Policy::Block), out(own, Policy::Pass)];
    fences.into_iter().filter(move |_| own != network)
}

/// The policies for what no peer's policy is for.
fn fences(own: Ipv4Net, network: Ipv4Net) -> impl Iterator<Item = (Key, Object)> {
    Direction::ALL.into_iter().flat_map(move |direction| {
        let (from, to) = match direction {
            Direction::Out => (own, network),
            Direction::In | Direction::Forward => (network, own),
        };
        // A network of one subnet has no others to keep packets from.
        let block = (own != network).then(|| policy(direction, from, to, Policy::Block));
        block
            .into_iter()
            .chain([policy(direction, own, own, Policy::Pass)])
    })
}

impl Backend for IpsecBackend {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn mtu(&self) -> u32 {
        let inner = self.underlay.mtu.saturating_sub(self.config.overhead());
        inner.max(MIN_MTU)
    }

    fn lease_attrs(&self) -> LeaseAttrs {
        LeaseAttrs {
            public_ipv6: None,
            ..attrs(KIND, &self.underlay)
        }
    }

    fn over(&self, underlay: &Underlay) -> Box<dyn Backend> {
        Box::new(Self {
            underlay: underlay.clone(),
            ..self.clone()
        })
    }

    fn scope(&self) -> Scope {
        Scope {
            links: Vec::new(),
            networks: self.network.into_iter().map(IpNet::V4).collect(),
            shared: Some(self.underlay.name.clone()),
            hooks: None,
            ipsec: true,
        }
    }

    fn own(&self, own: &SubnetKey) -> State {
        let (Some(network), Some(subnet)) = (self.whole_network(), own.v4) else {
            return State::new();
        };
        let route = device_route(network.into(), &self.underlay.name);
        let hosts = self.underlay.v4.into_iter();
        let hosts = hosts.flat_map(|v4| host_fences(v4.address, subnet, network));
        fences(subnet, network)
            .chain(hosts)
            .chain([route])
            .collect()
    }

    /// Where the network as a whole is not routed, the route to the peer's subnet.
    fn peer(&self, peer: &Lease) -> Result<Vec<(Key, Object)>, PeerRefusal> {
        let place = self.place(peer)?;
        let place = place.filter(|_| self.whole_network().is_none());
        let route = |(subnet, _): (Ipv4Net, _)| device_route(subnet.into(), &self.underlay.name);
        Ok(place.map(route).into_iter().collect())
    }

    fn between(&self, own: &SubnetKey, peer: &Lease) -> Result<Vec<(Key, Object)>, PeerRefusal> {
        let mut objects = self.peer(peer)?;
        let (Some((theirs, remote)), Some(ours), Some(v4)) =
            (self.place(peer)?, own.v4, self.underlay.v4)
        else {
            return Ok(objects);
        };
        let local = v4.address;
        let (there, back) = (
            Policy::Tunnel {
                from: local,
                to: remote,
            },
            Policy::Tunnel {
                from: remote,
                to: local,
            },
        );
        let connection = Connection {
            local,
            public: v4.public,
            subnet: ours,
            peer_subnet: theirs,
            psk: self.config.psk.clone(),
            udp_encap: self.config.udp_encap,
            esp_proposal: self.config.esp_proposal.clone(),
            fenced: self.whole_network().is_some(),
        };
        objects.extend([
            policy(Direction::Out, ours, theirs, there),
            policy(Direction::In, theirs, ours, back),
            policy(Direction::Forward, theirs, ours, back),
            (
                Key::Connection(remote),
                Object::Connection(Box::new(connection)),
            ),
        ]);
        Ok(objects)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::plan::backend::plan::Plan;
    use crate::plan::backend::vxlan::tests::{lease, underlay};
    use crate::plan::state::describe;

    const NETWORK: &str = r#"{"Network":"10.5.0.0/16"}"#;

    fn parse_in(network: &str, options: &str) -> Result<IpsecConfig, BackendConfigError> {
        let network = NetworkConfig::parse(network).unwrap();
        IpsecConfig::parse(&go_json::Object::parse(options).unwrap(), &network)
    }

    /// With a pre-shared key, and more keys in JSON.
    fn config(more: &str) -> IpsecConfig {
        let psk = "k".repeat(MIN_PSK);
        parse_in(NETWORK, &format!(r#"{{"PSK":"{psk}"{more}}}"#)).unwrap()
    }

    fn backend_in(network: &str, more: &str) -> IpsecBackend {
        let network = NetworkConfig::parse(network).unwrap();
        IpsecBackend::new(&config(more), &network, &underlay())
    }

    fn backend(more: &str) -> IpsecBackend {
        backend_in(NETWORK, more)
    }

    fn peer(n: u8, public_ip: [u8; 4]) -> Lease {
        let mut lease = lease(n, n, n);
        lease.attrs.backend_type = KIND.to_owned();
        lease.attrs.backend_data = None;
        lease.attrs.public_ip = Some(public_ip.into());
        lease
    }

    fn own() -> SubnetKey {
        lease(3, 1, 1).key
    }

    fn texts(objects: impl IntoIterator<Item = (Key, Object)>) -> Vec<String> {
        let objects = objects.into_iter();
        objects
            .map(|(key, object)| describe(&key, &object))
            .collect()
    }

    #[test]
    fn peers_policies_and_connection_are_flannels() {
        let objects = backend("")
            .between(&own(), &peer(1, [192, 0, 2, 7]))
            .unwrap();
        assert_eq!(
            texts(objects.clone()),
            [
                "xfrm policy dir out src 10.5.3.0/24 dst 10.5.1.0/24 tmpl src 192.0.2.1 dst 192.0.2.7 proto esp mode tunnel",
                "xfrm policy dir in src 10.5.1.0/24 dst 10.5.3.0/24 tmpl src 192.0.2.7 dst 192.0.2.1 proto esp mode tunnel",
                "xfrm policy dir fwd src 10.5.1.0/24 dst 10.5.3.0/24 tmpl src 192.0.2.7 dst 192.0.2.1 proto esp mode tunnel",
                "IKE connection with 192.0.2.7 from 192.0.2.1 for 10.5.3.0/24 to 10.5.1.0/24",
            ]
        );
        let Some((_, Object::Connection(connection))) = objects.last() else {
            panic!("{objects:?}")
        };
        assert!(!connection.udp_encap);
        assert_eq!(
            connection.esp_proposal,
            "aes128gcm16-sha256-prfsha256-ecp256"
        );
        assert!(!format!("{objects:?}").contains("kkkk"));
    }

    #[test]
    fn what_is_for_no_peer_never_leaves_in_plain_text() {
        assert_eq!(
            texts(backend("").own(&own())),
            [
                "xfrm policy dir in src 10.5.0.0/16 dst 10.5.3.0/24 action block",
                "xfrm policy dir in src 10.5.3.0/24 dst 10.5.3.0/24 action allow",
                "xfrm policy dir out src 10.5.3.0/24 dst 10.5.0.0/16 action block",
                "xfrm policy dir out src 10.5.3.0/24 dst 10.5.3.0/24 action allow",
                "xfrm policy dir out src 192.0.2.1/32 dst 10.5.0.0/16 action block",
                "xfrm policy dir out src 192.0.2.1/32 dst 10.5.3.0/24 action allow",
                "xfrm policy dir fwd src 10.5.0.0/16 dst 10.5.3.0/24 action block",
                "xfrm policy dir fwd src 10.5.3.0/24 dst 10.5.3.0/24 action allow",
                "route 10.5.0.0/16 dev eth0",
            ]
        );
        let single = fences(
            "10.5.0.0/16".parse().unwrap(),
            "10.5.0.0/16".parse().unwrap(),
        );
        assert!(
            single
                .into_iter()
                .all(|(_, object)| object == Object::Policy(Policy::Pass))
        );
        let all = "10.5.0.0/16".parse().unwrap();
        assert_eq!(host_fences([192, 0, 2, 1].into(), all, all).count(), 0);
    }

    #[test]
    fn hosts_of_an_underlay_inside_the_network_are_left_alone() {
        let inside = backend_in(r#"{"Network":"192.0.0.0/14"}"#, "");
        assert_eq!(inside.own(&own()), State::new());
        let mut near = peer(1, [192, 0, 2, 7]);
        near.key.v4 = Some("192.1.1.0/24".parse().unwrap());
        let objects = texts(inside.between(&own(), &near).unwrap());
        assert_eq!(objects.len(), 5);
        assert_eq!(objects[0], "route 192.1.1.0/24 dev eth0");
    }

    #[test]
    fn behind_a_nat_the_tunnel_ends_at_the_interfaces_own_address() {
        let mut behind = underlay();
        behind.v4 = behind.v4.map(|mut v4| {
            v4.public = [203, 0, 113, 5].into();
            v4
        });
        let backend = backend("").over(&behind);
        let objects = backend
            .between(&own(), &peer(1, [198, 51, 100, 7]))
            .unwrap();
        let Object::Policy(there) = &objects[0].1 else {
            panic!("{objects:?}")
        };
        let from = [192, 0, 2, 1].into();
        let to = [198, 51, 100, 7].into();
        assert_eq!(*there, Policy::Tunnel { from, to });
        let Object::Connection(connection) = &objects[3].1 else {
            panic!("{objects:?}")
        };
        assert_eq!(connection.public, Ipv4Addr::new(203, 0, 113, 5));
        assert_eq!(backend.lease_attrs().public_ip, Some(connection.public));
    }

    #[test]
    fn the_mtu_leaves_room_as_flannels_does() {
        assert_eq!(backend("").mtu(), 1423);
        assert_eq!(backend(r#","UDPEncap":true"#).mtu(), 1415);
        let narrow = Underlay {
            mtu: 100,
            ..underlay()
        };
        assert_eq!(backend("").over(&narrow).mtu(), MIN_MTU);
    }

    #[test]
    fn the_lease_has_no_data() {
        assert_eq!(
            backend("").lease_attrs().to_json().unwrap(),
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"ipsec"}"#
        );
    }

    #[test]
    fn peers_that_no_tunnel_can_reach_are_refused() {
        let mut other = peer(1, [192, 0, 2, 7]);
        other.attrs.backend_type = "vxlan".to_owned();
        let mut nowhere = peer(1, [192, 0, 2, 7]);
        nowhere.attrs.public_ip = None;
        for (lease, reason) in [
            (other, "it runs another backend, \"vxlan\""),
            (nowhere, "its lease has no PublicIP for 10.5.1.0/24"),
            (
                peer(1, [192, 0, 2, 1]),
                "its public IP 192.0.2.1 is this node's",
            ),
            (
                peer(1, [10, 5, 9, 9]),
                "its public IP 10.5.9.9 is inside the network 10.5.0.0/16, which is routed into eth0; this node's underlay is outside it",
            ),
        ] {
            let refusals = [
                backend("").peer(&lease).unwrap_err(),
                backend("").between(&own(), &lease).unwrap_err(),
            ];
            assert_eq!(refusals.map(|why| why.to_string()), [reason, reason]);
        }
    }

    /// The kernel finds the key for a packet by the peer's address alone.
    #[test]
    fn two_nodes_at_one_address_are_told_apart_by_age() {
        let backend = backend("");
        let [old, young] = [1, 2].map(|n| Arc::new(peer(n, [192, 0, 2, 7])));
        let peers = [Arc::clone(&young), Arc::clone(&old)];
        let mut plan = Plan::new(Arc::new(backend), &own(), peers);
        assert_eq!(plan.accepted(), 1);
        assert_eq!(
            plan.refusal(&young.key).unwrap().to_string(),
            "the older lease of 10.5.1.0/24 already has IKE connection with 192.0.2.7"
        );
        plan.remove_peer(&old.key);
        assert_eq!(plan.refusal(&young.key), None);
    }

    #[test]
    fn unusable_keys_are_refused_and_the_secret_is_not_shown() {
        let long = "s".repeat(MAX_PSK + 1);
        let range = "is not a secret of 96 to 65535 bytes, as `openssl rand -hex 48` makes them";
        let good = "s".repeat(MIN_PSK);
        for (options, reason) in [
            (
                "{}".to_owned(),
                "Backend: PSK is missing: expected a secret of at least 96 bytes, as `openssl rand -hex 48` makes them".to_owned(),
            ),
            (
                format!(r#"{{"PSK":"{}"}}"#, &good[1..]),
                format!("Backend: PSK: (redacted) {range}"),
            ),
            (
                format!(r#"{{"psk":"{long}"}}"#),
                format!("Backend: PSK: (redacted) {range}"),
            ),
            (
                r#"{"PSK":123456}"#.to_owned(),
                format!("Backend: PSK: (redacted) {range}"),
            ),
            (
                format!(r#"{{"PSK":"{good}","UDPEncap":"yes"}}"#),
                "Backend: UDPEncap: \"yes\" is not true or false".to_owned(),
            ),
            (
                format!(r#"{{"PSK":"{good}","ESPProposal":""}}"#),
                "Backend: ESPProposal:  is not an ESP proposal of strongSwan, such as \"aes256gcm16-ecp384\"".to_owned(),
            ),
            (
                format!(r#"{{"PSK":"{good}","ESPProposal":"aes128, null"}}"#),
                "Backend: ESPProposal: aes128, null is not an ESP proposal of strongSwan, such as \"aes256gcm16-ecp384\"".to_owned(),
            ),
        ] {
            let error = parse_in(NETWORK, &options).unwrap_err().to_string();
            assert_eq!(error, reason);
        }
        let alone = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;
        assert!(parse_in(alone, &format!(r#"{{"PSK":"{good}"}}"#)).is_err());
    }

    /// flannel's `dist/ipsec`, the config of issue 1027 there, and one with the keys of its `Documentation/backends.md`.
    #[test]
    fn flannels_own_configs_are_understood() {
        let (sample, reported) = (
            "4bc1e570ff249cce3cc8cef5e2f8625bac76c7b02532f8bde9747196eb15a742480e265bbc0c60c265a8fe4eb6380cd1",
            "18bb8c151cf37225c276373a25857da26d34e13c1d258bc80872dc9a9b8569d3c22e9927c400dace1029ca4df76c90d4",
        );
        for (text, psk, encap) in [
            (
                format!(r#"{{"Type":"ipsec","PSK":"{sample}"}}"#),
                sample,
                false,
            ),
            (
                format!(r#"{{"Type":"ipsec", "PSK": "{reported}"}}"#),
                reported,
                false,
            ),
            (
                format!(
                    r#"{{"type":"ipsec","udpencap":true,"ESPProposal":"aes256-sha256-modp2048","psk":"{sample}"}}"#
                ),
                sample,
                true,
            ),
        ] {
            let config = parse_in(NETWORK, &text).unwrap();
            assert_eq!((config.psk.expose(), config.udp_encap), (psk, encap));
        }
    }
}
