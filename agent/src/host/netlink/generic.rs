//! Generic netlink: the kernel assigns the protocol, the *family*, a number when its module is loaded.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------+---------------+-------------------------------+
//! |    command    |    version    |            reserved           |
//! +---------------+---------------+-------------------------------+
//! |                          attributes                           |
//! ```
//!
//! This is `struct genlmsghdr` of linux/genetlink.h. Attributes are kept as bytes, because some hold secrets: `Debug`
//! shows a message's length and none of its contents. (The crate netlink-packet-wireguard would print private keys.)

use std::fmt;

use rtnetlink::packet_core::{
    DecodeError, NLA_F_NESTED, NLA_TYPE_MASK, NetlinkDeserializable, NetlinkHeader,
    NetlinkSerializable,
};
use rtnetlink::sys::protocols::NETLINK_GENERIC;

use super::message::{Request, Verb};
use super::socket::Protocol;

const HEADER_LEN: usize = 4;

/// `GENL_ID_CTRL`: the family that resolves the others.
const CONTROL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// A generic netlink message.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct GenericMessage {
    /// The number of the family.
    pub(super) family: u16,
    pub(super) command: u8,
    pub(super) version: u8,
    pub(super) attributes: Attributes,
}

/// Netlink attributes, as bytes.
#[derive(Clone, PartialEq, Eq, Default)]
pub(in crate::host) struct Attributes(Vec<u8>);

impl Attributes {
    /// The attributes in a message.
    pub(in crate::host) fn of(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    pub(in crate::host) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Appends a text with the NUL that ends it.
    pub(in crate::host) fn put_text(&mut self, kind: u16, text: &str) {
        let start = self.begin(kind);
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
        self.end(start);
    }

    /// Appends a number as netfilter has it: big-endian.
    pub(in crate::host) fn put_number(&mut self, kind: u16, number: u32) {
        self.put(kind, &number.to_be_bytes());
    }

    /// Whether there is an attribute with that text.
    pub(in crate::host) fn has_text(&self, wanted: u16, text: &str) -> bool {
        self.get(wanted).and_then(|value| value.strip_suffix(b"\0")) == Some(text.as_bytes())
    }

    /// The first attribute of that kind.
    pub(in crate::host) fn get(&self, wanted: u16) -> Option<&[u8]> {
        let mut attributes = self.iter();
        let (_, value) = attributes.find(|(kind, _)| *kind == wanted)?;
        Some(value)
    }

    /// Appends an attribute. Its length must fit 16 bits; no message of ours has longer ones.
    pub(in crate::host) fn put(&mut self, kind: u16, value: &[u8]) {
        let start = self.begin(kind);
        self.0.extend_from_slice(value);
        self.end(start);
    }

    /// Appends others as a nested attribute.
    pub(in crate::host) fn put_nested(&mut self, kind: u16, nested: &Self) {
        self.put(kind | NLA_F_NESTED, &nested.0);
    }

    /// Appends a nested attribute.
    pub(in crate::host) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.begin(kind | NLA_F_NESTED);
        fill(self);
        self.end(start);
    }

    fn begin(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn end(&mut self, start: usize) {
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// The attributes as kind and value. Stops at the first malformed one.
    pub(in crate::host) fn iter(&self) -> impl Iterator<Item = (u16, &[u8])> {
        attributes(&self.0)
    }
}

/// Reads a sequence of netlink attributes. Stops at the first malformed one.
pub(in crate::host) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    flagged_attributes(bytes).map(|(kind, _, value)| (kind, value))
}

/// The same, and whether each attribute has the flag that says that there are others in it. Not every part of the kernel
/// sets it.
pub(in crate::host) fn flagged_attributes(
    mut bytes: &[u8],
) -> impl Iterator<Item = (u16, bool, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & NLA_TYPE_MASK, kind & NLA_F_NESTED != 0, value))
    })
}

/// Requests the number of a family. The kernel loads the family's module if needed.
pub(super) fn get_family(name: &str) -> Request<GenericMessage> {
    let mut attributes = Attributes::default();
    attributes.put_text(CTRL_ATTR_FAMILY_NAME, name);
    let message = GenericMessage {
        family: CONTROL,
        command: CTRL_CMD_GETFAMILY,
        version: 2,
        attributes,
    };
    Request::new(Verb::Get, message)
}

/// Reads the reply to [`get_family`].
pub(super) fn family_id(message: &GenericMessage) -> Option<u16> {
    let id = message.attributes.get(CTRL_ATTR_FAMILY_ID)?;
    Some(u16::from_ne_bytes(id.try_into().ok()?))
}

impl fmt::Debug for GenericMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "generic netlink message: family {} command {} with {} bytes of attributes",
            self.family,
            self.command,
            self.attributes.0.len()
        )
    }
}

impl Protocol for GenericMessage {
    const NUMBER: isize = NETLINK_GENERIC;
}

impl NetlinkSerializable for GenericMessage {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        HEADER_LEN + self.attributes.0.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (header, attributes) = buffer.split_at_mut(HEADER_LEN);
        header.copy_from_slice(&[self.command, self.version, 0, 0]);
        attributes.copy_from_slice(&self.attributes.0);
    }
}

impl NetlinkDeserializable for GenericMessage {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let Some((&[command, version, _, _], attributes)) =
            payload.split_first_chunk::<HEADER_LEN>()
        else {
            return Err(DecodeError::invalid_buffer(
                "genlmsghdr",
                payload.len(),
                HEADER_LEN,
            ));
        };
        Ok(Self {
            family: header.message_type,
            command,
            version,
            attributes: Attributes::of(attributes),
        })
    }
}
