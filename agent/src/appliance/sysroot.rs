//! Prepares the root file system for switch_root: `selvage sysroot`, which the initrd runs at every boot.
//!
//! The root partition starts empty and holds only the data of this machine; `/usr` comes from the image and is already
//! mounted. `/etc` is an overlay: the lower layer is the image's defaults in `/usr`, the upper layer the machine's
//! changes. What a requested reset keeps, and what a new version of the image finds, is settled here, before anything runs
//! from the root.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use sys_mount::{Mount, MountFlags};
use thiserror::Error;

use super::update::state::{State, StateFile};
use super::{etc, reset};
use crate::base::atomic_file;
use crate::base::logging::chain;

/// Why the root file system could not be prepared.
#[derive(Debug, Error)]
pub enum Error {
    /// Failed to create, read or remove a file or directory.
    #[error("failed to {verb} {path}")]
    Path {
        /// The operation.
        verb: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The image has no defaults for `/etc`.
    #[error("{0} does not exist: is the image's /usr mounted?")]
    NoDefaults(PathBuf),
    /// Failed to mount the `/etc` overlay.
    #[error("failed to mount the overlay on {path}")]
    Overlay {
        /// Where `/etc` is.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Standard output is closed.
    #[error("failed to write the output")]
    Output(#[from] io::Error),
}

/// Directories that an empty root partition lacks; the others are links into `/usr`.
const DIRECTORIES: [(&str, u32); 15] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("var", 0o755),
    (".selvage", 0o755),
    (UPPER, 0o755),
    (WORK, 0o755),
];

/// Directories of a merged `/usr` (file-hierarchy(7)).
const LINKS: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// The image's defaults for `/etc`.
const LOWER: &str = etc::DEFAULTS;
/// The machine's changes to `/etc`.
const UPPER: &str = reset::UPPER;
/// The work directory of overlayfs, which must be on the same file system.
const WORK: &str = ".selvage/etc.work";
/// Written by the last step of provisioning.
const PROVISIONED: &str = ".selvage/provisioned";
/// The version of the image that ran last.
const VERSION: &str = ".selvage/version";

/// What this boot is to do besides booting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    /// Provision the machine.
    pub first: bool,
    /// Clear the root partition before, as the boot menu's entry asks for; the request of `selvage reset` is found there.
    pub reset: bool,
}

/// Lays out the root file system mounted at `root`, with the image's `/usr` mounted inside, and mounts `/etc`.
///
/// On the first boot the machine has no data to lose. What an interrupted provisioning left behind is removed, because
/// Ignition cannot run twice on the same root, and the files that Ignition needs are created.
///
/// On any other boot, only what is read must be there: a disk that is full, or that the kernel lets nobody write to, costs
/// what a new version would bring up to date, until a boot that can write. It must not cost the machine.
///
/// # Errors
/// There is no image, `/etc` cannot be mounted, or this is the first boot and the disk cannot be written.
pub fn prepare(root: &Path, boot: Boot, output: &mut impl Write) -> Result<(), Error> {
    let lower = root.join(LOWER);
    if !lower.is_dir() {
        return Err(Error::NoDefaults(lower));
    }
    if boot.first {
        clear_what_is_left(root, boot.reset, output)?;
    }
    match create_layout(root) {
        // Mostly, all is there; what is not may not matter.
        Err(error) if !boot.first => writeln!(output, "going on without: {}", chain(&error))?,
        created => created?,
    }
    let version = new_version(root)?;
    // Another version's defaults say nothing about who wrote a file that is like them: if that version goes again, the file
    // must still be there. Nor is this worth a machine that does not boot: a copy that stays only hides a newer default.
    if version.is_none()
        && let Err(error) = etc::drop_unchanged(&lower, &root.join(UPPER))
    {
        writeln!(
            output,
            "failed to look for unchanged files of /etc: {error}"
        )?;
    }
    match mount_etc(root) {
        Err(error) if !boot.first => {
            let error = chain(&error);
            writeln!(
                output,
                "/etc is read-only in this boot: {error}. Is the disk full (df / and df -i /)?"
            )?;
            mount_etc_read_only(root)?;
        }
        mounted => mounted?,
    }
    if boot.first {
        prepare_for_ignition(root)?;
    }
    let Some(version) = version else {
        return Ok(());
    };
    if boot.first {
        return record_version(root, &version);
    }
    writeln!(
        output,
        "first boot of {version}: bringing /etc and /var up to date"
    )?;
    // In this order: after a power cut or a failure the next boot does both again.
    if let Err(error) = have_updated(root).and_then(|()| record_version(root, &version)) {
        let error = chain(&error);
        writeln!(
            output,
            "skipped, and tried again at the next boot: {error}. Is the disk full (df /)?"
        )?;
    }
    Ok(())
}

/// Remembers which version ran last.
fn record_version(root: &Path, version: &str) -> Result<(), Error> {
    let path = root.join(VERSION);
    atomic_file::replace(&path, format!("{version}\n").as_bytes(), 0o644)
        .map_err(at("write", &path))
}

/// Clears the root partition where a reset is asked for, or an earlier provisioning did not come to its end.
fn clear_what_is_left(root: &Path, reset: bool, output: &mut impl Write) -> Result<(), Error> {
    let request = root.join(reset::FILE);
    let mut requested = reset::requested(root).map_err(at("read", &request))?;
    if requested.is_none() && reset && root.join(PROVISIONED).exists() {
        // A power cut from here on must not leave half of the old machine.
        if let Err(error) = reset::request(root, &[]) {
            let path = request.display();
            writeln!(output, "reset: failed to write {path}: {error}")?;
            // A full disk is a reason for a reset. Without the marker, the next boot clears as well.
            let marker = root.join(PROVISIONED);
            fs::remove_file(&marker).map_err(at("remove", &marker))?;
        }
        requested = Some(Vec::new());
    }
    if let Some(keep) = requested {
        writeln!(output, "reset: clearing the root partition")?;
        for path in &keep {
            writeln!(output, "reset: keeping {}", path.display())?;
        }
        clear(root, &[keep, vec![PathBuf::from(reset::FILE)]].concat())?;
        // A disk that cannot be written stops this boot elsewhere. Too much that is known of updates does not.
        if let Err(error) = StateFile::of(root).change(State::reset) {
            writeln!(output, "failed to reset what is known of updates: {error}")?;
        }
        return Ok(());
    }
    if root.join(".selvage").exists() && !root.join(PROVISIONED).exists() {
        writeln!(
            output,
            "an earlier provisioning was interrupted: clearing the root partition"
        )?;
        clear(root, &[])?;
    }
    Ok(())
}

/// Removes everything except `keep`, relative to `root`, what is always kept, and other file systems mounted below.
fn clear(root: &Path, keep: &[PathBuf]) -> Result<(), Error> {
    let device = fs::symlink_metadata(root).map_err(at("read", root))?.dev();
    let always = reset::ALWAYS_KEPT.map(PathBuf::from);
    clear_directory(root, device, &[keep, &always].concat())
}

fn clear_directory(directory: &Path, device: u64, keep: &[PathBuf]) -> Result<(), Error> {
    for entry in fs::read_dir(directory).map_err(at("list", directory))? {
        let entry = entry.map_err(at("list", directory))?;
        let path = entry.path();
        let metadata = fs::symlink_metadata(&path).map_err(at("read", &path))?;
        let name = PathBuf::from(entry.file_name());
        if metadata.dev() != device || keep.contains(&name) {
            continue;
        }
        let inside: Vec<_> = keep
            .iter()
            .filter_map(|kept| kept.strip_prefix(&name).ok().map(Path::to_owned))
            .collect();
        if metadata.is_dir() && !inside.is_empty() {
            clear_directory(&path, device, &inside)?;
            continue;
        }
        let remove = || match metadata.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        let removed = match remove() {
            // Of a file that chattr(1) made immutable or append-only.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let unlocked = unlock(directory).and_then(|()| unlock_all(&path));
                unlocked.map_err(at("change the attributes of", &path))?;
                remove()
            }
            result => result,
        };
        removed.map_err(at("remove", &path))?;
    }
    Ok(())
}

/// As [`unlock`], and all that is in a directory.
fn unlock_all(path: &Path) -> io::Result<()> {
    unlock(path)?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            unlock_all(&entry?.path())?;
        }
    }
    Ok(())
}

/// Takes the attributes away that keep even root from removing a file, or what is in a directory: immutable and
/// append-only.
fn unlock(path: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(path)?.file_type();
    // Nothing else has them, nor may a device or a pipe be opened to see.
    if !kind.is_dir() && !kind.is_file() {
        return Ok(());
    }
    let file = File::open(path)?;
    let locks = IFlags::IMMUTABLE | IFlags::APPEND;
    let flags = ioctl_getflags(&file)?;
    if flags.intersects(locks) {
        ioctl_setflags(&file, flags - locks)?;
    }
    Ok(())
}

/// The version of the image, if it is another than the last boot's.
fn new_version(root: &Path) -> Result<Option<String>, Error> {
    let path = root.join("usr/lib/os-release");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at("read", &path)(error)),
    };
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("IMAGE_VERSION="))
        .map(|version| version.trim_matches('"').to_owned());
    // A record that is not there or cannot be read is as good as another version.
    let last = fs::read_to_string(root.join(VERSION)).unwrap_or_default();
    Ok(version.filter(|version| last.trim_end() != version))
}

/// Makes systemd run what is to run once after an update of `/usr` (`ConditionNeedsUpdate=`, systemd.unit(5)): it creates
/// users and groups that this version has and the machine has not, among others.
fn have_updated(root: &Path) -> Result<(), Error> {
    for name in ["etc/.updated", "var/.updated"] {
        let path = root.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(at("remove", &path)(error));
            }
            _ => (),
        }
    }
    Ok(())
}

fn create_layout(root: &Path) -> Result<(), Error> {
    for (name, mode) in DIRECTORIES {
        let path = root.join(name);
        if path.is_dir() {
            continue;
        }
        fs::create_dir(&path).map_err(at("create", &path))?;
        // Independent of the umask.
        fs::set_permissions(&path, Permissions::from_mode(mode))
            .map_err(at("set the mode of", &path))?;
    }
    for name in LINKS {
        let path = root.join(name);
        if fs::symlink_metadata(&path).is_err() {
            symlink(Path::new("usr").join(name), &path).map_err(at("create the link", &path))?;
        }
    }
    Ok(())
}

fn mount_etc(root: &Path) -> Result<(), Error> {
    let layer = |name: &str| root.join(name).display().to_string();
    let (lower, upper, work) = (layer(LOWER), layer(UPPER), layer(WORK));
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    mount_overlay(root, &options, MountFlags::empty())
}

/// Needs no space: overlayfs prepares its work directory only where it may write.
fn mount_etc_read_only(root: &Path) -> Result<(), Error> {
    let layer = |name: &str| root.join(name).display().to_string();
    let options = format!("lowerdir={}:{}", layer(UPPER), layer(LOWER));
    mount_overlay(root, &options, MountFlags::RDONLY)
}

fn mount_overlay(root: &Path, options: &str, flags: MountFlags) -> Result<(), Error> {
    let etc = root.join("etc");
    Mount::builder()
        .fstype("overlay")
        .flags(flags)
        .data(options)
        .mount("overlay", &etc)
        .map(drop)
        .map_err(|source| Error::Overlay { path: etc, source })
}

fn prepare_for_ignition(root: &Path) -> Result<(), Error> {
    // An empty /var needs none of the updates that the /var of an older image needs (systemd-update-done.service(8)).
    let stamp = root.join("etc/.updated");
    let copy = root.join("var/.updated");
    if stamp.exists() {
        fs::copy(&stamp, &copy).map_err(at("write", &copy))?;
        let updated = fs::metadata(&stamp).and_then(|metadata| metadata.modified());
        let updated = updated.map_err(at("read", &stamp))?;
        File::options()
            .write(true)
            .open(&copy)
            .and_then(|file| file.set_modified(updated))
            .map_err(at("set the time of", &copy))?;
    }
    // systemd applies presets, including Ignition's, only if there is no machine-id.
    let machine_id = root.join("etc/machine-id");
    match fs::remove_file(&machine_id) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(at("remove", &machine_id)(error))?
        }
        _ => (),
    }
    // Debian's Ignition is built to relabel files for SELinux and fails without this configuration file. The last step
    // of provisioning removes it.
    let selinux = root.join("etc/selinux");
    fs::create_dir_all(&selinux).map_err(at("create", &selinux))?;
    let config = selinux.join("config");
    fs::write(&config, "SELINUX=disabled\nSELINUXTYPE=none\n").map_err(at("write", &config))
}

fn at(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Path { verb, path, source }
}
