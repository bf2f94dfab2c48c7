//! Tells which of the requested units have a fault, and which are only waiting, have finished, or are not wanted here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::super::image::image;
use super::{Asked, ReportError};

/// Whether Ignition ran in this boot. In later boots, an administrator may have changed units on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Boot {
    First,
    Later,
}

/// A unit as `systemctl show` describes it.
#[derive(Clone, Default, Debug)]
pub(super) struct Unit(BTreeMap<String, String>);

impl Unit {
    /// The properties to query for each unit.
    pub(super) const PROPERTIES: &str = "Id,LoadState,UnitFileState,ActiveState,NRestarts,Job,TriggeredBy,Requires,Requisite,BindsTo,\
         ConditionTimestampMonotonic,InactiveExitTimestampMonotonic";

    /// One unit per block of lines.
    pub(super) fn parse(text: &str) -> Vec<Self> {
        let blocks = text.split("\n\n").filter(|block| !block.trim().is_empty());
        let unit = |block: &str| {
            let pairs = block.lines().filter_map(|line| line.split_once('='));
            Self(
                pairs
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .collect(),
            )
        };
        blocks.map(unit).collect()
    }

    fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    fn is_loaded(&self) -> bool {
        self.get("LoadState") == "loaded"
    }

    /// Not running, never run, not about to run, and not skipped by a condition of its own.
    fn was_never_started(&self) -> bool {
        let is_zero = |key: &str| matches!(self.get(key), "" | "0");
        self.get("ActiveState") == "inactive"
            && is_zero("InactiveExitTimestampMonotonic")
            && is_zero("ConditionTimestampMonotonic")
            && !self.has_job()
    }

    /// Failed and about to be restarted: systemd calls this state activating.
    fn is_restarting(&self) -> bool {
        self.get("ActiveState") == "activating" && !matches!(self.get("NRestarts"), "" | "0")
    }

    fn has_job(&self) -> bool {
        !matches!(self.get("Job"), "" | "0")
    }

    /// Whether it is up or starting, so that its dependencies were started too.
    fn starts_others(&self) -> bool {
        matches!(self.get("ActiveState"), "active" | "activating") || self.has_job()
    }

    /// The units that it needs to start.
    fn needs(&self) -> Vec<String> {
        let keys = ["BindsTo", "Requires", "Requisite"];
        let lists = keys
            .into_iter()
            .flat_map(|key| self.get(key).split_whitespace());
        lists
            .collect::<BTreeSet<_>>()
            .into_iter()
            .map(ToOwned::to_owned)
            .collect()
    }
}

/// Something that was asked for and does not happen.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Fault {
    unit: String,
    asked: &'static str,
    why: String,
    remedy: String,
}

impl Fault {
    /// Whether this may change a moment later.
    pub(super) fn may_pass(&self) -> bool {
        self.why == RESTARTING
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            unit,
            asked,
            why,
            remedy,
        } = self;
        write!(f, "{unit} {asked}, but {why}; {remedy}")
    }
}

const ENABLED: &str = "should be enabled";
const CHANGED: &str = "is changed by drop-ins";
const RESTARTING: &str = "it fails after every start and is restarted";

/// Queries a list of units.
pub(super) type Show<'s> = &'s mut dyn FnMut(&[String]) -> Result<Vec<Unit>, ReportError>;

/// All faults, sorted by unit name.
pub(super) fn judge(asked: &Asked, boot: Boot, show: Show<'_>) -> Result<Vec<Fault>, ReportError> {
    let mut faults = Vec::new();
    for (name, unit) in asked.enabled.iter().zip(show(&asked.enabled)?) {
        if let Some((why, remedy)) = fault_of(name, &unit, asked, boot, show)? {
            faults.push(Fault {
                unit: name.clone(),
                asked: ENABLED,
                why,
                remedy,
            });
        }
    }
    let is_asked_already = |name: &&String| asked.enabled.contains(name);
    let (templates, units): (Vec<&String>, Vec<&String>) = asked
        .dropped_in
        .iter()
        .filter(|name| !is_asked_already(name))
        .partition(|name| name.contains("@."));
    for name in templates {
        if !asked.templates.contains(name) {
            faults.push(Fault {
                unit: name.clone(),
                asked: CHANGED,
                why: nowhere(name),
                remedy: correct(name),
            });
        }
    }
    let units: Vec<String> = units.into_iter().cloned().collect();
    for (name, unit) in units.iter().zip(show(&units)?) {
        // A unit that exists but is disabled does not start, with or without a drop-in.
        let is_on = unit.get("UnitFileState").starts_with("enabled");
        if (is_on || unit.get("LoadState") == "not-found")
            && let Some((why, remedy)) = fault_of(name, &unit, asked, boot, show)?
        {
            faults.push(Fault {
                unit: name.clone(),
                asked: CHANGED,
                why,
                remedy,
            });
        }
    }
    faults.sort_by(|a, b| a.unit.cmp(&b.unit));
    Ok(faults)
}

/// Adds what the table says about units of other systems.
fn nowhere(name: &str) -> String {
    let foreign = image().foreign.units.get(name);
    let reason = foreign.map_or(String::new(), |why| format!(" here ({why})"));
    format!("there is no such unit{reason}")
}

fn correct(name: &str) -> String {
    format!(
        "correct the name, or write {}/{name}",
        "/etc/systemd/system"
    )
}

/// The cause and the fix.
fn fault_of(
    name: &str,
    unit: &Unit,
    asked: &Asked,
    boot: Boot,
    show: Show<'_>,
) -> Result<Option<(String, String)>, ReportError> {
    let told = |why: &str, remedy: String| Ok(Some((why.to_owned(), remedy)));
    match unit.get("LoadState") {
        "loaded" => {}
        "not-found" => return told(&nowhere(name), correct(name)),
        // In a later boot an administrator may have masked it.
        "masked" if boot == Boot::Later => return Ok(None),
        "masked" => return told("it is masked", format!("systemctl unmask {name}")),
        _ => {
            return told(
                "systemd cannot read it",
                format!("see systemd-analyze verify {name}"),
            );
        }
    }
    if unit.get("UnitFileState") == "disabled" {
        return match boot {
            Boot::First => told(
                "it is not enabled: systemd applies presets only on a host without a machine ID",
                format!("systemctl enable --now {name}"),
            ),
            Boot::Later => Ok(None),
        };
    }
    let id = unit.get("Id");
    if unit.is_restarting() {
        return told(RESTARTING, format!("see journalctl --boot --unit={id}"));
    }
    if !unit.was_never_started() {
        return Ok(None);
    }
    let by_either_name = [name, id]
        .into_iter()
        .filter_map(|name| asked.wanted_by.get(name));
    let wanting: BTreeSet<&String> = by_either_name.flatten().collect();
    let wanting: Vec<String> = wanting.into_iter().cloned().collect();
    if wanting.is_empty() {
        return match unit.get("UnitFileState") {
            // A socket, timer or path starts it when needed.
            "static" if unit.get("TriggeredBy").is_empty() => told(
                "it has no [Install] section, so nothing starts it",
                "add one with WantedBy=multi-user.target".to_owned(),
            ),
            _ => Ok(None),
        };
    }
    let starts: Vec<Unit> = show(&wanting)?;
    if starts.iter().any(Unit::starts_others) {
        let (cause, remedy) = cause(name, unit, show)?;
        return Ok(Some((format!("it was never started: {cause}"), remedy)));
    }
    // Other units that would start it are waiting themselves, or are reached in no boot.
    let is_reachable =
        |(name, unit): (&String, &Unit)| name != "graphical.target" && unit.is_loaded();
    if wanting.iter().zip(&starts).any(is_reachable) {
        return Ok(None);
    }
    told(
        &format!(
            "only {} starts it, which this machine never reaches",
            wanting.join(", ")
        ),
        "use WantedBy=multi-user.target".to_owned(),
    )
}

/// The root cause among the dependencies. `unit` was wanted and skipped.
fn cause(name: &str, unit: &Unit, show: Show<'_>) -> Result<(String, String), ReportError> {
    let needs = unit.needs();
    let needed = show(&needs)?;
    let find = |is_it: &dyn Fn(&Unit) -> bool| {
        let mut pairs = needs.iter().zip(&needed);
        pairs.find(|(_, unit)| is_it(unit)).map(|(name, _)| name)
    };
    let without = |need: &str| format!("write {need}, or remove the dependency from {name}");
    Ok(
        if let Some(need) = find(&|unit| unit.get("LoadState") == "not-found") {
            (
                format!("it needs {need}, and {}", nowhere(need)),
                without(need),
            )
        } else if let Some(need) = find(&|unit| unit.get("LoadState") == "masked") {
            (
                format!("it needs {need}, which is masked"),
                format!("systemctl unmask {need}, or remove the dependency from {name}"),
            )
        } else if let Some(need) = find(&|unit| !unit.is_loaded()) {
            (
                format!("it needs {need}, which systemd cannot read"),
                format!("see systemd-analyze verify {need}"),
            )
        } else if let Some(need) = find(&|unit| unit.get("ActiveState") == "failed") {
            (
                format!("it needs {need}, which failed"),
                format!("see journalctl --boot --unit={need}"),
            )
        } else if let Some(need) = find(&Unit::was_never_started) {
            (
                format!("it needs {need}, which was not started either"),
                format!("run systemctl start {need} to see why"),
            )
        } else {
            (
                "systemd skipped it during the boot".to_owned(),
                format!("run systemctl start {name} to see why"),
            )
        },
    )
}
