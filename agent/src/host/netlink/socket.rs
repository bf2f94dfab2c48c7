//! A request socket: many requests per send, each reply matched to its request, every exchange with a deadline.
//!
//! netlink-proto would do the same with a background task, but (as of 0.14.1) it sends one group of messages per
//! wake-up, never completes a request whose reply was lost to a full buffer, and silently drops what it cannot parse.
//! The kernel handles the requests before sendmsg(2) returns, so a background task would have nothing to do.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{SndBuf, SndBufForce};
use rtnetlink::packet_core::{
    ErrorMessage, NLM_F_ACK_TLVS, NLM_F_DUMP_INTR, NetlinkBuffer, NetlinkDeserializable,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use thiserror::Error;
use tokio::time::timeout;
use tracing::{debug, trace};

use super::batch::Batch;
use super::generic::attributes;
use super::message::{Message, Request, Verb};

/// How long the kernel may take for one exchange. It replies within the send, but removing a device with thousands of
/// next hops can hold the RTNL lock for seconds.
const DEADLINE: Duration = Duration::from_secs(30);

/// Requests per send: enough to make the system call cheap, few enough for the replies to fit the receive buffer even
/// if each is an error.
pub(super) const BATCH: usize = 128;

/// Receive buffer in bytes; capped by the kernel at `net.core.rmem_max`.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Send buffer in bytes. A transaction is one datagram, however many changes it has. Only with `CAP_NET_ADMIN` in the
/// initial user namespace may it exceed `net.core.wmem_max`.
const SEND_BUFFER: usize = 8 << 20;

/// The kernel's dump datagrams are at most 32 KiB (`netlink_dump()`).
pub(super) const DATAGRAM: usize = 64 << 10;

/// How often a dump is attempted if the kernel flags it as inconsistent (NLM_F_DUMP_INTR).
const DUMP_ATTEMPTS: usize = 5;

/// `NLMSGERR_ATTR_MSG` of linux/netlink.h: the extended ACK's message.
const ATTR_MSG: u16 = 1;

/// The netlink exchange with the kernel failed.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The socket cannot be opened.
    #[error("failed to open a netlink socket")]
    Open(#[source] io::Error),
    /// Sending or receiving failed.
    #[error("failed to exchange netlink messages")]
    Exchange(#[source] io::Error),
    /// No reply in time.
    #[error("the kernel sent no netlink reply within {} s", DEADLINE.as_secs())]
    Deadline,
    /// The receive buffer overflowed and replies were lost; the next observation shows which requests took effect.
    #[error("the receive buffer overflowed and lost netlink replies")]
    Overrun,
    /// The kernel refused a dump.
    #[error("failed to list {what}")]
    Dump {
        /// The objects.
        what: &'static str,
        /// Why.
        #[source]
        source: Refused,
    },
    /// Other programs' changes interrupted each attempt of a dump.
    #[error("failed to list {what}: they changed during each of {DUMP_ATTEMPTS} attempts")]
    Unsettled {
        /// The objects.
        what: &'static str,
    },
}

impl KernelError {
    /// Whether a retry is likely to succeed: the object changed meanwhile, or the reply did not fit the buffer.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Overrun | Self::Unsettled { .. } => true,
            // The requested device was removed just now.
            Self::Dump { source, .. } => source.errno == Errno::ENODEV,
            Self::Open(_) | Self::Exchange(_) | Self::Deadline => false,
        }
    }
}

/// The kernel's refusal of one request.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{errno}{}", hint.as_deref().map(|hint| format!(" ({hint})")).unwrap_or_default())]
pub struct Refused {
    /// The error number.
    pub errno: Errno,
    /// The kernel's extended ACK message, if any.
    pub hint: Option<String>,
}

/// The result of a dump.
#[derive(Debug)]
pub(super) struct Dump<T> {
    pub(super) items: Vec<T>,
    /// Whether nothing is missing: no change interrupted the dump, and every message was readable.
    pub(super) complete: bool,
}

/// The messages of one netlink protocol.
pub(super) trait Protocol: NetlinkSerializable + NetlinkDeserializable {
    /// `NETLINK_…` of linux/netlink.h.
    const NUMBER: isize;
}

impl Protocol for Message {
    const NUMBER: isize = NETLINK_ROUTE;
}

/// A netlink socket for requests. If a call is cancelled, the next one skips its replies.
pub(super) struct Socket<M = Message> {
    inner: TokioSocket,
    port: u32,
    sequence: u32,
    received: Vec<u8>,
    messages: PhantomData<M>,
}

impl<M: Protocol> Socket<M> {
    pub(super) fn open() -> Result<Self, KernelError> {
        let open = || {
            let mut inner = TokioSocket::new(M::NUMBER)?;
            let socket = inner.socket_mut();
            let address = socket.bind_auto()?;
            socket.set_rx_buf_sz(RECEIVE_BUFFER)?;
            if setsockopt(socket, SndBufForce, &SEND_BUFFER).is_err() {
                setsockopt(socket, SndBuf, &SEND_BUFFER)?;
            }
            // All three are optional, and newer than the oldest supported kernel: errors without a copy of the request
            // (NETLINK_CAP_ACK), with the kernel's message (NETLINK_EXT_ACK), and dumps filtered by the kernel
            // (NETLINK_GET_STRICT_CHK).
            let _ = socket.set_cap_ack(true);
            let _ = socket.set_ext_ack(true);
            let _ = socket.set_netlink_get_strict_chk(true);
            Ok(Self {
                port: address.port_number(),
                inner,
                sequence: 0,
                received: Vec::with_capacity(DATAGRAM),
                messages: PhantomData,
            })
        };
        open().map_err(KernelError::Open)
    }

    /// Our netlink port ID, which the kernel puts into notifications about our own changes.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// Sends requests in batches and returns the result of each.
    pub(super) async fn batch(
        &mut self,
        requests: &[Request<M>],
    ) -> Result<Vec<Result<(), Refused>>, KernelError> {
        let mut outcomes: Vec<_> = requests.iter().map(|_| Ok(())).collect();
        let mut batch = Batch::default();
        for (requests, outcomes) in requests.chunks(BATCH).zip(outcomes.chunks_mut(BATCH)) {
            batch.clear();
            for request in requests {
                batch.add(request);
            }
            for (index, refused) in self.exchange(&mut batch).await? {
                outcomes[index] = Err(refused);
            }
        }
        Ok(outcomes)
    }

    /// Sends a batch and returns the refusals, each with the place of its request in the batch.
    ///
    /// The kernel always replies to a failed request; an ACK is requested only for the last of a batch. Replies come in
    /// the order of the requests, so one reply implies that all before it are done.
    pub(super) async fn exchange(
        &mut self,
        batch: &mut Batch,
    ) -> Result<Vec<(usize, Refused)>, KernelError> {
        let last = batch.len().saturating_sub(1);
        batch.acknowledge(last);
        let exchange = async {
            let first = self.send(batch).await?;
            let mut refusals = Vec::new();
            loop {
                for message in self.receive().await? {
                    let Ok(message) = message else { continue };
                    let index = message.header.sequence_number.wrapping_sub(first) as usize;
                    let (true, NetlinkPayload::Error(error)) = (index <= last, &message.payload)
                    else {
                        continue;
                    };
                    if let Some(refused) = refused(error, message.header.flags) {
                        trace!(request = batch.kind(index), %refused, "netlink request refused");
                        refusals.push((index, refused));
                    }
                    if index == last {
                        return Ok(refusals);
                    }
                }
            }
        };
        timeout(DEADLINE, exchange)
            .await
            .map_err(|_| KernelError::Deadline)?
    }

    /// Sends requests that take effect all or none: the first begins the batch and the last ends it. Returns the first
    /// refusal.
    ///
    /// The kernel replies when it is done (`nfnetlink_rcv_batch()`): to each request that it refused, and to the last
    /// before the end, which requests an ACK; but to the beginning alone if it refuses the batch as a whole.
    pub(super) async fn transaction(
        &mut self,
        requests: &[Request<M>],
    ) -> Result<Result<(), Refused>, KernelError> {
        let exchange = async {
            let acknowledged = requests.len().saturating_sub(2);
            let first = self.request(requests, acknowledged).await?;
            let mut outcome = Ok(());
            loop {
                for message in self.receive().await? {
                    let Ok(message) = message else { continue };
                    let index = message.header.sequence_number.wrapping_sub(first) as usize;
                    let (true, NetlinkPayload::Error(error)) =
                        (index < requests.len(), &message.payload)
                    else {
                        continue;
                    };
                    if let Some(refused) = refused(error, message.header.flags) {
                        outcome = outcome.and(Err(refused));
                    }
                    if index == 0 || index >= acknowledged {
                        return Ok(outcome);
                    }
                }
            }
        };
        timeout(DEADLINE, exchange)
            .await
            .map_err(|_| KernelError::Deadline)?
    }

    /// Requests one object; `None` if the kernel returns none.
    pub(super) async fn get(
        &mut self,
        request: Request<M>,
    ) -> Result<Result<Option<M>, Refused>, KernelError> {
        let exchange = async {
            let first = self.request(&[request], 0).await?;
            let mut answer = None;
            loop {
                for message in self.receive().await? {
                    let Ok(message) = message else { continue };
                    if message.header.sequence_number != first {
                        continue;
                    }
                    match message.payload {
                        NetlinkPayload::InnerMessage(inner) => answer = Some(inner),
                        NetlinkPayload::Error(error) => {
                            return Ok(match refused(&error, message.header.flags) {
                                None => Ok(answer),
                                Some(refused) => Err(refused),
                            });
                        }
                        _ => {}
                    }
                }
            }
        };
        timeout(DEADLINE, exchange)
            .await
            .map_err(|_| KernelError::Deadline)?
    }

    /// Lists objects, and retries if changes interrupt the dump.
    ///
    /// `pick` chooses what to keep of each message.
    pub(super) async fn dump<T: Send>(
        &mut self,
        what: &'static str,
        message: impl Into<M>,
        mut pick: impl FnMut(M) -> Option<T> + Send,
    ) -> Result<Dump<T>, KernelError> {
        let mut items = Vec::new();
        let mut take = |message| match message {
            Some(message) => items.extend(pick(message)),
            None => items.clear(),
        };
        let request = Request::new(Verb::Dump, message);
        let complete = self.list(what, &request, &mut take).await?;
        Ok(Dump { items, complete })
    }

    /// Passes each message of a dump to `take`, and `None` whenever the dump begins. Returns whether nothing is missing.
    ///
    /// Apart from [`Self::dump`], so that it is compiled once, not for each kind of object.
    async fn list(
        &mut self,
        what: &'static str,
        request: &Request<M>,
        take: &mut (dyn FnMut(Option<M>) + Send),
    ) -> Result<bool, KernelError> {
        for _ in 0..DUMP_ATTEMPTS {
            take(None);
            let complete = timeout(DEADLINE, self.list_once(what, request, take))
                .await
                .map_err(|_| KernelError::Deadline)??;
            if complete {
                return Ok(true);
            }
            debug!(what, "netlink dump was incomplete");
        }
        Ok(false)
    }

    async fn list_once(
        &mut self,
        what: &'static str,
        request: &Request<M>,
        take: &mut (dyn FnMut(Option<M>) + Send),
    ) -> Result<bool, KernelError> {
        let first = self.request(std::slice::from_ref(request), 0).await?;
        let mut complete = true;
        loop {
            for message in self.receive().await? {
                let Ok(message) = message else {
                    complete = false;
                    continue;
                };
                if message.header.sequence_number != first {
                    continue;
                }
                complete &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => take(Some(inner)),
                    NetlinkPayload::Done(done) if done.code == 0 => return Ok(complete),
                    NetlinkPayload::Done(done) => {
                        let source = Refused {
                            errno: Errno::from_raw(-done.code),
                            hint: None,
                        };
                        return Err(KernelError::Dump { what, source });
                    }
                    NetlinkPayload::Error(error) => {
                        return match refused(&error, message.header.flags) {
                            None => Ok(complete),
                            Some(source) => Err(KernelError::Dump { what, source }),
                        };
                    }
                    _ => {}
                }
            }
        }
    }

    /// Sends requests in one datagram; returns the sequence number of the first. The one at `acknowledged` requests an
    /// ACK unless it is a dump.
    async fn request(
        &mut self,
        requests: &[Request<M>],
        acknowledged: usize,
    ) -> Result<u32, KernelError> {
        let mut batch = Batch::default();
        for request in requests {
            batch.add(request);
        }
        if requests[acknowledged].verb != Verb::Dump {
            batch.acknowledge(acknowledged);
        }
        self.send(&mut batch).await
    }

    /// Sends a batch in one datagram; returns the sequence number of its first request.
    async fn send(&mut self, batch: &mut Batch) -> Result<u32, KernelError> {
        let first = self.sequence.wrapping_add(1);
        // Of policies the kernel's notifications have this port (`xfrm_add_policy()`), of all else the socket's.
        self.sequence = batch.number(first, self.port);
        self.inner
            .send_to(batch.bytes(), &SocketAddr::new(0, 0))
            .await
            .map_err(KernelError::Exchange)?;
        Ok(first)
    }

    /// Waits for the next datagram and returns its messages.
    async fn receive(&mut self) -> Result<Messages<'_, M>, KernelError> {
        self.received.clear();
        match self.inner.recv(&mut self.received).await {
            Ok(()) => Ok(Messages::new(&self.received)),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                Err(KernelError::Overrun)
            }
            Err(error) => Err(KernelError::Exchange(error)),
        }
    }
}

impl<M> fmt::Debug for Socket<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// The messages of one datagram; `Err` for each unreadable one.
pub(super) struct Messages<'a, M = Message> {
    bytes: &'a [u8],
    messages: PhantomData<M>,
}

impl<'a, M> Messages<'a, M> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            messages: PhantomData,
        }
    }
}

/// An unreadable message.
pub(super) struct Unreadable;

impl<M: Protocol> Iterator for Messages<'_, M> {
    type Item = Result<NetlinkMessage<M>, Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        let Ok(buffer) = NetlinkBuffer::new_checked(self.bytes) else {
            debug!(bytes = self.bytes.len(), "netlink datagram is truncated");
            self.bytes = &[];
            return Some(Err(Unreadable));
        };
        // Messages are padded to multiples of four bytes (NLMSG_ALIGN); the last may lack the padding.
        let length = buffer.length() as usize;
        let (message, rest) = self.bytes.split_at(length);
        self.bytes = rest
            .get(length.next_multiple_of(4) - length..)
            .unwrap_or_default();
        Some(NetlinkMessage::deserialize(message).map_err(|error| {
            debug!(%error, "failed to parse a netlink message");
            Unreadable
        }))
    }
}

/// The refusal in an error message; `None` for an acknowledgement.
fn refused(error: &ErrorMessage, flags: u16) -> Option<Refused> {
    let code = error.code?;
    Some(Refused {
        errno: Errno::from_raw(-code.get()),
        hint: (flags & NLM_F_ACK_TLVS != 0)
            .then(|| hint(&error.header))
            .flatten(),
    })
}

/// The extended ACK message, which follows the copy of the request's header.
fn hint(copy: &[u8]) -> Option<String> {
    let (_, text) = attributes(copy.get(16..)?).find(|(kind, _)| *kind == ATTR_MSG)?;
    let text = String::from_utf8_lossy(text);
    Some(text.trim_end_matches('\0').to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A refusal (EEXIST) of request 7, as the kernel sends it with capped acknowledgements.
    fn refusal() -> Vec<u8> {
        let text = b"Nexthop id does not exist\0";
        let length = 16 + 4 + 16 + (4 + text.len()).next_multiple_of(4);
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(length).unwrap().to_ne_bytes());
        bytes.extend(2u16.to_ne_bytes()); // NLMSG_ERROR
        bytes.extend(0x300u16.to_ne_bytes()); // NLM_F_CAPPED | NLM_F_ACK_TLVS
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend((-17i32).to_ne_bytes());
        bytes.extend([0; 16]);
        bytes.extend(u16::try_from(4 + text.len()).unwrap().to_ne_bytes());
        bytes.extend(ATTR_MSG.to_ne_bytes());
        bytes.extend(text);
        bytes.resize(length, 0);
        bytes
    }

    #[test]
    fn a_refusal_carries_the_kernels_words() {
        let bytes = refusal();
        let Some(Ok(message)) = Messages::<Message>::new(&bytes).next() else {
            panic!("unreadable")
        };
        let NetlinkPayload::Error(error) = &message.payload else {
            panic!("{message:?}")
        };
        let refused = refused(error, message.header.flags).unwrap();
        assert_eq!(
            refused.to_string(),
            "EEXIST: File exists (Nexthop id does not exist)"
        );
    }

    #[test]
    fn an_unreadable_message_does_not_hide_the_next() {
        let mut bytes = vec![20, 0, 0, 0, 0xff, 0xff, 0, 0];
        bytes[..4].copy_from_slice(&20u32.to_ne_bytes());
        bytes.resize(20, 0);
        bytes.extend(refusal());
        let read: Vec<bool> = Messages::<Message>::new(&bytes)
            .map(|message| message.is_ok())
            .collect();
        assert_eq!(read, [false, true]);
        bytes.truncate(30);
        let read: Vec<bool> = Messages::<Message>::new(&bytes)
            .map(|message| message.is_ok())
            .collect();
        assert_eq!(read, [false, false], "a datagram that is cut short is told");
    }

    proptest! {
        #[test]
        fn no_datagram_makes_the_reader_panic_or_loop(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            kind in 16u16..110,
        ) {
            let mut message = Vec::from(u32::try_from(16 + bytes.len()).unwrap().to_ne_bytes());
            message.extend(kind.to_ne_bytes());
            message.extend([0; 10]);
            message.extend(&bytes);
            prop_assert!(Messages::<Message>::new(&message).count() <= 1 + message.len() / 16);
            prop_assert!(Messages::<Message>::new(&bytes).count() <= 1 + bytes.len() / 16);
        }
    }
}
