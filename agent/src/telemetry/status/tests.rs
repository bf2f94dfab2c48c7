//! The schema: a document with every field, byte by byte.

use serde_json::Value;

use super::samples::{compare_with_golden, full, peer};
use super::*;
use crate::cluster::refusal::RefusalCode;

/// The paths of all empty values in a document.
fn empty(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Null => found.push(at.to_owned()),
        Value::Array(items) if items.is_empty() => found.push(at.to_owned()),
        Value::Array(items) => {
            let items = items.iter().enumerate();
            items.for_each(|(index, item)| empty(item, &format!("{at}[{index}]"), found));
        }
        Value::Object(fields) => {
            let fields = fields.iter();
            fields.for_each(|(name, field)| empty(field, &format!("{at}.{name}"), found));
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn pretty(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap();
    text.push('\n');
    text
}

#[test]
fn the_status_has_the_documented_schema() {
    let status = full();
    let text = pretty(&status);
    let mut found = Vec::new();
    empty(&serde_json::from_str(&text).unwrap(), "", &mut found);
    // The missing device, which is last.
    assert_eq!(
        found,
        [".devices[1].kind", ".devices[1].mac", ".devices[1].mtu"],
        "every field is to be set in the sample"
    );
    compare_with_golden("status.json", &text);
    assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
}

/// The paths of all leaf fields.
fn fields(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Array(items) => {
            let items = items.iter();
            items.for_each(|item| fields(item, &format!("{at}[]"), found));
        }
        Value::Object(members) => {
            for (name, member) in members {
                let path = match at {
                    "" => name.clone(),
                    at => format!("{at}.{name}"),
                };
                fields(member, &path, found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            found.push(at.to_owned());
        }
    }
}

#[test]
fn every_field_is_documented() {
    let document = include_str!("../../../docs/status.md");
    let mut found = Vec::new();
    fields(&serde_json::to_value(full()).unwrap(), "", &mut found);
    let missing: Vec<_> = found
        .iter()
        .filter(|path| !document.contains(&format!("`{path}`")))
        .collect();
    assert!(found.len() > 60, "{found:?}");
    assert!(missing.is_empty(), "docs/status.md lacks {missing:?}");
}

#[test]
fn a_peers_detail_has_the_documented_schema() {
    let detail = PeerDetail {
        schema: SCHEMA,
        asked: "10.5.1.7/32".parse().unwrap(),
        owner: Owner::Peer,
        peer: Some(peer(1, 12)),
        objects: vec![PeerObject {
            wanted: "fdb 5e:11:22:33:44:55 dev flannel.1 dst 10.77.0.12".to_owned(),
            present: false,
            found: Some("fdb 5e:11:22:33:44:55 dev flannel.1 dst 10.77.0.13".to_owned()),
        }],
    };
    let text = pretty(&detail);
    compare_with_golden("peer.json", &text);
    assert_eq!(serde_json::from_str::<PeerDetail>(&text).unwrap(), detail);
}

#[test]
fn a_reader_skips_fields_that_it_does_not_know() {
    fn extend(value: &mut Value) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(extend),
            Value::Object(fields) => {
                fields.values_mut().for_each(extend);
                fields.insert("of_tomorrow".to_owned(), Value::from(7));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut document = serde_json::to_value(full()).unwrap();
    extend(&mut document);
    assert_eq!(serde_json::from_value::<Status>(document).unwrap(), full());
}

/// The first column of the table in the documentation whose first heading is `head`.
fn documented(head: &str) -> Vec<String> {
    let document = include_str!("../../../docs/status.md");
    let table = document.split_once(&format!("\n| {head} | "));
    let (_, table) = table.unwrap_or_else(|| panic!("no table of {head}"));
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let first = |row: &str| Some(row.split('`').nth(1)?.to_owned());
    rows.map(|row| first(row).unwrap_or_else(|| panic!("{row}")))
        .collect()
}

fn names<T: ToString>(codes: &[T]) -> Vec<String> {
    codes.iter().map(ToString::to_string).collect()
}

#[test]
fn causes_and_sentences_are_in_one_order() {
    let status = full();
    let texts = |causes: &[Cause]| -> Vec<String> {
        causes.iter().map(|cause| cause.text.clone()).collect()
    };
    assert_eq!(texts(&status.health.causes), status.health.reasons);
    assert_eq!(texts(&status.kernel.causes), status.kernel.failures);
}

#[test]
fn an_agent_without_codes_is_understood() {
    let mut document = serde_json::to_value(full()).unwrap();
    document["health"].as_object_mut().unwrap().remove("causes");
    document["kernel"].as_object_mut().unwrap().remove("causes");
    for peer in document["peers"].as_array_mut().unwrap() {
        peer.as_object_mut().unwrap().remove("refusal");
    }
    let old: Status = serde_json::from_value(document).unwrap();
    let causes = old.health.causes();
    assert_eq!(causes.len(), old.health.reasons.len());
    assert!(causes.iter().all(|cause| cause.code == Code::Unknown));
    assert_eq!(causes[0].text, old.health.reasons[0]);
    assert_eq!(old.kernel.causes()[0].text, old.kernel.failures[0]);
    assert_eq!(old.peers[0].refusal, None);
    let own = full();
    assert_eq!(*own.health.causes(), own.health.causes[..]);
}

#[test]
fn words_are_as_documented() {
    let word = |value: Value| value.as_str().unwrap_or_default().to_owned();
    let states = [
        State::Stopped,
        State::Joining,
        State::Ready,
        State::Degraded,
    ];
    assert_eq!(
        states.map(|state| word(serde_json::to_value(state).unwrap())),
        ["stopped", "joining", "ready", "degraded"]
    );
    let states = [PeerState::Programmed, PeerState::Failed, PeerState::Refused];
    assert_eq!(
        states.map(|state| word(serde_json::to_value(state).unwrap())),
        ["programmed", "failed", "refused"]
    );
    assert_eq!(documented("task"), names(TaskName::ALL));
    assert_eq!(documented("code"), names(Code::ALL));
    assert_eq!(documented("refusal"), names(RefusalCode::ALL));
    let owners = [Owner::Own, Owner::Peer, Owner::Nobody, Owner::Outside];
    assert_eq!(
        owners.map(|owner| word(serde_json::to_value(owner).unwrap())),
        ["own", "peer", "nobody", "outside"]
    );
}
