//! Echo requests to many peers at once, over raw sockets.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{Ipv6DontFrag, RcvBuf, RcvBufForce};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, recvfrom,
    sendto, setsockopt, socket,
};
use nix::{libc, setsockopt_impl, sockopt_impl};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::packet::Tag;
use super::watch;

/// How many echoes are sent before it is looked for answers.
const BURST: usize = 128;
/// How long the answers to a burst are waited for before the next one, unless all come sooner.
const PAUSE: Duration = Duration::from_millis(20);
/// How many messages are taken at once.
const DRAIN: usize = 256;
/// Room for the answers to a few bursts of full size.
const RECEIVE_BUFFER: usize = 2 << 20;

sockopt_impl!(
    /// `IP_MTU_DISCOVER`, ip(7).
    MtuDiscover,
    SetOnly,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    usize
);
sockopt_impl!(
    /// `IPV6_MTU_DISCOVER`, ipv6(7).
    MtuDiscoverV6,
    SetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU_DISCOVER,
    usize
);

/// `IP_PMTUDISC_DO` and `IPV6_PMTUDISC_DO`: nothing is fragmented, and what is longer than the path is known to carry is
/// refused by the kernel.
const DO: usize = 2;

/// An echo request to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Echo {
    pub(crate) to: IpAddr,
    /// Bytes of the whole IP packet.
    pub(crate) len: usize,
}

/// The result of an echo request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// It came back.
    Answered,
    /// It did not.
    Silent,
    /// The kernel knows that the path does not carry so much, and tells every sender.
    TooLong,
    /// This host would not send it: its packet filter (`EPERM`), or for want of a route.
    Refused(Errno),
}

/// What a socket had: an echo reply and who sent it, or something else.
type Received = nix::Result<Option<(Tag, IpAddr)>>;

/// Sockets for echo requests in both families.
#[derive(Debug)]
pub(crate) struct Pinger {
    v4: AsyncFd<OwnedFd>,
    v6: Option<AsyncFd<OwnedFd>>,
    id: u16,
    mark: [u8; 8],
    next: u16,
}

impl Pinger {
    /// Opens the sockets.
    ///
    /// # Errors
    /// `EPERM` without the capability `CAP_NET_RAW`.
    pub(crate) fn open() -> io::Result<Self> {
        let mut random = [0; 10];
        SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| io::Error::other("no random numbers"))?;
        let [mark @ .., high, low] = random;
        let v4 = open(AddressFamily::Inet, SockProtocol::Icmp)?;
        setsockopt(&v4, MtuDiscover, &DO)?;
        // A kernel may have no IPv6.
        let v6 = match open(AddressFamily::Inet6, SockProtocol::IcmpV6) {
            Ok(v6) => {
                setsockopt(&v6, MtuDiscoverV6, &DO)?;
                setsockopt(&v6, Ipv6DontFrag, &true)?;
                Some(watch(v6)?)
            }
            Err(Errno::EAFNOSUPPORT) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            v4: watch(v4)?,
            v6,
            id: u16::from_be_bytes([high, low]),
            mark,
            next: 0,
        })
    }

    /// A tag for an echo that is sent elsewhere.
    pub(crate) fn tag(&mut self) -> Tag {
        let sequence = self.next;
        self.next = self.next.wrapping_add(1);
        Tag {
            id: self.id,
            sequence,
            mark: self.mark,
        }
    }

    /// Whether an echo is from this sender.
    pub(crate) fn owns(&self, tag: Tag) -> bool {
        (tag.id, tag.mark) == (self.id, self.mark)
    }

    /// Sends echo requests, and those that are not answered again, once for each of `patience`, for which the answers are
    /// then waited for. Returns what became of each. If this future is dropped, answers that come late are skipped by the
    /// next call.
    pub(crate) async fn ask(&mut self, echoes: &[Echo], patience: &[Duration]) -> Vec<Outcome> {
        let mut outcomes = vec![Outcome::Silent; echoes.len()];
        let tags: Vec<Tag> = echoes.iter().map(|_| self.tag()).collect();
        // By sequence number: which it is, and who has to answer.
        let mut pending: BTreeMap<u16, (usize, IpAddr)> = BTreeMap::new();
        for (at, (tag, echo)) in tags.iter().zip(echoes).enumerate() {
            pending.insert(tag.sequence, (at, echo.to));
        }
        for &limit in patience {
            let waiting: Vec<usize> = pending.values().map(|&(at, _)| at).collect();
            for burst in waiting.chunks(BURST) {
                for &at in burst {
                    let (tag, echo) = (tags[at], echoes[at]);
                    if let Err(outcome) = self.send(tag, echo) {
                        outcomes[at] = outcome;
                        pending.remove(&tag.sequence);
                    }
                }
                let enough = pending.len().saturating_sub(burst.len());
                self.receive(&mut pending, &mut outcomes, enough, PAUSE)
                    .await;
            }
            self.receive(&mut pending, &mut outcomes, 0, limit).await;
            if pending.is_empty() {
                break;
            }
        }
        outcomes
    }

    /// Sends one; an error is what became of it for good.
    fn send(&self, tag: Tag, echo: Echo) -> Result<(), Outcome> {
        let message = tag.request(echo.to, echo.len);
        let flags = MsgFlags::empty();
        let sent = match echo.to {
            IpAddr::V4(to) => {
                let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
                sendto(self.v4.as_raw_fd(), &message, &to, flags)
            }
            IpAddr::V6(to) => {
                let Some(v6) = &self.v6 else {
                    return Err(Outcome::Refused(Errno::EAFNOSUPPORT));
                };
                let to = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0));
                sendto(v6.as_raw_fd(), &message, &to, flags)
            }
        };
        match sent {
            Ok(_) => Ok(()),
            Err(Errno::EMSGSIZE) => Err(Outcome::TooLong),
            Err(error @ (Errno::EPERM | Errno::EACCES | Errno::ENETUNREACH)) => {
                Err(Outcome::Refused(error))
            }
            // The queue is full, or the kernel reports an earlier packet's error; the next attempt will show.
            Err(_) => Ok(()),
        }
    }

    /// Takes answers until no more than `enough` are missing, or the time is over.
    async fn receive(
        &self,
        pending: &mut BTreeMap<u16, (usize, IpAddr)>,
        outcomes: &mut [Outcome],
        enough: usize,
        limit: Duration,
    ) {
        let deadline = Instant::now() + limit;
        let mut take = |tag: Tag, from: IpAddr| {
            if let Some(&(at, to)) = pending.get(&tag.sequence)
                && self.owns(tag)
                && from == to
            {
                outcomes[at] = Outcome::Answered;
                pending.remove(&tag.sequence);
            }
            pending.len() <= enough
        };
        loop {
            let done = tokio::select! {
                answers = drain(&self.v4, receive_v4) => {
                    answers.into_iter().fold(false, |_, (tag, from)| take(tag, from))
                }
                answers = drain_some(self.v6.as_ref()) => {
                    answers.into_iter().fold(false, |_, (tag, from)| take(tag, from))
                }
                () = sleep_until(deadline) => true,
            };
            if done {
                return;
            }
        }
    }
}

fn open(family: AddressFamily, protocol: SockProtocol) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, SockType::Raw, flags, protocol)?;
    // The privileged option ignores net.core.rmem_max.
    setsockopt(&fd, RcvBufForce, &RECEIVE_BUFFER)
        .or_else(|_| setsockopt(&fd, RcvBuf, &RECEIVE_BUFFER))?;
    Ok(fd)
}

async fn drain_some(socket: Option<&AsyncFd<OwnedFd>>) -> Vec<(Tag, IpAddr)> {
    match socket {
        Some(socket) => drain(socket, receive_v6).await,
        None => std::future::pending().await,
    }
}

/// Waits for something, and takes all echo replies that are there.
async fn drain(socket: &AsyncFd<OwnedFd>, receive: fn(&OwnedFd) -> Received) -> Vec<(Tag, IpAddr)> {
    let mut replies = Vec::new();
    let Ok(mut ready) = socket.readable().await else {
        // The runtime ends.
        return replies;
    };
    for _ in 0..DRAIN {
        match receive(socket.get_ref()) {
            Ok(reply) => replies.extend(reply),
            Err(Errno::EAGAIN) => {
                ready.clear_ready();
                break;
            }
            // An error about an earlier packet is gone with being told.
            Err(_) => {}
        }
    }
    replies
}

/// The next message, if it is an echo reply. A raw IPv4 socket gives the IP header with it.
fn receive_v4(fd: &OwnedFd) -> Received {
    let mut buffer = [0; 128];
    let (len, from) = recvfrom::<SockaddrIn>(fd.as_raw_fd(), &mut buffer)?;
    let packet = &buffer[..len.min(buffer.len())];
    let start = usize::from(packet.first().copied().unwrap_or_default() & 0xf) * 4;
    let tag = packet
        .get(start..)
        .and_then(|message| Tag::of_reply(message, true));
    let from = from.map(|from| IpAddr::V4(from.ip()));
    Ok(tag.zip(from))
}

fn receive_v6(fd: &OwnedFd) -> Received {
    let mut buffer = [0; 128];
    let (len, from) = recvfrom::<SockaddrIn6>(fd.as_raw_fd(), &mut buffer)?;
    let tag = Tag::of_reply(&buffer[..len.min(buffer.len())], false);
    let from = from.map(|from| IpAddr::V6(from.ip()));
    Ok(tag.zip(from))
}
