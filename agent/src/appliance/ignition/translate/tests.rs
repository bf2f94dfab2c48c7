//! What is translated to spec 3.3.0, judged by Ignition's own validator, and what is refused.
//!
//! The examples are retyped from coreos/ignition `docs/migrating-configs.md`, `config/v3_4/types/{tang,url}_test.go`,
//! coreos/coreos-installer issue 1591 and SUSE/elemental pull request 206 (a packed config in another one).

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::super::tests::{ignition_validate, report_skip};
use super::*;

fn translated(config: &Value) -> Value {
    let text = translate(&config.to_string()).unwrap();
    serde_json::from_str(&text.expect("it needs a translation")).unwrap()
}

fn refusals(config: &Value) -> Vec<(String, String)> {
    match translate(&config.to_string()) {
        Err(Error::Untranslatable(findings)) => findings
            .into_iter()
            .map(|finding| (finding.path, finding.message))
            .collect(),
        other => panic!("{config}: {other:?}"),
    }
}

fn volume(spec: &str, fields: &Value) -> Value {
    let mut volume = json!({"name": "luks-tpm", "device": "/dev/sdb"});
    let fields = fields.as_object().unwrap().clone();
    volume.as_object_mut().unwrap().extend(fields);
    json!({"ignition": {"version": spec}, "storage": {"luks": [volume]}})
}

fn file(source: &str) -> Value {
    json!({
        "ignition": {"version": "3.4.0"},
        "storage": {"files": [{"path": "/etc/example", "mode": 420, "contents": {"source": source}}]},
    })
}

fn merged(reference: &Value) -> Value {
    json!({"ignition": {"version": "3.3.0", "config": {"merge": [reference]}}})
}

fn gzip(text: &str) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::default());
    packer.write_all(text.as_bytes()).unwrap();
    packer.finish().unwrap()
}

fn base64(data: &[u8]) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine};
    format!("data:;base64,{}", BASE64_STANDARD.encode(data))
}

/// Of coreos-installer's issue 1591.
fn installer() -> Value {
    json!({
        "ignition": {"version": "3.5.0"},
        "passwd": {"users": [{"name": "core", "sshAuthorizedKeys": ["ssh-ed25519 AAAA me"]}]},
        "storage": {
            "disks": [{"device": "/dev/sdb", "wipeTable": true, "partitions": [{"label": "data", "number": 1}]}],
            "filesystems": [{"device": "/dev/disk/by-partlabel/data", "format": "xfs", "path": "/var/data"}],
        },
    })
}

#[test]
fn what_3_3_knows_needs_only_its_version() {
    let mut expected = installer();
    expected["ignition"]["version"] = json!("3.3.0");
    assert_eq!(translated(&installer()), expected);
}

#[test]
fn keys_that_say_nothing_are_left_out() {
    let fields = json!({
        "discard": false, "openOptions": [], "cex": {"enabled": false},
        "clevis": {"tang": [{"url": "http://x", "thumbprint": "y", "advertisement": ""}]},
    });
    let expected = json!({"clevis": {"tang": [{"url": "http://x", "thumbprint": "y"}]}});
    assert_eq!(
        translated(&volume("3.5.0", &fields)),
        volume("3.3.0", &expected)
    );
}

#[test]
fn the_arn_of_an_object_is_its_url() {
    for (arn, url) in [
        (
            "arn:aws:s3:::kola-fixtures/resources/anonymous",
            "s3://kola-fixtures/resources/anonymous",
        ),
        (
            "arn:aws:s3:::bucket/a:b?versionId=x",
            "s3://bucket/a:b?versionId=x",
        ),
    ] {
        let lowered = translated(&file(arn));
        assert_eq!(lowered["storage"]["files"][0]["contents"]["source"], url);
    }
    for arn in [
        "arn:aws:s3:us-west-1:123456789012:accesspoint/test/object/some/path",
        "arn:aws:s3:::bucket",
        "arn:aws:iam:us-west-2:123456789012:resource",
        "arn:",
    ] {
        let refused = refusals(&file(arn));
        assert_eq!(refused[0].0, "storage.files[0].contents.source", "{arn}");
    }
}

#[test]
fn what_only_later_ignitions_can_do_is_refused_at_its_place() {
    let tang = json!({"clevis": {"tang": [
        {"url": "http://a", "thumbprint": "y"},
        {"url": "http://b", "thumbprint": "y", "advertisement": "{\"payload\": \"\"}"},
    ]}});
    for (spec, fields, path) in [
        ("3.4.0", json!({"discard": true}), "storage.luks[0].discard"),
        (
            "3.4.0",
            json!({"openOptions": ["--perf-no_read_workqueue"]}),
            "storage.luks[0].openOptions",
        ),
        (
            "3.4.0",
            tang,
            "storage.luks[0].clevis.tang[1].advertisement",
        ),
        (
            "3.5.0",
            json!({"cex": {"enabled": true}}),
            "storage.luks[0].cex",
        ),
    ] {
        let refused = refusals(&volume(spec, &fields));
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert_eq!(refused[0].0, path);
        assert!(refused[0].1.contains("cannot do this"), "{refused:?}");
    }
    // A key of 3.5.0 is unknown to 3.4.0, and what is unknown is ignored.
    let cex = volume("3.4.0", &json!({"cex": {"enabled": true}}));
    assert_eq!(translated(&cex)["ignition"]["version"], "3.3.0");
}

#[test]
fn carried_configs_are_translated() {
    let inner = json!({"ignition": {"version": "3.4.0"}, "passwd": {"users": [{"name": "root"}]}})
        .to_string();
    let hash = |text: &str| {
        let sum = digest::digest(&digest::SHA512, text.as_bytes());
        let hex: String = sum.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        format!("sha512-{hex}")
    };
    for reference in [
        json!({"source": data_url::encode(&inner)}),
        json!({"source": base64(inner.as_bytes()), "verification": {"hash": hash(&inner)}}),
        json!({"source": base64(&gzip(&inner)), "compression": "gzip", "verification": {"hash": hash(&inner)}}),
    ] {
        let lowered = translated(&merged(&reference));
        let reference = &lowered["ignition"]["config"]["merge"][0];
        let carried = data_url::decode(reference["source"].as_str().unwrap()).unwrap();
        let carried: Value = serde_json::from_slice(&carried).unwrap();
        assert_eq!(carried["ignition"]["version"], "3.3.0");
        assert_eq!(carried["passwd"]["users"][0]["name"], "root");
        assert_eq!(reference.as_object().unwrap().len(), 1, "{reference}");
    }
    // One level further down.
    let nested =
        data_url::encode(&merged(&json!({"source": data_url::encode(&inner)})).to_string());
    assert!(
        !translated(&merged(&json!({"source": nested})))
            .to_string()
            .contains("3.4.0")
    );
    let inner = volume("3.4.0", &json!({"discard": true})).to_string();
    let refused = refusals(&merged(&json!({"source": data_url::encode(&inner)})));
    assert_eq!(refused[0].0, "ignition.config.merge[0].source");
    assert!(
        refused[0]
            .1
            .starts_with("in the config there, storage.luks[0].discard: ")
    );
}

#[test]
fn what_ignition_reads_or_refuses_by_itself_is_left_to_it() {
    let inner = json!({"ignition": {"version": "3.4.0"}}).to_string();
    let wrong = format!("sha512-{}", "0".repeat(128));
    for config in [
        json!({"ignition": {"version": "3.3.0"}}),
        json!({"ignition": {"version": "3.6.0"}}),
        json!({"ignition": {"version": 3}}),
        json!({"ignition": []}),
        json!([]),
        merged(&json!({"source": "https://example.net/base.ign"})),
        merged(&json!({"source": "data:,{}"})),
        merged(&json!({"source": data_url::encode(&inner), "verification": {"hash": wrong}})),
        merged(&json!({"source": data_url::encode("no gzip"), "compression": "gzip"})),
        merged(&json!({"source": 5})),
    ] {
        assert_eq!(translate(&config.to_string()).unwrap(), None, "{config}");
    }
    for text in ["", "{", "#cloud-config\n", "#!/bin/sh\n"] {
        assert_eq!(translate(text).unwrap(), None, "{text}");
    }
}

#[test]
fn a_refusal_names_line_and_path() {
    let text = "{\"ignition\": {\"version\": \"3.4.0\"},\n \"storage\": {\"luks\": [\n  {\"name\": \"a\", \"discard\": true}]}}";
    let error = translate(text).unwrap_err().to_string();
    assert!(
        error.starts_with("3:28: error: storage.luks[0].discard: "),
        "{error}"
    );
}

#[test]
fn ignition_itself_takes_what_was_translated() {
    let packed = base64(&gzip(&installer().to_string()));
    for config in [
        installer(),
        file("arn:aws:s3:::bucket/key"),
        volume("3.5.0", &json!({"discard": false, "cex": {}})),
        merged(&json!({"source": packed, "compression": "gzip"})),
    ] {
        let text = translated(&config).to_string();
        match ignition_validate(&text) {
            Ok(refusal) => assert_eq!(refusal, None, "{text}"),
            Err(missing) => return report_skip(missing),
        }
    }
}

proptest! {
    /// Cuts and changes to a config are translated or not, but never panic.
    #[test]
    fn translating_never_panics(at in 0..400_usize, with in "[\\[\\]{}\",:0-9a-zé\\\\]{0,3}") {
        let mut text = volume("3.5.0", &json!({"clevis": {"tang": [{"advertisement": "x"}]}, "cex": {}})).to_string();
        let at = at.min(text.len());
        text.replace_range(at..(at + 1).min(text.len()), &with);
        let _any_result = translate(&text);
    }
}
