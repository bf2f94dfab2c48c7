//! Finding the underlay among the interfaces of this host.

use crate::base::net::Family;
use crate::cluster::host_nets::HostNets;
use crate::cluster::network_config::Families;
use crate::host::netlink::host::{Host, Questions};
use crate::plan::underlay::Underlay;
use crate::settings;

mod choice;
mod error;
mod host_nets;

pub use error::{Error, Miss};

use choice::Choice;
use host_nets::host_nets;

/// Finds the underlay that `wanted` asks for, with an address of each of `families`, all on one interface. What is asked
/// for is tried in this order, until an interface is found that has usable addresses:
///
/// 1. the interfaces by name or address,
/// 2. the patterns: the interface of which an address of each family matches; else the one whose name matches; else, for
///    two families, the one of which any address matches,
/// 3. the one over which the kernel reaches the given address; its source address counts,
/// 4. the one that has an address in a given network.
///
/// If nothing is asked for, it is the interface that has the public address, or else the one of the default route with the
/// lowest metric. There is no falling back to the default route when something was asked for in vain.
///
/// Of default routes of the same metric the one counts whose interface's name comes first: which of them the kernel lists
/// first changes from boot to boot.
///
/// Of an interface's addresses, those come first that the settings name, then those in a network that they name; link-local
/// IPv4 ones come last; permanent ones before those from DHCP or a router; temporary IPv6 ones after others; global IPv6
/// ones before unique local ones (RFC 6724 §2.1); else the kernel's order counts. Deprecated ones count only if they are
/// named, those in doubt (duplicates, perhaps), link-local IPv6 ones, and in the overlay's network those of its own devices and of
/// containers' bridges never.
///
/// `current` is what a running overlay uses. Its interface and addresses stay the choice for as long as they are what was
/// asked for, even when by now there is a better one: the peers would have to learn another address, for nothing. A second
/// default route, or a service address that keepalived adds beside one from DHCP, is no reason to move. What is read anew
/// is the MTU, the prefix lengths and the public addresses.
///
/// # Errors
/// An [`Error`] that says what was tried, and what interfaces and addresses there are. Dropping the future leaves nothing
/// behind.
pub async fn discover(
    wanted: &settings::Underlay,
    families: Families,
    current: Option<&Underlay>,
) -> Result<Underlay, Error> {
    let (underlay, _) = survey(wanted, families, current).await?;
    Ok(underlay)
}

/// The same, and what overlay subnets must keep off on this host.
///
/// # Errors
/// As [`discover`].
pub async fn survey(
    wanted: &settings::Underlay,
    families: Families,
    current: Option<&Underlay>,
) -> Result<(Underlay, HostNets), Error> {
    let of_networks: Vec<Family> = families.iter().collect();
    let mut questions = Questions {
        default_routes: &of_networks,
        over: current.map(|current| current.index),
        reach: wanted.can_reach,
        thorough: false,
    };
    if choice::asks_for_any(wanted) {
        questions.default_routes = &[];
        return look(wanted, families, current, questions).await;
    }
    match look(wanted, families, current, questions).await {
        Ok(found) if current.is_none_or(|current| found.0.is_where(current)) => Ok(found),
        // Before anything moves or fails, all default routes count.
        _ => {
            questions.thorough = true;
            look(wanted, families, current, questions).await
        }
    }
}

async fn look(
    wanted: &settings::Underlay,
    families: Families,
    current: Option<&Underlay>,
    questions: Questions<'_>,
) -> Result<(Underlay, HostNets), Error> {
    let host = Host::observe(questions).await?;
    let found = Choice::new(&host, wanted, families).find(current);
    // What is not on an incomplete list may be there all the same, which is no ground to move.
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
