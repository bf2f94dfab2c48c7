//! `selvage doctor`: looks foreverything that is known to break an overlay, and says what to do about it.
//!
//! Each check looks for one fault and is in a file of its own, under the part of the world that it looks at: the host, the
//! cluster, or the way to the peers. Checks only look; the one exception are the packets that they send to peers, which
//! `--no-probes` forbids; those that look like an attack to others need `--deep`. What the agent knows is asked of the agent, so that nothing is judged by a second opinion.
//!
//! The JSON schema is stable as that of [`crate::telemetry::status`] is.

use std::fmt;
use std::future::Future;
use std::io::{self, Write};
use std::pin::Pin;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use self::reach::Survey;
use crate::base::terminal::Style;
use crate::base::words::harmless;
use crate::command::cli::DoctorFlags;
use crate::settings::Settings;
use crate::telemetry::control::{self, Client};
use crate::telemetry::status::Status;

mod cluster;
mod host;
mod names;
mod reach;

pub(crate) use self::names::Names;

/// The version of the schema.
const SCHEMA: u32 = 1;

/// What was found: what `selvage doctor --json` prints.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of the schema: 1.
    pub schema: u32,
    /// When it was looked.
    pub time: u64,
    /// What is wrong, the gravest first.
    pub findings: Vec<Finding>,
    /// The checks that were made, by name.
    pub checked: Vec<String>,
    /// The checks that could not be made, and why.
    pub unchecked: Vec<Unchecked>,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// The check's name; stable, for automation.
    pub check: String,
    /// How grave it is.
    pub severity: Severity,
    /// The peer, device, file or container that it is about, if it is about one.
    pub subject: Option<String>,
    /// What is wrong, with the values that show it; one sentence.
    pub what: String,
    /// What that does to the overlay, and how it comes about.
    pub why: String,
    /// What to do: commands or settings, the best first.
    pub remedy: Vec<String>,
}

/// How grave a finding is.
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

/// What checks go by.
pub(crate) struct Context<'a> {
    /// What the agent was told.
    pub(crate) settings: &'a Settings,
    /// What the agent and its files are called.
    pub(crate) names: Names,
    /// What the agent knows; or why it was not to be asked.
    pub(crate) status: Result<Status, control::Error>,
    /// Whether packets may be sent to peers.
    pub(crate) probes: bool,
    /// Whether some of them may look like an attack.
    pub(crate) deep: bool,
    /// What came of the packets that were sent to peers; sent when the first check asks, and only once.
    pub(crate) survey: Survey,
}

impl Context<'_> {
    /// What the agent knows, for checks that make no sense without.
    pub(crate) fn status(&self) -> Result<&Status, NotChecked> {
        self.status
            .as_ref()
            .map_err(|_| NotChecked("the agent does not answer".to_owned()))
    }
}

/// Why a check could not be made.
#[derive(Debug)]
pub(crate) struct NotChecked(pub(crate) String);

/// What a check comes to: what is wrong, which is nothing on a healthy node.
pub(crate) type Outcome = Result<Vec<Finding>, NotChecked>;

/// One check.
pub(crate) struct Check {
    /// Its name, in JSON and messages; short, lower case, with dashes.
    pub(crate) name: &'static str,
    /// What it looks for, in words that complete "looked for".
    pub(crate) looks_for: &'static str,
    pub(crate) run: for<'a> fn(&'a Context<'a>) -> Pin<Box<dyn Future<Output = Outcome> + 'a>>,
}

/// All checks, in the order in which they are told.
fn checks() -> impl Iterator<Item = Check> {
    cluster::checks()
        .into_iter()
        .chain(host::checks())
        .chain(reach::checks())
}

/// Makes all checks and prints what they found. Returns the exit status: 0 nothing, 1 errors, 2 only warnings.
///
/// # Errors
/// Nobody reads what is printed.
pub async fn run(
    settings: &Settings,
    flags: &DoctorFlags,
    output: &mut impl Write,
) -> io::Result<u8> {
    let context = Context {
        settings,
        names: Names::of(settings),
        status: Client::new(&settings.files.socket).status().await,
        probes: !flags.no_probes,
        deep: flags.deep,
        survey: Survey::default(),
    };
    let report = examine(&context).await;
    if flags.json {
        serde_json::to_writer_pretty(&mut *output, &report)?;
        writeln!(output)?;
    } else {
        print(&report, flags.verbose, Style::choose(flags.color), output)?;
        // Silence must not be taken for health where nothing could be looked at.
        if !flags.verbose && report.findings.is_empty() && !report.unchecked.is_empty() {
            let count = report.unchecked.len();
            writeln!(
                io::stderr(),
                "selvage: nothing found, but {count} checks could not be made; --verbose says why"
            )?;
        }
    }
    Ok(
        match report.findings.first().map(|finding| finding.severity) {
            None => 0,
            Some(Severity::Error) => 1,
            Some(Severity::Warning) => 2,
        },
    )
}

/// Sends packets to the peers that `status` has, and gives what is wrong with those that do not answer as they should.
///
/// # Errors
/// Says why none could be sent: most often, the caller lacks the capability CAP_NET_RAW.
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
    let checks: Vec<Check> = checks().collect();
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
    // Stable, so that findings of one gravity stay in the order of the checks.
    report.findings.sort_by_key(|finding| finding.severity);
    report
}

fn print(report: &Report, verbose: bool, style: Style, output: &mut impl Write) -> io::Result<()> {
    for finding in &report.findings {
        let severity = match finding.severity {
            Severity::Error => style.bad("error"),
            Severity::Warning => style.warn("warning"),
        };
        let check = format!("[{}]", finding.check);
        let check = style.dim(&check);
        // Some of it is what other nodes publish.
        writeln!(output, "{severity}: {} {check}", harmless(&finding.what))?;
        writeln!(output, "  why: {}", harmless(&finding.why))?;
        for remedy in &finding.remedy {
            writeln!(output, "  do:  {}", harmless(remedy))?;
        }
        writeln!(output)?;
    }
    if verbose {
        for check in checks().filter(|check| report.checked.iter().any(|name| name == check.name)) {
            writeln!(
                output,
                "looked for {} {}",
                check.looks_for,
                style.dim(&format!("[{}]", check.name))
            )?;
        }
    }
    // Checks that lack the same are told together.
    if verbose || !report.findings.is_empty() {
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for Unchecked { check, reason } in &report.unchecked {
            match reasons.iter_mut().find(|(known, _)| known == reason) {
                Some((_, checks)) => checks.push(check),
                None => reasons.push((reason, vec![check])),
            }
        }
        for (reason, checks) in reasons {
            let reason = harmless(reason);
            writeln!(output, "not looked at: {}: {reason}", checks.join(", "))?;
        }
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

    #[test]
    fn every_check_has_a_name_of_its_own_and_is_in_the_guide() {
        let guide = include_str!("../../docs/operating.md");
        let names: Vec<_> = checks().map(|check| check.name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert!(names.len() > 20, "{names:?}");
        for name in names {
            assert!(guide.contains(&format!("`{name}`")), "{name}");
        }
    }
}
