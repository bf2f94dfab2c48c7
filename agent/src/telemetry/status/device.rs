//! Converts a kernel device for the status.

use super::{Device, Traffic};
use crate::base::net::InterfaceName;
use crate::host::netlink;
use crate::plan::state::{LinkKind, Object};

impl Device {
    /// The status of an overlay device, as observed.
    pub(crate) fn seen(name: &InterfaceName, found: Option<netlink::Device>) -> Self {
        let (kind, mtu, mac) = match found.as_ref().map(|device| &device.object) {
            Some(Object::Link(link)) => (
                Some(kind(&link.kind).to_owned()),
                Some(link.mtu),
                link.kind.mac().map(|mac| mac.to_string()),
            ),
            _ => (None, None, None),
        };
        let present = found.is_some();
        let statistics = found.map(|device| device.statistics).unwrap_or_default();
        Self {
            name: name.to_string(),
            present,
            kind,
            mtu,
            mac,
            traffic: Traffic {
                rx_bytes: statistics.rx_bytes,
                tx_bytes: statistics.tx_bytes,
                rx_packets: Some(statistics.rx_packets),
                tx_packets: Some(statistics.tx_packets),
            },
            tx_errors: statistics.tx_errors,
            tx_dropped: statistics.tx_dropped,
            rx_errors: statistics.rx_errors,
            rx_dropped: statistics.rx_dropped,
        }
    }
}

/// As in `ip link`; also the name of the kernel module.
pub(super) fn kind(kind: &LinkKind) -> &'static str {
    match kind {
        LinkKind::Vxlan(_) => "vxlan",
        LinkKind::Ipip(_) => "ipip",
        LinkKind::Wireguard(_) => "wireguard",
        LinkKind::Tun(_) => "tun",
    }
}
