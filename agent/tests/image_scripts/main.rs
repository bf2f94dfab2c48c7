//! The image's own scripts, as they are run: on a machine, in its initrd, and where releases are made. Need no root.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

mod compare;
mod formats;
mod oci;
mod release;
mod sbom;

/// What a script of the image prints, and whether it succeeds. `path` is its argument.
fn script(script: &str, path: &Path) -> (bool, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../image")
        .join(script);
    let output = Command::new(script).arg(path).output().expect("a script");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.success(), said)
}

#[test]
fn an_ssh_host_key_that_a_power_cut_left_empty_is_made_anew() {
    let directory = TempDir::new().expect("a directory");
    let key = directory.path().join("ssh_host_ed25519_key");
    let public = directory.path().join("ssh_host_ed25519_key.pub");
    let make = || {
        let (well, said) = script("mkosi.extra/usr/lib/selvage/ssh-host-key", &key);
        assert!(well, "{said}");
        said
    };
    let is_whole = || {
        let shown = Command::new("ssh-keygen")
            .arg("-y")
            .arg("-f")
            .arg(&key)
            .output();
        let shown = shown.expect("ssh-keygen, of openssh-client");
        let public = fs::read(&public).expect("its public half");
        shown.status.success() && shown.stdout.trim_ascii() == public.trim_ascii()
    };
    assert_eq!(make(), "");
    assert!(is_whole());
    let first = fs::read(&key).expect("a key");
    assert_eq!(make(), "");
    assert_eq!(fs::read(&key).expect("a key"), first, "a good one stays");

    fs::write(&key, "").expect("a power cut");
    fs::write(&public, "").expect("a power cut");
    assert_eq!(make(), "");
    assert!(is_whole());
    let unusable = PathBuf::from(format!("{}.unusable", key.display()));
    assert!(!unusable.exists(), "nothing to keep");

    fs::write(&key, &first[..first.len() / 2]).expect("a power cut");
    let said = make();
    assert!(
        said.contains("is no key that sshd can use: moved to"),
        "{said}"
    );
    assert!(is_whole());
    assert_eq!(
        fs::read(unusable).expect("the old one"),
        &first[..first.len() / 2]
    );
}

/// An ext4 file system with a file, as systemd-repart makes one.
fn file_system(directory: &Path) -> PathBuf {
    let image = directory.join("root.img");
    let files = directory.join("files");
    fs::create_dir(&files).expect("a directory");
    fs::write(files.join("file"), "hello\n").expect("a file");
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-d"])
        .arg(&files)
        .arg(&image)
        .arg("600M")
        .output()
        .expect("mke2fs, of e2fsprogs");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    image
}

/// Castagnoli's CRC-32 as ext4 has it: not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

/// Has the backups say what the kernel writes there when it grows a mounted file system: a journal is to be recovered.
fn grown_while_mounted(disk: &fs::File) {
    // Offsets in struct ext4_super_block: s_magic, s_feature_incompat, s_checksum.
    const MAGIC: usize = 0x38;
    const INCOMPAT: usize = 0x60;
    const CHECKSUM: usize = 0x3fc;
    for block in [32768, 98304] {
        let mut superblock = [0; 1024];
        disk.read_exact_at(&mut superblock, block * 4096)
            .expect("a backup");
        assert_eq!(superblock[MAGIC..][..2], [0x53, 0xef]);
        superblock[INCOMPAT] |= 4;
        let checksum = crc32c(&superblock[..CHECKSUM]).to_le_bytes();
        superblock[CHECKSUM..].copy_from_slice(&checksum);
        disk.write_all_at(&superblock, block * 4096)
            .expect("a backup");
    }
}

const MEND: &str = "mkosi.images/initrd/mkosi.extra/usr/lib/selvage/mend-root";

#[test]
fn a_torn_superblock_of_the_root_is_repaired_from_its_backup() {
    // The superblock has the sectors 2 and 3.
    for (name, at, damage, is_grown) in [
        ("the first sector is lost", 1024, vec![0; 512], false),
        ("the second sector is lost", 1536, vec![0; 512], false),
        ("both are", 1024, vec![0; 1024], false),
        ("a block count that is none", 1028, vec![0xff; 4], false),
        ("the second, of one that grew", 1536, vec![0; 512], true),
        ("both, of one that grew", 1024, vec![0; 1024], true),
    ] {
        let directory = TempDir::new().expect("a directory");
        let image = file_system(directory.path());
        let disk = fs::File::options()
            .read(true)
            .write(true)
            .open(&image)
            .expect("a disk");
        if is_grown {
            grown_while_mounted(&disk);
        }
        disk.write_all_at(&damage, at).expect("damage");
        let (well, said) = script(MEND, &image);
        assert!(well && said.contains(" is repaired"), "{name}: {said}");
        let check = Command::new("e2fsck")
            .args(["-f", "-n"])
            .arg(&image)
            .output();
        let check = check.expect("e2fsck, of e2fsprogs");
        assert!(check.status.success(), "{name}");
        let read = Command::new("debugfs")
            .args(["-R", "cat file"])
            .arg(&image)
            .output();
        assert_eq!(
            read.expect("debugfs, of e2fsprogs").stdout,
            b"hello\n",
            "{name}"
        );
    }
    let directory = TempDir::new().expect("a directory");
    let empty = directory.path().join("empty");
    let disk = fs::File::create(&empty).expect("a disk");
    disk.set_len(64 << 20).expect("a size");
    let (well, said) = script(MEND, &empty);
    assert!(
        !well && said.contains("CRITICAL: the root file system on "),
        "{said}"
    );
    // Somebody else's.
    let swap = Command::new("mkswap").arg(&empty).output();
    assert!(swap.expect("mkswap, of util-linux").status.success());
    let before = fs::read(&empty).expect("a disk");
    let (well, said) = script(MEND, &empty);
    assert!(!well && said.contains("has no ext4 file system"), "{said}");
    assert!(fs::read(&empty).expect("a disk") == before, "untouched");
}

#[test]
fn every_input_of_an_image_counts_with_its_mode_and_its_link() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let root = TempDir::new().expect("a directory");
    let path = |name: &str| root.path().join(name);
    let mode = |name: &str, mode| {
        fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).expect("a mode");
    };
    for directory in ["image/a", "units", "agent/data", "keys"] {
        fs::create_dir_all(path(directory)).expect("a directory");
    }
    for file in [
        "image/a/script",
        "units/a.service",
        "agent/data/table",
        "agent/selvage",
        "keys/update.pem",
    ] {
        fs::write(path(file), file).expect("a file");
        mode(file, 0o644);
    }
    for link in ["image/link", "units/link", "agent/data/link", "keys/link"] {
        symlink("one", path(link)).expect("a link");
    }
    let hash = |version: &str| {
        let inputs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../image/inputs");
        let (agent, keys) = (path("agent/selvage"), path("keys"));
        let output = Command::new(inputs)
            .arg(root.path())
            .args([agent.as_os_str(), version.as_ref(), keys.as_os_str()])
            .output()
            .expect("bash");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    };
    let mut last = hash("1");
    assert_eq!(hash("1"), last);
    let mut differs = |what: &str, version: &str| {
        let now = hash(version);
        assert_ne!(now, last, "{what}");
        last = now;
    };
    differs("the version", "2");
    for file in [
        "image/a/script",
        "units/a.service",
        "agent/data/table",
        "agent/selvage",
        "keys/update.pem",
    ] {
        fs::write(path(file), "changed").expect("a change");
        differs(file, "2");
        mode(file, 0o755);
        differs(file, "2");
    }
    for link in ["image/link", "units/link", "agent/data/link", "keys/link"] {
        fs::remove_file(path(link)).expect("a change");
        symlink("other", path(link)).expect("a link");
        differs(link, "2");
    }
    fs::rename(path("units/a.service"), path("units/b.service")).expect("a change");
    differs("a name", "2");
    fs::create_dir(path("image/empty")).expect("a change");
    differs("a directory", "2");
    mode("image/empty", 0o700);
    differs("its mode", "2");
}
