//! Whatever replies are lost, the lease is held, is ours, and nothing is left over.
//!
//! Each seed draws a life: nodes that join at the same moment, publish other attributes, restart, give up waiting and ask
//! again, leave; an administrator who makes and ends reservations and writes the network config. All of them reach etcd
//! through proxies of their own, see `proxy`. When no more replies are lost, etcd must come to hold what they were told, and
//! nothing else.
//!
//! | variable | is |
//! |---|---|
//! | `SEEDS` | how many seeds are run: 48 if it is not set, 1000 for a thorough run |
//! | `SEED` | the one seed to run, as a failure names it |

mod admin;
mod findings;
mod life;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures_util::future::{select_all, try_join, try_join_all};
use selvage::settings;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::admin::Admin;
use self::findings::Etcd;
use self::life::Node;
use crate::dice::Dice;
use crate::proxy::{Faults, Proxy, granted};
use crate::server::Server;
use crate::*;

/// How many seeds are run if nobody says.
const SEEDS: u64 = 48;

/// How many run at a time: most of what they do is to wait.
const AT_ONCE: usize = 16;

/// Subnets 10.5.1.0/24 to 10.5.15.0/24.
const NETWORK: &str = r#"{"Network":"10.5.0.0/20","Backend":{"Type":"vxlan"}}"#;

/// What one run has to itself.
#[derive(Clone)]
struct Run {
    seed: u64,
    etcd: SocketAddr,
    prefix: String,
    ttl: Duration,
    /// Leases are short, so that they end unless they are extended.
    renewing: bool,
    proxies: Arc<Mutex<Vec<Arc<Proxy>>>>,
    /// What was done, for whoever reads of a failure.
    story: Arc<Mutex<String>>,
}

impl Run {
    fn new(seed: u64, etcd: SocketAddr) -> Self {
        let renewing = seed % 8 == 5;
        Self {
            seed,
            etcd,
            prefix: format!("/lost/{seed}"),
            ttl: Duration::from_secs(if renewing { 10 } else { 86_400 }),
            renewing,
            proxies: Arc::default(),
            story: Arc::default(),
        }
    }

    fn dice(&self, whose: usize) -> Dice {
        let mut dice = Dice(self.seed << 8 | u64::try_from(whose).unwrap());
        // The first rolls of neighbours are alike.
        for _ in 0..4 {
            dice.roll(2);
        }
        dice
    }

    /// A store behind a proxy of its own.
    async fn store(&self, owner: &str, dice: Dice, faults: Faults) -> (EtcdStore, Arc<Proxy>) {
        let proxy = Arc::new(Proxy::start(self.etcd, dice, faults).await);
        let settings = settings::Etcd {
            endpoints: vec![proxy.url()],
            prefix: self.prefix.clone(),
            lease_ttl: self.ttl,
            ..settings::Etcd::default()
        };
        let mut proxies = self.proxies.lock().unwrap();
        self.tell(owner, &format!("behind proxy {}", proxies.len()));
        proxies.push(Arc::clone(&proxy));
        drop(proxies);
        let store = EtcdStore::new(settings, owner.to_owned()).unwrap();
        (store, proxy)
    }

    fn all_proxies(&self) -> Vec<Arc<Proxy>> {
        self.proxies.lock().unwrap().clone()
    }

    /// Lives one life. What is wrong with its end, in words.
    async fn live(&self) -> Result<(), String> {
        let mut etcd = Etcd::connect(self).await;
        let begin = etcd.write_config(NETWORK).await;
        let mut dice = self.dice(0);
        let count = 1 + usize::try_from(dice.roll(4)).unwrap();
        let mut nodes = Vec::new();
        for n in 1..=count {
            nodes.push(Node::new(self, n).await);
        }
        let keepers: Vec<_> = nodes.iter().filter(|node| node.stays()).collect();
        let reservable = keepers.first().map(|node| node.name.clone());
        let mut admin = match dice.roll(2) {
            0 => Some(Admin::new(self, reservable).await),
            _ => None,
        };
        let administrating = async {
            match &mut admin {
                Some(admin) => admin.work().await,
                None => Ok(()),
            }
        };
        let living = try_join_all(nodes.iter_mut().map(Node::live));
        try_join(living, administrating).await?;

        for proxy in self.all_proxies() {
            proxy.calm().await;
        }
        let expected: Vec<_> = nodes
            .iter()
            .filter_map(|node| node.expectation(admin.as_ref()))
            .chain(admin.iter().flat_map(Admin::expectations))
            .collect();
        let claims: Vec<_> = nodes.iter().flat_map(|node| node.claims.clone()).collect();
        // The nodes look after their leases meanwhile.
        tokio::select! {
            settled = etcd.settles(&expected) => settled?,
            (lost, ..) = select_all(nodes.iter_mut().map(|node| Box::pin(node.keep()))) => return Err(lost),
        }
        if let Some(config) = admin.as_ref().and_then(Admin::config) {
            etcd.has_config(config).await?;
        }
        etcd.kept_all_along(begin, &claims).await?;
        drop((nodes, admin));
        etcd.clear().await;
        Ok(())
    }

    fn tell(&self, who: &str, what: &str) {
        let mut story = self.story.lock().unwrap();
        story.push_str(&format!("\n    {who}: {what}"));
    }

    /// What was done, and what the proxies did.
    fn log(&self) -> String {
        let mut text = self.story.lock().unwrap().clone();
        for (n, proxy) in self.all_proxies().iter().enumerate() {
            for line in proxy.log() {
                text.push_str(&format!("\n    proxy {n}, {line}"));
            }
        }
        text
    }
}

/// The seeds to run: `count` of them if nobody says otherwise.
pub(crate) fn seeds(count: u64) -> std::ops::Range<u64> {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().expect("SEED and SEEDS are numbers"))
    };
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(count),
    }
}

#[tokio::test]
async fn whatever_replies_are_lost_the_lease_is_held_is_ours_and_nothing_is_left_over() {
    let server = Server::start().await;
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut runs = JoinSet::new();
    let seeds = seeds(SEEDS);
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let (turns, run) = (Arc::clone(&turns), Run::new(seed, server.address()));
        runs.spawn(async move {
            let _turn = turns.acquire().await;
            let lived = {
                let run = run.clone();
                tokio::spawn(async move { timeout(PATIENCE, run.live()).await }).await
            };
            let failure = match lived {
                Ok(Ok(Ok(()))) => return None,
                Ok(Ok(Err(failure))) => failure,
                Ok(Err(_)) => format!("not at its end after {PATIENCE:?}"),
                Err(panicked) => panicked.to_string(),
            };
            eprintln!("SEED={seed}: {failure}{}", run.log());
            Some(seed)
        });
    }
    let failures: Vec<_> = runs.join_all().await.into_iter().flatten().collect();
    assert!(
        failures.is_empty(),
        "{} of {count} seeds end wrong, as told above: {failures:?}",
        failures.len()
    );
    // Beside the leases that the proxies saw there are none.
    let leases = server.client().await.leases().await.unwrap();
    assert_eq!(leases.leases().len(), 0, "etcd leases that nobody saw");
}

#[test]
fn the_id_of_a_granted_lease_is_found() {
    let header = [0x0a, 3, 8, 0x96, 1];
    let id = [0x10, 0xe7, 0xa7, 0x9a, 0xd5, 7];
    let message = [&[0, 0, 0, 0, 13][..], &header, &id, &[0x18, 60]].concat();
    assert_eq!(granted(&message), Some(0x7aa6_93e7));
    assert_eq!(granted(&message[..8]), None);
    assert_eq!(granted(&[]), None);
}
