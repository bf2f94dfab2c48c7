//! `selvage network get|set`.

use std::process::Stdio;

use selvage::command::network::{NetworkCommandError, SetOutcome, get, set};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::server::Server;
use crate::*;

const OLD: &str = r#"{ "Network": "10.5.0.0/16", "Backend": { "Type": "vxlan" } }"#;
const KEY: &str = "/coreos.com/network/config";

async fn try_set(
    store: &mut EtcdStore,
    text: &str,
    if_absent: bool,
) -> Result<(SetOutcome, String), NetworkCommandError> {
    let mut out = Vec::new();
    let check = |config: &NetworkConfig| match config.backend.kind.as_str() {
        "vxlan" => Ok(()),
        other => Err(format!("{other:?} is not a backend")),
    };
    let outcome = set(store, text, if_absent, check, &mut out).await?;
    Ok((outcome, String::from_utf8(out).unwrap()))
}

async fn shown(store: &mut EtcdStore, json: bool) -> String {
    let mut out = Vec::new();
    get(store, json, &mut out).await.unwrap();
    String::from_utf8(out).unwrap()
}

#[tokio::test]
async fn set_writes_compactly_and_get_shows_computed_defaults() {
    let server = Server::start().await;
    let mut store = server.store("machine-a");
    let (outcome, _) = try_set(&mut store, OLD, true).await.unwrap();
    assert_eq!(outcome, SetOutcome::Created);
    let answer = server.client().await.get(KEY, None).await.unwrap();
    assert_eq!(
        answer.kvs()[0].value_str().unwrap(),
        r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#
    );
    let json = shown(&mut store, true).await;
    assert!(json.contains(r#""SubnetMin":"10.5.1.0","SubnetMax":"10.5.255.0","SubnetLen":24"#));
    assert!(
        shown(&mut store, false)
            .await
            .contains("SubnetMin       10.5.1.0\n")
    );
    let (outcome, _) = try_set(&mut store, OLD, false).await.unwrap();
    assert_eq!(outcome, SetOutcome::Unchanged);
}

#[tokio::test]
async fn set_says_what_changed_and_whom_it_leaves_outside() {
    let server = Server::start().await;
    let mut store = server.store("machine-a");
    try_set(&mut store, OLD, false).await.unwrap();
    put(
        &mut server.client().await,
        "10.5.9.0-24",
        &flannels("10.0.0.9"),
        0,
    )
    .await;

    let new = OLD.replace("10.5.0.0", "10.6.0.0");
    let (outcome, text) = try_set(&mut store, &new, true).await.unwrap();
    assert_eq!(outcome, SetOutcome::LeftAlone);
    assert!(text.contains("exists and differs"), "{text}");

    let (outcome, text) = try_set(&mut store, &new, false).await.unwrap();
    assert_eq!(outcome, SetOutcome::Replaced);
    assert!(
        text.contains("  Network: 10.5.0.0/16 -> 10.6.0.0/16\n"),
        "{text}"
    );
    assert!(text.contains("warning: 1 of 1 leases do not fit"), "{text}");
    assert!(text.contains("  10.5.9.0/24 of 10.0.0.9\n"), "{text}");
}

#[tokio::test]
async fn a_bad_config_is_refused_before_anything_is_written() {
    let server = Server::start().await;
    let mut store = server.store("machine-a");
    for text in [
        r#"{"Network":"10.5.0.0/30"}"#,
        r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlam"}}"#,
        "no json",
    ] {
        let error = try_set(&mut store, text, false).await.unwrap_err();
        assert!(error.is_bad_config(), "{text}: {error}");
    }
    assert_eq!(store.raw_network_config().await.unwrap(), None);
}

#[tokio::test]
async fn a_broken_config_in_the_store_can_be_replaced() {
    let server = Server::start().await;
    let mut store = server.store("machine-a");
    server.client().await.put(KEY, "{}", None).await.unwrap();
    let mut out = Vec::new();
    let error = get(&mut store, false, &mut out).await.unwrap_err();
    assert!(error.is_bad_config());
    let (outcome, text) = try_set(&mut store, OLD, false).await.unwrap();
    assert_eq!(outcome, SetOutcome::Replaced);
    assert!(
        text.contains("the old one was invalid: Network is missing"),
        "{text}"
    );
}

/// The program, as the image's unit starts it.
async fn set_and_wait(server: &Server, seconds: &str) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_selvage"))
        .args(["network", "set", "--if-absent", "--wait", seconds])
        .args(["--etcd-endpoints", &server.url(), "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(OLD.as_bytes()).await.unwrap();
    child
}

#[tokio::test]
async fn set_waits_for_etcd_as_long_as_it_is_told_and_no_longer() {
    let mut server = Server::start().await;
    server.down();

    let output = set_and_wait(&server, "0").await.wait_with_output().await;
    let output = output.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!said.contains("waiting for etcd"), "{said}");
    assert!(said.contains(&server.url()), "{said}");

    let mut child = set_and_wait(&server, "600").await;
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().expect("a word");
    assert!(line.contains("waiting for etcd: etcd at "), "{line}");
    server.up().await;
    let output = child.wait_with_output().await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("/coreos.com/network/config written"),
        "{said}"
    );
}
