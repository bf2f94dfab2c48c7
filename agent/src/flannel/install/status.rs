//! What is installed, and whether a pod could start now.

use std::cmp::Ordering;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use serde::Serialize;

use super::binary::{self, Program};
use super::conf_dir::{self, ConfDir};
use super::conflist::Conflist;
use super::{Error, Places, warnings};
use crate::base::logging::chain;
use crate::flannel::cni::{self, Version};

/// What is installed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Status {
    /// The plugin's program.
    pub plugin: PathBuf,
    /// What it is.
    pub plugin_state: PluginState,
    /// Its version, if it says one.
    pub plugin_version: Option<String>,
    /// The config list.
    pub conflist: PathBuf,
    /// Whose it is.
    pub conflist_state: ConflistState,
    /// The network's name in it.
    pub network: Option<String>,
    /// The version of the CNI specification that runtimes take from it.
    pub cni_version: Option<&'static str>,
    /// Why a pod could not start now: the plugin's answer to STATUS.
    pub not_ready: Option<String>,
    /// What else keeps pods from the overlay.
    pub warnings: Vec<String>,
}

/// What stands in the plugin's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PluginState {
    /// Nothing.
    Missing,
    /// This program.
    Same,
    /// An older one of ours.
    Older,
    /// Another build of the same version.
    OtherBuild,
    /// A newer one of ours.
    Newer,
    /// flannel's, or an unknown one.
    Foreign,
    /// A link whose file cannot be seen.
    Link,
}

/// Whose config list there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConflistState {
    /// None.
    Missing,
    /// Ours, or kube-flannel's own.
    Ours,
    /// Somebody else's.
    Changed,
}

impl Status {
    /// Looks at a host.
    ///
    /// # Errors
    /// A file or directory cannot be read.
    pub fn look(places: &Places) -> Result<Self, Error> {
        let plugin = places.program();
        let (plugin_state, plugin_version) = of_plugin(Program::own().standing(&plugin)?);
        let conf_dir = ConfDir(&places.conf_dir);
        let conflist_state = match conf_dir.standing(&Conflist::built_in()?)? {
            conf_dir::Standing::Missing => ConflistState::Missing,
            conf_dir::Standing::Changed => ConflistState::Changed,
            conf_dir::Standing::Same | conf_dir::Standing::Ours => ConflistState::Ours,
        };
        let mut status = Self {
            plugin,
            plugin_state,
            plugin_version,
            conflist: conf_dir.path(),
            conflist_state,
            network: None,
            cni_version: None,
            not_ready: None,
            warnings: Vec::new(),
        };
        if conflist_state != ConflistState::Missing {
            match Conflist::read(&status.conflist) {
                Ok(conflist) => {
                    status.not_ready = not_ready(places, &conflist);
                    status.warnings = warnings(places, &conflist)?;
                    status.cni_version = Some(conflist.version.as_str());
                    status.network = Some(conflist.network);
                }
                Err(error) => status.warnings.push(chain(&error)),
            }
        }
        Ok(status)
    }

    /// Whether pods can start and are in the overlay.
    pub fn is_well(&self) -> bool {
        let missing = self.conflist_state == ConflistState::Missing;
        let foreign = matches!(
            self.plugin_state,
            PluginState::Missing | PluginState::Foreign | PluginState::Link
        );
        !missing && !foreign && self.not_ready.is_none() && self.warnings.is_empty()
    }

    /// As text, a line for each.
    pub fn text(&self) -> String {
        let version = self.plugin_version.as_deref().unwrap_or("unknown");
        let plugin = match self.plugin_state {
            PluginState::Missing => "missing".to_owned(),
            PluginState::Same => format!("version {version}, this program"),
            PluginState::Older => format!("version {version}, older than this program"),
            PluginState::OtherBuild => format!("version {version}, of another build"),
            PluginState::Newer => format!("version {version}, newer than this program"),
            PluginState::Foreign => format!("not Selvage's, version {version}"),
            PluginState::Link => "a link whose file cannot be seen here".to_owned(),
        };
        let conflist = match self.conflist_state {
            ConflistState::Missing => "missing",
            ConflistState::Ours => "as installed",
            ConflistState::Changed => "changed by somebody",
        };
        let mut text = format!(
            "plugin    {}: {plugin}\nconflist  {}: {conflist}",
            self.plugin.display(),
            self.conflist.display()
        );
        if let (Some(network), Some(version)) = (&self.network, self.cni_version) {
            text += &format!(", network {network}, CNI {version}");
            if Version::parse(version) < Some(Version::V1_1_0) {
                text += ", of which runtimes ask neither STATUS nor GC";
            }
        }
        let ready = self.not_ready.as_deref().map_or("yes", |why| why);
        if self.network.is_some() {
            text += &format!("\nready     {ready}");
        }
        for warning in &self.warnings {
            text += &format!("\nwarning: {warning}");
        }
        text + "\n"
    }
}

fn of_plugin(standing: binary::Standing) -> (PluginState, Option<String>) {
    match standing {
        binary::Standing::Missing => (PluginState::Missing, None),
        binary::Standing::Same => (PluginState::Same, Some(Program::own().version)),
        binary::Standing::Ours(version, order) => {
            let state = match order {
                Ordering::Less => PluginState::Older,
                Ordering::Equal => PluginState::OtherBuild,
                Ordering::Greater => PluginState::Newer,
            };
            (state, Some(version))
        }
        binary::Standing::Other(version) => (PluginState::Foreign, version),
        binary::Standing::Link(_) => (PluginState::Link, None),
    }
}

/// What the plugin would answer to STATUS, which only configs of 1.1.0 have.
fn not_ready(places: &Places, conflist: &Conflist) -> Option<String> {
    let variable = |name: &str| match name {
        "CNI_COMMAND" => Some(OsString::from("STATUS")),
        "CNI_PATH" => Some(places.bin_dir.clone().into()),
        _ => None,
    };
    let configuration = conflist.configuration(Version::NEWEST);
    let answer = cni::run(variable, &mut configuration.as_bytes(), &mut io::sink());
    answer.err().map(|(error, _)| error.to_string())
}
