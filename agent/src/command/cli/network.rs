//! The command line of `selvage network`.

use std::path::PathBuf;

use clap::Subcommand;

use crate::cluster::lease::SubnetKey;
use crate::settings::{NetworkSettings, ReserveSettings, SettingsFlags};

/// What to do with the network config and the leases.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Print the network config, with the defaults that it leaves out.
    Get {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// How to reach etcd.
        #[command(flatten)]
        settings: NetworkSettings,
    },
    /// Check a network config and put it into etcd.
    Set {
        /// Keep an existing network config, and exit successfully.
        #[arg(long)]
        if_absent: bool,
        /// Seconds to go on trying while no server of etcd answers, 0 to 3600.
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        #[arg(value_parser = clap::value_parser!(u64).range(0..=3600))]
        wait: u64,
        /// File of flannel's JSON; - is standard input.
        #[arg(default_value = "-")]
        file: PathBuf,
        /// How to reach etcd.
        #[command(flatten)]
        settings: NetworkSettings,
    },
    /// List all leases: subnet, public address, backend, owner and TTL.
    Leases {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// How to reach etcd.
        #[command(flatten)]
        settings: NetworkSettings,
    },
    /// List the reservations alone.
    Reservations {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// How to reach etcd.
        #[command(flatten)]
        settings: NetworkSettings,
    },
    /// Reserve a subnet for the node that holds it, or a free one for the node named by --public-ip or --public-ipv6.
    ///
    /// A reservation has no time limit: its node is given this subnet whenever it takes one, and nobody else is.
    Reserve {
        /// 10.5.1.0/24; in a network of two families 10.5.1.0/24,fd00:1::/64
        #[arg(value_parser = SubnetKey::parse_argument)]
        subnet: SubnetKey,
        /// How to reach etcd.
        #[command(flatten)]
        settings: ReserveSettings,
    },
    /// End a reservation; the node that uses the subnet keeps it as a lease.
    Unreserve {
        /// As for reserve.
        #[arg(value_parser = SubnetKey::parse_argument)]
        subnet: SubnetKey,
        /// How to reach etcd.
        #[command(flatten)]
        settings: NetworkSettings,
    },
}

impl NetworkCommand {
    /// How etcd is reached.
    pub fn settings(&self) -> &SettingsFlags {
        match self {
            Self::Get { settings, .. }
            | Self::Set { settings, .. }
            | Self::Leases { settings, .. }
            | Self::Reservations { settings, .. }
            | Self::Unreserve { settings, .. } => settings,
            Self::Reserve { settings, .. } => settings,
        }
    }
}
