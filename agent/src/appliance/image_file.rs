//! Image files, before a machine has them: `selvage image embed` puts a config onto the EFI system partition of one.
//!
//! systemd-stub(7) hands what is in [`DIRECTORY`] there to the initrd as credentials, and the first boot takes the
//! config from them (see [`crate::appliance::metadata::user_data`]). Nothing is mounted, so nobody need be root. The
//! image is copied, changed in the copy, read back, and replaced by the copy: whoever looks sees the old image or the
//! new one.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::{FileExt, FileTypeExt, fchown};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use thiserror::Error;

use self::esp::Esp;
pub use self::esp::Fault;
use super::ignition;
use super::metadata::user_data::CREDENTIAL;

mod esp;

/// Where on the EFI system partition credentials are.
const DIRECTORY: &str = "loader/credentials";

/// What the files of other kinds of image begin with, what such a file is called, and what makes a raw image of it.
const OTHER_KINDS: [(&[u8], &str, &str); 6] = [
    (b"QFI\xfb", "a qcow2 image", "qemu-img convert -O raw"),
    (b"KDMV", "a VMDK image", "qemu-img convert -O raw"),
    (b"vhdxfile", "a VHDX image", "qemu-img convert -O raw"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", "zstd -d"),
    (b"\xfd7zXZ\0", "packed by xz", "xz -d"),
    (
        b"\x1f\x8b",
        "packed by gzip",
        "gzip -d, or take the .raw.zst",
    ),
];

/// Why a config is not embedded. The image is then as it was.
#[derive(Debug, Error)]
pub enum Error {
    /// The config cannot be read, or machines would refuse it.
    #[error(transparent)]
    Config(#[from] ignition::Error),
    /// The config says nothing.
    #[error("{} is empty: a machine with it would stop at its first boot", .0.display())]
    Empty(PathBuf),
    /// A file cannot be read or written.
    #[error("failed to {verb} {}", path.display())]
    Access {
        /// `open`, `copy` or `replace`.
        verb: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not a file.
    #[error("{} is {is}: name an image file, and write that to disks", path.display())]
    NoFile {
        /// What was named.
        path: PathBuf,
        /// What it is instead.
        is: &'static str,
    },
    /// An image, but not a raw one.
    #[error("{} is {is}: make it a raw image ({how})", path.display())]
    NotRaw {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        is: &'static str,
        /// A command that makes a raw image of it.
        how: &'static str,
    },
    /// Not an image of ours.
    #[error(
        "{} is no disk image of Selvage: {fault}; `make image` leaves one at target/image/selvage.raw",
        path.display()
    )]
    NotImage {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: Fault,
    },
    /// The EFI system partition does not take it.
    #[error("failed to put the config onto the EFI system partition of {}", path.display())]
    Esp {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether the user's config is at fault (exit status 78) or something else (exit status 1).
    pub fn is_bad_configuration(&self) -> bool {
        match self {
            Self::Config(error) => error.is_bad_configuration(),
            Self::Empty(_) => true,
            _ => false,
        }
    }
}

/// Puts the Ignition config in the file `config` onto the EFI system partition of the image file `disk`, in place of
/// one that is there, and says so. The config is checked before, with one line per finding.
///
/// # Errors
/// When machines would refuse the config, when `disk` is no raw image of ours, and when the new image cannot be
/// written. The image is then as it was.
pub fn embed(disk: &Path, config: &Path, output: &mut impl Write) -> Result<(), Error> {
    let text = ignition::checked(config, output)?;
    if text.trim().is_empty() {
        return Err(Error::Empty(config.to_owned()));
    }
    // The file itself is replaced, and not a link to it.
    let disk = disk
        .canonicalize()
        .map_err(|source| access("open", disk, source))?;
    let image = open(&disk)?;
    let unusable = |fault| Error::NotImage {
        path: disk.clone(),
        fault,
    };
    let start = esp::start(&image).map_err(|source| access("read", &disk, source))?;
    let start = start.map_err(unusable)?;

    let directory = disk.parent().unwrap_or(Path::new("/"));
    let copied = tempfile::NamedTempFile::new_in(directory).and_then(|copy| {
        copy_data(&image, copy.as_file())?;
        Ok(copy)
    });
    let copy = copied.map_err(|source| access("copy", &disk, source))?;
    let failed = |source| Error::Esp {
        path: disk.clone(),
        source,
    };
    let esp = Esp::new(copy.path(), start);
    if !esp.has_uki().map_err(failed)? {
        return Err(unusable(Fault::NoUki));
    }
    let path = format!("{DIRECTORY}/{CREDENTIAL}.cred");
    let old = esp.read(&path).map_err(failed)?;
    esp.write(&path, text.as_bytes()).map_err(failed)?;
    replace(&disk, &image, copy).map_err(|source| access("replace", &disk, source))?;

    let bytes = text.len();
    let instead = match old {
        Some(old) => format!(", in place of one of {} bytes", old.len()),
        None => String::new(),
    };
    writeln!(
        output,
        "{}: machines take the config at their first boot ({path} on the EFI system partition, {bytes} bytes{instead})",
        disk.display()
    )
    .map_err(|error| ignition::Error::Output(error).into())
}

fn access(verb: &'static str, path: &Path, source: io::Error) -> Error {
    let path = path.to_owned();
    Error::Access { verb, path, source }
}

/// Opens what is a file and may be a raw image.
fn open(path: &Path) -> Result<File, Error> {
    let metadata = fs::metadata(path).map_err(|source| access("open", path, source))?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        let is = match () {
            () if kind.is_dir() => "a directory",
            () if kind.is_block_device() => "a block device",
            () => "no regular file",
        };
        let path = path.to_owned();
        return Err(Error::NoFile { path, is });
    }
    let file = File::open(path).map_err(|source| access("open", path, source))?;
    let mut start = [0; 8];
    // A shorter file has no partition table either.
    if file.read_exact_at(&mut start, 0).is_ok() {
        let mut kinds = OTHER_KINDS.iter();
        if let Some((_, is, how)) = kinds.find(|(magic, ..)| start.starts_with(magic)) {
            let path = path.to_owned();
            return Err(Error::NotRaw { path, is, how });
        }
    }
    Ok(file)
}

/// Copies what a file has, and leaves its holes holes.
fn copy_data(mut from: &File, mut to: &File) -> io::Result<()> {
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut hole = 0;
    while hole < size {
        let data = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(hole)) {
            Ok(data) => data,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        hole = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(data))?;
        from.seek(SeekFrom::Start(data))?;
        to.seek(SeekFrom::Start(data))?;
        let copied = io::copy(&mut from.take(hole - data), &mut to)?;
        if copied != hole - data {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
    }
    Ok(())
}

/// Puts the copy in the image's place, with its mode, and its owner where we may give files away.
fn replace(path: &Path, image: &File, copy: tempfile::NamedTempFile) -> io::Result<()> {
    let metadata = image.metadata()?;
    // Only root may. For others the file is theirs, as any that they write.
    let _ = fchown(copy.as_file(), Some(metadata.uid()), Some(metadata.gid()));
    copy.as_file().set_permissions(metadata.permissions())?;
    copy.as_file().sync_all()?;
    copy.persist(path).map_err(|error| error.error)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests;
