//! Machines by themselves. They boot side by side: one processor each is all that a small host has for them anyway.

use std::path::Path;

use anyhow::Result;

use super::{broken_ignition, plain_docker};
use crate::{
    cli::Common,
    cluster::{Cluster, Node, Options},
    description,
    host::Host,
    suite::{Names, Suite},
};

/// Boots what the wanted cases need, and runs them.
pub(super) async fn run(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) {
    let wanted = |suite: &Suite<'_>, names: Names| suite.wants_any(names);
    let (plain, broken) = (
        wanted(suite, plain_docker::CASES),
        wanted(suite, broken_ignition::CASES),
    );
    let mut result = Ok(());
    if plain || broken {
        suite
            .progress
            .step("boot machines without agent and with a broken configuration");
        let started = async {
            let broken = if broken {
                Some(start_broken(host, common, &dir.join("broken")).await?)
            } else {
                None
            };
            let plain = if plain {
                Some(start_plain(host, common, &dir.join("plain")).await?)
            } else {
                None
            };
            Ok::<_, anyhow::Error>((plain, broken))
        };
        match started.await {
            Err(error) => result = Err(error),
            Ok((plain, broken)) => {
                if let Some(mut cluster) = plain {
                    result = plain_cases(suite, &mut cluster).await;
                    cluster.discard();
                }
                if let Some(mut cluster) = broken {
                    broken_ignition::run(suite, &mut cluster).await;
                    cluster.discard();
                }
            }
        }
    }
    for names in [plain_docker::CASES, broken_ignition::CASES] {
        suite.close(names, result.as_ref().err());
    }
}

async fn plain_cases(suite: &mut Suite<'_>, cluster: &mut Cluster) -> Result<()> {
    let booted = async {
        cluster.wait_for_ssh(suite.progress).await?;
        cluster.settle(suite.progress).await
    };
    match booted.await {
        Ok(states) => {
            plain_docker::run(suite, cluster, &states.concat()).await;
            Ok(())
        }
        Err(error) => {
            suite.boot_failed("plain", cluster, &error).await;
            Err(error)
        }
    }
}

fn node(host: &Host, common: &Common) -> Result<Vec<Node>> {
    description::nodes(&common.cluster, 1, &host.public_key)
}

async fn start_plain(host: &Host, common: &Common, dir: &Path) -> Result<Cluster> {
    let nodes = node(host, common)?
        .iter()
        .map(|node| description::without_units(node, &plain_docker::LEFT_OUT))
        .collect::<Result<_>>()?;
    Cluster::start(host, dir, nodes, Options::default()).await
}

async fn start_broken(host: &Host, common: &Common, dir: &Path) -> Result<Cluster> {
    let mut nodes = node(host, common)?;
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
