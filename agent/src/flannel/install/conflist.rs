//! A CNI config list for flannel: what container runtimes read to attach pods to the overlay.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::base::go_json::shorten;
use crate::flannel::cni::{self, Version};

/// kube-flannel's config list; `selvage options cni` prints it.
pub const BUILT_IN: &str = include_str!("../../../data/cni/10-flannel.conflist");

/// The longest config list that is read, in bytes.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// The plugin's name in a config list, and of its program.
const FLANNEL: &str = "flannel";

/// A subnet file, to try a config with.
const SUBNET_ENV: &[u8] =
    b"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// What is wrong with a config list.
#[derive(Debug, Error)]
pub enum Fault {
    /// It is too long.
    #[error("it has more than {MAX_BYTES} bytes")]
    TooLong,
    /// It is not JSON.
    #[error("not valid JSON")]
    NotJson(#[source] serde_json::Error),
    /// A key is missing, or its value is wrong.
    #[error("{key} is {found}: expected {expected}")]
    Key {
        /// Which key.
        key: &'static str,
        /// What it is, shortened.
        found: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// No plugin is flannel's.
    #[error("none of plugins is of type flannel: its pods would not be in the overlay")]
    NoFlannel,
    /// Every ADD would fail.
    #[error("the plugin would refuse it")]
    Refused(#[source] cni::Error),
}

/// A valid config list.
#[derive(Clone, Debug)]
pub(super) struct Conflist {
    /// As it is written.
    pub(super) bytes: Vec<u8>,
    /// The same, parsed.
    pub(super) value: Value,
    /// The network's name.
    pub(super) network: String,
    /// The version of the CNI specification that a runtime of today takes.
    pub(super) version: Version,
    /// flannel's part.
    flannel: Map<String, Value>,
    /// All plugins that an ADD runs, beside flannel's.
    pub(super) others: Vec<String>,
}

impl Conflist {
    /// kube-flannel's.
    pub(super) fn built_in() -> Result<Self, Fault> {
        Self::parse(BUILT_IN.into())
    }

    /// Reads and checks a file.
    pub(super) fn read(path: &Path) -> Result<Self, super::Error> {
        let failed = |source| super::Error::file("read", path, source);
        let fault = |source| super::Error::Conflist {
            path: path.to_owned(),
            source,
        };
        if fs::metadata(path).map_err(failed)?.len() > MAX_BYTES {
            return Err(fault(Fault::TooLong));
        }
        Self::parse(fs::read(path).map_err(failed)?).map_err(fault)
    }

    /// Checks a config list as libcni and the plugin will.
    pub(super) fn parse(bytes: Vec<u8>) -> Result<Self, Fault> {
        let value: Value = serde_json::from_slice(&bytes).map_err(Fault::NotJson)?;
        let network = value.get("name").and_then(Value::as_str);
        let network = network.filter(|name| !name.is_empty());
        let network = network.ok_or_else(|| wrong(&value, "name", "the network's name"))?;
        let version = version(&value)?;
        let expected = "a list of objects, each with the name of a plugin as type";
        let plugins = value.get("plugins").and_then(Value::as_array);
        let plugins: Option<Vec<_>> = plugins.and_then(|plugins| {
            let typed = |plugin: &Value| Some((type_of(plugin)?, plugin.as_object()?.clone()));
            plugins.iter().map(typed).collect()
        });
        let plugins = plugins.ok_or_else(|| wrong(&value, "plugins", expected))?;
        let mut others = Vec::new();
        let mut flannel = None;
        for (kind, plugin) in plugins {
            if kind == FLANNEL {
                flannel = Some(plugin);
            } else {
                others.push(kind);
            }
        }
        let mut conflist = Self {
            network: network.to_owned(),
            version,
            flannel: flannel.ok_or(Fault::NoFlannel)?,
            others,
            bytes,
            value,
        };
        let delegate = conflist.configuration(version);
        let delegate = cni::delegate_configuration(delegate.as_bytes(), SUBNET_ENV);
        let delegate = delegate.map_err(Fault::Refused)?;
        let delegate: Value = serde_json::from_str(&delegate).map_err(Fault::NotJson)?;
        let ipam = delegate.get("ipam").and_then(type_of);
        conflist
            .others
            .splice(0..0, type_of(&delegate).into_iter().chain(ipam));
        Ok(conflist)
    }

    /// What a runtime that takes this version gives the plugin: its part, with the name and version of the list.
    pub(super) fn configuration(&self, version: Version) -> String {
        let mut configuration = self.flannel.clone();
        configuration.insert("name".into(), self.network.clone().into());
        configuration.insert("cniVersion".into(), version.as_str().into());
        Value::Object(configuration).to_string()
    }
}

/// The name of a plugin's program.
fn type_of(plugin: &Value) -> Option<String> {
    let kind = plugin.get("type")?.as_str()?;
    (!kind.is_empty() && !kind.contains('/')).then(|| kind.to_owned())
}

/// Checks a config list as an installation does.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check(text: &str) -> Result<(), Fault> {
    Conflist::parse(text.into()).map(drop)
}

/// The plugins that a config names, of one plugin or a list, in the order in which they are called, and those of Multus's
/// delegates.
///
/// # Errors
/// It is not JSON, or no config.
pub(crate) fn plugin_types(config: &[u8]) -> serde_json::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default, rename = "type")]
        kind: String,
        #[serde(default)]
        plugins: Vec<Config>,
        #[serde(default)]
        delegates: Vec<Config>,
    }
    fn add(config: Config, types: &mut Vec<String>) {
        if !config.kind.is_empty() {
            types.push(config.kind);
        }
        for below in config.plugins.into_iter().chain(config.delegates) {
            add(below, types);
        }
    }
    let mut types = Vec::new();
    add(serde_json::from_slice(config)?, &mut types);
    Ok(types)
}

/// Whether a config of these plugins puts pods into the overlay. Multus without delegates has a `clusterNetwork`, which
/// names another config (multus-cni, docs/configuration.md): then it may.
pub(crate) fn leads_to_flannel(types: &[String]) -> bool {
    types.iter().any(|kind| kind == FLANNEL)
        || matches!(types, [only] if only == "multus" || only == "multus-shim")
}

/// The highest version that libcni since 1.2 and we know of those in `cniVersion` and `cniVersions` (CNI specification
/// 1.1.0, section 1). Earlier ones read `cniVersion` alone.
fn version(value: &Value) -> Result<Version, Fault> {
    let (key, expected) = (
        "cniVersion",
        "a version of the CNI specification, 0.1.0 to 1.1.0",
    );
    let single = match value.get(key) {
        None => None,
        Some(found) => {
            let known = found.as_str().and_then(Version::parse);
            Some(known.ok_or_else(|| wrong(value, key, expected))?)
        }
    };
    let (key, expected) = ("cniVersions", "a list of versions of the CNI specification");
    let all: Option<Vec<_>> = match value.get(key) {
        None => Some(Vec::new()),
        Some(list) => list
            .as_array()
            .and_then(|list| list.iter().map(Value::as_str).collect()),
    };
    let all = all.ok_or_else(|| wrong(value, key, expected))?;
    let known = all.into_iter().filter_map(Version::parse).chain(single);
    Ok(known.max().unwrap_or(Version::ALL[0]))
}

fn wrong(value: &Value, key: &'static str, expected: &'static str) -> Fault {
    let found = match value.get(key) {
        None => "missing".to_owned(),
        Some(found) => shorten(&found.to_string()),
    };
    Fault::Key {
        key,
        found,
        expected,
    }
}
