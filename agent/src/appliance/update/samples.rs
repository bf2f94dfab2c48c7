//! What tests of updates share: keys, releases and their index, and a release server that fails when it is told to.
//!
//! Names nothing of this crate, so that the tests in namespaces have it as well.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use ring::signature::{Ed25519KeyPair, KeyPair};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::{Value, json};

#[path = "samples/server.rs"]
pub(crate) mod server;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A key made of a number.
pub(crate) fn signer(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

/// Its public half as `openssl pkey -pubout` writes it.
pub(crate) fn public_pem(key: &Ed25519KeyPair) -> String {
    let mut der = vec![
        0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
    ];
    der.extend_from_slice(key.public_key().as_ref());
    format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        STANDARD.encode(der)
    )
}

/// Puts the key of [`signer`] 1 among the machine's.
pub(crate) fn install_key(root: &Path) {
    let directory = root.join("usr/lib/selvage/update-keys.d");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("test.pem"), public_pem(&signer(1))).unwrap();
}

/// The partition UUID in the names of the samples' files.
pub(crate) const UUID: &str = "8484680c-9521-48c6-9c11-b0720656f69e";

/// A release server's files by their path, without the leading slash.
pub(crate) type Site = BTreeMap<String, Vec<u8>>;

/// Bytes that do not compress well, from a number.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut seed = seed | 1;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        // xorshift64 (Marsaglia 2003).
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        bytes.extend(seed.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The machines that run this test, as a PE file names them.
const MACHINE: u16 = if cfg!(target_arch = "aarch64") {
    0xaa64
} else {
    0x8664
};

/// A file that is a UKI as far as its headers say: one section, from byte 512 to the end.
pub(crate) fn uki(seed: u64, length: u32) -> Vec<u8> {
    let mut bytes = noise(seed, usize::try_from(length).unwrap());
    bytes[..512].fill(0);
    let data = length - 512;
    bytes[..2].copy_from_slice(b"MZ");
    bytes[0x3c..0x40].copy_from_slice(&64_u32.to_le_bytes());
    bytes[64..68].copy_from_slice(b"PE\0\0");
    bytes[68..70].copy_from_slice(&MACHINE.to_le_bytes());
    bytes[70] = 1;
    // The size in memory, and size and place in the file.
    bytes[96..100].copy_from_slice(&data.to_le_bytes());
    bytes[104..108].copy_from_slice(&data.to_le_bytes());
    bytes[108..112].copy_from_slice(&512_u32.to_le_bytes());
    bytes
}

/// One entry of an index, with its files added to the site.
pub(crate) fn release(version: &str, site: &mut Site) -> Value {
    release_for(MACHINE, version, site)
}

/// The same, for these machines.
pub(crate) fn release_for(machine: u16, version: &str, site: &mut Site) -> Value {
    let stem = format!("selvage_{version}");
    let files: Vec<Value> = [
        (
            "usr-verity",
            format!("{stem}_{UUID}.usr-verity.raw"),
            20_000,
        ),
        ("usr", format!("{stem}_{UUID}.usr.raw"), 300_000),
        ("uki", format!("{stem}.efi"), 50_000),
    ]
    .into_iter()
    .map(|(part, name, size)| {
        let seed = version.bytes().chain(part.bytes()).map(u64::from).sum();
        let unpacked = match part {
            "uki" => {
                let mut uki = uki(seed, size);
                uki[68..70].copy_from_slice(&machine.to_le_bytes());
                uki
            }
            _ => noise(seed, usize::try_from(size).unwrap()),
        };
        let packed = compress_to_vec(&unpacked[..], CompressionLevel::Fastest);
        let path = format!("{stem}/{name}.zst");
        let file = json!({
            "part": part,
            "name": path,
            "size": packed.len(),
            "sha256": hex(digest(&SHA256, &packed).as_ref()),
            "unpacked_size": unpacked.len(),
            "unpacked_sha256": hex(digest(&SHA256, &unpacked).as_ref()),
        });
        site.insert(path, packed);
        file
    })
    .collect();
    json!({
        "version": version,
        "date": "2026-11-28T10:00:00Z",
        "severity": "normal",
        "roll_out_seconds": 0,
        "notes": "what is new",
        "files": files,
    })
}

/// A root with a key and a version, and `[update]` as in the text.
pub(crate) fn machine(version: &str, settings: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    furnish(root.path(), version, settings);
    root
}

/// Makes a directory such a root.
pub(crate) fn furnish(root: &Path, version: &str, settings: &str) {
    install_key(root);
    for directory in [
        "etc/selvage",
        "efi/EFI/Linux",
        "usr/lib/systemd",
        "usr/bin",
        "dev",
    ] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    let release = format!("IMAGE_ID=selvage\nIMAGE_VERSION={version}\n");
    std::fs::write(root.join("usr/lib/os-release"), release).unwrap();
    let settings = format!("[update]\n{settings}\n");
    std::fs::write(root.join("etc/selvage/agent.toml"), settings).unwrap();
    let entry = root.join(format!("efi/EFI/Linux/selvage_{version}.efi"));
    std::fs::write(entry, uki(1, 1000)).unwrap();
    for (device, label, size) in [
        ("vda2", format!("selvage_{version}"), 524_288),
        ("vda3", format!("selvage_{version}_verity"), 32_768),
        ("vda4", "_empty".to_owned(), 524_288),
        ("vda5", "_empty".to_owned(), 32_768),
    ] {
        partition(root, device, &label, size);
    }
    // Does what the image's transfers say, as far as the tests look.
    program(
        &root.join("usr/lib/systemd/systemd-sysupdate"),
        &format!(
            "set -eu; root={root}; version=$4; staging=$root/var/lib/selvage/update/staging
             echo \"Selected update '$version' for install.\"; echo 'Imported 50%.' >&2
             [ \"$1 $2 $3\" = \"--definitions=$root/usr/lib/sysupdate.d --no-pager update\" ]
             cp $staging/selvage_${{version}}_*.usr.raw $root/dev/vda4; cp $staging/selvage_${{version}}_*.usr-verity.raw $root/dev/vda5
             sys=$root/sys/class/block
             echo PARTNAME=selvage_$version >$sys/vda4/uevent; echo PARTNAME=selvage_${{version}}_verity >$sys/vda5/uevent
             cp $staging/selvage_$version.efi $root/efi/EFI/Linux/selvage_$version+0-0.efi",
            root = root.display()
        ),
    );
    program(
        &root.join("usr/bin/systemctl"),
        &format!("echo $* >>{}/systemctl", root.display()),
    );
}

/// A partition of so many bytes, as `/sys` and `/dev` of a root show it. Its content is empty.
pub(crate) fn partition(root: &Path, device: &str, label: &str, size: u64) {
    let directory = root.join("sys/class/block").join(device);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("uevent"), format!("PARTNAME={label}\n")).unwrap();
    std::fs::write(directory.join("size"), format!("{}\n", size / 512)).unwrap();
    std::fs::write(root.join("dev").join(device), "").unwrap();
}

/// A program in shell.
pub(crate) fn program(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    // Renamed into its place: another test's child, between fork and exec, may hold the one being written open.
    let new = path.with_extension("new");
    std::fs::write(&new, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// The index of the channel `stable` and its signature, put into the site.
pub(crate) fn publish(site: &mut Site, serial: u64, releases: &[Value]) {
    let index = json!({
        "format": 1,
        "channel": "stable",
        "serial": serial,
        "issued": "2026-11-29T10:00:00Z",
        "releases": releases,
    });
    let text = serde_json::to_vec(&index).unwrap();
    site.insert(
        "stable.json.sig".to_owned(),
        signer(1).sign(&text).as_ref().to_vec(),
    );
    site.insert("stable.json".to_owned(), text);
}
