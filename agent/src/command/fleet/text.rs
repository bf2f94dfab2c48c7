//! `selvage fleet status` for people. Pure: the same status, time, width and style give the same text.

use std::fmt::Write;

use crate::appliance::fleet::etcd::{NodeStatus, Status};
use crate::appliance::fleet::records::NodeState;
use crate::base::terminal::{Style, Tone};
use crate::base::words::ago;
use crate::command::status::text::{Cell, Column, Table};

/// The columns; the machine ID is the first to go where the terminal is narrow.
const COLUMNS: [Column; 7] = [
    column("NODE", 0),
    column("VERSION", 0),
    column("SLOT", 2),
    column("STATE", 0),
    column("SINCE", 1),
    column("LOCK", 0),
    column("MACHINE ID", 3),
];

const fn column(title: &'static str, lightness: u8) -> Column {
    Column {
        title,
        right: false,
        lightness,
    }
}

/// The text.
pub(super) fn render(status: &Status, now: u64, width: Option<usize>, style: Style) -> String {
    let mut text = String::new();
    let held = status
        .nodes
        .iter()
        .filter(|node| node.lock.is_some())
        .count();
    let _ = writeln!(
        text,
        "group {}: {held} of {} have the lock; a version stops after {} failures",
        status.group, status.config.holders, status.config.breaker
    );
    if status.config.holders == 0 {
        let line = "updates are stopped: selvage fleet set --holders 1 starts them again";
        let _ = writeln!(text, "{}", style.warn(line));
    }
    for failed in &status.failed {
        let (tone, what) = match failed.stopped {
            true => (Tone::Bad, "is started nowhere any more, as it failed on"),
            false => (Tone::Warn, "failed on"),
        };
        let line = format!("version {} {what}:", failed.version);
        let _ = writeln!(text, "{}", style.tone(tone, &line));
        for machine in &failed.machines {
            let when = when(now, machine.at);
            let _ = writeln!(text, "  {} ({when}): {}", machine.node, machine.reason);
        }
        if failed.stopped {
            let _ = writeln!(text, "  fix: selvage fleet reset {}", failed.version);
        }
    }
    if status.nodes.is_empty() {
        text.push_str("no machine has told anything yet\n");
        return text;
    }
    let mut table = Table::new(&COLUMNS, "");
    for node in &status.nodes {
        table.push(cells(node, now), None);
    }
    table.render(width, style, &mut text);
    text
}

/// A time of another machine, which may be unknown.
fn when(now: u64, at: u64) -> String {
    match at {
        0 => "-".to_owned(),
        at => ago(now, at),
    }
}

fn cells(node: &NodeStatus, now: u64) -> Vec<Cell> {
    let NodeStatus { told, lock } = node;
    let state = match told.state {
        NodeState::Steady => Tone::Good,
        NodeState::Draining | NodeState::Rebooting | NodeState::Trying | NodeState::Unknown => {
            Tone::Warn
        }
    };
    let lock = lock.as_ref().map_or_else(String::new, |lock| {
        format!("{}, for {}", when(now, lock.since), lock.version)
    });
    vec![
        Cell::new(&told.node),
        Cell::new(&told.version),
        Cell::new(told.slot.as_deref().unwrap_or("-")),
        Cell::new(told.state.as_str()).toned(state),
        Cell::new(when(now, told.at)),
        Cell::new(if lock.is_empty() { "-" } else { &lock }).toned(Tone::Warn),
        Cell::new(&told.machine_id),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appliance::fleet::etcd::FailedStatus;
    use crate::appliance::fleet::records::{Config, Failure, Holder, Node};

    const NOW: u64 = 1_000_000;

    fn node(name: &str, state: NodeState, lock: Option<Holder>) -> NodeStatus {
        NodeStatus {
            told: Node {
                node: name.to_owned(),
                machine_id: format!("id-of-{name}"),
                version: "1.0".to_owned(),
                slot: Some("a".to_owned()),
                state,
                at: NOW - 120,
            },
            lock,
        }
    }

    fn status() -> Status {
        let held = Holder {
            node: "node1".to_owned(),
            machine_id: "id-of-node1".to_owned(),
            version: "1.1".to_owned(),
            state: NodeState::Rebooting,
            since: NOW - 7200,
        };
        Status {
            schema: 1,
            group: "default".to_owned(),
            config: Config::default(),
            nodes: vec![
                node("node1", NodeState::Rebooting, Some(held)),
                node("node2", NodeState::Steady, None),
            ],
            failed: Vec::new(),
        }
    }

    fn rendered(status: &Status) -> String {
        render(
            status,
            NOW,
            None,
            Style::choose(crate::base::terminal::Colour::Never),
        )
    }

    #[test]
    fn who_has_the_lock_and_since_when_is_in_the_table() {
        assert_eq!(
            rendered(&status()),
            "group default: 1 of 1 have the lock; a version stops after 2 failures\n\
             NODE   VERSION  SLOT  STATE      SINCE      LOCK              MACHINE ID\n\
             node1  1.0      a     rebooting  2 min ago  2 h ago, for 1.1  id-of-node1\n\
             node2  1.0      a     steady     2 min ago  -                 id-of-node2\n"
        );
    }

    #[test]
    fn a_stopped_version_comes_with_its_reasons_and_the_fix() {
        let failure = |name: &str| Failure {
            node: name.to_owned(),
            machine_id: String::new(),
            reason: "docker does not answer".to_owned(),
            at: 0,
        };
        let failed = |version: &str, stopped, machines| FailedStatus {
            version: version.to_owned(),
            stopped,
            machines,
        };
        let status = Status {
            config: Config {
                holders: 0,
                breaker: 2,
            },
            nodes: Vec::new(),
            failed: vec![
                failed("1.1", true, vec![failure("node1"), failure("node2")]),
                failed("1.2", false, vec![failure("node3")]),
            ],
            ..status()
        };
        assert_eq!(
            rendered(&status),
            "group default: 0 of 0 have the lock; a version stops after 2 failures\n\
             updates are stopped: selvage fleet set --holders 1 starts them again\n\
             version 1.1 is started nowhere any more, as it failed on:\n\
             \x20 node1 (-): docker does not answer\n\
             \x20 node2 (-): docker does not answer\n\
             \x20 fix: selvage fleet reset 1.1\n\
             version 1.2 failed on:\n\
             \x20 node3 (-): docker does not answer\n\
             no machine has told anything yet\n"
        );
    }
}
