//! The agent's client against a server of 2015: flannel 0.5.5's answers, byte for byte as Go wrote them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use selvage::cluster::lease::remote::RemoteStore;
use selvage::cluster::lease::{LeaseAttrs, LeaseEvent, LeaseStore, StoreEvent};
use selvage::settings::Remote;

/// Every request that came, and news for the one that waits for it.
struct Flannel {
    url: String,
    requests: Receiver<String>,
    news: Sender<()>,
}

const OTHER: &str = r#"{"Subnet":"10.5.7.0/24","Attrs":{"PublicIP":"10.0.0.7","BackendType":"vxlan","BackendData":{"VtepMAC":"c6:d2:32:6f:8f:44"}},"Expiration":"2015-10-12T02:34:04.123456789Z"}"#;

fn own() -> String {
    OTHER
        .replace("10.5.7.0", "10.5.9.0")
        .replace("10.0.0.7", "10.0.0.9")
}

/// A connection's requests, one after the other.
fn serve(stream: TcpStream, requests: &Sender<String>, news: &std::sync::Mutex<Receiver<()>>) {
    let mut reader = BufReader::new(stream.try_clone().expect("the stream"));
    let mut writer = stream;
    loop {
        let (mut line, mut length) = (String::new(), 0);
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).expect("a header");
            if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
            if header.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a body");
        let target: Vec<_> = line.split_whitespace().collect();
        let (path, query) = target[1].split_once('?').unwrap_or((target[1], ""));
        let request = format!("{} {path} {}", target[0], String::from_utf8_lossy(&body));
        let answer = match (target[0], path) {
            ("GET", "/v1/_/config") => {
                r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.255.0","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#.to_owned()
            }
            ("POST", "/v1/_/leases") => own(),
            ("PUT", "/v1/_/leases/10.5.9.0-24") => own(),
            ("GET", "/v1/_/leases") if !query.contains("next=") => {
                format!(r#"{{"events":null,"snapshot":[{OTHER},{}],"cursor":"12"}}"#, own())
            }
            ("GET", "/v1/_/leases") if query.contains("next=12&") => {
                let _ = news.lock().expect("the news").recv();
                r#"{"events":[{"type":"removed","lease":{"Subnet":"10.5.7.0/24","Attrs":null,"Expiration":"0001-01-01T00:00:00Z"}}],"snapshot":null,"cursor":"13"}"#.to_owned()
            }
            ("GET", "/v1/_/leases") => {
                let _ = news.lock().expect("the news").recv();
                return;
            }
            _ => panic!("{request}"),
        };
        let _ = requests.send(request);
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: {}\r\n\r\n{answer}\n",
            answer.len() + 1
        );
        if writer.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn start() -> Flannel {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("the port"));
    let (sender, requests) = mpsc::channel();
    let (news, receiver) = mpsc::channel();
    let receiver = std::sync::Arc::new(std::sync::Mutex::new(receiver));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (sender, receiver) = (sender.clone(), std::sync::Arc::clone(&receiver));
            std::thread::spawn(move || serve(stream, &sender, &receiver));
        }
    });
    Flannel {
        url,
        requests,
        news,
    }
}

#[tokio::test]
async fn server_of_2015_is_understood() {
    let flannel = start();
    let settings = Remote {
        servers: vec![flannel.url.clone()],
        network: "_".to_owned(),
        listen: None,
        cafile: None,
        certfile: None,
        keyfile: None,
        insecure: false,
    };
    let mut store = RemoteStore::new(&settings, "m9".to_owned()).unwrap();
    let attrs = LeaseAttrs {
        public_ip: Some(Ipv4Addr::new(10, 0, 0, 9)),
        public_ipv6: None,
        backend_type: "vxlan".to_owned(),
        backend_data: None,
        backend_v6_data: None,
        owner: None,
    };
    let config = store.network_config().await.unwrap();
    let lease = store.acquire(&config, &attrs, None).await.unwrap();
    assert_eq!(lease.key.name(), "10.5.9.0-24");
    // It does not say for how long; flannel's leases last a day.
    assert_eq!(store.expiry().ttl, Some(Duration::from_secs(86_400)));
    let mut next = async || {
        tokio::time::timeout(crate::wait::PATIENCE, store.next_event())
            .await
            .expect("an event")
    };
    let reachable = StoreEvent::Reachable {
        endpoint: flannel.url.clone(),
    };
    assert_eq!(next().await, reachable);
    match next().await {
        StoreEvent::Peers(LeaseEvent::Snapshot { leases, unreadable }) => {
            let names: Vec<_> = leases.iter().map(|lease| lease.key.name()).collect();
            assert_eq!(names, ["10.5.7.0-24", "10.5.9.0-24"]);
            assert_eq!(unreadable, []);
        }
        other => panic!("{other:?}"),
    }
    flannel.news.send(()).unwrap();
    match next().await {
        StoreEvent::Peers(LeaseEvent::Changes { set, removed }) => {
            assert_eq!(set, []);
            assert_eq!(removed[0].name(), "10.5.7.0-24");
        }
        other => panic!("{other:?}"),
    }
    let changed = LeaseAttrs {
        public_ip: Some(Ipv4Addr::new(10, 0, 0, 10)),
        ..attrs
    };
    store.update(&changed).await.unwrap();

    // What such a server reads of what it was sent.
    let requests: Vec<_> = flannel.requests.try_iter().collect();
    let sent = |start: &str| {
        let found = requests.iter().find(|request| request.starts_with(start));
        let body = found
            .unwrap_or_else(|| panic!("{start}: {requests:#?}"))
            .strip_prefix(start);
        serde_json::from_str::<serde_json::Value>(body.unwrap()).unwrap()
    };
    let posted = sent("POST /v1/_/leases ");
    assert_eq!(
        (&posted["PublicIP"], &posted["BackendType"]),
        (&"10.0.0.9".into(), &"vxlan".into())
    );
    let put = requests
        .iter()
        .rfind(|request| request.starts_with("PUT /v1/_/leases/10.5.9.0-24 "))
        .expect("a renewal");
    assert!(
        put.contains(r#"{"Subnet":"10.5.9.0/24","Attrs":{"PublicIP":"10.0.0.10","#),
        "{put}"
    );
    assert!(
        put.contains(r#""Expiration":"0001-01-01T00:00:00Z""#),
        "{put}"
    );
}
