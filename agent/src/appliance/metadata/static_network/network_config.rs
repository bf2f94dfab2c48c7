//! Version 1 of cloud-init's network config, which Proxmox VE writes: a list of cards, name servers and routes.
//!
//! Source: cloud-init's "Networking config Version 1"; Proxmox VE's `PVE/QemuServer/Cloudinit.pm`.

use std::net::IpAddr;

use super::form::{self, Dhcp, Draft, Interface, MOST, MOST_ROUTES, Match, Network, Route};
use super::node::Node;
use super::{Problem, Unsupported, values};

/// Servers that are for one card, by the name that it has in the document.
type Named = (String, Vec<IpAddr>, Vec<values::Domain>);

pub(super) fn read(root: &Node<'_>) -> Result<Network, Problem> {
    let mut draft = Draft::default();
    let mut names = Vec::new();
    let mut named: Vec<Named> = Vec::new();
    for item in root.list("config", MOST * 4)? {
        let kind = item.needed("type")?;
        match kind.text("a type")?.as_str() {
            "physical" => {
                names.push(name(&item)?);
                let interface = physical(&item, &mut draft.left_out)?;
                draft.interfaces.push(interface);
            }
            "loopback" => (),
            "nameserver" => {
                let servers = values::nameservers(&item, "address")?;
                let search = values::domains(&item, "search")?;
                match item.get("interface") {
                    Some(of) => named.push((of.text("a name")?, servers, search)),
                    None => {
                        form::add(&mut draft.nameservers, servers);
                        form::add(&mut draft.search, search);
                    }
                }
            }
            "route" => draft.routes.push((item.path().to_owned(), route(&item)?)),
            other => return Err(unsupported(&item, &kind, other)),
        }
    }
    for (name, servers, search) in named {
        // A name may also stand for a card that has no servers yet.
        let at = names.iter().position(|is| *is == name);
        if let Some(interface) = at.and_then(|at| draft.interfaces.get_mut(at)) {
            form::add(&mut interface.nameservers, servers);
            form::add(&mut interface.search, search);
        }
    }
    draft.finish()
}

fn name(item: &Node<'_>) -> Result<String, Problem> {
    item.get("name")
        .map_or(Ok(String::new()), |node| node.text("a name"))
}

fn unsupported(item: &Node<'_>, kind: &Node<'_>, name: &str) -> Problem {
    let what = match name {
        "bond" => Unsupported::Bond,
        "bridge" => Unsupported::Bridge,
        "vlan" => Unsupported::Vlan,
        "infiniband" => Unsupported::Device,
        _ => return kind.wrong("physical, loopback, nameserver or route"),
    };
    Problem::Unsupported {
        path: item.path().to_owned(),
        what,
    }
}

/// The name is the one that it should get; which card it is, says its Ethernet address, if that is there.
fn physical(item: &Node<'_>, left_out: &mut Vec<Problem>) -> Result<Interface, Problem> {
    let mac = item.get("mac_address").map(|node| values::mac(&node));
    let matched = match mac.transpose()? {
        Some(mac) => Match::of_mac(mac),
        None => {
            let name = item.needed("name")?.parsed("the name of a card")?;
            Match::of_name(name)
        }
    };
    let accept_ra = item.get("accept-ra").map(|node| node.flag());
    let mut interface = Interface {
        path: item.path().to_owned(),
        matched,
        mtu: item.get("mtu").map(|node| values::mtu(&node)).transpose()?,
        accept_ra: accept_ra.transpose()?,
        ..Interface::default()
    };
    for node in item.list("subnets", MOST)? {
        subnet(&node, &mut interface, left_out)?;
    }
    Ok(interface)
}

fn subnet(
    node: &Node<'_>,
    interface: &mut Interface,
    left_out: &mut Vec<Problem>,
) -> Result<(), Problem> {
    let control = node.get("control").map(|node| node.text("a word"));
    if control.transpose()?.as_deref() == Some("manual") {
        left_out.push(Problem::Ignored(node.path().to_owned()));
        return Ok(());
    }
    let metric = node.get("metric").map(|node| values::metric(&node));
    let metric = metric.transpose()?;
    let dhcp = || {
        Some(Dhcp {
            metric,
            ..Dhcp::default()
        })
    };
    let kind = node.needed("type")?;
    match kind.text("a type")?.as_str() {
        "dhcp" | "dhcp4" => interface.dhcp4 = dhcp(),
        "dhcp6" | "ipv6_dhcpv6-stateful" => interface.dhcp6 = dhcp(),
        // networkd asks DHCPv6 for the rest where the router says so.
        "ipv6_slaac" | "ipv6_dhcpv6-stateless" => interface.accept_ra = Some(true),
        "static" | "static6" => {
            let address = values::host(&node.needed("address")?, node.get("netmask"))?;
            form::add(&mut interface.addresses, [address]);
        }
        "manual" => (),
        _ => {
            return Err(kind.wrong(
                "static, static6, dhcp, dhcp4, dhcp6, ipv6_slaac, ipv6_dhcpv6-stateful, \
                 ipv6_dhcpv6-stateless or manual",
            ));
        }
    }
    if let Some(router) = node.get("gateway") {
        interface.add_route(form::default_route(values::gateway(&router)?, metric));
    }
    for item in node.list("routes", MOST_ROUTES)? {
        let mut route = route(&item)?;
        route.metric = route.metric.or(metric);
        interface.add_route(route);
    }
    form::add(
        &mut interface.nameservers,
        values::nameservers(node, "dns_nameservers")?,
    );
    form::add(&mut interface.search, values::domains(node, "dns_search")?);
    Ok(())
}

/// Its destination is called `network` in some places, as OpenStack's is.
pub(super) fn route(node: &Node<'_>) -> Result<Route, Problem> {
    let to = match node.get("network") {
        Some(network) => network,
        None => node.needed("destination")?,
    };
    let to_net = values::destination(&to, node.get("netmask"))?;
    let gateway = node.needed("gateway")?;
    let via = values::gateway(&gateway)?;
    if via.is_ipv4() != to_net.addr().is_ipv4() {
        return Err(gateway.wrong("a router of the destination's family"));
    }
    let metric = node.get("metric").map(|node| values::metric(&node));
    Ok(Route {
        to: to_net,
        via: Some(via),
        metric: metric.transpose()?,
        on_link: false,
    })
}
