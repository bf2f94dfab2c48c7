//! The rtnetlink messages of the agent: the types of `netlink-packet-route`, and next hops, which that crate lacks.
//!
//! The crate's own enum of messages would link the code of all of rtnetlink, such as traffic control.

use rtnetlink::packet_core::{
    DecodeError, Emitable, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL,
    NLM_F_REPLACE, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
    Parseable,
};
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::rule::RuleMessage;

use super::nexthop::NextHopMessage;

/// What a request does, as flags of the netlink header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verb {
    /// Create; fail if it exists.
    Add,
    /// Create, or replace what exists.
    Replace,
    /// Create, after what exists.
    Append,
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
                Self::Append => NLM_F_CREATE | NLM_F_APPEND,
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

/// Defines the messages by their numbers (`RTM_…` of linux/rtnetlink.h).
macro_rules! messages {
    ($($name:ident($content:ty) = $number:literal,)+) => {
        /// A message to or from the kernel.
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub(super) enum Message {
            $($name($content),)+
        }

        impl NetlinkSerializable for Message {
            fn message_type(&self) -> u16 {
                match self {
                    $(Self::$name(_) => $number,)+
                }
            }

            fn buffer_len(&self) -> usize {
                match self {
                    $(Self::$name(content) => content.buffer_len(),)+
                }
            }

            fn serialize(&self, buffer: &mut [u8]) {
                match self {
                    $(Self::$name(content) => content.emit(buffer),)+
                }
            }
        }

        impl NetlinkDeserializable for Message {
            type Error = DecodeError;

            fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
                match header.message_type {
                    $($number => <$content>::parse(payload).map(Self::$name),)+
                    other => Err(format!("unknown rtnetlink message {other}").into()),
                }
            }
        }
    };
}

messages! {
    NewLink(LinkMessage) = 16,
    DelLink(LinkMessage) = 17,
    GetLink(LinkMessage) = 18,
    SetLink(LinkMessage) = 19,
    NewAddress(AddressMessage) = 20,
    DelAddress(AddressMessage) = 21,
    GetAddress(AddressMessage) = 22,
    NewRoute(RouteMessage) = 24,
    DelRoute(RouteMessage) = 25,
    GetRoute(RouteMessage) = 26,
    NewNeighbour(NeighbourMessage) = 28,
    DelNeighbour(NeighbourMessage) = 29,
    GetNeighbour(NeighbourMessage) = 30,
    NewRule(RuleMessage) = 32,
    GetRule(RuleMessage) = 34,
    NewNextHop(NextHopMessage) = 104,
    DelNextHop(NextHopMessage) = 105,
    GetNextHop(NextHopMessage) = 106,
}
