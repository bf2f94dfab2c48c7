//! A long and disorderly life: what a node knows in the end is what is there.

use std::collections::BTreeMap;

use futures_util::future::join;

use crate::dice::Dice;
use crate::server::{Server, free_port};
use crate::*;

const MARKER: &str = "10.5.255.0-24";

const GRACE: Duration = Duration::from_millis(500);

/// Writes, overwrites, spoils and deletes leases at random.
async fn meddle(client: &mut Client, dice: &mut Dice) {
    for _ in 0..40 {
        let name = format!("10.5.{}.0-24", dice.roll(24));
        match dice.roll(6) {
            0 | 1 => {
                client
                    .delete(format!("{SUBNETS}{name}"), None)
                    .await
                    .unwrap();
            }
            2 => put(client, &name, "spoilt", 0).await,
            3 => put(client, &format!("junk{name}"), "{}", 0).await,
            _ => {
                put(
                    client,
                    &name,
                    &flannels(&format!("10.0.0.{}", dice.roll(250))),
                    0,
                )
                .await
            }
        }
    }
}

async fn compact(client: &mut Client) {
    let now = revision(client).await;
    client.compact(now, None).await.unwrap();
}

/// Follows the events until the marker has shown and nothing more comes for so long that what vanished in the last outage
/// is believed to be gone.
async fn follow(store: &mut EtcdStore) -> (BTreeMap<SubnetKey, Lease>, u32) {
    let (mut known, mut snapshots) = (BTreeMap::new(), 0);
    loop {
        let next = timeout(GRACE * 10, next_leases(store)).await;
        let event = match next {
            Ok(event) => event,
            Err(_) if known.contains_key(&key(MARKER)) => return (known, snapshots),
            Err(_) => continue,
        };
        match event {
            LeaseEvent::Snapshot { leases, unreadable } => {
                snapshots += 1;
                known.retain(|key, _| unreadable.contains(key));
                known.extend(leases.into_iter().map(|lease| (lease.key, lease)));
            }
            LeaseEvent::Changes { set, removed } => {
                for key in removed {
                    known.remove(&key);
                }
                known.extend(set.into_iter().map(|lease| (lease.key, lease)));
            }
        }
    }
}

#[tokio::test]
async fn what_is_known_in_the_end_is_what_is_there() {
    let mut server = Server::start().await;
    let mut store = server.store_with("machine-a", |s| s.grace = GRACE);
    let mut dice = Dice(7);
    let spoil = async {
        for round in 0..6 {
            let mut client = server.client().await;
            meddle(&mut client, &mut dice).await;
            if round % 3 == 1 {
                compact(&mut client).await;
            }
            server.down();
            if round % 2 == 0 {
                // Unseen, and every other time forgotten as well.
                let usual = server.move_to(free_port());
                server.up().await;
                let mut client = server.client().await;
                meddle(&mut client, &mut dice).await;
                if round % 4 == 0 {
                    compact(&mut client).await;
                }
                server.down();
                server.move_to(usual);
            }
            server.up().await;
        }
        put(
            &mut server.client().await,
            MARKER,
            &flannels("10.0.0.255"),
            0,
        )
        .await;
    };
    let ((known, snapshots), ()) = join(follow(&mut store), spoil).await;
    assert!(snapshots > 1, "nothing was ever listed again");

    let listed: BTreeMap<_, _> = store
        .list()
        .await
        .unwrap()
        .into_iter()
        .map(|lease| (lease.key, lease))
        .collect();
    let mut client = server.client().await;
    for (key, lease) in &known {
        match listed.get(key) {
            Some(there) => assert_eq!(lease, there),
            // What was spoilt is known as it was before.
            None => assert_eq!(stored(&mut client, &key.name()).await.unwrap().0, "spoilt"),
        }
    }
    assert!(listed.keys().all(|key| known.contains_key(key)));
}
