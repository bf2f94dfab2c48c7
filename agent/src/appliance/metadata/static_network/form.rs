//! A network, whatever document it is from.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Problem;
use super::values::{Domain, Pattern};
use crate::base::net::{Family, MacAddr};

/// The most entries of a list: cards, addresses of a card, name servers. QEMU and the clouds stop at some thirty cards.
pub(super) const MOST: usize = 64;
/// The most routes of a card.
pub(super) const MOST_ROUTES: usize = 256;

/// A network that can be set up: cards of the machine, and nothing that is built upon them.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Network {
    /// The cards, in the order of the document.
    pub interfaces: Vec<Interface>,
    /// What the document asks for besides, and does not get.
    pub left_out: Vec<Problem>,
}

/// A card, or all cards that match.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Where in the document it is.
    pub path: String,
    /// Which cards it is about.
    pub matched: Match,
    /// The address that it gets in place of its own.
    pub new_mac: Option<MacAddr>,
    /// In bytes.
    pub mtu: Option<u32>,
    /// Whether it asks for IPv4 addresses by DHCP, and what it takes of the answer.
    pub dhcp4: Option<Dhcp>,
    /// The same for DHCPv6.
    pub dhcp6: Option<Dhcp>,
    /// Whether it believes router advertisements; `None`: as networkd has it.
    pub accept_ra: Option<bool>,
    /// For which families it gives itself link-local addresses; `None`: as networkd has it.
    pub link_local: Option<Vec<Family>>,
    /// Addresses with the length of their network's prefix.
    pub addresses: Vec<IpNet>,
    /// Routes over it.
    pub routes: Vec<Route>,
    /// DNS servers.
    pub nameservers: Vec<IpAddr>,
    /// Domains that are searched for names without a dot.
    pub search: Vec<Domain>,
    /// Whether the machine is online without it.
    pub is_optional: bool,
}

/// By what cards are chosen; all that is given must hold.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Match {
    /// The Ethernet address.
    pub mac: Option<MacAddr>,
    /// The name, or a pattern as in a shell.
    pub name: Option<Pattern>,
    /// The kernel's driver, likewise, or one of several; empty: any.
    pub drivers: Vec<Pattern>,
}

/// What is taken of a DHCP server's answer; `None`: as networkd has it.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Dhcp {
    /// The name servers.
    pub use_dns: Option<bool>,
    /// The domains.
    pub use_domains: Option<bool>,
    /// The routes, the default route among them.
    pub use_routes: Option<bool>,
    /// The metric of the routes.
    pub metric: Option<u32>,
}

/// A route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Where to.
    pub to: IpNet,
    /// By which router; `None`: the destination is on the link itself.
    pub via: Option<IpAddr>,
    /// Of two routes to the same destination the smaller counts.
    pub metric: Option<u32>,
    /// Whether the router is on the link though no address of the card says so.
    pub on_link: bool,
}

/// The route to everywhere, of the router's family.
pub(super) fn default_route(via: IpAddr, metric: Option<u32>) -> Route {
    Route {
        to: everywhere(via),
        via: Some(via),
        metric,
        on_link: false,
    }
}

pub(super) fn everywhere(family_of: IpAddr) -> IpNet {
    match family_of {
        IpAddr::V4(_) => Ipv4Net::default().into(),
        IpAddr::V6(_) => Ipv6Net::default().into(),
    }
}

/// Adds what is not there yet.
pub(super) fn add<T: PartialEq>(to: &mut Vec<T>, more: impl IntoIterator<Item = T>) {
    for one in more {
        if !to.contains(&one) {
            to.push(one);
        }
    }
}

impl Interface {
    /// Whether it says how the card gets an address.
    fn has_purpose(&self) -> bool {
        self.dhcp4.is_some()
            || self.dhcp6.is_some()
            || self.accept_ra == Some(true)
            || !self.addresses.is_empty()
    }

    /// Whether the router is in a network of the card, or may come to be in one.
    fn reaches(&self, router: IpAddr) -> bool {
        let dynamic = match router {
            IpAddr::V4(_) => self.dhcp4.is_some(),
            IpAddr::V6(ip) => {
                ip.is_unicast_link_local() || self.dhcp6.is_some() || self.accept_ra == Some(true)
            }
        };
        dynamic || self.has_network_of(router)
    }

    fn has_network_of(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|net| net.contains(&ip))
    }

    pub(super) fn add_route(&mut self, route: Route) {
        add(&mut self.routes, [route]);
    }
}

/// A network on its way from a document.
#[derive(Default, Debug)]
pub(super) struct Draft {
    pub(super) interfaces: Vec<Interface>,
    /// What holds for all cards.
    pub(super) nameservers: Vec<IpAddr>,
    pub(super) search: Vec<Domain>,
    /// Routes over whichever card has their router's network, and where they are in the document.
    pub(super) routes: Vec<(String, Route)>,
    pub(super) left_out: Vec<Problem>,
}

impl Draft {
    /// Gives the cards what holds for all, and leaves those out of which the document says nothing.
    pub(super) fn finish(mut self) -> Result<Network, Problem> {
        self.only_one_each()?;
        self.share_routes();
        self.share_names();
        let (wanted, idle): (Vec<_>, Vec<_>) =
            (self.interfaces.into_iter()).partition(Interface::has_purpose);
        let idle = idle.into_iter().map(|one| Problem::Idle(one.path));
        self.left_out.extend(idle);
        let mut network = Network {
            interfaces: wanted,
            left_out: self.left_out,
        };
        for interface in &mut network.interfaces {
            // networkd does not set such a route otherwise, or waits for the router's network for ever.
            let far: Vec<bool> = (interface.routes.iter())
                .map(|route| route.via.is_some_and(|via| !interface.reaches(via)))
                .collect();
            for (route, is_far) in interface.routes.iter_mut().zip(far) {
                route.on_link |= is_far;
            }
        }
        Ok(network)
    }

    /// networkd takes the first file that matches a card.
    fn only_one_each(&self) -> Result<(), Problem> {
        let mut known = BTreeSet::new();
        for interface in &self.interfaces {
            let Match { mac, name, drivers } = &interface.matched;
            let name = name.as_ref().map(Pattern::as_str);
            let drivers: Vec<_> = drivers.iter().map(Pattern::as_str).collect();
            if !known.insert((*mac, name, drivers)) {
                return Err(Problem::Twice(interface.path.clone()));
            }
        }
        Ok(())
    }

    fn share_routes(&mut self) {
        for (path, route) in std::mem::take(&mut self.routes) {
            let near = |one: &&mut Interface| route.via.is_some_and(|via| one.has_network_of(via));
            match self.interfaces.iter_mut().find(near) {
                Some(interface) => interface.add_route(route),
                None => self.left_out.push(Problem::Unreachable(path)),
            }
        }
    }

    /// Servers that are told for the machine go to the cards with an address of their own; where all use DHCP, to all.
    fn share_names(&mut self) {
        let is_static = |one: &Interface| !one.addresses.is_empty();
        let some_static = self.interfaces.iter().any(is_static);
        for interface in &mut self.interfaces {
            if is_static(interface) || !some_static {
                add(&mut interface.nameservers, self.nameservers.clone());
                add(&mut interface.search, self.search.clone());
            }
        }
    }
}

impl Match {
    /// The card with this address alone.
    pub(super) fn of_mac(mac: MacAddr) -> Self {
        let mac = Some(mac);
        Self {
            mac,
            ..Self::default()
        }
    }

    /// The cards with this name.
    pub(super) fn of_name(name: Pattern) -> Self {
        let name = Some(name);
        Self {
            name,
            ..Self::default()
        }
    }

    /// In words, as `enp1s0` or `52:54:00:12:34:56`.
    pub(super) fn words(&self) -> String {
        let mac = self.mac.map(|mac| mac.to_string());
        let name = self.name.as_ref().map(|name| name.as_str().to_owned());
        let drivers = self
            .drivers
            .iter()
            .map(|one| format!("driver {}", one.as_str()));
        let words: Vec<String> = name.into_iter().chain(mac).chain(drivers).collect();
        match words.is_empty() {
            true => "every card".to_owned(),
            false => words.join(" "),
        }
    }
}
