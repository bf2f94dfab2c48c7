//! The ConfigMap: the network config, which stays, and the CNI config list.

use serde_json::Value;

use super::daemon::{Daemon, text};
use super::kubectl::{MANIFEST, edit_config_map};
use super::{Judgement, Network};
use crate::base::go_json::Object;
use crate::base::logging::chain;
use crate::cluster::network_config::NetworkConfig;
use crate::flannel::install;
use crate::plan::backend::BackendConfig;

/// The name of these checks.
const CHECK: &str = "migrate-config";

/// Our own keys of a backend, and what flannel does without them.
const OUR_OPTIONS: [(&str, &str, &str); 1] = [(
    "vxlan",
    "Checksum",
    "a new device computes checksums of outer packets, an old one stays as it is",
)];

/// A ConfigMap of flannel's or ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ConfigMap {
    pub(super) namespace: String,
    pub(super) name: String,
    /// Whether there is one.
    exists: bool,
    net_conf: Option<String>,
    cni_conf: Option<String>,
}

impl ConfigMap {
    /// Reads one; `None` is one that there is not.
    pub(super) fn read(namespace: &str, name: &str, value: Option<&Value>) -> Self {
        let data = |key: &str| -> Option<String> {
            let text = value?.get("data")?.get(key)?.as_str()?;
            Some(text.to_owned())
        };
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            exists: value.is_some(),
            net_conf: data("net-conf.json"),
            cni_conf: data("cni-conf.json"),
        }
    }

    /// As in `kubectl -n`.
    fn shown(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn edit(&self) -> String {
        edit_config_map(&self.namespace, &self.name)
    }

    /// The network config that this agent would work by.
    pub(super) fn network(&self) -> Option<NetworkConfig> {
        NetworkConfig::parse(self.net_conf.as_deref()?).ok()
    }

    /// Whether this agent takes the network config; returns it if so.
    pub(super) fn judge_network(&self, judgement: &mut Judgement) -> Option<NetworkConfig> {
        let shown = self.shown();
        let why = "the agent waits for a network config that it can use, and a node that is new has no overlay until then";
        let Some(text) = &self.net_conf else {
            let what = match self.exists {
                true => format!("the ConfigMap {shown} has no net-conf.json"),
                false => format!("there is no ConfigMap {shown}, which the pods mount"),
            };
            judgement.bar(CHECK, &shown, what, why, vec![self.edit()]);
            return None;
        };
        let config = match NetworkConfig::parse(text) {
            Ok(config) => config,
            Err(error) => {
                let what = format!("net-conf.json in {shown}: {}", chain(&error));
                judgement.bar(CHECK, &shown, what, why, vec![self.edit()]);
                return None;
            }
        };
        match BackendConfig::parse(&config) {
            Ok(backend) if backend.definition().runs_commands => judgement.warn(
                CHECK,
                &shown,
                format!("the backend {} runs commands, and our image has neither a shell nor programs for them", config.backend.kind),
                "each command fails, and pods on other nodes are not reached",
                vec!["make an image of your own that has them, with the agent in it".to_owned()],
            ),
            Ok(_) => {}
            Err(error) => {
                let what = format!("net-conf.json in {shown}: {}", chain(&error));
                let remedy = vec![
                    "change the backend while flannel runs, which interrupts all traffic between nodes until each flannel was restarted".to_owned(),
                    self.edit(),
                ];
                judgement.bar(CHECK, &shown, what, why, remedy);
            }
        }
        Some(config)
    }

    /// Whether our init container takes the config list.
    pub(super) fn judge_cni(&self, judgement: &mut Judgement) {
        let shown = self.shown();
        let fault = match &self.cni_conf {
            None if self.exists => "is missing".to_owned(),
            None => return,
            Some(text) => match install::check(text) {
                Ok(()) => return,
                Err(fault) => chain(&fault),
            },
        };
        judgement.bar(
            CHECK,
            &shown,
            format!("cni-conf.json in {shown}: {fault}"),
            "the init container install-cni ends with status 78, and the agent does not start",
            vec![self.edit()],
        );
    }

    /// What flannel does not read, of a network config that this agent works by.
    pub(super) fn judge_for_flannel(&self, judgement: &mut Judgement) -> Option<NetworkConfig> {
        let shown = self.shown();
        let config = self.network()?;
        if config.encrypt {
            judgement.bar(
                CHECK,
                &shown,
                "the network config says \"Encrypt\": true, which flannel does not know",
                "flannel starts the backend that stands there, or udp, and packets between nodes are in plain text",
                vec![format!(
                    "name the backend itself, which changes nothing: \"Backend\": {{\"Type\": \"wireguard\"}} in place of \"Encrypt\": {}",
                    self.edit()
                )],
            );
        }
        let options = Object::parse(config.backend.options.get()).unwrap_or_default();
        for (kind, key, then) in OUR_OPTIONS {
            if config.backend.kind == kind && options.raw(key).is_some() {
                judgement.warn(
                    CHECK,
                    &shown,
                    format!("flannel does not know {key} of the backend {kind}"),
                    then,
                    vec![format!(
                        "if that does not matter, take it out: {}",
                        self.edit()
                    )],
                );
            }
        }
        Some(config)
    }

    /// Whether runtimes ask the CNI plugin if it is ready.
    pub(super) fn asks_for_status(&self) -> bool {
        let config = self.cni_conf.as_deref().unwrap_or_default();
        let config: Value = serde_json::from_str(config).unwrap_or_default();
        let versions = config.get("cniVersions").and_then(Value::as_array);
        let mut versions = versions.into_iter().flatten().filter_map(Value::as_str);
        text(&config, "/cniVersion") == "1.1.0" || versions.any(|version| version == "1.1.0")
    }
}

/// flannel has its network config from somewhere else than a ConfigMap.
pub(super) fn judge_absence(daemon: &Daemon, judgement: &mut Judgement) {
    let shown = daemon.shown();
    judgement.warn(
        CHECK,
        &shown,
        format!("{shown} mounts no ConfigMap with the network config, so this cannot check it"),
        "our manifest has it in the ConfigMap kube-flannel/kube-flannel-cfg: with another network or backend there, nodes that have moved do not reach the others",
        vec![format!("write flannel's network config, --net-config-path on a node, into net-conf.json in {MANIFEST}")],
    );
}

/// As in the report.
pub(super) fn shown(config: &NetworkConfig) -> Network {
    Network {
        networks: config.networks().map(|net| net.to_string()).collect(),
        backend: config.backend.kind.clone(),
    }
}
