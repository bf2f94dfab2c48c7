//! Twenty machines that update at the same moment, behind proxies that lose etcd's replies, and that crash.
//!
//! Each seed draws how many may be down at a time, what is lost, and who crashes where. `SEEDS` and `SEED` are as for
//! `lost_replies`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use etcd_client::{EventType, WatchOptions};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, timeout};

use super::*;
use crate::PATIENCE;
use crate::dice::Dice;
use crate::proxy::{Faults, Proxy};

const MACHINES: usize = 20;

/// How many seeds are run if nobody says.
const SEEDS: u64 = 8;

/// Who is down at the moment: between the first request for the lock that succeeded and the first to give it back.
#[derive(Default)]
struct Down {
    now: BTreeSet<usize>,
    most: usize,
}

#[derive(Clone)]
struct Run {
    seed: u64,
    server: Arc<Server>,
    group: String,
    holders: usize,
    down: Arc<Mutex<Down>>,
    proxies: Arc<Mutex<Vec<Arc<Proxy>>>>,
}

impl Run {
    fn dice(&self, whose: usize) -> Dice {
        let mut dice = Dice(self.seed << 8 | u64::try_from(whose).unwrap());
        // The first rolls of neighbours are alike.
        for _ in 0..4 {
            dice.roll(2);
        }
        dice
    }

    /// A machine that has just started, behind a proxy of its own.
    async fn boot(&self, number: usize, version: &str, dice: &mut Dice) -> EtcdFleet {
        let faults = Faults {
            most: dice.roll(8),
            silence: dice.roll(40) == 0,
            slow: None,
        };
        let proxys = Dice(dice.roll(1 << 31));
        let proxy = Arc::new(Proxy::start(self.server.address(), proxys, faults).await);
        let member = Member {
            version: version.to_owned(),
            ..member(number)
        };
        let fleet = EtcdFleet::new(etcd(proxy.url()), &self.group, member).unwrap();
        self.proxies.lock().unwrap().push(proxy);
        fleet
    }

    /// One machine's update, with as many turns as it takes.
    async fn update(self, number: usize) -> Result<(), String> {
        let mut dice = self.dice(1 + number);
        while !Box::pin(self.turn(number, &mut dice)).await? {}
        Ok(())
    }

    /// From the first request for the lock to the last to give it back. Returns whether the machine has updated.
    async fn turn(&self, number: usize, dice: &mut Dice) -> Result<bool, String> {
        let mut machine = self.boot(number, "1.0", dice).await;
        loop {
            // A crash, perhaps in the middle of a request.
            let patience = match dice.roll(12) {
                0 => Duration::from_millis(dice.roll(200)),
                _ => PATIENCE,
            };
            match timeout(patience, machine.acquire("1.1")).await {
                Ok(Ok(Leave::Now)) => break,
                // etcd's reply is lost for good: the lock may be held or not. So it is as in the next run of the timer.
                Ok(Err(FleetError::Store(_)) | Ok(Leave::Later { .. })) => {}
                Ok(Err(error)) => return Err(format!("node{number}: {error}")),
                Ok(Ok(Leave::Never { why })) => return Err(format!("node{number}: {why}")),
                Err(_) => {
                    machine = self.boot(number, "1.0", dice).await;
                    // Some boots begin with giving back what there is.
                    if dice.roll(2) == 0 {
                        until("is steady", async || machine.is_steady().await).await?;
                    }
                }
            }
            sleep(Duration::from_millis(20 + dice.roll(60))).await;
        }
        {
            let mut down = self.down.lock().unwrap();
            down.now.insert(number);
            down.most = down.most.max(down.now.len());
            if down.now.len() > self.holders {
                return Err(format!(
                    "{:?} are down, of {} allowed",
                    down.now, self.holders
                ));
            }
        }
        sleep(Duration::from_millis(dice.roll(30))).await;
        if dice.roll(8) == 0 {
            // A hook failed.
            self.down.lock().unwrap().now.remove(&number);
            until("release", async || machine.release().await).await?;
            return Ok(false);
        }
        until("tell", async || {
            machine.tell("1.1", NodeState::Rebooting).await
        })
        .await?;
        for _ in 0..1 + dice.roll(3) {
            machine = self.boot(number, "1.1", dice).await;
            until("is trying", async || machine.is_trying().await).await?;
        }
        self.down.lock().unwrap().now.remove(&number);
        until("is steady", async || machine.is_steady().await).await?;
        Ok(true)
    }

    async fn live(&self) -> Result<(), String> {
        let admin = Admin::new(etcd(self.server.url()), &self.group).unwrap();
        let allowed = u32::try_from(self.holders).unwrap();
        admin.set(Some(allowed), None).await.unwrap();
        let begin = crate::revision(&mut self.server.client().await).await;
        let mut machines = JoinSet::new();
        for number in 0..MACHINES {
            machines.spawn_local(self.clone().update(number));
        }
        while let Some(done) = machines.join_next().await {
            done.map_err(|panicked| panicked.to_string())??;
        }
        let proxies = self.proxies.lock().unwrap().clone();
        for proxy in proxies {
            proxy.calm().await;
        }
        let status = admin.status().await.unwrap();
        if status.nodes.len() != MACHINES {
            return Err(format!(
                "{} of {MACHINES} machines are known",
                status.nodes.len()
            ));
        }
        for node in status.nodes {
            if node.lock.is_some()
                || node.told.version != "1.1"
                || node.told.state != NodeState::Steady
            {
                return Err(format!("not as it should be in the end: {node:?}"));
            }
        }
        self.never_too_many(begin).await
    }

    /// Reads all that happened to the lock, change by change.
    async fn never_too_many(&self, begin: i64) -> Result<(), String> {
        let folder = format!("/selvage/fleet/{}/holders/", self.group);
        let mut client = self.server.client().await;
        // What tells that all was seen.
        let end = client.put(format!("{folder}end"), "", None).await.unwrap();
        let end = end.header().unwrap().revision();
        let options = WatchOptions::new().with_prefix().with_start_revision(begin);
        let mut events = client.watch(folder, Some(options)).await.unwrap();
        let (mut held, mut taken) = (BTreeSet::new(), 0);
        while let Some(message) = events.message().await.unwrap() {
            for event in message.events() {
                let kv = event.kv().unwrap();
                if kv.mod_revision() == end {
                    return match taken >= MACHINES {
                        true => Ok(()),
                        false => Err(format!(
                            "the lock was taken {taken} times by {MACHINES} machines"
                        )),
                    };
                }
                match event.event_type() {
                    EventType::Put => taken += usize::from(held.insert(kv.key().to_vec())),
                    EventType::Delete => drop(held.remove(kv.key())),
                }
                if held.len() > self.holders {
                    return Err(format!(
                        "{} machines hold the lock, of {} allowed",
                        held.len(),
                        self.holders
                    ));
                }
            }
        }
        Err("the history of the lock ends early".to_owned())
    }

    fn log(&self) -> String {
        let mut text = String::new();
        for (n, proxy) in self.proxies.lock().unwrap().iter().enumerate() {
            for line in proxy.log() {
                text.push_str(&format!("\n    proxy {n}, {line}"));
            }
        }
        text
    }
}

/// Does again what may be done again, until it is done.
async fn until(
    what: &str,
    mut act: impl AsyncFnMut() -> Result<(), FleetError>,
) -> Result<(), String> {
    loop {
        match act().await {
            Ok(()) => return Ok(()),
            Err(FleetError::Store(_)) => sleep(Duration::from_millis(20)).await,
            Err(error) => return Err(format!("{what}: {error}")),
        }
    }
}

#[tokio::test]
async fn twenty_machines_take_turns_whatever_replies_are_lost_and_whoever_crashes() {
    let server = Arc::new(Server::start().await);
    let mut failures = Vec::new();
    for seed in crate::lost_replies::seeds(SEEDS) {
        let run = Run {
            seed,
            server: Arc::clone(&server),
            group: format!("seed-{seed}"),
            holders: [1, 3, 2, 5][usize::try_from(seed % 4).unwrap()],
            down: Arc::default(),
            proxies: Arc::default(),
        };
        let lived = match timeout(PATIENCE, LocalSet::new().run_until(run.live())).await {
            Ok(lived) => lived,
            Err(_) => Err(format!("not at its end after {PATIENCE:?}")),
        };
        let most = run.down.lock().unwrap().most;
        match lived {
            Ok(()) => eprintln!(
                "seed {seed}: at most {most} of {} allowed were down",
                run.holders
            ),
            Err(failure) => {
                eprintln!("SEED={seed}: {failure}{}", run.log());
                failures.push(seed);
            }
        }
    }
    assert!(
        failures.is_empty(),
        "seeds end wrong, as told above: {failures:?}"
    );
}
