//! The choice among a host's interfaces and addresses. Pure, so that every case is a row in a table of tests.

use std::net::IpAddr;

use nix::errno::Errno;

use super::host_nets::is_overlay_or_bridge;
use super::{Error, Mismatch};
use crate::base::net::{Family, InterfaceName, is_link_local, unusable_v4, unusable_v6};
use crate::cluster::network_config::Families;
use crate::host::netlink::Refused;
use crate::host::netlink::host::{Address, DefaultRoute, Host, Link};
use crate::plan::underlay::{Attachment, Underlay};
use crate::settings::{self, Interface, Pattern};

/// How many interfaces an error lists. A host with thousands of containers has as many interfaces.
const MAX_LISTED: usize = 16;

/// Whether any setting names an interface.
pub(super) fn has_criteria(wanted: &settings::Underlay) -> bool {
    !(wanted.interfaces.is_empty()
        && wanted.interface_regex.is_empty()
        && wanted.can_reach.is_none()
        && wanted.interface_cidr.is_empty())
}

/// One criterion of the settings.
#[derive(Clone, Copy)]
enum Criterion<'a> {
    Name(&'a InterfaceName),
    Address(IpAddr),
    Pattern(&'a Pattern),
    Reach(IpAddr),
    Network(ipnet::IpNet),
    DefaultRoute,
}

/// Requirements for an address.
#[derive(Clone, Copy)]
enum Filter<'a> {
    Any,
    Same(IpAddr),
    Matching(&'a Pattern),
    Inside(ipnet::IpNet),
}

impl Filter<'_> {
    fn holds(self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Same(wanted) => address == wanted,
            Self::Matching(pattern) => pattern.is_match(&address.to_string()),
            Self::Inside(network) => network.contains(&address),
        }
    }
}

/// An interface with one address per overlay family.
struct Candidate<'a> {
    link: &'a Link,
    v4: Option<&'a Address>,
    v6: Option<&'a Address>,
}

/// The input of the choice.
pub(super) struct Choice<'a> {
    host: &'a Host,
    wanted: &'a settings::Underlay,
    families: Families,
}

impl<'a> Choice<'a> {
    pub(super) fn new(host: &'a Host, wanted: &'a settings::Underlay, families: Families) -> Self {
        Self {
            host,
            wanted,
            families,
        }
    }

    /// The underlay that matches the settings; `current`, with its interface and addresses, if it still matches.
    pub(super) fn find(&self, current: Option<&Underlay>) -> Result<Underlay, Error> {
        let criteria = self.criteria();
        if let Some(kept) = current.and_then(|current| self.keep_current(current, &criteria)) {
            return Ok(self.underlay(&kept));
        }
        let mut mismatches = Vec::new();
        for criterion in criteria {
            match self.answer(criterion) {
                Ok(candidate) => return Ok(self.underlay(&candidate)),
                Err(mismatch) => mismatches.push(mismatch),
            }
        }
        Err(Error::NotFound {
            mismatches,
            found: self.inventory(),
        })
    }

    /// The criteria of the settings, in the order in which they are tried.
    fn criteria(&self) -> Vec<Criterion<'a>> {
        let wanted = self.wanted;
        let interfaces = wanted.interfaces.iter().map(|interface| match interface {
            Interface::Name(name) => Criterion::Name(name),
            Interface::Address(address) => Criterion::Address(*address),
        });
        let criteria: Vec<_> = interfaces
            .chain(wanted.interface_regex.iter().map(Criterion::Pattern))
            .chain(wanted.can_reach.map(Criterion::Reach))
            .chain(
                wanted
                    .interface_cidr
                    .iter()
                    .copied()
                    .map(Criterion::Network),
            )
            .collect();
        if !criteria.is_empty() {
            return criteria;
        }
        // As flannel. But flannel requires that an interface has the public address, and behind NAT none has.
        let mut families = self.families.iter();
        let public = families.find_map(|family| {
            let public = self.public(family)?;
            let mut addresses = self.host.addresses.iter();
            addresses
                .any(|address| address.address == public)
                .then_some(public)
        });
        vec![public.map_or(Criterion::DefaultRoute, Criterion::Address)]
    }

    fn answer(&self, criterion: Criterion<'a>) -> Result<Candidate<'a>, Mismatch> {
        match criterion {
            Criterion::Name(name) => {
                let mut links = self.host.links.iter();
                let link = links.find(|link| link.name == *name);
                self.candidate(
                    link.ok_or_else(|| Mismatch::Name(name.to_string()))?,
                    Filter::Any,
                )
            }
            Criterion::Address(wanted) => {
                let filter = Filter::Same(wanted);
                let mut links = self.host.links.iter();
                let link = links.find(|link| self.has(link, filter));
                self.candidate(link.ok_or(Mismatch::Address(wanted))?, filter)
            }
            Criterion::Pattern(pattern) => {
                self.matching(pattern).ok_or_else(|| Mismatch::Pattern {
                    pattern: pattern.to_string(),
                    needs: self.needs(),
                })
            }
            Criterion::Reach(address) => self.reaching(address),
            Criterion::Network(network) => {
                let filter = Filter::Inside(network);
                let links = self.host.links.iter().filter(|link| self.has(link, filter));
                self.first(links, filter).ok_or_else(|| Mismatch::Network {
                    network,
                    needs: self.needs(),
                })
            }
            Criterion::DefaultRoute => self.candidate(self.of_default_route()?, Filter::Any),
        }
    }

    /// flannel's order: addresses of all interfaces, then names. Unlike flannel, both families' addresses come from one
    /// interface. Last, an address of one family is enough, because a pattern for both families is hard to write.
    fn matching(&self, pattern: &'a Pattern) -> Option<Candidate<'a>> {
        let links = &self.host.links;
        let filter = Filter::Matching(pattern);
        let named = |link: &&Link| pattern.is_match(link.name.as_str());
        let of_all_families = |link: &&Link| {
            let mut families = self.families.iter();
            families.all(|family| self.best(link, family, filter).is_some())
        };
        let of_a_family = |link: &&Link| {
            let mut families = self.families.iter();
            families.any(|family| self.best(link, family, filter).is_some())
        };
        self.first(links.iter().filter(of_all_families), filter)
            .or_else(|| self.first(links.iter().filter(named), Filter::Any))
            .or_else(|| self.first(links.iter().filter(of_a_family), filter))
    }

    fn reaching(&self, address: IpAddr) -> Result<Candidate<'a>, Mismatch> {
        let unreachable = |why| Mismatch::Unreachable { address, why };
        let nowhere = || {
            unreachable(Refused {
                errno: Errno::ENODEV,
                hint: None,
            })
        };
        let route = match &self.host.resolved {
            Some(Ok(route)) if route.local => return self.answer(Criterion::Address(address)),
            Some(Ok(route)) => route,
            Some(Err(why)) => return Err(unreachable(why.clone())),
            None => return Err(nowhere()),
        };
        let link = self.link(route.link_index).ok_or_else(nowhere)?;
        self.candidate(link, self.filter(Criterion::Reach(address)))
    }

    /// The interface of the default route with the lowest metric; among equals the one whose name sorts first, because
    /// the kernel's order changes from boot to boot. With dual stack it must have a default route of each family.
    fn of_default_route(&self) -> Result<&'a Link, Mismatch> {
        let routes = &self.host.default_routes;
        let of = |wanted| routes.iter().filter(move |route| route.family == wanted);
        let rank = |route: &&DefaultRoute| {
            let name = self.link(route.link_index).map(|link| &link.name);
            (route.metric, name)
        };
        let by_metric = |family| of(family).min_by_key(rank);
        for family in self.families.iter() {
            if by_metric(family).is_none() {
                return Err(Mismatch::DefaultRoute(family));
            }
        }
        let first = if self.families.v4.is_some() {
            Family::V4
        } else {
            Family::V6
        };
        let in_all_families = of(first).filter(|route| self.has_default_routes(route.link_index));
        let best = in_all_families.min_by_key(rank);
        if let Some(best) = best {
            return self
                .link(best.link_index)
                .ok_or(Mismatch::DefaultRoute(first));
        }
        let name = |family| {
            let link = by_metric(family).and_then(|route| self.link(route.link_index));
            link.map_or_else(String::new, |link| link.name.to_string())
        };
        Err(Mismatch::DefaultRoutes {
            v4: name(Family::V4),
            v6: name(Family::V6),
        })
    }

    /// The interface in use, if one of the criteria allows it; keeps its addresses, except those that are gone or no
    /// longer usable.
    fn keep_current(
        &self,
        current: &Underlay,
        criteria: &[Criterion<'a>],
    ) -> Option<Candidate<'a>> {
        let link = self
            .link(current.index)
            .filter(|link| link.name == current.name && self.check_mtu(link).is_ok())?;
        criteria.iter().find_map(|criterion| {
            let filter = self.filter(*criterion);
            let candidate = self.candidate_by(link, |family| {
                self.in_use(current, link, family)
                    .or_else(|| self.fitting(link, family, filter))
            });
            candidate
                .ok()
                .filter(|candidate| self.still_allows(*criterion, candidate))
        })
    }

    /// The address in use, if it still exists and is usable.
    fn in_use(&self, current: &Underlay, link: &Link, family: Family) -> Option<&'a Address> {
        let used: IpAddr = match family {
            Family::V4 => current.v4?.address.into(),
            Family::V6 => current.v6?.address.into(),
        };
        let address = self
            .usable(link, family)
            .find(|address| address.address == used)?;
        let best = self.best(link, family, Filter::Any)?;
        // A link-local address was only a stopgap until the interface has a better one, and an address that the
        // settings name may appear late.
        let named = self.preference(used);
        let lasts = named < UNNAMED || !is_link_local(used);
        (lasts && named <= self.preference(best.address)).then_some(address)
    }

    /// Requirements for an address of the interface under this criterion.
    fn filter(&self, criterion: Criterion<'a>) -> Filter<'a> {
        match criterion {
            Criterion::Name(_) | Criterion::DefaultRoute => Filter::Any,
            Criterion::Address(address) => Filter::Same(address),
            Criterion::Pattern(pattern) => Filter::Matching(pattern),
            Criterion::Network(network) => Filter::Inside(network),
            Criterion::Reach(address) => match &self.host.resolved {
                Some(Ok(route)) if route.local => Filter::Same(address),
                Some(Ok(route)) => route.source.map_or(Filter::Any, Filter::Same),
                _ => Filter::Any,
            },
        }
    }

    fn still_allows(&self, criterion: Criterion<'_>, candidate: &Candidate<'_>) -> bool {
        let link = candidate.link;
        match criterion {
            Criterion::Name(name) => *name == link.name,
            Criterion::Address(address) => self.has(link, Filter::Same(address)),
            Criterion::Pattern(pattern) => {
                let mut used = candidate.v4.iter().chain(&candidate.v6);
                pattern.is_match(link.name.as_str())
                    || used.any(|used| Filter::Matching(pattern).holds(used.address))
            }
            Criterion::Reach(address) => match &self.host.resolved {
                Some(Ok(route)) if route.local => self.has(link, Filter::Same(address)),
                Some(Ok(route)) => route.link_index == link.index,
                _ => false,
            },
            Criterion::Network(network) => self.has(link, Filter::Inside(network)),
            Criterion::DefaultRoute => self.has_default_routes(link.index),
        }
    }

    /// Whether default routes of all families use this interface.
    fn has_default_routes(&self, index: u32) -> bool {
        self.families.iter().all(|family| {
            let mut routes = self.host.default_routes.iter();
            routes.any(|route| (route.family, route.link_index) == (family, index))
        })
    }

    fn first(
        &self,
        mut links: impl Iterator<Item = &'a Link>,
        filter: Filter<'_>,
    ) -> Option<Candidate<'a>> {
        links.find_map(|link| self.candidate(link, filter).ok())
    }

    /// The best address per family; one that fits if the interface has any.
    fn candidate(&self, link: &'a Link, filter: Filter<'_>) -> Result<Candidate<'a>, Mismatch> {
        self.check_mtu(link)?;
        self.candidate_by(link, |family| self.fitting(link, family, filter))
    }

    fn candidate_by(
        &self,
        link: &'a Link,
        choose: impl Fn(Family) -> Option<&'a Address>,
    ) -> Result<Candidate<'a>, Mismatch> {
        let mut candidate = Candidate {
            link,
            v4: None,
            v6: None,
        };
        for family in self.families.iter() {
            let address = choose(family).ok_or_else(|| self.no_address(link, family))?;
            match family {
                Family::V4 => candidate.v4 = Some(address),
                Family::V6 => candidate.v6 = Some(address),
            }
        }
        Ok(candidate)
    }

    fn fitting(&self, link: &Link, family: Family, filter: Filter<'_>) -> Option<&'a Address> {
        self.best(link, family, filter)
            .or_else(|| self.best(link, family, Filter::Any))
    }

    fn best(&self, link: &Link, family: Family, filter: Filter<'_>) -> Option<&'a Address> {
        self.usable(link, family)
            .filter(|address| filter.holds(address.address))
            .min_by_key(|address| {
                (
                    self.preference(address.address),
                    is_link_local(address.address),
                    !address.permanent,
                    address.temporary,
                    is_unique_local(address.address),
                )
            })
    }

    /// How clearly the settings name an address; lower is better.
    fn preference(&self, address: IpAddr) -> u8 {
        let wanted = self.wanted;
        if wanted.interfaces.contains(&Interface::Address(address)) {
            0
        } else if self.public(Family::of(address)) == Some(address) {
            1
        } else if wanted
            .interface_cidr
            .iter()
            .any(|network| network.contains(&address))
        {
            2
        } else {
            UNNAMED
        }
    }

    /// The public address in the settings.
    fn public(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.wanted.public_ip.map(IpAddr::V4),
            Family::V6 => self.wanted.public_ipv6.map(IpAddr::V6),
        }
    }

    /// Whether a usable address of the interface fits, in any family: even an address of a family that the overlay does
    /// not use identifies the interface.
    fn has(&self, link: &Link, filter: Filter<'_>) -> bool {
        let mut usable = Family::BOTH
            .into_iter()
            .flat_map(|family| self.usable(link, family));
        usable.any(|address| filter.holds(address.address))
    }

    /// The addresses of an interface that other hosts could answer, in the kernel's order.
    fn usable<'b>(
        &'b self,
        link: &'b Link,
        family: Family,
    ) -> impl Iterator<Item = &'a Address> + use<'a, 'b> {
        let (index, host) = (link.index, self.host);
        host.addresses.iter().filter(move |address| {
            address.link_index == index
                && Family::of(address.address) == family
                && self.is_usable(link, address)
        })
    }

    fn is_usable(&self, link: &Link, address: &Address) -> bool {
        let reaches = match address.address {
            IpAddr::V4(v4) => unusable_v4(v4).is_none(),
            IpAddr::V6(v6) => unusable_v6(v6).is_none(),
        };
        reaches
            && !address.tentative
            && !self.is_overlays(link, address)
            && (!address.deprecated || self.preference(address.address) < 2)
    }

    /// Whether an address belongs to the overlay: packets to it would be encapsulated again. A host's address may lie
    /// inside the network, too.
    fn is_overlays(&self, link: &Link, address: &Address) -> bool {
        self.families.contain(address.address) && is_overlay_or_bridge(&link.name, address)
    }

    fn check_mtu(&self, link: &Link) -> Result<(), Mismatch> {
        // The smallest MTU allowed for IPv4 (RFC 791) and IPv6 (RFC 8200 §5).
        let least = if self.families.v6.is_some() { 1280 } else { 68 };
        if link.mtu >= least {
            return Ok(());
        }
        Err(Mismatch::Mtu {
            interface: link.name.to_string(),
            mtu: link.mtu,
            least,
        })
    }

    fn no_address(&self, link: &Link, family: Family) -> Mismatch {
        let mut addresses = self.host.addresses.iter();
        let inside = addresses.find(|address| {
            address.link_index == link.index
                && Family::of(address.address) == family
                && self.is_overlays(link, address)
        });
        Mismatch::NoAddress {
            interface: link.name.to_string(),
            family,
            inside: inside.map(|address| address.address),
        }
    }

    fn link(&self, index: u32) -> Option<&'a Link> {
        self.host.links.iter().find(|link| link.index == index)
    }

    fn underlay(&self, candidate: &Candidate<'_>) -> Underlay {
        let v4 = candidate.v4.and_then(|v4| match v4.address {
            IpAddr::V4(address) => Some(Attachment {
                address,
                prefix_len: v4.prefix_len,
                public: self.wanted.public_ip.unwrap_or(address),
            }),
            IpAddr::V6(_) => None,
        });
        let v6 = candidate.v6.and_then(|v6| match v6.address {
            IpAddr::V6(address) => Some(Attachment {
                address,
                prefix_len: v6.prefix_len,
                public: self.wanted.public_ipv6.unwrap_or(address),
            }),
            IpAddr::V4(_) => None,
        });
        Underlay {
            index: candidate.link.index,
            name: candidate.link.name.clone(),
            mtu: candidate.link.mtu,
            has_neighbors: candidate.link.has_neighbors,
            v4,
            v6,
        }
    }

    /// The addresses that an interface needs, for messages.
    fn needs(&self) -> String {
        let families: Vec<String> = self
            .families
            .iter()
            .map(|family| family.to_string())
            .collect();
        format!("usable {} addresses", families.join(" and "))
    }

    /// The interfaces with their addresses, for messages: `lo (127.0.0.1/8), eth0 (no address)`.
    fn inventory(&self) -> String {
        let links = &self.host.links;
        if links.is_empty() {
            return "no interfaces".to_owned();
        }
        let mut entries: Vec<String> = links
            .iter()
            .take(MAX_LISTED)
            .map(|link| self.entry(link))
            .collect();
        if links.len() > MAX_LISTED {
            entries.push(format!("{} more", links.len() - MAX_LISTED));
        }
        entries.join(", ")
    }

    /// Without link-local IPv6 addresses: every interface has one.
    fn entry(&self, link: &Link) -> String {
        let addresses = self.host.addresses.iter();
        let addresses: Vec<String> = addresses
            .filter(|address| address.link_index == link.index)
            .filter(|address| address.address.is_ipv4() || !is_link_local(address.address))
            .map(|address| format!("{}/{}", address.address, address.prefix_len))
            .collect();
        if addresses.is_empty() {
            format!("{} (no address)", link.name)
        } else {
            format!("{} ({})", link.name, addresses.join(" "))
        }
    }
}

/// The rank of an address that the settings do not name.
const UNNAMED: u8 = 3;

/// fc00::/7 (RFC 4193), which RFC 6724 §2.1 ranks below global addresses.
fn is_unique_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unique_local())
}

#[cfg(test)]
mod tests;
