//! A machine that came from CoreOS: its configuration enables `flanneld.service` and alters it and Docker by drop-ins as
//! that system's tools wrote them. It is the second machine of the pair, so every other case runs with it, too.

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    cluster::Cluster,
    facts,
    machine::Machine,
    overlay::WEB,
    suite::{Names, Suite},
};

/// The cases here.
pub(super) const CASES: Names = &[
    "coreos::flanneld_service_runs_the_agent_with_its_drop_ins",
    "coreos::docker_options_are_made_for_other_units",
    "coreos::options_file_is_read",
    "coreos::journal_of_flanneld_is_the_agents",
];

/// Written by CoreOS's tools for `flannel_docker_opts.env`.
const OPTIONS: &str = "/run/flannel/flannel_docker_opts.env";
/// Written by its cloud-config.
const SETTINGS: &str = "/run/flannel/options.env";

/// Runs them.
pub(super) async fn run(suite: &mut Suite<'_>, cluster: &mut Cluster) {
    suite.case(CASES[0], cluster, runs_the_agent).await;
    suite.case(CASES[1], cluster, docker_options).await;
    suite.case(CASES[2], cluster, options_file).await;
    suite.case(CASES[3], cluster, journal_of_flanneld).await;
}

fn coreos(cluster: &Cluster) -> Result<&Machine> {
    let [_, machine] = &cluster.machines[..] else {
        bail!("not two machines")
    };
    Ok(machine)
}

async fn runs_the_agent(cluster: &mut Cluster) -> Result<()> {
    let machine = coreos(cluster)?;
    let node = cluster.nodes.last().context("no node")?;
    let unit = machine
        .ssh
        .run("systemctl show -P Id flanneld.service && systemctl is-enabled selvage.service")
        .await?;
    ensure!(
        unit == "selvage.service\nenabled",
        "{}: flanneld.service is {unit:?}",
        machine.name()
    );
    let line = machine
        .ssh
        .run("tr '\\0' ' ' </proc/$(systemctl show -P MainPID flanneld.service)/cmdline")
        .await?;
    ensure!(
        line.contains("flanneld ") && line.ends_with(&format!("--iface={}", node.underlay.addr())),
        "{}: the drop-in's command line is {line:?}",
        machine.name()
    );
    Ok(())
}

async fn docker_options(cluster: &mut Cluster) -> Result<()> {
    check_options(coreos(cluster)?, true).await
}

/// `masqueraded`: whether the agent does what Docker then must not.
async fn check_options(machine: &Machine, masqueraded: bool) -> Result<()> {
    let facts = facts::ask(machine).await?;
    let said = machine.ssh.run(&format!("cat {OPTIONS}")).await?;
    let wanted = format!(
        "DOCKER_OPT_BIP=\"--bip={}\"\nDOCKER_OPT_IPMASQ=\"--ip-masq={}\"\nDOCKER_OPT_MTU=\"--mtu={}\"",
        facts.docker_bridge, !masqueraded, facts.mtu
    );
    ensure!(
        said == wanted,
        "{}: {OPTIONS} has\n{said}\ninstead of\n{wanted}",
        machine.name()
    );
    Ok(())
}

async fn options_file(cluster: &mut Cluster) -> Result<()> {
    let machine = coreos(cluster)?;
    // Docker requires flanneld.service by its drop-in, as users of CoreOS had it: it restarts, too.
    let restart = "sudo systemctl restart flanneld.service docker.service";
    machine
        .ssh
        .run(&format!(
            "echo FLANNELD_IP_MASQ=false | sudo tee {SETTINGS} && {restart}"
        ))
        .await?;
    let checked = check_options(machine, false).await;
    machine
        .ssh
        .run(&format!(
            "sudo rm {SETTINGS} && {restart} && docker start {WEB}"
        ))
        .await?;
    checked?;
    check_options(machine, true).await
}

/// By either name, on a machine that came from CoreOS and on one that did not.
async fn journal_of_flanneld(cluster: &mut Cluster) -> Result<()> {
    for machine in &cluster.machines {
        for unit in ["flanneld", "selvage"] {
            let said = machine
                .ssh
                .run(&format!("journalctl -b -q --no-pager -o cat -u {unit}"))
                .await?;
            ensure!(
                said.lines().any(|line| line.contains("lease acquired")),
                "{}: `journalctl -u {unit}` does not tell of the lease:\n{said}",
                machine.name()
            );
        }
    }
    Ok(())
}
