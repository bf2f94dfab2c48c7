//! A host whose address goes: over the connections that it had, nothing comes back any more, and nobody says so.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::authority::loopback;
use crate::server::Server;
use crate::*;

/// A way to etcd whose connections can be made to end in nothing.
struct Way {
    url: String,
    /// Connections that were accepted at an earlier count carry nothing.
    moves: watch::Sender<u32>,
    _accepting: JoinSet<()>,
}

impl Way {
    async fn to(server: &Server) -> Self {
        let listener = TcpListener::bind((loopback(), 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let moves = watch::Sender::new(0);
        let (seen, etcd) = (moves.subscribe(), server.address());
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut carrying = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                carrying.spawn(carry(client, etcd, seen.clone()));
            }
        });
        Self {
            url,
            moves,
            _accepting: accepting,
        }
    }

    /// What is connected now stays open, and carries nothing any more.
    fn lose_all(&self) {
        self.moves.send_modify(|count| *count += 1);
    }
}

async fn carry(client: TcpStream, etcd: std::net::SocketAddr, mut moves: watch::Receiver<u32>) {
    moves.mark_unchanged();
    let server = TcpStream::connect(etcd).await.unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (mut sent, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            biased;
            _ = moves.changed() => std::future::pending().await,
            Ok(length @ 1..) = from_client.read(&mut sent) => {
                if to_server.write_all(&sent[..length]).await.is_err() {
                    return;
                }
            }
            Ok(length @ 1..) = from_server.read(&mut answered) => {
                if to_client.write_all(&answered[..length]).await.is_err() {
                    return;
                }
            }
            else => return,
        }
    }
}

#[tokio::test]
async fn a_host_that_moved_publishes_at_the_first_try_and_goes_on_watching() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let way = Way::to(&server).await;
    let mut store = server.store_with("machine-a", |s| s.endpoints = vec![way.url.clone()]);
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    wait_for(&mut store, "report of reachability", |event| {
        matches!(event, StoreEvent::Reachable { .. }).then_some(())
    })
    .await;

    way.lose_all();
    store.reconnect();
    store.update(&attrs("10.0.0.61")).await.unwrap();
    let moved = |value: &str| value.contains("10.0.0.61");
    stored_as(&mut client, &own.key.name(), moved).await;

    put(&mut client, "10.5.9.0-24", &flannels("10.0.0.9"), 0).await;
    lease_of(&mut store, "10.5.9.0-24").await;
}
