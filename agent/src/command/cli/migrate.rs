//! The command line of `selvage migrate`.

use clap::{Args, Subcommand};

use crate::base::terminal::Colour;
use crate::settings::{MigrateSettings, SettingsFlags};

/// Which way.
#[derive(Debug, Subcommand)]
pub enum MigrateCommand {
    /// Check the move from kube-flannel to this agent: what will change, what stands in the way, and the steps.
    ///
    /// Exit status: 0 nothing stands in the way, 1 something does, or the cluster cannot be read, 2 something is to be
    /// looked at, 64 bad arguments.
    FromFlannel(MigrateFlags),
    /// Check the move from this agent back to kube-flannel.
    ///
    /// Says which settings flannel lacks, what pods notice, and what remains on the nodes. Exit status as for from-flannel.
    Back(MigrateFlags),
}

/// What `selvage migrate` is asked.
#[derive(Args, Clone, Debug)]
pub struct MigrateFlags {
    /// Print JSON; its schema is stable.
    #[arg(long)]
    pub json: bool,
    /// When to use colours.
    #[arg(long, value_enum, default_value_t = Colour::Auto)]
    pub color: Colour,
    /// How to reach the cluster.
    #[command(flatten)]
    pub settings: MigrateSettings,
}

impl MigrateCommand {
    /// What is asked.
    pub(in crate::command) fn flags(&self) -> &MigrateFlags {
        match self {
            Self::FromFlannel(flags) | Self::Back(flags) => flags,
        }
    }

    /// How the cluster is reached.
    pub fn settings(&self) -> &SettingsFlags {
        &self.flags().settings
    }
}
