//! Requests for the kernel in one datagram.

use rtnetlink::packet_core::{Emitable, NLM_F_ACK, NetlinkHeader, NetlinkSerializable};

use super::message::Request;

/// Where the fields of `struct nlmsghdr` begin (linux/netlink.h), and how long they are.
const TYPE: usize = 4;
const FLAGS: usize = 6;
const SEQUENCE: usize = 8;
const PORT: usize = 12;

/// Encoded requests. Each is encoded as soon as it is made, so that of tens of thousands none waits in memory; and the
/// memory is used again for the next batch.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// Where each request begins.
    starts: Vec<usize>,
}

impl Batch {
    /// Adds a request, without an ACK. Its sequence number and port come with [`Self::number`].
    pub(super) fn add<M: NetlinkSerializable>(&mut self, request: &Request<M>) {
        let mut header = NetlinkHeader::default();
        let length = header.buffer_len() + request.message.buffer_len();
        header.length = u32::try_from(length).unwrap_or(u32::MAX);
        header.message_type = request.message.message_type();
        header.flags = request.verb.flags();
        let start = self.bytes.len();
        self.bytes.resize(start + length, 0);
        let (head, payload) = self.bytes[start..].split_at_mut(header.buffer_len());
        header.emit(head);
        request.message.serialize(payload);
        self.starts.push(start);
    }

    /// The number of requests.
    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// Removes all requests.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.starts.clear();
    }

    /// Requests an ACK for one of them, which must not be a dump.
    pub(super) fn acknowledge(&mut self, index: usize) {
        let flags = self.field::<2>(index, FLAGS);
        let flags = u16::from_ne_bytes(flags) | NLM_F_ACK;
        self.set_field(index, FLAGS, flags.to_ne_bytes());
    }

    /// The message type of one of them: `RTM_…`.
    pub(super) fn kind(&self, index: usize) -> u16 {
        u16::from_ne_bytes(self.field(index, TYPE))
    }

    /// Gives the requests sequence numbers from `first` on and the sender's port; returns the last number.
    pub(super) fn number(&mut self, first: u32, port: u32) -> u32 {
        let mut next = first;
        for index in 0..self.len() {
            self.set_field(index, SEQUENCE, next.to_ne_bytes());
            self.set_field(index, PORT, port.to_ne_bytes());
            next = next.wrapping_add(1);
        }
        next.wrapping_sub(1)
    }

    /// The datagram.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A field of a request's header; zeroes if there is no such request.
    fn field<const N: usize>(&self, index: usize, offset: usize) -> [u8; N] {
        let field = self.starts.get(index).and_then(|start| {
            let field = self.bytes.get(start + offset..)?;
            field.first_chunk::<N>().copied()
        });
        field.unwrap_or([0; N])
    }

    fn set_field<const N: usize>(&mut self, index: usize, offset: usize, value: [u8; N]) {
        let start = self.starts.get(index).map(|start| start + offset);
        let field = start.and_then(|start| self.bytes.get_mut(start..start + N));
        if let Some(field) = field {
            field.copy_from_slice(&value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::message::{Message, Verb};
    use crate::host::netlink::nexthop::NextHopMessage;
    use crate::host::netlink::socket::Messages;

    #[test]
    fn requests_are_numbered_and_the_last_asks_for_an_answer() {
        let delete = |id| {
            let message = Message::DelNextHop(NextHopMessage::by_id(id));
            Request::<Message>::new(Verb::Plain, message)
        };
        let mut batch = Batch::default();
        for round in [7, u32::MAX] {
            batch.clear();
            for id in 1..=3 {
                batch.add(&delete(id));
            }
            assert_eq!(batch.len(), 3);
            batch.acknowledge(2);
            // Nothing happens to what is not there.
            batch.acknowledge(3);
            assert_eq!(batch.number(round, 99), round.wrapping_add(2));
            assert_eq!(
                [0, 1, 2, 3].map(|index| batch.kind(index)),
                [105, 105, 105, 0]
            );
            let read: Vec<_> = Messages::<Message>::new(batch.bytes())
                .map(|message| message.unwrap_or_else(|_| panic!("unreadable")).header)
                .map(|header| (header.sequence_number, header.port_number, header.flags))
                .collect();
            let number = |n: u32| round.wrapping_add(n);
            assert_eq!(
                read,
                [
                    (number(0), 99, 1),
                    (number(1), 99, 1),
                    (number(2), 99, 1 | NLM_F_ACK)
                ]
            );
        }
    }
}
