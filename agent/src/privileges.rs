//! Giving up every privilege that the agent does not use.
//!
//! Capabilities belong to a thread, so this must happen in `main`, before a runtime or any thread exists; all later
//! threads and children inherit the result.

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::geteuid;
use thiserror::Error;
use tracing::debug;

/// What the agent uses: links, addresses, routes, neighbours and nftables need `CAP_NET_ADMIN`; raw sockets need
/// `CAP_NET_RAW`.
const NEEDED: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW];

/// The privileges cannot be restricted, or too few are there.
#[derive(Debug, Error)]
pub enum Error {
    /// The process was not started with what it cannot work without.
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

/// Reduces this thread, and all that it starts, to `CAP_NET_ADMIN` and `CAP_NET_RAW`, for good.
///
/// `nft` must work as our child. Started by root it gets what permitted and bounding set leave, so the ambient set is
/// emptied; started by another user it would get nothing, so there the two capabilities are made ambient
/// (capabilities(7), "Transformation of capabilities during execve()"). The bounding set can only be reduced while
/// `CAP_SETPCAP` is held; where a service manager withheld that, it has set the bounding set itself.
///
/// # Errors
/// [`Error::Missing`] without `CAP_NET_ADMIN`, [`Error::Refused`] when the kernel refuses to take something away. A
/// missing `CAP_NET_RAW` is no error.
pub fn restrict() -> Result<(), Error> {
    let permitted = read(CapSet::Permitted)?;
    let kept: CapsHashSet = NEEDED
        .into_iter()
        .filter(|capability| permitted.contains(capability))
        .collect();
    if !kept.contains(&Capability::CAP_NET_ADMIN) {
        return Err(Error::Missing(Capability::CAP_NET_ADMIN));
    }
    // The order matters: the bounding set needs CAP_SETPCAP, and a set must not hold more than the one it draws from.
    restrict_bounding_set(&kept)?;
    caps::clear(None, CapSet::Ambient).map_err(refused("empty the ambient capability set"))?;
    for (set, action) in [
        (CapSet::Effective, "reduce the effective capability set"),
        (CapSet::Inheritable, "reduce the inheritable capability set"),
        (CapSet::Permitted, "reduce the permitted capability set"),
    ] {
        caps::set(None, set, &kept).map_err(refused(action))?;
    }
    if !geteuid().is_root() {
        caps::set(None, CapSet::Ambient, &kept).map_err(refused("set the ambient capabilities"))?;
    }
    Ok(())
}

fn restrict_bounding_set(kept: &CapsHashSet) -> Result<(), Error> {
    let superfluous: Vec<Capability> = read(CapSet::Bounding)?.difference(kept).copied().collect();
    if !read(CapSet::Effective)?.contains(&Capability::CAP_SETPCAP) {
        if !superfluous.is_empty() {
            debug!(
                ?superfluous,
                "the bounding set stays as it is, for lack of CAP_SETPCAP"
            );
        }
        return Ok(());
    }
    for capability in superfluous {
        caps::drop(None, CapSet::Bounding, capability)
            .map_err(refused("reduce the capability bounding set"))?;
    }
    Ok(())
}

fn read(set: CapSet) -> Result<CapsHashSet, Error> {
    caps::read(None, set).map_err(refused("read the capability sets"))
}

fn refused(action: &'static str) -> impl FnOnce(caps::errors::CapsError) -> Error {
    move |source| Error::Refused { action, source }
}
