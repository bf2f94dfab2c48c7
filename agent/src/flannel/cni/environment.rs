//! The runtime's environment variables: the command, and the interface and container that it is for.

use std::ffi::OsString;

use super::error::Error;
use super::version::Version;
use crate::base::net::InterfaceName;

/// The command (CNI specification §2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Command {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

impl Command {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "STATUS" => Self::Status,
            "GC" => Self::Gc,
            "VERSION" => Self::Version,
            _ => return None,
        })
    }

    /// The value of `CNI_COMMAND`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }

    /// The version of the specification that introduced the command.
    pub(super) fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_1_0,
            Self::Check => Version::V0_4_0,
            Self::Status | Self::Gc => Version::V1_1_0,
        }
    }

    /// The variables that must be set and not empty.
    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Self::Status | Self::Gc => &["CNI_PATH"],
            Self::Version => &[],
        }
    }
}

/// One interface of one container that a runtime attaches to a network.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Interface {
    /// The container's ID, safe in a file name. Empty for commands without a container.
    pub(super) container_id: String,
    /// The interface's name inside the container. Empty likewise.
    pub(super) name: String,
}

impl std::fmt::Display for Interface {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of container {}", self.name, self.container_id)
    }
}

/// The request, except the configuration on standard input.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) command: Command,
    pub(super) interface: Interface,
    /// `CNI_PATH`: the directories of plugins.
    pub(super) path: OsString,
}

impl Call {
    /// Reads the variables through `get`, which returns `None` for an unset one.
    pub(super) fn parse(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let get = |name: &str| get(name).unwrap_or_default();
        let command = get("CNI_COMMAND");
        if command.is_empty() {
            return Err(Error::NoCommand);
        }
        let command = command.to_string_lossy();
        let command =
            Command::parse(&command).ok_or_else(|| Error::UnknownCommand(command.into_owned()))?;
        let required = command.required();
        let missing: Vec<_> = required
            .iter()
            .copied()
            .filter(|name| get(name).is_empty())
            .collect();
        if !missing.is_empty() {
            return Err(Error::MissingVariables(missing));
        }
        let interface = if required.contains(&"CNI_CONTAINERID") {
            Interface {
                container_id: container_id(get("CNI_CONTAINERID"))?,
                name: interface_name(get("CNI_IFNAME"))?,
            }
        } else {
            Interface::default()
        };
        Ok(Self {
            command,
            interface,
            path: get("CNI_PATH"),
        })
    }
}

fn container_id(value: OsString) -> Result<String, Error> {
    match value.into_string() {
        Ok(id) if is_identifier(&id) => Ok(id),
        Ok(id) => Err(id),
        Err(id) => Err(id.to_string_lossy().into_owned()),
    }
    .map_err(|details| Error::InvalidVariable {
        what: "containerID",
        details,
    })
}

fn interface_name(value: OsString) -> Result<String, Error> {
    let text = value.to_string_lossy();
    match text.parse::<InterfaceName>() {
        Ok(name) => Ok(name.to_string()),
        Err(error) => Err(Error::InvalidVariable {
            what: "interface name",
            details: error.to_string(),
        }),
    }
}

/// Whether the text is a valid container ID or network name: a letter or digit, then also `_`, `.` and `-`. This keeps
/// `../` out of file names.
pub(super) fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}
