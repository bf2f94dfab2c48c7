//! Servers that this host needs, at addresses of the overlay: lease store servers and DNS resolvers.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::{Holder, exclude, finding, holder, renumber};
use crate::command::doctor::cluster::advice;
use crate::command::doctor::{Context, Finding, Severity};
use crate::host::netlink::host::Host;
use crate::telemetry::status::Status;

/// The list of resolvers (resolv.conf(5)).
const RESOLVERS: &str = "/etc/resolv.conf";

/// How long looking up a server's name may take: after that it is skipped.
const PATIENCE: Duration = Duration::from_secs(2);

/// Finds servers at overlay addresses.
pub(super) async fn find(
    context: &Context<'_>,
    status: &Status,
    networks: &[IpNet],
    host: &Host,
) -> Vec<Finding> {
    let resolvers = std::fs::read_to_string(RESOLVERS).unwrap_or_default();
    let mut servers: Vec<_> = nameservers(&resolvers)
        .map(|address| ("the resolver", RESOLVERS.to_owned(), address))
        .collect();
    for endpoint in advice::servers(context.settings) {
        let addresses = addresses(endpoint).await;
        let of_endpoint = addresses
            .into_iter()
            .map(|address| ("the lease server", endpoint.clone(), address));
        servers.extend(of_endpoint);
    }
    servers
        .into_iter()
        .filter(|(_, _, address)| networks.iter().any(|net| net.contains(address)))
        .filter(|(_, _, address)| !host.addresses.iter().any(|own| own.address == *address))
        .filter_map(|(what, place, address)| judge(context, status, what, &place, address))
        .collect()
}

fn judge(
    context: &Context<'_>,
    status: &Status,
    server: &str,
    place: &str,
    address: IpAddr,
) -> Option<Finding> {
    let names = &context.names;
    let (severity, state) = match holder(status, address) {
        // The server may be a container on this host.
        Holder::Own => return None,
        Holder::Peer => (
            Severity::Error,
            "in a peer's subnet, so packets for it go there",
        ),
        Holder::Nobody => (
            Severity::Warning,
            "inside the overlay's network, and becomes unreachable when a node gets its subnet",
        ),
    };
    Some(finding(
        severity,
        address.to_string(),
        format!("{server} {address} ({place}) is {state}"),
        "a server that hosts need to join the overlay cannot be on the overlay: after a reboot neither would come up",
        vec![
            format!(
                "reach {server} at an address outside the overlay's network, or exclude its subnet: {}",
                exclude(names)
            ),
            renumber(names),
        ],
    ))
}

fn nameservers(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = (words.next() == Some("nameserver")).then(|| words.next())??;
        // A link-local address has a zone after `%`.
        address.split('%').next()?.parse().ok()
    })
}

/// The addresses of an endpoint `http://HOST:PORT`.
async fn addresses(endpoint: &str) -> Vec<IpAddr> {
    let authority = endpoint.rsplit("://").next().unwrap_or_default();
    match timeout(PATIENCE, lookup_host(authority)).await {
        Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read() {
        let text = "# nameserver 10.5.0.9\nsearch example.org\nnameserver 10.5.0.1\nnameserver fe80::1%eth0\nnameserver\nnameserver x\n";
        let found: Vec<_> = nameservers(text)
            .map(|address| address.to_string())
            .collect();
        assert_eq!(found, ["10.5.0.1", "fe80::1"]);
    }
}
