//! `selvage update etc-diff`: what of `/etc` is not the image's.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::appliance::etc::{self, Change};

/// Why the comparison failed.
#[derive(Debug, Error)]
pub enum Error {
    /// This machine runs another system than the image.
    #[error("{0} does not exist: only a machine that runs the image has defaults to compare with")]
    NotTheImage(PathBuf),
    /// Failed to read either side.
    #[error("failed to compare /etc with the image's (as root?)")]
    Compare(#[source] io::Error),
    /// The answer cannot be written.
    #[error("failed to print")]
    Output(#[from] io::Error),
}

/// Prints the differences, a line each: `+` added, `~` changed, `-` removed.
///
/// # Errors
/// On a host that does not run the image, and where a file cannot be read.
pub fn run(root: &Path, json: bool, out: &mut impl Write) -> Result<(), Error> {
    let defaults = root.join(etc::DEFAULTS);
    if !defaults.is_dir() {
        return Err(Error::NotTheImage(defaults));
    }
    let differences = etc::differences(&defaults, &root.join("etc")).map_err(Error::Compare)?;
    if json {
        serde_json::to_writer_pretty(&mut *out, &differences).map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    for difference in differences {
        let sign = match difference.change {
            Change::Added => '+',
            Change::Changed => '~',
            Change::Removed => '-',
        };
        writeln!(out, "{sign} /etc/{}", difference.path.display())?;
    }
    Ok(())
}
