//! What an operator sees of a machine of the image: the agent told under its service's sandbox, by commands that need no
//! privileges, beside the real Docker.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use selvage::command::doctor::Report;
use selvage::telemetry::status::{PeerState, State, Status};

use crate::{
    cluster::Cluster,
    facts,
    machine::Machine,
    suite::{Names, Suite},
    wait,
};

/// The cases here.
pub(super) const CASES: Names = &[
    "operator::anybody_may_ask_for_the_status",
    "operator::doctor_has_nothing_to_say",
    "operator::doctor_names_a_closed_port",
    "operator::stopped_agent_is_said_to_be_stopped",
    "operator::completions_and_man_pages_are_installed",
];

/// How long the agent may take to say so when something is set right again.
const SETTLED: Duration = Duration::from_secs(60);

/// Runs them.
pub(super) async fn run(suite: &mut Suite<'_>, cluster: &mut Cluster) {
    suite.case(CASES[0], cluster, status).await;
    suite.case(CASES[1], cluster, healthy).await;
    suite.case(CASES[2], cluster, closed_port).await;
    suite.case(CASES[3], cluster, stopped).await;
    suite.case(CASES[4], cluster, manual).await;
}

async fn status(cluster: &mut Cluster) -> Result<()> {
    let [a, b] = &cluster.machines[..] else {
        bail!("not two machines")
    };
    for (machine, other) in [(a, b), (b, a)] {
        let (own, peer) = (facts::ask(machine).await?, facts::ask(other).await?);
        let said = machine.ssh.run("selvage status --json").await?;
        let status: Status = serde_json::from_str(&said).context(said)?;
        let lease = status.lease.as_ref();
        ensure!(
            status.health.state == State::Ready
                && lease.and_then(|lease| lease.subnet) == Some(own.subnet)
                && lease.is_some_and(|lease| lease.left_seconds > Some(0)),
            "{}: {status:?}",
            machine.name()
        );
        ensure!(
            status.peers.iter().any(|told| {
                told.state == PeerState::Programmed && told.subnet == Some(peer.subnet)
            }),
            "{}: no peer {}: {status:?}",
            machine.name(),
            peer.subnet
        );
        let text = machine.ssh.run("selvage status").await?;
        ensure!(text.contains(&peer.subnet.to_string()), "{text}");
        let reached = format!("selvage peers {}", peer.subnet.addr());
        machine.ssh.run(&reached).await?;
    }
    Ok(())
}

async fn doctor(machine: &Machine) -> Result<Report> {
    // It is no failure here that there are findings.
    let said = machine
        .ssh
        .run("sudo selvage doctor --json || [ $? -le 2 ]")
        .await?;
    serde_json::from_str(&said).context(said)
}

/// Fails unless the doctor has looked at everything, and found these faults and nothing else.
///
/// # Errors
/// Names the machine, what was found there, and what could not be looked at.
pub(super) async fn doctor_says(machine: &Machine, checks: &[&str]) -> Result<()> {
    let report = doctor(machine).await?;
    let found: Vec<_> = report
        .findings
        .iter()
        .map(|finding| finding.check.as_str())
        .collect();
    ensure!(
        found == checks && report.unchecked.is_empty(),
        "{}: {:?}; not looked at: {:?}",
        machine.name(),
        report.findings,
        report.unchecked
    );
    ensure!(!report.checked.is_empty(), "{}: no checks", machine.name());
    Ok(())
}

/// Fails unless the agent tells what WireGuard counted of each peer.
///
/// # Errors
/// Names the machine and the peer.
pub(super) async fn peers_are_counted(machine: &Machine) -> Result<()> {
    let said = machine.ssh.run("selvage status --json").await?;
    let status: Status = serde_json::from_str(&said).context(said)?;
    ensure!(!status.peers.is_empty(), "{}: no peers", machine.name());
    for peer in &status.peers {
        let traffic = peer.traffic.unwrap_or_default();
        ensure!(
            peer.handshake_time.is_some() && traffic.rx_bytes > 0 && traffic.tx_bytes > 0,
            "{}: {peer:?}",
            machine.name()
        );
    }
    Ok(())
}

async fn is_healthy(cluster: &Cluster) -> Result<()> {
    for machine in &cluster.machines {
        doctor_says(machine, &[]).await?;
    }
    Ok(())
}

async fn healthy(cluster: &mut Cluster) -> Result<()> {
    is_healthy(cluster).await?;
    for machine in &cluster.machines {
        let said = machine.ssh.run("sudo selvage doctor").await?;
        ensure!(said.is_empty(), "{}: {said}", machine.name());
    }
    Ok(())
}

/// The peer drops what comes in by the overlay's UDP port, as a cloud's security group would.
async fn closed_port(cluster: &mut Cluster) -> Result<()> {
    let [a, b] = &cluster.machines[..] else {
        bail!("not two machines")
    };
    b.ssh
        .run(
            "sudo nft 'table inet shut { chain in { type filter hook input priority -300; udp dport 8472 drop; }; }'",
        )
        .await?;
    let report = doctor(a).await;
    b.ssh.run("sudo nft delete table inet shut").await?;
    let report = report?;
    let subnet = facts::ask(b).await?.subnet.to_string();
    ensure!(
        report
            .findings
            .iter()
            .any(|finding| finding.what.contains("8472") || finding.what.contains(&subnet)),
        "{report:?}"
    );
    ensure!(
        report
            .findings
            .iter()
            .all(|finding| !finding.remedy.is_empty()),
        "{report:?}"
    );
    wait::until("the doctor to have nothing to say", SETTLED, || {
        is_healthy(cluster)
    })
    .await
}

async fn stopped(cluster: &mut Cluster) -> Result<()> {
    let [machine, _] = &cluster.machines[..] else {
        bail!("not two machines")
    };
    machine.ssh.run("sudo systemctl stop selvage").await?;
    let said = machine
        .ssh
        .run("selvage status; echo status $?; sudo selvage doctor; echo doctor $?")
        .await;
    machine.ssh.run("sudo systemctl start selvage").await?;
    let said = said?;
    ensure!(said.contains("status 3"), "{said}");
    ensure!(said.contains("doctor 1"), "{said}");
    Ok(())
}

async fn manual(cluster: &mut Cluster) -> Result<()> {
    let [machine, _] = &cluster.machines[..] else {
        bail!("not two machines")
    };
    let share = "/usr/share";
    for (page, heading) in [
        ("man1/selvage.1.gz", ".TH SELVAGE 1 "),
        ("man1/selvage-status.1.gz", ".TH SELVAGE-STATUS 1 "),
        (
            "man1/selvage-network-get.1.gz",
            ".TH SELVAGE-NETWORK-GET 1 ",
        ),
        ("man5/agent.toml.5.gz", ".TH AGENT.TOML 5 "),
    ] {
        let show = format!("gzip -dc {share}/man/{page}");
        let text = machine.ssh.run(&show).await?;
        ensure!(text.contains(heading), "{page}: {text}");
    }
    let bash = format!("{share}/bash-completion/completions/selvage");
    for file in [
        &bash,
        &format!("{share}/zsh/vendor-completions/_selvage"),
        &format!("{share}/fish/vendor_completions.d/selvage.fish"),
    ] {
        machine.ssh.run(&format!("test -s {file}")).await?;
    }
    let sourced = format!("bash -c '. {bash}; complete -p selvage'");
    let said = machine.ssh.run(&sourced).await?;
    ensure!(said.contains("-F _selvage selvage"), "{said}");
    // A log-in shell has it read with the first Tab: 124 makes bash look again.
    let lazy = "bash -lc 'complete -p selvage; _selvage_load; echo $?; complete -p selvage'";
    let said = machine.ssh.run(lazy).await?;
    let lines: Vec<&str> = said.lines().collect();
    ensure!(
        lines.len() == 3
            && lines[0] == "complete -F _selvage_load selvage"
            && lines[1] == "124"
            && lines[2].ends_with("-F _selvage selvage"),
        "{said}"
    );
    Ok(())
}
