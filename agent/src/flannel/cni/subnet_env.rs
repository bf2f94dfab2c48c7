//! Parses `subnet.env` as flannel's CNI plugin does.
//!
//! The agent reads its own file with a dotenv parser (`subnet_file`); flannel's plugin does not, so neither does this
//! one: a line is split at its first `=`, quotes are kept, unknown keys are skipped, and a known key with an invalid
//! value is an error. One difference: a known key without `=` is an error, where flannel's plugin crashes.

use std::io;
use std::path::Path;

use ipnet::IpNet;
use thiserror::Error;

/// Missing or invalid contents. The texts are Go's.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// An invalid network or subnet.
    #[error("invalid CIDR address: {value}")]
    Cidr {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// The MTU is not a 32-bit number.
    #[error("strconv.ParseUint: parsing {value:?}: {why}")]
    Mtu {
        /// Its value.
        value: String,
        /// Go's reason.
        why: &'static str,
    },
    /// A key without a value.
    #[error("{key} has no '='")]
    NoValue {
        /// The key.
        key: &'static str,
    },
    /// Required keys are missing; network and subnet are required for one family only.
    #[error("{file} is missing {}", .keys.join(", "))]
    Missing {
        /// The file's name.
        file: String,
        /// The keys.
        keys: Vec<&'static str>,
    },
}

impl Error {
    /// The key with the invalid value.
    pub(super) fn key(&self) -> Option<&'static str> {
        match self {
            Self::Cidr { key, .. } => Some(key),
            Self::Mtu { .. } => Some(MTU),
            Self::NoValue { .. } | Self::Missing { .. } => None,
        }
    }
}

const NETWORK: &str = "FLANNEL_NETWORK";
const SUBNET: &str = "FLANNEL_SUBNET";
const IPV6_NETWORK: &str = "FLANNEL_IPV6_NETWORK";
const IPV6_SUBNET: &str = "FLANNEL_IPV6_SUBNET";
const MTU: &str = "FLANNEL_MTU";
const IPMASQ: &str = "FLANNEL_IPMASQ";

/// This host's part of the overlay. Networks and subnets are masked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct SubnetEnv {
    /// The overlay's networks, IPv4 before IPv6; at least one. flannel 0.21 to 0.25 wrote lists.
    pub(super) networks: Vec<IpNet>,
    /// This host's subnets, IPv4 before IPv6; one or two.
    pub(super) subnets: Vec<IpNet>,
    /// The overlay's MTU in bytes.
    pub(super) mtu: u32,
    /// Whether the agent masquerades; then the delegate must not.
    pub(super) masquerade: bool,
}

impl SubnetEnv {
    /// Parses the text; `file` is for the error message.
    pub(super) fn parse(text: &str, file: &Path) -> Result<Self, Error> {
        let (mut networks, mut networks6) = (Vec::new(), Vec::new());
        let (mut subnet, mut subnet6) = (None, None);
        let (mut mtu, mut masquerade) = (None, None);
        for line in text.split('\n') {
            let line = line.strip_suffix('\r').unwrap_or(line);
            let (name, value) = match line.split_once('=') {
                Some((name, value)) => (name, Ok(value)),
                None => (line, Err(())),
            };
            let keys = [NETWORK, SUBNET, IPV6_NETWORK, IPV6_SUBNET, MTU, IPMASQ];
            let Some(key) = keys.into_iter().find(|key| *key == name) else {
                continue;
            };
            let value = value.map_err(|()| Error::NoValue { key })?;
            match key {
                NETWORK => networks = list(key, value)?,
                IPV6_NETWORK => networks6 = list(key, value)?,
                SUBNET => subnet = Some(cidr(key, value)?),
                IPV6_SUBNET => subnet6 = Some(cidr(key, value)?),
                MTU => mtu = Some(number(value)?),
                _ => masquerade = Some(value == "true"),
            }
        }
        networks.append(&mut networks6);
        let subnets: Vec<_> = subnet.into_iter().chain(subnet6).collect();
        let mut missing = Vec::new();
        if networks.is_empty() {
            missing.extend([NETWORK, IPV6_NETWORK]);
        }
        if subnets.is_empty() {
            missing.extend([SUBNET, IPV6_SUBNET]);
        }
        missing.extend(mtu.is_none().then_some(MTU));
        missing.extend(masquerade.is_none().then_some(IPMASQ));
        match (mtu, masquerade) {
            (Some(mtu), Some(masquerade)) if missing.is_empty() => Ok(Self {
                networks,
                subnets,
                mtu,
                masquerade,
            }),
            _ => Err(Error::Missing {
                file: file.display().to_string(),
                keys: missing,
            }),
        }
    }

    /// Reads the file.
    pub(super) fn load(path: &Path) -> Result<Self, super::Error> {
        let bytes = std::fs::read(path).map_err(|source| {
            let path = path.to_owned();
            if source.kind() == io::ErrorKind::NotFound {
                super::Error::NoSubnetFile { path }
            } else {
                super::Error::UnreadableSubnetFile { path, source }
            }
        })?;
        Self::parse(&String::from_utf8_lossy(&bytes), path).map_err(|source| {
            super::Error::BadSubnetFile {
                path: path.to_owned(),
                source,
            }
        })
    }
}

fn cidr(key: &'static str, value: &str) -> Result<IpNet, Error> {
    match value.parse::<IpNet>() {
        Ok(net) => Ok(net.trunc()),
        Err(_) => Err(Error::Cidr {
            key,
            value: value.to_owned(),
        }),
    }
}

/// A comma-separated list, each network once.
fn list(key: &'static str, value: &str) -> Result<Vec<IpNet>, Error> {
    let mut nets = Vec::new();
    for entry in value.split(',') {
        let net = cidr(key, entry)?;
        if !nets.contains(&net) {
            nets.push(net);
        }
    }
    Ok(nets)
}

fn number(value: &str) -> Result<u32, Error> {
    // Rust accepts a leading plus sign, Go does not.
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    let error = |why| Error::Mtu {
        value: value.to_owned(),
        why,
    };
    if !digits {
        return Err(error("invalid syntax"));
    }
    value.parse().map_err(|_| error("value out of range"))
}
