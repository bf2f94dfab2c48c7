//! The command line of `selvage ignition`.

use std::path::PathBuf;

use clap::Subcommand;

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
    /// Print an Ignition config in a spec that the image's Ignition reads: 3.4.0 and 3.5.0 as 3.3.0.
    ///
    /// Any other config is printed as it is. Configs that it carries as data: URLs are translated as well. Exit status 78
    /// when it asks for what only a later Ignition can do; the message points at the field. The image does this with the
    /// config of its first boot, so it is needed only for configs that are fetched by another one.
    Translate {
        /// The Ignition config (JSON).
        file: PathBuf,
    },
    /// Show what the config of the first boot made, and what it asked for and this machine does not do.
    ///
    /// First what was made, by kind, and from where; the sources of the config; and what of it was ignored. Then what does
    /// not happen; exit status 1 when there is any: units to be enabled that are not there, were left out because something that they
    /// need is missing, or are masked, and drop-ins for units that are not there. The image runs it late in every boot.
    Report {
        /// Wait for the end of the boot, but not longer; units that are starting then are not judged.
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        #[arg(value_parser = clap::value_parser!(u64).range(0..=3600))]
        patience: u64,
        /// Only what does not happen.
        #[arg(long)]
        faults: bool,
    },
    /// Write a config's kernel arguments to the EFI system partition; the initrd does so.
    ///
    /// Exit status 75 when the machine must restart for them.
    #[command(hide = true)]
    KernelArguments {
        /// An argument that the kernel must have.
        #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
        should_exist: Vec<String>,
        /// An argument that it must not have.
        #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
        should_not_exist: Vec<String>,
        /// The root with the image's /usr.
        #[arg(long, value_name = "DIR")]
        image: PathBuf,
        /// The mounted EFI system partition.
        #[arg(long, value_name = "DIR")]
        esp: PathBuf,
    },
    /// Write down what Ignition did; the initrd does so at the end of the first boot's work.
    #[command(hide = true)]
    Record {
        /// Ignition's name of the platform.
        #[arg(long, value_name = "NAME")]
        platform: String,
        /// The machine's root, where the record is kept.
        #[arg(value_name = "DIR")]
        root: PathBuf,
    },
    /// Compare the image with what `check` knows of it; the image's build does so.
    #[command(hide = true)]
    VerifyImage {
        /// The image's root, with /usr and /etc.
        #[arg(value_name = "DIR")]
        root: PathBuf,
    },
}
