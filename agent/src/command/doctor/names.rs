//! What this host's agent and its files are called: a command that the doctor prints can be typed as it is.

use std::path::{Path, PathBuf};

use crate::base::network_name;
use crate::settings::Settings;
use crate::settings::table::key;

/// The names that commands need.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Names {
    /// The systemd unit, without `.service`.
    pub(crate) unit: String,
    /// The state directory.
    pub(crate) state_dir: PathBuf,
    /// The file for settings of this network alone.
    pub(crate) settings_file: String,
    /// The options by which a command finds the network.
    network: String,
    /// The option by which a command finds the state directory, where that is not the network's own.
    state: String,
}

impl Names {
    /// The agent that the settings are of.
    pub(crate) fn of(settings: &Settings) -> Self {
        let name = settings.agent.network.as_ref();
        let state_dir = settings.files.state_dir.clone();
        let is_default = state_dir == Path::new(&key::files::state_dir.default_of(name));
        Self {
            unit: network_name::unit(name),
            settings_file: match name {
                Some(name) => format!("/etc/selvage/networks/{name}.toml"),
                None => "/etc/selvage/agent.toml".to_owned(),
            },
            network: name.map_or_else(String::new, |name| format!(" --network {name}")),
            state: match is_default {
                true => String::new(),
                false => format!(" --state-dir {}", state_dir.display()),
            },
            state_dir,
        }
    }

    /// `systemctl restart selvage@blue`.
    pub(crate) fn systemctl(&self, verb: &str) -> String {
        format!("systemctl {verb} {}", self.unit)
    }

    /// `journalctl -u selvage@blue`, to which options can be added.
    pub(crate) fn journal(&self) -> String {
        format!("journalctl -u {}", self.unit)
    }

    /// `selvage network get --network blue`.
    pub(crate) fn selvage(&self, command: &str) -> String {
        format!("selvage {command}{}", self.network)
    }

    /// `selvage leave --network blue --state-dir DIR`: of commands that go by what the agent keeps.
    pub(crate) fn selvage_with_state(&self, command: &str) -> String {
        format!("selvage {command}{}{}", self.network, self.state)
    }

    /// A file of the agent's state.
    pub(crate) fn state_file(&self, name: &str) -> String {
        self.state_dir.join(name).display().to_string()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;
    use crate::command::cli::{Cli, Command};

    /// The settings of an agent that is started with these flags.
    pub(crate) fn settings(flags: &[&str]) -> Settings {
        let arguments = ["selvage", "run"].iter().chain(flags);
        let Command::Run(flags) = Cli::parse_from(arguments).command else {
            panic!("another command")
        };
        let root = tempfile::tempdir().unwrap();
        crate::settings::load(crate::settings::Sources {
            root: root.path(),
            config: None,
            environment: &crate::settings::Environment::default(),
            flags: &flags,
        })
        .unwrap()
    }

    #[test]
    fn commands_name_the_agent_that_they_are_about() {
        let default = Names::of(&settings(&[]));
        assert_eq!(default.systemctl("restart"), "systemctl restart selvage");
        assert_eq!(default.selvage("network get"), "selvage network get");
        assert_eq!(default.selvage_with_state("leave"), "selvage leave");
        let key = default.state_file("wireguard.key");
        assert_eq!(key, "/var/lib/selvage/wireguard.key");

        let blue = Names::of(&settings(&["--network", "blue"]));
        assert_eq!(blue.systemctl("restart"), "systemctl restart selvage@blue");
        assert_eq!(blue.journal(), "journalctl -u selvage@blue");
        assert_eq!(blue.selvage("peers"), "selvage peers --network blue");
        let leave = blue.selvage_with_state("leave");
        assert_eq!(leave, "selvage leave --network blue");
        let key = blue.state_file("wireguard.key");
        assert_eq!(key, "/var/lib/selvage/networks/blue/wireguard.key");
        assert_eq!(blue.settings_file, "/etc/selvage/networks/blue.toml");

        let moved = Names::of(&settings(&["--state-dir", "/srv/selvage"]));
        let leave = moved.selvage_with_state("leave");
        assert_eq!(leave, "selvage leave --state-dir /srv/selvage");
        assert_eq!(moved.state_file("machine-id"), "/srv/selvage/machine-id");
    }
}
