//! Prepares the root file system for switch_root: `selvage sysroot`, which the initrd runs at every boot.
//!
//! The root partition starts empty and holds only the data of this machine; `/usr` comes from the image and is already
//! mounted. `/etc` is an overlay: the lower layer is the image's defaults in `/usr`, the upper layer the machine's
//! changes.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sys_mount::{Mount, MountFlags};
use thiserror::Error;

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
const LOWER: &str = "usr/share/selvage/etc";
/// The machine's changes to `/etc`.
const UPPER: &str = ".selvage/etc";
/// The work directory of overlayfs, which must be on the same file system.
const WORK: &str = ".selvage/etc.work";
/// Written by the last step of provisioning.
const PROVISIONED: &str = ".selvage/provisioned";

/// Lays out the root file system mounted at `root`, with the image's `/usr` mounted inside, and mounts `/etc`.
///
/// On the first boot the machine has no data to lose. What an interrupted provisioning left behind is removed, because
/// Ignition cannot run twice on the same root, and the files that Ignition needs are created.
pub fn prepare(root: &Path, first_boot: bool, output: &mut impl Write) -> Result<(), Error> {
    let lower = root.join(LOWER);
    if !lower.is_dir() {
        return Err(Error::NoDefaults(lower));
    }
    if first_boot && root.join(".selvage").exists() && !root.join(PROVISIONED).exists() {
        writeln!(
            output,
            "an earlier provisioning was interrupted: clearing the root partition"
        )?;
        clear(root)?;
    }
    create_layout(root)?;
    mount_etc(root)?;
    if first_boot {
        prepare_for_ignition(root)
    } else {
        Ok(())
    }
}

/// Removes everything except other file systems mounted below.
fn clear(root: &Path) -> Result<(), Error> {
    let device = fs::symlink_metadata(root).map_err(at("read", root))?.dev();
    for entry in fs::read_dir(root).map_err(at("list", root))? {
        let path = entry.map_err(at("list", root))?.path();
        let metadata = fs::symlink_metadata(&path).map_err(at("read", &path))?;
        if metadata.dev() != device {
            continue;
        }
        let removed = if metadata.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(at("remove", &path))?;
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
    let etc = root.join("etc");
    let layer = |name: &str| root.join(name).display().to_string();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        layer(LOWER),
        layer(UPPER),
        layer(WORK)
    );
    Mount::builder()
        .fstype("overlay")
        .flags(MountFlags::empty())
        .data(&options)
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
