//! A machine that boots by network: `/usr` is in its initrd, its configuration on a server, and its disk stays as it
//! is.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde_json::json;

use crate::{
    cli::Common,
    cluster::{Cluster, Options},
    description,
    host::Host,
    suite::{Names, Suite},
};

/// The cases here.
pub(super) const CASES: Names = &[
    "pxe::configuration_comes_by_network_and_docker_runs",
    "pxe::usr_is_checked_and_everything_else_is_in_memory",
    "pxe::disk_stays_as_it_was",
];

/// All of them: the disk's own boots are what every change is tried by.
pub(super) const EXTENDED: Names = CASES;

/// As of a machine without a hypervisor's ways to hand over a configuration.
const ARGUMENTS: &str = "ignition.platform.id=metal ignition.config.url=http://10.0.2.4/config.ign";

/// Boots the machine, and runs the wanted cases.
pub(super) async fn run(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) {
    if !suite.wants_any(CASES) {
        return;
    }
    suite.progress.step("boot a machine by network");
    let mut result = Ok(());
    match start(host, common, &dir.join("pxe")).await {
        Err(error) => result = Err(error),
        Ok(mut cluster) => {
            if let Err(error) = cases(suite, &mut cluster).await {
                suite.boot_failed("pxe", &mut cluster, &error).await;
                result = Err(error);
            }
            cluster.discard();
        }
    }
    suite.close(CASES, result.as_ref().err());
}

async fn start(host: &Host, common: &Common, dir: &Path) -> Result<Cluster> {
    let configuration = json!({
        "ignition": {"version": "3.3.0"},
        "passwd": {"users": [{"name": "core", "sshAuthorizedKeys": [host.public_key]}]},
        "storage": {"files": [{"path": "/etc/hostname", "contents": {"source": "data:,diskless"}}]},
    });
    let mut nodes = description::nodes(&common.cluster, 1, &host.public_key)?;
    for node in &mut nodes {
        node.name = "pxe".into();
        node.served = vec![("config.ign".into(), configuration.to_string().into_bytes())];
    }
    let options = Options {
        alone: true,
        pxe: true,
        kernel_arguments: ARGUMENTS,
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
            let failed = ask(cluster, "systemctl --failed --plain --no-legend").await?;
            ensure!(state == "running", "the boot is {state}: {failed}");
            let host_name = ask(cluster, "uname -n").await?;
            ensure!(host_name == "diskless", "the host is {host_name}");
            let docker = ask(cluster, "sudo docker info --format '{{.Driver}}'").await?;
            ensure!(docker == "overlay2", "Docker's files are in {docker}");
            Ok(())
        })
        .await;
    suite.case(CASES[1], cluster, in_memory).await;
    suite.case(CASES[2], cluster, disk_untouched).await;
    Ok(())
}

async fn ask(cluster: &Cluster, script: &str) -> Result<String> {
    let [machine] = &cluster.machines[..] else {
        bail!("not one machine")
    };
    machine.ssh.run(script).await
}

async fn in_memory(cluster: &mut Cluster) -> Result<()> {
    let root = ask(cluster, "findmnt -n -o FSTYPE /").await?;
    ensure!(root == "tmpfs", "the root is {root}");
    let usr = ask(cluster, "findmnt -n -o SOURCE,FSTYPE,OPTIONS /usr").await?;
    ensure!(
        usr.starts_with("/dev/mapper/usr") && usr.contains("erofs") && usr.contains("ro"),
        "/usr is {usr}"
    );
    let kind = ask(cluster, "cat /sys/class/block/dm-*/dm/uuid").await?;
    ensure!(
        kind.starts_with("CRYPT-VERITY-"),
        "/usr is not checked: {kind}"
    );
    Ok(())
}

async fn disk_untouched(cluster: &mut Cluster) -> Result<()> {
    // What a partition table or a file system would begin with.
    let content = ask(
        cluster,
        "sudo cmp --bytes=67108864 /dev/vda /dev/zero && echo empty",
    )
    .await?;
    ensure!(content == "empty", "the disk was written to: {content}");
    Ok(())
}
