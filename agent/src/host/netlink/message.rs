//! The rtnetlink messages of the agent: those of `netlink-packet-route`, and next hops, which that crate lacks.

use rtnetlink::packet_core::{
    DecodeError, Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE,
    NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, Parseable,
};
use rtnetlink::packet_route::RouteNetlinkMessage;

use super::nexthop::NextHopMessage;

const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;

/// What a request does, as flags of the netlink header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verb {
    /// Create; fail if it exists.
    Add,
    /// Create, or replace what exists.
    Replace,
    /// Change what exists, or delete it.
    Plain,
    /// Return one object.
    Get,
    /// Return all matching objects.
    Dump,
}

impl Verb {
    /// The flags, without `NLM_F_ACK`.
    pub(super) fn flags(self) -> u16 {
        NLM_F_REQUEST
            | match self {
                Self::Add => NLM_F_CREATE | NLM_F_EXCL,
                Self::Replace => NLM_F_CREATE | NLM_F_REPLACE,
                Self::Plain => 0,
                Self::Get => NLM_F_ACK,
                Self::Dump => NLM_F_DUMP,
            }
    }
}

/// A message to the kernel.
#[derive(Debug)]
pub(super) struct Request<M = Message> {
    pub(super) verb: Verb,
    pub(super) message: M,
}

impl<M> Request<M> {
    pub(super) fn new(verb: Verb, message: impl Into<M>) -> Self {
        Self {
            verb,
            message: message.into(),
        }
    }
}

/// A message to or from the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Message {
    Route(RouteNetlinkMessage),
    NewNextHop(NextHopMessage),
    DelNextHop(NextHopMessage),
    GetNextHop(NextHopMessage),
}

impl From<RouteNetlinkMessage> for Message {
    fn from(message: RouteNetlinkMessage) -> Self {
        Self::Route(message)
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        match self {
            Self::Route(message) => message.message_type(),
            Self::NewNextHop(_) => RTM_NEWNEXTHOP,
            Self::DelNextHop(_) => RTM_DELNEXTHOP,
            Self::GetNextHop(_) => RTM_GETNEXTHOP,
        }
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::Route(message) => NetlinkSerializable::buffer_len(message),
            Self::NewNextHop(message) | Self::DelNextHop(message) | Self::GetNextHop(message) => {
                message.buffer_len()
            }
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        match self {
            Self::Route(message) => message.serialize(buffer),
            Self::NewNextHop(message) | Self::DelNextHop(message) | Self::GetNextHop(message) => {
                message.emit(buffer);
            }
        }
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        match header.message_type {
            RTM_NEWNEXTHOP => NextHopMessage::parse(payload).map(Self::NewNextHop),
            RTM_DELNEXTHOP => NextHopMessage::parse(payload).map(Self::DelNextHop),
            RTM_GETNEXTHOP => NextHopMessage::parse(payload).map(Self::GetNextHop),
            _ => RouteNetlinkMessage::deserialize(header, payload).map(Self::Route),
        }
    }
}
