//! The commands of the backend extension: in which order, and what becomes of those that fail.

use std::fs;

use tempfile::TempDir;

use crate::cluster::Store;
use crate::wait::{look_until, wait_until};

const PEER: &str =
    r#"{"PublicIP":"10.77.0.99","PublicIPv6":null,"BackendType":"extension","BackendData":""}"#;

/// A directory that the commands work in, and a store with one peer and these commands.
fn start(post: &str, add: &str) -> (TempDir, Store) {
    let directory = TempDir::new().expect("a directory");
    for (name, text) in [("post", post), ("add", add)] {
        let text = format!("cd {}\n{text}\n", directory.path().display());
        fs::write(directory.path().join(name), text).expect("a script");
    }
    let script = |name: &str| format!("sh {}", directory.path().join(name).display());
    let store = Store::start(&format!(
        r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"extension","PostStartupCommand":"{}","SubnetAddCommand":"{}"}}}}"#,
        script("post"),
        script("add")
    ));
    store.put_lease("10.5.7.0-24", PEER);
    (directory, store)
}

#[test]
fn commands_for_peers_begin_when_the_own_one_has_ended() {
    let post =
        "set -u; echo post starts $IPV6SUBNET $PUBLIC_IPV6 >> log; sleep 1; echo post ends >> log";
    let (directory, store) = start(post, "echo add >> log");
    let mut host = store.host(1);
    host.start_agent();
    host.wait_ready();
    let log = fs::read_to_string(directory.path().join("log")).expect("what was done");
    assert_eq!(log, "post starts ::/0 <nil>\npost ends\nadd\n");
}

#[test]
fn a_failing_own_command_is_tried_again_after_growing_pauses_and_no_peers_is() {
    // It never says the same.
    let post = "date +%s%N >> log; date +%s%N; test -e works";
    let (directory, store) = start(post, "echo add >> log");
    let path = |name: &str| directory.path().join(name);
    let mut host = store.host(1);
    host.start_agent();
    let log = || fs::read_to_string(path("log")).unwrap_or_default();
    let tries = look_until("six tries", log, |log| log.lines().count() >= 6);
    assert!(!tries.contains("add"), "{tries}");
    let times: Vec<u64> = tries
        .lines()
        .map(|at| at.parse().expect("a time"))
        .collect();
    let pause = times[5] - times[4];
    assert!(
        pause > 2_000_000_000,
        "{pause} ns between the fifth and the sixth"
    );
    fs::write(path("works"), "").expect("a file");
    host.wait_ready();
    wait_until("the peer's command", || log().ends_with("add\n"));
}

#[test]
fn a_failing_command_for_a_peer_is_tried_again_and_keeps_nothing_waiting() {
    let (directory, store) = start("true", "echo add >> log; test -e works && echo done >> log");
    let path = |name: &str| directory.path().join(name);
    let mut host = store.host(1);
    host.start_agent();
    host.wait_ready();
    let log = || fs::read_to_string(path("log")).unwrap_or_default();
    wait_until("a second try", || log().lines().count() >= 2);
    fs::write(path("works"), "").expect("a file");
    wait_until("the try that succeeds", || log().ends_with("done\n"));
    let tries = log();
    // Another peer's command is run at once, and this one's no more.
    store.put_lease("10.5.8.0-24", &PEER.replace(".99", ".98"));
    wait_until("the other peer's", || {
        log() == format!("{tries}add\ndone\n")
    });
}
