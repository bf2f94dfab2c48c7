//! Programs that units run.

use super::machine::Machine;
use super::unit_file::Assignment;

/// Settings whose value is a command line.
const COMMANDS: [&str; 7] = [
    "ExecCondition",
    "ExecReload",
    "ExecStart",
    "ExecStartPost",
    "ExecStartPre",
    "ExecStop",
    "ExecStopPost",
];

/// File systems that need a mount helper.
const MOUNTED_BY_PROGRAM: [&str; 5] = ["cifs", "glusterfs", "nfs", "nfs4", "ceph"];

/// Commands of etcdctl that exist only in etcd's API 2, and their replacements. Published drop-ins of flanneld write
/// the network config with them.
const ETCD_2: [(&str, &str); 7] = [
    ("ls", "write get --prefix --keys-only"),
    ("mk", "write put"),
    ("mkdir", "remove the line: etcd 3 has no directories"),
    ("rm", "write del"),
    ("rmdir", "write del --prefix"),
    ("set", "write put"),
    ("setdir", "remove the line: etcd 3 has no directories"),
];
/// Commands of API 3, whose arguments may contain such a word.
const ETCD_3: [&str; 8] = [
    "del", "endpoint", "get", "lease", "member", "put", "txn", "watch",
];

/// Why the command cannot work: its program does not exist, or it uses etcd's API 2.
pub(super) fn check(assignment: &Assignment, machine: &Machine<'_>) -> Option<String> {
    let Assignment {
        key, value, line, ..
    } = assignment;
    if assignment.is("Service", &COMMANDS)
        && let Some((verb, remedy)) = old_etcd_command(value)
    {
        return Some(format!(
            "line {line}: {key}={value}: etcdctl {verb} belongs to etcd's API 2, which the image does not have, so this fails; {remedy}"
        ));
    }
    let program = if assignment.is("Service", &COMMANDS) {
        let command = value.split_whitespace().next()?;
        let program = command.trim_start_matches(['@', ':', '+', '!', '|']);
        // With a leading dash systemd ignores the failure.
        (!program.contains(['$', '%', '"', '\'']) && !program.starts_with('-'))
            .then_some(program)?
            .to_owned()
    } else if assignment.is("Mount", &["Type"]) && MOUNTED_BY_PROGRAM.contains(&&**value) {
        format!("/usr/sbin/mount.{value}")
    } else {
        return None;
    };
    if machine.has_program(&program) != Some(false) {
        return None;
    }
    let name = program.rsplit('/').next().unwrap_or_default();
    let instead = match machine.image.foreign.programs.get(name) {
        Some(why) => format!("; {why}"),
        None => String::new(),
    };
    Some(format!(
        "line {line}: {key}={value}: the image has no {program}, so this fails{instead}"
    ))
}

/// The etcdctl command of API 2 in a command line, also in a shell command, and its replacement.
fn old_etcd_command(line: &str) -> Option<(&'static str, &'static str)> {
    let words = line.split_whitespace();
    let mut words = words.map(|word| word.trim_matches(['"', '\'', ';', '-', '@', '+', '!']));
    words.find(|word| word.rsplit('/').next() == Some("etcdctl"))?;
    let mut words = words.take_while(|word| !ETCD_3.contains(word));
    words.find_map(|word| ETCD_2.into_iter().find(|(verb, _)| *verb == word))
}
