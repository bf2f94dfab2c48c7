//! A connection in charon's words: its name, as flannel makes it, and the messages that load it.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use ring::hmac;

use super::salt::Salt;
use super::vici::Section;
use crate::host::netlink::CHARON_PRIORITY;
use crate::plan::state::Connection;

/// flannel's proposal for IKE.
const IKE_PROPOSAL: &str = "aes256-sha256-modp4096";

/// flannel's reqid, which ties charon's states to the policies.
const REQID: &str = "11";

/// flannel's time between two rekeyings of a tunnel.
const REKEY_TIME: &str = "1h";

/// How long a peer may be silent, with no packet in the tunnel, until it is asked whether it is alive.
const DPD_DELAY: &str = "10s";

/// The name of a connection: the nodes' public addresses around their subnets.
pub(super) fn connection(remote: Ipv4Addr, wanted: &Connection) -> String {
    format!(
        "{}-{}-{}-{remote}",
        wanted.public, wanted.subnet, wanted.peer_subnet
    )
}

/// The name of its tunnel.
pub(super) fn tunnel(wanted: &Connection) -> String {
    format!("{}-{}", wanted.subnet, wanted.peer_subnet)
}

/// Whether a name is one of ours, or flannel's, for these networks.
pub(super) fn is_ours(name: &str, networks: &[IpNet]) -> bool {
    let mut parts = name.split('-');
    let (Some(local), Some(subnet), Some(theirs), Some(remote), None) = (
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
    ) else {
        return false;
    };
    let is_address = |text: &str| text.parse::<Ipv4Addr>().is_ok();
    let is_inside = |text: &str| {
        let net = text.parse::<Ipv4Net>();
        let mut networks = networks.iter().filter(|network| network.prefix_len() > 0);
        net.is_ok_and(|net| networks.any(|network| network.contains(&IpNet::V4(net))))
    };
    is_address(local) && is_address(remote) && is_inside(subnet) && is_inside(theirs)
}

/// The arguments of `load-conn`: flannel's, except that the nodes name themselves, as their public addresses may be a
/// NAT's; that charon itself begins nothing, since of two ends that begin at once each would make a tunnel; that it does
/// not move tunnels to other addresses of the host (MOBIKE, RFC 4555), where no policy would find them; and that it puts
/// policies of its own in the place of the kernel's, where packets without a tunnel are blocked by others: its own go with
/// the tunnel.
///
/// charon's policy for packets to the peer names the SPI. When keys are renewed, the node that answers has both states at
/// once, and changes over when the other one deletes the old state (`child_sa.c`, `register_outbound()`): then that one
/// has the new keys for certain. By flannel's policies, which name no SPI, the kernel would take the newest state at once.
pub(super) fn load_connection(remote: Ipv4Addr, wanted: &Connection) -> Section {
    let child = Section::default()
        .with_list("local_ts", wanted.subnet.to_string())
        .with_list("remote_ts", wanted.peer_subnet.to_string())
        .with_list("esp_proposals", &wanted.esp_proposal)
        .with("mode", "tunnel")
        .with("reqid", REQID)
        .with("rekey_time", REKEY_TIME)
        .with("start_action", "none")
        .with("close_action", "none")
        .with("dpd_action", "restart")
        .with("policies", if wanted.fenced { "yes" } else { "no" })
        .with("priority", CHARON_PRIORITY.to_string());
    let psk = |id: Ipv4Addr| {
        Section::default()
            .with("auth", "psk")
            .with("id", id.to_string())
    };
    let config = Section::default()
        .with_list("local_addrs", wanted.local.to_string())
        .with_list("remote_addrs", remote.to_string())
        .with_list("proposals", IKE_PROPOSAL)
        .with("version", "2")
        .with("keyingtries", "0")
        .with("dpd_delay", DPD_DELAY)
        .with("mobike", "no")
        .with("encap", if wanted.udp_encap { "yes" } else { "no" })
        .with_section("local", psk(wanted.public))
        .with_section("remote", psk(remote))
        .with_section(
            "children",
            Section::default().with_section(&tunnel(wanted), child),
        );
    Section::default().with_section(&connection(remote, wanted), config)
}

/// charon's name for the secret of a connection: it tells later runs of the agent, to whom charon gives no secret, whether
/// it is another one now. Four bytes of a HMAC: enough to tell two apart. charon logs the name, and without the host's salt
/// nobody can try a guess of the secret on it.
pub(super) fn secret(remote: Ipv4Addr, wanted: &Connection, salt: &Salt) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, wanted.psk.expose().as_bytes());
    let tag = hmac::sign(&key, &salt.0);
    let name = connection(remote, wanted);
    let digits = tag.as_ref().iter().take(4);
    digits.fold(name + "#", |name, byte| format!("{name}{byte:02x}"))
}

/// The name of a secret until the nodes have proved to each other that they have it, which a later run is to go on with.
pub(super) fn unproved(secret: &str) -> String {
    format!("{secret}?")
}

/// The connection that a secret of that name is for. What flannel or others load has other names.
pub(super) fn owner(secret: &str) -> &str {
    secret.split_once('#').map_or(secret, |(name, _)| name)
}

/// The arguments of `load-shared`, under that name. The secret belongs to the peer's name alone: the own one would let it
/// be tried for every other peer.
pub(super) fn load_secret(remote: Ipv4Addr, wanted: &Connection, id: &str) -> Section {
    Section::default()
        .with("id", id)
        .with("type", "IKE")
        .with("data", wanted.psk.expose())
        .with_list("owners", remote.to_string())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::settings::Secret;

    pub(in crate::host::ike) fn wanted() -> Connection {
        Connection {
            local: [10, 193, 37, 153].into(),
            public: [10, 193, 37, 153].into(),
            subnet: "172.17.96.0/24".parse().unwrap(),
            peer_subnet: "172.17.69.0/24".parse().unwrap(),
            psk: Secret::new("swordfish".repeat(11)),
            udp_encap: false,
            esp_proposal: "aes128gcm16-sha256-prfsha256-ecp256".to_owned(),
            fenced: true,
        }
    }

    /// The format of `formatConnectionName()` and `formatChildSAConfName()` in flannel's `handle_charon.go`.
    #[test]
    fn names_are_flannels() {
        let remote = [10, 193, 37, 216].into();
        let name = connection(remote, &wanted());
        assert_eq!(
            name,
            "10.193.37.153-172.17.96.0/24-172.17.69.0/24-10.193.37.216"
        );
        assert_eq!(tunnel(&wanted()), "172.17.96.0/24-172.17.69.0/24");
        let networks = ["172.17.0.0/16".parse().unwrap()];
        assert!(is_ours(&name, &networks));
        for other in [
            "",
            "home",
            "office-vpn-site-b",
            "10.193.37.153-172.18.96.0/24-172.17.69.0/24-10.193.37.216",
            "10.193.37.153-172.17.96.0/24-172.17.69.0/24-10.193.37.216-1",
            "fd00::1-172.17.96.0/24-172.17.69.0/24-10.193.37.216",
            "10.193.37.153-172.17.96.0/24-0.0.0.0/0-10.193.37.216",
        ] {
            assert!(!is_ours(other, &networks), "{other}");
        }
        // Of an unknown network nothing is ours.
        assert!(!is_ours(&name, &["0.0.0.0/0".parse().unwrap()]));
    }

    #[test]
    fn a_connection_has_all_that_flannels_has() {
        let message = load_connection([10, 193, 37, 216].into(), &wanted());
        let (_, config) = message.sections().next().unwrap();
        let texts = |section: &Section, name: &str| -> Vec<String> {
            section.texts(name).map(str::to_owned).collect()
        };
        assert_eq!(texts(config, "local_addrs"), ["10.193.37.153"]);
        assert_eq!(texts(config, "remote_addrs"), ["10.193.37.216"]);
        assert_eq!(texts(config, "proposals"), ["aes256-sha256-modp4096"]);
        assert_eq!(config.text("version"), Some("2"));
        assert_eq!(config.text("encap"), Some("no"));
        let remote = config.section("remote").unwrap();
        assert_eq!(remote.text("id"), Some("10.193.37.216"));
        let children = config.section("children").unwrap();
        let (name, child) = children.sections().next().unwrap();
        assert_eq!(name, "172.17.96.0/24-172.17.69.0/24");
        for (key, value) in [
            ("reqid", "11"),
            ("mode", "tunnel"),
            ("rekey_time", "1h"),
            ("dpd_action", "restart"),
        ] {
            assert_eq!(child.text(key), Some(value), "{key}");
        }
        assert_eq!(texts(child, "remote_ts"), ["172.17.69.0/24"]);
        let secret = load_secret([10, 193, 37, 216].into(), &wanted(), "id");
        assert_eq!(texts(&secret, "owners"), ["10.193.37.216"]);
        assert_eq!(secret.text("data"), Some(&*"swordfish".repeat(11)));
    }

    /// Its policies go with the tunnel: what would then block plain packets?
    #[test]
    fn only_where_packets_without_a_tunnel_are_blocked_has_charon_policies() {
        for (fenced, policies) in [(true, "yes"), (false, "no")] {
            let wanted = Connection { fenced, ..wanted() };
            let message = load_connection([10, 193, 37, 216].into(), &wanted);
            let (_, config) = message.sections().next().unwrap();
            let children = config.section("children").unwrap();
            let (_, child) = children.sections().next().unwrap();
            assert_eq!(child.text("policies"), Some(policies));
        }
    }

    #[test]
    fn a_secrets_name_tells_whose_it_is_and_which() {
        let remote = [10, 193, 37, 216].into();
        let renewed = Connection {
            psk: Secret::new("swordfish".repeat(12)),
            ..wanted()
        };
        let salt = Salt([1; 16]);
        let [before, after] = [&wanted(), &renewed].map(|wanted| secret(remote, wanted, &salt));
        assert_eq!(before, secret(remote, &wanted(), &salt));
        assert_ne!(before, after);
        assert_ne!(before, secret(remote, &wanted(), &Salt([2; 16])));
        assert_eq!(before.len(), connection(remote, &wanted()).len() + 9);
        for id in [
            &*before,
            &*unproved(&after),
            &*connection(remote, &wanted()),
        ] {
            assert_eq!(owner(id), connection(remote, &wanted()));
        }
    }
}
