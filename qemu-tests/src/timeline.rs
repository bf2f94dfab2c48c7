//! When the milestones of a boot were passed, by the guest's own clock.
//!
//! All times are CLOCK_MONOTONIC in microseconds, which starts with the kernel: the journal's
//! `__MONOTONIC_TIMESTAMP` and systemd's `…TimestampMonotonic` agree on it. So the host's clock and load do not enter.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::machine::Machine;

/// The agent's milestones, as it logs them.
const LEASE: &str = "lease acquired";
const SUBNET_FILE: &str = "subnet file written";

/// One boot of one machine; a milestone that was not passed is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Timeline {
    /// Ignition's last stage ended in the initrd; none on boots that do not provision.
    pub ignition: Option<Duration>,
    /// The agent holds its lease.
    pub lease: Option<Duration>,
    /// The agent wrote the subnet file.
    pub subnet_file: Option<Duration>,
    /// `selvage.service` became active.
    pub agent_active: Option<Duration>,
    /// dockerd was executed.
    pub docker_start: Option<Duration>,
    /// `docker.service` became active.
    pub docker_ready: Option<Duration>,
}

impl Timeline {
    /// What a user wants to know, in the order in which it happens.
    pub(crate) fn milestones(&self) -> impl Iterator<Item = (&'static str, Option<Duration>)> {
        [
            ("Ignition done", self.ignition),
            ("lease held", self.lease),
            ("subnet.env", self.subnet_file),
            ("Docker ready", self.docker_ready),
        ]
        .into_iter()
    }

    /// Checks that each step waited for the one before it, all the way from the lease to Docker.
    ///
    /// # Errors
    /// Names the first two that are missing or in the wrong order.
    pub(crate) fn check_order(&self) -> Result<()> {
        let steps = [
            ("lease acquired", self.lease),
            ("subnet file written", self.subnet_file),
            ("selvage.service active", self.agent_active),
            ("dockerd executed", self.docker_start),
            ("docker.service active", self.docker_ready),
        ];
        for pair in steps.windows(2) {
            let [(earlier, before), (later, after)] = [pair[0], pair[1]];
            let before = before.with_context(|| format!("{earlier}: never"))?;
            let after = after.with_context(|| format!("{later}: never"))?;
            ensure!(
                before <= after,
                "{later} at {after:?}, which is before {earlier} at {before:?}"
            );
        }
        Ok(())
    }
}

/// Journal of the messages that matter, and the times of the units.
const SCRIPT: &str = "\
    sudo journalctl -b -q --no-pager -o json --output-fields=MESSAGE,UNIT,_SYSTEMD_UNIT,_SOURCE_REALTIME_TIMESTAMP \
      _SYSTEMD_UNIT=selvage.service + _PID=1 JOB_TYPE=start && \
    systemctl show -p Id -p ActiveEnterTimestampMonotonic -p ExecMainStartTimestampMonotonic \
      selvage.service docker.service";

/// Reads the timeline of the current boot.
///
/// # Errors
/// When the guest does not answer.
pub(crate) async fn ask(machine: &Machine) -> Result<Timeline> {
    let said = machine
        .ssh
        .run(SCRIPT)
        .await
        .with_context(|| format!("{}: failed to read the boot's times", machine.name()))?;
    Ok(parse(&said))
}

/// When the control group of a container started.
///
/// # Errors
/// When the guest does not answer.
pub(crate) async fn container_started(machine: &Machine, id: &str) -> Result<Option<Duration>> {
    let script = format!("systemctl show -p ActiveEnterTimestampMonotonic docker-{id}.scope");
    let said = machine.ssh.run(&script).await?;
    Ok(said
        .split_once('=')
        .and_then(|(_, micros)| micros_since_boot(micros)))
}

fn parse(said: &str) -> Timeline {
    let mut timeline = Timeline::default();
    let mut unit = HashMap::new();
    for line in said.lines() {
        if line.starts_with('{') {
            if let Ok(entry) = serde_json::from_str::<Value>(line) {
                journal_entry(&mut timeline, &entry);
            }
        } else if let Some((key, value)) = line.split_once('=') {
            unit.insert(key, value);
            // systemctl prints a unit's properties as a block; `Id` may stand anywhere in it.
        }
        if line.is_empty() {
            unit_block(&mut timeline, &std::mem::take(&mut unit));
        }
    }
    unit_block(&mut timeline, &unit);
    timeline
}

fn journal_entry(timeline: &mut Timeline, entry: &Value) {
    let time = sent(entry);
    let message = entry["MESSAGE"].as_str().unwrap_or_default();
    // The first occurrence counts: an agent that re-acquires a lease later says so again.
    match (entry["_SYSTEMD_UNIT"].as_str(), entry["UNIT"].as_str()) {
        (Some("selvage.service"), _) if message == LEASE => {
            timeline.lease = timeline.lease.or(time)
        }
        (Some("selvage.service"), _) if message == SUBNET_FILE => {
            timeline.subnet_file = timeline.subnet_file.or(time)
        }
        (_, Some(unit)) if unit.starts_with("ignition") && message.starts_with("Finished ") => {
            timeline.ignition = timeline.ignition.max(time);
        }
        _ => {}
    }
}

/// When a message was sent. journald's own monotonic time is when it took the message out of its socket, which on a busy
/// machine is much later; how much later is told by the two wall-clock times that it also keeps.
fn sent(entry: &Value) -> Option<Duration> {
    let micros = |key: &str| entry[key].as_str().and_then(micros_since_boot);
    let received = micros("__MONOTONIC_TIMESTAMP")?;
    let queued = match (
        micros("__REALTIME_TIMESTAMP"),
        micros("_SOURCE_REALTIME_TIMESTAMP"),
    ) {
        (Some(received), Some(sent)) => received.saturating_sub(sent),
        _ => Duration::ZERO,
    };
    received.checked_sub(queued)
}

fn unit_block(timeline: &mut Timeline, unit: &HashMap<&str, &str>) {
    let time = |key: &str| unit.get(key).and_then(|micros| micros_since_boot(micros));
    match unit.get("Id").copied() {
        Some("selvage.service") => timeline.agent_active = time("ActiveEnterTimestampMonotonic"),
        Some("docker.service") => {
            timeline.docker_ready = time("ActiveEnterTimestampMonotonic");
            timeline.docker_start = time("ExecMainStartTimestampMonotonic");
        }
        _ => {}
    }
}

/// systemd says 0 for "never".
fn micros_since_boot(text: &str) -> Option<Duration> {
    text.trim()
        .parse()
        .ok()
        .filter(|&micros| micros > 0)
        .map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = r#"{"__MONOTONIC_TIMESTAMP":"9000000","UNIT":"ignition-files.service","MESSAGE":"Finished x.service - X."}
{"__MONOTONIC_TIMESTAMP":"8000000","UNIT":"ignition-mount.service","MESSAGE":"Finished x.service - X."}
{"__MONOTONIC_TIMESTAMP":"9400000","UNIT":"ignition-fetch.service","MESSAGE":"ignition-fetch.service was skipped because"}
{"__MONOTONIC_TIMESTAMP":"9500000","UNIT":"other.service","MESSAGE":"Finished x.service - X."}
{"__MONOTONIC_TIMESTAMP":"15000000","_SYSTEMD_UNIT":"selvage.service","MESSAGE":"lease acquired"}
{"__MONOTONIC_TIMESTAMP":"16500000","__REALTIME_TIMESTAMP":"1700000000500000","_SOURCE_REALTIME_TIMESTAMP":"1700000000000000","_SYSTEMD_UNIT":"selvage.service","MESSAGE":"subnet file written"}
{"__MONOTONIC_TIMESTAMP":"99000000","_SYSTEMD_UNIT":"selvage.service","MESSAGE":"subnet file written"}
{"__MONOTONIC_TIMESTAMP":"1000000","_SYSTEMD_UNIT":"evil.service","MESSAGE":"lease acquired"}
Id=selvage.service
ActiveEnterTimestampMonotonic=17000000
ExecMainStartTimestampMonotonic=14000000

ExecMainStartTimestampMonotonic=18000000
Id=docker.service
ActiveEnterTimestampMonotonic=0"#;

    #[test]
    fn milestones_are_found() {
        let timeline = parse(SAID);
        let at = |secs| Some(Duration::from_secs(secs));
        assert_eq!(
            timeline,
            Timeline {
                ignition: at(9),
                lease: at(15),
                subnet_file: at(16),
                agent_active: at(17),
                docker_start: at(18),
                docker_ready: None,
            }
        );
    }

    #[test]
    fn order_is_checked_link_by_link() {
        let at = |secs| Some(Duration::from_secs(secs));
        let good = Timeline {
            docker_ready: at(20),
            ..parse(SAID)
        };
        good.check_order().unwrap();
        let early = Timeline {
            docker_start: at(16),
            ..good
        };
        let error = early.check_order().unwrap_err().to_string();
        assert!(
            error.starts_with("dockerd executed at 16s, which is before selvage.service active"),
            "{error}"
        );
        let error = Timeline {
            lease: None,
            ..good
        }
        .check_order()
        .unwrap_err()
        .to_string();
        assert_eq!(error, "lease acquired: never");
    }

    #[test]
    fn noise_is_no_milestone() {
        assert_eq!(
            parse("{broken\n=\n{\"MESSAGE\":[1,2]}"),
            Timeline::default()
        );
    }
}
