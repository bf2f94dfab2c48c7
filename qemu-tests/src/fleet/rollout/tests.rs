use super::*;
use crate::fleet::{
    flood::Echo,
    history::tests::{delete, hold, tell},
};

/// The turns of three machines, 100 s each, with pings all the time.
pub(crate) fn sample() -> Rollout {
    let nodes = ["node1", "node2", "node3"];
    let mut changes: Vec<_> = nodes
        .iter()
        .map(|name| tell(900.0, name, "1", "a", "steady"))
        .collect();
    let mut boots = Vec::new();
    for (turn, name) in nodes.iter().enumerate() {
        let at = 1010.0 + 100.0 * turn as f64;
        changes.extend([
            hold(at, name, "draining"),
            tell(at, name, "1", "a", "draining"),
            hold(at + 2.0, name, "rebooting"),
            tell(at + 2.0, name, "1", "a", "rebooting"),
            tell(at + 90.0, name, "2", "b", "steady"),
            delete(at + 91.0, &format!("holders/id-{name}")),
        ]);
        boots.extend([20.0, 24.0].map(|after| Boot {
            node: (*name).to_owned(),
            at: at + after,
        }));
    }
    let echoes = |from: usize, to: usize| {
        let down = |at: f64, node: usize| {
            let start = 1010.0 + 100.0 * node as f64;
            (start + 4.0..start + 88.0).contains(&at)
        };
        let all = (0..6400).map(|number| 1000.0 + 0.05 * f64::from(number));
        all.map(|at| Echo {
            at,
            answered: !down(at, from) && !down(at, to),
        })
        .collect()
    };
    Rollout {
        from: 1000.0,
        until: 1320.0,
        installed: "1".into(),
        next: "2".into(),
        nodes: nodes.map(str::to_owned).to_vec(),
        most_holders: history::most_holders(&changes),
        changes,
        boots,
        floods: [(0, 1), (1, 2), (2, 0)]
            .map(|(from, to)| Flood {
                from: nodes[from].into(),
                to: nodes[to].into(),
                echoes: echoes(from, to),
            })
            .to_vec(),
    }
}

/// With one ping lost between the machines that are not at their turn.
pub(crate) fn sample_with_a_loss() -> Rollout {
    let mut rollout = sample();
    // node2 to node3, while node1 is down.
    rollout.floods[1].echoes[1000].answered = false;
    rollout
}

#[test]
fn a_machine_goes_through_its_phases() {
    let rollout = sample();
    let spans: Vec<_> = rollout
        .spans("node2")
        .into_iter()
        .map(|span| (span.phase, span.from, span.until))
        .collect();
    let expected = [
        (Phase::Old, 1000.0, 1110.0),
        (Phase::Drain, 1110.0, 1112.0),
        (Phase::Reboot, 1112.0, 1130.0),
        (Phase::Trial, 1130.0, 1200.0),
        (Phase::New, 1200.0, 1320.0),
    ];
    assert_eq!(spans, expected);
    let slots = [("a", "1"), ("b", "2")].map(|(slot, version)| (slot.into(), version.into()));
    assert_eq!(rollout.slots("node2"), slots);
    assert!(rollout.spans("nobody").is_empty());
}

#[test]
fn a_good_roll_out_is_good_and_its_figures_are_those_of_the_pings() {
    let rollout = sample();
    rollout.check().unwrap();
    assert!(is_done(&rollout.changes, &rollout.nodes, "2"));
    assert!(!is_done(&rollout.changes, &rollout.nodes, "3"));
    let without_end = &rollout.changes[..rollout.changes.len() - 1];
    assert!(!is_done(without_end, &rollout.nodes, "2"));
    let turn = &rollout.turns()[0];
    let Count { sent, lost } = rollout.beside(turn);
    // 91 s, but for what the margin of the next turn takes: nothing.
    assert!((1815..=1825).contains(&sent) && lost == 0, "{sent}, {lost}");
    let table = rollout.table();
    assert!(
        table.contains("node1     1              2            a to b   1 min 31 s"),
        "{table}"
    );
}

#[test]
fn what_went_wrong_is_named() {
    let error = |rollout: &Rollout| rollout.check().unwrap_err().to_string();
    let lossy = sample_with_a_loss();
    assert!(error(&lossy).ends_with("were lost in the turn of node1"));
    let twice = Rollout {
        most_holders: 2,
        ..sample()
    };
    assert_eq!(error(&twice), "2 machines had the lock at a time");
    let mut silent = sample();
    for flood in &mut silent.floods {
        flood.echoes.truncate(300);
    }
    assert!(error(&silent).starts_with("only "), "{}", error(&silent));
    let mut lazy = sample();
    lazy.nodes.push("node4".into());
    assert_eq!(error(&lazy), "node4 had 0 turns");
    let mut between = sample();
    // node3 to node1, after all turns.
    between.floods[2].echoes.last_mut().unwrap().answered = false;
    assert!(error(&between).starts_with("1 of "));
}

#[test]
fn earlier_turns_are_left_out() {
    let mut rollout = sample();
    rollout.from = 1105.0;
    let turns: Vec<_> = rollout.turns().into_iter().map(|turn| turn.node).collect();
    assert_eq!(turns, ["node2", "node3"]);
    assert_eq!(rollout.slots("node1"), [("b".into(), "2".into())]);
    assert_eq!(rollout.spans("node1").len(), 1);
}

#[test]
fn a_console_shows_the_begin_of_a_boot() {
    assert!(begins_boot(
        "BdsDxe: starting Boot0002 \"UEFI Misc Device\""
    ));
    assert!(begins_boot(
        "[    0.000000] Linux version 6.12.57+deb13-amd64"
    ));
    assert!(!begins_boot("systemd-shutdown[1]: Rebooting."));
}
