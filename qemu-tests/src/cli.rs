//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::accel::Accelerator;

/// Boots the Selvage image in QEMU.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What every command needs.
    #[command(flatten)]
    pub common: Common,
}

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Directory with selvage.raw, .vmlinuz, .initrd and .cmdline
    #[arg(
        long,
        global = true,
        env = "SELVAGE_IMAGE",
        default_value = "target/image",
        value_name = "DIR"
    )]
    pub image: PathBuf,
    /// Description of the cluster
    #[arg(
        long,
        global = true,
        default_value = "ignition/demo.toml",
        value_name = "FILE"
    )]
    pub cluster: PathBuf,
    /// Directory for everything that is written
    #[arg(long, global = true, default_value = "target", value_name = "DIR")]
    pub target: PathBuf,
    /// How QEMU runs guests; without it a kernel is booted under KVM to see whether that works
    #[arg(long, global = true, env = "SELVAGE_ACCEL", value_name = "KIND")]
    pub accelerator: Option<Accelerator>,
}

/// Options of the group of tests that cuts a machine's power.
#[derive(Debug, Args)]
pub(crate) struct PowerCuts {
    /// Seed of the first power cut; each further one has the next
    #[arg(long, env = "SELVAGE_CUT_SEED", default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Number of power cuts after which the disk is judged
    #[arg(long, default_value_t = 320, value_name = "N")]
    pub cuts: u64,
    /// Number of these after which a machine is booted; for each fault that a boot has to mend there is one more
    #[arg(long, default_value_t = 12, value_name = "N")]
    pub boots: usize,
    /// Cut what an earlier run recorded
    #[arg(long)]
    pub recorded: bool,
}

/// What is measured of a boot.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Also boot pairs of machines, of the image and of the Debian that image/anchor has built, 0 to 50
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=50), value_name = "N")]
    pub anchor: u8,
    /// Also boot pairs of machines, with dm-verity below /usr and without, 0 to 50
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=50), value_name = "N")]
    pub verity: u8,
    /// Write the medians down in boot-history.md, with these words on what changed; needs pairs with Debian
    #[arg(long, value_name = "WORDS")]
    pub history: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boot a cluster and show containers talking across it
    Demo {
        /// Number of machines, 1 to 16
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
        nodes: u8,
        /// Leave the cluster running
        #[arg(long)]
        keep: bool,
    },
    /// Boot three machines that update themselves in turn, and draw what happened
    DemoUpdate,
    /// Run a shuffle of Spark across three hosts in network namespaces while an agent and etcd are killed; needs root
    DemoSpark {
        /// The agent
        #[arg(long, env = "SELVAGE_BIN", value_name = "FILE")]
        agent: PathBuf,
        /// Python environment with pyspark
        #[arg(long, default_value = "target/pyspark", value_name = "DIR")]
        environment: PathBuf,
    },
    /// Run the tests that need a boot
    Test {
        /// Only cases whose name contains this, those that only --all runs among them
        filter: Option<String>,
        /// Also the cases that CI leaves out
        #[arg(long)]
        all: bool,
        /// What the group power_cut does
        #[command(flatten)]
        power_cuts: PowerCuts,
    },
    /// Name the tests
    List,
    /// Boot one machine and measure kernel start to Docker ready
    Bench(Bench),
    /// Log in to a machine of a cluster that was kept
    Ssh {
        /// Number (1 is the first) or name of the machine
        node: String,
        /// Command to run instead of a shell
        #[arg(trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// Stop the cluster that was kept
    Stop,
    /// Answer one HTTP request on standard input from a directory (what QEMU starts for a guest's connection)
    #[command(hide = true)]
    Serve {
        /// Directory of the files
        dir: PathBuf,
        /// Directory where requests are noted, and which faults to have
        #[arg(long)]
        notes: Option<PathBuf>,
    },
    /// Lead a guest's connection on standard input to a port of 127.0.0.1 (what QEMU starts for it)
    #[command(hide = true)]
    Relay {
        /// The port
        port: u16,
    },
    /// Hold the machines of a kept cluster (what `demo --keep` runs in the background)
    #[command(hide = true)]
    Hold {
        /// Directory of the cluster
        dir: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
