//! What an administrator does meanwhile.

use std::collections::BTreeMap;

use selvage::cluster::lease::etcd::{Expected as ExpectedConfig, Record, Records};

use super::findings::Expected;
use super::{NETWORK, Run};
use crate::dice::Dice;
use crate::proxy::Faults;
use crate::*;

/// Tries before an administrator is taken for one who gets nowhere.
const TRIES: u32 = 60;

pub(super) struct Admin {
    run: Run,
    store: EtcdStore,
    dice: Dice,
    /// A node whose lease may be made a reservation and a lease again.
    node: Option<String>,
    node_is_reserved: bool,
    /// Reservations for nodes that are not there: the last byte of their address, and the subnet.
    reservations: BTreeMap<u64, SubnetKey>,
    config: Option<String>,
}

impl Admin {
    pub(super) async fn new(run: &Run, node: Option<String>) -> Self {
        let mut dice = run.dice(99);
        let faults = Faults {
            most: 3 + dice.roll(12),
            silence: true,
            slow: None,
        };
        let proxys = Dice(dice.roll(1 << 31));
        let (store, _) = run.store("the administrator", proxys, faults).await;
        Self {
            run: run.clone(),
            store,
            dice,
            node: node.filter(|_| !run.renewing),
            node_is_reserved: false,
            reservations: BTreeMap::new(),
            config: None,
        }
    }

    pub(super) async fn work(&mut self) -> Result<(), String> {
        for _ in 0..1 + self.dice.roll(5) {
            let (what, number) = (self.dice.roll(6), 1 + self.dice.roll(3));
            let plan = match what {
                0 | 1 => format!("reserves a subnet for node {number}"),
                2 => format!("ends the reservation for node {number}"),
                3 => "makes a lease a reservation".to_owned(),
                4 => "makes a reservation a lease".to_owned(),
                _ => "writes the network config".to_owned(),
            };
            self.run.tell("the administrator", &plan);
            let done = match what {
                0 | 1 => self.reserve(number).await,
                2 => self.end_reservation(number).await,
                3 | 4 => self.turn_lease(what == 3).await,
                _ => self.write_config().await,
            };
            done.map_err(|error| format!("the administrator: {error}"))?;
        }
        Ok(())
    }

    pub(super) fn has_reserved(&self, node: &str) -> bool {
        self.node_is_reserved && self.node.as_deref() == Some(node)
    }

    pub(super) fn expectations(&self) -> impl Iterator<Item = Expected> {
        self.reservations.iter().map(|(number, key)| Expected {
            key: *key,
            attrs: absent(*number),
            reserved: true,
        })
    }

    pub(super) fn config(&self) -> Option<&str> {
        self.config.as_deref()
    }

    /// Reserves a free subnet for a node that is not there.
    async fn reserve(&mut self, number: u64) -> Result<(), String> {
        let wanted = absent(number);
        for _ in 0..TRIES {
            let Some(seen) = self.records().await else {
                continue;
            };
            if let Some(there) = of(&seen, |attrs| *attrs == wanted) {
                self.reservations.insert(number, there.key);
                return Ok(());
            }
            let free = (1..16).map(|n| key(&format!("10.5.{n}.0-24")));
            let free: Vec<_> = free
                .filter(|key| seen.records.iter().all(|record| record.key != *key))
                .collect();
            let index = usize::try_from(self.dice.roll(free.len().try_into().unwrap())).unwrap();
            let made = self
                .store
                .create_reservation(&free[index], &wanted, &seen)
                .await;
            if let Ok(true) = made {
                self.reservations.insert(number, free[index]);
                return Ok(());
            }
            pause().await;
        }
        Err(format!("no reservation after {TRIES} tries"))
    }

    async fn end_reservation(&mut self, number: u64) -> Result<(), String> {
        let wanted = absent(number);
        for _ in 0..TRIES {
            let Some(seen) = self.records().await else {
                continue;
            };
            let Some(there) = of(&seen, |attrs| *attrs == wanted) else {
                self.reservations.remove(&number);
                return Ok(());
            };
            if let Ok(true) = self.store.delete(&there).await {
                self.reservations.remove(&number);
                return Ok(());
            }
            pause().await;
        }
        Err(format!("a reservation is still there after {TRIES} tries"))
    }

    /// Makes a running node's lease a reservation, or a lease again.
    async fn turn_lease(&mut self, reserved: bool) -> Result<(), String> {
        let Some(node) = self.node.clone() else {
            return Ok(());
        };
        let mut tries = 0;
        while tries < TRIES {
            let Some(seen) = self.records().await else {
                tries += 1;
                continue;
            };
            let Some(there) = of(&seen, |attrs| attrs.owner.as_ref() == Some(&node)) else {
                // It has not joined yet.
                if self.node_is_reserved {
                    return Err("a reservation in use is gone".to_owned());
                }
                pause().await;
                continue;
            };
            tries += 1;
            let done = if there.is_reservation() == reserved {
                true
            } else if reserved {
                matches!(self.store.make_reservation(&there).await, Ok(true))
            } else {
                matches!(self.store.make_lease(&there).await, Ok(true))
            };
            if done {
                self.node_is_reserved = reserved;
                return Ok(());
            }
            pause().await;
        }
        Err(format!("a lease is as it was after {TRIES} tries"))
    }

    /// Writes another text of the same config. Nobody else writes any.
    async fn write_config(&mut self) -> Result<(), String> {
        let vni = 2 + self.dice.roll(1000);
        let text = NETWORK.replace("\"vxlan\"", &format!("\"vxlan\",\"VNI\":{vni}"));
        for _ in 0..TRIES {
            let there = match self.store.raw_network_config().await {
                Ok(Some(there)) => there,
                Ok(None) => return Err("the network config is gone".to_owned()),
                Err(_) => continue,
            };
            let written = match there.text == text {
                true => Ok(()),
                false => {
                    let expected = ExpectedConfig::Revision(there.revision);
                    self.store.set_network_config(&text, expected).await
                }
            };
            match written {
                Ok(()) => {
                    self.config = Some(text);
                    return Ok(());
                }
                Err(error @ StoreError::ConfigChanged { .. }) => return Err(error.to_string()),
                Err(_) => pause().await,
            }
        }
        Err(format!("no network config is written after {TRIES} tries"))
    }

    async fn records(&mut self) -> Option<Records> {
        let records = self.store.records().await.ok();
        if records.is_none() {
            pause().await;
        }
        records
    }
}

fn of(seen: &Records, wanted: impl Fn(&LeaseAttrs) -> bool) -> Option<Record> {
    let mut records = seen.records.iter();
    records
        .find(|record| record.attrs.as_ref().is_some_and(&wanted))
        .cloned()
}

/// A reservation's value.
fn absent(number: u64) -> LeaseAttrs {
    LeaseAttrs {
        backend_type: String::new(),
        backend_data: None,
        ..attrs(&format!("10.9.0.{number}"))
    }
}

async fn pause() {
    sleep(Duration::from_millis(20)).await;
}
