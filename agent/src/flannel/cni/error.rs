//! Why a call failed, in the words and numbers that a container runtime reads.
//!
//! A runtime shows one message and no chain of causes, so each message holds its causes.

use std::path::PathBuf;

use serde::Serialize;
use thiserror::Error;

use super::version::Version;
use crate::base::go_json::GoJsonError;
use crate::base::logging::chain;

/// Upstream's number for everything that the specification has none for.
pub(super) const INTERNAL: u32 = 999;
/// Ours, from the range that the specification leaves to plugins: the attachment is unknown.
const UNKNOWN_ATTACHMENT: u32 = 100;
/// Ours: the container has an address of a subnet that this host no longer has.
const OLD_SUBNET: u32 = 101;
/// Ours: the bridge has such an address, and containers that use it.
const OLD_BRIDGE: u32 = 102;

/// A call failed. [`Error::code`] gives the number of CNI specification 1.1.0 §5.
#[derive(Debug, Error)]
pub enum Error {
    /// `CNI_COMMAND` is not set: somebody runs the plugin by hand. Not a failure.
    #[error("required env variables [CNI_COMMAND] missing")]
    NoCommand,
    /// The specification demands more variables for the command.
    #[error("required env variables [{}] missing", .0.join(","))]
    MissingVariables(Vec<&'static str>),
    /// A command that no version of the specification knows.
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
    /// The configuration wants a version of the specification that we do not speak.
    #[error("incompatible CNI versions")]
    IncompatibleVersion {
        /// The version it wants.
        config: String,
    },
    /// The command is younger than the version that the configuration wants.
    #[error("config version does not allow {command}")]
    CommandTooNew {
        /// The command.
        command: &'static str,
        /// The version it wants.
        config: Version,
        /// The first version with this command.
        since: Version,
    },
    /// The runtime's configuration did not arrive.
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
    /// The name could lead out of our directory.
    #[error("invalid characters found in network name")]
    InvalidName(String),
    /// The `delegate` object breaks a rule of flannel's.
    #[error("{0}")]
    DelegateRule(&'static str),
    /// A route in `ipam.routes` is none.
    #[error(
        "failed to assemble Delegate IPAM: failed to read IPAM routes: failed to parse ipam.routes: {0}"
    )]
    Routes(String),
    /// CHECK and GC need a key that is not there.
    #[error("{command} needs {key} in the network configuration")]
    MissingKey {
        /// The command.
        command: &'static str,
        /// The key.
        key: &'static str,
    },
    /// The agent has not run yet.
    #[error(
        "failed to load flannel 'subnet.env' file: open {}: no such file or directory. \
         The agent (selvage.service or flanneld) has not written it yet", path.display()
    )]
    NoSubnetFile {
        /// The file.
        path: PathBuf,
    },
    /// The file is there but unreadable.
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
    /// The file is not what the agent writes.
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
    /// The plugin's executable is nowhere.
    #[error("failed to delegate {command}: failed to find plugin {name:?} in path [{path}]")]
    NoPlugin {
        /// What it was to do.
        command: String,
        /// Its name.
        name: String,
        /// Where it was looked for.
        path: String,
    },
    /// The plugin's name could lead out of `CNI_PATH`.
    #[error("invalid plugin name: {0:?}")]
    PluginName(String),
    /// The plugin did not start.
    #[error("failed to delegate {command}: {}: {source}", program.display())]
    Spawn {
        /// What it was to do.
        command: String,
        /// The executable.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The plugin failed and said why, as the specification wants it.
    #[error("the delegate plugin failed: {}", String::from_utf8_lossy(.0))]
    Delegate(Vec<u8>),
    /// The plugin failed without an error that a runtime could read.
    #[error("netplugin failed: {0}")]
    DelegateDied(String),
    /// The plugin succeeded without a result.
    #[error("netplugin {name:?} printed no result: {output:?}")]
    NoResult {
        /// Its name.
        name: String,
        /// What it printed instead, shortened.
        output: String,
    },
    /// The plugin's result is written for another specification than any that we know.
    #[error("netplugin {name:?} printed a result of the unsupported version {version:?}")]
    ResultVersion {
        /// Its name.
        name: String,
        /// The version.
        version: String,
    },
    /// What we remember of an attachment cannot be read or written.
    #[error("failed to {action} {}: {source}", path.display())]
    State {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// CHECK: nothing is known of the attachment.
    #[error(
        "nothing is known of {container} in network {network:?}: no ADD was made, or a DEL was"
    )]
    UnknownAttachment {
        /// The container's id and interface.
        container: String,
        /// The network's name.
        network: String,
    },
    /// CHECK: the host's subnet is another than when the container was added.
    #[error(
        "{container} was added with subnet {was}, but this host's subnet is {now} by now: \
         the overlay does not reach the container until it is made anew"
    )]
    OldSubnet {
        /// The container's id and interface.
        container: String,
        /// Its subnets.
        was: String,
        /// The host's.
        now: String,
    },
    /// ADD: the bridge belongs to a subnet that is no longer the host's.
    #[error(
        "bridge {bridge} has the address {address} of a subnet that this host no longer has, and {ports} \
         attached: remove those containers, then the address is replaced by itself"
    )]
    OldBridge {
        /// The bridge.
        bridge: String,
        /// The address.
        address: String,
        /// The attached interfaces.
        ports: String,
    },
    /// GC: more than one thing failed; the first reason stands for all.
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

/// The form in which a runtime reads it.
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
    /// The error's number: below 100 the specification's, then ours, and 999 as upstream has it.
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
                    "config is {:?}, the command came with {since}",
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

    /// The text for standard output: what the delegate printed, or the specification's object (§5).
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
        // Four plain fields into memory: nothing that can fail.
        let _ = report.serialize(&mut serializer);
        text.push(b'\n');
        text
    }
}
