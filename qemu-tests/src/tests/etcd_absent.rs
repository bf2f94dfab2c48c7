//! A machine that boots while etcd is away, and has another address than before: it waits, says for what, goes on by itself,
//! and is the same machine to its peers.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{overlay, second_boot};
use crate::{
    cluster::Cluster,
    facts::{self, Facts},
    machine::Machine,
    overlay::WEB,
    suite::{Names, Suite},
    timeline, wait,
};

/// The cases here.
pub(super) const CASES: Names = &[
    "etcd_absent::docker_waits_and_status_says_why",
    "etcd_absent::all_comes_up_when_etcd_appears",
    "etcd_absent::another_address_is_in_the_one_lease_and_peers_follow",
];

/// What the second machine's address becomes: another that no machine has.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 22);

/// Stops etcd on the first machine, boots the second one again, and runs the cases.
///
/// # Errors
/// When the machine does not come back, or etcd cannot be stopped.
pub(super) async fn run(
    suite: &mut Suite<'_>,
    cluster: &mut Cluster,
    before: &[Facts],
) -> Result<()> {
    suite
        .progress
        .step("boot of the second machine without etcd");
    let [member, machine] = &mut cluster.machines[..] else {
        anyhow::bail!("not two machines")
    };
    let [_, node] = &mut cluster.nodes[..] else {
        anyhow::bail!("not two nodes")
    };
    let former = node.underlay.addr();
    node.underlay = ipnet::Ipv4Net::new(ADDRESS, node.underlay.prefix_len())?;
    // Wherever an administrator would have to change it.
    machine
        .ssh
        .run(&format!(
            "sudo sed -i s/{former}/{ADDRESS}/g $(sudo grep -rlF {former} /etc/systemd /etc/selvage)"
        ))
        .await?;
    member.ssh.run("sudo systemctl stop etcd").await?;
    machine.reboot().await?;
    machine.wait_for_ssh(suite.progress).await?;
    suite.case(CASES[0], cluster, waits).await;
    cluster.machines[0]
        .ssh
        .run("sudo systemctl start etcd")
        .await?;
    let progress = suite.progress;
    suite
        .case(CASES[1], cluster, async |cluster| {
            let [_, machine] = &cluster.machines[..] else {
                anyhow::bail!("not two machines")
            };
            let state = machine.settle(progress).await?;
            ensure!(state == "running", "{}: {state}", machine.name());
            comes_up(cluster, before).await
        })
        .await;
    suite
        .case(CASES[2], cluster, async |cluster| {
            moved(cluster, former, before).await
        })
        .await;
    Ok(())
}

/// A unit property.
async fn property(machine: &Machine, unit: &str, name: &str) -> Result<String> {
    machine
        .ssh
        .run(&format!("systemctl show --value -p {name} {unit}"))
        .await
}

async fn waits(cluster: &mut Cluster) -> Result<()> {
    let [_, machine] = &cluster.machines[..] else {
        anyhow::bail!("not two machines")
    };
    let [member, _] = &cluster.nodes[..] else {
        anyhow::bail!("not two nodes")
    };
    let endpoint = format!("http://{}:2379", member.underlay.addr());
    let name = machine.name();
    wait::until(
        "a status that says what is waited for",
        Duration::from_secs(180),
        || async {
            let status = property(machine, "selvage.service", "StatusText").await?;
            ensure!(
                status.starts_with("waiting to join: etcd"),
                "{name}: STATUS is {status:?}"
            );
            ensure!(
                status.contains(&endpoint),
                "{name}: no {endpoint} in STATUS {status:?}"
            );
            let reason = status
                .split(&endpoint)
                .nth(1)
                .unwrap_or_default()
                .trim_matches([':', ' ']);
            ensure!(!reason.is_empty(), "{name}: no reason in STATUS {status:?}");
            Ok(())
        },
    )
    .await?;
    let docker = property(machine, "docker.service", "ActiveState").await?;
    ensure!(
        docker == "inactive",
        "{name}: Docker is {docker} without a subnet"
    );
    let jobs = machine
        .ssh
        .run("systemctl list-jobs --plain --no-legend --no-pager")
        .await?;
    ensure!(
        jobs.lines().any(|job| job.contains("docker.service")),
        "{name}: Docker does not wait; jobs:\n{jobs}"
    );
    Ok(())
}

async fn comes_up(cluster: &Cluster, before: &[Facts]) -> Result<()> {
    let [_, machine] = &cluster.machines[..] else {
        anyhow::bail!("not two machines")
    };
    timeline::ask(machine)
        .await?
        .check_order()
        .with_context(|| format!("{}: wrong order", machine.name()))?;
    for unit in ["selvage.service", "docker.service"] {
        let restarts = property(machine, unit, "NRestarts").await?;
        ensure!(
            restarts == "0",
            "{}: {unit} was restarted {restarts} times",
            machine.name()
        );
    }
    second_boot::keeps_identity(cluster, before).await?;
    machine.ssh.run(&format!("docker start {WEB}")).await?;
    overlay::talk(cluster).await
}

/// The lease of the machine's subnet has the new address, nothing has the former one, and the first machine sends there.
async fn moved(cluster: &Cluster, former: Ipv4Addr, before: &[Facts]) -> Result<()> {
    let [member, machine] = &cluster.machines[..] else {
        anyhow::bail!("not two machines")
    };
    let subnet = before.get(1).context("no facts")?.subnet;
    wait::until("the peer to follow", Duration::from_secs(60), || async {
        let leases = member
            .ssh
            .run("etcdctl get --prefix /coreos.com/network/subnets/")
            .await?;
        let key = format!("/{}", subnet.to_string().replace('/', "-"));
        let lease = leases
            .split_once(&key)
            .and_then(|(_, rest)| rest.trim_start().lines().next())
            .with_context(|| format!("no lease {key} in {leases}"))?;
        ensure!(
            lease.contains(&format!("\"{ADDRESS}\"")) && !leases.contains(&format!("\"{former}\"")),
            "the leases have {former} still, or lack {ADDRESS}: {leases}"
        );
        let peers = facts::ask(member).await?.peers;
        ensure!(
            peers == [ADDRESS],
            "{}: sends to {peers:?} instead of {ADDRESS}",
            member.name()
        );
        Ok(())
    })
    .await?;
    let now = facts::ask(machine).await?.subnet;
    ensure!(
        now == subnet,
        "{}: subnet {subnet} became {now}",
        machine.name()
    );
    overlay::talk(cluster).await
}
