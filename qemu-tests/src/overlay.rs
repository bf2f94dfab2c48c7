//! Containers on a booted cluster, and what they find out about each other: shared by the demo and the tests.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;

use crate::{
    cluster::Cluster,
    container::{self, Ping},
    facts,
    machine::Machine,
    progress::Progress,
    report::{CrossReport, NodeReport},
    timeline,
};

/// Name of the container with the web server on every node.
pub(crate) const WEB: &str = "web";
/// Its port.
pub(crate) const WEB_PORT: u16 = 80;
/// Echo requests of one measurement.
const PINGS: u32 = 10;

/// Loads the image into every node and starts the web server there; gives the containers' ids.
///
/// # Errors
/// When a node's Docker refuses.
pub(crate) async fn start_containers(
    cluster: &Cluster,
    archive: &[u8],
    progress: &Progress,
) -> Result<Vec<String>> {
    try_join_all(cluster.machines.iter().map(|machine| async {
        progress.tell(machine.name(), "loading the container image");
        container::load(machine, archive).await?;
        progress.tell(machine.name(), "starting the first container");
        let id = container::start_web(machine, WEB, None, WEB_PORT).await?;
        progress.tell(machine.name(), "container runs");
        Ok(id)
    }))
    .await
}

/// Addresses of the containers on two hosts.
///
/// # Errors
/// When they are one and the same: each Docker has a network of its own then, and a container that "reaches" the other
/// one reaches itself.
pub(crate) async fn addresses(from: &Machine, to: &Machine) -> Result<(Ipv4Addr, Ipv4Addr)> {
    let client = container::address(from, WEB).await?;
    let server = container::address(to, WEB).await?;
    ensure!(
        client != server,
        "{}: the container has the address {client} of the one on {}",
        from.name(),
        to.name()
    );
    Ok((client, server))
}

/// Lets the container on `from` ping and ask the one on `to`.
///
/// # Errors
/// When a command fails; packets that do not come back are a result.
pub(crate) async fn cross(from: &Machine, to: &Machine) -> Result<CrossReport> {
    let (client, server) = addresses(from, to).await?;
    let ping: Ping = container::ping(from, WEB, server, PINGS).await?;
    let seen = container::client_seen_by(from, WEB, SocketAddrV4::new(server, WEB_PORT))
        .await
        .with_context(|| {
            format!(
                "{}: no web page from {server} on {}",
                from.name(),
                to.name()
            )
        })?;
    Ok(CrossReport {
        from: from.name().into(),
        to: to.name().into(),
        client,
        server,
        ping,
        seen,
    })
}

/// Asks each node for its place in the overlay and its boot.
///
/// # Errors
/// When a node is not on the overlay.
pub(crate) async fn survey(
    cluster: &Cluster,
    first_containers: &[String],
) -> Result<Vec<NodeReport>> {
    let nodes = cluster
        .nodes
        .iter()
        .zip(&cluster.machines)
        .zip(first_containers);
    try_join_all(nodes.map(|((node, machine), container)| async move {
        Ok(NodeReport {
            name: node.name.clone(),
            underlay: node.underlay.addr(),
            facts: facts::ask(machine).await?,
            image: facts::image(machine).await?,
            timeline: timeline::ask(machine).await?,
            first_container: timeline::container_started(machine, container).await?,
        })
    }))
    .await
}
