//! nf_tables over netfilter's netlink: what `nft list` reads, and what `nft -f` does in one transaction.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------+---------------+-------------------------------+
//! |    family     |    version    |    resource ID (big-endian)   |
//! +---------------+---------------+-------------------------------+
//! |                          attributes                           |
//! ```
//!
//! This is `struct nfgenmsg` of linux/netfilter/nfnetlink.h. Numbers in attributes are big-endian, unlike rtnetlink's.
//!
//! Changes travel between two messages that begin and end a batch. All of them take effect, or none.

use std::io;

use nix::errno::Errno;
use rtnetlink::packet_core::{
    DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use super::generic::Attributes;
use super::message::{Request, Verb};
use super::socket::{KernelError, Protocol, Refused, Socket};
use crate::base::net::Family;

const HEADER_LEN: usize = 4;

/// `NFNL_SUBSYS_NFTABLES` (linux/netfilter/nfnetlink.h), the high byte of the message type.
pub(in crate::host) const SUBSYSTEM: u8 = 10;

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`, and the attribute with the generation that the batch rests on.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NFNL_BATCH_GENID: u16 = 1;

/// `NFT_MSG_NEWGEN` (linux/netfilter/nf_tables.h, `enum nf_tables_msg_types`), which also ends the notifications of a
/// transaction, and `NFT_MSG_GETGEN`.
pub(in crate::host) const NEW_GENERATION: u8 = 15;
const GET_GENERATION: u8 = 16;
const NFTA_GEN_ID: u16 = 1;

/// The attribute with the table's name, which is 1 for every object: `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`,
/// `NFTA_RULE_TABLE`, `NFTA_SET_TABLE` (linux/netfilter/nf_tables.h).
pub(in crate::host) const TABLE_NAME: u16 = 1;

/// The family of a table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub(in crate::host) enum TableFamily {
    /// `NFPROTO_INET` (linux/netfilter.h): both IP versions.
    Inet = 1,
    /// `NFPROTO_IPV4`.
    Ip = 2,
    /// `NFPROTO_IPV6`.
    Ip6 = 10,
}

impl TableFamily {
    /// The family with that number; `None` for those that see no IP packets, or not all.
    pub(in crate::host) fn of_number(number: u8) -> Option<Self> {
        [Self::Inet, Self::Ip, Self::Ip6]
            .into_iter()
            .find(|family| *family as u8 == number)
    }
}

impl From<Family> for TableFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::Ip,
            Family::V6 => Self::Ip6,
        }
    }
}

/// What a table is made of, by the number of the message that creates one (`NFT_MSG_NEW…`). The two numbers after it
/// are those of the messages that list and delete it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(in crate::host) enum Object {
    Table = 0,
    Chain = 3,
    Rule = 6,
}

impl Object {
    /// The message that creates one.
    pub(in crate::host) const fn add_message(self) -> u8 {
        self as u8
    }

    const fn list_message(self) -> u8 {
        self as u8 + 1
    }

    pub(in crate::host) const fn delete_message(self) -> u8 {
        self as u8 + 2
    }
}

/// A message to or from nf_tables.
pub(in crate::host) struct NetfilterMessage {
    kind: u16,
    family: u8,
    resource: u16,
    attributes: Attributes,
}

impl NetfilterMessage {
    fn new(message: u8, family: u8, attributes: Attributes) -> Self {
        Self {
            kind: u16::from_be_bytes([SUBSYSTEM, message]),
            family,
            resource: 0,
            attributes,
        }
    }

    fn frame(kind: u16, attributes: Attributes) -> Self {
        Self {
            kind,
            family: 0,
            resource: SUBSYSTEM.into(),
            attributes,
        }
    }
}

/// One change of a transaction.
pub(in crate::host) struct Change(Request<NetfilterMessage>);

impl Change {
    /// Creates an object, after those of its kind that exist. A table may exist.
    pub(in crate::host) fn add(
        object: Object,
        family: TableFamily,
        attributes: Attributes,
    ) -> Self {
        let message = NetfilterMessage::new(object.add_message(), family as u8, attributes);
        Self(Request::new(Verb::Append, message))
    }

    /// Deletes a table with all that is in it.
    pub(in crate::host) fn delete_table(family: TableFamily, name: &str) -> Self {
        let mut attributes = Attributes::default();
        attributes.put_text(TABLE_NAME, name);
        let message =
            NetfilterMessage::new(Object::Table.delete_message(), family as u8, attributes);
        Self(Request::new(Verb::Plain, message))
    }
}

/// nf_tables in the network namespace of the first call, which opens the socket.
#[derive(Default)]
pub(in crate::host) struct Netfilter(Option<Socket<NetfilterMessage>>);

impl Netfilter {
    /// The number of the ruleset's generation. The kernel increments it with every transaction (`nf_tables_commit()`),
    /// so the same number means the same rules. `None` if the kernel has no nf_tables, or refuses to tell.
    ///
    /// # Errors
    ///
    /// The netlink exchange failed.
    pub(in crate::host) async fn generation(&mut self) -> Result<Option<u32>, KernelError> {
        let message = NetfilterMessage::new(GET_GENERATION, 0, Attributes::default());
        let socket = match self.socket() {
            Err(error) if lacks_protocol(&error) => return Ok(None),
            socket => socket?,
        };
        let answer = socket.get(Request::new(Verb::Get, message)).await;
        let answer = self.close_if_failed(answer)?;
        Ok(answer.ok().flatten().and_then(|answer| {
            let id = answer.attributes.get(NFTA_GEN_ID)?;
            Some(u32::from_be_bytes(id.try_into().ok()?))
        }))
    }

    /// All tables of all families: the number of each one's family, and its attributes. `None` if the kernel has no
    /// nf_tables.
    ///
    /// # Errors
    ///
    /// The netlink exchange failed, or changes interrupted it again and again.
    pub(in crate::host) async fn tables(
        &mut self,
    ) -> Result<Option<Vec<(u8, Attributes)>>, KernelError> {
        let message = NetfilterMessage::new(Object::Table.list_message(), 0, Attributes::default());
        match self.list("nftables tables", message, None).await {
            Err(error) if lacks_protocol(&error) => Ok(None),
            // Nobody has registered for the message's subsystem (`nfnetlink_rcv_msg()`).
            Err(KernelError::Dump { source, .. }) if source.errno == Errno::EINVAL => Ok(None),
            tables => tables.map(Some),
        }
    }

    /// The attributes of each of a table's chains or rules, in the kernel's order.
    ///
    /// # Errors
    ///
    /// As [`Self::tables`].
    pub(in crate::host) async fn contents(
        &mut self,
        object: Object,
        family: TableFamily,
        table: &str,
    ) -> Result<Vec<Attributes>, KernelError> {
        let mut attributes = Attributes::default();
        attributes.put_text(TABLE_NAME, table);
        let message = NetfilterMessage::new(object.list_message(), family as u8, attributes);
        let what = match object {
            Object::Rule => "nftables rules",
            _ => "nftables chains",
        };
        let listed = self.list(what, message, Some(table)).await?;
        Ok(listed
            .into_iter()
            .map(|(_, attributes)| attributes)
            .collect())
    }

    /// Older kernels disregard the table in the request.
    async fn list(
        &mut self,
        what: &'static str,
        message: NetfilterMessage,
        table: Option<&str>,
    ) -> Result<Vec<(u8, Attributes)>, KernelError> {
        let pick = |message: NetfilterMessage| {
            let is_wanted =
                table.is_none_or(|table| message.attributes.has_text(TABLE_NAME, table));
            is_wanted.then_some((message.family, message.attributes))
        };
        let listed = self.socket()?.dump(what, message, pick).await;
        let dump = self.close_if_failed(listed)?;
        match dump.complete {
            true => Ok(dump.items),
            false => Err(KernelError::Unsettled { what }),
        }
    }

    /// Makes all of the changes, or none. With a generation, only if the ruleset is still of that generation: else the
    /// kernel refuses with ERESTART.
    ///
    /// # Errors
    ///
    /// The netlink exchange failed; whether the changes were made is unknown.
    pub(in crate::host) async fn commit(
        &mut self,
        changes: Vec<Change>,
        generation: Option<u32>,
    ) -> Result<Result<(), Refused>, KernelError> {
        let mut attributes = Attributes::default();
        if let Some(generation) = generation {
            attributes.put_number(NFNL_BATCH_GENID, generation);
        }
        let frame =
            |kind, attributes| Request::new(Verb::Plain, NetfilterMessage::frame(kind, attributes));
        let mut requests = vec![frame(BATCH_BEGIN, attributes)];
        requests.extend(changes.into_iter().map(|Change(request)| request));
        requests.push(frame(BATCH_END, Attributes::default()));
        let outcome = self.socket()?.transaction(&requests).await;
        self.close_if_failed(outcome)
    }

    fn socket(&mut self) -> Result<&mut Socket<NetfilterMessage>, KernelError> {
        Ok(match self.0.take() {
            Some(socket) => self.0.insert(socket),
            None => self.0.insert(Socket::open()?),
        })
    }

    /// The next call opens another socket: answers may still be on their way to this one.
    fn close_if_failed<T>(&mut self, result: Result<T, KernelError>) -> Result<T, KernelError> {
        if !matches!(result, Ok(_) | Err(KernelError::Dump { .. })) {
            self.0 = None;
        }
        result
    }
}

/// Whether the kernel lacks netfilter's netlink altogether.
fn lacks_protocol(error: &KernelError) -> bool {
    let code = |error: &io::Error| error.raw_os_error();
    matches!(error, KernelError::Open(error) if code(error) == Some(Errno::EPROTONOSUPPORT as i32))
}

impl Protocol for NetfilterMessage {
    const NUMBER: isize = NETLINK_NETFILTER;
}

impl NetlinkSerializable for NetfilterMessage {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        HEADER_LEN + self.attributes.as_bytes().len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (header, attributes) = buffer.split_at_mut(HEADER_LEN);
        let [high, low] = self.resource.to_be_bytes();
        header.copy_from_slice(&[self.family, 0, high, low]);
        attributes.copy_from_slice(self.attributes.as_bytes());
    }
}

impl NetlinkDeserializable for NetfilterMessage {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let Some((&[family, _, high, low], attributes)) = payload.split_first_chunk::<HEADER_LEN>()
        else {
            return Err(DecodeError::invalid_buffer(
                "nfgenmsg",
                payload.len(),
                HEADER_LEN,
            ));
        };
        Ok(Self {
            kind: header.message_type,
            family,
            resource: u16::from_be_bytes([high, low]),
            attributes: Attributes::of(attributes),
        })
    }
}

#[cfg(test)]
mod tests;
