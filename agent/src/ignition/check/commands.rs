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

/// File systems that are mounted by a program of their own.
const MOUNTED_BY_PROGRAM: [&str; 5] = ["cifs", "glusterfs", "nfs", "nfs4", "ceph"];

/// Why the assignment's program cannot run, if it names one that is not there.
pub(super) fn check(assignment: &Assignment, machine: &Machine<'_>) -> Option<String> {
    let Assignment {
        key, value, line, ..
    } = assignment;
    let program = if assignment.is("Service", &COMMANDS) {
        let command = value.split_whitespace().next()?;
        let program = command.trim_start_matches(['@', ':', '+', '!', '|']);
        // With a dash systemd does not mind.
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
