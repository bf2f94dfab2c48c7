use super::*;
use crate::appliance::update::samples;

/// A root whose ESP has these entries.
fn root(names: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join(ENTRIES);
    fs::create_dir_all(&directory).unwrap();
    for name in names {
        fs::write(directory.join(name), samples::uki(1, 600)).unwrap();
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
        // While the running one is on trial itself.
        (
            &["selvage_1.0.efi", "selvage_1.1+1-2.efi"],
            "1.1",
            "1.0",
            ["selvage_1.0.efi", "selvage_1.1+0-2.efi"],
        ),
    ] {
        let root = root(before);
        let found = rollback(root.path(), &running.parse().unwrap()).unwrap();
        found.run().unwrap();
        assert_eq!(found.to.as_str(), other);
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
            &["selvage_1.1.efi", "selvage_1.2+0-0.efi"],
            "the other version 1.2 is aside and not proven",
        ),
        (
            &["selvage_1.0.efi"],
            "no boot entry of the running version 1.1",
        ),
        (&[], "no boot entry of the running version 1.1"),
    ] {
        let root = root(before);
        let error = rollback(root.path(), &"1.1".parse().unwrap())
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
fn the_version_whose_turn_it_is_has_all_its_tries_and_is_the_newest_that_has_any() {
    for (before, running, next, after) in [
        (
            &["selvage_1.0.efi", "selvage_1.1+0-0.efi"][..],
            "1.0",
            "1.1",
            &["selvage_1.0.efi", "selvage_1.1+3-0.efi"][..],
        ),
        (
            &["selvage_1.0.efi", "selvage_1.1+0-3.efi"],
            "1.0",
            "1.1",
            &["selvage_1.0.efi", "selvage_1.1+3-0.efi"],
        ),
        // systemd-boot takes the newest that has tries or needs none, so an older one goes first only without it.
        (
            &["selvage_1.0.efi", "selvage_1.1.efi"],
            "1.1",
            "1.0",
            &["selvage_1.0+3-0.efi", "selvage_1.1+0-0.efi"],
        ),
        (
            &["selvage_0.9+0-0.efi", "selvage_1.0+1-2.efi"],
            "1.0",
            "0.9",
            &["selvage_0.9+3-0.efi", "selvage_1.0+0-0.efi"],
        ),
        // And it stays the one that is started once it is blessed; the newer one gets its turn again.
        (
            &["selvage_0.9.efi", "selvage_1.0+0-0.efi"],
            "0.9",
            "1.0",
            &["selvage_0.9.efi", "selvage_1.0+3-0.efi"],
        ),
    ] {
        let root = root(before);
        try_next(
            root.path(),
            &running.parse().unwrap(),
            &next.parse().unwrap(),
        )
        .unwrap();
        assert_eq!(names(root.path()), after, "{before:?}");
        put_aside(root.path(), &next.parse().unwrap()).unwrap();
        let aside = format!("selvage_{next}+0-0.efi");
        assert!(names(root.path()).contains(&aside), "{before:?}");
    }
}

#[test]
fn an_older_version_that_cannot_be_tried_leaves_the_running_one_in_its_place() {
    let root = root(&["selvage_0.9+0-0.efi", "selvage_1.0.efi"]);
    // A directory is in the way of the new name.
    let taken = root.path().join(ENTRIES).join("selvage_0.9+3-0.efi");
    fs::create_dir(taken).unwrap();
    let version = |text: &str| text.parse::<Version>().unwrap();
    let error = try_next(root.path(), &version("1.0"), &version("0.9")).unwrap_err();
    assert!(matches!(error, SlotError::Rename { .. }), "{error}");
    assert!(names(root.path()).contains(&"selvage_1.0.efi".to_owned()));
    let error = try_next(root.path(), &version("1.0"), &version("0.8")).unwrap_err();
    assert!(matches!(error, SlotError::NoEntry(_)), "{error}");
    assert!(names(root.path()).contains(&"selvage_1.0.efi".to_owned()));
}

#[test]
fn entries_that_a_power_cut_left_are_none_and_go() {
    let root = root(&["selvage_1.0.efi", "selvage_1.1+0-0.efi"]);
    let write = |name: &str, content: &[u8]| {
        fs::write(root.path().join(ENTRIES).join(name), content).unwrap();
    };
    let whole = samples::uki(1, 600);
    write("selvage_1.1+3-0.efi", b"");
    write("selvage_1.2+3-0.efi", &whole[..599]);
    write("selvage_1.3.efi", &[0; 600]);
    let found = entries(root.path()).unwrap();
    let shown: Vec<_> = found.iter().map(|entry| entry.version.as_str()).collect();
    assert_eq!(shown, ["1.0", "1.1"]);
    assert!(found[1].is_aside());
    clear_damaged(root.path(), &"1.0".parse().unwrap()).unwrap();
    assert_eq!(
        names(root.path()),
        ["selvage_1.0.efi", "selvage_1.1+0-0.efi"]
    );
    // The boot loader has started the running one, whatever we make of it.
    write("selvage_1.0.efi", b"");
    clear_damaged(root.path(), &"1.0".parse().unwrap()).unwrap();
    assert!(names(root.path()).contains(&"selvage_1.0.efi".to_owned()));
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
