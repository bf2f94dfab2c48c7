//! systemd units and their drop-ins.

use ignition_config::v3_3::Systemd;

use super::super::locate::join_index;
use super::Findings;

/// The unit types whose names Ignition accepts.
const SUFFIXES: [&str; 12] = [
    "automount",
    "device",
    "mount",
    "path",
    "scope",
    "service",
    "slice",
    "snapshot",
    "socket",
    "swap",
    "target",
    "timer",
];

/// Checks names, duplicates and the syntax of contents.
pub(super) fn check(systemd: &Systemd, findings: &mut Findings<'_>) {
    let units = systemd.units.as_deref().unwrap_or_default();
    findings.check_unique("systemd.units", "name", units.iter().map(|unit| &unit.name));
    for (i, unit) in units.iter().enumerate() {
        let at = join_index("systemd.units", i);
        if let Err(reason) = check_unit_name(&unit.name) {
            findings.error(format!("{at}.name"), reason);
        }
        let contents = unit.contents.as_deref().unwrap_or_default();
        check_syntax(&format!("{at}.contents"), contents, findings);
        let has_install = contents.lines().any(|line| line.trim() == "[Install]");
        if unit.enabled == Some(true) && !contents.is_empty() && !has_install {
            findings.warn(
                format!("{at}.contents"),
                "the unit is enabled but has no [Install] section, so enabling does nothing",
            );
        }
        if unit.enabled == Some(true) && unit.mask == Some(true) {
            findings.warn(
                format!("{at}.mask"),
                "the unit is enabled and masked; masked wins",
            );
        }
        let drop_ins = unit.dropins.as_deref().unwrap_or_default();
        let list = format!("{at}.dropins");
        findings.check_unique(&list, "name", drop_ins.iter().map(|drop_in| &drop_in.name));
        for (j, drop_in) in drop_ins.iter().enumerate() {
            let at = join_index(&list, j);
            let name = &drop_in.name;
            if !name.ends_with(".conf") || name.contains('/') {
                findings.error(
                    format!("{at}.name"),
                    format!("{name:?} is not the name of a drop-in: expected NAME.conf"),
                );
            }
            let contents = drop_in.contents.as_deref().unwrap_or_default();
            check_syntax(&format!("{at}.contents"), contents, findings);
        }
    }
}

/// systemd.unit(5): at most 255 characters of a small alphabet, then the type.
fn check_unit_name(name: &str) -> Result<(), String> {
    let (stem, suffix) = name.rsplit_once('.').unwrap_or((name, ""));
    if !SUFFIXES.contains(&suffix) {
        return Err(format!(
            "{name:?} does not end with the type of a unit: expected one of .{}",
            SUFFIXES.join(", .")
        ));
    }
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    if stem.is_empty() || name.len() > 255 || !stem.bytes().all(is_allowed) {
        return Err(format!(
            "{name:?} is not the name of a unit: expected at most 255 letters, digits and :-_.\\@"
        ));
    }
    Ok(())
}

/// systemd.syntax(7), as far as Ignition parses it: sections, assignments, comments, continued lines.
fn check_syntax(path: &str, contents: &str, findings: &mut Findings<'_>) {
    let mut is_in_section = false;
    let mut is_continued = false;
    for (number, line) in (1..).zip(contents.lines()) {
        let text = line.trim();
        let is_comment = text.starts_with(['#', ';']);
        if is_continued {
            // Ignition takes a comment here for part of the value; systemd does not.
            is_continued = line.ends_with('\\');
        } else if text.is_empty() || is_comment {
        } else if text.starts_with('[') {
            is_in_section = true;
            if !text.ends_with(']') {
                findings.error(
                    path,
                    format!("line {number}: the section {text:?} is not closed"),
                );
            }
        } else if !is_in_section {
            findings.warn(
                path,
                format!("line {number}: {text:?} is outside of any section"),
            );
        } else if text.contains('=') {
            is_continued = line.ends_with('\\');
        } else {
            findings.error(
                path,
                format!("line {number}: {text:?} is not an assignment: expected KEY=VALUE"),
            );
        }
    }
}
