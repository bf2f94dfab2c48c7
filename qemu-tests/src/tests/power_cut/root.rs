//! The root partition: its ext4, and what of ours is in it.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    esp::search_path,
    gpt::{CASTAGNOLI, crc32, number32},
    judge::{Finding, Kind},
};

/// Where the super block is, and the number in it that makes it one.
const SUPER_BLOCK: u64 = 1024;
const MAGIC: u32 = 0xef53;
/// `metadata_csum` among the features without which nothing is written.
const CHECKSUMS: u32 = 0x400;
/// The super block's own checksum is its last field (fs/ext4/ext4.h, struct ext4_super_block).
const CHECKSUM_AT: usize = 1020;

/// Parts of the lines in which e2fsck(8) tells what the kernel does in its own way at a mount: it replays the
/// journal, removes the inodes that no name was left for, and counts what is free. Features that the backup does not
/// have are those by which the kernel marks a journal and orphans in use; they have the whole file system checked, and then
/// what names the orphans that it has just removed: e2fsck 1.47 looks at that block before it is written.
const USUAL: [&str; 11] = [
    ": recovering journal",
    "primary superblock features different from backup, check forced",
    "Feature orphan_present is set but orphan file is clean",
    "CLEARED.",
    "Clearing orphaned inode",
    "Truncating orphaned inode",
    "Orphan file (inode ",
    "Setting free inodes count to",
    "Setting free blocks count to",
    ": clean, ",
    " files (",
];

/// The marker of a machine whose provisioning is complete.
const PROVISIONED: &str = "/.selvage/provisioned";
/// The layer of /etc that is this machine's.
const ETC: &str = "/.selvage/etc";
/// What we keep of our own.
const STATE: &str = "/var/lib/selvage";
/// No file of ours that is judged is larger; what is downloaded is.
const MOST_BYTES: u64 = 1 << 20;
/// Directories below ours are no deeper.
const DEEPEST: usize = 6;

/// Judges the root partition in the file `root`, which is changed by that: the journal is replayed.
///
/// # Errors
/// When a program is missing.
pub(super) fn judge(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(root)
        .with_context(|| format!("failed to open {}", root.display()))?;
    if let Err(error) = super_block(&file) {
        findings.push(Finding::new(Kind::RootSuperBlock, format!("{error:#}")));
        // The rest is judged as it is once that is mended.
        e2fsck(root, &["-f", "-y"])?;
    }
    if let Some(what) = check(root)? {
        findings.push(Finding::new(Kind::RootFileSystem, what));
        return Ok(findings);
    }
    if stat(root, PROVISIONED)?.is_none() {
        // The next boot clears everything and provisions the machine.
        return Ok(findings);
    }
    findings.extend(host_keys(root)?);
    for file in files(root, STATE)? {
        findings.extend(state(root, &file)?);
    }
    Ok(findings)
}

/// What the kernel wants of a super block before it looks at anything else, the journal among it (fs/ext4/super.c,
/// ext4_load_super).
fn super_block(root: &File) -> Result<()> {
    let mut block = [0; 1024];
    root.read_exact_at(&mut block, SUPER_BLOCK)
        .context("failed to read the super block")?;
    ensure!(
        number32(&block, 56) & 0xffff == MAGIC,
        "no super block of ext4"
    );
    let checked = number32(&block, 100) & CHECKSUMS != 0;
    let (body, _) = block.split_at(CHECKSUM_AT);
    ensure!(
        !checked || crc32(CASTAGNOLI, body) == number32(&block, CHECKSUM_AT),
        "the checksum of the super block is wrong: it is torn, and the kernel does not mount it"
    );
    Ok(())
}

/// Replays the journal and clears orphans as a mount does, and says what is wrong then.
fn check(root: &Path) -> Result<Option<String>> {
    let (status, said) = e2fsck(root, &["-p"])?;
    let harm = said.lines().find(|line| !is_usual(line));
    if status & !1 != 0 || harm.is_some() {
        return Ok(Some(format!("e2fsck -p: {status}: {}", short(&said))));
    }
    let (status, said) = e2fsck(root, &["-f", "-n"])?;
    Ok((status != 0).then(|| format!("e2fsck -fn: {status}: {}", short(&said))))
}

/// Whether a line of `e2fsck -p` tells of nothing but what a mount does as well.
fn is_usual(line: &str) -> bool {
    line.trim().is_empty() || USUAL.iter().any(|part| line.contains(part))
}

fn e2fsck(root: &Path, arguments: &[&str]) -> Result<(i32, String)> {
    let output = Command::new("e2fsck")
        .env("PATH", search_path())
        .args(arguments)
        .arg(root)
        .output()
        .context("failed to run e2fsck (package e2fsprogs)")?;
    let said = [output.stdout, output.stderr].concat();
    let status = output.status.code().unwrap_or(-1);
    Ok((status, String::from_utf8_lossy(&said).into_owned()))
}

fn short(said: &str) -> String {
    let lines = said.lines().map(str::trim).filter(|line| {
        !line.is_empty() && !line.starts_with("Pass ") && !line.starts_with("e2fsck 1.")
    });
    lines.take(4).collect::<Vec<_>>().join("; ")
}

/// A file in the file system.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    path: String,
    size: u64,
}

fn debugfs(root: &Path, request: &str) -> Result<Vec<u8>> {
    let output = Command::new("debugfs")
        .env("PATH", search_path())
        .args(["-R", request])
        .arg(root)
        .output()
        .context("failed to run debugfs (package e2fsprogs)")?;
    Ok(output.stdout)
}

/// A directory's names with their mode and size, as `/INODE/MODE/UID/GID/NAME/SIZE/`; nothing if there is no such
/// directory.
fn list(root: &Path, directory: &str) -> Result<Vec<(String, u32, u64)>> {
    let text = debugfs(root, &format!("ls -p {directory}"))?;
    let text = String::from_utf8_lossy(&text);
    let entry = |line: &str| {
        let mut fields = line.split('/').skip(2);
        let mode = u32::from_str_radix(fields.next()?, 8).ok()?;
        let name = fields.nth(2)?.to_owned();
        let size = fields.next()?.parse().unwrap_or(0);
        Some((name, mode, size))
    };
    let entries = text.lines().filter_map(entry);
    Ok(entries
        .filter(|(name, ..)| !matches!(name.as_str(), "" | "." | ".."))
        .collect())
}

fn is(mode: u32, kind: u32) -> bool {
    mode & 0o170_000 == kind
}

fn stat(root: &Path, path: &str) -> Result<Option<u64>> {
    let (directory, wanted) = path.rsplit_once('/').unwrap_or_default();
    let found = list(root, directory)?;
    let found = found.into_iter().find(|(name, ..)| name == wanted);
    Ok(found.map(|(_, _, size)| size))
}

/// All regular files below a directory.
fn files(root: &Path, directory: &str) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    let mut level = vec![directory.to_owned()];
    for _ in 0..DEEPEST {
        let mut next = Vec::new();
        for directory in &level {
            for (name, mode, size) in list(root, directory)? {
                let path = format!("{directory}/{name}");
                if is(mode, 0o040_000) {
                    next.push(path);
                } else if is(mode, 0o100_000) {
                    found.push(Found { path, size });
                }
            }
        }
        level = next;
    }
    Ok(found)
}

/// sshd starts with no key that is empty, and nobody can log in.
fn host_keys(root: &Path) -> Result<Vec<Finding>> {
    let directory = format!("{ETC}/ssh");
    let keys = list(root, &directory)?.into_iter().filter(|(name, ..)| {
        name.starts_with("ssh_host_") && (name.ends_with("_key") || name.ends_with("_key.pub"))
    });
    Ok(keys
        .filter(|(_, _, size)| *size == 0)
        .map(|(name, ..)| Finding::new(Kind::HostKey, format!("/etc/ssh/{name} is empty")))
        .collect())
}

/// What is wrong with a file of ours.
fn state(root: &Path, file: &Found) -> Result<Option<Finding>> {
    let Found { path, size } = file;
    let name = path.rsplit('/').next().unwrap_or_default();
    // Hidden files are those that are being written. A download goes on where it broke off, and all of it is hashed
    // once more. A lock has no contents.
    let unfinished = name.starts_with('.') || name.ends_with(".part") || name.ends_with(".tag");
    if unfinished || name.ends_with("lock") {
        return Ok(None);
    }
    let finding = |what: String| Ok(Some(Finding::new(Kind::State, what)));
    if *size == 0 {
        return finding(format!("{path} is empty"));
    }
    if name.ends_with(".json") && *size <= MOST_BYTES {
        let contents = debugfs(root, &format!("cat {path}"))?;
        if let Err(error) = serde_json::from_slice::<serde_json::Value>(&contents) {
            return finding(format!("{path} is no JSON: {error}"));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file system with the contents of the directory `files`.
    fn root(dir: &Path, files: &[(&str, &str)]) -> std::path::PathBuf {
        let tree = dir.join("tree");
        for (path, contents) in files {
            let path = tree.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, contents).unwrap();
        }
        let root = dir.join("root");
        File::create(&root).unwrap().set_len(64 << 20).unwrap();
        let status = Command::new("mke2fs")
            .env("PATH", search_path())
            .args(["-q", "-F", "-t", "ext4", "-O", "metadata_csum", "-d"])
            .args([&tree, &root])
            .status();
        assert!(status.unwrap().success());
        root
    }

    fn said(root: &Path) -> Vec<String> {
        judge(root)
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    const GOOD: [(&str, &str); 7] = [
        (PROVISIONED, "2026-11-29T10:00:00Z\n"),
        ("/.selvage/etc/ssh/ssh_host_ed25519_key", "key"),
        ("/.selvage/etc/ssh/moduli", ""),
        ("/var/lib/selvage/update/state.json", "{}"),
        ("/var/lib/selvage/update/lock", ""),
        ("/var/lib/selvage/update/.state.json1x", ""),
        ("/var/lib/selvage/update/download/selvage_1/x.zst.part", ""),
    ];

    #[test]
    fn half_written_state_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(said(&root(dir.path(), &GOOD)), [""; 0]);
        for (path, contents, expected) in [
            (
                "/.selvage/etc/ssh/ssh_host_ed25519_key",
                "",
                "host key: /etc/ssh/ssh_host_ed25519_key is empty",
            ),
            (
                "/var/lib/selvage/update/state.json",
                "{\"a\": 1",
                "state: /var/lib/selvage/update/state.json is no JSON",
            ),
            (
                "/var/lib/selvage/update/state.json",
                "",
                "state: /var/lib/selvage/update/state.json is empty",
            ),
            (
                "/var/lib/selvage/lease",
                "",
                "state: /var/lib/selvage/lease is empty",
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let files = [&GOOD[..], &[(path, contents)]].concat();
            let found = said(&root(dir.path(), &files));
            assert!(
                found.len() == 1 && found[0].starts_with(expected),
                "{found:?}"
            );
        }
    }

    #[test]
    fn before_it_is_provisioned_nothing_of_ours_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(
            dir.path(),
            &[("/.selvage/etc/ssh/ssh_host_ed25519_key", "")],
        );
        assert_eq!(said(&root), [""; 0]);
    }

    /// What e2fsck 1.47.0 says of a whole file system on which a directory was removed while a program had it open. The
    /// kernel says `1 orphan inode deleted` and mounts it.
    #[test]
    fn a_directory_in_use_that_had_no_name_left_is_no_damage() {
        let said = "selvage-root: recovering journal
            selvage-root: Clearing orphaned inode 13 (uid=0, gid=0, mode=041777, size=1024)
            selvage-root primary superblock features different from backup, check forced.
            selvage-root: Orphan file (inode 12) block 0 is not clean.
            CLEARED.
            selvage-root: 12/16384 files (0.0% non-contiguous), 9545/65536 blocks";
        let harm: Vec<_> = said.lines().filter(|line| !is_usual(line)).collect();
        assert_eq!(harm, [""; 0]);
        assert!(!is_usual("selvage-root: Inode 13 has illegal block(s)."));
    }

    #[test]
    fn a_torn_super_block_is_told_from_other_damage() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(dir.path(), &GOOD);
        let file = OpenOptions::new().write(true).open(&root).unwrap();
        // s_kbytes_written, in the first of the two sectors; the checksum is in the second.
        file.write_all_at(&[9], SUPER_BLOCK + 376).unwrap();
        let found = said(&root);
        assert!(
            found.len() == 1 && found[0].starts_with("root super block: the checksum"),
            "{found:?}"
        );
        assert_eq!(said(&root), [""; 0], "e2fsck mended it");
        // The inode of the root directory, in the table of inodes somewhere in the first MiB behind the descriptors.
        file.write_all_at(&[0xff; 512 << 10], 8192).unwrap();
        let found = said(&root);
        assert!(
            found
                .iter()
                .any(|one| one.starts_with("root file system: e2fsck")),
            "{found:?}"
        );
    }
}
