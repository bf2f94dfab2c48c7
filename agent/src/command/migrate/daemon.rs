//! DaemonSets that run flannel, or this agent in its place, as a cluster has them.
//!
//! What others wrote is read leniently: of an object of an unexpected form, what is missing counts as empty.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::base::go_json::shorten;
use crate::flannel::flanneld::listed::CommandLine;

/// Who a DaemonSet's agent is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Program {
    Flannel,
    Selvage,
}

/// By what a DaemonSet was made, which decides how it is changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Made {
    /// `kubectl apply`: what the next manifest leaves out goes.
    Applied,
    /// `kubectl create` or something else: what the next manifest leaves out stays.
    Otherwise,
    /// A chart.
    Helm { release: String, namespace: String },
}

/// A variable of a container.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Variable {
    pub(super) name: String,
    /// Its value; `None` if it comes from an object or a field.
    pub(super) value: Option<String>,
}

/// A directory or file of the host that a pod has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct HostPath {
    pub(super) path: String,
    /// Where its containers have it.
    pub(super) mounts: Vec<String>,
}

/// One container.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) image: String,
    /// Command and arguments.
    pub(super) words: Vec<String>,
    pub(super) variables: Vec<Variable>,
    pub(super) is_privileged: bool,
}

/// A DaemonSet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Daemon {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) program: Program,
    pub(super) made: Made,
    /// Whether its selector is `app: flannel` alone, as in flannel's manifest and ours: nobody can change one.
    pub(super) has_our_selector: bool,
    /// Whether our selector finds its pods.
    pub(super) is_found_by_ours: bool,
    pub(super) service_account: String,
    /// Whether its nodes are those of Windows.
    pub(super) is_windows: bool,
    /// How many nodes it should run on, and on how many it is ready.
    pub(super) desired: u64,
    pub(super) ready: u64,
    /// The container that is the agent.
    pub(super) agent: Container,
    /// The other containers; init containers not among them.
    pub(super) beside: Vec<Container>,
    pub(super) init: Vec<Container>,
    pub(super) host_paths: Vec<HostPath>,
    /// The ConfigMap with `net-conf.json`.
    pub(super) config_map: Option<String>,
}

/// A text at a JSON pointer; empty if there is none.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_default()
}

/// The elements of an array at a JSON pointer.
pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    let found = value.pointer(pointer).and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
}

fn number(value: &Value, pointer: &str) -> u64 {
    let found = value.pointer(pointer).and_then(Value::as_u64);
    found.unwrap_or_default()
}

fn texts(value: &Value, pointer: &str) -> BTreeMap<String, String> {
    let found = value.pointer(pointer).and_then(Value::as_object);
    let pairs = found.into_iter().flatten();
    pairs
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// The last part of a path, or of an image's name without registry, tag and digest.
fn last_part(text: &str) -> &str {
    text.rsplit('/').next().unwrap_or(text)
}

/// The name of an image without registry, tag and digest.
pub(super) fn image_name(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    let last = last_part(image);
    last.split(':').next().unwrap_or(last)
}

impl Container {
    pub(super) fn read(value: &Value) -> Self {
        let words = ["/command", "/args"].map(|at| list(value, at));
        let words = words.into_iter().flatten().filter_map(Value::as_str);
        let variable = |value: &Value| Variable {
            name: text(value, "/name").to_owned(),
            value: match value.pointer("/valueFrom") {
                Some(_) => None,
                None => Some(text(value, "/value").to_owned()),
            },
        };
        Self {
            name: shorten(text(value, "/name")),
            image: text(value, "/image").to_owned(),
            words: words.map(str::to_owned).collect(),
            variables: list(value, "/env").iter().map(variable).collect(),
            is_privileged: value.pointer("/securityContext/privileged") == Some(&Value::Bool(true)),
        }
    }

    /// Whether its command is this program.
    fn runs(&self, program: &str) -> bool {
        self.words.first().map(|word| last_part(word)) == Some(program)
    }

    fn is_ours(&self) -> bool {
        self.runs("selvage") || image_name(&self.image) == "selvage"
    }

    /// Whether it is a flanneld, by that name or as its image's own program.
    fn is_flanneld(&self) -> bool {
        let image = image_name(&self.image);
        let is_image = image == "flannel" || image.ends_with("-flannel");
        let has_flag = self
            .words
            .iter()
            .any(|word| word.contains("kube-subnet-mgr"));
        self.words.iter().any(|word| word.contains("flanneld")) || is_image && has_flag
    }

    /// Whether the command is a script, whose flags cannot be told.
    pub(super) fn is_script(&self) -> bool {
        let first = self.words.first().map(|word| last_part(word));
        let is_shell = first.is_some_and(|first| ["sh", "bash", "ash", "dash"].contains(&first));
        is_shell || first.is_some_and(|first| first.ends_with(".sh"))
    }

    /// The flags of a flanneld; of a script none.
    pub(super) fn command_line(&self) -> CommandLine {
        if self.is_script() {
            return CommandLine::default();
        }
        let is_word =
            |at: usize, word: fn(&str) -> bool| self.words.get(at).is_some_and(|it| word(it));
        // flanneld, selvage run, or a flag of what the image runs.
        let skip = usize::from(is_word(0, |word| !word.starts_with('-')));
        let skip = skip + usize::from(is_word(skip, |word| word == "run"));
        CommandLine::read(self.words.get(skip..).unwrap_or_default())
    }

    pub(super) fn variable(&self, name: &str) -> Option<&Variable> {
        self.variables.iter().find(|variable| variable.name == name)
    }
}

impl Daemon {
    /// Reads a DaemonSet; `None` if it runs neither flannel nor this agent.
    pub(super) fn read(value: &Value) -> Option<Self> {
        let containers = list(value, "/spec/template/spec/containers");
        let mut containers: Vec<_> = containers.iter().map(Container::read).collect();
        let init = list(value, "/spec/template/spec/initContainers");
        let init: Vec<_> = init.iter().map(Container::read).collect();
        let is_ours = containers.iter().chain(&init).any(Container::is_ours);
        let is_agent = |container: &Container| match is_ours {
            true => container.is_ours() || container.is_flanneld(),
            false => container.is_flanneld(),
        };
        let agent = containers.iter().position(is_agent)?;
        let agent = containers.remove(agent);
        let match_labels = texts(value, "/spec/selector/matchLabels");
        let is_only_app =
            match_labels.len() == 1 && list(value, "/spec/selector/matchExpressions").is_empty();
        let is_flannel = |labels: &BTreeMap<String, String>| {
            labels.get("app").is_some_and(|app| app == "flannel")
        };
        Some(Self {
            namespace: text(value, "/metadata/namespace").to_owned(),
            name: text(value, "/metadata/name").to_owned(),
            program: match is_ours {
                true => Program::Selvage,
                false => Program::Flannel,
            },
            made: made(value),
            has_our_selector: is_only_app && is_flannel(&match_labels),
            is_found_by_ours: is_flannel(&texts(value, "/spec/template/metadata/labels")),
            service_account: text(value, "/spec/template/spec/serviceAccountName").to_owned(),
            is_windows: is_windows(value),
            desired: number(value, "/status/desiredNumberScheduled"),
            ready: number(value, "/status/numberReady"),
            agent,
            beside: containers,
            init,
            host_paths: host_paths(value),
            config_map: config_map(value),
        })
    }

    /// As in `kubectl -n`.
    pub(super) fn shown(&self) -> String {
        format!("{}/{}", shorten(&self.namespace), shorten(&self.name))
    }

    /// The host's directory that a container has there, or one that ends so.
    pub(super) fn host_directory(&self, mount: &str) -> Option<&str> {
        let is_there = |path: &&HostPath| {
            let mounts = path.mounts.iter().map(|mount| mount.trim_end_matches('/'));
            mounts.into_iter().any(|at| at.ends_with(mount))
        };
        let found = self.host_paths.iter().find(is_there)?;
        Some(found.path.trim_end_matches('/'))
    }

    /// The names of the CNI configs that its containers write.
    pub(super) fn configs(&self) -> BTreeSet<&str> {
        let containers = self.init.iter().chain(&self.beside);
        let by_path = containers.clone().flat_map(|container| &container.words);
        let by_path = by_path.filter(|word| word.contains("/cni/net.d/"));
        let by_name = containers.filter_map(|container| container.variable("CNI_CONF_NAME"));
        let by_name = by_name.filter_map(|variable| variable.value.as_deref());
        let names = by_path.map(|word| last_part(word)).chain(by_name);
        names.filter(|name| !name.is_empty()).collect()
    }

    /// All variables that set flags.
    pub(super) fn variables(&self) -> &[Variable] {
        &self.agent.variables
    }
}

fn made(value: &Value) -> Made {
    let annotations = texts(value, "/metadata/annotations");
    if let Some(release) = annotations.get("meta.helm.sh/release-name") {
        let namespace = annotations.get("meta.helm.sh/release-namespace");
        return Made::Helm {
            release: release.clone(),
            namespace: namespace.cloned().unwrap_or_default(),
        };
    }
    match annotations.contains_key("kubectl.kubernetes.io/last-applied-configuration") {
        true => Made::Applied,
        false => Made::Otherwise,
    }
}

/// Whether a selector or an affinity asks for Windows.
fn is_windows(value: &Value) -> bool {
    let selector = texts(value, "/spec/template/spec/nodeSelector");
    let is_os = |key: &str| key == "kubernetes.io/os" || key == "beta.kubernetes.io/os";
    let terms = "/spec/template/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let expressions = list(value, terms)
        .iter()
        .flat_map(|term| list(term, "/matchExpressions"));
    let mut expressions = expressions.filter(|expression| is_os(text(expression, "/key")));
    selector
        .iter()
        .any(|(key, os)| is_os(key) && os == "windows")
        || expressions.any(|expression| {
            let mut values = list(expression, "/values").iter();
            text(expression, "/operator") == "In" && values.all(|os| os == "windows")
        })
}

fn host_paths(value: &Value) -> Vec<HostPath> {
    let all = ["initContainers", "containers"];
    let containers = all.map(|kind| list(value, &format!("/spec/template/spec/{kind}")));
    let mounts = containers
        .into_iter()
        .flatten()
        .flat_map(|container| list(container, "/volumeMounts"));
    let mounts: Vec<(&str, &str)> = mounts
        .map(|mount| (text(mount, "/name"), text(mount, "/mountPath")))
        .collect();
    let volumes = list(value, "/spec/template/spec/volumes").iter();
    let path = |volume: &Value| {
        let path = volume.pointer("/hostPath/path")?.as_str()?.to_owned();
        let name = text(volume, "/name");
        let here = mounts.iter().filter(|(volume, _)| *volume == name);
        let mut mounts: Vec<_> = here.map(|(_, at)| (*at).to_owned()).collect();
        mounts.sort();
        mounts.dedup();
        Some(HostPath { path, mounts })
    };
    volumes.filter_map(path).collect()
}

/// The ConfigMap that is mounted where flannel looks for the network config; else the only one.
fn config_map(value: &Value) -> Option<String> {
    let volumes = list(value, "/spec/template/spec/volumes").iter();
    let maps = volumes.filter_map(|volume| {
        let map = volume.pointer("/configMap/name")?.as_str()?;
        Some((text(volume, "/name"), map))
    });
    let maps: Vec<_> = maps.collect();
    let containers = list(value, "/spec/template/spec/containers").iter();
    let mut mounts = containers.flat_map(|container| list(container, "/volumeMounts"));
    let mounted = mounts.find_map(|mount| {
        let at = text(mount, "/mountPath").trim_end_matches('/');
        let is_there = at.ends_with("/kube-flannel");
        let found = maps
            .iter()
            .find(|(name, _)| is_there && *name == text(mount, "/name"));
        found.map(|(_, map)| (*map).to_owned())
    });
    mounted.or_else(|| match maps.as_slice() {
        [(_, map)] => Some((*map).to_owned()),
        _ => None,
    })
}
