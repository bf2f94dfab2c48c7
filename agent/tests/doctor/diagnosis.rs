//! Asking the doctor on a host, and what it is to have said.

use selvage::command::doctor::{Finding, Report};

use crate::host::Host;
use crate::wait::look_until;

/// What `selvage doctor` said on a host.
#[derive(Debug)]
pub(crate) struct Diagnosis {
    /// What it printed for machines.
    pub(crate) report: Report,
    /// Its exit status.
    pub(crate) status: Option<i32>,
}

impl Diagnosis {
    /// Asks the doctor on a host.
    pub(crate) fn of(host: &Host) -> Self {
        Self::with(host, &[])
    }

    /// The same with packets that look like an attack.
    pub(crate) fn deep(host: &Host) -> Self {
        Self::with(host, &["--deep"])
    }

    /// The same without a packet to peers, some of which may be made up.
    pub(crate) fn without_probes(host: &Host) -> Self {
        Self::with(host, &["--no-probes"])
    }

    /// The same with more arguments.
    pub(crate) fn with(host: &Host, arguments: &[&str]) -> Self {
        let output = host
            .selvage("doctor")
            .arg("--json")
            .args(arguments)
            .output()
            .expect("selvage doctor");
        let said = String::from_utf8_lossy(&output.stdout);
        let report = serde_json::from_str(&said).unwrap_or_else(|error| {
            let complaint = String::from_utf8_lossy(&output.stderr);
            panic!("{error}: {said}{complaint}")
        });
        Self {
            report,
            status: output.status.code(),
        }
    }

    /// Asks, without probes, until the doctor says what is meant: the agent may be between two states.
    pub(crate) fn until(host: &Host, what: &str, fits: impl Fn(&Self) -> bool) -> Self {
        look_until(what, || Self::without_probes(host), fits)
    }

    /// Asks until a check finds one fault, which has `word` in its remedy.
    pub(crate) fn until_finds(host: &Host, check: &str, word: &str) -> Self {
        Self::until(host, &format!("{check} with {word:?}"), |diagnosis| {
            diagnosis.finds(check, word)
        })
    }

    /// Asks until nothing is found.
    pub(crate) fn until_silent(host: &Host) {
        Self::until(host, "silence", |diagnosis| {
            diagnosis.report.findings.is_empty()
        });
    }

    /// Whether a check found one fault, which has `word` in its remedy.
    pub(crate) fn finds(&self, check: &str, word: &str) -> bool {
        let names = |remedy: &String| remedy.contains(word);
        matches!(self.of_check(check)[..], [finding] if finding.remedy.iter().any(names))
    }

    /// Panics unless nothing was found. Checks of which a test host has not what they look at may be left out.
    pub(crate) fn assert_silent(&self) {
        assert!(self.report.findings.is_empty(), "{self:#?}");
        assert_eq!(self.status, Some(0));
    }

    /// The findings of one check.
    pub(crate) fn of_check(&self, name: &str) -> Vec<&Finding> {
        let findings = self.report.findings.iter();
        findings.filter(|finding| finding.check == name).collect()
    }

    /// The one finding of a check, which has `word` in its remedy.
    pub(crate) fn assert_finds(&self, name: &str, word: &str) -> &Finding {
        let findings = self.of_check(name);
        let [finding] = findings[..] else {
            panic!("not one finding of {name}: {self:#?}")
        };
        let names = |remedy: &String| remedy.contains(word);
        assert!(finding.remedy.iter().any(names), "{word:?}: {finding:#?}");
        assert!(matches!(self.status, Some(1 | 2)), "{self:#?}");
        finding
    }
}
