use std::sync::Arc;
use std::thread;

use serde_json::json;

use super::*;
use crate::telemetry::status::Code;

fn file() -> (tempfile::TempDir, StateFile) {
    let directory = tempfile::tempdir().unwrap();
    let file = StateFile::new(directory.path());
    (directory, file)
}

fn failed(version: &str) -> Failed {
    Failed {
        version: version.to_owned(),
        at: 1_764_400_000,
        boots: 3,
        code: FailureCode::Docker,
        reason: "Docker does not answer".to_owned(),
    }
}

#[test]
fn what_is_written_is_read() {
    let (_directory, file) = file();
    assert_eq!(file.read(), State::default());
    let health = Health {
        agent_ready: Some(false),
        causes: vec![Cause::new(Code::StoreUnreachable, "no etcd answers")],
        peers_answering: vec!["10.5.2.0".parse().unwrap()],
        docker_ok: Some(true),
        failed_units: vec!["flaky.service".to_owned()],
        ..Health::default()
    };
    file.change(|state| {
        state.accept_serial("stable", 17);
        state.accept_serial("stable", 16);
        state.begin("0.1.0.2", "0.1.0.1", health.clone(), 1);
        state.fail(failed("0.1.0.0"));
    })
    .unwrap();
    let state = file.read();
    assert_eq!(state.highest_serial("stable"), 17);
    assert_eq!(state.highest_serial("testing"), 0);
    assert_eq!(state.failure("0.1.0.0"), Some(&failed("0.1.0.0")));
    assert_eq!(state.pending.unwrap().health_before, health);
}

#[test]
fn a_damaged_file_counts_as_empty_and_is_moved_aside_by_the_next_change() {
    for damage in [
        "",
        "{",
        "null",
        "[]",
        "{\"failed\":7}",
        "{\"pending\":{}}",
        "\0\0\0\0",
    ] {
        let (directory, file) = file();
        let path = directory.path().join("state.json");
        fs::write(&path, damage).unwrap();
        assert_eq!(file.read(), State::default(), "{damage:?}");
        assert!(path.exists(), "reading changes nothing");
        file.change(|state| state.pinned = Some("0.1.0.1".to_owned()))
            .unwrap();
        let aside = fs::read_to_string(directory.path().join("state.json.damaged")).unwrap();
        assert_eq!(aside, damage);
        assert_eq!(file.read().pinned.as_deref(), Some("0.1.0.1"));
    }
}

#[test]
fn a_directory_in_its_place_is_moved_aside_as_well() {
    let (directory, file) = file();
    fs::create_dir(directory.path().join("state.json")).unwrap();
    file.change(|state| state.bless("0.1.0.1", 5)).unwrap();
    assert_eq!(file.read().blessed.unwrap().version, "0.1.0.1");
}

#[test]
fn fields_and_codes_of_a_later_version_survive_a_change_by_this_one() {
    let (directory, file) = file();
    let path = directory.path().join("state.json");
    let later = json!({
        "format": 2,
        "moon": {"phase": "full"},
        "failed": [{"version": "0.2", "at": 1, "code": "eclipse", "reason": "dark", "moon": 1}],
    });
    fs::write(&path, later.to_string()).unwrap();
    file.change(|state| state.accept_serial("stable", 1))
        .unwrap();
    let state = file.read();
    assert_eq!(state.failure("0.2").unwrap().code, FailureCode::Unknown);
    let text: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(text["moon"]["phase"], "full");
    assert_eq!(text["format"], 2);
}

#[test]
fn a_change_of_nothing_writes_nothing() {
    let (directory, file) = file();
    let path = directory.path().join("state.json");
    file.change(|_| ()).unwrap();
    assert!(!path.exists());
    file.change(|state| state.bless("1", 1)).unwrap();
    // As nobody else would write it.
    let text = fs::read_to_string(&path).unwrap().replace('\n', " ");
    fs::write(&path, &text).unwrap();
    file.change(|_| ()).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn changes_at_the_same_time_are_all_kept() {
    let (_directory, file) = file();
    let file = Arc::new(file);
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let file = Arc::clone(&file);
            thread::spawn(move || {
                for turn in 0..5 {
                    let version = format!("{thread}.{turn}");
                    file.change(|state| state.fail(failed(&version))).unwrap();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    // 40 changes, of which the limit keeps the last.
    assert_eq!(file.read().failed.len(), MOST_FAILED);
}

#[test]
fn a_version_has_one_fate() {
    let mut state = State::default();
    state.begin("2", "1", Health::default(), 1);
    state.fail(failed("2"));
    assert_eq!(state.pending, None);
    // By hand once more, and now it works.
    state.begin("2", "1", Health::default(), 2);
    assert_eq!(state.failure("2"), None);
    state.bless("2", 3);
    assert_eq!((&state.pending, state.failed.len()), (&None, 0));
    // Another version's fate is not its own.
    state.begin("3", "2", Health::default(), 4);
    state.fail(failed("4"));
    state.bless("2", 5);
    assert_eq!(state.pending.unwrap().version, "3");
}
