//! Hosts for faults of the host itself, and the doctor in surroundings of its own.

use std::process::Command;

use selvage::command::doctor::{Finding, Report};

use crate::cluster::Store;
use crate::diagnosis::Diagnosis;
use crate::host::Host;

pub(crate) const CHECKS: [&str; 8] = [
    "subnet-file",
    "docker-subnet",
    "docker-config",
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

/// Waits until none of our checks finds anything, and all were made: what the agent puts right takes a moment.
pub(crate) fn is_silent(host: &Host) {
    Diagnosis::until(host, "silence", |diagnosis| {
        let checked = &diagnosis.report.checked;
        CHECKS.iter().all(|check| {
            let is_made = checked.iter().any(|name| name == check);
            is_made && diagnosis.of_check(check).is_empty()
        })
    });
}

/// The one finding of our checks: of `check`, with `word` in its remedy. The agent may be busy with the fault as well.
pub(crate) fn finds(host: &Host, check: &str, word: &str) -> Finding {
    let what = format!("{check} alone, with {word:?}");
    let diagnosis = Diagnosis::until(host, &what, |diagnosis| {
        let others = CHECKS.into_iter().filter(|other| *other != check);
        diagnosis.finds(check, word)
            && others
                .map(|other| diagnosis.of_check(other))
                .all(|found| found.is_empty())
    });
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
