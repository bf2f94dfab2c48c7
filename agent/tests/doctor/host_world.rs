//! Hosts for faults of the host itself, and the doctor in surroundings of its own.

use std::process::Command;
use std::time::Duration;

use selvage::doctor::{Finding, Report};

use crate::cluster::Store;
use crate::diagnosis::Diagnosis;
use crate::host::Host;
use crate::wait::wait_for;

pub(crate) const CHECKS: [&str; 7] = [
    "subnet-file",
    "docker-subnet",
    "old-subnet",
    "br-netfilter",
    "forward-drop",
    "mac-policy",
    "stale-objects",
];

/// Two hosts whose containers reach each other.
pub(crate) fn pair(network: &str) -> (Store, Host, Host) {
    let store = Store::start(network);
    let [mut one, mut two] = [1, 2].map(|number| store.host(number));
    one.join();
    two.join();
    one.wait_reaches(&two);
    is_silent(&one);
    (store, one, two)
}

/// What the doctor finds on the host itself.
fn look(host: &Host) -> Diagnosis {
    Diagnosis::with(host, &["--no-probes"])
}

/// Waits until none of our checks finds anything, and all were made: what the agent puts right takes a moment.
pub(crate) fn is_silent(host: &Host) {
    let mut last = None;
    let limit = Duration::from_secs(5);
    let silent = || {
        let diagnosis = look(host);
        let found = CHECKS
            .iter()
            .any(|check| !diagnosis.of_check(check).is_empty());
        let made = |check: &&str| diagnosis.report.checked.iter().any(|name| name == *check);
        let silent = !found && CHECKS.iter().all(made);
        last = Some(diagnosis);
        silent.then_some(())
    };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for(limit, "silence", silent);
    }));
    assert!(outcome.is_ok(), "{last:#?}");
}

/// The one finding of our checks: of `check`, with `word` in its remedy.
pub(crate) fn finds(host: &Host, check: &str, word: &str) -> Finding {
    let diagnosis = look(host);
    for other in CHECKS.into_iter().filter(|other| *other != check) {
        assert!(diagnosis.of_check(other).is_empty(), "{diagnosis:#?}");
    }
    diagnosis.assert_finds(check, word).clone()
}

/// Does what the doctor says.
pub(crate) fn obey(host: &Host, remedy: &str) {
    let done = host.namespace.command("sh").args(["-ec", remedy]).status();
    assert!(done.is_ok_and(|status| status.success()), "{remedy}");
}

/// What the doctor finds with a file system of its own, which `script` sets up.
pub(crate) fn look_after(host: &Host, script: &str) -> Report {
    let doctor = host.selvage("doctor");
    let mut command: Command = host.namespace.command("unshare");
    command
        .args([
            "-m",
            "sh",
            "-ec",
            &format!("{script}\nexec \"$0\" \"$@\" --json --no-probes"),
        ])
        .arg(doctor.get_program())
        .args(doctor.get_args());
    for (name, value) in doctor.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let output = command.output().expect("selvage doctor");
    let said = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&said).unwrap_or_else(|error| {
        panic!("{error}: {said}{}", String::from_utf8_lossy(&output.stderr))
    })
}
