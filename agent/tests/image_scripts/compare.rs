//! `image/compare`: where two builds differ.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A disk with a GPT (UEFI specification, 5.3) of two partitions of a sector each, `first` and `second`, at the
/// sectors 40 and 41.
fn disk() -> Vec<u8> {
    let mut disk = vec![0_u8; 64 * 512];
    disk[512..520].copy_from_slice(b"EFI PART");
    // Where the entries are, how many, and how long each is.
    disk[584..592].copy_from_slice(&2_u64.to_le_bytes());
    disk[592..596].copy_from_slice(&4_u32.to_le_bytes());
    disk[596..600].copy_from_slice(&128_u32.to_le_bytes());
    for (at, (label, sector)) in [("first", 40_u64), ("second", 41)].iter().enumerate() {
        let entry = &mut disk[1024 + at * 128..][..128];
        entry[32..40].copy_from_slice(&sector.to_le_bytes());
        entry[40..48].copy_from_slice(&sector.to_le_bytes());
        for (place, unit) in label.encode_utf16().enumerate() {
            entry[56 + place * 2..][..2].copy_from_slice(&unit.to_le_bytes());
        }
    }
    disk
}

fn compare(root: &Path) -> (bool, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../image/compare");
    let output = Command::new(script)
        .args([root.join("a"), root.join("b")])
        // Where there is diffoscope, it would have its say.
        .env("PATH", "/usr/sbin:/usr/bin")
        .output()
        .expect("python3");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.success(), said)
}

#[test]
fn the_first_difference_of_two_builds_is_named_with_its_partition() {
    let directory = TempDir::new().expect("a directory");
    let root = directory.path();
    let write = |name: &str, bytes: &[u8]| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, bytes).expect("a file");
    };
    for build in ["a", "b"] {
        write(&format!("{build}/image/selvage.raw"), &disk());
        write(&format!("{build}/images/SHA256SUMS"), b"sums");
        // What a build only keeps for itself.
        write(&format!("{build}/image/build.log"), build.as_bytes());
    }
    let (same, said) = compare(root);
    assert!(same, "{said}");
    assert_eq!(said.matches("the same").count(), 2, "{said}");

    let mut other = disk();
    other[41 * 512 + 7] = 1;
    write("b/image/selvage.raw", &other);
    write("b/images/extra", b"");
    let (same, said) = compare(root);
    let at = 41 * 512 + 7;
    assert!(!same, "{said}");
    assert!(
        said.contains(&format!(
            "image/selvage.raw: differs from byte {at} on (partition second, byte 7"
        )),
        "{said}"
    );
    assert!(
        said.contains("images/extra: only the second build has it"),
        "{said}"
    );
    assert!(said.contains("2 of 3 files differ"), "{said}");

    write("b/image/selvage.raw", &disk()[..600]);
    let (same, said) = compare(root);
    assert!(!same && said.contains("differs from byte 600 on"), "{said}");
}
