//! Claims of one process on this host, made by binding an abstract Unix socket (unix(7)): the name is local to a
//! network namespace, like the devices and networks it stands for, and the kernel releases it however the process ends.
//!
//! | name, after `selvage/` | its holder |
//! |---|---|
//! | `network/NAME` | is that network's agent; without NAME, the default one's |
//! | `unnamed/NAME` | is the default network's agent, and would be NAME's if this host had several |
//! | `next-hops/NUMBER` | uses the next-hop IDs of that range |
//! | `device/DEVICE` | owns that overlay device |
//! | `overlay/CIDR` | is in that overlay network |
//!
//! Any user of the host can bind a name. So a holder is trusted only if it runs as root or as our own user.

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

/// The prefix of all names.
const PREFIX: &str = "selvage/";

/// Lists the abstract names of this network namespace, among other sockets.
const UNIX_SOCKETS: &str = "/proc/thread-self/net/unix";

/// How often to try a name that others keep taking and releasing.
const ROUNDS: u32 = 3;

/// Length of the listen queue: the kernel's default limit (`net.core.somaxconn`).
const BACKLOG: usize = 4096;

/// Why a claim failed.
#[derive(Debug, Error)]
pub enum Error {
    /// Another process holds the name.
    #[error("process {0} holds it")]
    Taken(i32),
    /// The socket cannot be opened or bound.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The names that this process holds.
#[derive(Debug, Default)]
pub struct Claims {
    /// By name. `None` for a name bound by an untrusted process.
    held: BTreeMap<String, Option<UnixListener>>,
}

/// The holder of a name.
enum Holder {
    /// A trusted process.
    Process(i32),
    /// A process of another user; or this process itself, which has several sets of claims only in tests.
    Nobody,
    /// It was released meanwhile.
    Gone,
}

impl Claims {
    /// Claims a name, unless this process already holds it.
    ///
    /// # Errors
    /// Another process holds the name; which one.
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
                    // Bound but not listening: no agent does that.
                    Holder::Gone => {
                        warn!(
                            "ignoring the abstract socket {full}: nothing listens on it, so its holder is not an agent"
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

    /// Whether this process holds a name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.held.contains_key(name)
    }

    /// Releases the names for which `keep` is false.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.held.retain(|name, _| keep(name));
    }

    /// The held names with this prefix, without it.
    pub(crate) fn below<'a>(&'a self, start: &'a str) -> impl Iterator<Item = &'a str> {
        self.held
            .keys()
            .filter_map(move |name| name.strip_prefix(start))
    }

    /// Closes the connections of other agents' queries, to make room in the queue.
    pub(crate) fn answer(&self) {
        for socket in self.held.values().flatten() {
            // Bounded, so that a flood of connections cannot block us.
            for _ in 0..BACKLOG {
                if socket.accept().is_err() {
                    break;
                }
            }
        }
    }

    /// The names of other processes with this prefix, without it, and their holders.
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

/// The kernel's list of Unix sockets; empty if unreadable, which hides conflicts.
fn unix_sockets() -> String {
    let text = fs::read(UNIX_SOCKETS).unwrap_or_default();
    // Other programs' names may be any bytes.
    String::from_utf8_lossy(&text).into_owned()
}

/// Asks the kernel for the process listening on a name (SO_PEERCRED).
fn holder(full: &str) -> Result<Holder, Error> {
    let failed = |errno: Errno| Error::Io(errno.into());
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let asking = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed)?;
    let address = UnixAddr::new_abstract(full.as_bytes()).map_err(failed)?;
    match connect(asking.as_raw_fd(), &address) {
        Ok(()) => {}
        Err(Errno::ECONNREFUSED) => return Ok(Holder::Gone),
        // The queue is full. An agent's queue is long and it empties it, so this is no agent; the process is unknown.
        Err(Errno::EAGAIN) => {
            warn!(
                "ignoring the abstract socket {full}: its holder accepts no connections, so it is not an agent"
            );
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
        warn!(
            "ignoring the abstract socket {full}: process {id} holds it, but user {user} is not trusted"
        );
        return Ok(Holder::Nobody);
    }
    Ok(Holder::Process(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name unique to this test, also if tests share a namespace.
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
        // Another set of claims of the same process does not count as another holder.
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
