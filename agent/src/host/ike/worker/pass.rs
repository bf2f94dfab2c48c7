//! One comparison of what is wanted of charon with what it has.

mod left;
mod stateless;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::Instant;
use tracing::debug;

use super::super::client::{Client, ViciError};
use super::super::names;
use super::super::salt::Salt;
use super::super::tunnels::{self, Association, Tunnel, TunnelState};
use super::super::vici::Section;
use super::Wanted;
use super::attempt::Attempt;
use crate::plan::state::Connection;

/// How long the node with the higher address leaves it to the other one to begin.
const COURTESY: Duration = Duration::from_secs(3);

/// The event that `list-sas` sends for each association.
const ASSOCIATION: &str = "list-sa";

/// A connection to charon, and what was loaded over it. Only that is certain: charon may be another one afterwards.
#[derive(Debug)]
pub(super) struct Session {
    client: Client,
    version: String,
    salt: Salt,
    /// Whether a pass has looked for what others have loaded.
    surveyed: bool,
    /// What was loaded, by name.
    loaded: BTreeMap<String, Loaded>,
    /// charon's names for the secrets that it has of ours, an earlier run's too, by connection.
    secrets: BTreeMap<String, BTreeSet<String>>,
    /// What charon refused to load, by name.
    refused: BTreeMap<String, Refusal>,
    /// When to begin the tunnels that are not there.
    attempts: BTreeMap<String, Attempt>,
    /// The connections whose new secret was not used yet.
    proofs: BTreeMap<String, Proof>,
    /// charon's numbers for the tunnels that the kernel had no states of.
    stateless: BTreeSet<String>,
}

/// What charon has.
#[derive(Debug)]
struct Loaded {
    connection: Connection,
    /// Whether charon seems not to have it any more.
    doubtful: bool,
}

/// What charon does not take.
#[derive(Debug)]
struct Refusal {
    connection: Connection,
    error: Arc<ViciError>,
    next: Attempt,
}

/// The nodes are to prove to each other that they have a new secret. The peer may get it later than this node.
#[derive(Debug)]
struct Proof {
    /// charon's numbers for the associations that rest on the former secret.
    former: Vec<String>,
    next: Attempt,
}

/// The result of a pass.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// The first thing that charon refused.
    pub(super) refusal: Option<Arc<ViciError>>,
    /// The tunnels of all that is wanted.
    pub(super) tunnels: BTreeMap<Ipv4Addr, Tunnel>,
}

impl Passed {
    /// Keeps the first refusal; anything else ends the pass.
    fn note(&mut self, result: Result<(), ViciError>) -> Result<bool, ViciError> {
        match result {
            Ok(()) => Ok(true),
            Err(error) if error.is_refusal() => {
                self.refusal.get_or_insert(Arc::new(error));
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

impl Session {
    /// Connects, and asks who answers. By `salt` secrets that an earlier run has loaded are recognised.
    pub(super) async fn open(socket: &Path, salt: Salt) -> Result<Self, ViciError> {
        let mut client = Client::connect(socket).await?;
        let answer = client.call("version", Section::default()).await?;
        client.register(ASSOCIATION).await?;
        Ok(Self {
            client,
            version: answer.text("version").unwrap_or("unknown").to_owned(),
            salt,
            surveyed: false,
            loaded: BTreeMap::new(),
            secrets: BTreeMap::new(),
            refused: BTreeMap::new(),
            attempts: BTreeMap::new(),
            proofs: BTreeMap::new(),
            stateless: BTreeSet::new(),
        })
    }

    /// strongSwan's version.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Waits until charon ends. Cancel-safe.
    pub(super) async fn closed(&self) -> ViciError {
        self.client.closed().await
    }

    /// Brings charon's state closer to the wanted one. `spis` are those of the kernel's states shortly before, if they are
    /// known. Not cancel-safe: drop the session afterwards.
    ///
    /// # Errors
    ///
    /// The session is over. What charon only refuses is in the result.
    pub(super) async fn pass(
        &mut self,
        wanted: &Wanted,
        networks: &[IpNet],
        spis: Option<&BTreeSet<u32>>,
        now: Instant,
    ) -> Result<Passed, ViciError> {
        let mut passed = Passed::default();
        let wanted: BTreeMap<String, (Ipv4Addr, &Connection)> = wanted
            .iter()
            .map(|(peer, connection)| (names::connection(*peer, connection), (*peer, connection)))
            .collect();
        self.unload_others(&wanted, networks).await?;
        let mut renewed = Vec::new();
        for (name, (peer, connection)) in &wanted {
            if self.load(name, *peer, connection, now).await? {
                renewed.push(name.as_str());
            }
            if let Some(refusal) = self.refused.get(name) {
                passed.refusal.get_or_insert(Arc::clone(&refusal.error));
            }
        }
        let associations = self.associations(&wanted, networks).await?;
        self.end_stateless(&associations, spis).await?;
        for (name, (peer, connection)) in &wanted {
            let own = associations.iter().filter(|sa| sa.connection == *name);
            if renewed.contains(&name.as_str()) {
                let former = own.clone().map(|sa| sa.id.clone()).collect();
                let next = Attempt::new(*peer, now);
                self.proofs.insert(name.clone(), Proof { former, next });
            }
            if self.prove(name, own.clone(), now).await? {
                let proved = self.name_proved(name, *peer, connection).await;
                passed.note(proved)?;
            }
            let tunnel = Tunnel::of(own);
            passed.tunnels.insert(*peer, tunnel);
            if self.loaded.contains_key(name) && self.is_due(name, *peer, connection, tunnel, now) {
                let begun = self.begin(name, connection).await;
                if !passed.note(begun)? {
                    // Somebody may have removed it.
                    let loaded = self.loaded.get_mut(name);
                    loaded.into_iter().for_each(|it| it.doubtful = true);
                }
            }
        }
        Ok(passed)
    }

    /// Removes connections that are not wanted, with their tunnels: what was loaded here, and at first what an earlier run
    /// or a flannel has left.
    async fn unload_others(
        &mut self,
        wanted: &BTreeMap<String, (Ipv4Addr, &Connection)>,
        networks: &[IpNet],
    ) -> Result<(), ViciError> {
        let mut others = BTreeSet::new();
        if !self.surveyed {
            others = self.survey(networks).await?;
            self.surveyed = true;
        }
        // Of what charon refused it may have the secret.
        others.extend(self.loaded.keys().chain(self.secrets.keys()).cloned());
        others.retain(|name| !wanted.contains_key(name));
        for name in others {
            let by = |key| Section::default().with(key, &name);
            self.try_order("unload-conn", &name, by("name")).await?;
            self.unload_secrets(&name, None).await?;
            self.try_order("terminate", &name, ended(by("ike"))).await?;
            self.loaded.remove(&name);
        }
        self.refused.retain(|name, _| wanted.contains_key(name));
        self.attempts.retain(|name, _| wanted.contains_key(name));
        self.proofs.retain(|name, _| wanted.contains_key(name));
        Ok(())
    }

    /// Loads a connection and its secret, if that is needed and due. Returns whether the secret is a new one that this node
    /// is to prove. A refusal is kept.
    async fn load(
        &mut self,
        name: &str,
        peer: Ipv4Addr,
        connection: &Connection,
        now: Instant,
    ) -> Result<bool, ViciError> {
        let before = self.loaded.get(name);
        if before.is_some_and(|it| it.connection == *connection && !it.doubtful) {
            self.refused.remove(name);
            return Ok(false);
        }
        let mut next = Attempt::new(peer, now);
        if let Some(refusal) = self.refused.remove(name) {
            // Another one may well be taken.
            if refusal.connection == *connection {
                next = refusal.next;
            }
            if !next.take(now) {
                self.refused
                    .insert(name.to_owned(), Refusal { next, ..refusal });
                return Ok(false);
            }
        } else {
            next.take(now);
        }
        let is_same = before.is_some_and(|it| it.connection == *connection);
        let is_renewed = match self.order_load(name, peer, connection).await {
            Ok(is_renewed) => is_renewed,
            Err(error) if error.is_refusal() => {
                let refusal = Refusal {
                    connection: connection.clone(),
                    error: Arc::new(error),
                    next,
                };
                self.refused.insert(name.to_owned(), refusal);
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let loaded = Loaded {
            connection: connection.clone(),
            doubtful: false,
        };
        self.loaded.insert(name.to_owned(), loaded);
        if !is_same {
            self.attempts.remove(name);
        }
        Ok(is_renewed)
    }

    /// Returns whether the secret takes the place of another one, and this node is to prove that it has it.
    async fn order_load(
        &mut self,
        name: &str,
        peer: Ipv4Addr,
        connection: &Connection,
    ) -> Result<bool, ViciError> {
        let proved = names::secret(peer, connection, &self.salt);
        let ids = self.secrets.entry(name.to_owned()).or_default();
        let is_renewed = begins(peer, connection) && ids.iter().any(|id| *id != proved);
        let id = match is_renewed {
            true => names::unproved(&proved),
            false => proved,
        };
        ids.insert(id.clone());
        let secret = names::load_secret(peer, connection, &id);
        self.client.order("load-shared", name, secret).await?;
        let config = names::load_connection(peer, connection);
        self.client.order("load-conn", name, config).await?;
        self.unload_secrets(name, Some(&id)).await?;
        Ok(is_renewed)
    }

    /// Gives a secret the name of one that both nodes have proved.
    async fn name_proved(
        &mut self,
        name: &str,
        peer: Ipv4Addr,
        connection: &Connection,
    ) -> Result<(), ViciError> {
        let id = names::secret(peer, connection, &self.salt);
        let secret = names::load_secret(peer, connection, &id);
        self.client.order("load-shared", name, secret).await?;
        let ids = self.secrets.entry(name.to_owned()).or_default();
        ids.insert(id.clone());
        self.unload_secrets(name, Some(&id)).await
    }

    /// Has the nodes of a connection prove to each other that they have its new secret, until they have; returns whether
    /// they just have. The tunnel stays meanwhile.
    async fn prove<'a>(
        &mut self,
        name: &str,
        mut associations: impl Iterator<Item = &'a Association> + Clone,
        now: Instant,
    ) -> Result<bool, ViciError> {
        let Some(proof) = self.proofs.get_mut(name) else {
            return Ok(false);
        };
        let rests_on_it = |sa: &Association| sa.established && !proof.former.contains(&sa.id);
        // A new association takes the new secret anyway.
        if associations.clone().next().is_none() || associations.clone().any(rests_on_it) {
            self.proofs.remove(name);
            return Ok(true);
        }
        if associations.any(|sa| sa.busy) || !proof.next.take(now) {
            return Ok(false);
        }
        let order = Section::default().with("ike", name).with("reauth", "yes");
        self.try_order("rekey", name, order).await?;
        Ok(false)
    }

    /// charon's associations; ends those of ours that are not wanted.
    async fn associations(
        &mut self,
        wanted: &BTreeMap<String, (Ipv4Addr, &Connection)>,
        networks: &[IpNet],
    ) -> Result<Vec<Association>, ViciError> {
        let mut found = Vec::new();
        let take = |event: Section| found.extend(tunnels::read(&event));
        self.client
            .list("list-sas", Section::default(), take)
            .await?;
        let (wanted, others): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|sa| wanted.contains_key(&sa.connection));
        for sa in others {
            if names::is_ours(&sa.connection, networks) {
                let order = ended(Section::default().with("ike-id", &sa.id));
                self.try_order("terminate", &sa.connection, order).await?;
            }
        }
        Ok(wanted)
    }

    /// Whether to begin a tunnel now.
    fn is_due(
        &mut self,
        name: &str,
        peer: Ipv4Addr,
        connection: &Connection,
        tunnel: Tunnel,
        now: Instant,
    ) -> bool {
        match tunnel.state {
            TunnelState::Up => {
                self.attempts.remove(name);
                return false;
            }
            TunnelState::Begun => return false,
            TunnelState::Keyless | TunnelState::Down => {}
        }
        let attempt = self.attempts.entry(name.to_owned()).or_insert_with(|| {
            let courtesy = match begins(peer, connection) {
                true => Duration::ZERO,
                false => COURTESY,
            };
            Attempt::new(peer, now + courtesy)
        });
        attempt.take(now)
    }

    /// Has charon begin a tunnel, and does not wait for it.
    async fn begin(&mut self, name: &str, connection: &Connection) -> Result<(), ViciError> {
        debug!(connection = name, "beginning an IPsec tunnel");
        let order = Section::default()
            .with("child", names::tunnel(connection))
            .with("ike", name)
            .with("timeout", "-1")
            .with("init-limits", "no");
        self.client.order("initiate", name, order).await
    }

    /// Gives an order that may have no object any more.
    async fn try_order(
        &mut self,
        command: &'static str,
        name: &str,
        arguments: Section,
    ) -> Result<(), ViciError> {
        match self.client.order(command, name, arguments).await {
            Err(error) if !error.is_refusal() => Err(error),
            Err(error) => {
                debug!("{error}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

/// Whether it is this node that begins.
fn begins(peer: Ipv4Addr, connection: &Connection) -> bool {
    connection.public < peer
}

/// Completes the arguments of `terminate`: the peer is told, and not waited for.
fn ended(which: Section) -> Section {
    which.with("force", "yes").with("timeout", "-1")
}
