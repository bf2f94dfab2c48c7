//! Errors of a call, with the texts and codes that a container runtime reads.
//!
//! A runtime shows one message without a chain of causes, so each message includes its causes.

use std::path::PathBuf;

use serde::Serialize;
use thiserror::Error;

use super::version::Version;
use crate::base::go_json::GoJsonError;
use crate::base::logging::chain;

/// Upstream's code for errors without a code in the specification.
pub(super) const INTERNAL: u32 = 999;
/// Our code, from the specification's range for plugins: unknown attachment.
const UNKNOWN_ATTACHMENT: u32 = 100;
/// Ours: the container has an address in an old subnet of this host.
const OLD_SUBNET: u32 = 101;
/// Ours: the bridge has such an address, and containers use it.
const OLD_BRIDGE: u32 = 102;

/// A call failed. [`Error::code`] returns the code of CNI specification 1.1.0 §5.
#[derive(Debug, Error)]
pub enum Error {
    /// `CNI_COMMAND` is not set: the plugin was run by hand. Not a failure.
    #[error("required env variables [CNI_COMMAND] missing")]
    NoCommand,
    /// Required variables are missing for the command.
    #[error("required env variables [{}] missing", .0.join(","))]
    MissingVariables(Vec<&'static str>),
    /// A command that no version of the specification has.
    #[error("unknown CNI_COMMAND: {0}")]
    UnknownCommand(String),
    /// A variable has a value that the specification does not allow.
    #[error("invalid characters in {what}")]
    InvalidVariable {
        /// What the variable holds.
        what: &'static str,
        /// Its value, and what is allowed.
        details: String,
    },
    /// The configuration uses an unsupported version of the specification.
    #[error("incompatible CNI versions")]
    IncompatibleVersion {
        /// The version it wants.
        config: String,
    },
    /// The command does not exist in the version that the configuration uses.
    #[error("config version does not allow {command}")]
    CommandTooNew {
        /// The command.
        command: &'static str,
        /// The version it wants.
        config: Version,
        /// The first version with this command.
        since: Version,
    },
    /// Failed to read the runtime's configuration.
    #[error("error reading from stdin: {0}")]
    Stdin(#[source] std::io::Error),
    /// It is not a JSON object.
    #[error("error unmarshall network config: {}", chain(.0))]
    NotJson(#[source] GoJsonError),
    /// A key has a value of the wrong type.
    #[error("failed to load netconf: {}", chain(.0))]
    NetConf(#[source] GoJsonError),
    /// The network has no name.
    #[error("missing network name")]
    NoName,
    /// The name is not safe in a file name.
    #[error("invalid characters found in network name")]
    InvalidName(String),
    /// The `delegate` object violates one of flannel's rules.
    #[error("{0}")]
    DelegateRule(&'static str),
    /// An invalid route in `ipam.routes`.
    #[error(
        "failed to assemble Delegate IPAM: failed to read IPAM routes: failed to parse ipam.routes: {0}"
    )]
    Routes(String),
    /// A key that CHECK or GC needs is missing.
    #[error("{command} needs {key} in the network configuration")]
    MissingKey {
        /// The command.
        command: &'static str,
        /// The key.
        key: &'static str,
    },
    /// The agent has not written the file yet.
    #[error(
        "failed to load flannel 'subnet.env' file: open {}: no such file or directory. \
         The agent (selvage.service or flanneld) has not written it yet", path.display()
    )]
    NoSubnetFile {
        /// The file.
        path: PathBuf,
    },
    /// The file exists but is unreadable.
    #[error(
        "failed to load flannel 'subnet.env' file: open {}: {source}. \
         Check the flannel pod log for this node, or the journal of selvage.service", path.display()
    )]
    UnreadableSubnetFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is invalid.
    #[error(
        "failed to load flannel 'subnet.env' file: {source}. \
         Check the flannel pod log for this node, or the journal of selvage.service"
    )]
    BadSubnetFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: super::subnet_env::Error,
    },
    /// STATUS: an ADD would fail now.
    #[error("{0}")]
    NotReady(#[source] Box<Error>),
    /// The plugin's executable was not found.
    #[error("failed to delegate {command}: failed to find plugin {name:?} in path [{path}]")]
    NoPlugin {
        /// The command for the plugin.
        command: String,
        /// Its name.
        name: String,
        /// The search path.
        path: String,
    },
    /// The plugin's name could leave `CNI_PATH`.
    #[error("invalid plugin name: {0:?}")]
    PluginName(String),
    /// Failed to start the plugin.
    #[error("failed to delegate {command}: {}: {source}", program.display())]
    Spawn {
        /// The command for the plugin.
        command: String,
        /// The executable.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The plugin failed with an error object as specified.
    #[error("the delegate plugin failed: {}", String::from_utf8_lossy(.0))]
    Delegate(Vec<u8>),
    /// The plugin failed without a valid error object.
    #[error("netplugin failed: {0}")]
    DelegateDied(String),
    /// The plugin succeeded without a result.
    #[error("netplugin {name:?} printed no result: {output:?}")]
    NoResult {
        /// Its name.
        name: String,
        /// Its output, shortened.
        output: String,
    },
    /// The plugin's result uses an unsupported version of the specification.
    #[error("netplugin {name:?} printed a result of the unsupported version {version:?}")]
    ResultVersion {
        /// Its name.
        name: String,
        /// The version.
        version: String,
    },
    /// Failed to read or write an attachment's state.
    #[error("failed to {action} {}: {source}", path.display())]
    State {
        /// The failed operation.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// CHECK: unknown attachment.
    #[error("{container} in network {network:?} is unknown: it was never added, or it was deleted")]
    UnknownAttachment {
        /// The container's id and interface.
        container: String,
        /// The network's name.
        network: String,
    },
    /// CHECK: the host's subnet has changed since the container was added.
    #[error(
        "{container} was added with subnet {was}, but this host's subnet is now {now}: the overlay cannot reach the container; recreate it"
    )]
    OldSubnet {
        /// The container's id and interface.
        container: String,
        /// Its subnets.
        was: String,
        /// The host's.
        now: String,
    },
    /// ADD: the bridge has an address of an old subnet.
    #[error(
        "bridge {bridge} still has the address {address} of an old subnet, and {ports} attached: remove those containers; the next ADD then replaces the address"
    )]
    OldBridge {
        /// The bridge.
        bridge: String,
        /// The address.
        address: String,
        /// The attached interfaces.
        ports: String,
    },
    /// GC: several steps failed; carries the first error.
    #[error("{failed} steps failed; the first: {first}")]
    Collect {
        /// How many failed.
        failed: usize,
        /// Why the first failed.
        first: Box<Error>,
    },
    /// The result could not be printed.
    #[error("failed to print the result: {0}")]
    Stdout(#[source] std::io::Error),
}

/// The error object that a runtime reads.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(rename = "cniVersion")]
    version: &'a str,
    code: u32,
    msg: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    details: String,
}

impl Error {
    /// The code: below 100 the specification's, from 100 ours, 999 as upstream.
    pub fn code(&self) -> u32 {
        match self {
            Self::IncompatibleVersion { .. } | Self::CommandTooNew { .. } => 1,
            Self::NoCommand
            | Self::MissingVariables(_)
            | Self::UnknownCommand(_)
            | Self::InvalidVariable { .. } => 4,
            Self::Stdin(_) | Self::Stdout(_) | Self::State { .. } => 5,
            Self::NotJson(_) | Self::NoResult { .. } => 6,
            Self::NetConf(_)
            | Self::NoName
            | Self::InvalidName(_)
            | Self::DelegateRule(_)
            | Self::Routes(_)
            | Self::PluginName(_)
            | Self::MissingKey { .. } => 7,
            Self::NoSubnetFile { .. } => 11,
            Self::NotReady(_) => 50,
            Self::UnknownAttachment { .. } => UNKNOWN_ATTACHMENT,
            Self::OldSubnet { .. } => OLD_SUBNET,
            Self::OldBridge { .. } => OLD_BRIDGE,
            Self::Collect { first, .. } => first.code(),
            Self::UnreadableSubnetFile { .. }
            | Self::BadSubnetFile { .. }
            | Self::NoPlugin { .. }
            | Self::Spawn { .. }
            | Self::ResultVersion { .. }
            | Self::Delegate(_)
            | Self::DelegateDied(_) => INTERNAL,
        }
    }

    fn details(&self) -> String {
        match self {
            Self::InvalidVariable { details, .. } => details.clone(),
            Self::InvalidName(name) => name.clone(),
            Self::IncompatibleVersion { config } => {
                let supported: Vec<_> = Version::ALL.map(|v| format!("{:?}", v.as_str())).into();
                format!(
                    "config is {config:?}, plugin supports [{}]",
                    supported.join(" ")
                )
            }
            Self::CommandTooNew { config, since, .. } => {
                format!(
                    "config is {:?}, the command exists since {since}",
                    config.as_str()
                )
            }
            Self::BadSubnetFile { path, source } => match source.key() {
                Some(key) => format!("{key} in {}", path.display()),
                None => String::new(),
            },
            _ => String::new(),
        }
    }

    /// The text for standard output: the delegate's own, or the specification's error object (§5).
    pub fn report(&self, version: Option<Version>) -> Vec<u8> {
        if let Self::Delegate(output) = self {
            return output.clone();
        }
        let report = Report {
            version: version.unwrap_or(Version::NEWEST).as_str(),
            code: self.code(),
            msg: self.to_string(),
            details: self.details(),
        };
        let mut text = Vec::new();
        let layout = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut text, layout);
        // Serializing four plain fields into memory cannot fail.
        let _ = report.serialize(&mut serializer);
        text.push(b'\n');
        text
    }
}
