//! What the first boot's config did on this machine, and what of it has no effect: `selvage ignition report`. Late in every
//! boot `selvage-ignition-report.service` tells the latter.
//!
//! systemd does not report a unit that is enabled but does not exist, a unit that it skips because a dependency is
//! missing, or a drop-in for an unknown unit; such a machine is "running" without a failed unit. The report runs at
//! every boot, not only the first: the fault persists, and an operator may log in much later.

mod judge;
mod record;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use thiserror::Error;

use judge::{Boot, Fault, Unit, judge};
use record::Record;

pub use record::record_command;

/// Written by Ignition: the units to enable and disable.
const PRESET: &str = "etc/systemd/system-preset/20-ignition.preset";
/// Written by Ignition: when it ran.
const RESULT: &str = "etc/.ignition-result.json";
/// The directory of the machine's own units, drop-ins and enabling links.
const UNITS: &str = "etc/systemd/system";

/// The polling interval while waiting for the boot to finish.
const POLL: Duration = Duration::from_secs(1);

/// Why there is no report.
#[derive(Debug, Error)]
pub enum ReportError {
    /// A file or directory cannot be read.
    #[error("failed to read {}", .path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The record of a provisioning cannot be written.
    #[error("failed to write {}", .path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// Failed to run `systemctl`.
    #[error("failed to run systemctl")]
    Systemctl(#[source] io::Error),
    /// `systemctl` does not answer.
    #[error("systemctl show failed: {0}")]
    Show(String),
    /// Standard output is closed.
    #[error("failed to write the output")]
    Output(#[from] io::Error),
}

/// Prints what provisioning made, from where, and what it ignored, unless only faults are wanted; then everything that was
/// asked for but does not happen, one line each. Returns the number of these lines.
///
/// Waits until the boot has finished, at most `patience`; units that are still starting then are not judged. A unit
/// that failed and is being restarted gets the same time.
pub fn report_command(
    patience: Duration,
    only_faults: bool,
    output: &mut impl Write,
) -> Result<usize, ReportError> {
    let root = Path::new("/");
    if !only_faults {
        match Record::read(root)? {
            Some(record) => write!(output, "{record}")?,
            None => writeln!(
                output,
                "what was made is not recorded: another version provisioned this machine"
            )?,
        }
    }
    let deadline = Instant::now() + patience;
    wait_for_boot(deadline)?;
    let asked = Asked::read(root)?;
    let faults = loop {
        let faults = judge(&asked, boot(root), &mut show)?;
        if !faults.iter().any(Fault::may_pass) || Instant::now() >= deadline {
            break faults;
        }
        thread::sleep(POLL);
    };
    if !faults.is_empty() {
        writeln!(
            output,
            "the Ignition config asked for what this machine does not do:"
        )?;
        for fault in &faults {
            writeln!(output, "  {fault}")?;
        }
    }
    Ok(faults.len())
}

/// What the config asks for.
#[derive(Default, Debug)]
struct Asked {
    /// Units to enable, instances by their full name.
    enabled: Vec<String>,
    /// Units with drop-ins of this machine.
    dropped_in: Vec<String>,
    /// Unit and the unit that starts it: the links that enabling creates.
    wanted_by: BTreeMap<String, Vec<String>>,
    /// Templates on this machine, which systemd does not list.
    templates: Vec<String>,
}

impl Asked {
    fn read(root: &Path) -> Result<Self, ReportError> {
        let preset = root.join(PRESET);
        let mut asked = match fs::read_to_string(&preset) {
            Ok(text) => Self {
                enabled: enabled_units(&text),
                ..Self::default()
            },
            // No unit is enabled.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(source) => {
                return Err(ReportError::Read {
                    path: preset,
                    source,
                });
            }
        };
        for name in names_in(&root.join(UNITS))? {
            let directory = root.join(UNITS).join(&name);
            if let Some(unit) = name.strip_suffix(".d") {
                if is_unit(unit) && has_drop_in(&directory)? {
                    asked.dropped_in.push(unit.to_owned());
                }
            } else if let Some((wanting, "wants" | "requires" | "upholds")) = name.rsplit_once('.')
            {
                for wanted in names_in(&directory)? {
                    asked
                        .wanted_by
                        .entry(wanted)
                        .or_default()
                        .push(wanting.to_owned());
                }
            }
        }
        for directory in [UNITS, "run/systemd/system", "usr/lib/systemd/system"] {
            let names = names_in(&root.join(directory))?;
            asked
                .templates
                .extend(names.into_iter().filter(|name| name.contains("@.")));
        }
        Ok(asked)
    }
}

/// The names in `enable NAME [INSTANCE…]` lines.
fn enabled_units(preset: &str) -> Vec<String> {
    let mut units = Vec::new();
    for line in preset.lines() {
        let mut words = line.split_whitespace();
        let (Some("enable"), Some(name)) = (words.next(), words.next()) else {
            continue;
        };
        let instances: Vec<String> = words
            .map(|instance| name.replacen('@', &format!("@{instance}"), 1))
            .collect();
        if name.contains('@') {
            units.extend(instances);
        } else {
            units.push(name.to_owned());
        }
    }
    units.sort_unstable();
    units.dedup();
    units
}

/// Whether a directory of this name has drop-ins for a single unit, not for a type or a prefix.
fn is_unit(name: &str) -> bool {
    let kinds = [
        "automount",
        "mount",
        "path",
        "service",
        "socket",
        "swap",
        "target",
        "timer",
    ];
    let (stem, kind) = name.rsplit_once('.').unwrap_or_default();
    !stem.is_empty() && !stem.ends_with('-') && kinds.contains(&kind)
}

fn has_drop_in(directory: &Path) -> Result<bool, ReportError> {
    Ok(names_in(directory)?
        .iter()
        .any(|name| name.ends_with(".conf")))
}

/// The names in a directory, sorted; empty if it does not exist.
fn names_in(directory: &Path) -> Result<Vec<String>, ReportError> {
    let entries = match fs::read_dir(directory) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>),
    };
    let entries = entries.map_err(|source| ReportError::Read {
        path: directory.to_owned(),
        source,
    })?;
    let names = entries
        .iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.sort_unstable();
    Ok(names)
}

/// Whether Ignition ran in this boot, as far as can be told.
fn boot(root: &Path) -> Boot {
    #[derive(Deserialize)]
    struct Provisioning {
        #[serde(rename = "provisioningBootID")]
        boot_id: String,
    }
    let provisioning = fs::read_to_string(root.join(RESULT)).ok();
    let provisioning =
        provisioning.and_then(|text| serde_json::from_str::<Provisioning>(&text).ok());
    let current =
        fs::read_to_string(root.join("proc/sys/kernel/random/boot_id")).unwrap_or_default();
    match provisioning {
        Some(provisioning) if provisioning.boot_id == current.trim() => Boot::First,
        _ => Boot::Later,
    }
}

/// Returns when the boot's jobs have finished, or at the deadline.
fn wait_for_boot(deadline: Instant) -> Result<(), ReportError> {
    let mut waiting = Command::new("systemctl")
        .args(["is-system-running", "--wait"])
        .stdout(Stdio::null())
        .spawn()
        .map_err(ReportError::Systemctl)?;
    while waiting
        .try_wait()
        .map_err(ReportError::Systemctl)?
        .is_none()
    {
        if Instant::now() >= deadline {
            waiting
                .kill()
                .and_then(|()| waiting.wait())
                .map_err(ReportError::Systemctl)?;
            break;
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// systemd's state of the units, in the same order.
fn show(names: &[String]) -> Result<Vec<Unit>, ReportError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let output = Command::new("systemctl")
        .args(["show", "--no-pager"])
        .arg(format!("--property={}", Unit::PROPERTIES))
        .arg("--")
        .args(names)
        .output()
        .map_err(ReportError::Systemctl)?;
    let units = Unit::parse(&String::from_utf8_lossy(&output.stdout));
    if units.len() == names.len() {
        Ok(units)
    } else {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(ReportError::Show(said))
    }
}
