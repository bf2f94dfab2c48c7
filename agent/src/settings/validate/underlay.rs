//! Validation of `[underlay]`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{each, networks, optional};
use crate::base::net::{unusable_v4, unusable_v6};
use crate::settings::Inputs;
use crate::settings::inputs::Sourced;
use crate::settings::{Error, Interface, Pattern, Underlay};

pub(super) fn underlay(inputs: &Inputs) -> Result<Underlay, Error> {
    Ok(Underlay {
        interfaces: each(inputs.underlay.interfaces.as_ref(), interface, INTERFACE)?,
        interface_regex: patterns(inputs.underlay.interface_regex.as_ref())?,
        can_reach: optional(inputs.underlay.can_reach.as_ref(), can_reach)?,
        interface_cidr: networks(inputs.underlay.interface_cidr.as_ref())?,
        public_ip: optional(inputs.underlay.public_ip.as_ref(), public_ip)?,
        public_ipv6: optional(inputs.underlay.public_ipv6.as_ref(), public_ipv6)?,
    })
}

const INTERFACE: &str = "the name of an interface (1 to 15 bytes without '/', ':' or white space) or an address that one has (IPv6: not link-local)";

fn interface(text: &str) -> Option<Interface> {
    if let Ok(address) = text.parse() {
        // Every interface may have the same link-local address, so it does not identify one.
        let says_which = match address {
            IpAddr::V4(_) => true,
            IpAddr::V6(v6) => !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none(),
        };
        return says_which.then_some(Interface::Address(address));
    }
    // `10.0.0.300` is a valid interface name, but meant as an address.
    let looks_like_address = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let name = text.parse().ok().filter(|_| !looks_like_address);
    name.map(Interface::Name)
}

fn patterns(input: Option<&Sourced<Vec<String>>>) -> Result<Vec<Pattern>, Error> {
    let Some(input) = input else {
        return Ok(Vec::new());
    };
    let texts = input.value.iter().filter(|text| !text.is_empty());
    texts
        .map(|text| {
            // No address or name contains one, but the end of a file's last line does.
            if text.chars().any(char::is_control) {
                return Err(input.error("regular expressions without control characters"));
            }
            Pattern::new(text)
                .map_err(|error| input.error(format!("regular expressions; {text:?}: {error}")))
        })
        .collect()
}

fn can_reach(input: &Sourced<String>) -> Result<IpAddr, Error> {
    let address = input.value.trim().parse();
    let unusable = |address| match address {
        IpAddr::V4(v4) => unusable_v4(v4),
        IpAddr::V6(v6) => unusable_v6(v6),
    };
    match address {
        Ok(address) if unusable(address).is_none() => Ok(address),
        _ => Err(input.error("a unicast address, IPv4 or IPv6, that is not link-local IPv6")),
    }
}

/// An address that other hosts can send packets to. Peers refuse a lease with any other.
fn public_ip(input: &Sourced<String>) -> Result<Ipv4Addr, Error> {
    match input.value.trim().parse() {
        Ok(address) if unusable_v4(address).is_none() => Ok(address),
        _ => Err(input.error(
            "an IPv4 unicast address that peers can send to (an IPv6 one is underlay.public-ipv6)",
        )),
    }
}

fn public_ipv6(input: &Sourced<String>) -> Result<Ipv6Addr, Error> {
    match input.value.trim().parse() {
        Ok(address) if unusable_v6(address).is_none() => Ok(address),
        _ => Err(input.error("an IPv6 unicast address that peers can send to, not link-local")),
    }
}
