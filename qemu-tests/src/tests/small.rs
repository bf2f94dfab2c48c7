//! A machine with as little memory as the image is for: 512 MiB, started by firmware as a cloud's smallest machines
//! are.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::update::one;
use crate::{
    cli::Common,
    cluster::{Cluster, Options},
    container, description,
    host::Host,
    machine::Machine,
    overlay::{WEB, WEB_PORT},
    suite::{Names, Suite},
};

/// The cases here.
pub(super) const CASES: Names = &[
    "small::boots_with_512_mib_by_firmware",
    "small::docker_runs_a_container",
];

/// The memory in MiB, and what of it the kernel must find at the least: some is the firmware's and the kernel's own.
const MEMORY_MIB: u32 = 512;
const LEAST_MIB: u64 = 400;

/// Boots the machine, and runs the wanted cases.
pub(super) async fn run(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) {
    if !suite.wants_any(CASES) {
        return;
    }
    suite.progress.step("boot a machine with 512 MiB of memory");
    let mut result = Ok(());
    match start(host, common, &dir.join("small")).await {
        Err(error) => result = Err(error),
        Ok(mut cluster) => {
            if let Err(error) = cases(suite, &mut cluster).await {
                suite.boot_failed("small", &mut cluster, &error).await;
                result = Err(error);
            }
            cluster.discard();
        }
    }
    suite.close(CASES, result.as_ref().err());
}

async fn start(host: &Host, common: &Common, dir: &Path) -> Result<Cluster> {
    let mut nodes = description::nodes(&common.cluster, 1, &host.public_key)?;
    for node in &mut nodes {
        node.name = "small".into();
        node.ignition = description::only_a_login(&host.public_key).to_string();
    }
    let options = Options {
        alone: true,
        firmware: true,
        memory_mib: Some(MEMORY_MIB),
        ..Options::default()
    };
    Cluster::start(host, dir, nodes, options).await
}

async fn cases(suite: &mut Suite<'_>, cluster: &mut Cluster) -> Result<()> {
    let progress = suite.progress;
    cluster.wait_for_ssh(progress).await?;
    let state = cluster.settle(progress).await?.concat();
    suite
        .case(CASES[0], cluster, async |cluster| {
            let machine = one(cluster)?;
            ensure!(state == "running", "the boot is {state:?}");
            let total = memory(machine, "MemTotal").await?;
            ensure!(
                (LEAST_MIB..=u64::from(MEMORY_MIB)).contains(&total),
                "the machine has {total} MiB"
            );
            Ok(())
        })
        .await;
    suite
        .case(CASES[1], cluster, async |cluster| {
            runs_a_container(one(cluster)?).await
        })
        .await;
    Ok(())
}

/// A field of `/proc/meminfo`, in MiB.
async fn memory(machine: &Machine, field: &str) -> Result<u64> {
    let said = machine
        .ssh
        .run(&format!(
            "sed -n 's/^{field}: *\\([0-9]*\\) kB$/\\1/p' /proc/meminfo"
        ))
        .await?;
    let kib: u64 = said
        .trim()
        .parse()
        .with_context(|| format!("{field} is {said:?}"))?;
    Ok(kib >> 10)
}

/// The container answers, and nothing had to die for it.
async fn runs_a_container(machine: &Machine) -> Result<()> {
    let archive = container::build().await?;
    container::load(machine, &archive).await?;
    container::start_web(machine, WEB, None, WEB_PORT).await?;
    let address = container::address(machine, WEB).await?;
    let page =
        format!("curl --silent --show-error --fail --max-time 60 http://{address}:{WEB_PORT}/");
    machine.ssh.run(&page).await?;
    let left = memory(machine, "MemAvailable").await?;
    let killed = machine
        .ssh
        .run("sudo journalctl -b -q --no-pager | grep -i -e 'out of memory' -e 'oom-kill' || true")
        .await?;
    ensure!(
        killed.is_empty(),
        "something was ended for its memory, {left} MiB are left:\n{killed}"
    );
    // What is left is room for what somebody runs here.
    ensure!(left >= 64, "only {left} MiB are left");
    Ok(())
}
