//! Opens a backend from its config and facts about the host.
//!
//! The config alone is not enough: the peers already know the node's MAC address or key, and a TUN device gets the
//! first free name. A plan does no I/O. So opening a backend is a series of questions ([`Opening`]), each with a pure
//! function from the answer to the next question or to the backend; `host::open` answers them.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use thiserror::Error;

use super::Backend;
use crate::base::net::{InterfaceName, MacAddr};
use crate::cluster::network_config::NetworkConfig;
use crate::plan::state::Link;
use crate::plan::underlay::Underlay;
use crate::plan::wireguard_key::PrivateKey;

/// The inputs of a backend.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// The network config.
    pub config: &'a NetworkConfig,
    /// The device that carries the encapsulated packets.
    pub underlay: &'a Underlay,
    /// The state directory, where the identity survives a reboot.
    pub state_dir: &'a Path,
    /// Whether to generate a new identity, because an older node has the current one.
    pub new_identity: bool,
    /// The output of the config's first command, if it has run already.
    pub printed: Option<&'a str>,
}

/// A command of the administrator that runs before the backend is opened; the backend needs its output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FirstCommand {
    /// Its key in the network config.
    pub(crate) key: &'static str,
    /// For the shell.
    pub(crate) command: String,
}

/// The next step, given an answer.
pub(crate) type Then<T> = Box<dyn FnOnce(T) -> Opening + Send>;

/// The next step of opening a backend.
pub(crate) enum Opening {
    /// The backend is ready.
    Ready(Box<dyn Backend>),
    /// The name for a TUN device, unused by other agents on this host.
    Tun(Then<InterfaceName>),
    /// The existing device with this name, if it is of a kind that the agent knows.
    Device(InterfaceName, Then<Option<Link>>),
    /// The MAC address of a device; an existing device's is preferred.
    Mac {
        device: InterfaceName,
        existing: Option<MacAddr>,
        then: Then<MacAddr>,
    },
    /// This node's private key.
    PrivateKey(Then<PrivateKey>),
    /// The output of the first command.
    Output {
        command: FirstCommand,
        then: Then<String>,
    },
}

/// The question as text.
impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(backend) => write!(f, "{} is ready", backend.kind()),
            Self::Tun(_) => f.write_str("which TUN device"),
            Self::Device(name, _) => write!(f, "which device is {name}"),
            Self::Mac {
                device, existing, ..
            } => write!(f, "which MAC address has {device}, now {existing:?}"),
            Self::PrivateKey(_) => f.write_str("which private key"),
            Self::Output { command, .. } => {
                write!(f, "what prints {} {:?}", command.key, command.command)
            }
        }
    }
}

impl Opening {
    pub(super) fn ready(backend: impl Backend + 'static) -> Self {
        Self::Ready(Box::new(backend))
    }
}

/// A backend cannot work on this host.
#[derive(Debug, Error)]
pub enum Unfit {
    /// The backend does not work behind NAT.
    #[error(
        "{kind} does not work behind a NAT: the public IP is {public}, but the interface has {address}"
    )]
    Nat {
        /// The backend's name.
        kind: &'static str,
        /// The interface's address.
        address: IpAddr,
        /// The public IP in the settings.
        public: IpAddr,
    },
    /// The underlay's MTU is too small for IPv6 in the overlay.
    #[error(
        "IPv6 over {kind} needs an underlay with an MTU of at least {needed} bytes, but {interface} has {mtu}"
    )]
    Narrow {
        /// The backend's name.
        kind: &'static str,
        /// The underlay's interface.
        interface: InterfaceName,
        /// Its MTU in bytes.
        mtu: u32,
        /// The minimum.
        needed: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::backend::BackendConfig;
    use crate::plan::backend::vxlan::tests::underlay;
    use crate::plan::state::{LinkKind, Vxlan};

    fn open(backend: &str) -> Result<Opening, Unfit> {
        open_over(&underlay(), backend)
    }

    fn open_over(underlay: &Underlay, backend: &str) -> Result<Opening, Unfit> {
        let config = format!(
            r#"{{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{backend}}}"#
        );
        let config = NetworkConfig::parse(&config).unwrap();
        let setup = Setup {
            config: &config,
            underlay,
            state_dir: "/nonexistent".as_ref(),
            new_identity: false,
            printed: None,
        };
        BackendConfig::parse(&config).unwrap().open(setup)
    }

    fn device(vni: u32, mac: MacAddr) -> Link {
        let vxlan = Vxlan {
            vni,
            port: 8472,
            underlay_index: 2,
            local: [192, 0, 2, 1].into(),
            mac,
            learning: false,
            gbp: false,
            checksum: true,
        };
        Link {
            mtu: 1450,
            up: true,
            kind: LinkKind::Vxlan(vxlan),
        }
    }

    /// Answers all questions: the IPv4 device exists; the IPv6 one does not, or is another program's.
    fn answer_vxlan(existing_v6: Option<Link>) -> (Vec<String>, Box<dyn Backend>) {
        let mac: MacAddr = "02:00:00:00:00:07".parse().unwrap();
        let mut opening = open(r#"{"Type":"vxlan","VNI":3}"#).unwrap();
        let mut questions = Vec::new();
        loop {
            questions.push(format!("{opening:?}"));
            opening = match opening {
                Opening::Ready(backend) => return (questions, backend),
                Opening::Device(name, then) if name.as_str() == "flannel.3" => {
                    then(Some(device(3, mac)))
                }
                Opening::Device(_, then) => then(existing_v6.clone()),
                Opening::Mac { existing, then, .. } => {
                    then(existing.unwrap_or_else(|| "02:00:00:00:00:08".parse().unwrap()))
                }
                other => panic!("{other:?}"),
            };
        }
    }

    #[test]
    fn vxlan_asks_for_each_device_and_knows_the_mac_address_of_its_own() {
        let others = device(4, "02:00:00:00:00:09".parse().unwrap());
        for existing in [None, Some(others)] {
            let (questions, backend) = answer_vxlan(existing);
            assert_eq!(
                questions,
                [
                    "which device is flannel.3",
                    "which MAC address has flannel.3, now Some(02:00:00:00:00:07)",
                    "which device is flannel-v6.3",
                    "which MAC address has flannel-v6.3, now None",
                    "vxlan is ready",
                ]
            );
            let attrs = backend.lease_attrs();
            let data = |data: Option<Box<serde_json::value::RawValue>>| data.unwrap().to_string();
            assert_eq!(
                data(attrs.backend_data),
                r#"{"VNI":3,"VtepMAC":"02:00:00:00:00:07"}"#
            );
            assert_eq!(
                data(attrs.backend_v6_data),
                r#"{"VNI":3,"VtepMAC":"02:00:00:00:00:08"}"#
            );
        }
    }

    #[test]
    fn what_cannot_work_here_asks_for_nothing() {
        let narrow = Underlay {
            mtu: 1300,
            ..underlay()
        };
        let error = open_over(&narrow, r#"{"Type":"vxlan"}"#).unwrap_err();
        assert_eq!(
            error.to_string(),
            "IPv6 over vxlan needs an underlay with an MTU of at least 1350 bytes, but eth0 has 1300"
        );
    }

    #[test]
    fn the_others_ask_at_most_one_thing() {
        for (backend, question) in [
            (r#"{"Type":"alloc"}"#, "alloc is ready"),
            (r#"{"Type":"host-gw"}"#, "host-gw is ready"),
            (r#"{"Type":"ipip"}"#, "ipip is ready"),
            (r#"{"Type":"udp"}"#, "which TUN device"),
            (r#"{"Type":"wireguard"}"#, "which private key"),
            (r#"{"Type":"extension"}"#, "extension is ready"),
            (
                r#"{"Type":"extension","PreStartupCommand":"id"}"#,
                "what prints PreStartupCommand \"id\"",
            ),
        ] {
            assert_eq!(format!("{:?}", open(backend).unwrap()), question);
        }
    }

    #[test]
    fn an_extensions_data_is_what_its_first_command_prints() {
        let opening = open(r#"{"Type":"extension","PreStartupCommand":"id"}"#).unwrap();
        let Opening::Output { then, .. } = opening else {
            panic!("{opening:?}");
        };
        let Opening::Ready(backend) = then(" a b\n".to_owned()) else {
            panic!("not ready");
        };
        let data = backend.lease_attrs().backend_data.unwrap();
        assert_eq!(data.get(), "\"a b\"");
    }
}
