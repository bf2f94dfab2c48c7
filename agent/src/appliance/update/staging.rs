//! What of a release is on this disk: the packed files as they were downloaded, and the unpacked ones that
//! systemd-sysupdate copies into a slot.
//!
//! systemd-import, which sysupdate calls for each file, unpacks xz, gzip and bzip2, but copies zstd as it is (257.13):
//! a slot would be filled with the packed bytes. So they are unpacked here, and both hashes are checked once more while
//! that is done: days may lie between a download and its window.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use ring::digest;
use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use thiserror::Error;

use crate::appliance::update::download;
use crate::appliance::update::index::{self, Release};
use crate::appliance::update::version::Version;

/// What stays free on the disk, in bytes: an update must not be what fills it.
const RESERVE: u64 = 64 << 20;

/// The largest window of a zstd frame: memory that unpacking takes. `zstd -19` uses 8 MiB, `--long` 128 MiB.
const MOST_WINDOW: u64 = 64 << 20;

/// Why a release cannot be staged.
#[derive(Debug, Error)]
pub enum StagingError {
    /// The disk has too little space.
    #[error(
        "{path}: the update needs {} MB on this disk, {} MB are free and {} MB of these must stay so: remove images or \
         logs (docker system prune, journalctl --vacuum-size=100M)",
        mb(.needed), mb(.free), mb(&RESERVE)
    )]
    Space {
        /// The directory.
        path: PathBuf,
        /// Bytes that are missing.
        needed: u64,
        /// Bytes that are free.
        free: u64,
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
    /// A file has changed since it was downloaded, or cannot be unpacked.
    #[error("{path} {problem}: it is removed, and downloaded again by the next try")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file unpacks to something else than what was signed.
    #[error("{name} unpacks to something else than the signed index says: {problem}")]
    Unpacked {
        /// Which.
        name: String,
        /// What is wrong.
        problem: String,
    },
}

/// Whether a disk is full. Then containers need the space more than an update does: it gives back all that it took.
pub(crate) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

fn mb(bytes: &u64) -> u64 {
    bytes.div_ceil(1_000_000)
}

/// The directories of one machine.
#[derive(Clone, Debug)]
pub struct Staging {
    /// Packed files.
    pub(crate) packed: PathBuf,
    /// Unpacked files: `Path=` of the transfer definitions.
    pub(crate) unpacked: PathBuf,
}

impl Staging {
    /// Those below the directory of updates.
    pub fn new(directory: &Path) -> Self {
        Self {
            packed: directory.join("download"),
            unpacked: directory.join("staging"),
        }
    }

    /// The directory of a release's packed files.
    pub(crate) fn of(&self, release: &Release) -> PathBuf {
        self.packed.join(release.stem())
    }

    /// The unpacked UKI of a version.
    pub(crate) fn uki(&self, version: &Version) -> PathBuf {
        self.unpacked.join(format!("selvage_{version}.efi"))
    }

    /// Whether all files of a release are downloaded; their hashes are not looked at.
    pub fn is_downloaded(&self, release: &Release) -> bool {
        let directory = self.of(release);
        let whole = |file: &index::File| {
            let length = fs::metadata(directory.join(file.name())).map(|file| file.len());
            length.is_ok_and(|length| length == file.size)
        };
        release.files.iter().all(whole)
    }

    /// Checks that the rest of a release, and what it unpacks to, fits on the disk.
    pub(crate) fn check_space(&self, release: &Release) -> Result<(), StagingError> {
        let directory = self.of(release);
        let failed = |source| StagingError::File {
            path: directory.clone(),
            source,
        };
        fs::create_dir_all(&directory).map_err(failed)?;
        let disk = statvfs(&directory).map_err(|error| failed(error.into()))?;
        let free = disk.blocks_available() * disk.fragment_size();
        let here: u64 = (release.files.iter())
            .map(|file| download::present(&directory, file))
            .sum();
        let needed = release.size().saturating_sub(here) + release.unpacked_size();
        if free < needed + RESERVE {
            let path = directory;
            return Err(StagingError::Space { path, needed, free });
        }
        Ok(())
    }

    /// Unpacks a downloaded release. `progress` hears how many bytes were written.
    pub(crate) fn unpack(
        &self,
        release: &Release,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), StagingError> {
        self.clear_unpacked()?;
        let mut before = 0;
        for file in &release.files {
            let mut hear = |bytes| progress(before + bytes);
            if let Err(error) = self.unpack_file(&self.of(release), file, &mut hear) {
                let _ = match &error {
                    StagingError::File { source, .. } if is_full(source) => self.keep_only(None),
                    _ => self.clear_unpacked(),
                };
                return Err(error);
            }
            before += file.unpacked_size;
        }
        Ok(())
    }

    fn unpack_file(
        &self,
        directory: &Path,
        file: &index::File,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), StagingError> {
        let source = directory.join(file.name());
        let target = self.unpacked.join(file.unpacked_name());
        // The name matches no pattern of a transfer.
        let unfinished = self.unpacked.join(format!(".{}", file.unpacked_name()));
        let writing = |source| StagingError::File {
            path: target.clone(),
            source,
        };
        let damaged = |problem: String| {
            let _ = fs::remove_file(&source);
            let path = source.clone();
            StagingError::Damaged { path, problem }
        };
        let opened = File::open(&source).map_err(|error| damaged(error.to_string()))?;
        let mut packed = BufReader::with_capacity(64 << 10, Hashed::new(opened));
        fs::create_dir_all(&self.unpacked).map_err(writing)?;
        let mut output = File::create(&unfinished).map_err(writing)?;
        let unpacked = copy(&mut packed, &mut output, file, progress);
        // What comes after the last frame is hashed, too.
        let rest = io::copy(&mut packed, &mut io::sink());
        let Hashed { hash, length, .. } = packed.into_inner();
        if rest.is_err() || length != file.size || hash.finish().as_ref() != file.sha256 {
            return Err(damaged("is not what was downloaded".to_owned()));
        }
        let hash = match unpacked {
            Ok(hash) => hash,
            Err(CopyError::Write(error)) => return Err(writing(error)),
            Err(CopyError::Content(problem)) => {
                let name = file.name().to_owned();
                return Err(StagingError::Unpacked { name, problem });
            }
        };
        if hash.finish().as_ref() != file.unpacked_sha256 {
            return Err(StagingError::Unpacked {
                name: file.name().to_owned(),
                problem: "the SHA-256 differs".to_owned(),
            });
        }
        let finished = output.sync_all();
        finished
            .and_then(|()| fs::rename(&unfinished, &target))
            .map_err(writing)
    }

    /// Removes the unpacked files.
    pub(crate) fn clear_unpacked(&self) -> Result<(), StagingError> {
        clear(&self.unpacked, None)
    }

    /// Removes everything but the packed files of one release.
    pub(crate) fn keep_only(&self, release: Option<&Release>) -> Result<(), StagingError> {
        self.clear_unpacked()?;
        clear(&self.packed, release.map(Release::stem).as_deref())
    }
}

/// Empties a directory, except for the entry `keep`.
fn clear(directory: &Path, keep: Option<&str>) -> Result<(), StagingError> {
    let emptied = || {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if keep.is_some_and(|keep| entry.file_name() == keep) {
                continue;
            }
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    };
    emptied().map_err(|source| StagingError::File {
        path: directory.to_owned(),
        source,
    })
}

enum CopyError {
    Write(io::Error),
    Content(String),
}

/// Unpacks all frames, and no more than the file should have.
fn copy(
    packed: &mut impl BufRead,
    output: &mut impl Write,
    file: &index::File,
    progress: &mut dyn FnMut(u64),
) -> Result<digest::Context, CopyError> {
    let content = |error: &dyn std::fmt::Display| CopyError::Content(error.to_string());
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 256 << 10];
    let mut length = 0;
    loop {
        if packed
            .fill_buf()
            .map_err(|error| content(&error))?
            .is_empty()
        {
            break;
        }
        let frame = StreamingDecoder::new_with_max_window_size(&mut *packed, MOST_WINDOW);
        let mut frame = match frame {
            Ok(frame) => frame,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length,
                ..
            })) => {
                let skipped = io::copy(&mut (&mut *packed).take(length.into()), &mut io::sink());
                skipped.map_err(|error| content(&error))?;
                continue;
            }
            Err(error) => return Err(content(&error)),
        };
        loop {
            let bytes = match frame.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => buffer.get(..n).unwrap_or_default(),
                Err(error) => return Err(content(&error)),
            };
            length += bytes.len() as u64;
            if length > file.unpacked_size {
                return Err(CopyError::Content(format!(
                    "more than {} bytes",
                    file.unpacked_size
                )));
            }
            hash.update(bytes);
            output.write_all(bytes).map_err(CopyError::Write)?;
            progress(length);
        }
    }
    if length < file.unpacked_size {
        return Err(CopyError::Content(format!(
            "{length} of {} bytes",
            file.unpacked_size
        )));
    }
    Ok(hash)
}

/// Hashes what is read.
struct Hashed<R> {
    source: R,
    hash: digest::Context,
    length: u64,
}

impl<R> Hashed<R> {
    fn new(source: R) -> Self {
        Self {
            source,
            hash: digest::Context::new(&digest::SHA256),
            length: 0,
        }
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read(buffer)?;
        self.hash.update(buffer.get(..n).unwrap_or_default());
        self.length += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
