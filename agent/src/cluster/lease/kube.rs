//! The lease store of Kubernetes, as flannel has it: a node's subnet is its podCIDR, and what it publishes are
//! annotations on its node. `docs/kubernetes.md` tells what that looks like from outside.
//!
//! | module | purpose |
//! |---|---|
//! | `access`, `kubeconfig` | where the API server is, and how this node proves who it is |
//! | `client` | requests to it |
//! | `node`, `nodes` | what nodes and their annotations say |
//! | `watch`, `event`, `pace` | the task that follows all nodes, what it is told, and its pauses |
//! | `foreign` | the same of any text, without a server |
//! | `own` | how the own annotations are written and kept |
//! | `net_config` | the network config's file |
//! | `herald` | the node's condition, and events |
//! | `survey` | what the doctor asks, and who moves a cluster |
//!
//! The client is our own, on the HTTP and TLS that are linked anyway: all of this is 310 KB of program. The crate
//! `kube` has types of whole nodes, 15 KB of JSON each, of which six texts count here.

use std::future::ready;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use futures_util::future::BoxFuture;
use hyper::body::Bytes;
use serde::Deserialize;
use tokio::sync::{Notify, watch as channel};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::warn;

use self::access::Access;
pub use self::access::Surroundings;
use self::client::{Failure, Question, Session};
use self::herald::{Health, Herald};
use self::node::{Annotations, Node};
use self::own::Own;
pub use self::survey::{NodeFacts, Right, SeenNode, Survey};
use self::watch::Watcher;
use crate::base::net::{unusable_v4, unusable_v6};
use crate::cluster::lease::allocate::{self, Avoid};
use crate::cluster::lease::store::GRACE;
use crate::cluster::lease::store::keeper::{Keeper, TimeLeft};
use crate::cluster::lease::store::state::State;
use crate::cluster::lease::store::tasks::Tasks;
use crate::cluster::lease::{
    Expiry, Lease, LeaseAttrs, LeaseStore, NodeFault, Past, Prescribed, Released, SettingsError,
    StoreError, StoreEvent, SubnetKey,
};
use crate::cluster::network_config::{Families, NetworkConfig};
use crate::settings::{Kubernetes, is_node_name};

mod access;
mod client;
mod event;
pub mod foreign;
mod herald;
mod kubeconfig;
mod net_config;
mod node;
mod nodes;
mod own;
mod pace;
mod survey;
mod watch;

/// How long a node that was read for the network config is fresh enough to be written.
const FRESH: std::time::Duration = std::time::Duration::from_secs(5);

/// How this host's node is found.
#[derive(Clone, Debug)]
enum Identity {
    /// By its name.
    Node(String),
    /// By the pod that this is.
    Pod { namespace: String, name: String },
}

/// What the tasks share.
#[derive(Debug)]
struct Shared {
    /// For all requests but the watcher's.
    session: Session,
    annotations: Annotations,
    identity: Identity,
    /// The node's name, once it is known.
    name: OnceLock<String>,
    net_config: PathBuf,
    state: Arc<State>,
    held: Mutex<Option<Held>>,
    /// Locked while the own annotations are written, so that an older write does not overtake a newer one.
    writing: tokio::sync::Mutex<()>,
    /// The network config text that the agent knows.
    config: Mutex<Option<String>>,
    /// The own node as it was read last.
    fresh: Mutex<Option<(Instant, Node)>>,
    /// This host's address changed.
    moved: Notify,
    /// The own node's condition as last seen: whether the network is unavailable, and why.
    condition: Mutex<Option<(bool, String)>>,
    /// The condition is another than before.
    condition_changed: Notify,
}

/// The lease that this host holds.
#[derive(Clone, Debug)]
struct Held {
    key: SubnetKey,
    /// The acquisition that it comes from: a task of another term must not touch it.
    term: u64,
    /// What should be published.
    wanted: LeaseAttrs,
    families: Families,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        locked(&self.held)
    }

    fn known_config(&self) -> MutexGuard<'_, Option<String>> {
        locked(&self.config)
    }

    fn condition(&self) -> MutexGuard<'_, Option<(bool, String)>> {
        locked(&self.condition)
    }

    /// Sends a request over the shared connection.
    async fn ask(&self, question: &Question) -> Result<Bytes, Failure> {
        self.session.ask(question).await
    }

    /// The error of an answer that makes no sense.
    fn bad_answer(&self, what: String) -> StoreError {
        self.session.bad_answer(what)
    }

    /// The name of this host's node, which is asked for once.
    async fn node_name(&self) -> Result<String, StoreError> {
        #[derive(Deserialize)]
        struct Pod {
            #[serde(default)]
            spec: PodSpec,
        }
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct PodSpec {
            node_name: String,
        }
        if let Some(name) = self.name.get() {
            return Ok(name.clone());
        }
        let name = match &self.identity {
            Identity::Node(name) => name.clone(),
            Identity::Pod { namespace, name } => {
                let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
                let answer = self.session.get(path).await?;
                let pod: Pod = self.session.parse(&answer)?;
                pod.spec.node_name
            }
        };
        if !is_node_name(&name) {
            return Err(self.bad_answer(format!("{name:?} is not the name of a node")));
        }
        Ok(self.name.get_or_init(|| name).clone())
    }

    /// Reads the own node.
    async fn node(&self) -> Result<Node, StoreError> {
        let name = self.node_name().await?;
        let answer = self
            .ask(&Question::get(format!("/api/v1/nodes/{name}")))
            .await;
        let answer = answer.map_err(|failure| self.node_error(failure))?;
        let node: Node = self.session.parse(&answer)?;
        if node.metadata.name != name {
            return Err(self.bad_answer(format!("it is not the node {name}")));
        }
        Ok(node)
    }

    /// The error of a request about the own node.
    fn node_error(&self, failure: Failure) -> StoreError {
        match self.name.get() {
            Some(node) if failure.status() == Some(404) => {
                StoreError::NoNode { node: node.clone() }
            }
            _ => self.session.client.error(failure),
        }
    }

    fn is_own(&self, node: &Node) -> bool {
        self.name.get() == Some(&node.metadata.name)
    }

    /// Reads the own node, or takes what was read a moment ago.
    async fn fresh_node(&self) -> Result<Node, StoreError> {
        let known = locked(&self.fresh).take();
        match known {
            Some((at, node)) if at.elapsed() < FRESH => Ok(node),
            _ => self.node().await,
        }
    }

    /// Takes the podCIDR and writes the annotations.
    async fn take(&self, config: &NetworkConfig, attrs: LeaseAttrs) -> Result<Taken, StoreError> {
        let families = config.families();
        let node = self.fresh_node().await?;
        let key = node.own_subnets(families)?;
        if !allocate::allows(config, &key) {
            return Err(StoreError::BadPodCidr {
                node: node.metadata.name.clone(),
                cidr: key.to_string(),
                what: "has another length than the one before: restart the agent, then the pods"
                    .to_owned(),
            });
        }
        let attrs = attrs.owned_by(&node.metadata.name);
        let created = node.created();
        {
            let _writing = self.writing.lock().await;
            self.write(&attrs, node).await?;
        }
        Ok(Taken {
            lease: Lease {
                key,
                attrs,
                created,
            },
            families,
        })
    }
}

/// The lease store of a Kubernetes node.
#[derive(Debug)]
pub struct KubeStore {
    shared: Arc<Shared>,
    prescribed: Prescribed,
    /// The number of acquisitions so far.
    terms: u64,
    tasks: Tasks,
    set_condition: bool,
    health: channel::Sender<Option<Health>>,
    /// The herald, once there is something to tell.
    herald: JoinSet<()>,
}

/// A lease whose annotations are written, not held yet.
pub struct Taken {
    lease: Lease,
    families: Families,
}

impl KubeStore {
    /// Checks the settings; connects to nothing yet.
    ///
    /// # Errors
    /// Nothing tells which node this is.
    pub fn new(settings: &Kubernetes, surroundings: Surroundings) -> Result<Self, SettingsError> {
        let named = settings.node_name.as_deref();
        let identity = match named.or_else(|| surroundings.get("NODE_NAME")) {
            Some(name) if is_node_name(name) => Identity::Node(name.to_owned()),
            Some(name) => return Err(SettingsError::NodeName(name.to_owned())),
            None => {
                let namespace = surroundings.get("POD_NAMESPACE");
                let pod = namespace.zip(surroundings.get("POD_NAME"));
                let (namespace, name) = pod.ok_or(SettingsError::NoNodeName)?;
                for part in [namespace, name] {
                    if !is_node_name(part) {
                        return Err(SettingsError::NodeName(part.to_owned()));
                    }
                }
                Identity::Pod {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                }
            }
        };
        let (health, _) = channel::channel(None);
        Ok(Self {
            shared: Arc::new(Shared {
                session: Session::new(Access::new(settings, surroundings)),
                annotations: Annotations::new(&settings.annotation_prefix),
                identity,
                name: OnceLock::new(),
                net_config: settings.net_config.clone(),
                state: Arc::new(State::new(GRACE)),
                held: Mutex::new(None),
                writing: tokio::sync::Mutex::new(()),
                config: Mutex::new(None),
                fresh: Mutex::new(None),
                moved: Notify::new(),
                condition: Mutex::new(None),
                condition_changed: Notify::new(),
            }),
            prescribed: Prescribed::default(),
            terms: 0,
            tasks: Tasks::default(),
            set_condition: settings.set_network_unavailable,
            health,
            herald: JoinSet::new(),
        })
    }

    /// What this node is called before its name is known.
    pub fn owner(&self) -> String {
        match &self.shared.identity {
            Identity::Node(name) => name.clone(),
            Identity::Pod { namespace, name } => format!("{namespace}/{name}"),
        }
    }

    /// What the node's annotations prescribe; a wrong one is logged and counts as none.
    fn read_prescribed(&mut self, node: &Node) {
        let annotations = &self.shared.annotations;
        let v4 = annotations.prescribed::<Ipv4Addr>(node, "node-public-ip", unusable_v4);
        let v6 = annotations.prescribed::<Ipv6Addr>(node, "node-public-ipv6", unusable_v6);
        for wrong in [v4.as_ref().err(), v6.as_ref().err()].into_iter().flatten() {
            warn!("{wrong}");
        }
        self.prescribed = Prescribed {
            public_ip: v4.unwrap_or_default(),
            public_ipv6: v6.unwrap_or_default(),
        };
    }

    /// Starts the tasks and ends the running ones.
    fn start(&mut self, held: &Held) {
        let events = self.tasks.restart();
        let shared = || Arc::clone(&self.shared);
        let watcher = Watcher::new(shared(), held.families, events.clone());
        let config = net_config::follow(shared(), held.key, events.clone());
        let own = Own {
            shared: shared(),
            term: held.term,
        };
        self.tasks.spawn(watcher.run());
        self.tasks.spawn(config);
        self.tasks
            .spawn(Keeper::new(own, events).run(TimeLeft::Forever));
    }
}

impl LeaseStore for KubeStore {
    type Taken = Taken;

    async fn network_config(&mut self) -> Result<NetworkConfig, StoreError> {
        let text = self.shared.read_config().await?;
        let families = NetworkConfig::parse(&text)
            .map_err(|error| StoreError::BadNetworkConfig {
                key: self.shared.net_config.display().to_string(),
                error,
            })?
            .families();
        let node = self.shared.node().await?;
        self.read_prescribed(&node);
        let own = node.own_subnets(families)?;
        let config = self.shared.parse_config(&text, &own);
        *self.shared.known_config() = Some(text);
        *locked(&self.shared.fresh) = Some((Instant::now(), node));
        config
    }

    fn take(
        &mut self,
        config: &NetworkConfig,
        attrs: &LeaseAttrs,
        _past: Past,
    ) -> BoxFuture<'static, Result<Taken, StoreError>> {
        let shared = Arc::clone(&self.shared);
        let (config, attrs) = (config.clone(), attrs.clone());
        Box::pin(async move { shared.take(&config, attrs).await })
    }

    async fn hold(&mut self, taken: Taken) -> Lease {
        let Taken { lease, families } = taken;
        self.terms += 1;
        let held = Held {
            key: lease.key,
            term: self.terms,
            wanted: lease.attrs.clone(),
            families,
        };
        *self.shared.held() = Some(held.clone());
        self.shared.state.renewed(None);
        self.shared.state.hold_down().forget(&lease.key);
        self.start(&held);
        lease
    }

    fn update(&mut self, attrs: &LeaseAttrs) -> BoxFuture<'static, Result<(), StoreError>> {
        let term = match self.shared.held().as_mut() {
            None => {
                return Box::pin(ready(Err(StoreError::NoLease {
                    reason: "none was acquired, or it was lost".to_owned(),
                })));
            }
            Some(held) => {
                let owner = held.wanted.owner.clone().unwrap_or_default();
                held.wanted = attrs.owned_by(&owner);
                held.term
            }
        };
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let published = match shared.node().await {
                Ok(node) => shared.publish(term, node).await,
                Err(error) => Err(error),
            };
            if published.is_err() {
                // The keeper retries.
                shared.state.touch();
            }
            published
        })
    }

    /// The subnet stays the node's for as long as Kubernetes has the node.
    async fn release(&mut self) -> Result<Released, StoreError> {
        self.tasks.stop();
        *self.shared.held() = None;
        Ok(Released::Nothing)
    }

    fn prescribed(&self) -> Prescribed {
        self.prescribed
    }

    fn publish_health(&mut self, up: bool, faults: impl FnOnce() -> Vec<NodeFault>) {
        let health = Some(Health {
            up,
            faults: faults(),
        });
        self.health.send_if_modified(|known| {
            let other = *known != health;
            *known = health;
            other
        });
        if self.herald.is_empty() {
            let shared = Arc::clone(&self.shared);
            let herald = Herald::new(shared, self.set_condition, self.health.subscribe());
            self.herald.spawn(herald.run());
        }
    }

    fn reconnect(&mut self) {
        self.shared.moved.notify_one();
        self.shared.session.reconnect();
    }

    /// Kubernetes hands out the subnets.
    fn set_avoid(&mut self, _avoid: Avoid) {}

    fn expiry(&self) -> Expiry {
        self.shared.state.expiry()
    }

    async fn next_event(&mut self) -> StoreEvent {
        loop {
            if let Some(event) = self.tasks.next_event().await {
                return event;
            }
            // Without a lease there is nothing to follow, and after a lost one the watcher goes on.
            std::future::pending::<()>().await;
        }
    }
}
