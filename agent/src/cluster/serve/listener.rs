//! Where connections come from: an address, or a socket from the service manager.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{FromRawFd, OwnedFd};

use thiserror::Error;
use tokio::net::TcpListener;

use crate::settings::Listen;

/// Cannot listen.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The address is in use, or not one of this host's.
    #[error("failed to listen on {address}")]
    Bind {
        /// The address.
        address: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The service manager did not pass this descriptor.
    #[error(
        "remote.listen = fd://{number}: the service manager gave {given} sockets; expected fd://3 to fd://{}, and a \
         socket unit",
        given + 2
    )]
    Descriptor {
        /// The descriptor's number.
        number: u16,
        /// How many it passed.
        given: usize,
    },
    /// The descriptor is not a listening socket.
    #[error("remote.listen = fd://{number}: it is not a listening TCP socket")]
    NotListening {
        /// The descriptor's number.
        number: u16,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Opens the configured socket. Also returns its address.
pub(super) async fn open(listen: &Listen) -> Result<(TcpListener, SocketAddr), ListenError> {
    match listen {
        Listen::Address(address) => {
            let failed = |source| ListenError::Bind {
                address: address.clone(),
                source,
            };
            let bound = match address.strip_prefix(':') {
                // All addresses, as in Go: including IPv6 if the kernel has it.
                Some(port) => match TcpListener::bind(format!("[::]:{port}")).await {
                    Ok(listener) => Ok(listener),
                    Err(_) => TcpListener::bind(format!("0.0.0.0:{port}")).await,
                },
                None => TcpListener::bind(address.as_str()).await,
            };
            let listener = bound.map_err(failed)?;
            let local = listener.local_addr().map_err(failed)?;
            Ok((listener, local))
        }
        Listen::Descriptor(number) => inherited(*number),
    }
}

fn inherited(number: u16) -> Result<(TcpListener, SocketAddr), ListenError> {
    let failed = |source| ListenError::NotListening { number, source };
    let given = sd_notify::listen_fds().map_err(failed)?.len();
    let index = usize::from(number).saturating_sub(3);
    if index >= given {
        return Err(ListenError::Descriptor { number, given });
    }
    // SAFETY: the service manager opened it for this process, and no other code here takes it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number.into()) };
    let listener = StdListener::from(descriptor);
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = TcpListener::from_std(listener).map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    Ok((listener, local))
}
