//! `image/formats`: what clouds, hypervisors and PXE take is the same each time it is made.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use ring::digest::{SHA256, digest};
use serde_json::json;
use tempfile::TempDir;

const CMDLINE: &str = "usrhash=4294daa7 root=PARTLABEL=selvage-root rootfstype=ext4 rw fsck.repair=yes \
                       mount.usr=/dev/mapper/usr mount.usrfstype=erofs quiet\n";

fn hex(bytes: &[u8]) -> String {
    let digest = digest(&SHA256, bytes);
    let bytes = digest.as_ref().iter();
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

/// A small image of version 1.0: a disk of five MiB and a half with something in it, and the parts of an update.
fn image(directory: &Path) {
    let update = directory.join("update");
    fs::create_dir_all(&update).expect("a directory");
    let mut disk = vec![0; 11 << 19];
    for (at, byte) in disk.iter_mut().enumerate().skip(70_000).take(100_000) {
        *byte = u8::try_from(at % 251).expect("a byte");
    }
    let mut files = Vec::new();
    for part in ["usr", "usr-verity"] {
        let bytes = part.repeat(1001);
        let packed = update.join(format!("{part}.zst"));
        fs::write(directory.join(part), &bytes).expect("a file");
        let zstd = Command::new("zstd")
            .args(["--quiet", "-o"])
            .arg(&packed)
            .arg(directory.join(part))
            .status();
        assert!(zstd.expect("zstd").success());
        files.push(json!({
            "part": part,
            "name": format!("selvage_1.0/{part}.zst"),
            "unpacked_sha256": hex(bytes.as_bytes()),
        }));
    }
    let described = json!({"version": "1.0", "files": files}).to_string();
    for (name, bytes) in [
        ("selvage.raw", disk.as_slice()),
        ("selvage.vmlinuz", b"kernel"),
        // Not a multiple of four, where the next archive has to begin.
        ("selvage.initrd", b"initrd."),
        ("selvage.cmdline", CMDLINE.as_bytes()),
        (
            "build.json",
            br#"{"architecture": "x86-64", "source_date_epoch": 1}"#,
        ),
        ("update/files.json", described.as_bytes()),
        ("update/selvage_1.0.spdx.json", b"{}"),
    ] {
        fs::write(directory.join(name), bytes).expect("a file");
    }
}

/// Runs the script under a umask, and gives what it made by name.
fn formats(umask: &str, image: &Path, into: &Path) -> BTreeMap<String, Vec<u8>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../image/formats");
    let output = Command::new("sh")
        .args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")])
        .args([&script, image, into])
        .output()
        .expect("python3");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let made = fs::read_dir(into).expect("a directory").map(|entry| {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_string_lossy().into_owned();
        (name, fs::read(entry.path()).expect("a file"))
    });
    made.collect()
}

#[test]
fn every_format_is_the_same_bytes_each_time() {
    let directory = TempDir::new().expect("a directory");
    let built = directory.path().join("image");
    image(&built);
    // Of a version whose name begins as this one's does.
    let first = directory.path().join("first");
    fs::create_dir(&first).expect("a directory");
    fs::write(first.join("selvage_1.0.1.qcow2"), "").expect("a file");
    let first = formats("022", &built, &first);
    let names: Vec<_> = first.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "SHA256SUMS",
            "manifest.json",
            "selvage_1.0.ova",
            "selvage_1.0.pxe.cmdline",
            "selvage_1.0.pxe.initrd",
            "selvage_1.0.pxe.ipxe",
            "selvage_1.0.pxe.vmlinuz",
            "selvage_1.0.qcow2",
            "selvage_1.0.raw.zst",
            "selvage_1.0.spdx.json",
            "selvage_1.0.tar.gz",
            "selvage_1.0.vhd",
            "selvage_1.0.vhdx",
            "selvage_1.0.vmdk",
        ]
    );
    // Random are a VMDK's content ID, a VHD's and a VHDX's identities, and the number that a VHDX's log begins with.
    // The disk's mode, and those of the files that the script makes, are what the umask left.
    let disk = built.join("selvage.raw");
    for (umask, mode) in [("077", 0o600), ("002", 0o664), ("022", 0o640)] {
        fs::set_permissions(&disk, fs::Permissions::from_mode(mode)).expect("another mode");
        let again = formats(umask, &built, &directory.path().join("again"));
        for (name, bytes) in &first {
            assert!(again.get(name) == Some(bytes), "{name} differs");
        }
    }

    let text = |name: &str| String::from_utf8_lossy(&first[name]).into_owned();
    assert_eq!(
        text("selvage_1.0.pxe.cmdline"),
        "rw mount.usr=/dev/mapper/usr mount.usrfstype=erofs quiet root=tmpfs \
         systemd.mask=systemd-growfs-root.service systemd.mask=efi.automount \
         systemd.mask=selvage-update.timer systemd.mask=selvage-update-settle.service\n"
    );
    assert!(text("selvage_1.0.pxe.ipxe").contains("initrd=selvage_1.0.pxe.initrd "));
    let initrd = text("selvage_1.0.pxe.initrd");
    assert!(initrd.starts_with("initrd.\x00070701"));
    for part in [
        "usr/lib/selvage/pxe/usr.raw\0",
        "usr/lib/selvage/pxe/usr.verity\0",
        "USRHASH=4294daa7\n",
        "usr/lib/systemd/system/selvage-pxe-usr.service\0",
        "TRAILER!!!\0",
    ] {
        assert!(initrd.contains(part), "{part:?} is not in the initrd");
    }
}
