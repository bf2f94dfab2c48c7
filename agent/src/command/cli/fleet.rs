//! The command line of `selvage fleet`.

use clap::{Args, Subcommand};

use crate::appliance::fleet::records::MOST;
use crate::base::terminal::Colour;
use crate::settings::NetworkSettings;
use crate::settings::fleet::is_group;

/// What the manual says of the settings.
pub(super) const FLEET_HELP: &str = "\
Machines that update by themselves wait for their place in the roll-out, stop at
a version that failed elsewhere, and take a lock before they go down, as the
table [fleet] in agent.toml says; environment and flags have no such settings:

  lock           etcd, none, or a FleetLock server: http://HOST[:PORT][/PATH] or
                 https://... (default: etcd)
  group          machines that share a lock: 1 to 64 of a-z, A-Z, 0-9, . and -
                 (default: default)
  cafile         authorities for https, PEM (default: the system's)
  drain-timeout  1 to 86400 seconds for each program in /etc/selvage/drain.d,
                 which are run before the reboot (default: 300)

Exit status: 64 bad arguments, 78 a bad setting; else as each command says.";

/// What to do about the fleet.
#[derive(Debug, Subcommand)]
pub enum FleetCommand {
    /// Show all machines: version, slot, what they are doing, and who has the lock since when.
    ///
    /// Exit status: 0 no version is stopped, 1 etcd does not answer, 2 a version failed on too many machines and is not
    /// started any more.
    Status {
        /// Print JSON; its schema is stable.
        #[arg(long)]
        json: bool,
        /// When to use colours.
        #[arg(long, value_enum, default_value_t = Colour::Auto)]
        color: Colour,
        /// Which fleet.
        #[command(flatten)]
        flags: FleetFlags,
    },
    /// Take the lock away from a machine that will not give it back.
    ///
    /// Make sure that the machine is gone, or well: the next one goes down at once.
    Unlock {
        /// Its host name or machine ID, as status shows them.
        node: String,
        /// Which fleet.
        #[command(flatten)]
        flags: FleetFlags,
    },
    /// Let a version start again that failed on too many machines.
    ///
    /// The machines on which it failed do not try it again by themselves.
    Reset {
        /// Which version.
        version: String,
        /// Which fleet.
        #[command(flatten)]
        flags: FleetFlags,
    },
    /// Set how many machines may update at a time, and how many may fail.
    Set {
        /// How many may hold the lock at a time; 0 stops all updates.
        #[arg(long, value_name = "N", required_unless_present = "breaker")]
        #[arg(value_parser = clap::value_parser!(u32).range(0..=i64::from(MOST)))]
        holders: Option<u32>,
        /// A version that failed on so many machines is not started any more.
        #[arg(long, value_name = "K")]
        #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST)))]
        breaker: Option<u32>,
        /// Which fleet.
        #[command(flatten)]
        flags: FleetFlags,
    },
}

/// Which fleet, and how to reach it.
#[derive(Args, Clone, Debug)]
pub struct FleetFlags {
    /// The machines that share a lock [fleet.group; default: default].
    #[arg(long, value_name = "NAME", value_parser = parse_group)]
    pub group: Option<String>,
    /// How to reach etcd.
    #[command(flatten)]
    pub settings: NetworkSettings,
}

impl FleetCommand {
    /// Which fleet.
    pub fn flags(&self) -> &FleetFlags {
        match self {
            Self::Status { flags, .. }
            | Self::Unlock { flags, .. }
            | Self::Reset { flags, .. }
            | Self::Set { flags, .. } => flags,
        }
    }
}

fn parse_group(text: &str) -> Result<String, &'static str> {
    match is_group(text) {
        true => Ok(text.to_owned()),
        false => Err("expected 1 to 64 of a-z, A-Z, 0-9, . and -"),
    }
}
