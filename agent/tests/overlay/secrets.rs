//! No password and no key is in what the agent says, however much it is asked to say.

use std::fs;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nix::sys::signal::Signal;
use tempfile::NamedTempFile;

use crate::cluster::{NETWORK, Store};
use crate::host::Host;
use crate::reload::{login, protect};
use crate::wait::wait_until;

/// All that the agent said, to whomever.
fn said(host: &mut Host) -> String {
    let told = host.told().join("\n");
    let answers = ["/v1/status", "/metrics", "/readyz"].map(|path| host.ask(path).1);
    format!("{}\n{told}\n{}", host.log(), answers.join("\n"))
}

fn assert_silent(text: &str, secret: &[u8]) {
    let texts = [
        String::from_utf8_lossy(secret).into_owned(),
        BASE64_STANDARD.encode(secret),
        secret.iter().map(|byte| format!("{byte:02x}")).collect(),
        format!("{secret:?}"),
    ];
    for secret in texts {
        if let Some(line) = text.lines().find(|line| line.contains(&secret)) {
            panic!("{secret} is in: {line}");
        }
    }
}

#[test]
fn passwords_are_not_logged_at_the_lowest_level() {
    const FIRST: &str = "first-password-of-the-agent";
    const SECOND: &str = "second-password-of-the-agent";
    let mut store = Store::start(NETWORK);
    protect(&mut store, FIRST);
    let file = NamedTempFile::new().expect("a password file");
    fs::write(file.path(), FIRST).expect("the password");
    let mut one = store.host(1);
    one.environment = login(&file);
    one.environment.push(("SELVAGE_LOG", "trace".to_owned()));
    one.join();
    // Through a changed, a wrong and a right password again, where errors tell most.
    store.set_password("agent", SECOND);
    store.stop_etcd();
    store.start_etcd();
    one.wait_told_last("that the password is wrong now", |line| {
        line.contains("authentication failed")
    });
    fs::write(file.path(), SECOND).expect("the password");
    one.signal_agent(Signal::SIGHUP);
    wait_until("the agent to be let in", || one.ask("/readyz").0 == 200);
    let text = said(&mut one);
    assert!(text.contains("TRACE"), "nothing was traced");
    assert!(text.contains("etcd.password-file"), "{text}");
    assert_silent(&text, FIRST.as_bytes());
    assert_silent(&text, SECOND.as_bytes());
    let token = text.lines().find(|line| {
        let line = line.to_lowercase();
        line.contains("authorization:") || line.contains("\"token\"")
    });
    assert_eq!(token, None, "a token is in the log");
}

#[test]
fn the_wireguard_key_is_not_logged_at_the_lowest_level() {
    let store = Store::start(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}"#);
    let mut one = store.host(1);
    one.environment = vec![("SELVAGE_LOG", "trace".to_owned())];
    one.start_agent();
    // Not every kernel has WireGuard; the key is made and used before that shows.
    one.wait_told("how far it came", |line| {
        line == "READY=1"
            || line.starts_with("STATUS=waiting to join:") && line.contains("flannel-wg")
    });
    let directory = one.socket();
    let state = directory.parent().expect("a directory").join("state");
    let key = fs::read_dir(&state)
        .expect("the state directory")
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
        .find_map(|text| {
            let key = BASE64_STANDARD.decode(text.trim()).ok()?;
            (key.len() == 32).then_some(key)
        })
        .expect("a private key");
    let text = said(&mut one);
    assert!(text.contains("TRACE"), "nothing was traced");
    assert_silent(&text, &key);
}
