//! The command line: what can be asked for, as types.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;

use crate::base::terminal::Colour;
use crate::cluster::lease::SubnetKey;
use crate::command::manual::Shell;
use crate::command::options::OptionsCommand;
use crate::settings::parse_bool;
use crate::telemetry::control;

/// Joins this host to a cluster-wide overlay network, before its container runtime starts.
#[derive(Debug, Parser)]
#[command(name = "selvage", version, disable_help_subcommand = true)]
#[command(
    after_help = "Exit status: 0 done, 64 bad arguments, 78 bad configuration, 1 anything else."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Join the overlay network and keep this host in it until told to stop.
    ///
    /// Leases a subnet in etcd, programs the kernel (device, routes, neighbours, firewall), writes the subnet file for
    /// container runtimes, and follows every change. SIGTERM and SIGINT stop it; the data plane stays in place, so that
    /// a restart loses no packet. `selvage cleanup` removes it.
    #[command(after_long_help = RUN_HELP)]
    Run(SettingsFlags),
    /// Keep leases in etcd for hosts that do not reach it: flannel's server mode.
    ///
    /// Answers agents with --remote, and flanneld 0.5 to 0.7, over HTTP or TLS. SIGTERM and SIGINT stop it.
    Serve(SettingsFlags),
    /// Show what the agent knows: lease, store, back end, underlay, firewall, peers.
    ///
    /// Asks the running agent over its control socket, which needs no privileges. Where none runs, what its files and the
    /// kernel show. Exit status: 0 all is well, 1 something is wrong, 3 no agent runs.
    Status(StatusFlags),
    /// Show whose an address is, and whether the kernel has what reaches it; without an address, all peers.
    ///
    /// Needs no privileges. Exit status: 0 this host's or reached, 1 not so, nobody's or outside the overlay, 3 no agent
    /// runs.
    Peers(PeersFlags),
    /// Look for everything that is known to break an overlay, and say what to do about it.
    ///
    /// Silent on a healthy node. Exit status: 0 nothing found, 1 something is wrong, 2 only warnings, 64 bad arguments.
    Doctor(DoctorFlags),
    /// Show or set what all nodes of the cluster share: the network config, leases and reservations.
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Print what a container runtime needs to know to use the overlay.
    #[command(subcommand)]
    Options(OptionsCommand),
    /// Give this host's subnet back; the agent must not run.
    ///
    /// Deletes the host's lease, so that its subnet is free at once and not when the lease expires. A reservation stays.
    /// The data plane is left to `selvage cleanup`.
    Leave(SettingsFlags),
    /// Remove everything that the agent made on this host: device, routes, firewall table, files.
    Cleanup(SettingsFlags),
    /// Lay out the machine's root file system and mount its /etc; the initrd does so at every boot.
    #[command(hide = true)]
    Sysroot {
        /// Where the root file system is mounted, with the image's /usr inside.
        root: PathBuf,
        /// This is the first boot if FILE exists.
        #[arg(long, value_name = "FILE")]
        first_boot_if: PathBuf,
    },
    /// Make or check the configs that machines are provisioned with.
    #[command(subcommand)]
    Ignition(IgnitionCommand),
    /// Print what makes a shell complete our arguments.
    ///
    /// For the running bash: source <(selvage completions bash)
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Write the manual pages; the image's build does so.
    #[command(hide = true)]
    Man {
        /// Directory for man1/ and man5/; made if it is missing.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

/// What `selvage status` is asked.
#[derive(Args, Clone, Debug)]
pub struct StatusFlags {
    /// Print JSON; its schema is stable.
    #[arg(long, conflicts_with_all = ["watch", "graph"])]
    pub json: bool,
    /// Go on showing it, every so many seconds.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600), conflicts_with = "graph")]
    pub watch: Option<u64>,
    /// Draw the overlay into this file, as SVG; - is standard output. As root it also asks each peer by an echo whether it
    /// answers, which takes some seconds where one does not.
    #[arg(long, value_name = "FILE")]
    pub graph: Option<PathBuf>,
    /// Colours: where they can be seen, always, or never.
    #[arg(long, value_enum, default_value_t = Colour::Auto)]
    pub color: Colour,
    /// Where the agent is asked, and what it was told.
    #[command(flatten)]
    pub settings: SettingsFlags,
}

/// What `selvage peers` is asked.
#[derive(Args, Clone, Debug)]
pub struct PeersFlags {
    /// An address of a container or of a host, or a subnet: 10.5.1.2, 10.5.1.0/24.
    #[arg(value_name = "SUBNET|IP", value_parser = parse_asked)]
    pub address: Option<IpNet>,
    /// Print JSON; its schema is stable.
    #[arg(long)]
    pub json: bool,
    /// Colours: where they can be seen, always, or never.
    #[arg(long, value_enum, default_value_t = Colour::Auto)]
    pub color: Colour,
    /// Where the agent is asked.
    #[command(flatten)]
    pub settings: SettingsFlags,
}

/// What `selvage doctor` is asked.
#[derive(Args, Clone, Debug)]
pub struct DoctorFlags {
    /// Print JSON; its schema is stable.
    #[arg(long)]
    pub json: bool,
    /// Say also what was looked at and found to be well, and what could not be looked at.
    #[arg(long, short)]
    pub verbose: bool,
    /// Send no packets to peers.
    #[arg(long)]
    pub no_probes: bool,
    /// Send peers that do not answer also what port security and intrusion detection take for an attack: echoes from an
    /// address of the other side, which tell the direction in which packets are lost, and TCP to port 9.
    #[arg(long, conflicts_with = "no_probes")]
    pub deep: bool,
    /// Colours: where they can be seen, always, or never.
    #[arg(long, value_enum, default_value_t = Colour::Auto)]
    pub color: Colour,
    /// Where the agent is asked, and what it was told.
    #[command(flatten)]
    pub settings: SettingsFlags,
}

/// An address, or a subnet.
fn parse_asked(text: &str) -> Result<IpNet, String> {
    control::parse_asked(text).ok_or_else(|| {
        "expected an address such as 10.5.1.2, or a subnet such as 10.5.1.0/24".to_owned()
    })
}

/// What to do with the network config and the leases.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Print the network config, with the defaults that it leaves out.
    Get {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// How etcd is reached.
        #[command(flatten)]
        settings: SettingsFlags,
    },
    /// Check a network config and put it into etcd.
    Set {
        /// Leave a network config alone that is there already; that is no failure.
        #[arg(long)]
        if_absent: bool,
        /// File of flannel's JSON; - is standard input.
        #[arg(default_value = "-")]
        file: PathBuf,
        /// How etcd is reached.
        #[command(flatten)]
        settings: SettingsFlags,
    },
    /// List all leases: subnet, public address, back end, owner, and how long each lasts.
    Leases {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// How etcd is reached.
        #[command(flatten)]
        settings: SettingsFlags,
    },
    /// List the reservations alone.
    Reservations {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// How etcd is reached.
        #[command(flatten)]
        settings: SettingsFlags,
    },
    /// Reserve a subnet for the node that holds it, or a free one for the node named by --public-ip or --public-ipv6.
    ///
    /// A reservation has no time limit: its node is given this subnet whenever it takes one, and nobody else is.
    Reserve {
        /// 10.5.1.0/24; in a network of two families 10.5.1.0/24,fd00:1::/64
        #[arg(value_parser = SubnetKey::parse_argument)]
        subnet: SubnetKey,
        /// How etcd is reached.
        #[command(flatten)]
        settings: SettingsFlags,
    },
    /// End a reservation; the node that uses the subnet keeps it as a lease.
    Unreserve {
        /// As for reserve.
        #[arg(value_parser = SubnetKey::parse_argument)]
        subnet: SubnetKey,
        /// How etcd is reached.
        #[command(flatten)]
        settings: SettingsFlags,
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
            | Self::Reserve { settings, .. }
            | Self::Unreserve { settings, .. } => settings,
        }
    }
}

/// What to do with Ignition configs.
#[derive(Debug, Subcommand)]
pub enum IgnitionCommand {
    /// Write one Ignition config for each node of a cluster description.
    Render {
        /// The cluster description (TOML).
        #[arg(value_name = "CLUSTER.toml")]
        cluster: PathBuf,
        /// Directory for the configs, NAME.ign each; made if it is missing.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Check an Ignition config; the message points at the field that is wrong.
    Check {
        /// The Ignition config (JSON).
        file: PathBuf,
    },
    /// Tell what the config of the first boot asked for and this machine does not do.
    ///
    /// Exit status 1 when there is any: units to be enabled that are not there, were left out because something that they
    /// need is missing, or are masked, and drop-ins for units that are not there. The image runs it late in every boot.
    Report {
        /// Wait for the end of the boot, but not longer; units that are starting then are not judged.
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        #[arg(value_parser = clap::value_parser!(u64).range(0..=3600))]
        patience: u64,
    },
    /// Compare the image with what `check` knows of it; the image's build does so.
    #[command(hide = true)]
    VerifyImage {
        /// The image's root, with /usr and /etc.
        #[arg(value_name = "DIR")]
        root: PathBuf,
    },
}

/// Settings given as flags; they beat the environment and the files.
#[derive(Args, Clone, Debug, Default)]
pub struct SettingsFlags {
    /// Read settings from this file alone, instead of the system's directories.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Name of the network where several are on this host: 1 to 10 of a-z, 0-9, -
    /// [agent.network; default: none]
    #[arg(long, value_name = "NAME")]
    pub(crate) network: Option<String>,

    /// URLs of the etcd members, separated by commas [etcd.endpoints; default: http://127.0.0.1:2379]
    #[arg(long, value_name = "URLS", help_heading = "etcd")]
    pub(crate) etcd_endpoints: Option<String>,
    /// What all keys begin with [etcd.prefix; default: /coreos.com/network]
    #[arg(long, value_name = "KEY", help_heading = "etcd")]
    pub(crate) etcd_prefix: Option<String>,
    /// Certificate authorities to trust, PEM [etcd.cafile; default: none]
    #[arg(long, value_name = "FILE", help_heading = "etcd")]
    pub(crate) etcd_cafile: Option<String>,
    /// Our certificate, PEM; needs --etcd-keyfile [etcd.certfile; default: none]
    #[arg(long, value_name = "FILE", help_heading = "etcd")]
    pub(crate) etcd_certfile: Option<String>,
    /// The key to our certificate, PEM [etcd.keyfile; default: none]
    #[arg(long, value_name = "FILE", help_heading = "etcd")]
    pub(crate) etcd_keyfile: Option<String>,
    /// Whom to log in as; needs --etcd-password-file [etcd.username; default: none]
    #[arg(long, value_name = "NAME", help_heading = "etcd")]
    pub(crate) etcd_username: Option<String>,
    /// File that holds the password on one line [etcd.password-file; default: none]
    #[arg(long, value_name = "FILE", help_heading = "etcd")]
    pub(crate) etcd_password_file: Option<String>,
    /// Seconds for which the lease outlives this host, 60 to 31536000 [etcd.lease-ttl; default: 86400]
    #[arg(long, value_name = "SECONDS", help_heading = "etcd")]
    #[arg(allow_negative_numbers = true)]
    pub(crate) etcd_lease_ttl: Option<i64>,

    /// Servers that keep the leases in place of etcd, HOST:PORT, separated by commas [remote.server; default: none]
    #[arg(long, value_name = "SERVERS", help_heading = "remote")]
    pub(crate) remote: Option<String>,
    /// The network's name at the server [remote.network; default: --network, else _, the one that has none]
    #[arg(long, value_name = "NAME", help_heading = "remote")]
    pub(crate) remote_network: Option<String>,
    /// Where `selvage serve` listens: HOST:PORT, fd:// or fd://N [remote.listen; default: none]
    #[arg(long, value_name = "ADDRESS", help_heading = "remote")]
    pub(crate) listen: Option<String>,
    /// Certificate authorities to check the other side by, PEM [remote.cafile; default: none]
    #[arg(long, value_name = "FILE", help_heading = "remote")]
    pub(crate) remote_cafile: Option<String>,
    /// Our certificate for it, PEM; needs --remote-keyfile [remote.certfile; default: none]
    #[arg(long, value_name = "FILE", help_heading = "remote")]
    pub(crate) remote_certfile: Option<String>,
    /// The key to that certificate, PEM [remote.keyfile; default: none]
    #[arg(long, value_name = "FILE", help_heading = "remote")]
    pub(crate) remote_keyfile: Option<String>,
    /// Let `selvage serve` take clients without a certificate [remote.insecure; default: false]
    #[arg(long, value_name = "BOOL", help_heading = "remote", value_parser = parse_bool)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) insecure: Option<bool>,

    /// Interface that carries the overlay, or an address it has; repeated, the first that is there
    /// [underlay.interfaces; default: the default route's]
    #[arg(long, value_name = "NAME|ADDRESS", help_heading = "underlay")]
    pub(crate) iface: Vec<String>,
    /// Pattern for its addresses, then for its name; may be repeated [underlay.interface-regex; default: none]
    #[arg(long, value_name = "REGEX", help_heading = "underlay")]
    pub(crate) iface_regex: Vec<String>,
    /// Address that is reached over it [underlay.can-reach; default: none]
    #[arg(long, value_name = "ADDRESS", help_heading = "underlay")]
    pub(crate) iface_can_reach: Option<String>,
    /// Networks that its address is in, separated by commas [underlay.interface-cidr; default: none]
    #[arg(
        long,
        value_name = "CIDRS",
        help_heading = "underlay",
        value_delimiter = ','
    )]
    pub(crate) iface_cidr: Vec<String>,
    /// IPv4 address that peers send to, if not the interface's [underlay.public-ip; default: the interface's]
    #[arg(long, value_name = "ADDRESS", help_heading = "underlay")]
    pub(crate) public_ip: Option<String>,
    /// IPv6 address that peers send to, if not the interface's [underlay.public-ipv6; default: the interface's]
    #[arg(long, value_name = "ADDRESS", help_heading = "underlay")]
    pub(crate) public_ipv6: Option<String>,

    /// By which rules: auto, nftables or iptables [firewall.mode; default: auto]
    #[arg(long, value_name = "MODE", help_heading = "firewall")]
    pub(crate) firewall_mode: Option<String>,
    /// Give packets that leave the overlay this host's address [firewall.masquerade; default: false]
    #[arg(long, value_name = "BOOL", help_heading = "firewall", value_parser = parse_bool)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) ip_masq: Option<bool>,
    /// Pick source ports at random when doing so [firewall.random-fully; default: true]
    #[arg(long, value_name = "BOOL", help_heading = "firewall", value_parser = parse_bool)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) ip_masq_fully_random: Option<bool>,
    /// Networks to which packets keep their address, separated by commas [firewall.masquerade-exclude; default: none]
    #[arg(
        long,
        value_name = "CIDRS",
        help_heading = "firewall",
        value_delimiter = ','
    )]
    pub(crate) ip_masq_exclude: Vec<String>,
    /// Accept forwarding from and to the overlay [firewall.forward; default: true]
    #[arg(long, value_name = "BOOL", help_heading = "firewall", value_parser = parse_bool)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) iptables_forward_rules: Option<bool>,
    /// Seconds between looks at the rules, 1 to 86400 [firewall.resync; default: 5]
    #[arg(long, value_name = "SECONDS", help_heading = "firewall")]
    #[arg(allow_negative_numbers = true)]
    pub(crate) iptables_resync: Option<i64>,
    /// Drop packets to addresses of our subnet that no container has [firewall.blackhole-route; default: false]
    #[arg(long, value_name = "BOOL", help_heading = "firewall", value_parser = parse_bool)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) ip_blackhole_route: Option<bool>,

    /// What container runtimes read [files.subnet-file; default: /run/flannel/subnet.env]
    #[arg(long, value_name = "FILE", help_heading = "files")]
    pub(crate) subnet_file: Option<String>,
    /// What must outlive a reboot [files.state-dir; default: /var/lib/selvage]
    #[arg(long, value_name = "DIR", help_heading = "files")]
    pub(crate) state_dir: Option<String>,
    /// Where operators' commands ask the agent [files.socket; default: /run/selvage/agent.sock]
    #[arg(long, value_name = "FILE", help_heading = "files")]
    pub(crate) socket: Option<String>,

    /// Address on which /healthz, /readyz and /metrics are served [health.address; default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", help_heading = "health")]
    pub(crate) healthz_ip: Option<String>,
    /// TCP port for them, 0 to 65535; 0 for none [health.port; default: 0]
    #[arg(long, value_name = "PORT", help_heading = "health")]
    #[arg(allow_negative_numbers = true)]
    pub(crate) healthz_port: Option<i64>,

    /// Who holds the lease: 1 to 64 letters, digits, '.', '_', '-' [agent.node-id; default: from /etc/machine-id]
    #[arg(long, value_name = "ID", help_heading = "agent")]
    pub(crate) node_id: Option<String>,
    /// error, warn, info, debug, trace, or a list such as info,selvage::host::firewall=debug [agent.log; default: info]
    #[arg(long, value_name = "LEVEL", help_heading = "agent")]
    pub(crate) log: Option<String>,
    /// Seconds between complete comparisons with the kernel, 1 to 86400 [agent.resync; default: 300]
    #[arg(
        long,
        value_name = "SECONDS",
        help_heading = "agent",
        allow_negative_numbers = true
    )]
    pub(crate) resync: Option<i64>,
    /// Give the subnet back when the agent is stopped [agent.leave-on-stop; default: false]
    #[arg(long, value_name = "BOOL", help_heading = "agent", value_parser = parse_bool)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) leave_on_stop: Option<bool>,
}

/// What the long help says below the flags.
const RUN_HELP: &str = "\
Settings come from these places, each stronger than those before it:
  1. /usr/lib/selvage/agent.toml, then /run/selvage/, then /etc/selvage/
  2. drop-ins agent.d/*.toml in these directories, in the order of their names;
     one in /etc hides its namesake in /run, and that one in /usr/lib
  3. the environment: a flag's name in upper case with _ for -, after SELVAGE_
     or FLANNELD_; SELVAGE_ wins, an empty variable counts as missing
     (FLANNELD_ETCD_PASSWORD is understood as well)
  4. flags

With --network NAME the files of 1 and 2 hold for all networks of the host:
etcd.prefix is what NAME is appended to; [files], health.port, remote.network
and remote.listen are left out.
networks/NAME.toml in the same directories, read next, holds for this one.

In brackets after each flag stands its place in a file; [etcd.prefix] means

  [etcd]
  prefix = \"/coreos.com/network\"

A list other than etcd.endpoints may also be one text. The variables for
--iface and --iface-regex hold one element, as flannel's do; those of the
other lists are split at commas.

The interface is the first that --iface, --iface-regex, --iface-can-reach and
--iface-cidr lead to, in this order. With none of them it is the one that has
the public address, or else the default route's.

An empty text means none. A wrong value is never replaced by a default: the
message names file, line, key, value and what is allowed.

Exit status:
   0  stopped by a signal
  64  bad arguments
  78  bad configuration, which a restart would not mend
   1  anything else";

#[cfg(test)]
mod tests;
