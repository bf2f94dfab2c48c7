//! Downloads one file: goes on where an earlier download broke off, and hashes what comes.
//!
//! What is here of a file is `NAME.part`, and `NAME.tag` tells which version of the server's file it is a part of. Only a
//! file whose hash is right gets its name.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper::HeaderMap;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderName, LAST_MODIFIED, RETRY_AFTER};
use ring::digest;
use thiserror::Error;
use tokio::time::sleep;
use tracing::info;

use crate::appliance::update::index;
use crate::appliance::update::server::{From, Reply, Server, ServerError};
use crate::appliance::update::staging::is_full;
use crate::base::retry::Backoff;

/// How many attempts in a row may bring nothing new.
const MOST_FAILURES: u32 = 8;

/// The longest pause that a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Why a file is not here.
#[derive(Debug, Error)]
pub enum DownloadError {
    /// The server does not give it.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The server is busy and says for how long.
    #[error("{url}: HTTP status {status}")]
    Busy {
        /// What was asked for.
        url: String,
        /// HTTP status.
        status: u16,
        /// When to ask again.
        after: Duration,
    },
    /// The server answers with another part of the file than was asked for.
    #[error("{url}: the server sent the range {found:?} instead of the one from byte {asked}")]
    Range {
        /// What was asked for.
        url: String,
        /// The first byte that was asked for.
        asked: u64,
        /// What the answer says.
        found: String,
    },
    /// The connection ended early without an error.
    #[error("{url}: the connection ended after {found} of {size} bytes")]
    Short {
        /// What was asked for.
        url: String,
        /// The bytes that are here.
        found: u64,
        /// The bytes of the whole file.
        size: u64,
    },
    /// The server's file is not the one of the index.
    #[error(
        "{url}: the server's file has {found} bytes, the index says {size}: the server is not complete, or between two releases"
    )]
    Size {
        /// What was asked for.
        url: String,
        /// The bytes at the server.
        found: u64,
        /// The bytes in the index.
        size: u64,
    },
    /// The file is not what was signed.
    #[error(
        "{url}: the SHA-256 is {found}, the signed index says {expected}: the file is damaged or was exchanged"
    )]
    Hash {
        /// What was asked for.
        url: String,
        /// The hash of what came.
        found: String,
        /// The hash in the index.
        expected: String,
    },
    /// A file cannot be written or read.
    #[error("failed to write {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DownloadError {
    /// Whether what came so far has filled up the disk.
    pub(crate) fn is_full_disk(&self) -> bool {
        matches!(self, Self::File { source, .. } if is_full(source))
    }

    fn is_transient(&self) -> bool {
        match self {
            Self::Server(error) => error.is_transient(),
            Self::Busy { .. } | Self::Range { .. } | Self::Short { .. } => true,
            Self::Size { .. } | Self::Hash { .. } | Self::File { .. } => false,
        }
    }
}

/// Keeps a download below a rate, over all files of a release.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    /// Bytes per second.
    limit: Option<u64>,
    begun: Instant,
    bytes: u64,
}

impl Pace {
    pub(crate) fn new(limit: Option<u64>, now: Instant) -> Self {
        Self {
            limit,
            begun: now,
            bytes: 0,
        }
    }

    /// How long to wait after so many more bytes.
    fn pause(&mut self, bytes: u64, now: Instant) -> Duration {
        let Some(limit) = self.limit else {
            return Duration::ZERO;
        };
        let elapsed = now.duration_since(self.begun);
        // After a silence, what was missed is not made up for: that would be a burst.
        if elapsed > self.due(limit) + Duration::from_secs(1) {
            (self.begun, self.bytes) = (now, 0);
        }
        self.bytes += bytes;
        self.due(limit)
            .saturating_sub(now.duration_since(self.begun))
    }

    /// When the bytes so far may be here.
    fn due(&self, limit: u64) -> Duration {
        let millis = u128::from(self.bytes) * 1000 / u128::from(limit.max(1));
        Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
    }
}

/// A download from a server into a directory.
pub(crate) struct Download<'a> {
    pub(crate) server: &'a Server,
    pub(crate) directory: &'a Path,
    pub(crate) pace: Pace,
    pub(crate) backoff: Backoff,
}

/// Whether the whole file is here, with the right hash. A wrong one is removed.
pub(crate) fn is_here(directory: &Path, file: &index::File) -> io::Result<bool> {
    let path = directory.join(file.name());
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        opened => {
            let (length, hash) = hash(&mut opened?, u64::MAX)?;
            let is_right = length == file.size && hash.finish().as_ref() == file.sha256.as_slice();
            if !is_right {
                fs::remove_file(&path)?;
            }
            Ok(is_right)
        }
    }
}

/// The bytes of a file that are here, without a look at their hash.
pub(crate) fn present(directory: &Path, file: &index::File) -> u64 {
    let length = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    let whole = length(&directory.join(file.name()));
    let part = length(&part_path(directory, file));
    whole.max(part).min(file.size)
}

fn part_path(directory: &Path, file: &index::File) -> PathBuf {
    directory.join(format!("{}.part", file.name()))
}

/// Hashes up to `most` bytes; returns how many there were.
fn hash(source: &mut impl Read, most: u64) -> io::Result<(u64, digest::Context)> {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 64 << 10];
    let mut length = 0;
    let mut source = source.take(most);
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok((length, hash)),
            n => {
                hash.update(buffer.get(..n).unwrap_or_default());
                length += n as u64;
            }
        }
    }
}

impl Download<'_> {
    /// Brings a file, if it is not here. `progress` hears how many bytes of it are.
    ///
    /// An attempt that brings something new is followed by another without limit; [`MOST_FAILURES`] in a row that do not
    /// are the end.
    pub(crate) async fn run(
        &mut self,
        file: &index::File,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), DownloadError> {
        let path = self.directory.join(file.name());
        if is_here(self.directory, file).map_err(|source| DownloadError::File { path, source })? {
            progress(file.size);
            return Ok(());
        }
        let (mut failures, mut most, mut mixed) = (0, present(self.directory, file), false);
        loop {
            let error = match self.attempt(file, progress).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let now = present(self.directory, file);
            if now > most {
                (failures, most) = (0, now);
                self.backoff.reset();
            }
            failures += 1;
            let (is_transient, error) = match error {
                // Parts of two versions of the server's file do not fit together: all of it once more, but only once.
                Failure::Mixed(error) => (!std::mem::replace(&mut mixed, true), error),
                Failure::Plain(error) => (error.is_transient(), error),
            };
            if !is_transient || failures >= MOST_FAILURES {
                return Err(error);
            }
            let pause = match error {
                DownloadError::Busy { after, .. } => after,
                _ => self.backoff.next_delay(),
            };
            info!("{error}; trying again");
            sleep(pause).await;
        }
    }

    async fn attempt(
        &mut self,
        file: &index::File,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Failure> {
        let mut part = Part::open(self.directory, file)?;
        let resumed = part.length > 0;
        if part.length < file.size {
            let tag = part.tag();
            let from = resumed.then_some(From {
                byte: part.length,
                tag: tag.as_deref(),
            });
            let mut reply = self.server.get(&file.path, from).await?;
            self.check(&reply, file, &mut part, resumed)?;
            part.set_tag(tag_of(&reply.headers))?;
            progress(part.length);
            while let Some(bytes) = reply.next().await? {
                if part.length + bytes.len() as u64 > file.size {
                    let found = part.length + bytes.len() as u64;
                    part.reset()?;
                    return Err(self.size(file, found).into());
                }
                part.write(&bytes)?;
                progress(part.length);
                let pause = self.pace.pause(bytes.len() as u64, Instant::now());
                if !pause.is_zero() {
                    sleep(pause).await;
                }
            }
        }
        if part.length < file.size {
            return Err(Failure::Plain(DownloadError::Short {
                url: self.server.url(&file.path),
                found: part.length,
                size: file.size,
            }));
        }
        let found = part.hash.clone().finish();
        if found.as_ref() != file.sha256.as_slice() {
            part.reset()?;
            let error = DownloadError::Hash {
                url: self.server.url(&file.path),
                found: index::hex(found.as_ref()),
                expected: index::hex(&file.sha256),
            };
            return Err(match resumed {
                true => Failure::Mixed(error),
                false => Failure::Plain(error),
            });
        }
        Ok(part.finish()?)
    }

    fn size(&self, file: &index::File, found: u64) -> DownloadError {
        DownloadError::Size {
            url: self.server.url(&file.path),
            found,
            size: file.size,
        }
    }

    /// Whether the answer goes on where the part ends, or starts from the beginning: then the part is emptied.
    fn check(
        &self,
        reply: &Reply,
        file: &index::File,
        part: &mut Part,
        resumed: bool,
    ) -> Result<(), DownloadError> {
        let url = self.server.url(&file.path);
        let header = |name: HeaderName| {
            let value = reply.headers.get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        match reply.status {
            206 if resumed => {
                let range = header(CONTENT_RANGE).unwrap_or_default();
                let size = range
                    .strip_prefix(&format!("bytes {}-{}/", part.length, file.size - 1))
                    .filter(|size| *size == "*" || size.parse() == Ok(file.size));
                if size.is_none() {
                    let asked = part.length;
                    // The next attempt asks for no range.
                    part.reset()?;
                    return Err(DownloadError::Range {
                        url,
                        asked,
                        found: range,
                    });
                }
                Ok(())
            }
            200 => {
                part.reset()?;
                let length = header(CONTENT_LENGTH).and_then(|length| length.parse().ok());
                match length {
                    Some(length) if length != file.size => Err(self.size(file, length)),
                    _ => Ok(()),
                }
            }
            416 if resumed => {
                let asked = part.length;
                part.reset()?;
                let found = header(CONTENT_RANGE).unwrap_or_default();
                let size = found.strip_prefix("bytes */");
                match size.and_then(|size| size.parse().ok()) {
                    Some(size) if size != file.size => Err(self.size(file, size)),
                    _ => Err(DownloadError::Range { url, asked, found }),
                }
            }
            status => {
                let error = ServerError::Status { url, status };
                let secs = header(RETRY_AFTER).and_then(|secs| secs.parse().ok());
                match (error, secs.map(Duration::from_secs)) {
                    (ServerError::Status { url, status }, Some(after)) if status != 404 => {
                        Err(DownloadError::Busy {
                            url,
                            status,
                            after: after.min(LONGEST_PAUSE),
                        })
                    }
                    (error, _) => Err(error.into()),
                }
            }
        }
    }
}

/// Why an attempt failed.
enum Failure {
    /// As the error says.
    Plain(DownloadError),
    /// The parts of several attempts do not make the file.
    Mixed(DownloadError),
}

impl<T: Into<DownloadError>> std::convert::From<T> for Failure {
    fn from(error: T) -> Self {
        Self::Plain(error.into())
    }
}

/// What says which version of a file an answer has: a strong `ETag`, or else the time of its last change (RFC 9110
/// §13.1.5).
fn tag_of(headers: &HeaderMap) -> Option<String> {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok();
    let strong = text(ETAG).filter(|tag| tag.starts_with('"'));
    strong.or(text(LAST_MODIFIED)).map(str::to_owned)
}

/// The part of a file that is here.
struct Part {
    file: File,
    path: PathBuf,
    tag: PathBuf,
    whole: PathBuf,
    length: u64,
    hash: digest::Context,
}

impl Part {
    fn open(directory: &Path, file: &index::File) -> Result<Self, DownloadError> {
        let path = part_path(directory, file);
        let open = || {
            fs::create_dir_all(directory)?;
            let mut opened = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)?;
            let (length, hash) = hash(&mut opened, file.size)?;
            // What an earlier file of this name had too much.
            opened.set_len(length)?;
            opened.seek(SeekFrom::Start(length))?;
            Ok((opened, length, hash))
        };
        match open() {
            Ok((opened, length, hash)) => Ok(Self {
                file: opened,
                tag: directory.join(format!("{}.tag", file.name())),
                whole: directory.join(file.name()),
                path,
                length,
                hash,
            }),
            Err(source) => Err(DownloadError::File { path, source }),
        }
    }

    fn failed(&self, source: io::Error) -> DownloadError {
        DownloadError::File {
            path: self.path.clone(),
            source,
        }
    }

    /// The version of the server's file.
    fn tag(&self) -> Option<String> {
        let tag = fs::read_to_string(&self.tag).ok()?;
        // A line feed would end the header.
        (!tag.is_empty() && tag.bytes().all(|b| (0x20..0x7f).contains(&b))).then_some(tag)
    }

    fn set_tag(&self, tag: Option<String>) -> Result<(), DownloadError> {
        let written = match tag {
            Some(tag) => fs::write(&self.tag, tag),
            None => remove_if_there(&self.tag),
        };
        written.map_err(|error| self.failed(error))
    }

    /// Starts from nothing.
    fn reset(&mut self) -> Result<(), DownloadError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        emptied.map_err(|error| self.failed(error))?;
        remove_if_there(&self.tag).map_err(|error| self.failed(error))?;
        self.length = 0;
        self.hash = digest::Context::new(&digest::SHA256);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DownloadError> {
        let written = self.file.write_all(bytes);
        written.map_err(|error| self.failed(error))?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// The file is whole and right: gives it its name.
    fn finish(self) -> Result<(), DownloadError> {
        let finished = self.file.sync_all().and_then(|()| {
            fs::rename(&self.path, &self.whole)?;
            remove_if_there(&self.tag)
        });
        finished.map_err(|error| self.failed(error))
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
