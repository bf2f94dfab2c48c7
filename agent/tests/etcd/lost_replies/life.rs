//! What a node does with its life.

use std::sync::Arc;

use super::admin::Admin;
use super::findings::{Claim, Etcd, Expected};
use super::{NETWORK, Run};
use crate::dice::Dice;
use crate::proxy::{Faults, Proxy};
use crate::*;

/// What a node does after it joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Publishes other attributes; whether it insists, or leaves the rest to the store.
    Update {
        insists: bool,
    },
    /// Asks for its lease again, as after a failure to program the kernel.
    AcquireAgain,
    /// Gives up waiting for the answer, and asks again.
    AcquireTwice(Duration),
    /// Ends without a word, and comes back.
    Restart,
    /// Listens to events.
    Listen(Duration),
    /// Gives its lease back.
    Leave,
    Join,
}

/// Tries before somebody who asks again and again is taken for one who gets no lease at all.
const TRIES: u32 = 60;

pub(super) struct Node {
    run: Run,
    pub(super) name: String,
    number: usize,
    dice: Dice,
    steps: Vec<Step>,
    wanted: LeaseAttrs,
    versions: u32,
    store: EtcdStore,
    proxy: Arc<Proxy>,
    etcd: Etcd,
    key: Option<SubnetKey>,
    /// The times for which it was told that it holds a lease.
    pub(super) claims: Vec<Claim>,
}

impl Node {
    pub(super) async fn new(run: &Run, number: usize) -> Self {
        let mut dice = run.dice(number);
        let steps = steps(run, &mut dice);
        let name = format!("machine-{number}");
        let (store, proxy) = store(run, &name, &mut dice, steps.contains(&Step::Leave)).await;
        Self {
            run: run.clone(),
            wanted: published(number, 0),
            name,
            number,
            dice,
            steps,
            versions: 0,
            store,
            proxy,
            etcd: Etcd::connect(run).await,
            key: None,
            claims: Vec::new(),
        }
    }

    /// Whether it never leaves, so that its lease may be made a reservation.
    pub(super) fn stays(&self) -> bool {
        !self.steps.contains(&Step::Leave)
    }

    pub(super) async fn live(&mut self) -> Result<(), String> {
        let lived: Result<(), String> = async {
            self.join().await?;
            for step in self.steps.clone() {
                self.take(step)
                    .await
                    .map_err(|error| format!("{step:?}: {error}"))?;
            }
            Ok(())
        }
        .await;
        lived.map_err(|error| format!("{}: {error}", self.name))
    }

    async fn take(&mut self, step: Step) -> Result<(), String> {
        self.run.tell(&self.name, &format!("{step:?}"));
        match step {
            Step::Join | Step::AcquireAgain => self.join().await,
            Step::AcquireTwice(patience) => {
                let network = NetworkConfig::parse(NETWORK).unwrap();
                let acquiring = self.store.acquire(&network, &self.wanted, self.key);
                let _ = timeout(patience, acquiring).await;
                self.join().await
            }
            Step::Update { insists } => self.update(insists).await,
            Step::Restart => {
                // Whose process ends with an etcd lease in its hands leaves it to its end, which cannot be helped.
                self.etcd.uses_all_of(&self.proxy).await?;
                let leaves = !self.stays();
                let again = store(&self.run, &self.name, &mut self.dice, leaves).await;
                (self.store, self.proxy) = again;
                self.join().await
            }
            Step::Listen(time) => match timeout(time, lost_lease(&mut self.store)).await {
                Ok(reason) => Err(reason),
                Err(_) => Ok(()),
            },
            Step::Leave => self.leave().await,
        }
    }

    /// Asks for a lease until it gets one.
    async fn join(&mut self) -> Result<(), String> {
        let network = NetworkConfig::parse(NETWORK).unwrap();
        let mut last = String::new();
        for _ in 0..TRIES {
            match self.store.acquire(&network, &self.wanted, self.key).await {
                Ok(lease) => return self.joined(lease).await,
                Err(error) => last = error.to_string(),
            }
            sleep(Duration::from_millis(50)).await;
        }
        Err(format!("no lease after {TRIES} tries: {last}"))
    }

    async fn joined(&mut self, lease: Lease) -> Result<(), String> {
        if let Some(key) = self.key.filter(|key| *key != lease.key) {
            return Err(format!("got {} where it holds {key}", lease.key));
        }
        self.run.tell(&self.name, &format!("has {}", lease.key));
        self.key = Some(lease.key);
        if self
            .claims
            .last()
            .is_some_and(|claim| claim.until.is_none())
        {
            return Ok(());
        }
        let from = self.etcd.holds(&lease.key, &self.name).await?;
        self.claims.push(Claim {
            key: lease.key,
            owner: self.name.clone(),
            from,
            until: None,
        });
        Ok(())
    }

    async fn update(&mut self, insists: bool) -> Result<(), String> {
        self.versions += 1;
        self.wanted = published(self.number, self.versions);
        for _ in 0..TRIES {
            match self.store.update(&self.wanted).await {
                Ok(()) => return Ok(()),
                Err(StoreError::NoLease { reason }) => return Err(reason),
                Err(_) if insists => sleep(Duration::from_millis(50)).await,
                Err(_) => return Ok(()),
            }
        }
        Err(format!("nothing was published in {TRIES} tries"))
    }

    async fn leave(&mut self) -> Result<(), String> {
        let revision = self.etcd.revision().await;
        if let Some(claim) = self.claims.last_mut() {
            claim.until = Some(revision);
        }
        self.key = None;
        // Whatever it says, the lease must be gone in the end.
        let released = self.store.release().await;
        released.map(drop).map_err(|error| error.to_string())
    }

    /// Looks after the lease for as long as this is waited for; ends if it is lost, with the reason.
    pub(super) async fn keep(&mut self) -> String {
        let reason = match self.key {
            Some(_) => lost_lease(&mut self.store).await,
            None => std::future::pending().await,
        };
        format!("{}: {reason}", self.name)
    }

    /// What etcd should hold for this node in the end.
    pub(super) fn expectation(&self, admin: Option<&Admin>) -> Option<Expected> {
        let reserved = admin.is_some_and(|admin| admin.has_reserved(&self.name));
        Some(Expected {
            key: self.key?,
            attrs: LeaseAttrs {
                owner: Some(self.name.clone()),
                ..self.wanted.clone()
            },
            reserved,
        })
    }
}

async fn store(run: &Run, name: &str, dice: &mut Dice, leaves: bool) -> (EtcdStore, Arc<Proxy>) {
    let faults = Faults {
        most: dice.roll(10),
        // Who leaves does not wait for long, and a short lease does not outlast a silence.
        silence: !leaves && !run.renewing,
        slow: None,
    };
    run.store(name, Dice(dice.roll(1 << 31)), faults).await
}

fn steps(run: &Run, dice: &mut Dice) -> Vec<Step> {
    if run.renewing {
        return vec![Step::Listen(run.ttl * 5 / 4)];
    }
    let mut steps = Vec::new();
    for _ in 0..dice.roll(5) {
        let step = match dice.roll(7) {
            0 | 1 => Step::Update {
                insists: dice.roll(2) == 0,
            },
            2 => Step::AcquireAgain,
            3 => Step::AcquireTwice(Duration::from_millis(dice.roll(30))),
            4 => Step::Restart,
            5 => Step::Listen(Duration::from_millis(dice.roll(300))),
            _ => {
                steps.push(Step::Leave);
                Step::Join
            }
        };
        steps.push(step);
    }
    if dice.roll(4) == 0 {
        steps.push(Step::Leave);
    }
    steps
}

/// What a node publishes; every version differs from the others, and one in three has another address.
fn published(number: usize, version: u32) -> LeaseAttrs {
    let data = format!(r#"{{"VNI":1,"VtepMAC":"c6:d2:32:00:{number:02x}:{version:02x}"}}"#);
    LeaseAttrs {
        backend_data: Some(RawValue::from_string(data).unwrap()),
        ..attrs(&format!("10.0.{number}.{}", 1 + version / 3))
    }
}

/// Listens until the store says that its lease is lost.
async fn lost_lease(store: &mut EtcdStore) -> String {
    loop {
        if let StoreEvent::OwnLeaseLost { reason } = store.next_event().await {
            return format!("told that it is lost: {reason}");
        }
    }
}
