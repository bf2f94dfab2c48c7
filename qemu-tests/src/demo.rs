//! The demo: boot a cluster, let containers on its hosts talk, and show what happened.

pub(crate) mod spark;
pub(crate) mod update;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::try_join_all;
use selvage::telemetry::status::Status;

use crate::{
    cli::Common,
    cluster::{Cluster, Options},
    container, description, diagnose,
    host::Host,
    keep::{self, Holder},
    machine::Machine,
    overlay,
    page::Page,
    progress::{Progress, clock},
    report::{self, CrossReport, NodeReport},
    suite,
};

/// Runs the demo with `count` nodes; with `keep` the cluster outlives the command.
///
/// # Errors
/// When a node does not come up, or containers cannot talk.
pub(crate) async fn run(common: &Common, count: u8, keep: bool) -> Result<()> {
    let progress = Progress::new();
    let dir = keep::dir(&common.target);
    keep::ensure_none(&dir)?;
    let host = Host::prepare(common, &common.target.join("demo-key"), &progress).await?;
    let nodes = description::nodes(&common.cluster, usize::from(count), &host.public_key)?;
    progress.step("build the container image for the guests");
    let archive = container::build().await?;

    let options = Options {
        internet: true,
        ..Options::default()
    };
    let names: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
    progress.step(format!(
        "boot {} under {}",
        names.join(", "),
        host.accelerator
    ));
    let (mut cluster, holder) = if keep {
        let (cluster, holder) = Holder::start(&host, &dir, nodes, options).await?;
        (cluster, Some(holder))
    } else {
        (Cluster::start(&host, &dir, nodes, options).await?, None)
    };

    let result = show(&mut cluster, &archive, &host, &progress).await;
    if let Err(error) = &result {
        let kept = host.target.join("demo-failed");
        for line in diagnose::keep(&mut cluster.machines, &kept, &format!("{error:#}")).await {
            progress.line(&line);
        }
    } else if let Some(holder) = holder {
        holder.release();
        progress.line("  The cluster keeps running. Log in with `make ssh NODE=1`, stop it with `make stop`.\n");
    } else {
        progress.step("shut down");
        cluster.power_down().await;
    }
    progress.line(&format!("  {} in all", clock(progress.elapsed()).trim()));
    result
}

async fn show(
    cluster: &mut Cluster,
    archive: &[u8],
    host: &Host,
    progress: &Progress,
) -> Result<()> {
    cluster.wait_for_ssh(progress).await?;
    let states = cluster.settle(progress).await?;
    progress.step("start a web server in a container on each");
    let containers = overlay::start_containers(cluster, archive, progress).await?;
    progress.step("let the containers talk across hosts");
    let crossings = cross_all(cluster, progress).await?;
    let nodes = overlay::survey(cluster, &containers).await?;
    progress.line(&report::closing_screen(&nodes, &crossings));
    let statuses = try_join_all(cluster.machines.iter().map(ask)).await?;
    let Some(first) = cluster.machines.first() else {
        bail!("no machine")
    };
    // As root, so that it says which peers answer.
    let overlay = first.ssh.run("sudo selvage status --graph -").await?;
    let page = Page {
        nodes: &nodes,
        statuses: &statuses,
        overlay: &overlay,
        crossings: &crossings,
        accelerator: &host.accelerator.to_string(),
        took: progress.elapsed(),
    };
    let path = host.target.join("demo-report.html");
    std::fs::write(&path, page.html())
        .with_context(|| format!("failed to write {}", path.display()))?;
    progress.line(&format!("  The same with pictures: {}\n", path.display()));
    verdict(cluster, &states, &nodes, &crossings)
}

/// What a node's agent says.
async fn ask(machine: &Machine) -> Result<Status> {
    let said = machine
        .ssh
        .run("selvage status --json || [ $? = 1 ]")
        .await?;
    serde_json::from_str(&said).with_context(|| format!("{}: {said}", machine.name()))
}

/// Each node to the next, and the last to the first; nothing when there is one.
async fn cross_all(cluster: &Cluster, progress: &Progress) -> Result<Vec<CrossReport>> {
    let machines = &cluster.machines;
    let mut crossings = Vec::new();
    for (index, from) in machines.iter().enumerate().filter(|_| machines.len() > 1) {
        let to = &machines[(index + 1) % machines.len()];
        progress.tell(from.name(), &format!("to {}", to.name()));
        crossings.push(overlay::cross(from, to).await?);
    }
    Ok(crossings)
}

/// A demo that shows something broken must not end as if all were well.
fn verdict(
    cluster: &mut Cluster,
    states: &[String],
    nodes: &[NodeReport],
    crossings: &[CrossReport],
) -> Result<()> {
    for (node, state) in nodes.iter().zip(states) {
        ensure!(state == "running", "{}: the system is {state}", node.name);
        ensure!(
            node.facts.peers.len() + 1 == nodes.len(),
            "{} knows {} of {} peers",
            node.name,
            node.facts.peers.len(),
            nodes.len() - 1
        );
    }
    for crossing in crossings {
        ensure!(
            crossing.is_good(),
            "containers on {} and {} do not talk as they should",
            crossing.from,
            crossing.to
        );
    }
    suite::check_consoles(cluster)
}
