//! What is read of the cluster, by GET alone. What one may not read is a finding, so that nobody takes a part for the whole.

use std::collections::BTreeMap;

use serde_json::Value;

use super::DaemonSet;
use super::config::ConfigMap;
use super::daemon::{Daemon, Program, list, text};
use super::flags;
use super::plugins::{self, Plugin};
use crate::cluster::lease::StoreError;
use crate::cluster::lease::kube::{SeenNode, Survey};
use crate::command::doctor::{Finding, Severity, Unchecked};
use crate::settings::is_node_name;

/// The check that says what one may not read.
const RIGHTS: &str = "migrate-rights";

/// The API server's version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Version {
    /// As it says: `v1.36.1`.
    pub(super) text: String,
    /// The second number.
    pub(super) minor: Option<u32>,
}

/// What a ClusterRole `flannel` allows, and to whom.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Role {
    /// Verb and resource: `get pods`.
    pub(super) rights: Vec<String>,
    /// Namespace and name of service accounts: `kube-system/flannel`.
    pub(super) accounts: Vec<String>,
}

/// The cluster.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) version: Option<Version>,
    /// Whether the DaemonSets could be listed.
    pub(super) has_daemons: bool,
    /// Those that run flannel or this agent on Linux.
    pub(super) daemons: Vec<Daemon>,
    /// flannel's DaemonSets for Windows.
    pub(super) windows: Vec<String>,
    pub(super) plugins: Vec<Plugin>,
    /// Their ConfigMaps, by namespace and name; none where one may not read it.
    pub(super) config_maps: BTreeMap<(String, String), ConfigMap>,
    /// All nodes; `None` if they could not be listed.
    pub(super) nodes: Option<Vec<SeenNode>>,
    /// The prefix that the nodes' annotations were read by.
    pub(super) prefix: String,
    pub(super) role: Option<Role>,
    /// What one may not read.
    pub(super) findings: Vec<Finding>,
    pub(super) unchecked: Vec<Unchecked>,
}

impl Seen {
    /// Reads all of it.
    pub(super) async fn look(survey: &Survey) -> Result<Self, StoreError> {
        let mut seen = Self {
            prefix: survey.annotation_prefix().to_owned(),
            ..Self::default()
        };
        let version = survey.object("/version").await;
        let version = seen.optional(version, "server-version")?.flatten();
        seen.version = version.as_ref().and_then(Version::read);
        let sets = survey.objects("/apis/apps/v1/daemonsets", "DaemonSetList");
        let sets = seen.needed(sets.await, "list daemonsets.apps in all namespaces")?;
        seen.has_daemons = sets.is_some();
        seen.take_daemons(&sets.unwrap_or_default());
        seen.nodes = seen.needed(survey.nodes().await, "list nodes")?;
        seen.read_config_maps(survey).await?;
        seen.role = seen.read_role(survey).await?;
        Ok(seen)
    }

    /// The DaemonSet that the move starts from: the first of the program, else the first of the other.
    pub(super) fn main(&self, program: Program) -> Option<&Daemon> {
        let mut of_it = self.of(program);
        of_it.next().or(self.daemons.first())
    }

    /// The DaemonSets of a program.
    pub(super) fn of(&self, program: Program) -> impl Iterator<Item = &Daemon> {
        let daemons = self.daemons.iter();
        daemons.filter(move |daemon| daemon.program == program)
    }

    /// A DaemonSet's ConfigMap; `None` if it names none, or it may not be read.
    pub(super) fn config_map(&self, daemon: &Daemon) -> Option<&ConfigMap> {
        let key = (daemon.namespace.clone(), daemon.config_map.clone()?);
        self.config_maps.get(&key)
    }

    /// The nodes, none if they could not be listed.
    pub(super) fn nodes(&self) -> &[SeenNode] {
        self.nodes.as_deref().unwrap_or_default()
    }

    fn take_daemons(&mut self, sets: &[Value]) {
        for set in sets {
            match Daemon::read(set) {
                Some(daemon) if daemon.is_windows => self.windows.push(daemon.shown()),
                Some(daemon) => self.daemons.push(daemon),
                None => self.plugins.extend(plugins::of_daemon_set(set)),
            }
        }
    }

    async fn read_config_maps(&mut self, survey: &Survey) -> Result<(), StoreError> {
        let keys: Vec<_> = (self.daemons.iter())
            .filter_map(|daemon| Some((daemon.namespace.clone(), daemon.config_map.clone()?)))
            // They become parts of URLs.
            .filter(|(namespace, name)| is_node_name(namespace) && is_node_name(name))
            .collect();
        for (namespace, name) in keys {
            let path = format!("/api/v1/namespaces/{namespace}/configmaps/{name}");
            let right = format!("get configmaps in {namespace}");
            let found = self.needed(survey.object(&path).await, &right)?;
            if let Some(found) = found {
                let map = ConfigMap::read(&namespace, &name, found.as_ref());
                self.config_maps.insert((namespace, name), map);
            }
        }
        Ok(())
    }

    async fn read_role(&mut self, survey: &Survey) -> Result<Option<Role>, StoreError> {
        let mut objects = Vec::new();
        for kind in ["clusterroles", "clusterrolebindings"] {
            let path = format!("/apis/rbac.authorization.k8s.io/v1/{kind}/flannel");
            let found = survey.object(&path).await;
            let right = format!("get {kind}.rbac.authorization.k8s.io");
            let Some(found) = self.optional(found, &right)? else {
                return Ok(None);
            };
            objects.extend(found);
        }
        let rules = objects.iter().flat_map(|object| list(object, "/rules"));
        let subjects = objects.iter().flat_map(|object| list(object, "/subjects"));
        let accounts = subjects.filter(|subject| text(subject, "/kind") == "ServiceAccount");
        let account = |subject: &Value| {
            let (namespace, name) = (text(subject, "/namespace"), text(subject, "/name"));
            format!("{namespace}/{name}")
        };
        let role = Role {
            rights: rules.flat_map(rights).collect(),
            accounts: accounts.map(account).collect(),
        };
        Ok((!objects.is_empty()).then_some(role))
    }

    /// What was read; if that is forbidden, a finding.
    fn needed<T>(
        &mut self,
        read: Result<T, StoreError>,
        right: &str,
    ) -> Result<Option<T>, StoreError> {
        let reason = match forbidden(read)? {
            Ok(read) => return Ok(Some(read)),
            Err(reason) => reason,
        };
        self.findings.push(Finding::new(
            RIGHTS,
            Severity::Error,
            right,
            format!("you may not {right}: {reason}"),
            "so a part of the cluster is not checked, and this report is not complete",
            vec![
                "use another user's kubeconfig, or make a role of it: kubectl create clusterrole selvage-migrate --verb=get,list --resource=nodes,configmaps,daemonsets.apps,clusterroles.rbac.authorization.k8s.io,clusterrolebindings.rbac.authorization.k8s.io".to_owned(),
                "and give it: kubectl create clusterrolebinding selvage-migrate --clusterrole=selvage-migrate --user=USER".to_owned(),
            ],
        ));
        Ok(None)
    }

    /// What was read; if that is forbidden, it is left out.
    fn optional<T>(
        &mut self,
        read: Result<T, StoreError>,
        what: &str,
    ) -> Result<Option<T>, StoreError> {
        match forbidden(read)? {
            Ok(read) => Ok(Some(read)),
            Err(reason) => {
                self.unchecked.push(Unchecked {
                    check: what.to_owned(),
                    reason,
                });
                Ok(None)
            }
        }
    }
}

/// The server's words if something is forbidden; other errors end everything.
fn forbidden<T>(read: Result<T, StoreError>) -> Result<Result<T, String>, StoreError> {
    match read {
        Ok(read) => Ok(Ok(read)),
        Err(StoreError::Refused {
            code: 403, reason, ..
        }) => Ok(Err(reason)),
        Err(error) => Err(error),
    }
}

/// Each verb of a rule with each resource.
fn rights(rule: &Value) -> Vec<String> {
    let texts = |at: &str| list(rule, at).iter().filter_map(Value::as_str).take(100);
    texts("/resources")
        .flat_map(|resource| texts("/verbs").map(move |verb| format!("{verb} {resource}")))
        .collect()
}

impl Version {
    fn read(value: &Value) -> Option<Self> {
        let version = text(value, "/gitVersion");
        let minor = text(value, "/minor");
        // Some providers write 33+.
        let digits = minor.trim_end_matches(|c: char| !c.is_ascii_digit());
        (!version.is_empty()).then(|| Self {
            text: version.to_owned(),
            minor: digits.parse().ok(),
        })
    }
}

/// As in the report.
pub(super) fn shown(daemon: &Daemon) -> DaemonSet {
    DaemonSet {
        namespace: daemon.namespace.clone(),
        name: daemon.name.clone(),
        program: match daemon.program {
            Program::Flannel => "flannel",
            Program::Selvage => "selvage",
        }
        .to_owned(),
        image: daemon.agent.image.clone(),
        desired: daemon.desired,
        ready: daemon.ready,
        flags: flags::shown(daemon),
        host_paths: daemon
            .host_paths
            .iter()
            .map(|path| path.path.clone())
            .collect(),
    }
}
