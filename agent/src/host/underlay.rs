//! Finds the underlay interface and its addresses on this host.

use crate::base::net::Family;
use crate::cluster::host_nets::HostNets;
use crate::cluster::network_config::Families;
use crate::host::netlink::host::{Host, Query};
use crate::plan::underlay::Underlay;
use crate::settings;

mod choice;
mod error;
mod host_nets;

pub use error::{Error, Mismatch};

use choice::Choice;
use host_nets::host_nets;

/// Finds the underlay for the settings `wanted`, with an address of each of `families`, all on one interface. It tries
/// in this order, until an interface has usable addresses:
///
/// 1. interfaces by name or address,
/// 2. patterns: the interface with a matching address of each family; else the one with a matching name; else, with
///    dual stack, the one with any matching address,
/// 3. the interface over which the kernel reaches a given address, with the source address of that route,
/// 4. the interface that has an address in a given network.
///
/// Without such settings, it chooses the interface that has the public address, or else that of the default route with
/// the lowest metric. If settings name an interface and none matches, the default route is not a fallback.
///
/// Among default routes of equal metric, the interface whose name sorts first wins: the order in which the kernel lists
/// them changes from boot to boot.
///
/// Order of an interface's addresses: those that the settings name; those in a network that they name; permanent before
/// those from DHCP or router advertisements; temporary IPv6 addresses after others; global IPv6 before unique local
/// ones (RFC 6724 §2.1); link-local IPv4 last; otherwise the kernel's order. Deprecated addresses are used only if the
/// settings name them. Never used: tentative and duplicate addresses, link-local IPv6, and addresses in the overlay
/// network on overlay devices and container bridges.
///
/// `current` is the underlay of a running overlay. Its interface and addresses stay chosen while they match the
/// settings, even if there is a better one by now: a move makes all peers learn a new address for no gain. A second
/// default route, or a service address that keepalived adds next to one from DHCP, is no reason to move. MTU, prefix
/// lengths and public addresses are always updated.
///
/// An [`Error`] that says what was tried, and which interfaces and addresses exist. The future can be dropped at any
/// time.
pub async fn discover(
    wanted: &settings::Underlay,
    families: Families,
    current: Option<&Underlay>,
) -> Result<Underlay, Error> {
    let (underlay, _) = survey(wanted, families, current).await?;
    Ok(underlay)
}

/// The same, plus the host networks and addresses that overlay subnets must avoid.
///
/// # Errors
/// As [`discover`].
pub async fn survey(
    wanted: &settings::Underlay,
    families: Families,
    current: Option<&Underlay>,
) -> Result<(Underlay, HostNets), Error> {
    let of_networks: Vec<Family> = families.iter().collect();
    let mut query = Query {
        default_routes: &of_networks,
        over: current.map(|current| current.index),
        reach: wanted.can_reach,
        thorough: false,
    };
    if choice::has_criteria(wanted) {
        query.default_routes = &[];
        return look(wanted, families, current, query).await;
    }
    match look(wanted, families, current, query).await {
        Ok(found) if current.is_none_or(|current| found.0.is_where(current)) => Ok(found),
        // All default routes count before the overlay moves or fails.
        _ => {
            query.thorough = true;
            look(wanted, families, current, query).await
        }
    }
}

async fn look(
    wanted: &settings::Underlay,
    families: Families,
    current: Option<&Underlay>,
    query: Query<'_>,
) -> Result<(Underlay, HostNets), Error> {
    let host = Host::observe(query).await?;
    let found = Choice::new(&host, wanted, families).find(current);
    // An interrupted dump may lack an entry that exists. That is no reason to move.
    match (&found, current) {
        (Ok(found), Some(current)) if !host.complete && !found.is_where(current) => {
            Err(Error::Incomplete)
        }
        _ => found.map(|found| {
            let nets = host_nets(&host, &found);
            (found, nets)
        }),
    }
}
