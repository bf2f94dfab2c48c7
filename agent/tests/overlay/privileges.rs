//! What flannel can do because it is plain root, the agent can do too; nothing else is kept.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use nix::sys::signal::Signal;
use selvage::cluster::network_config::NetworkConfig;
use selvage::host::privileges::Privileges;
use selvage::plan::backend::BackendConfig;

use crate::authority::Authority;
use crate::cluster::{NETWORK, Store};
use crate::host::Host;
use crate::wait::wait_until;

/// Somebody who is not root.
const SOMEBODY: u32 = 65_534;

// Bits of capabilities(7)'s sets.
const DAC_OVERRIDE: u64 = 1 << 1;
const DAC_READ_SEARCH: u64 = 1 << 2;
const NET_BIND_SERVICE: u64 = 1 << 10;
/// CAP_NET_ADMIN and CAP_NET_RAW.
const ALWAYS: u64 = 1 << 12 | 1 << 13;

/// A capability set in a process's status file.
fn set(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let digits = line.expect("the set").trim_start_matches(':').trim();
    u64::from_str_radix(digits, 16).expect("a number")
}

fn status_of(process: impl std::fmt::Display) -> String {
    fs::read_to_string(format!("/proc/{process}/status")).expect("a process's status")
}

/// Waits until the agent is ready, and sees that it has these capabilities beside the usual, and can get no others.
fn assert_keeps(host: &mut Host, more: u64) {
    host.wait_ready();
    let status = status_of(host.agent_id());
    for name in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(set(&status, name), ALWAYS | more, "{name}");
    }
}

fn give_away(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("the mode");
    chown(path, Some(SOMEBODY), Some(SOMEBODY)).expect("another owner");
}

#[test]
fn an_agent_that_needs_no_more_keeps_two_capabilities() {
    let store = Store::start(NETWORK);
    let mut host = store.host(1);
    host.start_agent();
    assert_keeps(&mut host, 0);
}

#[test]
fn certificates_of_another_user_are_read_now_and_at_a_reload() {
    let authority = Authority::new();
    let option =
        |name: &str, file: &str| format!("--etcd-{name}={}", authority.path(file).display());
    let arguments = vec![
        option("cafile", "ca.pem"),
        option("certfile", "client.pem"),
        option("keyfile", "client.key"),
    ];
    let files = ["ca.pem", "client.pem", "client.key"].map(|file| authority.path(file));
    let store = Store::start_with_tls(NETWORK, authority);
    for file in &files {
        give_away(file, 0o600);
    }
    let mut host = store.host(1);
    host.arguments = arguments;
    host.start_agent();
    assert_keeps(&mut host, DAC_READ_SEARCH);
    host.signal_agent(Signal::SIGHUP);
    wait_until("the settings to be read again", || {
        host.log().contains("settings reloaded")
    });
    assert!(!host.log().contains("failed to reload"), "{}", host.log());
}

#[test]
fn settings_of_another_user_are_read_again_at_a_reload() {
    let store = Store::start(NETWORK);
    let mut host = store.host(1);
    let file = tempfile::NamedTempFile::new().expect("the settings");
    fs::write(file.path(), "[firewall]\nblackhole-route = false\n").expect("the settings");
    give_away(file.path(), 0o600);
    host.arguments = vec!["--config".to_owned(), file.path().display().to_string()];
    host.start_agent();
    assert_keeps(&mut host, DAC_READ_SEARCH);
    fs::write(file.path(), "[firewall]\nblackhole-route = true\n").expect("the settings");
    host.signal_agent(Signal::SIGHUP);
    wait_until("the settings to be followed", || {
        let routes = host.namespace.ip("route show type blackhole");
        routes.contains("10.5.")
    });
}

#[test]
fn a_subnet_file_in_the_directory_of_another_user_is_written() {
    let store = Store::start(NETWORK);
    let mut host = store.host(1);
    let file = host.subnet_file();
    give_away(file.parent().expect("its directory"), 0o755);
    host.start_agent();
    assert_keeps(&mut host, DAC_OVERRIDE);
    assert!(host.subnet_env("FLANNEL_SUBNET").starts_with("10.5."));
}

#[test]
fn health_endpoints_listen_below_1024() {
    let store = Store::start(NETWORK);
    let mut host = store.host(1);
    host.arguments = vec!["--healthz-port=80".to_owned()];
    host.start_agent();
    assert_keeps(&mut host, NET_BIND_SERVICE);
    let listening = host.namespace.run("ss -tlnH");
    assert!(listening.contains(":80 "), "{listening}");
}

/// The kernel listens for vxlan itself, and asks whoever sets the device up for the privilege all the same.
#[test]
fn backends_listen_below_1024() {
    for kind in ["udp", "vxlan"] {
        let config =
            format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"{kind}","Port":443}}}}"#);
        let store = Store::start(&config);
        let mut host = store.host(1);
        host.start_agent();
        assert_keeps(&mut host, NET_BIND_SERVICE);
        let listening = host.namespace.run("ss -ulnH");
        assert!(listening.contains(":443 "), "{kind}: {listening}");
    }
}

#[test]
fn a_later_backend_gets_nothing_back_and_that_is_said() {
    let store = Store::start(NETWORK);
    let mut host = store.host(1);
    host.start_agent();
    host.wait_ready();
    let put = |backend: &str| {
        let config = format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#);
        store.etcdctl(&["put", "/coreos.com/network/config", &config]);
    };
    let told = |host: &Host, what: &str| {
        let hint = format!("{what} were dropped when the agent started with another backend");
        wait_until("the hint to be logged", || host.log().contains(&hint));
    };
    put(r#"{"Type":"extension","PostStartupCommand":"true"}"#);
    told(&host, "the privileges for its commands");
    put(r#"{"Type":"udp","Port":443}"#);
    told(&host, "the privileges for a port below 1024");
    host.kill_agent();
    host.start_agent();
    assert_keeps(&mut host, NET_BIND_SERVICE);
}

/// flannel's are what flanneld was started with.
#[test]
fn commands_of_the_backend_extension_keep_all_privileges() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    fs::write(path("file"), "").expect("a file");
    let (file, seen) = (path("file"), path("status"));
    let command = format!(
        "chown {SOMEBODY} {} && cat /proc/self/status > {}",
        file.display(),
        seen.display()
    );
    let config = format!(
        r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"extension","PostStartupCommand":"{command}"}}}}"#
    );
    let store = Store::start(&config);
    let mut host = store.host(1);
    host.start_agent();
    host.wait_ready();
    let theirs = fs::read_to_string(seen).expect("what the command saw");
    assert_eq!(set(&theirs, "CapEff"), set(&status_of("self"), "CapEff"));
    assert_eq!(set(&status_of(host.agent_id()), "CapEff"), ALWAYS);
}

/// As in the shipped unit, whose NoNewPrivileges= leaves a child no more than its parent might take.
#[test]
fn no_new_privileges_leaves_the_commands_theirs() {
    let before = set(&status_of("thread-self"), "CapEff");
    nix::sys::prctl::set_no_new_privs().expect("to give up new privileges");
    let privileges = Privileges::bare().expect("the privileges");
    let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"extension"}}"#;
    let config = NetworkConfig::parse(config).expect("a network config");
    let backend = BackendConfig::parse(&config).expect("a backend");
    privileges.settle(&backend).expect("fewer privileges");
    let child = std::process::Command::new("cat")
        .arg("/proc/self/status")
        .output()
        .expect("a child");
    let child = String::from_utf8_lossy(&child.stdout);
    assert_eq!(set(&child, "CapEff"), before);
    assert_eq!(set(&status_of("thread-self"), "CapEff"), ALWAYS);
}

/// A bounding set takes privileges away before the agent can say that it needs them.
#[test]
fn the_units_leave_what_settings_may_ask_for() {
    let lines = |unit: &str| -> Vec<String> {
        let path = format!("{}/../units/system/{unit}", env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(path).expect("a unit");
        text.lines().map(str::to_owned).collect()
    };
    for unit in ["selvage.service", "selvage@.service"] {
        let lines = lines(unit);
        for key in ["CapabilityBoundingSet=", "ProtectKernelModules="] {
            assert!(!lines.iter().any(|line| line.starts_with(key)), "{unit}");
        }
        assert!(
            lines.contains(&"SystemCallFilter=@system-service @module".to_owned()),
            "{unit}"
        );
    }
    for (unit, capability) in [
        ("selvage-network.service", "CAP_DAC_READ_SEARCH"),
        ("selvage-server.service", "CAP_DAC_READ_SEARCH"),
        ("selvage-server.service", "CAP_NET_BIND_SERVICE"),
    ] {
        let lines = lines(unit);
        let set = lines
            .iter()
            .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
        let set = set.expect("a bounding set");
        assert!(
            set.split(' ').any(|word| word == capability),
            "{unit}: {set}"
        );
    }
}
