//! The names of lease keys: which subnet a key stands for.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;

use crate::base::go_json::shorten;

/// What identifies a lease: the leased subnets, always masked to their network addresses.
///
/// At least one family is present. Ordered by IPv4 subnet. Displays as the subnets themselves; [`SubnetKey::name`] is
/// the form used in etcd.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SubnetKey {
    /// The IPv4 subnet, for example 10.5.34.0/24; `None` in an IPv6-only network.
    pub v4: Option<Ipv4Net>,
    /// The IPv6 subnet, for example fd00:10:5:22::/64; `None` in an IPv4-only network.
    pub v6: Option<Ipv6Net>,
}

/// The last part of a lease key does not name a subnet.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LeaseKeyError {
    /// The text is malformed.
    #[error(
        "{0:?} is not a lease key such as 10.5.34.0-24, 10.5.34.0-24&fd00:10:5:22::-64 or fd00:10:5:22::-64"
    )]
    Form(String),
    /// The text is well formed, but flannel spells this subnet differently; a second spelling of one subnet would be a
    /// second lease for it.
    #[error(
        "{text:?} is not how flannel writes a lease key; the key of that subnet is {canonical}"
    )]
    Spelling {
        /// The key as found.
        text: String,
        /// The key that flannel would write.
        canonical: String,
    },
}

/// What an administrator typed does not name a subnet.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SubnetArgumentError {
    /// The text is malformed.
    #[error("expected 10.5.1.0/24, fd00:1::/64, or both as 10.5.1.0/24,fd00:1::/64")]
    Form,
    /// The address has host bits, so it may be a typo.
    #[error("{0} is not the first address of its subnet, {1}")]
    HostBits(IpNet, IpNet),
}

impl SubnetKey {
    /// Parses subnets as an administrator types them: `10.5.1.0/24`, `fd00:1::/64`, or both with a comma between; the
    /// lease key's form is accepted as well.
    pub fn parse_argument(text: &str) -> Result<Self, SubnetArgumentError> {
        if let Ok(key) = Self::parse_name(text) {
            return Ok(key);
        }
        let mut key = Self { v4: None, v6: None };
        for part in text.split(',') {
            let net: IpNet = part.parse().map_err(|_| SubnetArgumentError::Form)?;
            if net.trunc() != net {
                return Err(SubnetArgumentError::HostBits(net, net.trunc()));
            }
            let twice = match net {
                IpNet::V4(v4) => key.v4.replace(v4).is_some(),
                IpNet::V6(v6) => key.v6.replace(v6).is_some(),
            };
            if twice {
                return Err(SubnetArgumentError::Form);
            }
        }
        Ok(key)
    }

    /// The key of the subnets that contain these addresses.
    pub fn new(v4: Option<Ipv4Net>, v6: Option<Ipv6Net>) -> Self {
        Self {
            v4: v4.map(|v4| v4.trunc()),
            v6: v6.map(|v6| v6.trunc()),
        }
    }

    /// The subnets, IPv4 first.
    pub fn nets(&self) -> impl Iterator<Item = IpNet> + use<> {
        self.v4
            .map(IpNet::V4)
            .into_iter()
            .chain(self.v6.map(IpNet::V6))
    }

    /// Parses the last part of a lease key: `A.B.C.D-LEN` or `A.B.C.D-LEN&V6-LEN6`, and for IPv6-only networks, which
    /// flannel cannot keep in etcd, `V6-LEN6`. A flannel node ignores keys of that last form.
    ///
    /// Stricter than flannel, since other nodes write these keys: nothing may precede the address (flannel's pattern is
    /// anchored at the end only), host bits must be 0, and numbers and IPv6 addresses must be spelled as flannel itself
    /// spells them.
    pub fn parse_name(name: &str) -> Result<Self, LeaseKeyError> {
        let form = || LeaseKeyError::Form(shorten(name));
        let key = match name.split_once('&') {
            Some((v4, v6)) => Self::new(
                Some(parse_v4(v4).ok_or_else(form)?),
                Some(parse_v6(v6).ok_or_else(form)?),
            ),
            None if name.contains(':') => Self::new(None, Some(parse_v6(name).ok_or_else(form)?)),
            None => Self::new(Some(parse_v4(name).ok_or_else(form)?), None),
        };
        let canonical = key.name();
        if canonical == name {
            Ok(key)
        } else {
            Err(LeaseKeyError::Spelling {
                text: shorten(name),
                canonical,
            })
        }
    }

    /// The last part of the lease key, as flannel writes it: `10.5.34.0-24` or `10.5.34.0-24&fd00:10:5:22::-64`; without
    /// IPv4 `fd00:10:5:22::-64`.
    pub fn name(&self) -> String {
        let part = |net: IpNet| format!("{}-{}", net.network(), net.prefix_len());
        self.nets().map(part).collect::<Vec<_>>().join("&")
    }
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.v4, self.v6) {
            (Some(v4), Some(v6)) => write!(f, "{v4} and {v6}"),
            (Some(v4), None) => v4.fmt(f),
            (None, Some(v6)) => v6.fmt(f),
            (None, None) => f.write_str("no subnet"),
        }
    }
}

/// At most /31: flannel parses this length into 5 bits.
fn parse_v4(part: &str) -> Option<Ipv4Net> {
    let (address, len): (Ipv4Addr, u8) = parse_part(part).filter(|(_, len)| *len <= 31)?;
    Ipv4Net::new(address, len).ok()
}

/// At most /127: flannel parses this length into 7 bits. IPv4-mapped IPv6 addresses are refused: Go and Rust spell them
/// differently.
fn parse_v6(part: &str) -> Option<Ipv6Net> {
    let (address, len): (Ipv6Addr, u8) = parse_part(part).filter(|(_, len)| *len <= 127)?;
    let mapped = address.to_ipv4_mapped().is_some();
    Ipv6Net::new(address, len).ok().filter(|_| !mapped)
}

fn parse_part<A: FromStr>(part: &str) -> Option<(A, u8)> {
    let (address, len) = part.rsplit_once('-')?;
    Some((address.parse().ok()?, len.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn administrators_name_subnets_as_usual() {
        for (text, name) in [
            ("10.5.1.0/24", "10.5.1.0-24"),
            ("10.5.1.0-24", "10.5.1.0-24"),
            ("fd00:1::/64", "fd00:1::-64"),
            ("10.5.1.0/24,fd00:1::/64", "10.5.1.0-24&fd00:1::-64"),
            ("fd00:1::/64,10.5.1.0/24", "10.5.1.0-24&fd00:1::-64"),
            ("10.5.1.0-24&fd00:1::-64", "10.5.1.0-24&fd00:1::-64"),
        ] {
            assert_eq!(SubnetKey::parse_argument(text).unwrap().name(), name);
        }
        for text in [
            "",
            "10.5.1.0",
            "10.5.1.0/33",
            "10.5.1.0/24,",
            "10.5.1.0/24,10.5.2.0/24",
        ] {
            let error = SubnetKey::parse_argument(text).unwrap_err();
            assert_eq!(error, SubnetArgumentError::Form, "{text:?}");
        }
        assert_eq!(
            SubnetKey::parse_argument("10.5.1.7/24")
                .unwrap_err()
                .to_string(),
            "10.5.1.7/24 is not the first address of its subnet, 10.5.1.0/24"
        );
    }

    #[test]
    fn flannels_keys_are_read_and_written() {
        for name in [
            "10.12.13.0-24",
            "0.0.0.0-0",
            "10.12.13.0-24&fd00:12:13::-56",
            "10.5.0.2-31&::-1",
            "fd00:12:13::-56",
        ] {
            let key = SubnetKey::parse_name(name).unwrap();
            assert_eq!(key.name(), name);
        }
        let key = SubnetKey::parse_name("10.12.13.0-24&fd00:12:13::-56").unwrap();
        assert_eq!(key.to_string(), "10.12.13.0/24 and fd00:12:13::/56");
    }

    /// Upstream's own list, then names that only flannel accepts.
    #[test]
    fn everything_else_is_refused() {
        for name in [
            "10",
            "10.12.13.0",
            "10.12.13-24",
            "10.12.13.300-24",
            "10.12.13.0-24hi",
            "&2001::-56",
            "10.12.13.0-24&:12:13:-56",
            "10.12.13.0-24&20011::-56",
            "10.12.13.0-24&2001-56",
            "10.12.13.0-24&2001::",
            "10.12.13.0-24&2001::-56hi",
            "2001::-56hi",
            "2001::-128",
            "2001::1-56",
            "2001:0::-56",
            "10.1.2.0-24&10.1.3.0-24",
            "fd00::-64&10.1.2.0-24",
            "::ffff:10.1.2.0-120",
            "",
            "junk10.1.2.0-24",
            "subnets/10.1.2.0-24",
            "10.1.2.0-24&",
            "10.1.2.0-24&fd00::-64&fd00::-64",
            "10.1.2.0-32",
            "10.1.2.0-024",
            "10.1.2.0-+24",
            "10.1.2.0--24",
            "10.01.2.0-24",
            "10.1.2.1-24",
            "10.1.2.0-16",
            "10.1.2.0-24&fd00::-128",
            "10.1.2.0-24&fd00::1-64",
            "10.1.2.0-24&FD00::-64",
            "10.1.2.0-24&fd00:0::-64",
            "10.1.2.0-24\n",
            "10.1.2.0-99999999999",
        ] {
            assert!(
                SubnetKey::parse_name(name).is_err(),
                "{name:?} was accepted"
            );
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_names_are_unique(name in "[0-9.&:a-f/-]{0,40}") {
            if let Ok(key) = SubnetKey::parse_name(&name) {
                prop_assert_eq!(key.name(), name);
            }
        }

        #[test]
        fn keys_read_back(v4: u32, len in 0u8..32, v6: u128, len6 in 0u8..128, families in 1..4) {
            let key = SubnetKey {
                v4: (families & 1 != 0).then(|| Ipv4Net::new(v4.into(), len).unwrap().trunc()),
                v6: (families & 2 != 0).then(|| Ipv6Net::new(v6.into(), len6).unwrap().trunc()),
            };
            prop_assert_eq!(SubnetKey::parse_name(&key.name()), Ok(key));
        }
    }
}
