//! The kernel objects that are ours, or that are in the place of ours.
//!
//! Only those are requested: one device by name, the entries of that device, the routes with our protocol number. A
//! host may have thousands of container devices and a full Internet routing table; none of it is read. Kernels before
//! 4.20 do not filter and send everything, so the rest is skipped here as well.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_route::route::RouteProtocol;

use super::link::KernelLink;
use super::message::Message;
use super::nexthop::{self, Ids, NextHopMessage};
use super::route::{self, KernelRoute, Kind};
use super::socket::Dump;
use super::{FAMILIES, Kernel, KernelError, address, link, neighbor};
use crate::base::net::InterfaceName;
use crate::plan::state::{Key, LinkKind, Object, Route, Scope, State};

/// The objects.
#[derive(Debug)]
pub(crate) struct Observed {
    pub(crate) state: State,
    /// Whether nothing is missing. If `false`, nothing may be removed because of it.
    pub(crate) complete: bool,
    /// IDs of next hops that are ours but unused.
    pub(crate) stale_next_hops: Vec<u32>,
}

/// Device names by index.
type Names = BTreeMap<u32, InterfaceName>;

impl Kernel {
    /// Observes what is ours.
    ///
    /// # Errors
    ///
    /// The netlink exchange with the kernel failed, or refuses to list something.
    pub(crate) async fn observe(&mut self, scope: &Scope) -> Result<Observed, KernelError> {
        let mut observed = Observed::new();
        self.indices.clear();
        self.ids = self.new_ids();
        let overlay = self.observe_devices(scope, &mut observed).await?;
        for (&index, name) in &overlay {
            self.observe_link(scope, index, name, &mut observed).await?;
        }
        let hops = self.list_next_hops(&mut observed).await?;
        let mut routes = self.list_routes(scope, &overlay, &mut observed).await?;
        let mut names = overlay;
        let mut others = BTreeSet::new();
        for index in link_indices(&hops, &routes) {
            if !names.contains_key(&index)
                && let Some(found) = self.link_at(index).await?
            {
                if self.is_others(&found) {
                    others.insert(index);
                }
                names.insert(index, found.name);
            }
        }
        // A network that we had once may belong to another agent now.
        routes.retain(|route| {
            route.next_hop.is_some() || route.link.is_none_or(|index| !others.contains(&index))
        });
        let hops = hops
            .into_iter()
            .filter_map(|hop| self.note_next_hop(&hop, &names, &mut observed))
            .collect();
        for route in routes {
            let (key, object) = self.judge(&route, &names, &hops);
            observed.state.insert(key, object);
        }
        if scope.ipsec {
            self.observe_policies(scope, &mut observed).await?;
        }
        Ok(observed)
    }

    /// The devices of our next hops and routes, possibly the underlay's too. `networks` are the overlay networks that
    /// this network is known to have had.
    ///
    /// # Errors
    ///
    /// As [`Self::observe`].
    pub(crate) async fn marked_links(
        &mut self,
        networks: &[IpNet],
    ) -> Result<Vec<(InterfaceName, Object)>, KernelError> {
        let mut observed = Observed::new();
        let nothing = Scope {
            links: Vec::new(),
            networks: networks.to_vec(),
            shared: None,
            hooks: None,
            ipsec: false,
        };
        let hops = self.list_next_hops(&mut observed).await?;
        let routes = self
            .list_routes(&nothing, &Names::new(), &mut observed)
            .await?;
        let mut links = Vec::new();
        for index in link_indices(&hops, &routes) {
            if let Some(found) = self.link_at(index).await?
                && !self.is_others(&found)
            {
                links.push((found.name, found.object));
            }
        }
        Ok(links)
    }

    /// The overlay devices that are ours; returns their names.
    async fn observe_devices(
        &mut self,
        scope: &Scope,
        observed: &mut Observed,
    ) -> Result<Names, KernelError> {
        let mut names = Names::new();
        for name in &scope.links {
            let Some(link) = self.find_link(name).await? else {
                continue;
            };
            if self.is_lost(&link) {
                self.indices.remove(name);
                continue;
            }
            names.insert(link.index, name.clone());
            let link = self.observe_peers(link, observed).await?;
            let key = Key::Link(name.clone());
            observed.state.insert(key, link.object);
        }
        Ok(names)
    }

    /// The addresses, neighbor entries and FDB entries of an overlay device.
    async fn observe_link(
        &mut self,
        scope: &Scope,
        index: u32,
        name: &InterfaceName,
        observed: &mut Observed,
    ) -> Result<(), KernelError> {
        let addresses = self
            .socket
            .dump("addresses", address::list(index), |message| {
                let (of, address) = address::read(&message)?;
                let ours = of == index && is_inside(scope, &address);
                ours.then(|| (Key::Address(name.clone(), address), Object::Address))
            });
        observed.take(addresses.await?);
        let permanent = |message: Message| {
            let entry = neighbor::read(&message, index, name)?;
            entry.permanent.then_some((entry.key, entry.object))
        };
        for family in FAMILIES {
            let request = neighbor::list(family, index);
            let neighbors = self.socket.dump("neighbor entries", request, permanent);
            observed.take(neighbors.await?);
        }
        let fdb = self
            .socket
            .dump("FDB entries", neighbor::list_fdb(index), permanent);
        observed.take(fdb.await?);
        Ok(())
    }

    /// Adds a WireGuard device's options and peers to what rtnetlink reported; skips any other device.
    async fn observe_peers(
        &mut self,
        mut link: KernelLink,
        observed: &mut Observed,
    ) -> Result<KernelLink, KernelError> {
        if let Object::Link(device) = &mut link.object
            && let LinkKind::Wireguard(options) = &mut device.kind
        {
            let (device, complete) = self.wireguard.device(link.index).await?;
            *options = device.options;
            observed.complete &= complete;
            let peers = device.peers.into_iter().map(|(key, peer)| {
                let key = Key::WireguardPeer(link.name.clone(), Box::new(key));
                (key, Object::WireguardPeer(Box::new(peer)))
            });
            observed.state.extend(peers);
        }
        Ok(link)
    }

    /// All next hops of ours; the IDs of the others are recorded as taken.
    async fn list_next_hops(
        &mut self,
        observed: &mut Observed,
    ) -> Result<Vec<NextHopMessage>, KernelError> {
        if !self.next_hops {
            return Ok(Vec::new());
        }
        let ids = &mut self.ids;
        let dump = self.socket.dump(
            "next hops",
            Message::GetNextHop(NextHopMessage::default()),
            |message| {
                let Message::NewNextHop(hop) = message else {
                    return None;
                };
                if hop.protocol != route::PROTOCOL || !ids.is_own(hop.id()) {
                    ids.reserve(hop.id());
                    return None;
                }
                Some(hop)
            },
        );
        match dump.await {
            Ok(dump) => {
                observed.complete &= dump.complete;
                Ok(dump.items)
            }
            // The kernel has no such message: it is older than 5.3.
            Err(KernelError::Dump { source, .. }) if source.errno == Errno::EOPNOTSUPP => {
                self.next_hops = false;
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Our routes, and those that another flannel implementation made over an overlay device.
    async fn list_routes(
        &mut self,
        scope: &Scope,
        overlay: &Names,
        observed: &mut Observed,
    ) -> Result<Vec<KernelRoute>, KernelError> {
        let mut routes = Vec::new();
        for family in FAMILIES {
            let request = route::list(family, Some(route::OURS), None);
            let ids = &self.ids;
            let ours = self.socket.dump("routes", request, |message| {
                let is_over = |index| overlay.contains_key(&index);
                route::read(&message).filter(|route| is_ours(route, scope, ids, is_over))
            });
            observed.take_routes(ours.await?, &mut routes);
            for &index in overlay.keys() {
                let request = route::list(family, Some(RouteProtocol::Boot), Some(index));
                let theirs = self.socket.dump("routes", request, |message| {
                    route::read(&message).filter(|route| {
                        route.protocol == u8::from(RouteProtocol::Boot)
                            && route.link == Some(index)
                            && is_inside(scope, &route.destination)
                    })
                });
                observed.take_routes(theirs.await?, &mut routes);
            }
        }
        Ok(routes)
    }

    /// The name of a device that is not an overlay device.
    pub(super) async fn name_of(
        &mut self,
        index: u32,
    ) -> Result<Option<InterfaceName>, KernelError> {
        Ok(self.link_at(index).await?.map(|link| link.name))
    }

    /// The device with an index.
    async fn link_at(&mut self, index: u32) -> Result<Option<KernelLink>, KernelError> {
        let answer = self.socket.get(link::get_by_index(index)).await?;
        let link = answer.ok().flatten().as_ref().and_then(link::read);
        Ok(link.map(|link| {
            self.indices.insert(link.name.clone(), link.index);
            self.recognise(link)
        }))
    }

    /// Records a next hop of ours; returns its ID and path, unless it is unused.
    fn note_next_hop(
        &mut self,
        hop: &NextHopMessage,
        names: &Names,
        observed: &mut Observed,
    ) -> Option<(u32, Route)> {
        let path = hop
            .path()
            .and_then(|(index, gateway)| Some((names.get(&index)?, gateway)));
        match path {
            Some((link, gateway)) if self.ids.insert(link, gateway, hop.id()) => {
                let onlink = hop.flags & nexthop::ONLINK != 0;
                let key = Key::NextHop(link.clone(), gateway);
                observed.state.insert(key, Object::NextHop { onlink });
                let route = Route {
                    link: link.clone(),
                    gateway: Some(gateway),
                    onlink,
                    inline: false,
                };
                Some((hop.id(), route))
            }
            _ => {
                self.ids.reserve(hop.id());
                observed.stale_next_hops.push(hop.id());
                None
            }
        }
    }

    /// A route as an object: [`Object::Route`] if it has exactly our form, so that it can stay.
    fn judge(
        &self,
        route: &KernelRoute,
        names: &Names,
        hops: &BTreeMap<u32, Route>,
    ) -> (Key, Object) {
        if route.kind == Kind::Blackhole {
            return (Key::Blackhole(route.destination), Object::Blackhole);
        }
        let by_next_hop = |id| hops.get(&id).cloned();
        let inline = || {
            Some(Route {
                link: names.get(&route.link?)?.clone(),
                gateway: route.gateway,
                onlink: route.onlink,
                inline: self.next_hops && route.gateway.is_some(),
            })
        };
        // Compare the next-hop object, not the path that the kernel repeats in the route: with
        // net.ipv4.nexthop_compat_mode=0 it does not repeat it.
        let as_we_make_it = match route.next_hop {
            _ if route.kind != Kind::Plain || route.protocol != route::PROTOCOL => None,
            Some(id) => by_next_hop(id),
            None => inline(),
        };
        let object = as_we_make_it.map_or(
            Object::OddRoute {
                protocol: route.protocol,
                link_index: route.link.filter(|_| route.next_hop.is_none()),
            },
            Object::Route,
        );
        (Key::Route(route.destination), object)
    }
}

/// The devices that next hops and routes lead over.
fn link_indices(hops: &[NextHopMessage], routes: &[KernelRoute]) -> BTreeSet<u32> {
    let of_hops = hops.iter().filter_map(|hop| Some(hop.path()?.0));
    let of_routes = routes.iter().filter_map(|route| route.link);
    of_hops.chain(of_routes).collect()
}

impl Observed {
    fn new() -> Self {
        Self {
            state: State::new(),
            complete: true,
            stale_next_hops: Vec::new(),
        }
    }

    fn take(&mut self, dump: Dump<(Key, Object)>) {
        self.complete &= dump.complete;
        self.state.extend(dump.items);
    }

    fn take_routes(&mut self, dump: Dump<KernelRoute>, routes: &mut Vec<KernelRoute>) {
        self.complete &= dump.complete;
        routes.extend(dump.items);
    }
}

/// Whether a route belongs to this network: by its next hop if it has one, by an overlay device of ours, or by its
/// destination. The route protocol number only says that some agent made it, perhaps another network's.
pub(super) fn is_ours(
    route: &KernelRoute,
    scope: &Scope,
    ids: &Ids,
    is_overlay: impl FnOnce(u32) -> bool,
) -> bool {
    if route.protocol != route::PROTOCOL {
        return false;
    }
    match (route.next_hop, route.link) {
        (Some(id), _) => ids.is_own(id),
        (None, Some(index)) if is_overlay(index) => true,
        // The whole address space stands for an unknown network (`cleanup`), and matches nothing.
        (None, _) => scope
            .networks
            .iter()
            .any(|network| network.prefix_len() > 0 && network.contains(&route.destination)),
    }
}

/// Whether an address or a destination belongs to an overlay network.
pub(super) fn is_inside(scope: &Scope, net: &IpNet) -> bool {
    scope.networks.iter().any(|network| network.contains(net))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ID of a next hop of the default network.
    const DEFAULT: u32 = 0x5300_0007;

    fn route(destination: &str, link: Option<u32>, next_hop: Option<u32>) -> KernelRoute {
        KernelRoute {
            destination: destination.parse().unwrap(),
            protocol: route::PROTOCOL,
            link,
            gateway: None,
            onlink: false,
            next_hop,
            kind: Kind::Plain,
        }
    }

    #[test]
    fn routes_are_told_apart_by_next_hop_then_device_then_destination() {
        let blue = "blue".parse().unwrap();
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let scope = |texts: &[&str]| Scope {
            links: vec!["flannel.1".parse().unwrap()],
            networks: networks(texts),
            shared: None,
            hooks: None,
            ipsec: false,
        };
        let [ids, of_blue] = [None, Some(&blue)].map(Ids::of_network);
        let mut blues = Ids::of_network(Some(&blue));
        let theirs = blues.allocate(&"eth0".parse().unwrap(), [10, 77, 0, 12].into());
        let own = scope(&["10.5.0.0/16"]);
        // Index 4 is an overlay device of ours.
        let is_own =
            |route: &KernelRoute, scope, ids| is_ours(route, scope, ids, |index| index == 4);
        for (route, expected) in [
            (route("10.5.1.0/24", Some(2), Some(DEFAULT)), true),
            (route("10.9.1.0/24", Some(2), Some(DEFAULT)), true),
            (route("10.5.1.0/24", Some(2), Some(theirs)), false),
            (route("10.5.1.0/24", Some(4), Some(theirs)), false),
            (route("10.9.0.0/16", Some(4), None), true),
            (route("10.5.0.0/16", Some(2), None), true),
            (route("10.9.0.0/16", Some(2), None), false),
            (route("10.5.1.0/24", None, None), true),
            (route("10.6.1.0/24", None, None), false),
            (route("0.0.0.0/0", None, None), false),
        ] {
            assert_eq!(is_own(&route, &own, &ids), expected, "{route:?}");
        }
        let by_hop = route("10.6.1.0/24", Some(2), Some(theirs));
        assert!(is_own(&by_hop, &own, &of_blue));
        let foreign = KernelRoute {
            protocol: 4,
            ..route("10.5.1.0/24", Some(4), None)
        };
        assert!(!is_own(&foreign, &own, &ids));
        // With an unknown network, no destination counts as inside.
        let unknown = scope(&["0.0.0.0/0", "::/0"]);
        assert!(!is_own(&route("10.5.1.0/24", None, None), &unknown, &ids));
        assert!(is_own(&route("10.5.1.0/24", Some(4), None), &unknown, &ids));
    }
}
