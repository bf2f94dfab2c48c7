//! OpenStack's `network_data.json`: links, networks upon them, and services.
//!
//! Sources: Nova's "Metadata" and its schema `network_data.json`; what cloud-init makes of it (`convert_net_json`).

use std::net::IpAddr;

use super::form::{self, Dhcp, Draft, Interface, MOST, MOST_ROUTES, Match, Network};
use super::network_config;
use super::node::Node;
use super::{Problem, Unsupported, values};

pub(super) fn read(root: &Node<'_>) -> Result<Network, Problem> {
    let mut draft = Draft::default();
    let mut ids = Vec::new();
    for link in root.list("links", MOST)? {
        ids.push(link.needed("id")?.text("an id")?);
        draft.interfaces.push(card(&link)?);
    }
    for node in root.list("networks", MOST * 4)? {
        let link = node.needed("link")?;
        let id = link.text("the id of a link")?;
        let at = ids.iter().position(|is| *is == id);
        let interface = at.and_then(|at| draft.interfaces.get_mut(at));
        network(
            &node,
            interface.ok_or_else(|| link.wrong("the id of one of the links"))?,
        )?;
    }
    draft.nameservers = servers(root)?;
    draft.finish()
}

/// A link. All types but these two are cards of the machine: what they are on the host is no matter.
fn card(link: &Node<'_>) -> Result<Interface, Problem> {
    let kind = link.get("type").map(|node| node.text("a type"));
    let what = match kind.transpose()?.as_deref() {
        Some("bond") => Some(Unsupported::Bond),
        Some("vlan") => Some(Unsupported::Vlan),
        _ => None,
    };
    let path = link.path().to_owned();
    if let Some(what) = what {
        return Err(Problem::Unsupported { path, what });
    }
    let mac = link
        .get("ethernet_mac_address")
        .map(|node| values::mac(&node));
    let matched = match (mac.transpose()?, link.get("name")) {
        (Some(mac), _) => Match::of_mac(mac),
        (None, Some(name)) => {
            let name = name.parsed("the name of a card")?;
            Match::of_name(name)
        }
        (None, None) => return Err(Problem::Missing(format!("{path}.ethernet_mac_address"))),
    };
    Ok(Interface {
        path,
        matched,
        mtu: link.get("mtu").map(|node| values::mtu(&node)).transpose()?,
        ..Interface::default()
    })
}

fn network(node: &Node<'_>, interface: &mut Interface) -> Result<(), Problem> {
    let kind = node.needed("type")?;
    match kind.text("a type")?.as_str() {
        "ipv4_dhcp" => interface.dhcp4 = Some(Dhcp::default()),
        "ipv6_dhcp" | "ipv6_dhcpv6-stateful" => {
            interface.dhcp6 = Some(Dhcp::default());
            interface.accept_ra = Some(true);
        }
        "ipv6_slaac" | "ipv6_dhcpv6-stateless" => interface.accept_ra = Some(true),
        "ipv4" | "static" | "ipv6" | "static6" => {
            let address = values::host(&node.needed("ip_address")?, node.get("netmask"))?;
            // The address of a subnet without advertisements. One with them is of another type.
            if !address.addr().is_ipv4() {
                interface.accept_ra.get_or_insert(false);
            }
            form::add(&mut interface.addresses, [address]);
        }
        _ => return Err(kind.wrong("ipv4, ipv4_dhcp, ipv6, ipv6_dhcp, ipv6_slaac and the like")),
    }
    if let Some(router) = node.get("gateway") {
        interface.add_route(form::default_route(values::gateway(&router)?, None));
    }
    for item in node.list("routes", MOST_ROUTES)? {
        interface.add_route(network_config::route(&item)?);
        form::add(&mut interface.nameservers, servers(&item)?);
    }
    form::add(&mut interface.nameservers, servers(node)?);
    Ok(())
}

/// The name servers among the services of a place.
fn servers(node: &Node<'_>) -> Result<Vec<IpAddr>, Problem> {
    let mut servers = Vec::new();
    for service in node.list("services", MOST)? {
        let kind = service.needed("type")?.text("a type")?;
        if kind == "dns" {
            form::add(&mut servers, values::nameservers(&service, "address")?);
        }
    }
    Ok(servers)
}
