//! A node as `ignition/kubernetes.toml` describes it, with programs that stand in for Kubernetes' own
//! (`qemu-tests/kubernetes`, which `make sysexts-stand-ins` packs): what starts when, at the first boot and at the next.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::sysext::Extension;
use super::update::one;
use crate::{
    cli::Common,
    cluster::{Cluster, Options},
    description,
    host::Host,
    machine::Machine,
    suite::{Names, Suite},
    wait,
};

/// The cases here.
pub(super) const CASES: Names = &[
    "kubernetes_node::first_boot_brings_the_kubelet_and_joins_once",
    "kubernetes_node::next_boot_starts_the_kubelet_and_joins_no_more",
];

/// All of them: one machine, two boots.
pub(super) const EXTENDED: Names = CASES;

/// For the extension's way, two tries to join, and a kubelet that is started again.
const DEADLINE: Duration = Duration::from_secs(180);

/// Boots the machine twice, and runs the wanted cases.
pub(super) async fn run(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) {
    if !suite.wants_any(CASES) {
        return;
    }
    suite
        .progress
        .step("first boot of a node that joins a Kubernetes cluster");
    let mut result = Ok(());
    match start(host, common, &dir.join("kubernetes-node")).await {
        Err(error) => result = Err(error),
        Ok(mut cluster) => {
            if let Err(error) = boots(suite, &mut cluster).await {
                suite
                    .boot_failed("kubernetes-node", &mut cluster, &error)
                    .await;
                result = Err(error);
            }
            cluster.discard();
        }
    }
    suite.close(CASES, result.as_ref().err());
}

async fn start(host: &Host, common: &Common, dir: &Path) -> Result<Cluster> {
    let built = common.target.join("sysexts-stand-ins");
    let extension = Extension::of(&common.image, &built, "kubernetes")
        .context("build it with `make sysexts-stand-ins`")?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ignition/kubernetes.toml");
    let mut nodes = description::altered(&path, 1, &host.public_key, |cluster| {
        if let Some(kubernetes) = &mut cluster.kubernetes {
            kubernetes.sysext = Some(extension.url());
            kubernetes.sysext_sha256 = Some(extension.sha256().to_owned());
        }
        cluster.agent.clear();
        for node in &mut cluster.nodes {
            node.gateway = None;
            node.dns.clear();
        }
    })?;
    for node in &mut nodes {
        node.served.extend(extension.served());
    }
    let options = Options {
        alone: true,
        ..Options::default()
    };
    Cluster::start(host, dir, nodes, options).await
}

async fn boots(suite: &mut Suite<'_>, cluster: &mut Cluster) -> Result<()> {
    let progress = suite.progress;
    cluster.wait_for_ssh(progress).await?;
    cluster.settle(progress).await?;
    suite
        .case(CASES[0], cluster, async |cluster| {
            let machine = one(cluster)?;
            joined(machine).await?;
            only_the_lost_try_is_told(machine)
        })
        .await;
    one(cluster)?.reboot().await?;
    cluster.wait_for_ssh(progress).await?;
    cluster.settle(progress).await?;
    suite
        .case(CASES[1], cluster, async |cluster| {
            let machine = one(cluster)?;
            node_is_up(machine).await?;
            for unit in ["kubernetes-programs", "kubeadm-join"] {
                let asked = format!("systemctl show -P ConditionResult {unit}.service");
                let met = machine.ssh.run(&asked).await?;
                ensure!(met == "no", "{unit}.service ran again: {met:?}");
            }
            Ok(())
        })
        .await;
    Ok(())
}

/// Waits for the kubelet, and sees that kubeadm was called twice and not oftener: once in vain, once with success.
async fn node_is_up(machine: &Machine) -> Result<()> {
    wait::until("a kubelet of a node that has joined", DEADLINE, || {
        machine
            .ssh
            .run("test -e /etc/kubernetes/kubelet.conf && systemctl is-active kubelet.service")
    })
    .await?;
    let tries = machine.ssh.run("wc -l </var/lib/kubeadm-tries").await?;
    ensure!(tries == "2", "kubeadm was called {tries} times");
    Ok(())
}

/// The stand-in loses its first try, and systemd says so on the console. Nothing else may be wrong there.
fn only_the_lost_try_is_told(machine: &mut Machine) -> Result<()> {
    let hits = machine.console.check()?;
    let lines: Vec<_> = hits.iter().map(|hit| hit.line.as_str()).collect();
    ensure!(
        matches!(lines[..], [line] if line.contains("Failed to start kubeadm-join.service")),
        "the console should tell of the lost try alone: {lines:?}"
    );
    Ok(())
}

async fn joined(machine: &Machine) -> Result<()> {
    node_is_up(machine).await?;
    for check in [
        "! systemctl is-active docker.service docker.socket selvage.service",
        "sudo containerd config dump | grep 'SystemdCgroup = true'",
        "sudo containerd config dump | grep 'bin_dir = \"/opt/cni/bin\"'",
        "test -x /opt/cni/bin/bridge && test -x /opt/cni/bin/portmap && test -d /etc/cni/net.d",
        "grep -x 1 /proc/sys/net/bridge/bridge-nf-call-iptables",
        "grep -x 1 /proc/sys/net/ipv4/ip_forward",
        "grep -x 'KUBELET_EXTRA_ARGS=--node-ip=192.168.10.21' /etc/default/kubelet",
        "! sudo selvage ignition report --faults | grep .",
        "! systemctl --failed --no-legend --plain | grep .",
    ] {
        machine
            .ssh
            .run(check)
            .await
            .with_context(|| check.to_owned())?;
    }
    Ok(())
}
