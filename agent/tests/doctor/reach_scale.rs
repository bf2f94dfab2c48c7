//! A thousand peers: the doctor is done in ten seconds, whether they answer or not.
//!
//! All of them are one host with a thousand addresses, and each is the gateway to a subnet of its own (host-gw).

use std::io::Write;
use std::os::fd::AsFd;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use etcd_client::{Client, PutOptions, Txn, TxnOp};
use nix::sched::{CloneFlags, setns};
use selvage::command::doctor::Finding;

use crate::cluster::{ETCD, Store};
use crate::diagnosis::Diagnosis;
use crate::host::Host;
use crate::wait::wait_until;

const NETWORK: &str = r#"{"Network":"172.16.0.0/12","SubnetLen":24,"Backend":{"Type":"host-gw"}}"#;
const PEERS: u16 = 1000;
/// etcd takes so many operations at once (`--max-txn-ops`).
const BATCH: usize = 128;

/// The public addresses and the lease keys of the peers.
fn peers() -> Vec<(String, String)> {
    let peer = |number: u16| {
        let [high, low] = number.to_be_bytes();
        (
            format!("10.77.{}.{low}", 4 + high),
            format!("172.{}.{low}.0-24", 17 + high),
        )
    };
    (1..=PEERS).map(peer).collect()
}

/// Writes the leases, from a host.
fn write_leases(host: &Host) {
    let write = || {
        setns(host.namespace.as_fd(), CloneFlags::CLONE_NEWNET).expect("to enter the namespace");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut client = Client::connect([ETCD], None).await.expect("etcd");
            for batch in peers().chunks(BATCH) {
                let put = |(address, key): &(String, String)| {
                    let value = format!(
                        r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"host-gw"}}"#
                    );
                    let key = format!("/coreos.com/network/subnets/{key}");
                    TxnOp::put(key, value, None::<PutOptions>)
                };
                let puts: Vec<_> = batch.iter().map(put).collect();
                let put = client.txn(Txn::new().and_then(puts)).await;
                put.expect("to write leases");
            }
        });
    };
    thread::scope(|scope| scope.spawn(write).join().expect("the leases"));
}

/// Runs `ip` for each peer's address.
fn for_all_peers(host: &Host, line: impl Fn(&str) -> String) {
    let mut ip = host
        .namespace
        .command("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("ip");
    let mut stdin = ip.stdin.take().expect("its input");
    for (address, _) in peers() {
        writeln!(stdin, "{}", line(&address)).expect("to write a line");
    }
    drop(stdin);
    assert!(ip.wait().expect("ip's end").success());
}

#[test]
fn a_thousand_peers_take_ten_seconds_at_the_most() {
    let store = Store::start(NETWORK);
    let [mut one, two] = [1, 2].map(|number| store.host(number));
    for (host, address) in [(&one, "10.77.0.11"), (&two, "10.77.0.12")] {
        let ip = &host.namespace;
        ip.ip(&format!("address del {address}/24 dev eth0"));
        ip.ip(&format!("address add {address}/16 dev eth0"));
    }
    for_all_peers(&two, |address| format!("address add {address}/16 dev eth0"));
    // All namespaces of a machine share room for 1024 neighbours that are not permanent (`gc_thresh3`).
    let link = two.namespace.ip("-oneline link show eth0");
    let mut words = link.split(' ').skip_while(|word| *word != "link/ether");
    let mac = words.nth(1).expect("the other host's address on the link");
    for_all_peers(&one, |address| {
        format!("neighbor add {address} lladdr {mac} dev eth0 nud permanent")
    });
    write_leases(&two);
    one.start_agent();
    one.wait_ready();
    wait_until("the routes", || {
        let routes = one.namespace.ip("route show proto 83");
        routes.lines().count() >= usize::from(PEERS)
    });

    let look = || {
        let start = Instant::now();
        let diagnosis = Diagnosis::of(&one);
        let took = start.elapsed();
        eprintln!("{PEERS} peers took {took:?}");
        assert!(took < Duration::from_secs(10), "{took:?}");
        let ours = |finding: &&Finding| {
            [
                "peer-unreachable",
                "blocked-port",
                "one-way",
                "mtu-black-hole",
            ]
            .contains(&finding.check.as_str())
        };
        let findings = diagnosis.report.findings.iter().filter(ours).cloned();
        findings.collect::<Vec<_>>()
    };
    assert_eq!(look(), []);

    store.switch.ip("link set port12 mtu 1400");
    let findings = look();
    let [finding] = findings.as_slice() else {
        panic!("{findings:#?}")
    };
    assert_eq!(finding.check, "mtu-black-hole");
    assert!(finding.what.contains("1000 of 1000 subnets"), "{finding:?}");

    store.set_port(2, "down");
    let findings = look();
    let [finding] = findings.as_slice() else {
        panic!("{findings:#?}")
    };
    assert_eq!(finding.check, "peer-unreachable");
    assert!(finding.what.contains("1000 of 1000 subnets"), "{finding:?}");
}
