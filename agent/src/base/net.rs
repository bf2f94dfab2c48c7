//! Small network types that the standard library and `ipnet` lack, validated on construction.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A 48-bit Ethernet address.
///
/// The text form is six colon-separated hexadecimal pairs. The parser also accepts dashes, like Go's `net.ParseMAC`,
/// because flannel nodes publish what that function accepts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Whether frames may be addressed to this one host: neither a group address (IEEE 802.3 §3.2.3, lowest bit of the
    /// first octet) nor all zeroes.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a 48-bit Ethernet address.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "{0:?} is not an Ethernet address: expected six hexadecimal pairs such as 0a:1b:2c:3d:4e:5f"
)]
pub struct ParseMacError(String);

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseMacError(text.chars().take(64).collect());
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut octets = [0; 6];
        let mut pairs = text.split(separator);
        for octet in &mut octets {
            let pair = pairs.next().ok_or_else(error)?;
            if pair.len() != 2 || !pair.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(error());
            }
            *octet = u8::from_str_radix(pair, 16).map_err(|_| error())?;
        }
        if pairs.next().is_some() {
            return Err(error());
        }
        Ok(Self(octets))
    }
}

impl TryFrom<String> for MacAddr {
    type Error = ParseMacError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

/// The name of a network interface: 1 to 15 bytes without `/`, white space or `:`, and neither `.` nor `..`
/// (the kernel's `dev_valid_name()`).
///
/// Stored inline, padded with zero bytes: tens of thousands of keys hold one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName([u8; InterfaceName::MAX_LEN]);

impl InterfaceName {
    /// The longest name, in bytes: the kernel's `IFNAMSIZ` without the final NUL.
    pub const MAX_LEN: usize = 15;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(Self::MAX_LEN);
        // Made from a `str` and cut at its end, so it is valid UTF-8.
        std::str::from_utf8(&self.0[..end]).unwrap_or_default()
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// The text is not a valid interface name.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not an interface name: expected 1 to 15 bytes without '/', ':' or white space")]
pub struct InterfaceNameError(String);

impl FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let bad_byte = |b: u8| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace();
        let mut bytes = [0; Self::MAX_LEN];
        match bytes.get_mut(..name.len()) {
            Some(start) if !matches!(name, "" | "." | "..") && !name.bytes().any(bad_byte) => {
                start.copy_from_slice(name.as_bytes());
                Ok(Self(bytes))
            }
            _ => Err(InterfaceNameError(name.chars().take(64).collect())),
        }
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = InterfaceNameError;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.as_str().to_owned()
    }
}

/// One of the two versions of the Internet Protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both of them.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A node's subnet, in the network that it was leased from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leased<N> {
    /// The whole overlay network.
    pub network: N,
    /// The node's part of it.
    pub subnet: N,
}

/// The kind of IPv4 address, if other hosts cannot send packets to it; `None` for all unicast addresses, including
/// link-local and private ones.
pub fn unusable_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets()[0] {
        // RFC 1122 §3.2.1.3: 0.0.0.0/8 is "this network".
        0 => Some("unspecified"),
        127 => Some("a loopback address"),
        224..=239 => Some("a multicast address"),
        _ if address.is_broadcast() => Some("the broadcast address"),
        // RFC 1112 §4.
        240..=255 => Some("a reserved (class E) address"),
        _ => None,
    }
}

/// The kind of IPv6 address, if other hosts cannot send packets to it by a lease; `None` for all unicast addresses
/// except link-local ones.
pub fn unusable_v6(address: Ipv6Addr) -> Option<&'static str> {
    match address {
        a if a.is_unspecified() => Some("unspecified"),
        a if a.is_loopback() => Some("a loopback address"),
        a if a.is_multicast() => Some("a multicast address"),
        a if a.to_ipv4_mapped().is_some() => Some("an IPv4 address in IPv6 form"),
        // Means nothing without an interface, and leases do not name one.
        a if a.is_unicast_link_local() => Some("a link-local address"),
        _ => None,
    }
}

/// 169.254.0.0/16 (RFC 3927) or fe80::/10.
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// The unit by which clients are counted: an IPv6 address counts as its /64, because one host may have all addresses of
/// it (RFC 4291 §2.5.4).
pub(crate) fn address_block(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_address_round_trips_and_refuses_what_is_not_one() {
        for text in ["c6:d2:32:6f:8f:44", "C6-D2-32-6F-8F-44"] {
            let mac: MacAddr = text.parse().unwrap();
            assert_eq!(mac.to_string(), "c6:d2:32:6f:8f:44");
        }
        for text in [
            "",
            "c6:d2:32:6f:8f",
            "c6:d2:32:6f:8f:44:00",
            "c6:d2:32:6f:8f:4",
            "c6:d2:32:6f:8f:+4",
            "é",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text:?} was accepted");
        }
        assert!(!MacAddr([1, 0, 0, 0, 0, 1]).is_unicast());
        assert!(!MacAddr([0; 6]).is_unicast());
    }

    #[test]
    fn interface_name_follows_the_kernel() {
        for name in ["eth0", "flannel.4294967", "flannel-v6.1", "é"] {
            let parsed: InterfaceName = name.parse().unwrap();
            assert_eq!(parsed.as_str(), name);
        }
        for name in ["", ".", "..", "a/b", "a b", "eth0:1", "sixteen-bytes-xx"] {
            assert!(
                name.parse::<InterfaceName>().is_err(),
                "{name:?} was accepted"
            );
        }
    }

    #[test]
    fn only_unicast_addresses_of_other_hosts_are_usable() {
        for usable in ["1.0.0.0", "10.0.0.1", "169.254.0.1", "223.255.255.255"] {
            assert_eq!(unusable_v4(usable.parse().unwrap()), None, "{usable}");
        }
        for (address, what) in [
            ("0.0.0.0", "unspecified"),
            ("0.1.2.3", "unspecified"),
            ("127.8.0.1", "a loopback address"),
            ("224.0.0.1", "a multicast address"),
            ("239.255.255.255", "a multicast address"),
            ("240.0.0.0", "a reserved (class E) address"),
            ("255.255.255.254", "a reserved (class E) address"),
            ("255.255.255.255", "the broadcast address"),
        ] {
            assert_eq!(
                unusable_v4(address.parse().unwrap()),
                Some(what),
                "{address}"
            );
        }
    }
}
