//! Clients that go away before they have their answer.

use std::io::{Read, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use etcd_client::{GetOptions, LeaseTimeToLiveOptions};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::dice::Dice;
use crate::etcd::{Server, free_port};
use crate::program::Program;
use crate::proxy::{Faults, Proxy};
use crate::rest::{WIDE, put};
use crate::wait::PATIENCE;

const REQUEST: &str = "POST /v1/_/leases HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 45\r\n\r\n\
     {\"PublicIP\":\"10.0.0.1\",\"SelvageOwner\":\"host\"}";

/// A server before an etcd that takes its time for whatever is written.
async fn serving(etcd: &Server) -> (Proxy, Program) {
    let faults = Faults {
        most: 0,
        silence: false,
        slow: Some(("Txn", Duration::from_secs(1))),
    };
    let proxy = Proxy::start(etcd.address(), Dice(0), faults).await;
    let address = free_port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_selvage"));
    command.args(["serve", "--insecure", "--listen", &address.to_string()]);
    command.args(["--etcd-endpoints", &proxy.url()]);
    (proxy, Program::run(command, address))
}

/// Sends a request and goes away as soon as an etcd lease is granted for it, which has no key yet.
async fn give_up(proxy: &Proxy, program: &Program) {
    let before = proxy.granted().len();
    let mut stream = TcpStream::connect(program.address).await.unwrap();
    stream.write_all(REQUEST.as_bytes()).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while proxy.granted().len() == before {
        assert!(Instant::now() < deadline, "{}", program.log());
        sleep(Duration::from_millis(5)).await;
    }
}

/// The names of the leases in etcd, and how many etcd leases have no key.
async fn found(etcd: &Server, proxy: &Proxy) -> (Vec<String>, usize) {
    let mut client = etcd.client().await;
    let options = GetOptions::new().with_prefix().with_keys_only();
    let folder = "/coreos.com/network/subnets/";
    let answer = client.get(folder, Some(options)).await.unwrap();
    let keys = answer.kvs().iter();
    let names = keys.map(|kv| kv.key_str().unwrap().trim_start_matches(folder).to_owned());
    let names = names.collect();
    let mut unused = 0;
    for id in proxy.granted() {
        let options = LeaseTimeToLiveOptions::new().with_keys();
        let lease = client.lease_time_to_live(id, Some(options)).await.unwrap();
        unused += usize::from(lease.ttl() > 0 && lease.keys().is_empty());
    }
    (names, unused)
}

#[tokio::test]
async fn client_that_goes_away_leaves_no_etcd_lease_without_a_key() {
    let etcd = Server::start().await;
    put(&etcd, "config", WIDE).await;
    let (proxy, program) = serving(&etcd).await;
    give_up(&proxy, &program).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (names, unused) = found(&etcd, &proxy).await;
        if names.len() == 1 && unused == 0 {
            break;
        }
        let text = format!("{names:?}, {unused} without a key\n{}", program.log());
        assert!(Instant::now() < deadline, "{text}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn impatient_host_gets_one_lease() {
    let etcd = Server::start().await;
    put(&etcd, "config", WIDE).await;
    let (proxy, program) = serving(&etcd).await;
    give_up(&proxy, &program).await;
    let address = program.address;
    let asking = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(REQUEST.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = asking.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let (names, unused) = found(&etcd, &proxy).await;
    assert_eq!((names.len(), unused), (1, 0), "{names:?}");
    let subnet = names[0].replace('-', "/");
    assert!(
        answer.contains(&format!("\"Subnet\":\"{subnet}\"")),
        "{subnet}: {answer}"
    );
}

/// The service manager stops the server while it works for a client that is gone.
#[tokio::test]
async fn server_that_is_stopped_finishes_what_it_began() {
    let etcd = Server::start().await;
    put(&etcd, "config", WIDE).await;
    let (proxy, program) = serving(&etcd).await;
    give_up(&proxy, &program).await;
    let stopped = tokio::task::spawn_blocking(move || program.stop());
    assert_eq!(stopped.await.unwrap(), Some(0));
    let (names, unused) = found(&etcd, &proxy).await;
    assert_eq!((names.len(), unused), (1, 0), "{names:?}");
}
