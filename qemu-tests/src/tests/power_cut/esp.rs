//! The ESP: its file system, and the boot entry that systemd-boot takes from it.

use std::{cmp::Reverse, collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use selvage::appliance::update::{running::Counter, version::Version};

use super::{
    judge::{Finding, Kind},
    slot::{self, Hash},
};

/// What fsck.vfat(8) says of a file system that is used as it is, without harm: a mark that it was not unmounted,
/// counts that are not up to date, clusters that belong to no file, a second table that nobody reads, and a second
/// boot sector without the mark.
const HARMLESS: [&str; 17] = [
    "fsck.fat ",
    "Dirty bit is set",
    "Automatically removing dirty bit",
    "Free cluster summary",
    "Free clusters: ",
    "Auto-correcting",
    "Reclaimed ",
    "Orphaned long file name part",
    "Auto-deleting",
    "FATs differ but appear to be intact",
    "Using first FAT",
    "There are differences between boot sector and its backup",
    "This is mostly harmless. Differences",
    "65:01/00",
    "Not automatically fixing this",
    "Leaving filesystem unchanged",
    "*** Filesystem was changed",
];

/// A boot entry.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Its file name.
    pub name: String,
    /// Its length.
    pub bytes: usize,
    /// The root hash of its `/usr`, if the file is one of those that a build made.
    pub whole: Option<Hash>,
    /// Whether systemd-boot takes it for one: it reads no more than the first sections.
    pub is_shown: bool,
}

impl Entry {
    fn version(&self) -> Option<Version> {
        let stem = self.name.strip_prefix("selvage_")?.strip_suffix(".efi")?;
        let version = stem.split_once('+').map_or(stem, |(version, _)| version);
        version.parse().ok()
    }
}

/// What an ESP holds.
#[derive(Debug, Clone)]
pub(super) struct Esp {
    /// Files whose names end as those of boot entries do; what begins with a dot is none.
    pub entries: Vec<Entry>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Looks at the file system in the file `esp`, having repaired it as each boot does before it uses it. `known` has the root
/// hash of each UKI that was built, by its SHA-256.
///
/// # Errors
/// When a program is missing.
pub(super) fn look(esp: &Path, known: &BTreeMap<Hash, Hash>) -> Result<Esp> {
    check(esp, "-a")?;
    let mut findings: Vec<Finding> = (complaints(&check(esp, "-n")?).into_iter())
        .map(|what| Finding::new(Kind::Esp, what))
        .collect();
    let mut entries = Vec::new();
    match list(esp)? {
        Err(error) => findings.push(Finding::new(Kind::Esp, error)),
        Ok(names) => {
            for name in names {
                entries.push(entry(esp, name, known)?);
            }
        }
    }
    findings.extend(
        (entries.iter().filter(|entry| entry.whole.is_none())).map(|entry| {
            let what = format!(
                "{} is no UKI that was built: {} bytes",
                entry.name, entry.bytes
            );
            Finding::new(Kind::BootEntry, what)
        }),
    );
    Ok(Esp { entries, findings })
}

fn check(esp: &Path, how: &str) -> Result<String> {
    let output = Command::new("fsck.vfat")
        .env("PATH", search_path())
        .arg(how)
        .arg(esp)
        .output()
        .context("failed to run fsck.vfat (package dosfstools)")?;
    // 1: something is to be said; more: it could not look.
    let (said, error) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    match output.status.code() {
        Some(0 | 1) => Ok(format!("{said}\n{error}")),
        _ => Ok(format!("{error}\nfsck.vfat: {}", output.status)),
    }
}

/// Where programs for the administrator are; a user's path may leave it out.
pub(super) fn search_path() -> String {
    format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    )
}

/// The lines of a report that tell of damage, with the file that each is about.
fn complaints(report: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut file = "";
    for line in report.lines() {
        // The name of a file stands before what is wrong with it, which is indented; so are the two boot sectors'
        // bytes.
        let text = line.trim();
        if text.starts_with('/') {
            file = text;
            continue;
        }
        let is_summary = text.contains(" files, ") && text.contains(" clusters");
        if text.is_empty() || is_summary || HARMLESS.iter().any(|start| text.starts_with(start)) {
            continue;
        }
        found.push(
            format!("{file}: {text}")
                .trim_start_matches(": ")
                .to_owned(),
        );
    }
    found
}

fn mtools(program: &str, esp: &Path, arguments: &[&str]) -> Result<std::process::Output> {
    Command::new(program)
        // It asks nobody, and does without the geometry of floppy disks.
        .env("MTOOLS_SKIP_CHECK", "1")
        .arg("-i")
        .arg(esp)
        .args(arguments)
        .output()
        .with_context(|| format!("failed to run {program} (package mtools)"))
}

/// The names of the boot entries, or why they cannot be read.
fn list(esp: &Path) -> Result<Result<Vec<String>, String>> {
    let output = mtools("mdir", esp, &["-b", "::/EFI/Linux"])?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Ok(Err(format!("the boot entries cannot be listed: {error}")));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let names = (text.lines())
        .filter_map(|line| line.trim().strip_prefix("::/EFI/Linux/"))
        .filter(|name| name.to_ascii_lowercase().ends_with(".efi") && !name.starts_with('.'));
    Ok(Ok(names.map(ToOwned::to_owned).collect()))
}

fn entry(esp: &Path, name: String, known: &BTreeMap<Hash, Hash>) -> Result<Entry> {
    let path = format!("::/EFI/Linux/{name}");
    let output = mtools("mcopy", esp, &["-n", &path, "-"])?;
    ensure!(
        output.status.code().is_some(),
        "mcopy of {name}: {}",
        output.status
    );
    let file = output.stdout;
    let whole = known.get(&slot::sha256(&file)).copied();
    // src/boot/efi/boot.c, config_load_type2_entries: a file without an os-release is left out.
    let release = slot::section(&file, ".osrel").map(String::from_utf8_lossy);
    let is_shown = release.is_ok_and(|text| text.contains("PRETTY_NAME="));
    Ok(Entry {
        name,
        bytes: file.len(),
        whole,
        is_shown,
    })
}

/// The entry that systemd-boot starts: the newest one that has tries left or needs none, else the newest at all
/// (src/boot/efi/boot.c, config_entry_compare).
pub(super) fn chosen(entries: &[Entry]) -> Option<&Entry> {
    let left = |entry: &Entry| Counter::of_name(&entry.name).map(|counter| counter.left);
    let mut shown: Vec<_> = entries.iter().filter(|entry| entry.is_shown).collect();
    shown.sort_by_cached_key(|entry| (left(entry) == Some(0), Reverse(entry.version())));
    shown.first().copied()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn entry(name: &str, is_shown: bool) -> Entry {
        Entry {
            name: name.into(),
            bytes: 0,
            whole: None,
            is_shown,
        }
    }

    #[test]
    fn the_newest_entry_with_tries_is_chosen() {
        let choice = |names: &[(&str, bool)]| {
            let entries: Vec<_> = names
                .iter()
                .map(|(name, shown)| entry(name, *shown))
                .collect();
            chosen(&entries).map(|entry| entry.name.clone())
        };
        let old = ("selvage_1.9.efi", true);
        for (other, expected) in [
            (("selvage_1.10+3-0.efi", true), "selvage_1.10+3-0.efi"),
            (("selvage_1.10+0-3.efi", true), "selvage_1.9.efi"),
            (("selvage_1.10+3-0.efi", false), "selvage_1.9.efi"),
            (("selvage_1.8.efi", true), "selvage_1.9.efi"),
        ] {
            assert_eq!(choice(&[old, other]).as_deref(), Some(expected));
            assert_eq!(choice(&[other, old]).as_deref(), Some(expected));
        }
        assert_eq!(
            choice(&[("selvage_1.1+0-3.efi", true)]).as_deref(),
            Some("selvage_1.1+0-3.efi")
        );
        assert_eq!(choice(&[]), None);
    }

    #[test]
    fn damage_is_told_from_what_is_usual_after_a_cut() {
        let usual = "fsck.fat 4.2 (2021-01-31)\n\
                     There are differences between boot sector and its backup.\n\
                     This is mostly harmless. Differences: (offset:original/backup)\n  65:01/00\n  \
                     Not automatically fixing this.\n\
                     Dirty bit is set. Fs was not properly unmounted and some data may be corrupt.\n \
                     Automatically removing dirty bit.\n\
                     Reclaimed 12 unused clusters (49152 bytes).\n\nLeaving filesystem unchanged.\n\
                     /x: 9 files, 3000/130000 clusters\n";
        assert_eq!(complaints(usual), [""; 0]);
        let bad = "/EFI/Linux/a.efi and\n/EFI/Linux/b.efi\n  share clusters.\n  Truncating second to 0 bytes.\n";
        assert_eq!(
            complaints(bad),
            [
                "/EFI/Linux/b.efi: share clusters.",
                "/EFI/Linux/b.efi: Truncating second to 0 bytes."
            ]
        );
    }

    /// A file system with an entry that is whole, one that is empty and one that is hidden.
    #[test]
    fn entries_are_read_from_a_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let esp = dir.path().join("esp");
        std::fs::File::create(&esp)
            .unwrap()
            .set_len(64 << 20)
            .unwrap();
        let made = Command::new("mkfs.vfat")
            .env("PATH", search_path())
            .arg("-F32")
            .arg(&esp)
            .output();
        if !made.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: there is no mkfs.vfat here (package dosfstools)");
            return;
        }
        let uki = vec![5; 20_000];
        let known = BTreeMap::from([(slot::sha256(&uki), [1; 32])]);
        for (name, contents) in [
            ("selvage_1.efi", &uki[..]),
            ("selvage_2+3-0.efi", &[]),
            (".#selvage_3.efi", &uki[..9]),
        ] {
            let path = dir.path().join("file");
            std::fs::write(&path, contents).unwrap();
            let _ = mtools("mmd", &esp, &["-D", "s", "::/EFI", "::/EFI/Linux"]).unwrap();
            let copied = mtools(
                "mcopy",
                &esp,
                &[path.to_str().unwrap(), &format!("::/EFI/Linux/{name}")],
            );
            assert!(copied.unwrap().status.success());
        }
        let found = look(&esp, &known).unwrap();
        let whole: Vec<_> = (found.entries.iter())
            .map(|entry| (entry.name.as_str(), entry.whole.is_some()))
            .collect();
        assert_eq!(
            whole,
            [("selvage_1.efi", true), ("selvage_2+3-0.efi", false)]
        );
        let findings: Vec<_> = found.findings.iter().map(ToString::to_string).collect();
        assert_eq!(
            findings,
            ["boot entry: selvage_2+3-0.efi is no UKI that was built: 0 bytes"]
        );
        // Names that have clusters, and tables that do not: the boot's repair takes the contents, of the boot entry too.
        let free = |entries: std::ops::Range<u64>| {
            let disk = std::fs::File::options().read(true).write(true).open(&esp);
            let disk = disk.unwrap();
            let mut boot = [0; 512];
            disk.read_exact_at(&mut boot, 0).unwrap();
            let (reserved, size) = (
                u64::from(u16::from_le_bytes([boot[14], boot[15]])),
                u64::from(u32::from_le_bytes(boot[36..40].try_into().unwrap())),
            );
            for table in [reserved, reserved + size] {
                for entry in entries.clone() {
                    disk.write_all_at(&[0; 4], table * 512 + entry * 4).unwrap();
                }
            }
        };
        // 2 to 4 are the three directories.
        free(5..200);
        let report = check(&esp, "-n").unwrap();
        assert!(report.contains("Contains a free cluster"), "{report}");
        let found = look(&esp, &known).unwrap();
        let findings: Vec<_> = found.findings.iter().map(ToString::to_string).collect();
        assert_eq!(
            findings,
            [
                "boot entry: selvage_1.efi is no UKI that was built: 0 bytes",
                "boot entry: selvage_2+3-0.efi is no UKI that was built: 0 bytes"
            ]
        );
        // Both tables of clusters, and all that lies behind them.
        std::fs::write(&esp, vec![0; 1 << 20]).unwrap();
        assert!(!look(&esp, &known).unwrap().findings.is_empty());
    }
}
