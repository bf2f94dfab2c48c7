//! Faults that an overlay must outlive: afterwards the kernel is what the leases ask for, and where no subnet changed, an
//! established flow has not lost a packet.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::authority::Authority;
use crate::clock::Clock;
use crate::cluster::{NETWORK, Store, pair};
use crate::host::Host;
use crate::kernel::{Flow, wait_for_plan};
use crate::wait::wait_until;

/// The lease of a node that exists only in the store.
fn put_ghost(store: &Store, number: u8) {
    let value = format!(
        r#"{{"PublicIP":"10.77.0.{number}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:{number:02x}"}}}}"#
    );
    store.put_lease(&format!("10.5.{number}.0-24"), &value);
}

fn delete_ghost(store: &Store, number: u8) {
    store.etcdctl(&[
        "del",
        &format!("/coreos.com/network/subnets/10.5.{number}.0-24"),
    ]);
}

/// Two hosts and a flow between their containers.
fn flowing(store: &Store) -> (Host, Host, Flow) {
    let [mut one, mut two] = [1, 2].map(|number| store.host(number));
    one.join();
    two.join();
    one.wait_reaches(&two);
    let flow = Flow::start(&one, two.container_address());
    (one, two, flow)
}

#[test]
fn any_one_of_three_etcd_members_may_die() {
    let mut store = Store::start_members(NETWORK, 3);
    let (one, two, flow) = flowing(&store);
    let keys = store.lease_keys();
    for member in 1..=3 {
        store.stop_member(member);
        // What is written while the member is away arrives all the same.
        store.wait_for_etcd();
        put_ghost(&store, 240 + member);
        for host in [&one, &two] {
            wait_for_plan(&store, host);
        }
        store.start_member(member);
        store.wait_for_etcd();
    }
    assert!(keys.iter().all(|key| store.lease_keys().contains(key)));
    flow.finish();
}

#[test]
fn partition_that_outlasts_all_leases_loses_no_packet() {
    let store = Store::start(NETWORK);
    let (mut one, mut two, flow) = flowing(&store);
    let subnets = [&one, &two].map(Host::lease_key);
    put_ghost(&store, 240);
    wait_for_plan(&store, &one);

    // From etcd alone: packets between the hosts go on.
    for host in [&one, &two] {
        for command in [
            "add table inet cut",
            "add chain inet cut out { type filter hook output priority 0 ; }",
            "add rule inet cut out ip daddr 10.77.0.1 drop",
        ] {
            host.namespace.run(&format!("nft {command}"));
        }
    }
    for host in [&mut one, &mut two] {
        // Connections that carry nothing are pinged every 10 s.
        host.wait_told("that etcd is away", |line| {
            line.starts_with("STATUS=") && line.contains(crate::cluster::ETCD)
        });
    }
    // What time does to leases.
    let leases = store.etcdctl(&["lease", "list"]);
    for id in leases.lines().skip(1) {
        store.etcdctl(&["lease", "revoke", id]);
    }
    assert_eq!(store.lease_keys(), ["10.5.240.0-24"]);
    delete_ghost(&store, 240);
    put_ghost(&store, 241);
    // One after the other, so that for a while one is back and its peer is not.
    for (host, subnet) in [&one, &two].into_iter().zip(&subnets) {
        host.namespace.run("nft delete table inet cut");
        wait_until("the host to hold its subnet again", || {
            store.lease_keys().contains(subnet)
        });
        std::thread::sleep(Duration::from_secs(1));
    }
    // The node that did not come back is believed to be gone after a while.
    for host in [&one, &two] {
        wait_for_plan(&store, host);
    }
    assert_eq!([&one, &two].map(Host::lease_key), subnets);
    flow.finish();
}

#[test]
fn clock_that_jumps_by_years_changes_nothing() {
    let clock = Clock::new();
    let store = Store::start(NETWORK);
    let [mut one, mut two] = [1, 2].map(|number| store.host(number));
    one.environment = clock.environment();
    one.join();
    two.join();
    one.wait_reaches(&two);
    let maps = fs::read_to_string(format!("/proc/{}/maps", one.agent_id()));
    assert!(maps.is_ok_and(|maps| maps.contains("libfaketime")));
    let flow = Flow::start(&one, two.container_address());
    let before = store.lease_in_fields(&one.lease_key());

    for (ghost, jump) in [(240, "+800d"), (241, "-800d"), (242, "+0")] {
        clock.set(jump);
        put_ghost(&store, ghost);
        wait_for_plan(&store, &one);
        std::thread::sleep(Duration::from_secs(2));
        delete_ghost(&store, ghost);
        wait_for_plan(&store, &one);
    }
    assert_eq!(store.lease_in_fields(&one.lease_key()), before);
    let log = one.log();
    assert!(!log.contains("WARN") && !log.contains("lost"), "{log}");
    flow.finish();
}

#[test]
fn password_that_is_wrong_from_now_on_is_named_and_harmless() {
    let mut store = Store::start(NETWORK);
    for command in [
        "user add root:secret",
        "user grant-role root root",
        "role add agent",
        "role grant-permission agent --prefix=true readwrite /coreos.com/network/",
        "user add agent:first",
        "user grant-role agent agent",
        "auth enable",
    ] {
        let words: Vec<_> = command.split(' ').collect();
        store.etcdctl(&words);
    }
    store.user = Some("root:secret");
    let password = tempfile::NamedTempFile::new().expect("a password file");
    let login = |host: &mut Host, text: &str| {
        fs::write(password.path(), text).expect("the password");
        host.environment = vec![
            ("SELVAGE_ETCD_USERNAME", "agent".to_owned()),
            (
                "SELVAGE_ETCD_PASSWORD_FILE",
                password.path().display().to_string(),
            ),
        ];
    };
    let [mut one, mut two] = [1, 2].map(|number| store.host(number));
    login(&mut one, "wrong");
    one.start_agent();
    let refused = "authentication failed, invalid user ID or password";
    one.wait_told("that the password is wrong", |line| {
        line.starts_with("STATUS=waiting to join:") && line.contains(refused)
    });
    one.kill_agent();
    login(&mut one, "first");
    login(&mut two, "first");
    one.join();
    two.join();
    one.wait_reaches(&two);
    let flow = Flow::start(&one, two.container_address());
    let before = one.overlay_objects();

    // Who is logged in stays so until the connection ends; nobody gets in again.
    store.set_password("agent", "second");
    store.stop_etcd();
    store.start_etcd();
    for host in [&mut one, &mut two] {
        host.wait_told("that the password is wrong now", |line| {
            line.starts_with("STATUS=10.5.") && line.contains(refused)
        });
    }
    assert_eq!(one.overlay_objects(), before);
    put_ghost(&store, 240);
    store.set_password("agent", "first");
    for host in [&one, &two] {
        wait_for_plan(&store, host);
    }
    flow.finish();
}

#[test]
fn certificates_that_expire_are_named_and_harmless() {
    let authority = Authority::new();
    let files = [
        ("SELVAGE_ETCD_CAFILE", "ca.pem"),
        ("SELVAGE_ETCD_CERTFILE", "client.pem"),
        ("SELVAGE_ETCD_KEYFILE", "client.key"),
    ]
    .map(|(variable, file)| (variable, authority.path(file).display().to_string()));
    let mut store = Store::start_with_tls(NETWORK, authority);
    let [mut one, mut two] = [1, 2].map(|number| store.host(number));
    for host in [&mut one, &mut two] {
        host.environment = files.to_vec();
        host.join();
    }
    one.wait_reaches(&two);
    let flow = Flow::start(&one, two.container_address());
    let before = one.overlay_objects();

    // Connections outlive the certificates that they were made with.
    let authority = store.tls.as_ref().expect("an authority");
    for name in ["server", "client"] {
        authority.shorten(name, -1);
    }
    store.stop_etcd();
    store.start_member(1);
    for host in [&mut one, &mut two] {
        host.wait_told("that a certificate expired", |line| {
            line.starts_with("STATUS=10.5.") && line.contains("certificate expired")
        });
    }
    assert_eq!(one.overlay_objects(), before);
    let authority = store.tls.as_ref().expect("an authority");
    for name in ["server", "client"] {
        authority.certificate(name, "leaf", Some("ca"));
    }
    store.stop_etcd();
    store.start_etcd();
    put_ghost(&store, 240);
    for host in [&one, &two] {
        wait_for_plan(&store, host);
    }
    flow.finish();
}

/// A sequence of numbers that look random and are the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % sides
    }
}

/// Kills the agent after a random time below `within`, twice: then the next one finds a mess on top of a mess.
fn kill_at_random(host: &mut Host, dice: &mut Dice, within: Duration) {
    host.kill_agent();
    host.start_agent();
    let micros = u64::try_from(within.as_micros()).expect("a short time");
    std::thread::sleep(Duration::from_micros(dice.roll(micros)));
    host.kill_agent();
    host.start_agent();
}

#[test]
fn agent_killed_at_25_moments_of_its_start_leaves_nothing_wrong() {
    let store = Store::start(NETWORK);
    let (mut one, two, flow) = flowing(&store);
    for number in 200..230 {
        put_ghost(&store, number);
    }
    let mut dice = Dice(1);
    for moment in 0..25 {
        // Something changes that the killed agent may have done half of.
        let number = 200 + moment;
        delete_ghost(&store, number);
        put_ghost(&store, number.wrapping_add(30));
        kill_at_random(&mut one, &mut dice, Duration::from_millis(60));
        one.wait_ready();
        wait_for_plan(&store, &one);
    }
    wait_for_plan(&store, &two);
    flow.finish();
}

#[test]
fn agent_killed_at_25_moments_of_a_storm_of_peers_leaves_nothing_wrong() {
    let store = Store::start(NETWORK);
    let (mut one, two, flow) = flowing(&store);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let storm = scope.spawn(|| {
            let mut dice = Dice(2);
            while !over.load(Ordering::Relaxed) {
                let number = 200 + u8::try_from(dice.roll(40)).expect("a small number");
                match dice.roll(3) {
                    0 => delete_ghost(&store, number),
                    _ => put_ghost(&store, number),
                }
            }
        });
        let mut dice = Dice(3);
        for _ in 0..25 {
            kill_at_random(&mut one, &mut dice, Duration::from_millis(200));
            one.wait_ready();
        }
        over.store(true, Ordering::Relaxed);
        storm.join().expect("the storm");
    });
    for host in [&one, &two] {
        wait_for_plan(&store, host);
    }
    flow.finish();
}

/// `selvage network ARGUMENTS`.
fn network(host: &Host, arguments: &[&str]) -> String {
    let output = host
        .namespace
        .command(env!("CARGO_BIN_EXE_selvage"))
        .arg("network")
        .args(arguments)
        .args(["--etcd-endpoints", &host.etcd])
        .output()
        .expect("selvage network");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn reserved_subnet_waits_for_its_host() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    let said = network(
        &one,
        &["reserve", "10.5.77.0/24", "--public-ip", "10.77.0.11"],
    );
    assert_eq!(said, "10.5.77.0/24 is reserved for 10.77.0.11\n");
    one.start_agent();
    one.wait_ready();
    assert_eq!(one.lease_key(), "10.5.77.0-24");
    let listed = network(&one, &["reservations"]);
    assert!(
        listed.contains("10.5.77.0/24  10.77.0.11  vxlan"),
        "{listed}"
    );

    // The host keeps its subnet, and its kernel does not notice.
    let before = one.overlay_objects();
    network(&one, &["unreserve", "10.5.77.0/24"]);
    assert_eq!(network(&one, &["reservations"]).lines().count(), 1);
    wait_for_plan(&store, &one);
    assert_eq!(one.overlay_objects(), before);
    assert!(!one.log().contains("lost"), "{}", one.log());
}

#[test]
fn host_that_leaves_frees_its_subnet_and_keeps_its_data_plane() {
    let (store, mut one, mut two) = pair();
    let own = one.lease_key();
    let output = one.selvage("leave").output().expect("selvage leave");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr.contains("stop it first (systemctl stop selvage)"),
        "{stderr}"
    );
    assert!(store.lease_keys().contains(&own));

    one.stop_agent();
    let before = one.overlay_objects();
    for said in ["is free again", "this host holds no lease"] {
        let output = one.selvage("leave").output().expect("selvage leave");
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && stdout.contains(said), "{stdout}");
    }
    assert_eq!(store.lease_keys(), [two.lease_key()]);
    assert_eq!(one.overlay_objects(), before);
    wait_for_plan(&store, &two);

    // Asked to, an agent does so by itself.
    two.kill_agent();
    two.environment = vec![
        ("SELVAGE_LEAVE_ON_STOP", "true".to_owned()),
        ("SELVAGE_ETCD_LEASE_TTL", "3600".to_owned()),
    ];
    two.start_agent();
    two.wait_ready();
    // A lease of another duration is replaced by one of the duration asked for.
    let listed = network(&two, &["leases"]);
    assert!(listed.contains("59 min"), "{listed}");
    assert_eq!(two.stop_agent(), Some(0));
    assert!(store.lease_keys().is_empty());
}
