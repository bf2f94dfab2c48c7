//! Drops every capability that the agent does not need.
//!
//! Capabilities belong to threads, so this starts in `main`, before a runtime or another thread exists; later threads
//! and children inherit the result. It takes two steps, because the backend, and with it part of the needs, is known
//! only after the network config was read.
//!
//! 1. [`Privileges::restrict`] drops from the agent's effective set what the settings do not need.
//! 2. [`Privileges::settle`] drops the rest for good, from the permitted and bounding sets, unless the backend is
//!    `extension`: its commands get all capabilities that the agent was started with, as in flannel.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat, geteuid};
use thiserror::Error;
use tracing::debug;

use crate::plan::backend::BackendConfig;
use crate::settings::Settings;

/// What every agent needs: `CAP_NET_ADMIN` for links, addresses, routes, neighbors and nftables, `CAP_NET_RAW` for raw
/// sockets.
const NEEDED: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW];

/// The first port that needs no privilege, unless `net.ipv4.ip_unprivileged_port_start` says otherwise.
const FIRST_OPEN_PORT: u16 = 1024;

/// The capabilities cannot be dropped, or a required one is missing.
#[derive(Debug, Error)]
pub enum Error {
    /// A required capability is missing.
    #[error(
        "the capability {0} is missing: run as root, or as a service with AmbientCapabilities={0}"
    )]
    Missing(Capability),
    /// The kernel refused.
    #[error("failed to {action}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        #[source]
        source: caps::errors::CapsError,
    },
}

/// The capabilities that this process was started with, and those that the agent keeps for itself.
#[derive(Clone, Debug)]
pub struct Privileges {
    /// The permitted set at the start.
    initial: CapsHashSet,
    /// What the agent needs with any backend.
    base: CapsHashSet,
}

impl Privileges {
    /// Reduces the effective set of this thread, and of all threads that it starts, to what the settings need:
    ///
    /// | capability | kept for |
    /// |---|---|
    /// | `CAP_NET_ADMIN`, `CAP_NET_RAW` | every agent |
    /// | `CAP_NET_BIND_SERVICE` | health endpoints on a port below 1024 |
    /// | `CAP_DAC_READ_SEARCH` | certificates, keys and passwords, which a reload reads again and whose owner may change; settings `files`, a subnet file or state of another user |
    /// | `CAP_DAC_OVERRIDE` | a subnet file, state directory or socket in a directory that only its owner can write to |
    /// | `CAP_FOWNER` | another user's subnet file in a sticky directory such as `/tmp` |
    ///
    /// # Errors
    /// [`Error::Missing`] without `CAP_NET_ADMIN`, [`Error::Refused`] if the kernel refuses to drop something. Any
    /// other missing capability is not an error here: the operation that needs it fails.
    pub fn restrict(settings: &Settings, files: &[PathBuf]) -> Result<Self, Error> {
        let mut privileges = Self::bare()?;
        let needs = needs(settings, files);
        let had = needs.intersection(&privileges.initial);
        privileges.base.extend(had.copied());
        set(CapSet::Effective, &privileges.base)?;
        Ok(privileges)
    }

    /// As [`Self::restrict`], with settings that need nothing.
    ///
    /// # Errors
    /// As [`Self::restrict`].
    pub fn bare() -> Result<Self, Error> {
        let initial = read(CapSet::Permitted)?;
        let had = |capability: &Capability| initial.contains(capability);
        let base: CapsHashSet = NEEDED.into_iter().filter(had).collect();
        if !base.contains(&Capability::CAP_NET_ADMIN) {
            return Err(Error::Missing(Capability::CAP_NET_ADMIN));
        }
        set(CapSet::Effective, &base)?;
        Ok(Self { initial, base })
    }

    /// Drops for good what neither the settings nor this backend need. Call it before the backend is opened, and again
    /// for a new backend, which cannot get back what was dropped before.
    ///
    /// iptables must work as our child process. Under root it gets the intersection of the permitted and bounding sets, so
    /// the ambient set is emptied. Under another user it would get nothing, so the capabilities become ambient
    /// (capabilities(7), "Transformation of capabilities during execve()"). With `no_new_privs` a child gets at most
    /// the permitted set, so `extension` must keep all of it. Reducing the bounding set needs `CAP_SETPCAP`; a service
    /// manager that withholds it has set the bounding set itself.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn settle(&self, backend: &BackendConfig) -> Result<(), Error> {
        let permitted = read(CapSet::Permitted)?;
        let mut own = self.base.clone();
        if needs_bind(backend) {
            own.insert(Capability::CAP_NET_BIND_SERVICE);
        }
        let own: CapsHashSet = own.intersection(&permitted).copied().collect();
        if backend.definition().runs_commands {
            set(CapSet::Effective, &own)?;
            return pass_on(&permitted);
        }
        // Order: dropping from the bounding set needs CAP_SETPCAP in the effective set, and the other sets must stay
        // subsets of the permitted one.
        restrict_bounding_set(&permitted, &own)?;
        caps::clear(None, CapSet::Ambient).map_err(refused("empty the ambient capability set"))?;
        for which in [CapSet::Effective, CapSet::Inheritable, CapSet::Permitted] {
            set(which, &own)?;
        }
        pass_on(&own)
    }

    /// The capabilities that were dropped for an earlier backend and that this one needs.
    ///
    /// # Errors
    /// [`Error::Refused`] if the sets cannot be read.
    pub fn lost_for(&self, backend: &BackendConfig) -> Result<Option<&'static str>, Error> {
        let permitted = read(CapSet::Permitted)?;
        let lost =
            |capability| self.initial.contains(&capability) && !permitted.contains(&capability);
        if backend.definition().runs_commands && permitted != self.initial {
            return Ok(Some("the privileges for its commands"));
        }
        let needs_port = needs_bind(backend) && lost(Capability::CAP_NET_BIND_SERVICE);
        Ok(needs_port.then_some("the privileges for a port below 1024"))
    }
}

/// Whether the backend's port is privileged. The kernel checks that also for sockets that it opens itself, as for vxlan
/// and wireguard.
fn needs_bind(backend: &BackendConfig) -> bool {
    backend.port().is_some_and(|port| port < FIRST_OPEN_PORT)
}

/// Makes the capabilities available to children if we are not root.
fn pass_on(capabilities: &CapsHashSet) -> Result<(), Error> {
    if geteuid().is_root() {
        return Ok(());
    }
    set(CapSet::Inheritable, capabilities)?;
    set(CapSet::Ambient, capabilities)
}

fn restrict_bounding_set(permitted: &CapsHashSet, kept: &CapsHashSet) -> Result<(), Error> {
    let superfluous: Vec<Capability> = read(CapSet::Bounding)?.difference(kept).copied().collect();
    if !permitted.contains(&Capability::CAP_SETPCAP) {
        if !superfluous.is_empty() {
            debug!(
                ?superfluous,
                "cannot reduce the bounding set without CAP_SETPCAP"
            );
        }
        return Ok(());
    }
    caps::raise(None, CapSet::Effective, Capability::CAP_SETPCAP)
        .map_err(refused("make CAP_SETPCAP effective"))?;
    for capability in superfluous {
        caps::drop(None, CapSet::Bounding, capability)
            .map_err(refused("reduce the capability bounding set"))?;
    }
    Ok(())
}

/// What the settings need besides [`NEEDED`]. Call it while only that set is effective: it asks the kernel what that
/// denies.
fn needs(settings: &Settings, sources: &[PathBuf]) -> CapsHashSet {
    let mut needs = CapsHashSet::new();
    let health = settings.health.listen().map(|address| address.port());
    if health.is_some_and(|port| (1..FIRST_OPEN_PORT).contains(&port)) {
        needs.insert(Capability::CAP_NET_BIND_SERVICE);
    }
    let (etcd, remote, files) = (&settings.etcd, &settings.remote, &settings.files);
    let secrets = [
        &etcd.cafile,
        &etcd.certfile,
        &etcd.keyfile,
        &remote.cafile,
        &remote.certfile,
        &remote.keyfile,
        &settings.kubernetes.kubeconfig,
        &settings.cloud.credentials_file,
    ];
    let state = fs::read_dir(&files.state_dir).into_iter().flatten();
    let mut state = state.flatten().map(|entry| entry.path());
    let unreadable = |path: &Path| is_denied(path, AccessFlags::R_OK);
    if secrets.into_iter().any(Option::is_some)
        || etcd.password.is_some()
        || unreadable(&files.subnet_file)
        || state.any(|path| unreadable(&path))
        || sources.iter().any(|path| unreadable(path))
    {
        needs.insert(Capability::CAP_DAC_READ_SEARCH);
    }
    let directories = [
        files.subnet_file.parent(),
        Some(files.state_dir.as_path()),
        files.socket.parent(),
    ];
    if directories.into_iter().flatten().any(is_closed) {
        needs.insert(Capability::CAP_DAC_OVERRIDE);
    }
    if is_sticky(&files.subnet_file) {
        needs.insert(Capability::CAP_FOWNER);
    }
    needs
}

/// Whether no file can be created in a directory, or in its nearest existing parent.
fn is_closed(directory: &Path) -> bool {
    let there = |path: &&Path| fs::symlink_metadata(path).is_ok();
    let existing = directory.ancestors().find(there);
    existing.is_some_and(|path| is_denied(path, AccessFlags::W_OK | AccessFlags::X_OK))
}

/// Whether the capabilities in effect do not allow this access to the file.
fn is_denied(path: &Path, wanted: AccessFlags) -> bool {
    faccessat(AT_FDCWD, path, wanted, AtFlags::AT_EACCESS) == Err(Errno::EACCES)
}

/// Whether the file is another user's in another user's sticky directory, where only owners may replace files.
fn is_sticky(file: &Path) -> bool {
    const STICKY: u32 = 0o1000;
    let (Some(directory), Ok(file)) = (file.parent(), fs::symlink_metadata(file)) else {
        return false;
    };
    let Ok(directory) = fs::metadata(directory) else {
        return false;
    };
    let own = geteuid().as_raw();
    directory.mode() & STICKY != 0 && file.uid() != own && directory.uid() != own
}

fn read(set: CapSet) -> Result<CapsHashSet, Error> {
    caps::read(None, set).map_err(refused("read the capability sets"))
}

fn set(which: CapSet, capabilities: &CapsHashSet) -> Result<(), Error> {
    let action = match which {
        CapSet::Ambient => "set the ambient capabilities",
        CapSet::Bounding => "reduce the capability bounding set",
        CapSet::Effective => "reduce the effective capability set",
        CapSet::Inheritable => "reduce the inheritable capability set",
        CapSet::Permitted => "reduce the permitted capability set",
    };
    caps::set(None, which, capabilities).map_err(refused(action))
}

fn refused(action: &'static str) -> impl FnOnce(caps::errors::CapsError) -> Error {
    move |source| Error::Refused { action, source }
}
