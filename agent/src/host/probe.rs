//! Packets that ask peers whether they are there: echo requests, and how packets are read.

pub(crate) mod packet;
pub(crate) mod ping;

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Lets the runtime tell when something comes in.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open for as long as it lives, and always the same.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}
