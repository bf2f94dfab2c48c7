//! Which `.link` file of systemd-udevd applies to a VXLAN device, and its `MACAddressPolicy=` (systemd.link(5)).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use regex_lite::{Regex, escape};

/// The directories, in order of precedence: a file hides those of the same name in later ones.
const DIRECTORIES: [&str; 5] = [
    "/etc/systemd/network",
    "/run/systemd/network",
    "/usr/local/lib/systemd/network",
    "/usr/lib/systemd/network",
    "/lib/systemd/network",
];

/// The policy other than `none` that applies to a VXLAN device; `None` if there is none, or if it depends on
/// unsupported conditions.
pub(super) fn policy(device: &str) -> Option<String> {
    effective(&DIRECTORIES.map(PathBuf::from), device).filter(|policy| policy != "none")
}

/// The policy of the first matching file, with its drop-ins.
fn effective(directories: &[PathBuf], device: &str) -> Option<String> {
    for (name, path) in files(directories, ".link") {
        let mut text = fs::read_to_string(&path).unwrap_or_default();
        let drop_ins: Vec<PathBuf> = directories
            .iter()
            .map(|directory| directory.join(format!("{name}.d")))
            .collect();
        for (_, path) in files(&drop_ins, ".conf") {
            text.push('\n');
            text.push_str(&fs::read_to_string(path).unwrap_or_default());
        }
        let file = File::parse(&text);
        match file.fits(device) {
            Some(true) => return file.policy,
            Some(false) => {}
            None => return None,
        }
    }
    None
}

/// The files with an ending, by name; of several with one name that of the first directory.
fn files(directories: &[PathBuf], ending: &str) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for directory in directories {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some(name) = name.filter(|name| name.ends_with(ending)) {
                found.entry(name.to_owned()).or_insert_with(|| path.clone());
            }
        }
    }
    // A link to /dev/null masks the file.
    found.retain(|_, path| fs::canonicalize(path).is_ok_and(|path| path != Path::new("/dev/null")));
    found
}

#[derive(Default)]
struct File {
    conditions: Vec<(String, String)>,
    policy: Option<String>,
}

impl File {
    fn parse(text: &str) -> Self {
        let mut file = Self::default();
        let mut section = "";
        for line in text.lines().map(str::trim) {
            if let Some(name) = line
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'))
            {
                section = name;
            } else if line.starts_with(['#', ';']) {
            } else if let Some((key, value)) = line.split_once('=') {
                let (key, value) = (key.trim(), value.trim());
                match section {
                    "Match" => file.conditions.push((key.to_owned(), value.to_owned())),
                    "Link" if key == "MACAddressPolicy" => {
                        file.policy = (!value.is_empty()).then(|| value.to_owned());
                    }
                    _ => {}
                }
            }
        }
        file
    }

    /// Whether it matches a VXLAN device of that name; `None` if that depends on other conditions.
    fn fits(&self, device: &str) -> Option<bool> {
        let mut fits = (!self.conditions.is_empty()).then_some(true);
        for (key, value) in &self.conditions {
            let names: &[&str] = match key.as_str() {
                "OriginalName" => &[device],
                "Kind" | "Driver" => &["vxlan"],
                "Type" => &["vxlan", "ether"],
                // A virtual device is on no bus and has no burnt-in address.
                "Path" | "PermanentMACAddress" => &[],
                _ => {
                    fits = None;
                    continue;
                }
            };
            if !is_listed(value, names) {
                return Some(false);
            }
        }
        fits
    }
}

/// Whether one of the names matches one of the patterns; a leading `!` negates the whole list.
fn is_listed(list: &str, names: &[&str]) -> bool {
    let (negated, list) = match list.strip_prefix('!') {
        Some(rest) => (true, rest),
        None => (false, list),
    };
    let mut patterns = list.split_whitespace().filter_map(pattern);
    patterns.any(|pattern| names.iter().any(|name| pattern.is_match(name))) != negated
}

/// A shell's pattern with `*` and `?`.
fn pattern(glob: &str) -> Option<Regex> {
    let text = escape(glob).replace("\\*", ".*").replace("\\?", ".");
    Regex::new(&format!("^{text}$")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str, text: &str) {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_first_file_that_fits_decides() {
        let root = tempfile::tempdir().unwrap();
        let directories = ["etc", "usr"].map(|name| root.path().join(name));
        let [etc, usr] = &directories;
        let found = || effective(&directories, "flannel.1");
        assert_eq!(found(), None);
        let default = "[Match]\nOriginalName=*\n[Link]\nMACAddressPolicy=persistent\n";
        write(usr, "99-default.link", default);
        assert_eq!(found().as_deref(), Some("persistent"));
        let ours = "# MACAddressPolicy=random\n[Match]\nOriginalName=docker* flannel*\n[Link]\nMACAddressPolicy=none\n";
        write(usr, "50-selvage.link", ours);
        assert_eq!(found().as_deref(), Some("none"));
        // Hidden by a file of that name in a weightier directory, and by a link to nowhere.
        write(etc, "50-selvage.link", "[Match]\nOriginalName=!flannel*\n");
        assert_eq!(found().as_deref(), Some("persistent"));
        fs::remove_file(etc.join("50-selvage.link")).unwrap();
        std::os::unix::fs::symlink("/dev/null", etc.join("50-selvage.link")).unwrap();
        assert_eq!(found().as_deref(), Some("persistent"));
        // A drop-in overrules its file.
        let drop_in = "[Link]\nMACAddressPolicy=none\n";
        write(etc, "99-default.link.d/mac.conf", drop_in);
        assert_eq!(found().as_deref(), Some("none"));
        // Files for hardware are skipped; an unknown condition leaves the result open.
        write(
            etc,
            "10-lan.link",
            "[Match]\nPath=pci-*\n[Link]\nMACAddressPolicy=random\n",
        );
        assert_eq!(found().as_deref(), Some("none"));
        write(
            etc,
            "20-vm.link",
            "[Match]\nVirtualization=kvm\n[Link]\nMACAddressPolicy=random\n",
        );
        assert_eq!(found(), None);
    }
}
