//! `selvage reset`: provisions this machine again at the next boot.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::appliance::reset;
use crate::appliance::systemd::Systemd;
use crate::command::cli::ResetFlags;

/// Why the machine is not reset.
#[derive(Debug, Error)]
pub enum Error {
    /// Nothing here that the initrd could reset.
    #[error("{0} does not exist: only a machine that runs the image can be reset")]
    NotTheImage(PathBuf),
    /// What --keep names.
    #[error("--keep")]
    Keep(#[from] reset::Error),
    /// Nobody to ask.
    #[error("standard input is no terminal to ask on; --yes resets without asking")]
    NoTerminal,
    /// The answer was no.
    #[error("nothing was changed")]
    Declined,
    /// Failed to write or remove the request.
    #[error("failed to {verb} {path} (as root?)")]
    Request {
        /// The operation.
        verb: &'static str,
        /// The request.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The request is there, the restart is not.
    #[error(
        "failed to restart; the next boot resets the machine, unless `selvage reset --cancel` takes it back"
    )]
    Restart(#[source] io::Error),
    /// Asking or printing failed.
    #[error("failed to ask")]
    Terminal(#[from] io::Error),
}

/// Asks, leaves the request and restarts the machine.
///
/// # Errors
/// When something to keep does not exist or is not kept by its name, the answer is not `yes`, or a file or program fails.
pub async fn run(
    root: &Path,
    flags: &ResetFlags,
    input: &mut impl BufRead,
    out: &mut impl Write,
) -> Result<(), Error> {
    let state = root.join(".selvage/provisioned");
    if !state.exists() {
        return Err(Error::NotTheImage(state));
    }
    let request = |verb| {
        let path = root.join(reset::FILE);
        move |source| Error::Request { verb, path, source }
    };
    if flags.cancel {
        let text = if reset::cancel(root).map_err(request("remove"))? {
            "the next boot is an ordinary one"
        } else {
            "no reset was requested"
        };
        writeln!(out, "{text}")?;
        return Ok(());
    }
    let mut keep = Vec::new();
    for path in &flags.keep {
        keep.push(reset::kept(root, path)?);
    }
    writeln!(
        out,
        "The next boot removes all changes of /etc, /var with containers, volumes and etcd's data, /home, /root, /opt and /srv."
    )?;
    for path in &flags.keep {
        writeln!(out, "It keeps {}.", path.display())?;
    }
    writeln!(
        out,
        "Then Ignition provisions this machine again, with the config that it gets at that time."
    )?;
    if !flags.yes {
        ask(input, out)?;
    }
    reset::request(root, &keep).map_err(request("write"))?;
    if flags.no_reboot {
        writeln!(
            out,
            "The reset begins with the next boot; selvage reset --cancel takes it back."
        )?;
        return Ok(());
    }
    Systemd::of(root).reboot().await.map_err(Error::Restart)
}

fn ask(input: &mut impl BufRead, out: &mut impl Write) -> Result<(), Error> {
    if !io::stdin().is_terminal() {
        return Err(Error::NoTerminal);
    }
    write!(out, "Type yes to go on: ")?;
    out.flush()?;
    let mut answer = String::new();
    input.read_line(&mut answer)?;
    if answer.trim() == "yes" {
        Ok(())
    } else {
        Err(Error::Declined)
    }
}
