//! `selvage doctor`: checks for everything known to break an overlay, and prints remedies.
//!
//! Each check looks for one fault and has its own file, by area: the host, the cluster, or the paths to peers. Checks
//! are read-only, except for probe packets to peers, which `--no-probes` disables; probes that look like an attack need
//! `--deep`. What the agent knows is queried from the agent and not computed again.
//!
//! The JSON schema is stable, like that of [`crate::telemetry::status`].

use std::fmt;
use std::future::Future;
use std::io::{self, Write};
use std::pin::Pin;

use futures_util::future::join_all;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use self::reach::Survey;
use crate::base::terminal::Style;
use crate::base::words::harmless;
use crate::command::cli::DoctorFlags;
use crate::settings::{Settings, is_node_name};
use crate::telemetry::control::{self, Client};
use crate::telemetry::status::Status;

mod cluster;
mod host;
mod kubernetes;
mod names;
mod reach;

pub(super) use self::kubernetes::{judge_nodes, sample};
pub(crate) use self::names::Names;

/// The version of the schema.
const SCHEMA: u32 = 1;

/// The report that `selvage doctor --json` prints.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of the schema: 1.
    pub schema: u32,
    /// The time of the checks.
    pub time: u64,
    /// The faults, the most severe first.
    pub findings: Vec<Finding>,
    /// The names of the checks made.
    pub checked: Vec<String>,
    /// The checks that could not be made, and why.
    pub unchecked: Vec<Unchecked>,
}

/// One fault.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// The check's name; stable, for automation.
    pub check: String,
    /// Its severity.
    pub severity: Severity,
    /// The peer, device, file or container in question, if any.
    pub subject: Option<String>,
    /// The subnets of the peers that lose packets, if the check asked peers; `what` names only a few of many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<IpNet>,
    /// The fault, with the values that show it; one sentence.
    pub what: String,
    /// Its effect on the overlay, and its cause.
    pub why: String,
    /// The remedies: commands or settings, the best first.
    pub remedy: Vec<String>,
}

impl Finding {
    /// A finding about one subject.
    pub(super) fn new(
        check: &str,
        severity: Severity,
        subject: impl Into<String>,
        what: String,
        why: &str,
        remedy: Vec<String>,
    ) -> Self {
        Self {
            check: check.to_owned(),
            severity,
            subject: Some(subject.into()),
            peers: Vec::new(),
            what,
            why: why.to_owned(),
            remedy,
        }
    }
}

/// The severity of a finding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Packets are lost, or will be soon.
    Error,
    /// Degraded: some traffic may fail now or later.
    Warning,
}

/// A check that could not be made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Unchecked {
    /// Its name.
    pub check: String,
    /// Why: what is missing.
    pub reason: String,
}

/// The input of the checks.
pub(crate) struct Context<'a> {
    /// The agent's settings.
    pub(crate) settings: &'a Settings,
    /// The names of the agent and its files.
    pub(crate) names: Names,
    /// The agent's status, or why it could not be queried.
    pub(crate) status: Result<Status, control::Error>,
    /// Whether packets may be sent to peers.
    pub(crate) probes: bool,
    /// Whether probes that look like an attack are allowed.
    pub(crate) deep: bool,
    /// The results of the probes to peers; sent once, when the first check needs them.
    pub(crate) survey: Survey,
}

impl Context<'_> {
    /// The agent's status, for checks that require it.
    pub(crate) fn status(&self) -> Result<&Status, NotChecked> {
        self.status
            .as_ref()
            .map_err(|_| NotChecked("the agent does not answer".to_owned()))
    }
}

/// Why a check could not be made.
#[derive(Debug)]
pub(crate) struct NotChecked(pub(crate) String);

/// The result of a check: its findings, none on a healthy node.
pub(crate) type Outcome = Result<Vec<Finding>, NotChecked>;

/// One check.
pub(crate) struct Check {
    /// Its name, in JSON and messages; short, lower case, with dashes.
    pub(crate) name: &'static str,
    /// What it looks for, worded to complete "checked for".
    pub(crate) looks_for: &'static str,
    pub(crate) run: for<'a> fn(&'a Context<'a>) -> Pin<Box<dyn Future<Output = Outcome> + 'a>>,
}

/// All checks, in the order of the report; those of Kubernetes only where that is the lease store.
fn checks(settings: &Settings) -> impl Iterator<Item = Check> + use<> {
    let kubernetes = match settings.kubernetes.enabled {
        true => kubernetes::checks(),
        false => Vec::new(),
    };
    cluster::checks()
        .into_iter()
        .chain(kubernetes)
        .chain(host::checks())
        .chain(reach::checks())
}

/// The settings, with what the agent's status tells of its flags: this command has no such flags, and a pod's agent has
/// little else.
fn of_the_agent(settings: &Settings, status: Option<&Status>) -> Settings {
    let mut settings = settings.clone();
    let Some(status) = status.filter(|status| status.store.kind == "kubernetes") else {
        return settings;
    };
    let (store, kubernetes) = (&status.store, &mut settings.kubernetes);
    // Of a pod whose node is looked up, this is another name.
    let node = Some(&status.agent.node_id).filter(|name| is_node_name(name));
    if kubernetes.node_name.is_none() {
        kubernetes.node_name = node.cloned();
    }
    if kubernetes.enabled {
        return settings;
    }
    kubernetes.enabled = true;
    kubernetes.annotation_prefix.clone_from(&store.prefix);
    let server = store.servers.first().map_or("", String::as_str);
    if server.starts_with('/') {
        kubernetes.kubeconfig = Some(server.into());
    } else if server.contains("://") {
        kubernetes.api_url = Some(server.to_owned());
    }
    settings
}

/// Makes all checks and prints the findings. Returns the exit status: 0 nothing, 1 errors, 2 only warnings.
///
/// # Errors
/// Writing to stdout failed.
pub async fn run(
    settings: &Settings,
    flags: &DoctorFlags,
    output: &mut impl Write,
) -> io::Result<u8> {
    let status = Client::new(&settings.files.socket).status().await;
    let settings = &of_the_agent(settings, status.as_ref().ok());
    let context = Context {
        settings,
        names: Names::of(settings),
        status,
        probes: !flags.no_probes,
        deep: flags.deep,
        survey: Survey::default(),
    };
    let report = examine(&context).await;
    if flags.json {
        serde_json::to_writer_pretty(&mut *output, &report)?;
        writeln!(output)?;
    } else {
        print(
            &report,
            &context,
            flags.verbose,
            Style::choose(flags.color),
            output,
        )?;
        // Do not stay silent if checks were skipped: that would look healthy.
        if !flags.verbose && report.findings.is_empty() && !report.unchecked.is_empty() {
            let count = report.unchecked.len();
            writeln!(
                io::stderr(),
                "selvage: no faults found, but {count} checks were skipped; see --verbose"
            )?;
        }
    }
    Ok(exit_status(&report.findings))
}

/// The exit status for findings, the most severe first: 0 none, 1 errors, 2 only warnings.
pub(super) fn exit_status(findings: &[Finding]) -> u8 {
    match findings.first().map(|finding| finding.severity) {
        None => 0,
        Some(Severity::Error) => 1,
        Some(Severity::Warning) => 2,
    }
}

/// Probes the peers in `status`, and returns findings about those that do not answer correctly.
///
/// # Errors
/// Why none could be sent: usually the caller lacks CAP_NET_RAW.
pub(crate) async fn ask_peers(
    settings: &Settings,
    status: &Status,
) -> Result<Vec<Finding>, String> {
    let context = Context {
        settings,
        names: Names::of(settings),
        status: Ok(status.clone()),
        probes: true,
        deep: false,
        survey: Survey::default(),
    };
    let mut findings = Vec::new();
    for check in reach::checks() {
        let found = (check.run)(&context).await;
        findings.extend(found.map_err(|NotChecked(reason)| reason)?);
    }
    Ok(findings)
}

async fn examine(context: &Context<'_>) -> Report {
    let checks: Vec<Check> = checks(context.settings).collect();
    let outcomes = join_all(checks.iter().map(|check| (check.run)(context))).await;
    let mut report = Report {
        schema: SCHEMA,
        time: crate::telemetry::status::now(),
        findings: Vec::new(),
        checked: Vec::new(),
        unchecked: Vec::new(),
    };
    for (check, outcome) in checks.iter().zip(outcomes) {
        match outcome {
            Ok(findings) => {
                report.findings.extend(findings);
                report.checked.push(check.name.to_owned());
            }
            Err(NotChecked(reason)) => report.unchecked.push(Unchecked {
                check: check.name.to_owned(),
                reason,
            }),
        }
    }
    // A stable sort keeps findings of one severity in the order of the checks.
    report.findings.sort_by_key(|finding| finding.severity);
    report
}

fn print(
    report: &Report,
    context: &Context<'_>,
    verbose: bool,
    style: Style,
    output: &mut impl Write,
) -> io::Result<()> {
    print_findings(&report.findings, style, output)?;
    if verbose {
        for check in checks(context.settings)
            .filter(|check| report.checked.iter().any(|name| name == check.name))
        {
            writeln!(
                output,
                "checked for {} {}",
                check.looks_for,
                style.dim(&format!("[{}]", check.name))
            )?;
        }
    }
    if verbose || !report.findings.is_empty() {
        print_unchecked(&report.unchecked, output)?;
    }
    Ok(())
}

/// Prints findings, each with a line after it.
pub(super) fn print_findings(
    findings: &[Finding],
    style: Style,
    output: &mut impl Write,
) -> io::Result<()> {
    for finding in findings {
        let severity = match finding.severity {
            Severity::Error => style.bad("error"),
            Severity::Warning => style.warn("warning"),
        };
        let check = format!("[{}]", finding.check);
        let check = style.dim(&check);
        // Findings may contain text from other nodes.
        writeln!(output, "{severity}: {} {check}", harmless(&finding.what))?;
        writeln!(output, "  why: {}", harmless(&finding.why))?;
        for remedy in &finding.remedy {
            writeln!(output, "  do:  {}", harmless(remedy))?;
        }
        writeln!(output)?;
    }
    Ok(())
}

/// Prints what could not be checked, together if it was for the same reason.
pub(super) fn print_unchecked(unchecked: &[Unchecked], output: &mut impl Write) -> io::Result<()> {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for Unchecked { check, reason } in unchecked {
        match reasons.iter_mut().find(|(known, _)| known == reason) {
            Some((_, checks)) => checks.push(check),
            None => reasons.push((reason, vec![check])),
        }
    }
    for (reason, checks) in reasons {
        let reason = harmless(reason);
        writeln!(output, "skipped: {}: {reason}", checks.join(", "))?;
    }
    Ok(())
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::telemetry::status::{Agent, Store};

    #[test]
    fn a_pods_agent_is_known_by_its_status() {
        let with = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            settings.kubernetes.enabled = true;
            settings.kubernetes.annotation_prefix = "org.com/blue-".to_owned();
            change(&mut settings);
            // NODE_NAME is in the environment of the agent's unit or pod alone.
            let mut status = Status::joining(Agent::of_process("node1", 0), Vec::new());
            status.store = Store::of_settings(&settings);
            settings.kubernetes.node_name = Some("node1".to_owned());
            let known = of_the_agent(&Settings::default(), Some(&status)).kubernetes;
            assert_eq!(known, settings.kubernetes);
            let mut own = settings.clone();
            own.kubernetes.node_name = None;
            assert_eq!(of_the_agent(&own, Some(&status)), settings);
            status.agent.node_id = "kube-flannel/selvage-7x2ld".to_owned();
            assert_eq!(of_the_agent(&own, Some(&status)), own);
        };
        with(|_| {});
        with(|settings| settings.kubernetes.api_url = Some("https://10.0.0.1:6443".to_owned()));
        with(|settings| {
            settings.kubernetes.kubeconfig = Some("/etc/kubernetes/kubelet.conf".into())
        });
        let status = Status::joining(Agent::of_process("x", 0), Vec::new());
        let etcd = of_the_agent(&Settings::default(), Some(&status));
        assert_eq!(etcd, Settings::default());
    }

    #[test]
    fn every_check_has_a_name_of_its_own_and_is_in_the_guide() {
        let guide = include_str!("../../docs/operating.md");
        let mut settings = Settings::default();
        assert!(checks(&settings).all(|check| !check.name.starts_with("kube-")));
        settings.kubernetes.enabled = true;
        let names: Vec<_> = checks(&settings).map(|check| check.name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert!(names.len() > 20, "{names:?}");
        for name in names {
            assert!(guide.contains(&format!("`{name}`")), "{name}");
        }
    }
}
