//! The command line's types.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};
use ipnet::IpNet;

use crate::base::terminal::Colour;
use crate::command::boot_check::BootCheckFlags;
use crate::command::cni::CniCommand;
use crate::command::metadata::{METADATA_HELP, MetadataFlags};
use crate::command::options::OptionsCommand;
use crate::command::sysext::SysextCommand;
use crate::command::update::{UPDATE_HELP, UpdateCommand};
use crate::settings::{
    CleanupFlags, DoctorSettings, LeaveFlags, PeersSettings, RunFlags, ServeFlags, StatusSettings,
};
use crate::telemetry::control;

mod fleet;
mod ignition;
mod migrate;
mod network;
mod run;

use self::fleet::FLEET_HELP;
pub use self::fleet::{FleetCommand, FleetFlags};
pub use self::ignition::IgnitionCommand;
pub use self::migrate::{MigrateCommand, MigrateFlags};
pub use self::network::NetworkCommand;

/// Joins this host to a cluster-wide overlay network, before its container runtime starts.
#[derive(Debug, Parser)]
#[command(
    name = "selvage",
    version,
    disable_help_subcommand = true,
    disable_help_flag = true
)]
#[command(
    after_help = "Exit status: 0 done, 64 bad arguments, 78 bad configuration, 1 anything else."
)]
pub struct Cli {
    /// Print help; the manual page says more.
    // Short help, one line per flag: the long help of `run` would fill four screens.
    #[arg(long, short, global = true, action = ArgAction::HelpShort)]
    help: Option<bool>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Join the overlay network and keep this host in it until told to stop.
    ///
    /// Leases a subnet in etcd, programs the kernel (device, routes, neighbors, firewall), writes the subnet file for
    /// container runtimes, and follows every change. SIGTERM and SIGINT stop it; the data plane stays in place, so that
    /// a restart loses no packet. `selvage cleanup` removes it.
    #[command(after_help = RUN_NOTE, after_long_help = RUN_HELP)]
    Run(RunFlags),
    /// Serve leases to hosts that cannot reach etcd (flannel's server mode).
    ///
    /// Answers agents with --remote, and flanneld 0.5 to 0.7, over HTTP or TLS. SIGTERM and SIGINT stop it.
    Serve(ServeFlags),
    /// Show the state of the agent: lease, store, backend, underlay, firewall, peers.
    ///
    /// Asks the running agent over its control socket, which needs no privileges. Where none runs, what its files and the
    /// kernel show. Exit status: 0 all is well, 1 something is wrong, 3 no agent runs.
    Status(StatusFlags),
    /// Show the peer that has an address and whether the kernel can reach it; without an address, all peers.
    ///
    /// Needs no privileges. Exit status: 0 this host's or reached, 1 not so, nobody's or outside the overlay, 3 no agent
    /// runs.
    Peers(PeersFlags),
    /// Check for known problems and print remedies.
    ///
    /// Silent on a healthy node. Exit status: 0 nothing found, 1 something is wrong, 2 only warnings, 64 bad arguments.
    Doctor(DoctorFlags),
    /// Show or set what all nodes of the cluster share: the network config, leases and reservations.
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Print the options that a container runtime needs to use the overlay.
    #[command(subcommand)]
    Options(OptionsCommand),
    /// Install or remove the CNI plugin and its config list, as on a Kubernetes node.
    #[command(subcommand)]
    Cni(CniCommand),
    /// Check a Kubernetes cluster before its pod network is moved; changes nothing.
    #[command(subcommand)]
    Migrate(MigrateCommand),
    /// Give this host's subnet back; the agent must not run.
    ///
    /// Deletes the host's lease, so that its subnet is free at once and not when the lease expires. A reservation stays.
    /// The data plane is left to `selvage cleanup`.
    Leave(LeaveFlags),
    /// Remove everything that the agent created on this host: device, routes, firewall table, files.
    Cleanup(CleanupFlags),
    /// Lay out the machine's root file system and mount its /etc; the initrd does so at every boot.
    #[command(hide = true)]
    Sysroot {
        /// Where the root file system is mounted, with the image's /usr inside.
        root: PathBuf,
        /// This is the first boot if FILE exists.
        #[arg(long, value_name = "FILE")]
        first_boot_if: PathBuf,
        /// Clear the root file system before, if FILE exists.
        #[arg(long, value_name = "FILE")]
        reset_if: PathBuf,
    },
    /// Remove from Docker's store what a power cut has left of a network; docker.service does so before it starts.
    #[command(hide = true)]
    DockerNetworks,
    /// Provision this machine again: clear its root partition at the next boot, and run Ignition.
    ///
    /// Removes all changes of /etc, all of /var, /home, /root, /opt and /srv, but for what --keep names. Partitions that a
    /// config made stay as they are. Asks before, unless told not to; restarts the machine.
    Reset(ResetFlags),
    /// Look for, install and undo updates of the image.
    #[command(subcommand, after_long_help = UPDATE_HELP)]
    Update(UpdateCommand),
    /// Add programs to the image as system extensions, list and remove them.
    ///
    /// An extension fits one version of the image. An update brings the new version's along, and a machine that falls back
    /// has the older one's still.
    #[command(subcommand)]
    Sysext(SysextCommand),
    /// Show and steer how the machines of a fleet take turns at updates.
    #[command(subcommand, after_long_help = FLEET_HELP)]
    Fleet(FleetCommand),
    /// Make or check the configs that machines are provisioned with.
    #[command(subcommand)]
    Ignition(IgnitionCommand),
    /// Change an image file before machines have it.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Show or write what the platform says of this machine: addresses, names, SSH keys.
    ///
    /// Without flags, prints them. Exit status: 0 done, 1 the platform does not answer.
    #[command(after_long_help = METADATA_HELP)]
    Metadata(MetadataFlags),
    /// Check whether a new version of the image works; the image runs this in every boot.
    ///
    /// Waits until everything works that worked before the update, or until nothing changes any more. Records the result,
    /// and the failure of a version that this machine has fallen back from. Exit status: 0 it works, or no version is on
    /// trial; 1 it does not; 75 undecided, look again.
    BootCheck(BootCheckFlags),
    /// Generate shell completions.
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

/// What `selvage reset` is asked.
#[derive(Args, Clone, Debug)]
pub struct ResetFlags {
    /// A file or directory that stays; may be given several times. /var/log/journal keeps the log.
    #[arg(long, value_name = "PATH")]
    pub keep: Vec<PathBuf>,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
    /// Do not restart: the next boot resets the machine.
    #[arg(long)]
    pub no_reboot: bool,
    /// Take an earlier request back; the machine has not restarted yet.
    #[arg(long, conflicts_with_all = ["keep", "yes", "no_reboot"])]
    pub cancel: bool,
}

/// Whose completions are printed.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shell {
    /// For /usr/share/bash-completion/completions/selvage.
    Bash,
    /// For /usr/share/zsh/vendor-completions/_selvage.
    Zsh,
    /// For /usr/share/fish/vendor_completions.d/selvage.fish.
    Fish,
}

/// What `selvage status` is asked.
#[derive(Args, Clone, Debug)]
pub struct StatusFlags {
    /// Print JSON; its schema is stable.
    #[arg(long, conflicts_with_all = ["watch", "graph"])]
    pub json: bool,
    /// Refresh every N seconds.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600), conflicts_with = "graph")]
    pub watch: Option<u64>,
    /// Draw the overlay into this file, as SVG; - is standard output. As root it also asks each peer by an echo whether it
    /// answers, which takes some seconds where one does not.
    #[arg(long, value_name = "FILE")]
    pub graph: Option<PathBuf>,
    /// When to use colours.
    #[arg(long, value_enum, default_value_t = Colour::Auto)]
    pub color: Colour,
    /// How to reach the agent, and its files.
    #[command(flatten)]
    pub settings: StatusSettings,
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
    /// When to use colours.
    #[arg(long, value_enum, default_value_t = Colour::Auto)]
    pub color: Colour,
    /// Where the agent is asked.
    #[command(flatten)]
    pub settings: PeersSettings,
}

/// What `selvage doctor` is asked.
#[derive(Args, Clone, Debug)]
pub struct DoctorFlags {
    /// Print JSON; its schema is stable.
    #[arg(long)]
    pub json: bool,
    /// Also list passed and skipped checks.
    #[arg(long, short)]
    pub verbose: bool,
    /// Send no packets to peers.
    #[arg(long)]
    pub no_probes: bool,
    /// Send peers that do not answer also what port security and intrusion detection take for an attack: echoes from an
    /// address of the other side, which tell the direction in which packets are lost, and TCP to port 9.
    #[arg(long, conflicts_with = "no_probes")]
    pub deep: bool,
    /// When to use colours.
    #[arg(long, value_enum, default_value_t = Colour::Auto)]
    pub color: Colour,
    /// How to reach the agent, and its files.
    #[command(flatten)]
    pub settings: DoctorSettings,
}

/// An address, or a subnet.
fn parse_asked(text: &str) -> Result<IpNet, String> {
    control::parse_asked(text).ok_or_else(|| {
        "expected an address such as 10.5.1.2, or a subnet such as 10.5.1.0/24".to_owned()
    })
}

/// What to do with an image file.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Put an Ignition config onto the EFI system partition of a raw image file.
    ///
    /// Machines with this image take it at their first boot, whatever they run on, unless the kernel command line or
    /// SMBIOS has another one; firmware must start them. Replaces the config that is there. Checks the config first, as
    /// `selvage ignition check` does. Needs no privileges, and room for a copy of the image beside it, which takes its
    /// place when it is complete. Uses mtools. Whoever has the image can read the config. Exit status: 78 when machines
    /// would refuse the config, 1 when DISK is no raw image of ours or cannot be replaced; the image is then as it was.
    Embed {
        /// The image file, raw; qemu-img converts others.
        disk: PathBuf,
        /// The Ignition config (JSON).
        config: PathBuf,
    },
}

/// What `--help` says below the flags.
const RUN_NOTE: &str = "Sources and precedence of settings, exit status: selvage-run(1). Settings files: agent.toml(5).";

/// What the long help says below the flags.
pub(super) const RUN_HELP: &str = "\
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

The name of a network is 1 to 10 of a-z, 0-9 and -, the first a letter. A node
ID is 1 to 64 letters, digits, '.', '_' and '-'. A log level is error, warn,
info, debug or trace, or a list such as info,selvage::host::firewall=debug.
--iface, --iface-regex, --iface-cidr and --ip-masq-exclude may be repeated.

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
