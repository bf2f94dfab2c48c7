//! Compares the image's tree with the table: `selvage ignition verify-image`, run by the image build.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{Image, image};

/// Ids that Debian gives out as packages ask for them (Debian policy, section 9.2.2).
const DYNAMIC: RangeInclusive<u32> = 100..=999;

/// The image differs from the table.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// The tree cannot be read.
    #[error("failed to read {}", .path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The tree lacks entries of the table.
    #[error("the image differs from agent/data/image.toml; correct the one that is wrong:\n{}", .0.join("\n"))]
    Lacks(Vec<String>),
}

/// The comparison of table and tree; each difference is a line that names the table's entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Differences {
    /// Entries of the table that are missing in the tree.
    pub(super) lacking: Vec<String>,
    /// Entries of the tree that are missing in the table, or have another dynamic ID. These are not errors: packages
    /// change during a release, and the image must still build a year later.
    pub(super) unknown: Vec<String>,
}

impl Differences {
    fn lacks(&mut self, list: &str, name: &str) {
        self.lacking
            .push(format!("  {list}: {name} is not in the image"));
    }

    fn has_too(&mut self, list: &str, name: &str) {
        self.unknown
            .push(format!("  {list}: the image has {name} too"));
    }
}

/// Compares the table with the image's tree at `root`, before its `/etc` and `/usr` are packed; returns the tree's
/// additional entries, one per line. Additional files in `/etc`, shells and time zones are not reported.
///
/// # Errors
///
/// [`VerifyError::Lacks`] with one line per missing entry.
pub fn verify(root: &Path) -> Result<Vec<String>, VerifyError> {
    let differences = differences(image(), root)?;
    if differences.lacking.is_empty() {
        Ok(differences.unknown)
    } else {
        Err(VerifyError::Lacks(differences.lacking))
    }
}

pub(super) fn differences(image: &Image, root: &Path) -> Result<Differences, VerifyError> {
    let mut found = Differences::default();
    let passwd = accounts(&root.join("etc/passwd"))?;
    let group = accounts(&root.join("etc/group"))?;
    compare_ids("users", &image.users, &passwd, &mut found);
    compare_ids("groups", &image.groups, &group, &mut found);
    compare_units(image, root, &mut found)?;
    let mut programs = names_in(&root.join("usr/bin"))?;
    programs.extend(names_in(&root.join("usr/sbin"))?);
    compare("programs.path", &image.programs.path, &programs, &mut found);

    let zones = image.time.zones.iter();
    let zones = zones.map(|zone| format!("/usr/share/zoneinfo/{zone}"));
    let zones: Vec<String> = zones.collect();
    let promised = [
        ("programs.other", &image.programs.other),
        ("etc.files", &image.etc.files),
        ("shells.login", &image.shells.login),
        ("shells.none", &image.shells.none),
        ("time.zones", &zones),
    ];
    for (list, paths) in promised {
        for path in paths {
            let metadata = fs::symlink_metadata(root.join(path.trim_start_matches('/')));
            let is_there =
                metadata.is_ok_and(|metadata| list != "etc.files" || !metadata.is_symlink());
            if !is_there {
                found.lacks(list, path);
            }
        }
    }
    let links = image.etc.links.iter().map(|link| ("etc.links", link));
    let elsewhere = image.paths.elsewhere.iter();
    let elsewhere = elsewhere.map(|link| ("paths.elsewhere", link));
    for (list, (path, target)) in links.chain(elsewhere) {
        let read = fs::read_link(root.join(path.trim_start_matches('/')));
        if !read.is_ok_and(|read| read == Path::new(target)) {
            found.lacks(list, &format!("{path} -> {target}"));
        }
    }
    Ok(found)
}

/// Names and IDs in `passwd` or `group`, which have both in the same fields.
fn accounts(path: &Path) -> Result<BTreeMap<String, u32>, VerifyError> {
    let text = fs::read_to_string(path).map_err(reading(path))?;
    let account = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        Some((name, fields.nth(1)?.parse().ok()?))
    };
    Ok(text.lines().filter_map(account).collect())
}

/// Units by the effect of enabling them, in the table's categories.
fn compare_units(image: &Image, root: &Path, found: &mut Differences) -> Result<(), VerifyError> {
    const PRESET: &str = "usr/lib/systemd/system-preset/50-selvage.preset";
    let preset = root.join(PRESET);
    let preset = fs::read_to_string(&preset).map_err(reading(&preset))?;
    let is_enabled = |name: &str| {
        let mut lines = preset.lines();
        lines.any(|line| line.strip_prefix("enable ") == Some(name))
    };
    let mut lists: [(&str, &[String], BTreeSet<String>); 4] = [
        ("units.enabled", &image.units.enabled, BTreeSet::new()),
        ("units.available", &image.units.available, BTreeSet::new()),
        ("units.static", &image.units.static_, BTreeSet::new()),
        ("units.masked", &image.units.masked, BTreeSet::new()),
    ];
    let [enabled, available, static_, masked] = &mut lists;
    let mut aliases = BTreeMap::new();
    for (name, path) in unit_files(root)? {
        if let Ok(target) = fs::read_link(&path) {
            let target = target.file_name().unwrap_or_default().to_string_lossy();
            if target == "null" {
                masked.2.insert(name);
            } else {
                aliases.insert(name, target.into_owned());
            }
            continue;
        }
        let text = fs::read_to_string(&path).map_err(reading(&path))?;
        let list = if is_enabled(&name) {
            &mut *enabled
        } else if text.lines().any(|line| line.trim() == "[Install]") {
            &mut *available
        } else {
            &mut *static_
        };
        list.2.insert(name);
    }
    for (list, promised, in_tree) in &lists {
        compare(list, promised, in_tree, found);
    }
    let pairs = |aliases: &BTreeMap<String, String>| -> BTreeSet<String> {
        aliases
            .iter()
            .map(|(alias, unit)| format!("{alias} = {unit}"))
            .collect()
    };
    let promised: Vec<String> = pairs(&image.units.aliases).into_iter().collect();
    compare("units.aliases", &promised, &pairs(&aliases), found);
    Ok(())
}

/// Names and paths of all units; a unit in `/etc` hides the one in `/usr`.
fn unit_files(root: &Path) -> Result<BTreeMap<String, PathBuf>, VerifyError> {
    let mut units = BTreeMap::new();
    for directory in ["usr/lib/systemd/system", "etc/systemd/system"] {
        let directory = root.join(directory);
        for name in names_in(&directory)? {
            let path = directory.join(&name);
            let is_directory = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
            if !is_directory {
                units.insert(name, path);
            }
        }
    }
    Ok(units)
}

fn names_in(directory: &Path) -> Result<BTreeSet<String>, VerifyError> {
    let entries = fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(reading(directory))?;
    Ok(entries
        .iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect())
}

fn compare_ids(
    list: &str,
    promised: &BTreeMap<String, u32>,
    in_tree: &BTreeMap<String, u32>,
    found: &mut Differences,
) {
    for (name, id) in promised {
        match in_tree.get(name) {
            None => found.lacks(list, name),
            Some(other) if other == id => {}
            Some(other) => {
                let line = format!("  {list}: {name} is {other} in the image, not {id}");
                // Assigned in the order in which packages are installed, so they may change.
                if DYNAMIC.contains(id) && DYNAMIC.contains(other) {
                    found.unknown.push(line);
                } else {
                    found.lacking.push(line);
                }
            }
        }
    }
    for (name, id) in in_tree {
        if !promised.contains_key(name) {
            found.has_too(list, &format!("{name} = {id}"));
        }
    }
}

fn compare(list: &str, promised: &[String], in_tree: &BTreeSet<String>, found: &mut Differences) {
    for name in promised {
        if !in_tree.contains(name) {
            found.lacks(list, name);
        }
    }
    for name in in_tree {
        if !promised.contains(name) {
            found.has_too(list, name);
        }
    }
}

fn reading(path: &Path) -> impl FnOnce(io::Error) -> VerifyError {
    let path = path.to_owned();
    move |source| VerifyError::Read { path, source }
}
