//! A network config that changes while the agents run.

use std::collections::BTreeSet;
use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::NamedTempFile;

use crate::cluster::{NETWORK, Store, pair};
use crate::host::Host;
use crate::wait::wait_until;

/// Writes another network config.
fn set(store: &Store, config: &str) {
    store.etcdctl(&["put", "/coreos.com/network/config", config]);
}

fn config(backend: &str) -> String {
    format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#)
}

#[test]
fn running_agents_switch_the_backend_and_keep_their_subnets() {
    let (store, one, two) = pair();
    let subnets = [one.lease_key(), two.lease_key()];
    for (backend, mtu, device) in [
        (r#"{"Type":"host-gw"}"#, "1500", None),
        (r#"{"Type":"vxlan","VNI":5}"#, "1450", Some("flannel.5")),
        (
            r#"{"Type":"vxlan","VNI":5,"MTU":1400}"#,
            "1350",
            Some("flannel.5"),
        ),
        (r#"{"Type":"vxlan"}"#, "1450", Some("flannel.1")),
    ] {
        set(&store, &config(backend));
        for host in [&one, &two] {
            wait_until(&format!("{backend} to be followed"), || {
                host.subnet_env("FLANNEL_MTU") == mtu
            });
        }
        one.wait_reaches(&two);
        wait_until("former devices to be gone", || {
            [&one, &two].iter().all(|host| {
                let links = host.namespace.ip("-o link show type vxlan");
                let names: Vec<&str> = links
                    .lines()
                    .filter_map(|line| line.split(": ").nth(1))
                    .collect();
                names == device.as_slice()
            })
        });
        assert_eq!([one.lease_key(), two.lease_key()], subnets);
    }
}

/// An echo request every 2 ms from the first host's container to the second's, both ways being tried.
struct Pings {
    ping: Child,
    /// Its output. A pipe that nobody reads would stop it.
    output: NamedTempFile,
}

impl Pings {
    fn start(from: &Host, to: &Host) -> Self {
        let target = to.container_address().to_string();
        let output = NamedTempFile::new().expect("a file for ping's output");
        let stdout = output.reopen().expect("the same file");
        let ping = from
            .container()
            .command("ping")
            .args(["-i", "0.002", &target])
            .stdout(stdout)
            .spawn()
            .expect("ping");
        Self { ping, output }
    }

    /// The requests that were answered.
    fn answered(&self) -> BTreeSet<u32> {
        let text = std::fs::read_to_string(self.output.path()).expect("what ping found");
        text.lines()
            .filter(|line| line.contains(" bytes from "))
            .filter_map(|line| line.split_once("icmp_seq=")?.1.split(' ').next())
            .filter_map(|number| number.parse().ok())
            .collect()
    }

    /// Fails if there are no answers any more, or a request before the last one that was answered has none. Later ones
    /// may be under way.
    fn lost_none(mut self) {
        let before = self.answered();
        wait_until("another answer", || self.answered().last() > before.last());
        let id = i32::try_from(self.ping.id()).expect("a process id");
        kill(Pid::from_raw(id), Signal::SIGINT).expect("to end ping");
        self.ping.wait().expect("ping to end");
        let answered = self.answered();
        let last = answered.last().copied().unwrap_or_default();
        let lost: Vec<u32> = (1..last).filter(|n| !answered.contains(n)).collect();
        assert!(last > 100, "only {last} pings were answered");
        assert!(
            lost.is_empty(),
            "of {last} pings, these were lost: {lost:?}"
        );
    }
}

/// Each node hears of a changed config, and of the other's new lease, in its own time.
#[test]
fn change_of_the_backend_loses_no_packet() {
    let (store, one, two) = pair();
    let pings = Pings::start(&one, &two);
    for (backend, mtu, leases) in [
        (
            r#"{"Type":"host-gw"}"#,
            "1500",
            r#""BackendType":"host-gw""#,
        ),
        (
            r#"{"Type":"udp"}"#,
            "1472",
            r#""PublicIPv6":null,"SelvageOwner""#,
        ),
        (r#"{"Type":"vxlan"}"#, "1450", r#""BackendType":"vxlan""#),
        (
            r#"{"Type":"udp"}"#,
            "1472",
            r#""PublicIPv6":null,"SelvageOwner""#,
        ),
        (
            r#"{"Type":"host-gw"}"#,
            "1500",
            r#""BackendType":"host-gw""#,
        ),
        (r#"{"Type":"vxlan"}"#, "1450", r#""BackendType":"vxlan""#),
    ] {
        set(&store, &config(backend));
        for host in [&one, &two] {
            wait_until(&format!("{backend} to be followed"), || {
                host.subnet_env("FLANNEL_MTU") == mtu
            });
        }
        wait_until("the leases for it", || {
            let all = store.etcdctl(&["get", "--prefix", "/coreos.com/network/subnets/"]);
            all.matches(leases).count() == 2
        });
        // Hosts that have followed are reached by the new way alone.
        one.wait_reaches(&two);
    }
    wait_until("the former backends to go", || {
        [&one, &two]
            .iter()
            .all(|host| host.namespace.ip("-o link show type tun").is_empty())
    });
    pings.lost_none();
    for host in [&one, &two] {
        let log = host.log();
        let troubles: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
        assert!(troubles.is_empty(), "{troubles:#?}");
    }
}

/// A peer that follows later, as a real flannel does when it is restarted, is reached in the old way until then.
#[test]
fn peer_that_does_not_follow_a_change_of_the_backend_is_reached_as_before() {
    let (store, one, two) = pair();
    two.signal_agent(Signal::SIGSTOP);
    let pings = Pings::start(&one, &two);
    set(&store, &config(r#"{"Type":"host-gw"}"#));
    wait_until("the change to be followed", || {
        one.subnet_env("FLANNEL_MTU") == "1500"
    });
    wait_until(
        "the other's lease to be known as of another backend",
        || {
            one.log()
                .contains("it stays reachable through the former one")
        },
    );
    one.wait_reaches(&two);
    // Not even where the underlay changes meanwhile.
    one.namespace.ip("link set eth0 mtu 1490");
    wait_until("the underlay's change to be followed", || {
        one.subnet_env("FLANNEL_MTU") == "1490"
    });
    one.wait_reaches(&two);
    two.signal_agent(Signal::SIGCONT);
    wait_until("the change to be followed", || {
        two.subnet_env("FLANNEL_MTU") == "1500"
    });
    wait_until("the former devices to go", || {
        [&one, &two]
            .iter()
            .all(|host| host.namespace.ip("-o link show type vxlan").is_empty())
    });
    one.wait_reaches(&two);
    pings.lost_none();
}

#[test]
fn a_wider_network_is_followed() {
    let (store, one, two) = pair();
    set(
        &store,
        r#"{"Network":"10.4.0.0/15","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#,
    );
    wait_until("the wider network", || {
        one.subnet_env("FLANNEL_NETWORK") == "10.4.0.0/15"
            && two.subnet_env("FLANNEL_NETWORK") == "10.4.0.0/15"
    });
    one.wait_reaches(&two);
}

#[test]
fn what_cannot_be_followed_is_said_and_harms_nothing() {
    let (store, mut one, two) = pair();
    let before = one.overlay_objects();
    for (config, reason) in [
        (
            r#"{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan"}}"#,
            "does not allow this host's subnet",
        ),
        (
            r#"{"Network":"10.5.0.0/16","Backend":{"Type":"x"}}"#,
            "the backend \"x\" does not exist",
        ),
        (r#"{"Network":"nonsense"}"#, "nonsense"),
    ] {
        set(&store, config);
        one.wait_told(reason, |line| {
            line.starts_with("STATUS=") && line.contains(reason)
        });
        assert!(one.reaches(&two));
        assert_eq!(one.overlay_objects(), before);
    }
    set(&store, NETWORK);
    one.wait_told_last("that all is well", |line| !line.contains(';'));
    assert_eq!(one.overlay_objects(), before);
}

#[test]
fn a_host_whose_subnet_was_taken_is_renumbered_and_goes_on() {
    let (store, mut one, two) = pair();
    let old = one.lease_key();
    let taken = r#"{"PublicIP":"10.77.0.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}"#;
    store.put_lease(&old, taken);
    wait_until("another subnet", || one.lease_key() != old);
    one.wait_told("what keeps the old one busy", |line| {
        line.starts_with("STATUS=") && line.contains("dev docker0")
    });
    // As when Docker restarts with the new subnet.
    one.namespace.ip("link del docker0");
    one.wait_told_last("that all is well", |line| !line.contains(';'));
    let bridge = one.subnet_env("DOCKER_OPT_BIP");
    assert_eq!(
        bridge,
        format!("--bip={}", one.subnet_env("FLANNEL_SUBNET"))
    );
    // Who took the subnet is a peer like any other.
    wait_until("the old subnet's new owner to be programmed", || {
        let routes = one.namespace.ip("route show");
        routes.contains(&old.replace('-', "/")) && routes.contains("flannel.1")
    });
    assert_eq!(store.lease_keys().len(), 3);
    drop(two);
}
