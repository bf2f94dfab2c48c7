//! `selvage cni`: the CNI plugin and its config list on a host.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use thiserror::Error;

use crate::flannel::install::status::Status;
use crate::flannel::install::{self, Outcome, Places, Wish};

/// What to do about the plugin.
#[derive(Debug, Subcommand)]
pub enum CniCommand {
    /// Copy this program and a config list to where container runtimes look for them.
    ///
    /// As an init container of a pod, or by hand. What is there already is left alone if it is the same, or a newer
    /// version of the plugin. A config list that somebody changed is kept, but for --conf-from and --force, which leave
    /// it as 10-flannel.conflist.replaced. Warns of configs that runtimes take before this one, and of missing plugins.
    /// Exit status: 0 done, 78 FILE is no config list for flannel and nothing was changed, 1 anything else.
    Install {
        /// Config list to copy, such as the ConfigMap's cni-conf.json; without it kube-flannel's.
        #[arg(long, value_name = "FILE")]
        conf_from: Option<PathBuf>,
        /// Replace a newer version, and a config list that somebody changed.
        #[arg(long)]
        force: bool,
        /// Where.
        #[command(flatten)]
        places: PlacesFlags,
    },
    /// Remove what `install` wrote.
    ///
    /// Keeps another plugin called flannel; a config list that somebody changed, with the plugin that it names; and the
    /// plugin while containers are attached by it, which could not be removed without: they are known by the files in
    /// /var/lib/cni/flannel, which a pod must mount. Exit status: 0 nothing is left, 1 one of the last two is.
    Uninstall {
        /// Remove the last two all the same.
        #[arg(long)]
        force: bool,
        /// Where.
        #[command(flatten)]
        places: PlacesFlags,
    },
    /// Show what is installed, and whether a pod could start.
    ///
    /// Exit status: 0 it could, 1 something is missing or wrong.
    Status {
        /// Print JSON; its schema is stable.
        #[arg(long)]
        json: bool,
        /// Where.
        #[command(flatten)]
        places: PlacesFlags,
    },
}

/// Where container runtimes look.
#[derive(Args, Clone, Debug)]
pub struct PlacesFlags {
    /// Directory of CNI plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// Directory of CNI configs.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
}

impl PlacesFlags {
    fn places(&self) -> Places {
        Places {
            bin_dir: self.bin_dir.clone(),
            conf_dir: self.conf_dir.clone(),
        }
    }
}

/// Why it was not done.
#[derive(Debug, Error)]
pub enum Error {
    /// A file, or the config list.
    #[error(transparent)]
    Install(#[from] install::Error),
    /// It cannot be printed.
    #[error("failed to write the output")]
    Output(#[from] io::Error),
}

impl Error {
    /// Whether only another config list helps.
    pub fn is_bad_configuration(&self) -> bool {
        matches!(self, Self::Install(error) if error.is_bad_configuration())
    }
}

/// Executes a command; returns the exit status of what went well.
///
/// # Errors
/// [`Error`].
pub fn run(command: &CniCommand, output: &mut impl Write) -> Result<u8, Error> {
    match command {
        CniCommand::Install {
            conf_from,
            force,
            places,
        } => {
            let wish = Wish {
                conf_from: conf_from.clone(),
                force: *force,
            };
            print(&install::install(&places.places(), &wish)?, output)?;
            Ok(0)
        }
        CniCommand::Uninstall { force, places } => {
            let outcome = install::uninstall(&places.places(), *force)?;
            print(&outcome, output)?;
            Ok(u8::from(outcome.is_left))
        }
        CniCommand::Status { json, places } => {
            let status = Status::look(&places.places())?;
            if *json {
                serde_json::to_writer_pretty(&mut *output, &status).map_err(io::Error::from)?;
                writeln!(output)?;
            } else {
                output.write_all(status.text().as_bytes())?;
            }
            Ok(u8::from(!status.is_well()))
        }
    }
}

fn print(outcome: &Outcome, output: &mut impl Write) -> io::Result<()> {
    for line in &outcome.done {
        writeln!(output, "{line}")?;
    }
    for warning in &outcome.warnings {
        writeln!(output, "warning: {warning}")?;
    }
    output.flush()
}
