//! `selvage sysext`: programs beside the image's, as system extensions.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Subcommand;
use hyper::Uri;
use hyper::header::CONTENT_LENGTH;
use thiserror::Error;
use tracing::warn;

use crate::appliance::systemd::Systemd;
use crate::appliance::update::index::{File, Part, parse_hash};
use crate::appliance::update::keys::{KeyError, Keys, SIGNATURE_BYTES};
use crate::appliance::update::machine::{Machine, UpdateError};
use crate::appliance::update::server::{Server, ServerError};
use crate::appliance::update::sysext::{BadName, Name, StoreError, parse_file_name};
use crate::appliance::update::version::Version;
use crate::base::logging;
use crate::base::service::Service;
use crate::command::update::UpdateFlags;
use crate::command::update::progress::Shown;
use crate::settings::update::Update;

mod list;

/// The unit that merges what is there into `/usr`.
const UNIT: &str = "systemd-sysext.service";

/// The largest `SHA256SUMS` that is read.
const MOST_SUMS: u64 = 64 << 10;

/// What to do about system extensions.
#[derive(Debug, Subcommand)]
pub enum SysextCommand {
    /// List the extensions on this disk, and whether they are merged into /usr.
    ///
    /// Exit status: 0 all that fit the running version are merged, 1 one of them is not.
    List {
        /// Print JSON; its schema is stable.
        #[arg(long)]
        json: bool,
        /// Where the settings are.
        #[command(flatten)]
        settings: UpdateFlags,
    },
    /// Bring an extension of the running version, check it, and merge it into /usr.
    ///
    /// Updates of the image bring the new version's along.
    Add {
        /// A name, such as debug, which the release server has; or a file or URL selvage_VERSION_NAME.sysext.raw, with
        /// SHA256SUMS and SHA256SUMS.sig beside it.
        #[arg(value_name = "NAME|FILE|URL")]
        what: Origin,
        /// The file's SHA-256, in place of a signature.
        #[arg(long, value_name = "HEX", value_parser = hash)]
        sha256: Option<[u8; 32]>,
        /// Where the settings are.
        #[command(flatten)]
        settings: UpdateFlags,
    },
    /// Take an extension away, of all versions.
    Remove {
        /// Which.
        name: Name,
        /// Where the settings are.
        #[command(flatten)]
        settings: UpdateFlags,
    },
}

impl SysextCommand {
    /// The only settings file to read.
    pub fn config(&self) -> Option<&Path> {
        match self {
            Self::List { settings, .. }
            | Self::Add { settings, .. }
            | Self::Remove { settings, .. } => settings.config.as_deref(),
        }
    }
}

fn hash(text: &str) -> Result<[u8; 32], &'static str> {
    parse_hash(text).ok_or("expected 64 hexadecimal digits")
}

/// Where an extension comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// The release server, by this name.
    Release(Name),
    /// A file.
    File(PathBuf),
    /// A file at an HTTP server: its directory and name.
    Url(Uri, String),
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("http://") || text.starts_with("https://") {
            let (directory, name) = text.rsplit_once('/').unwrap_or((text, ""));
            let uri = directory.parse().map_err(|error| format!("{error}"))?;
            return Ok(Self::Url(uri, name.to_owned()));
        }
        if text.contains('/') || text.ends_with(".raw") {
            return Ok(Self::File(PathBuf::from(text)));
        }
        let name = text.parse().map_err(|error: BadName| error.to_string())?;
        Ok(Self::Release(name))
    }
}

/// The command failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The machine or the release server.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another server than the release server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The signature.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The index does not have the running version.
    #[error(
        "the channel {channel} has no release of the running version {running}, so no extension of it: update first, or name a file"
    )]
    NoRelease {
        /// Which channel.
        channel: String,
        /// What runs.
        running: Version,
    },
    /// The release has no such extension.
    #[error("version {running} has no system extension {name}: it has {known}")]
    Unknown {
        /// What runs.
        running: Version,
        /// What was asked for.
        name: Name,
        /// What there is.
        known: String,
    },
    /// The file is not called as ours are.
    #[error(
        "{0:?} is no system extension of this image, which are called selvage_VERSION_NAME.sysext.raw; put one of another \
         maker into /var/lib/extensions as NAME.raw, then run: systemctl restart {UNIT}"
    )]
    Foreign(String),
    /// It is for another version.
    #[error("{file} fits version {version} of the image alone, and this machine runs {running}")]
    OtherVersion {
        /// Which file.
        file: String,
        /// What it fits.
        version: Version,
        /// What runs.
        running: Version,
    },
    /// Nothing says which hash the file should have.
    #[error("{sums} does not list {file}")]
    NotListed {
        /// The list.
        sums: String,
        /// The file.
        file: String,
    },
    /// A file beside the extension cannot be read.
    #[error(
        "failed to read {path}, which says what the extension must be (or name its hash: --sha256)"
    )]
    Sums {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server does not say how large the file is.
    #[error("{0}: the server does not say how large the file is (Content-Length)")]
    NoSize(String),
    /// systemd did not take it.
    #[error(
        "systemd-sysext did not merge {name}, so it was removed again, and what was there before is back: {why}; journalctl -u \
         {UNIT} says more"
    )]
    NotMerged {
        /// Which.
        name: Name,
        /// What is known.
        why: String,
    },
    /// systemd takes none, and did not without this one.
    #[error(
        "systemd-sysext merges no extension, without {name} neither, so another is at fault: {why}; journalctl -u {UNIT} names \
         it. {name} is on the disk, and merged with the others once that one is gone"
    )]
    NothingMerged {
        /// Which was added.
        name: Name,
        /// What is known.
        why: String,
    },
    /// systemd was not asked.
    #[error("failed to have systemd merge the extensions")]
    Systemd(#[source] io::Error),
    /// There is none.
    #[error("there is no system extension {0} to remove: selvage sysext list shows what there is")]
    NotThere(Name),
    /// Writing to standard output failed.
    #[error("failed to print")]
    Print(#[from] io::Error),
    /// JSON cannot be made.
    #[error("failed to print JSON")]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// Whether the settings are at fault: exit status 78.
    pub fn is_bad_configuration(&self) -> bool {
        match self {
            Self::Update(error) => error.is_bad_configuration(),
            Self::Server(error) => error.is_bad_configuration(),
            _ => false,
        }
    }
}

/// Runs a command below a root. Returns the exit status.
///
/// # Errors
/// Whatever did not work; the exit status is then 1.
pub async fn run(
    command: &SysextCommand,
    settings: Update,
    root: &Path,
    output: &mut impl Write,
) -> Result<u8, Error> {
    let machine = Machine::new(root, settings)?;
    match command {
        SysextCommand::List { json, .. } => {
            let rows = list::rows(&machine)?;
            match json {
                true => writeln!(output, "{}", serde_json::to_string_pretty(&rows)?)?,
                false => list::print(&rows, output)?,
            }
            return Ok(u8::from(rows.iter().any(list::Row::is_missing)));
        }
        SysextCommand::Add { what, sha256, .. } => {
            let _lock = machine.lock()?;
            let name = bring(&machine, what, sha256.as_ref(), root).await?;
            merge(&machine, &name, root).await?;
            writeln!(output, "{name} is merged into /usr, also after a reboot")?;
        }
        SysextCommand::Remove { name, .. } => {
            let _lock = machine.lock()?;
            if !machine.sysexts().remove(name)? {
                return Err(Error::NotThere(name.clone()));
            }
            refresh(root).await?;
            writeln!(output, "{name} is removed")?;
        }
    }
    Ok(0)
}

/// Brings an extension to where the running version has it; returns its name.
async fn bring(
    machine: &Machine,
    what: &Origin,
    sha256: Option<&[u8; 32]>,
    root: &Path,
) -> Result<Name, Error> {
    let running = machine.running();
    let mut shown = Shown::new(Service::from_environment(), io::stderr().is_terminal());
    let mut progress = |step: crate::appliance::update::machine::Step<'_>| shown.step(&step);
    match what {
        Origin::Release(name) => {
            let file = published(machine, name).await?;
            machine
                .bring_sysext(None, &file, running, name, &mut progress)
                .await?;
            Ok(name.clone())
        }
        Origin::File(path) => {
            let file_name = path.file_name().unwrap_or_default().to_string_lossy();
            let name = fitting(&file_name, running)?;
            let expected = match sha256 {
                Some(expected) => *expected,
                None => sum_beside(path, &file_name, root)?,
            };
            machine.sysexts().copy(path, &expected, running, &name)?;
            Ok(name)
        }
        Origin::Url(directory, file_name) => {
            let name = fitting(file_name, running)?;
            let server = Server::at(directory.clone(), machine.settings());
            let file = described(&server, file_name, sha256, root).await?;
            machine
                .bring_sysext(Some(&server), &file, running, &name, &mut progress)
                .await?;
            Ok(name)
        }
    }
}

/// The running version's extension in the index: the release server's, or that of the last check if it is away.
async fn published(machine: &Machine, name: &Name) -> Result<File, Error> {
    let index = match machine.check().await {
        Ok(index) => index,
        Err(error) => {
            let known = machine.known_index().ok_or(error)?;
            warn!("going on with the {}", known.name());
            known
        }
    };
    let running = machine.running().clone();
    let Some(release) = index.release(&running) else {
        let channel = index.channel;
        return Err(Error::NoRelease { channel, running });
    };
    release.sysexts.get(name).cloned().ok_or_else(|| {
        let known: Vec<_> = release.sysexts.keys().map(ToString::to_string).collect();
        Error::Unknown {
            running,
            name: name.clone(),
            known: match known.is_empty() {
                true => "none".to_owned(),
                false => known.join(", "),
            },
        }
    })
}

/// The name in a file's name, if it is for the running version.
fn fitting(file_name: &str, running: &Version) -> Result<Name, Error> {
    let foreign = || Error::Foreign(file_name.chars().take(120).collect());
    let (version, name) = parse_file_name(file_name).ok_or_else(foreign)?;
    if version != *running {
        return Err(Error::OtherVersion {
            file: file_name.to_owned(),
            version,
            running: running.clone(),
        });
    }
    Ok(name)
}

/// The hash of a file in the signed list beside it.
fn sum_beside(path: &Path, file_name: &str, root: &Path) -> Result<[u8; 32], Error> {
    let sums = path.with_file_name("SHA256SUMS");
    let read = |path: &Path| {
        fs::read(path).map_err(|source| Error::Sums {
            path: path.to_owned(),
            source,
        })
    };
    let (text, signature) = (read(&sums)?, read(&sums.with_extension("sig"))?);
    listed(
        &sums.display().to_string(),
        &text,
        &signature,
        file_name,
        root,
    )
}

/// The hash of a file in a list that one of the machine's keys signed.
fn listed(
    sums: &str,
    text: &[u8],
    signature: &[u8],
    file_name: &str,
    root: &Path,
) -> Result<[u8; 32], Error> {
    Keys::load(root)?.verify(sums, text, signature)?;
    let text = String::from_utf8_lossy(text);
    let mut lines = text.lines().filter_map(|line| line.split_once("  "));
    let line = lines.find(|(_, name)| *name == file_name);
    let hash = line.and_then(|(hash, _)| parse_hash(hash));
    hash.ok_or_else(|| Error::NotListed {
        sums: sums.to_owned(),
        file: file_name.to_owned(),
    })
}

/// A file at a server, with its size as the server has it, and its hash as the signed list beside it has.
async fn described(
    server: &Server,
    file_name: &str,
    sha256: Option<&[u8; 32]>,
    root: &Path,
) -> Result<File, Error> {
    let sha256 = match sha256 {
        Some(sha256) => *sha256,
        None => {
            let text = server.small("SHA256SUMS", MOST_SUMS).await?;
            let most = 16 * SIGNATURE_BYTES as u64;
            let signature = server.small("SHA256SUMS.sig", most).await?;
            listed(
                &server.url("SHA256SUMS"),
                &text,
                &signature,
                file_name,
                root,
            )?
        }
    };
    let reply = server.get(file_name, None).await?;
    let url = server.url(file_name);
    if reply.status != 200 {
        let status = reply.status;
        return Err(ServerError::Status { url, status }.into());
    }
    let length = reply.headers.get(CONTENT_LENGTH);
    let size = length.and_then(|length| length.to_str().ok()?.parse().ok());
    let size = size.ok_or(Error::NoSize(url))?;
    Ok(File {
        part: Part::Sysext,
        path: file_name.to_owned(),
        size,
        sha256,
        unpacked_size: size,
        unpacked_sha256: sha256,
    })
}

/// Has systemd merge what is there, and sees whether `name` is. What it does not take is removed, since each boot would try
/// it, and what was there before is put back.
async fn merge(machine: &Machine, name: &Name, root: &Path) -> Result<(), Error> {
    let (store, running) = (machine.sysexts(), machine.running());
    let refreshed = refresh(root).await;
    let is_merged = store.merged().contains(&name.to_string());
    if refreshed.is_ok() && is_merged {
        return Ok(store.clear_downloads()?);
    }
    let had_former = store.take_back(running, name)?;
    let again = refresh(root).await;
    let name = name.clone();
    let error = match (refreshed, again) {
        // systemd merges all or none: without this one it would have merged the others.
        (Err(_), Err(error)) => {
            if !had_former {
                store.give_again(running, &name)?;
            }
            Error::NothingMerged {
                name,
                why: logging::chain(&error),
            }
        }
        (Err(error), Ok(())) => Error::NotMerged {
            name,
            why: logging::chain(&error),
        },
        (Ok(()), again) => {
            if let Err(error) = again {
                warn!("{}", logging::chain(&error));
            }
            let why = "it does not fit this image, or is not signed as this image wants it";
            Error::NotMerged {
                name,
                why: why.to_owned(),
            }
        }
    };
    store.clear_downloads()?;
    Err(error)
}

async fn refresh(root: &Path) -> Result<(), Error> {
    let systemd = Systemd::of(root);
    let done = systemd.finish(&["reload-or-restart", UNIT]).await;
    done.map_err(Error::Systemd)
}

#[cfg(test)]
mod tests;
