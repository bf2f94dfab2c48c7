//! Whether the agent is running, has joined, and lacks nothing.

use std::fs;
use std::future::ready;
use std::io;
use std::path::Path;

use super::advice::{Advice, advise};
use super::{Check, Context};
use crate::base::lock::{self, Lock};
use crate::base::logging::chain;
use crate::command::doctor::{Finding, Names, Outcome, Severity};
use crate::settings::Settings;
use crate::telemetry::control;
use crate::telemetry::status::{Cause, Code, State, Status, TaskName};

const NAME: &str = "agent";

/// An agent that is not running, waits, or lacks something.
pub(super) const CHECK: Check = Check {
    name: NAME,
    looks_for: "an agent that is stopped, silent, waiting or degraded",
    run: |context| Box::pin(ready(check(context))),
};

/// How long after its start, in seconds, an agent without reasons counts as starting.
const STARTING: u64 = 10;

/// The directory of enabled units (systemctl(1)).
const ENABLED: &str = "/etc/systemd/system";

/// Another unit that may run an agent.
const FLANNELD: &str = "flanneld.service";

fn check(context: &Context<'_>) -> Outcome {
    let (settings, names) = (context.settings, &context.names);
    Ok(match &context.status {
        Ok(status) => {
            let mut findings = match status.health.state {
                State::Stopped => vec![stopped(settings, names)],
                State::Joining => joining(status, settings, names),
                State::Ready => Vec::new(),
                State::Degraded => degraded(status, settings, names),
            };
            findings.extend(unused_settings(status, names));
            findings
        }
        Err(control::Error::NotRunning { path, source }) => {
            vec![no_answer(path, source, settings, names)]
        }
        Err(error @ control::Error::Unreadable(_)) => vec![finding(
            Severity::Warning,
            chain(error),
            Advice::new(
                "after an update the old agent runs until it is restarted; a restart loses no packets",
                [names.systemctl("restart")],
            ),
        )],
        Err(error) => vec![finding(
            Severity::Error,
            chain(error),
            Advice::new(
                "an agent that does not answer may also miss changes in the cluster; the kernel state that it programmed stays in place",
                [
                    "run the doctor again; joining a large cluster may keep the agent busy for some seconds".into(),
                    format!(
                        "{} -n 50, then {}: a restart loses no packets",
                        names.journal(),
                        names.systemctl("restart")
                    ),
                ],
            ),
        )],
    })
}

/// Nothing answers on the control socket.
fn no_answer(path: &Path, source: &io::Error, settings: &Settings, names: &Names) -> Finding {
    let socket = path.display();
    if source.kind() == io::ErrorKind::PermissionDenied {
        return finding(
            Severity::Warning,
            format!("this user may not connect to the agent's control socket {socket}: {source}"),
            Advice::new(
                "the state of the agent and of the overlay is unknown",
                ["run the doctor as root".into()],
            ),
        );
    }
    if let Some(holder) = Lock::holder(&settings.files.state_dir) {
        let lock = lock::path(&settings.files.state_dir);
        return finding(
            Severity::Warning,
            format!(
                "an agent runs (process {holder} holds {}), but nothing answers on {socket}",
                lock.display()
            ),
            Advice::new(
                "the overlay may work, but commands cannot query the agent: it has another control socket, or failed to create its own",
                [
                    format!(
                        "use the agent's socket: {} --socket FILE, or set files.socket in {} for both",
                        names.selvage("doctor"),
                        names.settings_file
                    ),
                    format!("{} -g socket", names.journal()),
                ],
            ),
        );
    }
    stopped(settings, names)
}

/// No agent runs.
fn stopped(settings: &Settings, names: &Names) -> Finding {
    let expected = expectations(&settings.files.subnet_file, Path::new(ENABLED), names);
    if expected.is_empty() {
        return finding(
            Severity::Warning,
            "no agent runs on this host, and none is enabled".to_owned(),
            Advice::new(
                "containers on this host are not on the overlay",
                [names.systemctl("enable --now")],
            ),
        );
    }
    finding(
        Severity::Error,
        format!("no agent runs, though {}", expected.join(" and ")),
        Advice::new(
            "the kernel state stays in place, but this host learns of no new or moved peers, and another node may get its subnet when its lease expires",
            [
                names.systemctl("start"),
                format!(
                    "see why it stopped: {}; {} -n 50",
                    names.systemctl("status"),
                    names.journal()
                ),
                format!(
                    "to take this host off the overlay: {}, then {}",
                    names.selvage_with_state("leave"),
                    names.selvage_with_state("cleanup")
                ),
            ],
        ),
    )
}

/// The evidence that an agent should be running.
fn expectations(subnet_file: &Path, enabled: &Path, names: &Names) -> Vec<String> {
    let file = subnet_file
        .exists()
        .then(|| format!("{} exists", subnet_file.display()));
    let unit = enabled_unit(enabled, names).map(|unit| format!("{unit} is enabled"));
    unit.into_iter().chain(file).collect()
}

/// An enabled unit of this network.
fn enabled_unit(directory: &Path, names: &Names) -> Option<String> {
    let wants = fs::read_dir(directory).ok()?.flatten().filter(|entry| {
        let path = entry.path();
        let kind = path.extension().and_then(|extension| extension.to_str());
        matches!(kind, Some("wants" | "requires" | "upholds"))
    });
    let units = [format!("{}.service", names.unit), FLANNELD.to_owned()];
    wants
        .flat_map(|entry| units.clone().map(|unit| (entry.path().join(&unit), unit)))
        .find(|(link, _)| link.symlink_metadata().is_ok())
        .map(|(_, unit)| unit)
}

/// What joining waits for.
fn joining(status: &Status, settings: &Settings, names: &Names) -> Vec<Finding> {
    let causes = status.health.causes();
    let running = status.time.saturating_sub(status.agent.started_time);
    let here = causes.iter().filter(|cause| !cause.code.is_kernel_change());
    here.map(|cause| match cause.code {
        Code::Starting => finding(
            if running < STARTING {
                Severity::Warning
            } else {
                Severity::Error
            },
            format!("the agent was started {running} s ago and has not joined yet"),
            Advice::new(
                "it is still querying the lease store and the kernel; the kernel state of an earlier run stays in place",
                [
                    "run the doctor again in a moment".into(),
                    format!("{} -n 50", names.journal()),
                ],
            ),
        ),
        _ => finding(
            Severity::Error,
            format!("this node has not joined the overlay: {}", cause.text),
            advise(cause, settings, names),
        ),
    })
    .collect()
}

/// The faults that no other check reports.
fn degraded(status: &Status, settings: &Settings, names: &Names) -> Vec<Finding> {
    let is_reported_elsewhere = |cause: &&Cause| {
        cause.code.is_kernel_change()
            || matches!(
                cause.task,
                Some(
                    TaskName::Lease
                        | TaskName::Renewal
                        | TaskName::Config
                        | TaskName::CloudRoutes
                        | TaskName::Docker
                )
            )
    };
    let causes = status.health.causes();
    let here = causes.iter().filter(|cause| !is_reported_elsewhere(cause));
    here.map(|cause| {
        let what = match cause.task {
            Some(TaskName::Store) => format!("the lease store does not answer: {}", cause.text),
            _ => cause.text.clone(),
        };
        finding(Severity::Error, what, advise(cause, settings, names))
    })
    .collect()
}

/// Changed settings that are not in use.
fn unused_settings(status: &Status, names: &Names) -> Vec<Finding> {
    let rejected = status.agent.settings_rejected.as_ref().map(|reason| {
        finding(
            Severity::Warning,
            reason.clone(),
            Advice::new(
                "the agent keeps its previous settings, but would not start with the new ones",
                [format!("correct them, then: {}", names.systemctl("reload"))],
            ),
        )
    });
    let pending = &status.agent.settings_pending;
    let pending = (!pending.is_empty()).then(|| {
        finding(
            Severity::Warning,
            format!("changed settings need a restart: {}", pending.join(", ")),
            Advice::new(
                "they cannot change while the agent runs, because containers, peers or kernel state depend on them",
                [format!(
                    "{}, which loses no packets",
                    names.systemctl("restart")
                )],
            ),
        )
    });
    rejected.into_iter().chain(pending).collect()
}

fn finding(severity: Severity, what: String, advice: Advice) -> Finding {
    Finding {
        check: NAME.to_owned(),
        severity,
        subject: None,
        peers: Vec::new(),
        what,
        why: advice.why,
        remedy: advice.remedy,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use crate::command::doctor::names::tests::settings;
    use crate::telemetry::status::Agent;

    use super::*;

    #[test]
    fn an_agent_is_expected_where_something_says_so() {
        let names = Names::of(&settings(&[]));
        let directory = tempfile::tempdir().unwrap();
        let (file, systemd) = (
            directory.path().join("subnet.env"),
            directory.path().join("s"),
        );
        assert!(expectations(&file, &systemd, &names).is_empty());
        fs::create_dir_all(systemd.join("multi-user.target.wants")).unwrap();
        assert!(expectations(&file, &systemd, &names).is_empty());
        // The link points into the image, wherever that is mounted.
        let link = systemd.join("multi-user.target.wants/selvage.service");
        symlink("/usr/lib/systemd/system/selvage.service", link).unwrap();
        assert_eq!(
            expectations(&file, &systemd, &names),
            ["selvage.service is enabled"]
        );
        fs::write(&file, "").unwrap();
        assert_eq!(expectations(&file, &systemd, &names).len(), 2);
        fs::remove_file(&file).unwrap();
        let blue = Names::of(&settings(&["--network", "blue"]));
        assert!(expectations(&file, &systemd, &blue).is_empty());
    }

    #[test]
    fn settings_that_are_not_in_use_are_told() {
        let mut status = Status::joining(Agent::of_process("x", 0), Vec::new());
        let names = Names::of(&settings(&["--network", "blue"]));
        assert!(unused_settings(&status, &names).is_empty());
        status.agent.settings_rejected = Some("failed to reload the settings: line 3".to_owned());
        status.agent.settings_pending = vec!["etcd.prefix".to_owned()];
        let [rejected, pending] = &unused_settings(&status, &names)[..] else {
            panic!("not two findings")
        };
        assert!(rejected.what.contains("line 3") && rejected.remedy[0].contains("reload"));
        assert!(pending.what.contains("etcd.prefix") && pending.remedy[0].contains("restart"));
        super::super::tests::assert_about_blue(&rejected.remedy);
        super::super::tests::assert_about_blue(&pending.remedy);
    }

    #[test]
    fn a_stopped_agent_is_named_with_its_network_and_state() {
        let state = ["--network", "blue", "--state-dir", "/srv/blue"];
        let settings = settings(&state);
        let names = Names::of(&settings);
        let none = finding(
            Severity::Error,
            String::new(),
            Advice::new("", [names.selvage_with_state("leave")]),
        );
        assert_eq!(
            none.remedy,
            ["selvage leave --network blue --state-dir /srv/blue"]
        );
        let stopped = stopped(&settings, &names);
        super::super::tests::assert_about_blue(&stopped.remedy);
    }

    #[test]
    fn what_an_agent_without_codes_waits_for_is_told_all_the_same() {
        let settings = settings(&[]);
        let names = Names::of(&settings);
        let mut status = Status::joining(Agent::of_process("x", 0), Vec::new());
        status.health.reasons = vec!["waiting for godot".to_owned()];
        for state in [State::Joining, State::Degraded] {
            status.health.state = state;
            let found = match state {
                State::Joining => joining(&status, &settings, &names),
                _ => degraded(&status, &settings, &names),
            };
            let [found] = &found[..] else {
                panic!("{found:?}")
            };
            assert!(found.what.contains("waiting for godot"), "{found:?}");
            assert!(
                found.remedy[0].contains("journalctl -u selvage"),
                "{found:?}"
            );
        }
    }
}
