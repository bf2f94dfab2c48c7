//! What is wrong with a document, and why networkd does not get the platform's network.

use std::io;

use thiserror::Error;

use crate::appliance::metadata::http::Trouble;
use crate::base::words;

/// What is built upon cards, or no card at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Unsupported {
    /// Several cards as one.
    #[error("a bond")]
    Bond,
    /// A switch.
    #[error("a bridge")]
    Bridge,
    /// Another virtual device.
    #[error("a device that is no Ethernet card")]
    Device,
    /// A modem.
    #[error("a modem")]
    Modem,
    /// A tunnel.
    #[error("a tunnel")]
    Tunnel,
    /// A tagged network on a card.
    #[error("a VLAN")]
    Vlan,
    /// A routing domain.
    #[error("a VRF")]
    Vrf,
    /// A wireless card.
    #[error("a wireless card")]
    Wifi,
}

/// What of a document cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Problem {
    /// Not even begun with.
    #[error("it is larger than {}", words::bytes(super::LARGEST as u64))]
    TooLarge,
    /// Some other file.
    #[error("it is no UTF-8 text")]
    NotText,
    /// Neither JSON nor YAML.
    #[error("{0}")]
    Syntax(String),
    /// A form that others use.
    #[error(
        "it is a file for /etc/network/interfaces, which is not read here: have the drive made as NoCloud"
    )]
    Interfaces,
    /// A key that must be there.
    #[error("{0} is missing")]
    Missing(String),
    /// A value of the wrong kind.
    #[error("{path} is {value}: expected {expected}")]
    Value {
        /// The keys that lead to it.
        path: String,
        /// What it is.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The key is the name of a card, and no card can have it.
    #[error("{path}: without match this is the name of a card, and no card has such a one")]
    Name {
        /// The keys that lead to it.
        path: String,
    },
    /// More than any machine has.
    #[error("{path} has {count} entries: expected {most} at most")]
    TooMany {
        /// The keys that lead to it.
        path: String,
        /// How many.
        count: usize,
        /// How many there may be.
        most: usize,
    },
    /// More than cards.
    #[error(
        "{path} is {what}: only cards themselves are set up from here, so give them addresses, or have the config write files for networkd"
    )]
    Unsupported {
        /// The keys that lead to it.
        path: String,
        /// What it is.
        what: Unsupported,
    },
    /// Two parts about the same cards.
    #[error("{0} is about the same card as another part")]
    Twice(String),
    /// A key without effect here.
    #[error("{0} is not used")]
    Ignored(String),
    /// A route that belongs to no card.
    #[error("{0}: no card has an address in the network of this route's gateway")]
    Unreachable(String),
    /// A card of which nothing is said.
    #[error("{0} has neither addresses nor DHCP, so it is as if it were not there")]
    Idle(String),
}

/// Why the network is not the platform's.
#[derive(Debug, Error)]
pub enum Error {
    /// The platform does not say it.
    #[error("the platform's network")]
    Platform(#[from] Trouble),
    /// A document cannot be read.
    #[error("failed to read {place}")]
    Read {
        /// Which.
        place: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is in a document cannot be used.
    #[error("{place}")]
    Document {
        /// Which.
        place: String,
        /// What is wrong.
        #[source]
        problem: Problem,
    },
    /// An argument that nobody understands.
    #[error(
        "{place} has the argument {argument:?}: expected ip=, nameserver= and the like, as on the kernel command line"
    )]
    Argument {
        /// The key.
        place: String,
        /// The argument.
        argument: String,
    },
    /// Without `ip=` the generator would make a network without any address.
    #[error("{place} has no ip=, so it is not used")]
    NoAddress {
        /// The key.
        place: String,
    },
    /// The generator refuses the arguments; its own words are above.
    #[error("systemd-network-generator does not take {arguments:?} of {place}: {cause}")]
    Generator {
        /// The key.
        place: String,
        /// All of them.
        arguments: String,
        /// The exit status, or why it was not started.
        cause: io::Error,
    },
    /// The files cannot be put where networkd reads them.
    #[error("failed to write the platform's network to /{}", super::FILES)]
    Files(#[source] io::Error),
}
