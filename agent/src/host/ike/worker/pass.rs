//! One comparison of what is wanted of charon with what it has.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::Instant;
use tracing::debug;

use super::super::client::{Client, ViciError};
use super::super::names;
use super::super::tunnels::{self, Association, Tunnel, TunnelState};
use super::super::vici::Section;
use super::Wanted;
use crate::base::retry::Backoff;
use crate::plan::state::Connection;

/// How long the node with the higher address leaves it to the other one to begin.
const COURTESY: Duration = Duration::from_secs(3);

/// How soon a tunnel is begun again where charon has given up, as it does if the secrets differ, or the other node was not
/// told of this one yet.
const RETRIES: Backoff = Backoff::constant(Duration::from_secs(1), Duration::from_secs(60), 0.3);

/// The event that `list-sas` sends for each association.
const ASSOCIATION: &str = "list-sa";

/// A connection to charon, and what was loaded over it. Only that is certain: charon may be another one afterwards.
#[derive(Debug)]
pub(super) struct Session {
    client: Client,
    version: String,
    /// Whether a pass has looked for what others have loaded.
    surveyed: bool,
    /// What was loaded, by name.
    loaded: BTreeMap<String, (Ipv4Addr, Connection)>,
    /// When to begin the tunnels that are not there.
    attempts: BTreeMap<String, Attempt>,
}

/// When a tunnel is begun.
#[derive(Debug)]
struct Attempt {
    due: Instant,
    pauses: Backoff,
}

/// The result of a pass.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// The first thing that charon refused.
    pub(super) refusal: Option<ViciError>,
    /// The tunnels of all that is wanted.
    pub(super) tunnels: BTreeMap<Ipv4Addr, Tunnel>,
}

impl Passed {
    /// Keeps the first refusal; anything else ends the pass.
    fn note(&mut self, result: Result<(), ViciError>) -> Result<bool, ViciError> {
        match result {
            Ok(()) => Ok(true),
            Err(error) if error.is_refusal() => {
                self.refusal.get_or_insert(error);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

impl Session {
    /// Connects, and asks who answers.
    pub(super) async fn open(socket: &Path) -> Result<Self, ViciError> {
        let mut client = Client::connect(socket).await?;
        let answer = client.call("version", Section::default()).await?;
        client.register(ASSOCIATION).await?;
        Ok(Self {
            client,
            version: answer.text("version").unwrap_or("unknown").to_owned(),
            surveyed: false,
            loaded: BTreeMap::new(),
            attempts: BTreeMap::new(),
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

    /// Brings charon's state closer to the wanted one. Not cancel-safe: drop the session afterwards.
    ///
    /// # Errors
    ///
    /// The session is over. What charon only refuses is in the result.
    pub(super) async fn pass(
        &mut self,
        wanted: &Wanted,
        networks: &[IpNet],
        now: Instant,
    ) -> Result<Passed, ViciError> {
        let mut passed = Passed::default();
        let wanted: BTreeMap<String, (Ipv4Addr, &Connection)> = wanted
            .iter()
            .map(|(peer, connection)| (names::connection(*peer, connection), (*peer, connection)))
            .collect();
        self.unload_others(&wanted, networks).await?;
        let mut reauthenticate = Vec::new();
        for (name, (peer, connection)) in &wanted {
            let loaded = self.load(name, *peer, connection).await;
            let renewed = match loaded {
                Ok(renewed) => renewed,
                Err(error) => {
                    passed.note(Err(error))?;
                    continue;
                }
            };
            if renewed && begins(*peer, connection) {
                reauthenticate.push(name.clone());
            }
        }
        for name in reauthenticate {
            let order = Section::default().with("ike", &name).with("reauth", "yes");
            self.try_order("rekey", &name, order).await?;
        }
        let associations = self.associations(&wanted, networks).await?;
        for (name, (peer, connection)) in &wanted {
            let own = associations.iter().filter(|sa| sa.connection == *name);
            let tunnel = Tunnel::of(own);
            passed.tunnels.insert(*peer, tunnel);
            if self.loaded.contains_key(name) && self.is_due(name, *peer, connection, tunnel, now) {
                let begun = self.begin(name, connection).await;
                if !passed.note(begun)? {
                    // Somebody may have removed it.
                    self.loaded.remove(name);
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
        let mut others: Vec<String> = self.loaded.keys().cloned().collect();
        if !self.surveyed {
            let there = self.client.call("get-conns", Section::default()).await?;
            let ours = there.texts("conns");
            others.extend(
                ours.filter(|name| names::is_ours(name, networks))
                    .map(Into::into),
            );
            self.surveyed = true;
        }
        others.retain(|name| !wanted.contains_key(name));
        for name in others {
            let by = |key| Section::default().with(key, &name);
            self.try_order("unload-conn", &name, by("name")).await?;
            self.try_order("unload-shared", &name, by("id")).await?;
            self.try_order("terminate", &name, ended(by("ike"))).await?;
            self.loaded.remove(&name);
            self.attempts.remove(&name);
        }
        Ok(())
    }

    /// Loads a connection and its secret, if that is needed. Returns whether the secret is a new one.
    async fn load(
        &mut self,
        name: &str,
        peer: Ipv4Addr,
        connection: &Connection,
    ) -> Result<bool, ViciError> {
        let before = self.loaded.get(name).map(|(_, before)| before);
        if before == Some(connection) {
            return Ok(false);
        }
        let renewed = before.is_some_and(|before| before.psk != connection.psk);
        let secret = names::load_secret(peer, connection);
        self.client.order("load-shared", name, secret).await?;
        let config = names::load_connection(peer, connection);
        self.client.order("load-conn", name, config).await?;
        self.loaded
            .insert(name.to_owned(), (peer, connection.clone()));
        self.attempts.remove(name);
        Ok(renewed)
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
            Attempt {
                due: now + courtesy,
                pauses: RETRIES.seeded(u32::from(peer).into()),
            }
        });
        if now < attempt.due {
            return false;
        }
        attempt.due = now + attempt.pauses.next_delay();
        true
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
