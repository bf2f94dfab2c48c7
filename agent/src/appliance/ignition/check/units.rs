//! How systemd will handle the units: whether they exist, something starts them, and they can start.

use ignition_config::v3_3::{Systemd, Unit};

use super::super::locate::join_index;
use super::Findings;
use super::accounts::Accounts;
use super::machine::{Machine, template_of};
use super::unit_file::{Assignment, assignments};
use super::{commands, stages};

/// Dependencies without which the unit does not start.
const NEEDS: [&str; 3] = ["BindsTo", "Requires", "Requisite"];
/// Dependencies whose absence systemd ignores silently.
const WISHES: [&str; 2] = ["Upholds", "Wants"];

/// Checks every unit and drop-in against the machine.
pub(super) fn check(
    systemd: &Systemd,
    machine: &Machine<'_>,
    accounts: &Accounts,
    findings: &mut Findings<'_>,
) {
    for (i, unit) in systemd.units.iter().flatten().enumerate() {
        let at = join_index("systemd.units", i);
        check_asked(&at, unit, machine, findings);
        let contents = unit.contents.as_deref().unwrap_or_default();
        let text = Text {
            at: format!("{at}.contents"),
            unit: &unit.name,
            assignments: assignments(contents),
        };
        text.check(machine, accounts, findings);
        text.check_template(unit, findings);
        let drop_ins = unit.dropins.as_deref().unwrap_or_default();
        for (j, drop_in) in drop_ins.iter().enumerate() {
            let contents = drop_in.contents.as_deref().unwrap_or_default();
            let at = join_index(&format!("{at}.dropins"), j);
            check_text(
                format!("{at}.contents"),
                &unit.name,
                contents,
                machine,
                accounts,
                findings,
            );
        }
    }
}

/// What the config does with the whole unit: enable, disable, mask, or extend it by drop-ins.
fn check_asked(at: &str, unit: &Unit, machine: &Machine<'_>, findings: &mut Findings<'_>) {
    let name = unit.name.as_str();
    let is_own = machine.brings_unit(name);
    let alias = machine.image.units.aliases.get(name).filter(|_| !is_own);
    let has_drop_in = unit
        .dropins
        .iter()
        .flatten()
        .any(|drop_in| drop_in.contents.as_ref().is_some_and(|c| !c.is_empty()));
    // Units of this prefix share a directory of drop-ins (systemd.unit(5)).
    let is_prefix = name
        .rsplit_once('.')
        .is_some_and(|(stem, _)| stem.ends_with('-'));
    let is_missing = !machine.has_unit(name) && !is_prefix;
    if unit.mask == Some(true) {
        if let Some(target) = alias {
            findings.warn(
                format!("{at}.mask"),
                format!("{name} is an alias of {target}, which stays enabled or disabled as before; mask {target}"),
            );
        }
        if unit
            .contents
            .as_ref()
            .is_some_and(|contents| !contents.is_empty())
        {
            findings.warn(
                format!("{at}.contents"),
                "the unit is masked, so its contents are ignored",
            );
        }
        return;
    }
    if is_missing && (unit.enabled == Some(true) || has_drop_in) {
        let asked = if unit.enabled == Some(true) {
            "enabled"
        } else {
            "changed by a drop-in"
        };
        let why = machine.image.foreign.units.get(name).map_or_else(
            || "give it contents, or correct the name".to_owned(),
            Clone::clone,
        );
        let message = format!(
            "{name} is {asked}, but is neither in the image nor in this config, so nothing happens; {why}"
        );
        machine.warn_of_lack(&format!("{at}.name"), &message, findings);
        return;
    }
    match unit.enabled {
        Some(true) => check_enabled(at, unit, alias, machine, findings),
        Some(false) => {
            if let Some(target) = alias
                && machine.is_on(target)
            {
                findings.warn(
                    format!("{at}.enabled"),
                    format!(
                        "{name} is an alias of {target}, which stays enabled; disable {target}"
                    ),
                );
            }
        }
        None => {}
    }
}

fn check_enabled(
    at: &str,
    unit: &Unit,
    alias: Option<&String>,
    machine: &Machine<'_>,
    findings: &mut Findings<'_>,
) {
    let name = unit.name.as_str();
    let units = &machine.image.units;
    let field = format!("{at}.enabled");
    let is_own = machine.brings_unit(name);
    let template = template_of(name).unwrap_or_else(|| name.to_owned());
    let installs = |text: Option<&String>| {
        text.is_some_and(|text| text.lines().any(|line| line.trim() == "[Install]"))
    };
    let has_install = unit
        .dropins
        .iter()
        .flatten()
        .any(|drop_in| installs(drop_in.contents.as_ref()));
    if let Some(target) = alias {
        if !units.enabled_by_alias.contains_key(name) && !machine.is_on(target) {
            findings.warn(field, format!("{name} is an alias of {target}, and an alias cannot be enabled here; enable {target}"));
        }
    } else if is_own {
        // Its own text is checked elsewhere.
    } else if machine.is_masked(name) {
        findings.warn(
            field,
            format!("{name} is masked in the image and cannot start; write a unit of your own"),
        );
    } else if units.static_.contains(&template) && !has_install {
        findings.warn(field, format!("{name} has no [Install] section in the image, so enabling it does nothing; units that need it start it"));
    }
}

/// Checks a file that is a unit or a drop-in.
pub(super) fn check_text(
    at: String,
    unit: &str,
    text: &str,
    machine: &Machine<'_>,
    accounts: &Accounts,
    findings: &mut Findings<'_>,
) {
    let assignments = assignments(text);
    let text = Text {
        at,
        unit,
        assignments,
    };
    text.check(machine, accounts, findings);
}

/// The text of a unit or drop-in.
struct Text<'c> {
    at: String,
    unit: &'c str,
    assignments: Vec<Assignment>,
}

impl Text<'_> {
    fn check(&self, machine: &Machine<'_>, accounts: &Accounts, findings: &mut Findings<'_>) {
        for assignment in &self.assignments {
            if assignment.section == "Unit" {
                self.check_dependency(assignment, machine, findings);
            } else if assignment.is("Install", &["RequiredBy", "WantedBy"]) {
                self.check_install(assignment, machine, findings);
            } else if assignment.is("Service", &["User"]) {
                self.check_user(assignment, machine, accounts, findings);
            } else if assignment.is("Mount", &["Where"]) {
                self.check_mount_point(assignment, findings);
            }
            if let Some(message) = commands::check(assignment, machine) {
                machine.warn_of_lack(&self.at, &message, findings);
            }
        }
    }

    fn check_dependency(
        &self,
        assignment: &Assignment,
        machine: &Machine<'_>,
        findings: &mut Findings<'_>,
    ) {
        let Assignment {
            key, value, line, ..
        } = assignment;
        let is_need = NEEDS.contains(&&**key);
        if !is_need && !WISHES.contains(&&**key) {
            return;
        }
        for name in value.split_whitespace() {
            let reason = if !machine.has_unit(name) {
                let foreign = machine.image.foreign.units.get(name);
                let why = foreign.map_or(String::new(), |why| format!(" ({why})"));
                format!("is neither in the image nor in this config{why}")
            } else if machine.is_masked(name) {
                "is masked".to_owned()
            } else {
                continue;
            };
            let outcome = if is_need {
                format!("so {} does not start; remove the line", self.unit)
            } else {
                "so the line does nothing".to_owned()
            };
            let message = format!("line {line}: {key}={name}: {name} {reason}, {outcome}");
            machine.warn_of_lack(&self.at, &message, findings);
        }
    }

    fn check_install(
        &self,
        assignment: &Assignment,
        machine: &Machine<'_>,
        findings: &mut Findings<'_>,
    ) {
        for name in assignment.value.split_whitespace() {
            let reason = if name == "graphical.target" {
                "this machine never reaches it"
            } else if machine.has_unit(name) {
                continue;
            } else {
                "it is neither in the image nor in this config"
            };
            let message = format!(
                "line {}: {}={name}: {reason}, so it does not start {}; use multi-user.target",
                assignment.line, assignment.key, self.unit
            );
            machine.warn_of_lack(&self.at, &message, findings);
        }
    }

    fn check_user(
        &self,
        assignment: &Assignment,
        machine: &Machine<'_>,
        accounts: &Accounts,
        findings: &mut Findings<'_>,
    ) {
        let user = &*assignment.value;
        let is_number = user.bytes().all(|b| b.is_ascii_digit());
        let is_dynamic = self
            .assignments
            .iter()
            .any(|a| a.is("Service", &["DynamicUser"]));
        if !user.contains('%') && !is_number && !is_dynamic && !accounts.has_user(user) {
            let message = format!(
                "line {}: User={user}: there is no such user in the image or in passwd.users, so {} fails to start",
                assignment.line, self.unit
            );
            machine.warn_of_lack(&self.at, &message, findings);
        }
    }

    fn check_mount_point(&self, assignment: &Assignment, findings: &mut Findings<'_>) {
        let expected = stages::mount_unit(&assignment.value);
        if !assignment.value.contains('%') && self.unit != expected {
            let message = format!(
                "line {}: Where={}: systemd refuses this path in a unit of this name; name the unit {expected}",
                assignment.line, assignment.value
            );
            findings.warn(&self.at, message);
        }
    }

    /// A template that is enabled without an instance.
    fn check_template(&self, unit: &Unit, findings: &mut Findings<'_>) {
        let is_template = unit
            .name
            .rsplit_once('.')
            .is_some_and(|(stem, _)| stem.ends_with('@'));
        let has_default = self
            .assignments
            .iter()
            .any(|a| a.is("Install", &["DefaultInstance"]));
        if is_template && unit.enabled == Some(true) && !self.assignments.is_empty() && !has_default
        {
            findings.warn(
                self.at.replace(".contents", ".enabled"),
                format!("{} is a template without DefaultInstance=, so enabling it starts nothing; enable an instance", unit.name),
            );
        }
    }
}
