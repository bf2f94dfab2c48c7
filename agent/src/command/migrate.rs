//! `selvage migrate`: what a move of a Kubernetes cluster's pod network to this agent, or back to flannel, will change, and
//! what stands in its way. It looks at the live cluster and changes nothing.
//!
//! | module | purpose |
//! |---|---|
//! | `cluster` | what is read of the cluster |
//! | `daemon` | DaemonSets that run flannel or this agent |
//! | `flags` | flannel's flags and variables, and which of them must be carried over |
//! | `mounts` | the host's directories that the pods have |
//! | `config` | the ConfigMap: network config and CNI config list |
//! | `nodes` | nodes, and what their kubelets say of them |
//! | `plugins` | other pod networks, and flannel where no DaemonSet runs it |
//! | `from_flannel`, `back` | the two directions: findings, changes, steps |
//! | `kubectl` | the commands that the steps consist of |
//! | `text` | the report for people |
//!
//! Findings and exit status are the doctor's. The JSON schema is stable, like that of [`crate::telemetry::status`].

use std::io::{self, Write};

use serde::Serialize;
use thiserror::Error;

use self::cluster::Seen;
use self::daemon::Daemon;
use crate::base::terminal::Style;
use crate::cluster::lease::kube::{NodeFacts, Surroundings, Survey};
use crate::cluster::lease::{Fault, StoreError};
use crate::command::cli::MigrateCommand;
use crate::command::doctor::{self, Finding, Severity, Unchecked};
use crate::settings::Settings;
use crate::telemetry::status::now;

mod back;
mod cluster;
mod config;
mod daemon;
mod flags;
mod from_flannel;
mod kubectl;
mod mounts;
mod nodes;
mod plugins;
#[cfg(test)]
mod tests;
mod text;

/// The version of the schema.
const SCHEMA: u32 = 1;

/// Why there is no report.
#[derive(Debug, Error)]
pub enum Error {
    /// The cluster.
    #[error("{0}{hint}", hint = hint(.0))]
    Cluster(#[from] StoreError),
    /// The report cannot be written.
    #[error("failed to write the output")]
    Output(#[from] io::Error),
}

/// What else there is to try where the login fails.
fn hint(error: &StoreError) -> &'static str {
    match error.fault() {
        Fault::Login => {
            "; to use kubectl's own login: kubectl proxy, and --kube-api-url=http://127.0.0.1:8001"
        }
        _ => "",
    }
}

/// The report that `selvage migrate … --json` prints.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// Version of the schema: 1.
    pub schema: u32,
    /// The time of the check.
    pub time: u64,
    /// `from-flannel` or `back`.
    pub direction: String,
    /// The API server's version, if it says so.
    pub server: Option<String>,
    /// The DaemonSets that run flannel or this agent.
    pub daemon_sets: Vec<DaemonSet>,
    /// The network config, if it is valid.
    pub network: Option<Network>,
    /// All nodes, in the order of their names.
    pub nodes: Vec<Node>,
    /// What will change; one sentence each.
    pub changes: Vec<String>,
    /// What pods notice of it; one sentence each.
    pub pods: Vec<String>,
    /// What stands in the way (`error`), and what is to be looked at (`warning`).
    pub findings: Vec<Finding>,
    /// What to do, in this order; none while something stands in the way that makes all of it futile.
    pub steps: Vec<Step>,
    /// What could not be checked, and why.
    pub unchecked: Vec<Unchecked>,
}

/// A DaemonSet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DaemonSet {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `flannel` or `selvage`.
    pub program: String,
    /// The image of that container.
    pub image: String,
    /// On how many nodes it should run.
    pub desired: u64,
    /// On how many it is ready.
    pub ready: u64,
    /// Its flags, and the variables that set some.
    pub flags: Vec<Flag>,
    /// The host's directories and files that its pods have.
    pub host_paths: Vec<String>,
}

/// A flag of flanneld.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Flag {
    /// As it is given: `--iface=eth1`, or `FLANNELD_IFACE=eth1`; without its value if that has no effect.
    pub flag: String,
    /// What it is for; `None` if neither flannel v0.28.9 nor this agent knows it.
    pub meaning: Option<String>,
    /// Whether it has an effect on a node of Kubernetes that has this agent; `None` for an unknown one.
    pub has_effect: Option<bool>,
}

/// What of the network config counts here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Network {
    /// The networks, IPv4 first.
    pub networks: Vec<String>,
    /// The backend.
    pub backend: String,
}

/// A node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its podCIDRs.
    pub pod_cidrs: Vec<String>,
    /// Whether flannel or this agent has annotated it.
    pub annotated: bool,
    /// The backend in its annotations; empty for udp and alloc.
    pub backend: String,
    /// What its kubelet says of it.
    #[serde(flatten)]
    pub facts: NodeFacts,
}

/// Something to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Step {
    /// What, and why.
    pub what: String,
    /// Commands, or what to write where.
    pub how: Vec<String>,
}

impl Step {
    fn new(what: impl Into<String>, how: Vec<String>) -> Self {
        Self {
            what: what.into(),
            how,
        }
    }
}

/// What a direction makes of the cluster.
#[derive(Debug, Default)]
struct Judgement {
    findings: Vec<Finding>,
    changes: Vec<String>,
    pods: Vec<String>,
    steps: Vec<Step>,
    network: Option<Network>,
}

impl Judgement {
    /// Something that stands in the way.
    fn bar(
        &mut self,
        check: &str,
        subject: impl Into<String>,
        what: impl Into<String>,
        why: &str,
        remedy: Vec<String>,
    ) {
        let (severity, what) = (Severity::Error, what.into());
        let finding = Finding::new(check, severity, subject, what, why, remedy);
        self.findings.push(finding);
    }

    /// Something to look at.
    fn warn(
        &mut self,
        check: &str,
        subject: impl Into<String>,
        what: impl Into<String>,
        why: &str,
        remedy: Vec<String>,
    ) {
        let (severity, what) = (Severity::Warning, what.into());
        let finding = Finding::new(check, severity, subject, what, why, remedy);
        self.findings.push(finding);
    }
}

/// Both agents run.
fn bar_both(ours: &Daemon, theirs: &Daemon, remedy: String, judgement: &mut Judgement) {
    let (ours, theirs) = (ours.shown(), theirs.shown());
    judgement.bar(
        plugins::FLANNEL,
        theirs.clone(),
        format!("{theirs} runs flannel, and {ours} runs this agent"),
        "where both are on one node, each undoes what the other does",
        vec![remedy],
    );
}

/// Looks at the cluster and prints the report. Returns the exit status: 0 nothing, 1 errors, 2 only warnings.
///
/// # Errors
/// The cluster cannot be read, other than for want of a right, or the report cannot be written.
pub async fn run(
    command: &MigrateCommand,
    settings: &Settings,
    output: &mut impl Write,
) -> Result<u8, Error> {
    let flags = command.flags();
    let survey = Survey::new(&settings.kubernetes, Surroundings::of_process());
    let report = report(command, &survey).await?;
    if flags.json {
        serde_json::to_writer_pretty(&mut *output, &report).map_err(io::Error::from)?;
        writeln!(output)?;
    } else {
        text::print(&report, Style::choose(flags.color), output)?;
    }
    Ok(doctor::exit_status(&report.findings))
}

/// Looks at the cluster.
///
/// # Errors
/// The cluster cannot be read, other than for want of a right.
pub async fn report(command: &MigrateCommand, survey: &Survey) -> Result<Report, StoreError> {
    let seen = Seen::look(survey).await?;
    let (direction, judgement) = match command {
        MigrateCommand::FromFlannel(_) => ("from-flannel", from_flannel::judge(&seen)),
        MigrateCommand::Back(_) => ("back", back::judge(&seen)),
    };
    let Judgement {
        mut findings,
        changes,
        pods,
        steps,
        network,
    } = judgement;
    findings.extend(seen.findings.iter().cloned());
    // A stable sort keeps findings of one severity in the order of the checks.
    findings.sort_by_key(|finding| finding.severity);
    Ok(Report {
        schema: SCHEMA,
        time: now(),
        direction: direction.to_owned(),
        server: seen.version.as_ref().map(|version| version.text.clone()),
        daemon_sets: seen.daemons.iter().map(cluster::shown).collect(),
        network,
        nodes: seen.nodes().iter().map(nodes::shown).collect(),
        changes,
        pods,
        findings,
        steps,
        unchecked: seen.unchecked,
    })
}
