//! Whole hosts: two that know only servers, one that uses etcd itself, and containers that reach each other.

use crate::authority::Authority;
use crate::cluster::{NETWORK, Store};
use crate::host::Host;
use crate::kernel::{Flow, wait_for_plan};
use crate::program::Program;
use crate::wait::wait_until;

/// The numbers of the hosts that serve leases.
const SERVERS: [u8; 2] = [11, 12];

/// Starts a server of leases on a host.
fn serve(machine: &Host, arguments: &[String]) -> Program {
    let address = std::net::SocketAddr::from((machine.address, 8889));
    let mut command = machine.selvage("serve");
    command
        .args(["--insecure", "--listen", &address.to_string()])
        .args(arguments);
    Program::run(command, address)
}

/// A host that knows servers alone.
fn client(store: &Store, number: u8, servers: &str) -> Host {
    let mut host = store.host(number);
    // Nobody is there.
    host.etcd = "http://10.77.0.99:2379".to_owned();
    host.environment = vec![("SELVAGE_REMOTE", servers.to_owned())];
    host
}

fn all_reach(hosts: &[&Host]) {
    for one in hosts {
        for two in hosts {
            if one.address != two.address {
                one.wait_reaches(two);
            }
        }
    }
}

#[test]
fn hosts_behind_a_server_and_a_node_on_etcd_share_one_network() {
    let store = Store::start(NETWORK);
    let machine = store.host(SERVERS[0]);
    let server = serve(&machine, &[]);
    let mut one = client(&store, 1, "10.77.0.21:8889");
    let mut two = client(&store, 2, "10.77.0.21:8889");
    let mut three = store.host(3);
    for host in [&mut one, &mut two, &mut three] {
        host.join();
    }
    all_reach(&[&one, &two, &three]);
    for host in [&one, &two, &three] {
        wait_for_plan(&store, host);
    }
    let mut keys = store.lease_keys();
    keys.sort();
    let mut held = [&one, &two, &three].map(Host::lease_key).to_vec();
    held.sort();
    assert_eq!(keys, held);

    // Peers come and go for those behind the server as for the node.
    let visit = |hosts: &[&Host]| {
        let ghost = r#"{"PublicIP":"10.77.0.240","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:f0"}}"#;
        store.put_lease("10.5.240.0-24", ghost);
        for host in hosts {
            wait_for_plan(&store, host);
        }
        store.etcdctl(&["del", "/coreos.com/network/subnets/10.5.240.0-24"]);
        for host in hosts {
            wait_for_plan(&store, host);
        }
    };
    visit(&[&one, &two, &three]);

    // A lease that somebody deletes is taken again, with the same subnet.
    let subnet = one.lease_key();
    store.etcdctl(&["del", &format!("/coreos.com/network/subnets/{subnet}")]);
    // It is lost to the host before it is there again.
    wait_until("the host to tell of it", || {
        one.log().contains("lost the lease")
    });
    wait_until("the lease to be taken again", || {
        store.lease_keys().contains(&subnet)
    });
    assert_eq!(one.lease_key(), subnet);
    // The others know of it once they know of what came later. The host itself has connected anew, and keeps what has gone since
    // for a while.
    visit(&[&two, &three]);
    all_reach(&[&one, &two, &three]);
    // A host that is restarted has its subnet still.
    let flow = Flow::start(&one, two.container_address());
    two.kill_agent();
    let before = two.lease_key();
    two.start_agent();
    two.wait_ready();
    assert_eq!(two.lease_key(), before);
    all_reach(&[&one, &two, &three]);
    flow.finish();
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn server_that_is_killed_and_started_again_costs_no_packet() {
    let store = Store::start(NETWORK);
    let machine = store.host(SERVERS[0]);
    let server = serve(&machine, &[]);
    let mut one = client(&store, 1, "10.77.0.21:8889");
    let mut two = client(&store, 2, "10.77.0.21:8889");
    one.join();
    two.join();
    one.wait_reaches(&two);
    let flow = Flow::start(&one, two.container_address());
    drop(server);
    for host in [&mut one, &mut two] {
        host.wait_told("that the server is away", |line| {
            line.starts_with("STATUS=") && line.contains("lease server at http://10.77.0.21:8889")
        });
    }
    // A host whose agent starts meanwhile waits, and leaves the data plane alone.
    two.kill_agent();
    two.start_agent();
    two.wait_told("that it waits", |line| {
        line.starts_with("STATUS=waiting to join: lease server at")
    });
    let server = serve(&machine, &[]);
    two.wait_ready();
    one.wait_told_last("that all is well again", |line| {
        !line.contains("lease server")
    });
    store.put_lease(
        "10.5.240.0-24",
        r#"{"PublicIP":"10.77.0.240","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:f0"}}"#,
    );
    for host in [&one, &two] {
        wait_for_plan(&store, host);
    }
    flow.finish();
    drop(server);
}

#[test]
fn one_of_two_servers_may_die() {
    let store = Store::start(NETWORK);
    let machines = SERVERS.map(|number| store.host(number));
    let [first, second] = [0, 1].map(|index: usize| serve(&machines[index], &[]));
    let servers = "10.77.0.21:8889,10.77.0.22:8889";
    let mut one = client(&store, 1, servers);
    let mut two = client(&store, 2, servers);
    one.join();
    two.join();
    one.wait_reaches(&two);
    let flow = Flow::start(&one, two.container_address());
    drop(first);
    store.put_lease(
        "10.5.240.0-24",
        r#"{"PublicIP":"10.77.0.240","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:f0"}}"#,
    );
    for host in [&one, &two] {
        wait_for_plan(&store, host);
    }
    // The second goes without a word, as a machine that loses power; the first is back.
    let first = serve(&machines[0], &[]);
    store.set_port(SERVERS[1], "down");
    store.etcdctl(&["del", "/coreos.com/network/subnets/10.5.240.0-24"]);
    for host in [&one, &two] {
        // A silent server is noticed after 25 s, and what vanished during an outage counts as there for 20 s.
        wait_for_plan(&store, host);
    }
    flow.finish();
    drop((first, second));
}

#[test]
fn flanneld_with_listen_serves_and_with_remote_asks_over_tls() {
    let authority = Authority::new();
    std::fs::write(
        authority.path("openssl.cnf"),
        "[req]\ndistinguished_name = name\n[name]\n[leaf]\nsubjectAltName = IP:10.77.0.21\n",
    )
    .expect("a config for openssl");
    authority.certificate("server", "leaf", Some("ca"));
    let path = |name: &str| authority.path(name).display().to_string();
    let store = Store::start(NETWORK);
    let machine = store.host(SERVERS[0]);
    let directory = tempfile::TempDir::new().expect("a directory");
    let flanneld = directory.path().join("flanneld");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_selvage"), &flanneld).expect("a link");
    let program = flanneld.to_str().expect("a path");
    let mut command = machine.namespace.command(program);
    command.args([
        "-listen=:8889",
        &format!("-etcd-endpoints={}", crate::cluster::ETCD),
        &format!("-remote-cafile={}", path("ca.pem")),
        &format!("-remote-certfile={}", path("server.pem")),
        &format!("-remote-keyfile={}", path("server.key")),
    ]);
    let server = Program::run(command, std::net::SocketAddr::from((machine.address, 8889)));
    let mut one = client(&store, 1, "10.77.0.21:8889");
    one.environment.extend([
        ("SELVAGE_REMOTE_CAFILE", path("ca.pem")),
        ("SELVAGE_REMOTE_CERTFILE", path("client.pem")),
        ("SELVAGE_REMOTE_KEYFILE", path("client.key")),
    ]);
    let mut two = store.host(2);
    one.join();
    two.join();
    one.wait_reaches(&two);
    let lease = store.lease_in_fields(&one.lease_key());
    assert!(
        lease.contains("@"),
        "the owner is bound to the certificate: {lease}"
    );
    // A host without a certificate waits, and says why.
    let mut three = client(&store, 3, "https://10.77.0.21:8889");
    three
        .environment
        .push(("SELVAGE_REMOTE_CAFILE", path("ca.pem")));
    three.start_agent();
    three.wait_told("that it is not let in", |line| {
        line.starts_with("STATUS=waiting to join: lease server at https://10.77.0.21:8889")
            && line.to_lowercase().contains("certificate")
    });
    wait_until("the server to name whom it refused", || {
        server.log().contains("10.77.0.13") && server.log().contains("client refused: ")
    });
}
