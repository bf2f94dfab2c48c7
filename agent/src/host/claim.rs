//! What one process of this host has for itself, said by an abstract Unix socket (unix(7)): the name is one network
//! namespace's, as are the devices and networks that it stands for, and it goes with the process however that ends.
//!
//! | name, after `selvage/` | whoever has it |
//! |---|---|
//! | `network/NAME` | is the agent of that network; without NAME, of the default one |
//! | `unnamed/NAME` | is the default network's agent, and would be NAME's if this host had several |
//! | `next-hops/NUMBER` | gives next hops the numbers of that range |
//! | `device/DEVICE` | has that overlay device |
//! | `overlay/CIDR` | has that overlay network |
//!
//! Any user of the host may take a name. So the process that has one is believed only if it is root's or our own user's.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt,
};
use nix::unistd::{Uid, getpid};
use thiserror::Error;
use tracing::warn;

/// What all names begin with.
const PREFIX: &str = "selvage/";

/// The abstract names of this network namespace, among other sockets.
const UNIX_SOCKETS: &str = "/proc/thread-self/net/unix";

/// How often a name is tried that is taken and given free at the same time.
const ROUNDS: u32 = 3;

/// How many connections of those who ask are answered at once: the kernel's limit for a queue (`net.core.somaxconn`).
const BACKLOG: usize = 4096;

/// Why a name was not taken.
#[derive(Debug, Error)]
pub enum Error {
    /// Another process has it.
    #[error("process {0} has it")]
    Taken(i32),
    /// The system has no such sockets, or no more of them.
    #[error("failed to open a socket")]
    Io(#[from] io::Error),
}

/// What this process has.
#[derive(Debug, Default)]
pub struct Claims {
    /// By name. No socket stands behind a name that somebody who is not believed has.
    held: BTreeMap<String, Option<UnixListener>>,
}

/// Who has a name.
enum Holder {
    /// A process that is believed.
    Process(i32),
    /// A process of another user; or this one, which has more than one set of claims in tests alone.
    Nobody,
    /// It let go of it meanwhile.
    Gone,
}

impl Claims {
    /// Takes a name, unless it is taken already.
    ///
    /// # Errors
    /// Another process has it.
    pub(crate) fn take(&mut self, name: &str) -> Result<(), Error> {
        if self.held.contains_key(name) {
            return Ok(());
        }
        let full = format!("{PREFIX}{name}");
        let address = SocketAddr::from_abstract_name(&full)?;
        for round in 1.. {
            let socket = match UnixListener::bind_addr(&address) {
                Ok(socket) => {
                    socket.set_nonblocking(true)?;
                    Some(socket)
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => match holder(&full)? {
                    Holder::Process(id) => return Err(Error::Taken(id)),
                    Holder::Nobody => None,
                    Holder::Gone if round < ROUNDS => continue,
                    // Bound, and listened to by nobody: no agent does that.
                    Holder::Gone => {
                        warn!(
                            "somebody keeps the name {full} without an agent; going on without it"
                        );
                        None
                    }
                },
                Err(error) => return Err(error.into()),
            };
            self.held.insert(name.to_owned(), socket);
            break;
        }
        Ok(())
    }

    /// Whether a name is taken.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.held.contains_key(name)
    }

    /// Lets go of the names that are not to be kept.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.held.retain(|name, _| keep(name));
    }

    /// The taken names that begin like this, without the beginning.
    pub(crate) fn below<'a>(&'a self, start: &'a str) -> impl Iterator<Item = &'a str> {
        self.held
            .keys()
            .filter_map(move |name| name.strip_prefix(start))
    }

    /// Hangs up on those who asked who has the names, so that more of them can.
    pub(crate) fn answer(&self) {
        for socket in self.held.values().flatten() {
            // Whoever asks without an end must not keep us.
            for _ in 0..BACKLOG {
                if socket.accept().is_err() {
                    break;
                }
            }
        }
    }

    /// The names of other processes that begin like this, without the beginning, and who has them.
    pub(crate) fn of_others(&self, start: &str) -> Vec<(String, i32)> {
        let text = unix_sockets();
        let full = format!("@{PREFIX}{start}");
        let mut names: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split_whitespace().nth(7)?.strip_prefix(&full))
            .filter(|name| !self.has(&format!("{start}{name}")))
            .collect();
        names.sort_unstable();
        names.dedup();
        let with_holder = |name: &str| match holder(&format!("{PREFIX}{start}{name}")) {
            Ok(Holder::Process(id)) => Some((name.to_owned(), id)),
            _ => None,
        };
        names.into_iter().filter_map(with_holder).collect()
    }
}

/// The kernel's list of Unix sockets. Where it cannot be read, nobody can be warned.
fn unix_sockets() -> String {
    let text = fs::read(UNIX_SOCKETS).unwrap_or_default();
    // Any program may have a name of any bytes.
    String::from_utf8_lossy(&text).into_owned()
}

/// Asks the kernel who listens at a name.
fn holder(full: &str) -> Result<Holder, Error> {
    let failed = |errno: Errno| Error::Io(errno.into());
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let asking = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed)?;
    let address = UnixAddr::new_abstract(full.as_bytes()).map_err(failed)?;
    match connect(asking.as_raw_fd(), &address) {
        Ok(()) => {}
        Err(Errno::ECONNREFUSED) => return Ok(Holder::Gone),
        // An agent's queue is long and it empties it, so this is none; and who it is cannot be told.
        Err(Errno::EAGAIN) => {
            warn!("whoever has taken the name {full} does not answer; going on without it");
            return Ok(Holder::Nobody);
        }
        Err(errno) => return Err(failed(errno)),
    }
    let credentials = getsockopt(&asking, sockopt::PeerCredentials).map_err(failed)?;
    let (id, user) = (credentials.pid(), Uid::from_raw(credentials.uid()));
    if id == getpid().as_raw() {
        return Ok(Holder::Nobody);
    }
    if !user.is_root() && user != Uid::effective() {
        warn!("process {id} of user {user} has taken the name {full}; going on without it");
        return Ok(Holder::Nobody);
    }
    Ok(Holder::Process(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name that no other test has, in whatever namespace the tests run.
    fn name(test: &str) -> String {
        format!("test/{test}/{}/", std::process::id())
    }

    #[test]
    fn a_name_is_taken_once_and_free_again_when_let_go() {
        let name = name("once");
        let mut claims = Claims::default();
        claims.take(&name).unwrap();
        claims.take(&name).unwrap();
        assert!(claims.has(&name));
        let text = unix_sockets();
        assert!(text.contains(&format!("@{PREFIX}{name}")), "{text}");
        claims.retain(|_| false);
        let text = unix_sockets();
        assert!(!text.contains(&format!("@{PREFIX}{name}")), "{text}");
    }

    #[test]
    fn own_names_are_not_others() {
        let start = name("others");
        let mut claims = Claims::default();
        claims.take(&format!("{start}10.5.0.0/16")).unwrap();
        assert_eq!(claims.of_others(&start), []);
        assert_eq!(claims.below(&start).collect::<Vec<_>>(), ["10.5.0.0/16"]);
        // Another set of claims of this very process is nobody else's.
        assert_eq!(Claims::default().of_others(&start), []);
    }

    #[test]
    fn names_that_are_bound_or_never_answered_keep_nobody_waiting() {
        let bind = |full: &str, listens: bool| {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let open = || socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
            let address = UnixAddr::new_abstract(full.as_bytes()).unwrap();
            let socket = open();
            nix::sys::socket::bind(socket.as_raw_fd(), &address).unwrap();
            let mut askers = Vec::new();
            if listens {
                let queue = nix::sys::socket::Backlog::new(0).unwrap();
                nix::sys::socket::listen(&socket, queue).unwrap();
                loop {
                    let asker = open();
                    match connect(asker.as_raw_fd(), &address) {
                        Ok(()) => askers.push(asker),
                        Err(errno) => {
                            assert_eq!(errno, Errno::EAGAIN);
                            break;
                        }
                    }
                }
            }
            (socket, askers)
        };
        for listens in [false, true] {
            let name = name(&format!("squatted-{listens}"));
            let _squatter = bind(&format!("{PREFIX}{name}"), listens);
            Claims::default().take(&name).unwrap();
        }
    }

    #[test]
    fn names_of_any_bytes_hide_nobody() {
        let odd = SocketAddr::from_abstract_name(b"odd\xff\xfe").unwrap();
        let _odd = UnixListener::bind_addr(&odd);
        assert!(fs::read(UNIX_SOCKETS).unwrap().contains(&0xff));
        let name = name("bytes");
        let mut claims = Claims::default();
        claims.take(&name).unwrap();
        assert!(unix_sockets().contains(&format!("@{PREFIX}{name}")));
    }

    #[test]
    fn whoever_asks_is_answered_however_often() {
        let full = name("often");
        let mut claims = Claims::default();
        claims.take(&full).unwrap();
        for _ in 0..5000 {
            assert!(matches!(
                holder(&format!("{PREFIX}{full}")).unwrap(),
                Holder::Nobody
            ));
            claims.answer();
        }
    }
}
