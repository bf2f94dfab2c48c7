//! What happened while a fleet updated itself: who did what and when, who had the lock, and which pings were lost. Pure.

use std::{fs, path::Path, sync::LazyLock, time::Duration};

use anyhow::{Context as _, Result, ensure};
use regex::Regex;
use selvage::appliance::fleet::records::NodeState;

use super::{
    flood::{Count, Flood, RATE},
    history::{self, Change, Hold, Told},
};
use crate::{progress::clock, report};

/// The first words of a boot on a console: of the firmware, of the kernel, or of systemd where the kernel is quiet.
static BOOT: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"BdsDxe: starting|Linux version \d|systemd\[1\]: .*running in").ok()
});

/// Whether a machine began to boot in what its console said.
pub(crate) fn begins_boot(text: &str) -> bool {
    BOOT.as_ref().is_some_and(|boot| boot.is_match(text))
}

/// A machine was seen to begin a boot.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Boot {
    /// Its name.
    pub node: String,
    /// When, in seconds since the Unix epoch.
    pub at: f64,
}

/// Whether all machines run a version that has passed its boot check there, and nobody has the lock.
pub(crate) fn is_done(changes: &[Change], nodes: &[String], version: &str) -> bool {
    let steady = |name: &String| {
        let told = history::told(changes, name);
        told.last().is_some_and(|told| {
            told.node.state == NodeState::Steady && told.node.version == version
        })
    };
    let free = history::holds(changes)
        .iter()
        .all(|hold| hold.until.is_some());
    free && nodes.iter().all(steady)
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It runs the version that it had.
    Old,
    /// It has the lock and runs its drain hooks.
    Drain,
    /// It goes down.
    Reboot,
    /// It boots the new version, which is on trial.
    Trial,
    /// The new version has passed its boot check.
    New,
}

/// A machine did one thing for a while.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Span {
    /// What.
    pub phase: Phase,
    /// From when, in seconds since the Unix epoch.
    pub from: f64,
    /// Until when.
    pub until: f64,
}

/// One roll-out, by what was recorded.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Rollout {
    /// When it began, in seconds since the Unix epoch.
    pub from: f64,
    /// When it was over.
    pub until: f64,
    /// The version before.
    pub installed: String,
    /// The version after.
    pub next: String,
    /// The machines' names.
    pub nodes: Vec<String>,
    /// How many machines had the lock at a time, at the most, by etcd's own history.
    pub most_holders: usize,
    /// What the machines wrote into etcd.
    pub changes: Vec<Change>,
    /// When they booted.
    pub boots: Vec<Boot>,
    /// The pings.
    pub floods: Vec<Flood>,
}

impl Rollout {
    /// Writes all that was recorded, as JSON.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn keep(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec(self).context("failed to print what was recorded")?;
        fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
    }

    /// The turns, in order.
    pub(crate) fn turns(&self) -> Vec<Hold> {
        let mut holds = history::holds(&self.changes);
        holds.retain(|hold| hold.until.is_none_or(|until| until >= self.from));
        holds
    }

    /// What a machine did, one thing after the other.
    pub(crate) fn spans(&self, node: &str) -> Vec<Span> {
        let mut marks: Vec<(f64, Phase)> = history::told(&self.changes, node)
            .iter()
            .map(|told| (told.at, self.phase(told)))
            .collect();
        let boots = self.boots.iter().filter(|boot| boot.node == node);
        for boot in boots {
            let before = marks.iter().rfind(|(at, _)| *at <= boot.at);
            if before.is_some_and(|(_, phase)| *phase == Phase::Reboot) {
                marks.push((boot.at, Phase::Trial));
                marks.sort_by(|a, b| a.0.total_cmp(&b.0));
            }
        }
        let mut spans: Vec<Span> = Vec::new();
        for (at, phase) in marks {
            let at = at.clamp(self.from, self.until);
            if let Some(last) = spans.last_mut() {
                if last.phase == phase {
                    continue;
                }
                last.until = at;
            }
            let from = if spans.is_empty() { self.from } else { at };
            let until = self.until;
            spans.push(Span { phase, from, until });
        }
        spans.retain(|span| span.until > span.from);
        spans
    }

    fn phase(&self, told: &Told) -> Phase {
        match told.node.state {
            NodeState::Draining => Phase::Drain,
            NodeState::Rebooting => Phase::Reboot,
            NodeState::Trying => Phase::Trial,
            _ if told.node.version == self.next => Phase::New,
            _ => Phase::Old,
        }
    }

    /// The slots that a machine ran from, in order, each with its version.
    pub(crate) fn slots(&self, node: &str) -> Vec<(String, String)> {
        let mut slots: Vec<(String, String)> = Vec::new();
        for told in history::told(&self.changes, node) {
            let slot = told.node.slot.unwrap_or_else(|| "?".to_owned());
            let now = (slot, told.node.version);
            if told.at >= self.from || slots.is_empty() {
                slots.push(now);
            } else if let Some(last) = slots.last_mut() {
                *last = now;
            }
        }
        slots.dedup();
        slots
    }

    /// The pings between the others in a machine's turn.
    pub(crate) fn beside(&self, turn: &Hold) -> Count {
        let turns = self.turns();
        let beside = self.floods.iter().filter(|flood| flood.is_beside(turn));
        sum(beside.map(|flood| flood.count_during(turn, &turns)))
    }

    /// All pings while none of their two ends was at its turn.
    pub(crate) fn count(&self) -> Count {
        let turns = self.turns();
        sum(self.floods.iter().map(|flood| flood.count(&turns)))
    }

    /// What stands against it: a lock that was held twice, a machine without a turn, pings that were lost or not sent.
    ///
    /// # Errors
    /// The first of these that is so.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(
            self.most_holders == 1,
            "{} machines had the lock at a time",
            self.most_holders
        );
        let turns = self.turns();
        for node in &self.nodes {
            let count = turns.iter().filter(|turn| turn.node == *node).count();
            ensure!(count == 1, "{node} had {count} turns");
        }
        for turn in &turns {
            let Count { sent, lost } = self.beside(turn);
            ensure!(
                lost == 0,
                "{lost} of {sent} pings between the others were lost in the turn of {}",
                turn.node
            );
            // A host without KVM is late with some of them.
            let expected = (turn.until.unwrap_or(self.until) - turn.from) * RATE / 4.0;
            ensure!(
                sent as f64 >= expected,
                "only {sent} pings were sent in the turn of {}, of {expected:.0} at the least",
                turn.node
            );
        }
        let Count { sent, lost } = self.count();
        ensure!(lost == 0, "{lost} of {sent} pings were lost");
        Ok(())
    }

    /// The turns as a table for a terminal.
    pub(crate) fn table(&self) -> String {
        let head = [
            "turn of",
            "from version",
            "to version",
            "slot",
            "has the lock for",
            "pings of the others",
            "lost",
        ];
        let mut rows = vec![head.map(str::to_owned)];
        for turn in self.turns() {
            let slots = self.slots(&turn.node);
            let versions = |end: Option<&(String, String)>| {
                end.map_or_else(String::new, |(_, version)| version.clone())
            };
            let path: Vec<&str> = slots.iter().map(|(slot, _)| slot.as_str()).collect();
            let Count { sent, lost } = self.beside(&turn);
            let length = turn.until.unwrap_or(self.until) - turn.from;
            rows.push([
                turn.node,
                versions(slots.first()),
                versions(slots.last()),
                path.join(" to "),
                clock(Duration::from_secs_f64(length.max(0.0)))
                    .trim()
                    .to_owned(),
                sent.to_string(),
                lost.to_string(),
            ]);
        }
        report::table(&rows)
    }
}

fn sum(counts: impl Iterator<Item = Count>) -> Count {
    counts.fold(Count::default(), |all, one| Count {
        sent: all.sent + one.sent,
        lost: all.lost + one.lost,
    })
}

#[cfg(test)]
pub(crate) mod tests;
