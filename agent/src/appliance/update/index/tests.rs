use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::appliance::update::samples::{self, Site, UUID};

fn index(releases: &[Value]) -> Value {
    json!({
        "format": 1,
        "channel": "stable",
        "serial": 17,
        "issued": "2026-11-29T10:00:00Z",
        "releases": releases,
        "of_tomorrow": {},
    })
}

fn parse(index: &Value) -> Result<Index, IndexError> {
    Index::parse(index.to_string().as_bytes(), "stable", 17)
}

fn release(version: &str) -> Value {
    samples::release(version, &mut Site::new())
}

#[test]
fn releases_come_newest_first_with_their_files_and_the_uki_last() {
    let mut newest = release("0.1.0.1500");
    newest["severity"] = "critical".into();
    newest["roll_out_seconds"] = 259_200.into();
    newest["from"] = "0.1.0.1000".into();
    let parsed = parse(&index(&[
        release("0.1.0.999"),
        newest,
        release("0.1.0.1000"),
    ]))
    .unwrap();
    let versions: Vec<&str> = parsed.releases.iter().map(|r| r.version.as_str()).collect();
    assert_eq!(versions, ["0.1.0.1500", "0.1.0.1000", "0.1.0.999"]);
    assert!(parsed.skipped.is_empty());
    let first = &parsed.releases[0];
    assert_eq!(first.severity, Severity::Critical);
    assert_eq!(first.roll_out, Duration::from_secs(259_200));
    assert_eq!(first.from, Some("0.1.0.1000".parse().unwrap()));
    let parts: Vec<Part> = first.files.iter().map(|file| file.part).collect();
    assert_eq!(parts, [Part::Usr, Part::UsrVerity, Part::Uki]);
    assert_eq!(
        first.files[0].unpacked_name(),
        format!("selvage_0.1.0.1500_{UUID}.usr.raw")
    );
    assert_eq!(first.files[2].name(), "selvage_0.1.0.1500.efi.zst");
    assert_eq!(first.unpacked_size(), 370_000);
    let version = "0.1.0.999".parse().unwrap();
    assert_eq!(parsed.release(&version).unwrap().version, version);
}

#[test]
fn an_index_of_another_format_channel_or_time_is_refused() {
    for (key, value, expected) in [
        ("format", json!(2), "format 2"),
        (
            "channel",
            json!("testing"),
            "of the channel \"testing\", not \"stable\"",
        ),
        ("serial", json!(16), "serial 16, but 17 was accepted before"),
        ("serial", json!(-1), "invalid value"),
        (
            "issued",
            json!("yesterday"),
            "issued: \"yesterday\" is no time",
        ),
        ("releases", json!({}), "invalid type"),
        ("format", json!(null), "invalid type"),
    ] {
        let mut index = index(&[release("1")]);
        index[key] = value;
        let error = parse(&index).unwrap_err().to_string();
        assert!(error.contains(expected), "{key}: {error}");
    }
    // A later format may look different in everything else.
    let error = Index::parse(b"{\"format\": 3}", "stable", 0).unwrap_err();
    assert!(matches!(error, IndexError::Format(3)));
    assert!(parse(&index(&[])).unwrap().releases.is_empty());
}

#[test]
fn a_release_that_cannot_be_used_is_skipped_with_the_reason() {
    let file = |change: fn(&mut Value)| {
        let mut release = release("1.0");
        change(&mut release["files"][1]);
        release
    };
    let mut cases: Vec<(Value, &str)> = vec![
        (
            file(|f| f["name"] = "selvage_1.0/../../etc/passwd.usr.raw.zst".into()),
            "is not the name",
        ),
        (
            file(|f| f["name"] = "/selvage_1.0/selvage_1.0.usr.raw.zst".into()),
            "is not the name",
        ),
        (
            file(|f| f["name"] = "selvage_1.0/selvage_1.0_x.usr.raw.zst".into()),
            "is not the name",
        ),
        (
            file(|f| f["name"] = format!("selvage_1.0/selvage_2.0_{UUID}.usr.raw.zst").into()),
            "is not the name",
        ),
        (
            file(|f| {
                f["name"] = format!("selvage_1.0/selvage_1.0_{UUID}.usr-verity.raw.zst").into()
            }),
            "is not the name",
        ),
        (file(|f| f["size"] = 0.into()), "a size is not"),
        (
            file(|f| f["unpacked_size"] = u64::MAX.into()),
            "a size is not",
        ),
        (file(|f| f["sha256"] = "abc".into()), "not a SHA-256"),
        (
            file(|f| f["sha256"] = "é".repeat(32).into()),
            "not a SHA-256",
        ),
        (file(|f| f["sha256"] = json!(null)), "invalid type"),
        (
            file(|f| f["part"] = "kernel".into()),
            "no file of the part Usr",
        ),
        (file(|f| *f = json!({"part": "usr"})), "missing field"),
    ];
    let mut twice = release("1.0");
    let again = twice["files"][0].clone();
    twice["files"].as_array_mut().unwrap().push(again);
    cases.push((twice, "two files of the part"));
    for (key, value, expected) in [
        ("version", json!("1/0"), "is no version"),
        ("severity", json!("mild"), "unknown variant"),
        ("date", json!("2026"), "date: \"2026\""),
        ("from", json!("x"), "is no version"),
        ("files", json!([]), "no file of the part"),
    ] {
        let mut release = release("1.0");
        release[key] = value;
        cases.push((release, expected));
    }
    for (bad, expected) in cases {
        let parsed = parse(&index(&[bad, release("0.9")])).unwrap();
        assert_eq!(parsed.releases.len(), 1, "{expected}");
        assert!(parsed.skipped[0].starts_with("release 1: "));
        assert!(parsed.skipped[0].contains(expected), "{:?}", parsed.skipped);
    }
}

#[test]
fn parts_of_later_versions_are_not_minded() {
    let mut later = release("1.0");
    let more = json!({"part": "firmware", "name": "x", "size": 1, "sha256": "", "unpacked_size": 1, "unpacked_sha256": ""});
    later["files"].as_array_mut().unwrap().push(more);
    assert_eq!(parse(&index(&[later])).unwrap().releases[0].files.len(), 3);
}

#[test]
fn system_extensions_are_known_by_their_names_and_are_no_part_of_the_update() {
    let sysext = |name: &str| json!({"part": "sysext", "name": name, "size": 10, "sha256": "a".repeat(64), "unpacked_size": 10, "unpacked_sha256": "a".repeat(64)});
    let with = |names: &[&str]| {
        let mut release = release("1.0");
        let files = release["files"].as_array_mut().unwrap();
        files.extend(names.iter().map(|name| sysext(name)));
        parse(&index(&[release])).unwrap()
    };
    let found = with(&[
        "selvage_1.0/selvage_1.0_debug.sysext.raw",
        "selvage_1.0/selvage_1.0_k8s-1-34.sysext.raw",
    ]);
    let release = &found.releases[0];
    let names: Vec<_> = release.sysexts.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["debug", "k8s-1-34"]);
    assert_eq!(release.files.len(), 3);
    for bad in [
        "selvage_1.0/selvage_1.0_../../etc.sysext.raw",
        "selvage_1.0/selvage_1.0_.sysext.raw",
        "selvage_1.0/selvage_1.0_Debug.sysext.raw",
        "selvage_1.0/selvage_2.0_debug.sysext.raw",
        "selvage_1.0_debug.sysext.raw",
    ] {
        let found = with(&[bad]);
        assert!(found.releases.is_empty(), "{bad}");
        assert!(
            found.skipped[0].contains("_NAME.sysext.raw"),
            "{:?}",
            found.skipped
        );
    }
    let twice = "selvage_1.0/selvage_1.0_debug.sysext.raw";
    assert!(with(&[twice, twice]).skipped[0].contains("two files"));
}

proptest! {
    #[test]
    fn bad_input_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64), cut in 0usize..2000, at in 0usize..2000, byte in any::<u8>()) {
        let _ = Index::parse(&bytes, "stable", 0);
        let mut text = index(&[release("1.0")]).to_string().into_bytes();
        if let Some(slot) = text.get_mut(at) {
            *slot = byte;
        }
        let _ = Index::parse(&text, "stable", 0);
        text.truncate(cut);
        prop_assert!(Index::parse(&text, "stable", 0).is_err() || cut >= text.len());
    }
}
