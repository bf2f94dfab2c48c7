//! SIGHUP: settings that can change do, the others are named, and a mistake changes nothing.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::cluster::{NETWORK, Store};
use crate::host::Host;
use crate::wait::{PATIENCE, wait_for, wait_until};

/// Makes etcd ask for a password, and lets an agent in with it.
pub(crate) fn protect(store: &mut Store, password: &str) {
    for command in [
        "user add root:secret".to_owned(),
        "user grant-role root root".to_owned(),
        "role add agent".to_owned(),
        "role grant-permission agent --prefix=true readwrite /coreos.com/network/".to_owned(),
        format!("user add agent:{password}"),
        "user grant-role agent agent".to_owned(),
        "auth enable".to_owned(),
    ] {
        let words: Vec<_> = command.split(' ').collect();
        store.etcdctl(&words);
    }
    store.user = Some("root:secret");
}

/// How the agent logs in with the password in a file.
pub(crate) fn login(file: &NamedTempFile) -> Vec<(&'static str, String)> {
    vec![
        ("SELVAGE_ETCD_USERNAME", "agent".to_owned()),
        (
            "SELVAGE_ETCD_PASSWORD_FILE",
            file.path().display().to_string(),
        ),
    ]
}

fn hang_up(host: &mut Host) {
    let is_end = |line: &&String| *line == "READY=1";
    let before = host.told().iter().filter(is_end).count();
    host.signal_agent(Signal::SIGHUP);
    wait_until("the end of the reload", || {
        host.told().iter().filter(is_end).count() > before
    });
}

fn status(host: &Host) -> Value {
    let (code, body) = host.ask("/v1/status");
    assert_eq!(code, 200, "{body}");
    serde_json::from_str(&body).expect("a status")
}

/// The chains that iptables made anew are listed in another order.
fn sorted(objects: &str) -> Vec<&str> {
    let mut lines: Vec<_> = objects.lines().filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    lines
}

/// Whether `/readyz` over TCP answers inside the host.
fn answers_at(host: &Host, port: u16) -> bool {
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{port} && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3"
    );
    let mut command = host.namespace.command("timeout");
    let output = command.args(["60", "bash", "-c", &script]).output();
    let answer = output.expect("bash").stdout;
    String::from_utf8_lossy(&answer).contains("flanneld is ready")
}

#[test]
fn settings_are_followed_named_or_refused() {
    let store = Store::start(NETWORK);
    let [mut one, mut two] = [1, 2].map(|number| store.host(number));
    let file = NamedTempFile::new().expect("the settings");
    let set = |text: &str| fs::write(file.path(), text).expect("the settings");
    one.arguments = vec!["--config".to_owned(), file.path().display().to_string()];
    let first = "[health]\nport = 9101\n";
    set(first);
    one.join();
    two.join();
    one.wait_reaches(&two);
    assert!(answers_at(&one, 9101));
    let before = one.overlay_objects();
    let rules = one.namespace.run("nft list ruleset");
    assert!(rules.contains("chain FLANNEL-FWD"), "{rules}");

    set(
        "[etcd]\nlease-ttl = 3600\n[firewall]\nmode = \"nftables\"\nblackhole-route = true\nforward = false\n[health]\nport = 9102\n[agent]\nlog = \"trace\"\n",
    );
    hang_up(&mut one);
    let told = one.told();
    let reloading = told.iter().position(|line| line == "RELOADING=1");
    assert!(
        told[reloading.expect("the word that it reloads")..]
            .iter()
            .any(|line| line.starts_with("MONOTONIC_USEC=")),
        "{told:?}"
    );
    let routes = one.namespace.ip("route show type blackhole");
    assert!(routes.contains("10.5."), "{routes}");
    let rules = one.namespace.run("nft list ruleset");
    assert!(rules.contains("table inet selvage"), "{rules}");
    assert!(!rules.contains("FLANNEL"), "{rules}");
    let table = one.namespace.run("nft list table inet selvage");
    assert!(!table.contains("hook forward"), "{table}");
    wait_until("the endpoints to move", || {
        answers_at(&one, 9102) && !answers_at(&one, 9101)
    });
    let log = one.log();
    for line in [
        "a setting changed key=\"firewall.blackhole-route\" old=\"false\" new=\"true\"",
        "a setting changed, which only a restart puts into effect key=\"etcd.lease-ttl\" old=\"86400 s\" new=\"3600 s\"",
        "settings reloaded changed=5 waiting_for_restart=1",
        "TRACE",
    ] {
        assert!(log.contains(line), "no {line:?} in\n{log}");
    }
    assert_eq!(
        status(&one)["agent"]["settings_pending"],
        serde_json::json!(["etcd.lease-ttl"])
    );
    assert!(one.reaches(&two));

    // What is wrong in one place changes nothing in any.
    let objects = one.overlay_objects();
    set("[firewall]\nblackhole-route = false\nmode = \"nonsense\"\n");
    hang_up(&mut one);
    one.wait_told_last("that the settings are wrong", |line| {
        line.contains("the settings were not reloaded") && line.contains("nonsense")
    });
    assert_eq!(one.overlay_objects(), objects);
    assert_eq!(one.ask("/readyz").0, 200);
    let rejected = &status(&one)["agent"]["settings_rejected"];
    assert!(
        rejected
            .as_str()
            .is_some_and(|text| text.contains("nonsense")),
        "{rejected}"
    );
    let metrics = wait_for(PATIENCE, "metrics to follow", || {
        let (_, metrics) = one.ask("/metrics");
        metrics
            .contains("selvage_reload_last_successful 0\n")
            .then_some(metrics)
    });
    for line in [
        "selvage_reloads_total{result=\"success\"} 1\n",
        "selvage_reloads_total{result=\"failure\"} 1\n",
        "selvage_settings_pending_restart 1\n",
    ] {
        assert!(metrics.contains(line), "no {line:?} in\n{metrics}");
    }

    set(first);
    hang_up(&mut one);
    one.wait_told_last("that all is well", |line| !line.contains(';'));
    assert_eq!(sorted(&one.overlay_objects()), sorted(&before));
    wait_until("the endpoints to move back", || {
        answers_at(&one, 9101) && !answers_at(&one, 9102)
    });
    let agent = &status(&one)["agent"];
    assert_eq!(agent["settings_rejected"], Value::Null);
    assert_eq!(agent["settings_pending"], serde_json::json!([]));
    assert!(one.reaches(&two));
}

#[test]
fn an_address_that_is_taken_is_no_change() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    let file = NamedTempFile::new().expect("the settings");
    let set = |text: &str| fs::write(file.path(), text).expect("the settings");
    one.arguments = vec!["--config".to_owned(), file.path().display().to_string()];
    set("[health]\nport = 9101\n");
    one.start_agent();
    one.wait_ready();
    let mut taken = one
        .namespace
        .command("python3")
        .args(["-c", "import socket, time; s = socket.create_server(('', 9102)); print('up', flush=True); time.sleep(1000)"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("python3");
    let output = taken.stdout.as_mut().expect("its output");
    std::io::Read::read_exact(output, &mut [0; 3]).expect("the listener to come up");
    set("[health]\nport = 9102\n[agent]\nresync = 299\n");
    hang_up(&mut one);
    let log = one.log();
    assert!(log.contains("they stay where they were"), "{log}");
    assert!(
        log.contains("a setting changed key=\"agent.resync\""),
        "{log}"
    );
    assert!(!log.contains("health.port"), "{log}");
    assert!(
        log.contains("settings reloaded changed=1 waiting_for_restart=0"),
        "{log}"
    );
    assert!(answers_at(&one, 9101));
    // What holds the address back may go; another reload moves the endpoints then.
    taken.kill().expect("to kill the listener");
    taken.wait().expect("the listener's end");
    hang_up(&mut one);
    assert!(answers_at(&one, 9102) && !answers_at(&one, 9101));
    assert!(one.log().contains("a setting changed key=\"health.port\""));
}

#[test]
fn another_password_is_taken_before_and_after_joining() {
    let mut store = Store::start(NETWORK);
    protect(&mut store, "first");
    let file = NamedTempFile::new().expect("a password file");
    let set = |text: &str| fs::write(file.path(), text).expect("the password");
    let mut one = store.host(1);
    one.environment = login(&file);
    set("wrong");
    one.start_agent();
    let refused = "authentication failed, invalid user ID or password";
    one.wait_told("that the password is wrong", |line| {
        line.starts_with("STATUS=waiting for") && line.contains(refused)
    });
    set("first");
    one.signal_agent(Signal::SIGHUP);
    one.wait_ready();
    // Nobody waits for the end of a reload while the agent joins.
    assert!(!one.told().iter().any(|line| line == "RELOADING=1"));

    store.set_password("agent", "second");
    store.stop_etcd();
    store.start_etcd();
    one.wait_told_last("that the password is wrong now", |line| {
        line.starts_with("STATUS=10.5.") && line.contains(refused)
    });
    set("second");
    hang_up(&mut one);
    wait_until("the agent to be let in", || one.ask("/readyz").0 == 200);
    store.put_lease(
        "10.5.250.0-24",
        r#"{"PublicIP":"10.77.0.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
    );
    wait_until("a lease written since", || {
        one.namespace.ip("route show").contains("10.5.250.0/24")
    });
}
