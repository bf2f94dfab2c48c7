//! Programs that fail or hang beside the agent: neither peers nor answers nor `subnet.env` wait for them.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;

use tempfile::TempDir;

use crate::cluster::{NETWORK, Store};
use crate::host::Host;
use crate::wait::{PATIENCE, wait_for, wait_until};

/// A network whose firewall takes no program.
const NFTABLES: &str =
    r#"{"Network":"10.5.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;

/// A lease of a node that exists only in the store.
const GHOST: &str = r#"{"PublicIP":"10.77.0.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;

/// How often it is tried to be faster than a deadline of the agent's, on a machine that may be held up for as long.
const ROUNDS: u8 = 4;

/// A directory for programs that the test makes fail, or hang after they have left their process id.
struct Programs(TempDir);

impl Programs {
    fn new() -> Self {
        Self(TempDir::new().expect("a directory for programs"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What makes a shell leave its id and hang.
    fn hang(&self) -> String {
        let pid = self.path("pid");
        format!(
            "echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000",
            pid.display()
        )
    }

    /// Puts `iptables-save` before the real one: it hangs while there is a file `hang`, and fails while there is one
    /// `fail`.
    fn with_iptables_save(self, host: &mut Host) -> Self {
        let real = ["/usr/sbin/iptables-save", "/sbin/iptables-save"];
        let real = real.iter().find(|path| fs::exists(path).unwrap_or(false));
        let script = format!(
            "#!/bin/sh\nif [ -e {} ]; then {}; fi\nif [ -e {} ]; then echo broken >&2; exit 1; fi\nexec {} \"$@\"\n",
            self.path("hang").display(),
            self.hang(),
            self.path("fail").display(),
            real.expect("iptables-save of the package iptables"),
        );
        let program = self.path("iptables-save");
        fs::write(&program, script).expect("a script");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a program");
        let path = std::env::var("PATH").expect("PATH");
        let path = format!("{}:{path}", self.0.path().display());
        host.environment.push(("PATH", path));
        self
    }

    fn set(&self, fault: &str) {
        fs::write(self.path(fault), "").expect("a file");
    }

    fn clear(&self, fault: &str) {
        fs::remove_file(self.path(fault)).expect("a file that is there");
    }

    /// The process that hangs, once there is one.
    fn hanging(&self) -> Option<String> {
        let pid = fs::read_to_string(self.path("pid")).ok()?;
        let pid = pid.trim().to_owned();
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (comm.trim() == "sleep").then_some(pid)
    }
}

fn has_route(host: &Host, subnet: &str) -> bool {
    host.namespace.ip("route show").contains(subnet)
}

fn wait_readyz(host: &mut Host, text: &str) {
    wait_for(PATIENCE, &format!("readyz to say {text:?}"), || {
        // An agent whose service manager reads nothing waits for it: the kernel queues ten messages unless systemd has
        // raised that (net.unix.max_dgram_qlen).
        host.told();
        let (_, body) = host.ask("/readyz");
        body.contains(text).then_some(())
    });
}

#[test]
fn peers_and_answers_do_not_wait_for_a_firewall_that_hangs() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    let programs = Programs::new().with_iptables_save(&mut one);
    one.environment
        .push(("WATCHDOG_USEC", "2000000".to_owned()));
    one.start_agent();
    one.wait_ready();
    programs.set("hang");
    let in_time = (1..=ROUNDS).any(|round| {
        // Whatever changes the ruleset will do.
        one.namespace.run("iptables -A FORWARD -j ACCEPT");
        let hanging = wait_for(PATIENCE, "iptables-save to hang", || programs.hanging());
        let subnet = format!("10.5.25{round}.0");
        store.put_lease(
            &format!("{subnet}-24"),
            &GHOST.replace("8f:44", &format!("8f:4{round}")),
        );
        wait_until("the peer's route", || {
            has_route(&one, &format!("{subnet}/24"))
        });
        assert_eq!(one.ask("/v1/status").0, 200);
        let alive = |one: &mut Host| {
            one.told()
                .iter()
                .filter(|line| *line == "WATCHDOG=1")
                .count()
        };
        let before = alive(&mut one);
        wait_until("a sign of life", || alive(&mut one) > before);
        programs.hanging() == Some(hanging)
    });
    assert!(in_time, "the agent waited for iptables-save");
    // It is asked for again and again, which must not hide that it never ends.
    wait_readyz(&mut one, "iptables-save timed out after 10 s");
    programs.clear("hang");
    wait_readyz(&mut one, "is ready");
}

/// Subnets of this length are taken again by choosing among all, not by one transaction.
#[test]
fn answers_do_not_wait_for_a_lease_that_is_taken_again() {
    let store = Store::start(
        r#"{"Network":"10.5.0.0/16","SubnetLen":26,"EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#,
    );
    let mut one = store.host(1);
    let programs = Programs::new();
    let mut relay = store.start_relay(2390, &programs.path("slow"));
    one.etcd = "http://10.77.0.1:2390".to_owned();
    one.start_agent();
    one.wait_ready();
    let key = store.lease_keys().pop().expect("a lease");
    programs.set("slow");
    store.etcdctl(&["del", &format!("/coreos.com/network/subnets/{key}")]);
    // It takes at least three questions, each of a second.
    wait_for(PATIENCE, "the status to say that there is no lease", || {
        let status: serde_json::Value =
            serde_json::from_str(&one.ask("/v1/status").1).expect("a status");
        let taken = one.log().matches("lease acquired").count();
        assert_eq!(
            taken, 1,
            "the lease was back before anybody could hear of its loss"
        );
        (status["lease"]["held"] == false).then_some(())
    });
    wait_until("the lease to be back", || store.lease_keys().contains(&key));
    wait_readyz(&mut one, "is ready");
    programs.clear("slow");
    relay.kill().expect("to kill the relay");
    relay.wait().expect("the relay's end");
}

/// An address that changes is published, and until etcd has answered, or has not for five seconds, all else goes on.
#[test]
fn repairs_do_not_wait_for_an_etcd_that_says_nothing_to_a_new_address() {
    let store = Store::start(NFTABLES);
    let mut one = store.host(1);
    let programs = Programs::new();
    let mut relay = store.start_relay(2392, &programs.path("slow"));
    one.etcd = "http://10.77.0.1:2392".to_owned();
    store.put_lease("10.5.250.0-24", GHOST);
    one.start_agent();
    one.wait_ready();
    let key = one.lease_key();
    let relay_id = i32::try_from(relay.id()).expect("a process id");
    let relay_id = nix::unistd::Pid::from_raw(relay_id);
    let failures = |one: &Host| one.log().matches("failed to publish").count();
    let in_time = (1..=ROUNDS).any(|round| {
        nix::sys::signal::kill(relay_id, nix::sys::signal::Signal::SIGSTOP).expect("to stop it");
        let before = failures(&one);
        one.move_to(Ipv4Addr::new(10, 77, 0, 60 + round));
        let local = format!("local {}", one.address);
        wait_until("the device to send from the new address", || {
            one.namespace.ip("-d link show flannel.1").contains(&local)
        });
        // The second and third time at the latest, the question is under way.
        for _ in 0..3 {
            one.namespace.ip("route del 10.5.250.0/24");
            wait_until("the route to be back", || has_route(&one, "10.5.250.0/24"));
        }
        let in_time = failures(&one) == before;
        nix::sys::signal::kill(relay_id, nix::sys::signal::Signal::SIGCONT).expect("to go on");
        let published = format!("/coreos.com/network/subnets/{key}");
        wait_until("the new address in the lease", || {
            let lease = store.etcdctl(&["get", &published]);
            lease.contains(&one.address.to_string())
        });
        in_time
    });
    assert!(in_time, "repairs waited for etcd");
    wait_readyz(&mut one, "is ready");
    relay.kill().expect("to kill the relay");
    relay.wait().expect("the relay's end");
}

#[test]
fn subnet_env_does_not_wait_for_a_firewall_that_fails() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    let programs = Programs::new().with_iptables_save(&mut one);
    one.start_agent();
    one.wait_ready();
    let former = one.lease_key();
    programs.set("fail");
    // Somebody else has the subnet now.
    store.put_lease(&former, GHOST);
    wait_until("the file to name the new subnet", || {
        one.lease_key() != former
    });
    assert!(store.lease_keys().contains(&one.lease_key()));
    wait_readyz(
        &mut one,
        "failed to program the firewall: iptables-save failed to list the rules: broken",
    );
    programs.clear("fail");
    wait_readyz(&mut one, "is ready");
}

/// A table in the agent's place that belongs to another process (`flags owner`) as long as that runs: the kernel refuses
/// anybody else to change it.
#[test]
fn a_host_without_a_firewall_is_not_ready_and_has_its_subnet_env() {
    let store = Store::start(NFTABLES);
    let mut one = store.host(1);
    let mut owner = one
        .namespace
        .command("nft")
        .arg("-i")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("nft of the package nftables");
    let mut input = owner.stdin.take().expect("its input");
    input
        .write_all(b"add table inet selvage { flags owner; }\n")
        .expect("a table");
    wait_until("the table", || {
        one.namespace.run("nft list tables").contains("selvage")
    });
    one.start_agent();
    let refused = "failed to program the firewall: the kernel refused to replace the agent's table";
    one.wait_told("what it waits for", |line| {
        line.starts_with(&format!("STATUS=waiting to join: {refused}"))
    });
    assert!(store.lease_keys().contains(&one.lease_key()));
    assert!(!one.told().contains(&"READY=1".to_owned()));
    // Its table goes with it.
    drop(input);
    owner.wait().expect("nft's end");
    one.wait_ready();
    let shown = one.namespace.run("nft list table inet selvage");
    assert!(shown.contains("masquerade"), "{shown}");
}

/// As on a kernel without nftables: the agent alone, not the programs that it runs, is refused the socket. The network
/// asks for nftables and gets iptables.
#[test]
fn a_kernel_without_nftables_has_its_rules_in_iptables_and_is_looked_at() {
    const REFUSE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
int socket(int domain, int type, int protocol) {
    static int (*real)(int, int, int);
    if (!real) real = dlsym(RTLD_NEXT, "socket");
    if (domain == AF_NETLINK && protocol == 12 && !strcmp(program_invocation_short_name, "selvage")) {
        errno = EPROTONOSUPPORT;
        return -1;
    }
    return real(domain, type, protocol);
}
"#;
    let programs = Programs::new();
    let (source, library) = (programs.path("refuse.c"), programs.path("refuse.so"));
    fs::write(&source, REFUSE).expect("the source");
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status();
    assert!(built.expect("cc, which Rust's own linker is").success());
    let store = Store::start(NFTABLES);
    let mut one = store.host(1);
    let library = library.display().to_string();
    one.environment.push(("LD_PRELOAD", library));
    one.start_agent();
    one.wait_ready();
    let log = one.log();
    let told = "failed to monitor changes of the firewall rules";
    assert_eq!(log.matches(told).count(), 1, "{log}");
    let rules = || one.namespace.run("iptables-save -t nat");
    let before = rules().matches("flanneld masq").count();
    assert!(before > 1, "{}", rules());
    one.namespace.run("iptables -t nat -F");
    wait_until("the rules to be looked at", || {
        rules().matches("flanneld masq").count() == before
    });
    assert_eq!(one.log().matches(told).count(), 1);
}

#[test]
fn answers_do_not_wait_for_a_command_that_hangs() {
    let programs = Programs::new();
    let add = format!("case $SUBNET in 10.5.25*) {};; esac", programs.hang());
    let network = serde_json::json!({
        "Network": "10.5.0.0/16",
        "Backend": {"Type": "extension", "SubnetAddCommand": add},
    });
    let store = Store::start(&network.to_string());
    let mut one = store.host(1);
    one.start_agent();
    one.wait_ready();
    let ghost =
        r#"{"PublicIP":"10.77.0.99","PublicIPv6":null,"BackendType":"extension","BackendData":""}"#;
    let in_time = (1..=ROUNDS).any(|round| {
        store.put_lease(&format!("10.5.25{round}.0-24"), ghost);
        let hanging = wait_for(PATIENCE, "the command to hang", || programs.hanging());
        assert_eq!(one.ask("/v1/status").0, 200);
        store.put_lease("10.6.1.0-24", &ghost.replace("0.99", &format!("0.{round}")));
        wait_for(PATIENCE, "the other lease to be told of", || {
            one.ask("/v1/status")
                .1
                .contains(&format!("10.77.0.{round}\""))
                .then_some(())
        });
        programs.hanging() == Some(hanging)
    });
    assert!(in_time, "the agent waited for the command");
}

/// A changed config may begin with a command of the administrator's, which has 30 s.
#[test]
fn peers_and_answers_do_not_wait_for_the_first_command_of_a_changed_config() {
    let programs = Programs::new();
    let store = Store::start(NFTABLES);
    let mut one = store.host(1);
    one.start_agent();
    one.wait_ready();
    let set = |config: &str| {
        store.etcdctl(&["put", "/coreos.com/network/config", config]);
    };
    let in_time = (1..=ROUNDS).any(|round| {
        let first = format!(": {round}; {}", programs.hang());
        let extension = serde_json::json!({
            "Network": "10.5.0.0/16",
            "Backend": {"Type": "extension", "PreStartupCommand": first},
        });
        let former = programs.hanging();
        set(&extension.to_string());
        // The one of the config before ends.
        let hanging = wait_for(PATIENCE, "the command to hang", || {
            programs
                .hanging()
                .filter(|now| Some(now) != former.as_ref())
        });
        let subnet = format!("10.5.25{round}.0");
        store.put_lease(
            &format!("{subnet}-24"),
            &GHOST.replace("8f:44", &format!("8f:4{round}")),
        );
        wait_until("the peer's route", || {
            has_route(&one, &format!("{subnet}/24"))
        });
        assert_eq!(one.ask("/v1/status").0, 200);
        programs.hanging() == Some(hanging)
    });
    assert!(in_time, "the agent waited for the command");
    set(NFTABLES);
    wait_until("the command to end", || programs.hanging().is_none());
    wait_readyz(&mut one, "is ready");
}
