//! The two machines that most cases share, and their three boots. The first is configured in our own way, the second as
//! one that came from CoreOS.

use std::path::Path;

use anyhow::{Result, bail};
use futures_util::future::try_join_all;

use super::{
    coreos, etcd_absent, first_boot, networks, operator, overlay, renumbering, second_boot,
};
use crate::{
    cli::Common,
    cluster::{Cluster, Options},
    container, description, facts,
    host::Host,
    machine::Machine,
    overlay::start_containers,
    suite::Suite,
};

/// Boots as often as the wanted cases need, and runs them.
pub(super) async fn run(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) {
    let groups = [
        first_boot::CASES,
        overlay::CASES,
        coreos::CASES,
        operator::CASES,
        second_boot::CASES,
        etcd_absent::CASES,
        renumbering::CASES,
        networks::CASES,
    ];
    if !groups.iter().any(|names| suite.wants_any(names)) {
        return;
    }
    let mut result = Ok(());
    match start(host, common, &dir.join("pair")).await {
        Err(error) => result = Err(error),
        Ok(mut cluster) => {
            if let Err(error) = boots(suite, &mut cluster, &host.artifacts.ctr).await {
                suite.boot_failed("pair", &mut cluster, &error).await;
                result = Err(error);
            }
            cluster.discard();
        }
    }
    for names in groups {
        suite.close(names, result.as_ref().err());
    }
}

async fn start(host: &Host, common: &Common, dir: &Path) -> Result<Cluster> {
    let mut nodes = description::nodes(&common.cluster, 2, &host.public_key)?;
    let [member, coreos] = &mut nodes[..] else {
        bail!("not two nodes")
    };
    let etcd = format!("http://{}:2379", member.underlay.addr());
    *coreos = description::as_coreos(coreos, &etcd)?;
    Cluster::start(host, dir, nodes, Options::default()).await
}

async fn boots(suite: &mut Suite<'_>, cluster: &mut Cluster, ctr: &Path) -> Result<()> {
    let progress = suite.progress;
    progress.step("first boot of two machines");
    let archive = container::build().await?;
    cluster.wait_for_ssh(progress).await?;
    let states = cluster.settle(progress).await?;
    first_boot::run(suite, cluster, &states).await;

    let later = [
        overlay::CASES,
        coreos::CASES,
        operator::CASES,
        second_boot::CASES,
        etcd_absent::CASES,
        renumbering::CASES,
        networks::CASES,
    ];
    if !later.iter().any(|names| suite.wants_any(names)) {
        return Ok(());
    }
    progress.step("start containers");
    start_containers(cluster, &archive, progress).await?;
    overlay::run(suite, cluster).await;
    coreos::run(suite, cluster).await;
    operator::run(suite, cluster).await;

    let before = try_join_all(cluster.machines.iter().map(facts::ask)).await?;
    if suite.wants_any(second_boot::CASES) {
        let marks = second_boot::leave_marks(cluster).await?;
        progress.step("second boot of both machines");
        try_join_all(cluster.machines.iter_mut().map(Machine::reboot)).await?;
        cluster.wait_for_ssh(progress).await?;
        let states = cluster.settle(progress).await?;
        second_boot::run(suite, cluster, &states, &before, &marks).await;
    }
    if suite.wants_any(etcd_absent::CASES) {
        etcd_absent::run(suite, cluster, &before).await?;
    }
    renumbering::run(suite, cluster).await;
    networks::run(suite, cluster, &archive, ctr).await
}
