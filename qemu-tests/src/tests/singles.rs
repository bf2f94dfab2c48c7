//! Machines by themselves. Those whose configuration is broken or elsewhere boot beside the one that has hardly any.

use std::path::Path;

use anyhow::Result;

use super::{after_boot, broken_ignition, initrd_network};
use crate::{
    cli::Common,
    cluster::{Cluster, Options},
    description,
    host::Host,
    suite::Suite,
};

/// Boots what the wanted cases need, and runs them.
pub(super) async fn run(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) {
    let broken = if suite.wants_any(broken_ignition::CASES) {
        suite
            .progress
            .step("boot a machine with a broken configuration");
        start_broken(host, common, &dir.join("broken"))
            .await
            .map(Some)
    } else {
        Ok(None)
    };
    let elsewhere = initrd_network::start(suite, host, common, dir).await;
    after_boot::run(suite, host, common, dir).await;
    let mut result = Ok(());
    match broken {
        Err(error) => result = Err(error),
        Ok(None) => {}
        Ok(Some(mut cluster)) => {
            broken_ignition::run(suite, &mut cluster).await;
            cluster.discard();
        }
    }
    suite.close(broken_ignition::CASES, result.as_ref().err());
    initrd_network::run(suite, host, common, dir, elsewhere).await;
}

async fn start_broken(host: &Host, common: &Common, dir: &Path) -> Result<Cluster> {
    let mut nodes = description::nodes(&common.cluster, 1, &host.public_key)?;
    for node in &mut nodes {
        node.name = "broken".into();
        node.ignition = broken_ignition::CONFIG.into();
    }
    Cluster::start(
        host,
        dir,
        nodes,
        Options {
            exit_on_reset: true,
            ..Options::default()
        },
    )
    .await
}
