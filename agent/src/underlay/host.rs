//! The choice among a host's interfaces and addresses: pure, so that every case is a table row in a test.

use std::net::{IpAddr, Ipv4Addr};

use super::{Attachment, Error, Interface, InterfaceName, Underlay, settings};
use crate::net::unusable_v4;

/// The smallest MTU that IPv4 allows (RFC 791).
const MIN_MTU: u32 = 68;

/// What the kernel says of an interface.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: InterfaceName,
    /// In bytes.
    pub(super) mtu: u32,
}

/// What the kernel says of an IPv4 address.
#[derive(Debug)]
pub(super) struct Address {
    pub(super) link_index: u32,
    pub(super) address: Ipv4Addr,
    pub(super) prefix_len: u8,
    /// Whether its preferred lifetime is over.
    pub(super) deprecated: bool,
    /// Whether it has no lifetime, so it was not given by DHCP.
    pub(super) permanent: bool,
}

/// A next hop of a default route of the main table.
#[derive(Debug)]
pub(super) struct DefaultRoute {
    pub(super) link_index: u32,
    pub(super) metric: u32,
}

/// Interfaces, addresses and default routes, each in the kernel's order.
#[derive(Debug, Default)]
pub(super) struct Host {
    pub(super) links: Vec<Link>,
    pub(super) addresses: Vec<Address>,
    pub(super) default_routes: Vec<DefaultRoute>,
}

impl Host {
    /// The underlay that `wanted` asks for; if `current` still is one, with its interface and address.
    pub(super) fn choose(
        &self,
        wanted: &settings::Underlay,
        current: Option<&Underlay>,
    ) -> Result<Underlay, Error> {
        let kept = current.and_then(|current| self.kept(current, wanted.interfaces.first()));
        let (link, address) = match (kept, wanted.interfaces.first()) {
            (Some(kept), _) => kept,
            (None, Some(Interface::Address(wanted))) => self.owner_of(*wanted)?,
            (None, Some(Interface::Name(name))) => self.with_best_address(self.called(name)?)?,
            (None, None) => self.with_best_address(self.of_default_route()?)?,
        };
        if link.mtu < MIN_MTU {
            return Err(Error::BadMtu {
                interface: link.name.to_string(),
                mtu: link.mtu,
            });
        }
        Ok(Underlay {
            index: link.index,
            name: link.name.clone(),
            mtu: link.mtu,
            v4: Some(Attachment {
                address: address.address,
                prefix_len: address.prefix_len,
                public: wanted.public_ip.unwrap_or(address.address),
            }),
            v6: None,
        })
    }

    /// The interface and the address in use, if `wanted` allows them and they are all there still.
    fn kept(&self, current: &Underlay, wanted: Option<&Interface>) -> Option<(&Link, &Address)> {
        let link = self
            .link(current.index)
            .filter(|link| link.name == current.name && link.mtu >= MIN_MTU)?;
        let used = current.v4?.address;
        let address = self
            .addresses
            .iter()
            .find(|address| address.link_index == link.index && address.address == used)?;
        // A link-local address was a makeshift, until the interface has a better one.
        let lasts = address.is_usable() && !address.address.is_link_local();
        let allowed = match wanted {
            Some(Interface::Address(wanted)) => *wanted == IpAddr::V4(address.address),
            Some(Interface::Name(name)) => lasts && *name == link.name,
            None => {
                let mut routes = self.default_routes.iter();
                lasts && routes.any(|route| route.link_index == link.index)
            }
        };
        allowed.then_some((link, address))
    }

    fn called(&self, wanted: &InterfaceName) -> Result<&Link, Error> {
        self.links
            .iter()
            .find(|link| link.name == *wanted)
            .ok_or_else(|| Error::NoInterface {
                wanted: wanted.to_string(),
                found: self.inventory(),
            })
    }

    /// An address that was asked for counts even if it is deprecated or link-local.
    fn owner_of(&self, wanted: IpAddr) -> Result<(&Link, &Address), Error> {
        self.addresses
            .iter()
            .filter(|address| IpAddr::V4(address.address) == wanted)
            .find_map(|address| Some((self.link(address.link_index)?, address)))
            .ok_or_else(|| Error::NoSuchAddress {
                wanted,
                found: self.inventory(),
            })
    }

    /// The kernel uses the default route of the lowest metric; among equals the first.
    fn of_default_route(&self) -> Result<&Link, Error> {
        self.default_routes
            .iter()
            .min_by_key(|route| route.metric)
            .and_then(|route| self.link(route.link_index))
            .ok_or_else(|| Error::NoDefaultRoute {
                found: self.inventory(),
            })
    }

    /// flannel's order: global before link-local, permanent before dynamic, else as the kernel lists them.
    fn with_best_address<'a>(&'a self, link: &'a Link) -> Result<(&'a Link, &'a Address), Error> {
        self.addresses
            .iter()
            .filter(|address| address.link_index == link.index && address.is_usable())
            .min_by_key(|address| (address.address.is_link_local(), !address.permanent))
            .map(|address| (link, address))
            .ok_or_else(|| Error::NoAddress {
                interface: link.name.to_string(),
                found: self.inventory(),
            })
    }

    fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// All interfaces with their addresses, for messages: `lo (127.0.0.1/8), eth0 (no IPv4 address)`.
    fn inventory(&self) -> String {
        if self.links.is_empty() {
            return "no interfaces".to_owned();
        }
        let entries: Vec<String> = self.links.iter().map(|link| self.entry(link)).collect();
        entries.join(", ")
    }

    fn entry(&self, link: &Link) -> String {
        let addresses: Vec<String> = self
            .addresses
            .iter()
            .filter(|address| address.link_index == link.index)
            .map(|address| format!("{}/{}", address.address, address.prefix_len))
            .collect();
        if addresses.is_empty() {
            format!("{} (no IPv4 address)", link.name)
        } else {
            format!("{} ({})", link.name, addresses.join(" "))
        }
    }
}

impl Address {
    /// Whether another host could answer it.
    fn is_usable(&self) -> bool {
        !self.deprecated && unusable_v4(self.address).is_none()
    }
}

#[cfg(test)]
mod tests;
