//! Ignition configs: renders them from a cluster description, and checks them before a machine boots with them.
//!
//! A *cluster description* is one TOML file with the nodes, the etcd members and the overlay network, or with the
//! Kubernetes cluster that the nodes join;
//! [`Cluster::render`] turns it into one Ignition config per node. [`check`] reads any Ignition config and reports,
//! with line and JSON path, what the image's Ignition (2.14.0) would refuse or misread and what the image would ignore.
//!
//! [`translate`](translate()) makes spec 3.3.0 of newer ones; the initrd does so with what it hands to Ignition.
//!
//! Everything here is pure except the commands of `selvage ignition`: [`render_command`], [`check_command`],
//! [`translate_command`] and [`report_command`], which reports on the machine which parts of the config had no effect.

mod agent_settings;
mod check;
mod cluster;
mod data_url;
mod image;
mod kernel_arguments;
mod kubernetes;
mod locate;
mod network;
mod render;
mod report;
pub(in crate::appliance) mod ssh_key;
mod translate;
mod validate;

#[cfg(test)]
mod tests;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use agent_settings::SettingFault;
pub use check::{Finding, Report, Severity, check};
pub use cluster::{Cluster, Etcd, Identity, Node};
pub use image::{VerifyError, verify as verify_image};
pub use kernel_arguments::{
    KernelArgumentsError, Places, Wanted, command as kernel_arguments_command,
};
pub use kubernetes::{Kubernetes, KubernetesFault};
pub use locate::Position;
pub use network::NetworkFault;
pub use render::RenderedNode;
pub use report::{ReportError, record_command, report_command};
pub use ssh_key::SshKeyError;
pub use translate::translate;
pub use validate::{Fault, Faults, LocatedFault};

/// Why a cluster description cannot be rendered, or a config cannot be checked.
#[derive(Debug, Error)]
pub enum Error {
    /// The description is not TOML, or a value has the wrong type.
    #[error("{position}: {}{message}", path_prefix(.path))]
    Syntax {
        /// Where in the text.
        position: Position,
        /// The field, for example `node[1].address`; empty if the text is not TOML.
        path: String,
        /// The parser's error.
        message: String,
    },
    /// The description violates a rule.
    #[error("{0}")]
    Invalid(Faults),
    /// The description in this file is invalid.
    #[error("cluster description {} is unusable", .path.display())]
    Description {
        /// The file.
        path: PathBuf,
        /// The errors in it.
        #[source]
        source: Box<Error>,
    },
    /// The Ignition config in this file has errors; they have been printed.
    #[error("{}: {errors} {} that would stop the first boot", .path.display(), if *.errors == 1 { "fault" } else { "faults" })]
    Refused {
        /// The file.
        path: PathBuf,
        /// The number of errors; at least 1.
        errors: usize,
    },
    /// The config has no counterpart in spec 3.3.0.
    #[error("{}", lines(.0))]
    Untranslatable(Vec<Finding>),
    /// The Ignition config in this file has no counterpart in spec 3.3.0.
    #[error("{} cannot be translated to spec 3.3.0", .path.display())]
    Translation {
        /// The file.
        path: PathBuf,
        /// The places in it.
        #[source]
        source: Box<Error>,
    },
    /// Failed to read a file.
    #[error("failed to read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// Failed to write a file or directory.
    #[error("failed to write {}", .path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// Failed to print the result.
    #[error("failed to write the result")]
    Output(#[source] io::Error),
    /// A rendered value cannot be written as TOML.
    #[error("failed to write the agent settings as TOML")]
    AgentSettings(#[from] toml::ser::Error),
    /// A rendered value cannot be written as JSON.
    #[error("failed to write JSON")]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// Whether the user's input is at fault (exit status 78) or the machine (exit status 1).
    pub fn is_bad_configuration(&self) -> bool {
        matches!(
            self,
            Self::Syntax { .. }
                | Self::Invalid(_)
                | Self::Description { .. }
                | Self::Refused { .. }
                | Self::Untranslatable(_)
                | Self::Translation { .. }
        )
    }
}

fn lines(findings: &[Finding]) -> String {
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

fn path_prefix(path: &str) -> String {
    if path.is_empty() {
        String::new()
    } else {
        format!("{path}: ")
    }
}

/// Renders the cluster description `description` into `out_dir/NAME.ign`, one per node, and writes one line per file
/// to `output`.
///
/// Each file is written atomically with mode 0600, because configs contain password hashes and tokens. An existing file
/// is replaced; files of nodes that were removed from the description stay.
///
/// # Errors
///
/// [`Error::Description`] if the description is invalid; then no file is written.
pub fn render_command(
    description: &Path,
    out_dir: &Path,
    output: &mut impl Write,
) -> Result<(), Error> {
    let text = read(description)?;
    let rendered = Cluster::from_toml(&text)
        .and_then(|cluster| cluster.render())
        .map_err(|source| Error::Description {
            path: description.to_owned(),
            source: Box::new(source),
        })?;
    fs::create_dir_all(out_dir).map_err(|source| Error::Write {
        path: out_dir.to_owned(),
        source,
    })?;
    for node in rendered {
        let path = out_dir.join(format!("{}.ign", node.name));
        write_atomically(&path, &node.json).map_err(|source| Error::Write {
            path: path.clone(),
            source,
        })?;
        writeln!(output, "{}: {} bytes", path.display(), node.json.len()).map_err(Error::Output)?;
    }
    Ok(())
}

/// Checks the Ignition config in `file` and writes one line per finding to `output`, then a summary line
/// (`FILE: ok (spec 3.3.0, 7 files, 4 units)`).
///
/// # Errors
///
/// [`Error::Refused`] if there is at least one error; warnings alone are not an error.
pub fn check_command(file: &Path, output: &mut impl Write) -> Result<(), Error> {
    checked(file, output).map(drop)
}

/// As [`check_command`], and returns the config.
pub(in crate::appliance) fn checked(file: &Path, output: &mut impl Write) -> Result<String, Error> {
    let text = read(file)?;
    let report = check(&text);
    let name = file.display();
    for finding in &report.findings {
        writeln!(output, "{name}:{finding}").map_err(Error::Output)?;
    }
    match report.errors() {
        0 => {
            writeln!(output, "{name}: ok ({report})").map_err(Error::Output)?;
            Ok(text)
        }
        errors => Err(Error::Refused {
            path: file.to_owned(),
            errors,
        }),
    }
}

/// Writes the Ignition config in `file` to `output`, in spec 3.3.0 if it is in a newer one or carries such a config, and
/// otherwise as it is.
///
/// # Errors
///
/// [`Error::Translation`] if it asks for what the image's Ignition cannot do.
pub fn translate_command(file: &Path, output: &mut impl Write) -> Result<(), Error> {
    let text = read(file)?;
    let translated = translate(&text).map_err(|source| Error::Translation {
        path: file.to_owned(),
        source: Box::new(source),
    })?;
    let text = translated.as_ref().unwrap_or(&text);
    output.write_all(text.as_bytes()).map_err(Error::Output)
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

/// Writes a temporary file next to `path`, which `tempfile` creates with mode 0600, and renames it.
fn write_atomically(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
