//! The wireguard keys of the network config's `Backend`.

use serde::Deserialize;

use super::{MIN_MTU, MIN_MTU_V6, OVERHEAD, number16};
use crate::base::go_json::{GoJsonError, Object};
use crate::cluster::network_config::NetworkConfig;
use crate::plan::backend::BackendConfigError;
use crate::plan::wireguard_key::PresharedKey;

const DEFAULT_PORT: u16 = 51820;
const DEFAULT_PORT_V6: u16 = 51821;

/// The wireguard keys of the network config's `Backend`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WireguardConfig {
    /// UDP port, 1 to 65535; default 51820.
    pub port: u16,
    /// UDP port of the second device in mode `separate`, 1 to 65535; default 51821.
    pub port_v6: u16,
    /// MTU of the *underlay* in bytes; that of the underlay device if absent.
    pub mtu: Option<u32>,
    /// A secret that all nodes share, on top of their keys.
    pub preshared_key: Option<PresharedKey>,
    /// Keepalive interval in seconds, for NAT, 0 to 65535; default 0, off.
    pub keepalive: u16,
    /// Which family carries which; default `separate`.
    pub mode: Mode,
}

/// How overlay families map to underlay families.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A device for each family of the overlay, over the same family.
    #[default]
    Separate,
    /// One device, over the family that is more likely to reach the peer.
    Auto,
    /// One device, over IPv4.
    Ipv4,
    /// One device, over IPv6.
    Ipv6,
}

impl WireguardConfig {
    pub(super) fn parse(
        options: &Object<'_>,
        network: &NetworkConfig,
    ) -> Result<Self, BackendConfigError> {
        let least = match network.ipv6 {
            Some(_) => MIN_MTU_V6,
            None => MIN_MTU,
        };
        let modes = "\"separate\", \"auto\", \"ipv4\" or \"ipv6\"";
        let config = Self {
            port: number16(options, "ListenPort", 1)?.unwrap_or(DEFAULT_PORT),
            port_v6: number16(options, "ListenPortV6", 1)?.unwrap_or(DEFAULT_PORT_V6),
            mtu: options.integer("MTU", least + OVERHEAD..=u32::from(u16::MAX))?,
            preshared_key: preshared_key(options)?,
            keepalive: number16(options, "PersistentKeepaliveInterval", 0)?.unwrap_or(0),
            mode: options.get("Mode", modes)?.unwrap_or_default(),
        };
        let missing = match config.mode {
            Mode::Ipv4 if network.ipv4.is_none() => Some("EnableIPv4"),
            Mode::Ipv6 if network.ipv6.is_none() => Some("EnableIPv6"),
            _ => None,
        };
        if let Some(family) = missing {
            return Err(BackendConfigError::ModeWithout(family));
        }
        let both = network.ipv4.is_some() && network.ipv6.is_some();
        if config.mode == Mode::Separate && both && config.port == config.port_v6 {
            return Err(GoJsonError::Field {
                name: "ListenPortV6",
                value: config.port_v6.to_string(),
                expected: "another port than ListenPort, since Mode \"separate\" has two devices"
                    .into(),
            }
            .into());
        }
        Ok(config)
    }
}

/// The pre-shared key; an empty string means none. Errors never contain it.
fn preshared_key(options: &Object<'_>) -> Result<Option<PresharedKey>, GoJsonError> {
    let unusable = || GoJsonError::Field {
        name: "PSK",
        value: "(redacted)".to_owned(),
        expected: "a key of 32 bytes in base64, as `wg genpsk` makes them".into(),
    };
    let text: Option<String> = options.get("PSK", "").map_err(|_| unusable())?;
    match text.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| unusable()),
    }
}
