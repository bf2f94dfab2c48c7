//! Updates of one machine, step by step. Every step may be cut off and run again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;
use tokio::time::sleep;
use tracing::warn;

use crate::appliance::update::download::{Download, DownloadError, Pace};
use crate::appliance::update::index::{self, Index, IndexError, Release};
use crate::appliance::update::keys::{KeyError, Keys, SIGNATURE_BYTES};
use crate::appliance::update::running;
use crate::appliance::update::secure_boot::SecureBootError;
use crate::appliance::update::server::{Server, ServerError};
use crate::appliance::update::slots::uki::MACHINE;
use crate::appliance::update::slots::{self, SlotError};
use crate::appliance::update::staging::{Staging, StagingError};
use crate::appliance::update::state::{self, DIRECTORY, LastCheck, State, StateFile};
use crate::appliance::update::sysext::StoreError;
use crate::appliance::update::sysupdate::{Sysupdate, SysupdateError};
use crate::appliance::update::version::{BadVersion, Version};
use crate::base::atomic_file;
use crate::base::logging::chain;
use crate::base::retry::{Backoff, random_seed};
use crate::settings::update::Update;

mod install;
mod sysexts;

/// The pause before an index and its signature that do not fit are asked for once more: the server may be replacing them.
const BETWEEN_TWO: Duration = Duration::from_secs(2);

/// Something did not work.
#[derive(Debug, Error)]
pub enum UpdateError {
    /// This is no image of ours.
    #[error(
        "this machine does not run a Selvage image: /usr/lib/os-release has no IMAGE_ID=selvage with an IMAGE_VERSION"
    )]
    NoImage,
    /// The image's version is none.
    #[error("IMAGE_VERSION in /usr/lib/os-release")]
    ImageVersion(#[source] BadVersion),
    /// No server is set.
    #[error(
        "update.server is not set: set it in /etc/selvage/agent.toml, for example to \"https://releases.example/selvage\""
    )]
    NoServer,
    /// Another command is at it.
    #[error("another selvage update is at work ({path} is locked)")]
    Busy {
        /// The lock.
        path: PathBuf,
    },
    /// The keys, or the signature.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The server, while the index was asked for.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// A file of the release.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// The disk.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// The boot entries.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The firmware would not start the version.
    #[error(transparent)]
    SecureBoot(#[from] SecureBootError),
    /// A system extension.
    #[error(transparent)]
    Sysext(#[from] StoreError),
    /// systemd-sysupdate.
    #[error(transparent)]
    Sysupdate(#[from] SysupdateError),
    /// The state.
    #[error(transparent)]
    State(#[from] state::Error),
    /// A file of ours.
    #[error("failed to write {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The running version is too old for the release.
    #[error(
        "version {version} can be installed from {from} on, and this machine runs {running}: install an older release first"
    )]
    TooOld {
        /// What was to be installed.
        version: Version,
        /// The oldest version that it takes.
        from: Version,
        /// What runs.
        running: Version,
    },
    /// The release runs already.
    #[error("version {0} is the running one")]
    Running(Version),
    /// The release is for machines of another architecture.
    #[error(
        "version {version} is not for this machine: its boot entry is for {machine} (PE machine type), and this one starts \
         {MACHINE:#06x}. Give machines of each architecture a release server or a channel of their own (update.channel)"
    )]
    OtherMachines {
        /// What was to be installed.
        version: Version,
        /// Which machines it is for.
        machine: String,
    },
    /// A file that was unpacked.
    #[error("failed to read {path}")]
    Unpacked {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A part is larger than its slot.
    #[error("{name} has {size} bytes unpacked, but the slots have {slot}")]
    TooLarge {
        /// Which.
        name: String,
        /// Its size.
        size: u64,
        /// The size of the smallest slot.
        slot: u64,
    },
    /// The version to fall back to would be lost.
    #[error(
        "version {0} has not passed its boot check yet, and the update would overwrite the version to fall back to: see \
         selvage update status (selvage update apply --version does it all the same)"
    )]
    OnTrial(Version),
    /// All was said to have gone well, but the slot has something else.
    #[error(
        "{name} was written, but what is read back is something else: look for errors of the disk (journalctl --dmesg), then \
         try again"
    )]
    NotWritten {
        /// Which file of the release.
        name: String,
    },
}

impl UpdateError {
    /// Whether the settings are at fault.
    pub fn is_bad_configuration(&self) -> bool {
        match self {
            Self::Server(error) | Self::Download(DownloadError::Server(error)) => {
                error.is_bad_configuration()
            }
            _ => false,
        }
    }
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step<'a> {
    /// Bytes of the release that are here.
    Download {
        /// How many.
        done: u64,
        /// Of how many.
        of: u64,
    },
    /// Bytes that were unpacked.
    Unpack {
        /// How many.
        done: u64,
        /// Of how many.
        of: u64,
    },
    /// A line of systemd-sysupdate.
    Install(&'a str),
}

/// Who hears of it.
pub type Progress<'a> = &'a mut dyn FnMut(Step<'_>);

/// One machine, its settings and its state.
#[derive(Debug)]
pub struct Machine {
    root: PathBuf,
    directory: PathBuf,
    settings: Update,
    running: Version,
    state: StateFile,
    staging: Staging,
    sysupdate: Sysupdate,
    server: Option<Server>,
    backoff: Backoff,
}

/// The lock that one changing command holds.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held until it is dropped")] Flock<fs::File>);

impl Machine {
    /// The machine whose root this is.
    ///
    /// # Errors
    /// [`UpdateError::NoImage`] and [`UpdateError::ImageVersion`].
    pub fn new(root: &Path, settings: Update) -> Result<Self, UpdateError> {
        const BACKOFF: Backoff =
            match Backoff::new(Duration::from_secs(1), Duration::from_secs(60), 0.5, 0) {
                Ok(backoff) => backoff,
                Err(_) => panic!("the constants above are in order"),
            };
        let version = running::version(root).ok_or(UpdateError::NoImage)?;
        let directory = root.join(DIRECTORY.trim_start_matches('/'));
        Ok(Self {
            running: version.parse().map_err(UpdateError::ImageVersion)?,
            state: StateFile::new(&directory),
            staging: Staging::new(&directory),
            sysupdate: Sysupdate::new(root),
            server: Server::new(&settings),
            backoff: BACKOFF.seeded(random_seed()),
            root: root.to_owned(),
            directory,
            settings,
        })
    }

    /// Its settings.
    pub fn settings(&self) -> &Update {
        &self.settings
    }

    /// The version that runs.
    pub fn running(&self) -> &Version {
        &self.running
    }

    /// What was recorded.
    pub fn state(&self) -> State {
        self.state.read()
    }

    /// Changes what is recorded.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn change_state<T>(&self, change: impl FnOnce(&mut State) -> T) -> Result<T, UpdateError> {
        Ok(self.state.change(change)?)
    }

    /// Keeps others from changing anything until it is dropped.
    ///
    /// # Errors
    /// [`UpdateError::Busy`] if somebody else has it.
    pub fn lock(&self) -> Result<Lock, UpdateError> {
        let path = self.directory.join("lock");
        let file = fs::create_dir_all(&self.directory).and_then(|()| {
            let mut options = fs::File::options();
            options.create(true).append(true).open(&path)
        });
        let file = file.map_err(|source| UpdateError::File {
            path: path.clone(),
            source,
        })?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Lock(lock)),
            Err((_, nix::Error::EWOULDBLOCK)) => Err(UpdateError::Busy { path }),
            Err((_, errno)) => Err(UpdateError::File {
                path,
                source: errno.into(),
            }),
        }
    }

    /// Asks the server for the channel's index, and records what came of it.
    ///
    /// # Errors
    /// No server, no answer, or an index that is not believed. What was believed before stays.
    pub async fn check(&self) -> Result<Index, UpdateError> {
        let checked = self.fetch_index().await;
        let result = match &checked {
            Ok(index) => {
                let newest = index.releases.first();
                let newest = newest.map_or("none", |release| release.version.as_str());
                format!("{}, newest version {newest}", index.name())
            }
            Err(error) => chain(error),
        };
        let at = seconds(SystemTime::now());
        self.state.change(|state| {
            if let Ok(index) = &checked {
                state.accept_serial(&index.channel, index.serial);
            }
            state.last_check = Some(LastCheck {
                at,
                failed: checked.is_err(),
                result,
            });
        })?;
        for skipped in checked.iter().flat_map(|index| &index.skipped) {
            warn!("the index has an entry that this version cannot use: {skipped}");
        }
        checked
    }

    async fn fetch_index(&self) -> Result<Index, UpdateError> {
        let server = self.server.as_ref().ok_or(UpdateError::NoServer)?;
        let keys = Keys::load(&self.root)?;
        let name = format!("{}.json", self.settings.channel);
        let path = self.index_path();
        let what = server.url(&name);
        let signature_name = format!("{name}.sig");
        let mut once_more = true;
        let (text, signature) = loop {
            let text = server.small(&name, index::MOST_BYTES).await?;
            let signature = server
                .small(&signature_name, 16 * SIGNATURE_BYTES as u64)
                .await?;
            match keys.verify(&what, &text, &signature) {
                Ok(()) => break (text, signature),
                Err(_) if std::mem::take(&mut once_more) => sleep(BETWEEN_TWO).await,
                Err(error) => return Err(error.into()),
            }
        };
        let channel = &self.settings.channel;
        let highest = self.state.read().highest_serial(channel);
        // Who lost the state on a bad disk still knows the index.
        let known = self.known_index().map_or(0, |index| index.serial);
        let index = Index::parse(&text, channel, highest.max(known))?;
        let signature_path = path.with_extension("json.sig");
        for (path, bytes) in [(path, &text), (signature_path, &signature)] {
            atomic_file::replace(&path, bytes, 0o644)
                .map_err(|source| UpdateError::File { path, source })?;
        }
        Ok(index)
    }

    /// Where the index of the last check is kept. A channel may have any name, that of a file beside it, too.
    fn index_path(&self) -> PathBuf {
        self.directory
            .join(format!("index-{}.json", self.settings.channel))
    }

    /// The index of the last check that was believed, checked once more; `None` if there is none, or if its keys are gone.
    pub fn known_index(&self) -> Option<Index> {
        let channel = &self.settings.channel;
        let path = self.index_path();
        let read = |path: &Path| fs::read(path).ok();
        let text = read(&path)?;
        let signature = read(&path.with_extension("json.sig"))?;
        let believed = || -> Result<Index, UpdateError> {
            let keys = Keys::load(&self.root)?;
            keys.verify(&path.display().to_string(), &text, &signature)?;
            let highest = self.state.read().highest_serial(channel);
            Ok(Index::parse(&text, channel, highest)?)
        };
        match believed() {
            Ok(index) => Some(index),
            Err(error) => {
                warn!("the index of the last check is not used: {error}");
                None
            }
        }
    }

    /// Whether all files of a release are here.
    pub fn is_downloaded(&self, release: &Release) -> bool {
        self.staging.is_downloaded(release)
    }

    /// Whether a version needs no more than its turn and a reboot.
    ///
    /// # Errors
    /// The boot entries cannot be read.
    pub fn is_installed(&self, version: &Version) -> Result<bool, UpdateError> {
        let entries = slots::entries(&self.root)?;
        Ok(entries
            .iter()
            .any(|entry| entry.version == *version && !entry.is_bad()))
    }

    /// The version that failed and that the boot check of the running one has not recorded yet: it is not to be tried again
    /// meanwhile.
    ///
    /// # Errors
    /// The boot entries cannot be read.
    pub fn is_judging(&self) -> Result<Option<Version>, UpdateError> {
        let Some(pending) = self.state().pending else {
            return Ok(None);
        };
        let entries = slots::entries(&self.root)?;
        let failed = entries.into_iter().find(|entry| {
            entry.version != self.running
                && entry.is_bad()
                && entry.version.to_string() == pending.version
        });
        Ok(failed.map(|entry| entry.version))
    }

    /// Whether the running version is not proven to work: the other slot has what the machine falls back to. sysupdate
    /// protects the running version alone.
    ///
    /// # Errors
    /// The boot entries cannot be read.
    pub fn is_on_trial(&self) -> Result<bool, UpdateError> {
        let entries = slots::entries(&self.root)?;
        let own = entries.iter().find(|entry| entry.version == self.running);
        Ok(own.is_some_and(|own| own.counter.is_some()))
    }

    /// Brings the files of a release, and removes those of others.
    ///
    /// # Errors
    /// Too little space, no server, or a file that is not what was signed.
    pub async fn download(
        &self,
        release: &Release,
        progress: Progress<'_>,
    ) -> Result<(), UpdateError> {
        self.check_size(release)?;
        self.staging.keep_only(Some(release))?;
        self.staging.check_space(release)?;
        if self.is_downloaded(release) {
            return Ok(());
        }
        let mut download = Download {
            server: self.server.as_ref().ok_or(UpdateError::NoServer)?,
            directory: &self.staging.of(release),
            pace: Pace::new(self.settings.rate_limit, Instant::now()),
            backoff: self.backoff.clone(),
        };
        let (mut before, of) = (0, release.size());
        for file in &release.files {
            let mut hear = |bytes| {
                progress(Step::Download {
                    done: before + bytes,
                    of,
                });
            };
            if let Err(error) = download.run(file, &mut hear).await {
                self.give_back_space(&error);
                return Err(error.into());
            }
            before += file.size;
        }
        Ok(())
    }

    /// Where the disk has filled up meanwhile, not only the file that did not fit goes.
    fn give_back_space(&self, error: &DownloadError) {
        if error.is_full_disk()
            && let Err(error) = self.staging.keep_only(None)
        {
            warn!("failed to remove what was downloaded: {error}");
        }
    }

    /// sysupdate finds this out only when the slot is half written, and says "argument list too long".
    fn check_size(&self, release: &Release) -> Result<(), UpdateError> {
        let slots = slots::slots(&self.root);
        let sizes = slots.iter().filter(|slot| slot.version.is_some());
        let (Some(slot), Some(usr)) = (
            sizes.map(|slot| slot.size).min(),
            release
                .files
                .iter()
                .find(|file| file.part == index::Part::Usr),
        ) else {
            return Ok(());
        };
        if usr.unpacked_size > slot {
            return Err(UpdateError::TooLarge {
                name: usr.unpacked_name().to_owned(),
                size: usr.unpacked_size,
                slot,
            });
        }
        Ok(())
    }
}

/// Seconds since the Unix epoch.
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests;
