//! What is kept of every node when something failed.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{console, machine::Machine, progress::clip};

/// What is asked of a guest, and the file that the answer goes to.
const QUESTIONS: [(&str, &str); 9] = [
    (
        "journal.txt",
        "sudo journalctl -b --no-pager -o short-monotonic",
    ),
    ("addr.txt", "ip -d addr"),
    ("route.txt", "ip -d route show table all"),
    ("nexthop.txt", "ip -d nexthop"),
    ("fdb.txt", "/usr/sbin/bridge fdb; ip neigh"),
    ("nft.txt", "sudo nft list ruleset"),
    (
        "units.txt",
        "systemctl list-units --failed --no-pager; systemctl list-jobs --no-pager; systemctl status --no-pager selvage docker etcd",
    ),
    ("subnet.env", "cat /run/flannel/subnet.env"),
    ("docker.txt", "docker ps -a; docker network inspect bridge"),
];
/// A guest that is well answers each question in a second or two; one that is not must not hold up the report.
const DEADLINE: Duration = Duration::from_secs(40);
/// Lines of the log shown, and characters of each.
const SHOWN: usize = 15;
const SHOWN_WIDTH: usize = 300;

/// Traces of the harness's own questions in a journal.
const OWN: [&str; 3] = [" sudo[", " sshd-session[", " sshd["];

/// Writes what can be had of each machine to `dir/NAME/`, and gives the last lines of the log that matters.
///
/// The machine that matters is the one that `reason` names, else the first.
pub(crate) async fn keep(machines: &mut [Machine], dir: &Path, reason: &str) -> Vec<String> {
    let mut shown = Vec::new();
    let blamed = machines
        .iter()
        .position(|machine| reason.contains(machine.name()))
        .unwrap_or(0);
    for (index, machine) in machines.iter_mut().enumerate() {
        let dir = dir.join(machine.name());
        let log = keep_one(machine, &dir).await;
        if index == blamed {
            shown = last_lines(&log);
        }
        shown.push(format!("kept: {}/", dir.display()));
    }
    shown
}

/// Gives the file worth reading first: the journal, or the console where there is none.
async fn keep_one(machine: &mut Machine, dir: &Path) -> PathBuf {
    // Nothing here may hide the failure that is being reported, so errors leave a file out.
    let _ = fs::create_dir_all(dir);
    let console = dir.join("console.log");
    let _ = fs::copy(machine.console.path(), &console);
    let _ = fs::copy(
        machine.console.path().with_extension("qemu"),
        dir.join("qemu.log"),
    );
    let mut best = console;
    if machine.is_running() && machine.ssh.greets().await.is_ok() {
        for (file, script) in QUESTIONS {
            let script = format!("({script}) 2>&1 || true");
            let Ok(answer) = machine.ssh.feed(&script, &[], DEADLINE).await else {
                continue;
            };
            let path = dir.join(file);
            if fs::write(&path, answer).is_ok() && file == "journal.txt" {
                best = path;
            }
        }
    }
    best
}

fn last_lines(log: &Path) -> Vec<String> {
    let text = console::plain(&fs::read(log).unwrap_or_default());
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !OWN.iter().any(|own| line.contains(own)))
        .collect();
    let mut shown = vec![format!("last lines of {}:", log.display())];
    shown.extend(
        lines[lines.len().saturating_sub(SHOWN)..]
            .iter()
            .map(|line| format!("  {}", clip(line.trim_end(), SHOWN_WIDTH))),
    );
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text: String = (0..100).map(|line| format!("line {line}\n\n")).collect();
        fs::write(file.path(), text).unwrap();
        let shown = last_lines(file.path());
        assert_eq!(shown.len(), SHOWN + 1);
        assert_eq!(shown.last().unwrap(), "  line 99");
    }
}
