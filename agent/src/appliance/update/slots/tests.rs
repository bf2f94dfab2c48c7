use super::*;

/// A root whose ESP has these entries.
fn root(names: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join(ENTRIES);
    fs::create_dir_all(&directory).unwrap();
    for name in names {
        fs::write(directory.join(name), *name).unwrap();
    }
    root
}

fn names(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join(ENTRIES)).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn entries_are_told_by_their_names() {
    let root = root(&[
        "selvage_0.1.0.1500+3-0.efi",
        "selvage_0.1.0.999.efi",
        "selvage_0.1.0.1000+0-3.efi",
        ".#sysupdateselvage_2+3-0.efi12ab",
        "selvage_x.efi",
        "selvage_1.0.efi.extra.d",
        "other_1.efi",
    ]);
    let found = entries(root.path()).unwrap();
    let shown: Vec<(&str, Option<u32>, bool)> = found
        .iter()
        .map(|e| {
            (
                e.version.as_str(),
                e.counter.map(|counter| counter.left),
                e.is_bad(),
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("0.1.0.999", None, false),
            ("0.1.0.1000", Some(0), true),
            ("0.1.0.1500", Some(3), false),
        ]
    );
    let error = entries(&root.path().join("nowhere"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("is the ESP mounted"), "{error}");
}

#[test]
fn a_rollback_is_one_rename_of_the_running_entry() {
    for (before, running, other, after) in [
        (
            &["selvage_1.0.efi", "selvage_1.1.efi"],
            "1.1",
            "1.0",
            ["selvage_1.0.efi", "selvage_1.1+0-1.efi"],
        ),
        // Back to the newer one, which nobody blessed yet.
        (
            &["selvage_1.0.efi", "selvage_1.1+2-1.efi"],
            "1.0",
            "1.1",
            ["selvage_1.0+0-1.efi", "selvage_1.1+2-1.efi"],
        ),
        // While the running one is on trial itself.
        (
            &["selvage_1.0.efi", "selvage_1.1+1-2.efi"],
            "1.1",
            "1.0",
            ["selvage_1.0.efi", "selvage_1.1+0-2.efi"],
        ),
    ] {
        let root = root(before);
        let found = roll_back(root.path(), &running.parse().unwrap()).unwrap();
        assert_eq!(found.as_str(), other);
        assert_eq!(names(root.path()), after);
    }
}

#[test]
fn a_rollback_to_nothing_is_refused_with_the_reason() {
    for (before, expected) in [
        (&["selvage_1.1.efi"][..], "the other slot is empty"),
        (
            &["selvage_1.1.efi", "selvage_1.0+0-3.efi"],
            "the other version 1.0 has used up its tries",
        ),
        (
            &["selvage_1.0.efi"],
            "no boot entry of the running version 1.1",
        ),
        (&[], "no boot entry of the running version 1.1"),
    ] {
        let root = root(before);
        let error = roll_back(root.path(), &"1.1".parse().unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("cannot roll back: "), "{error}");
        assert!(error.contains(expected), "{error}");
        let mut unchanged: Vec<&str> = before.to_vec();
        unchanged.sort_unstable();
        assert_eq!(names(root.path()), unchanged);
    }
}

#[test]
fn an_entry_that_is_tried_again_has_all_its_tries() {
    let root = root(&["selvage_1.0+0-3.efi"]);
    entries(root.path()).unwrap()[0].set_untried().unwrap();
    assert_eq!(names(root.path()), ["selvage_1.0+3-0.efi"]);
}

#[test]
fn slots_are_told_by_the_partitions_labels() {
    let root = tempfile::tempdir().unwrap();
    for (device, label, sectors) in [
        ("vda", None, "9999999\n"),
        ("vda1", Some("selvage-esp"), "1048576\n"),
        ("vda2", Some("selvage_1.0"), "1048576\n"),
        ("vda3", Some("selvage_1.0_verity"), "32768\n"),
        ("vda4", Some("_empty"), "1048576\n"),
        ("vda5", Some("_empty"), "32768\n"),
        ("vda6", Some("selvage_1.2"), "no number\n"),
    ] {
        let directory = root.path().join("sys/class/block").join(device);
        fs::create_dir_all(&directory).unwrap();
        let label = label
            .map(|label| format!("PARTNAME={label}\n"))
            .unwrap_or_default();
        fs::write(
            directory.join("uevent"),
            format!("DEVNAME={device}\n{label}PARTN=1\n"),
        )
        .unwrap();
        fs::write(directory.join("size"), sectors).unwrap();
    }
    let found = slots(root.path());
    let shown: Vec<(&str, Option<&str>, u64)> = found
        .iter()
        .map(|slot| {
            (
                &*slot.device,
                slot.version.as_ref().map(Version::as_str),
                slot.size,
            )
        })
        .collect();
    assert_eq!(
        shown,
        [("vda2", Some("1.0"), 512 << 20), ("vda4", None, 512 << 20)]
    );
    assert!(slots(&root.path().join("nowhere")).is_empty());
}
