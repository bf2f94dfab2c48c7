//! What is tried: network configs, and what each must look like from a container and on the underlay.

use serde_json::{Value, json};

use crate::switch::capture::{
    Carrier::{self, Ipip, Plain, Udp},
    Family::{V4, V6},
};

/// MTU of the underlay less what each backend puts around a packet (Ethernet, IP, UDP and its own header).
const UNDERLAY: u32 = 1500;
const VXLAN: u32 = UNDERLAY - 50;
const VXLAN_OVER_IPV6: u32 = UNDERLAY - 70;
const IPIP: u32 = UNDERLAY - 20;
const UDP: u32 = UNDERLAY - 28;
const WIREGUARD: u32 = UNDERLAY - 80;

/// A kind of network, and what must hold of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Network {
    /// Name of the case.
    pub case: &'static str,
    /// `Backend` of the network config; empty: none.
    backend: &'static str,
    /// The config's `Encrypt`.
    encrypt: bool,
    /// Whether containers have IPv4 addresses.
    pub v4: bool,
    /// Whether containers have IPv6 addresses.
    pub v6: bool,
    /// MTU of the overlay in bytes.
    pub mtu: u32,
    /// Whether nothing may be readable on the underlay.
    pub encrypted: bool,
    /// What packets travel in, and nothing else.
    pub carriers: &'static [Carrier],
}

impl Network {
    const fn new(
        case: &'static str,
        backend: &'static str,
        mtu: u32,
        carriers: &'static [Carrier],
    ) -> Self {
        Self {
            case,
            backend,
            encrypt: false,
            v4: true,
            v6: false,
            mtu,
            encrypted: false,
            carriers,
        }
    }

    const fn encrypted(self) -> Self {
        Self {
            encrypted: true,
            ..self
        }
    }

    const fn dual_stack(self) -> Self {
        Self { v6: true, ..self }
    }

    const fn only_ipv6(self) -> Self {
        Self {
            v4: false,
            v6: true,
            ..self
        }
    }

    /// The network config in flannel's JSON; `network` is the IPv4 network.
    pub(super) fn config(&self, network: &str) -> String {
        let mut config = json!({});
        if self.v4 {
            config["Network"] = network.into();
        } else {
            config["EnableIPv4"] = false.into();
        }
        if self.v6 {
            config["EnableIPv6"] = true.into();
            config["IPv6Network"] = "fd05::/48".into();
        }
        if self.encrypt {
            config["Encrypt"] = true.into();
        }
        if let Ok(backend @ Value::Object(_)) = serde_json::from_str(self.backend) {
            config["Backend"] = backend;
        }
        config.to_string()
    }
}

/// All kinds; those with IPv4 alone first, for the first machine's Docker stops for the others.
pub(super) const NETWORKS: [Network; 14] = [
    Network::new(
        "networks::vxlan",
        r#"{"Type": "vxlan"}"#,
        VXLAN,
        &[Udp(V4, 8472)],
    ),
    Network::new(
        "networks::vxlan_direct_routing",
        r#"{"Type": "vxlan", "DirectRouting": true}"#,
        VXLAN,
        &[Plain(V4)],
    ),
    Network::new(
        "networks::host_gw",
        r#"{"Type": "host-gw"}"#,
        UNDERLAY,
        &[Plain(V4)],
    ),
    Network::new("networks::ipip", r#"{"Type": "ipip"}"#, IPIP, &[Ipip]),
    Network::new("networks::udp", r#"{"Type": "udp"}"#, UDP, &[Udp(V4, 8285)]),
    Network::new(
        "networks::wireguard",
        r#"{"Type": "wireguard"}"#,
        WIREGUARD,
        &[Udp(V4, 51820)],
    )
    .encrypted(),
    Network::new(
        "networks::wireguard_auto_with_psk",
        r#"{"Type": "wireguard", "Mode": "auto",
            "PSK": "c2VsdmFnZSBzZWx2YWdlIHNlbHZhZ2Ugc2VsdmFnZSE="}"#,
        WIREGUARD,
        &[Udp(V4, 51820)],
    )
    .encrypted(),
    Network::new(
        "networks::wireguard_ipv4_on_another_port",
        r#"{"Type": "wireguard", "Mode": "ipv4", "ListenPort": 51999}"#,
        WIREGUARD,
        &[Udp(V4, 51999)],
    )
    .encrypted(),
    Network {
        encrypt: true,
        ..Network::new("networks::encrypt", "", WIREGUARD, &[Udp(V4, 51820)])
    }
    .encrypted(),
    Network::new(
        "networks::vxlan_dual_stack",
        r#"{"Type": "vxlan"}"#,
        VXLAN_OVER_IPV6,
        &[Udp(V4, 8472), Udp(V6, 8472)],
    )
    .dual_stack(),
    Network::new(
        "networks::host_gw_dual_stack",
        r#"{"Type": "host-gw"}"#,
        UNDERLAY,
        &[Plain(V4), Plain(V6)],
    )
    .dual_stack(),
    Network::new(
        "networks::wireguard_dual_stack",
        r#"{"Type": "wireguard"}"#,
        WIREGUARD,
        &[Udp(V4, 51820), Udp(V6, 51821)],
    )
    .dual_stack()
    .encrypted(),
    Network::new(
        "networks::wireguard_ipv6",
        r#"{"Type": "wireguard", "Mode": "ipv6"}"#,
        WIREGUARD,
        &[Udp(V6, 51820)],
    )
    .dual_stack()
    .encrypted(),
    Network::new(
        "networks::vxlan_only_ipv6",
        r#"{"Type": "vxlan"}"#,
        VXLAN_OVER_IPV6,
        &[Udp(V6, 8472)],
    )
    .only_ipv6(),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configs_are_what_flannel_reads() {
        let config = |case: &str| {
            let kind = NETWORKS.iter().find(|kind| kind.case.ends_with(case));
            let text = kind.unwrap().config("10.5.0.0/16");
            serde_json::from_str::<Value>(&text).unwrap()
        };
        assert_eq!(
            config("::encrypt"),
            json!({"Network": "10.5.0.0/16", "Encrypt": true})
        );
        assert_eq!(
            config("::vxlan_only_ipv6"),
            json!({"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd05::/48",
                "Backend": {"Type": "vxlan"}})
        );
    }

    #[test]
    fn every_backend_is_json() {
        for kind in NETWORKS.iter().filter(|kind| !kind.backend.is_empty()) {
            let backend: Value = serde_json::from_str(kind.backend).unwrap();
            assert!(backend["Type"].is_string(), "{}", kind.case);
        }
    }
}
