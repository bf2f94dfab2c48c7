//! Why another node's lease is not used.

use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;

use crate::base::codes::codes;
use crate::base::net::{InterfaceName, MacAddr};
use crate::cluster::lease::{IdentityKind, SubnetKey};

/// Why a peer's lease, or its last update, is not used.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PeerRefusal {
    /// The subnet is not inside the overlay network.
    #[error("its subnet is outside the network")]
    OutsideNetwork,
    /// The lease has no subnet of the network's families.
    #[error("it has no subnet of an IP version that the network has")]
    OtherFamily,
    /// The subnet overlaps this node's.
    #[error("its subnet overlaps this node's, {0}")]
    OverlapsOwn(SubnetKey),
    /// The subnet overlaps that of an older lease.
    #[error("its subnet overlaps the older lease {0}")]
    OverlapsOlder(SubnetKey),
    /// The subnet covers an address of this host: packets for it would go to that node.
    #[error("its subnet contains this host's address {0}")]
    HoldsHost(IpAddr),
    /// The subnet covers an older lease's public IP, or the public IP is in an older lease's subnet.
    #[error(
        "it conflicts with the older lease {0}: the subnet of one contains the public IP of the other"
    )]
    MeetsOlder(SubnetKey),
    /// An update moved the public IP into the subnet of a lease in use.
    #[error(
        "its new public IP is in the subnet of the lease {0}; what it published before stays in use"
    )]
    MovesInto(SubnetKey),
    /// An update made the lease's MAC address or key that of another lease in use.
    #[error(
        "the lease of {holder} already has its new {what}; what it published before stays in use"
    )]
    Copies {
        /// Which of the two.
        what: IdentityKind,
        /// The other lease.
        holder: SubnetKey,
    },
    /// The public IP is not a host address.
    #[error("its public IP {address} is {what}")]
    PublicIp {
        /// The address, IPv4 or IPv6.
        address: IpAddr,
        /// What it is instead.
        what: &'static str,
    },
    /// The public IP is this node's: packets to the peer would come back to us.
    #[error("its public IP {0} is this node's")]
    OurPublicIp(IpAddr),
    /// The peer runs another backend.
    #[error("it runs another backend, {theirs:?}")]
    OtherBackend {
        /// Its name; empty for udp and alloc.
        theirs: String,
    },
    /// The lease lacks backend data for a family of its subnets.
    #[error("its lease has no {key} for {0}", key = data_key(*.0))]
    NoBackendData(IpNet),
    /// The backend data cannot be parsed.
    #[error("its BackendData is unusable: {0}")]
    BackendData(String),
    /// The lease lacks an address for a family of its subnets.
    #[error("its lease has no {key} for {0}", key = address_key(*.0))]
    NoAddress(IpNet),
    /// The lease lacks the one address that all of the peer's packets would be sent to.
    #[error("its lease has no {0} to send packets to")]
    NoEndpoint(&'static str),
    /// The MAC address is not unicast.
    #[error("its VtepMAC {0} is not a unicast address")]
    NotUnicast(MacAddr),
    /// Two nodes with the same MAC address cannot talk: the kernel takes the other's frames for its own.
    #[error("its VtepMAC {0} is this node's; was a disk cloned with its state directory?")]
    OwnMac(MacAddr),
    /// Two nodes with the same key cannot talk: the kernel skips a peer that has the device's own key.
    #[error("its PublicKey {0} is this node's; was a disk cloned with its state directory?")]
    OwnKey(String),
    /// Packets to the peer would enter the device again that they come from.
    #[error(
        "its public IP {public} is inside the network {network}, which is routed into {link}; this node's underlay is outside it"
    )]
    Looping {
        /// The peer's address.
        public: IpAddr,
        /// The overlay's network.
        network: IpNet,
        /// The device with a route to the whole network.
        link: InterfaceName,
    },
    /// The peer is not on-link, so it cannot be a next hop.
    #[error("its public IP {public} is not a host address on the underlay's link, {on_link}")]
    OffLink {
        /// The peer's address.
        public: IpAddr,
        /// Our address with its prefix length.
        on_link: IpNet,
    },
    /// An older lease claims what this one needs.
    #[error("the older lease of {holder} already has {object}")]
    Taken {
        /// The kind of object that both claim.
        what: Claimed,
        /// The object that both claim, in ip(8) syntax.
        object: String,
        /// The older lease.
        holder: SubnetKey,
    },
}

/// An object that two leases can claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claimed {
    /// A MAC address.
    Mac,
    /// A WireGuard key.
    Key,
    /// Something else, such as a neighbor entry.
    Other,
}

fn data_key(net: IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "BackendData",
        IpNet::V6(_) => "BackendV6Data",
    }
}

fn address_key(net: IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "PublicIP",
        IpNet::V6(_) => "PublicIPv6",
    }
}

codes! {
    /// The kinds of [`PeerRefusal`]; the texts are part of the status.
    pub enum RefusalCode {
        /// The subnet is not inside the overlay network.
        OutsideNetwork = "outside-network",
        /// No subnet of the network's families.
        OtherFamily = "other-family",
        /// The subnet overlaps this node's.
        OverlapsOwn = "overlaps-own",
        /// The subnet covers an address of this host.
        HoldsHost = "holds-host",
        /// The subnet overlaps an older lease's.
        OverlapsOlder = "overlaps-older",
        /// The subnet covers an older lease's public IP, or the reverse.
        MeetsOlder = "meets-older",
        /// An update moved the public IP into the subnet of a lease in use.
        MovesInto = "moves-into",
        /// An update gave it the MAC address of a lease in use.
        CopiesMac = "copies-mac",
        /// An update gave it the key of a lease in use.
        CopiesKey = "copies-key",
        /// The public IP is not a host address.
        PublicIp = "public-ip",
        /// The public IP is this node's.
        OurPublicIp = "our-public-ip",
        /// It runs another backend.
        OtherBackend = "other-backend",
        /// It published no backend data.
        NoBackendData = "no-backend-data",
        /// Its backend data cannot be parsed.
        BackendData = "backend-data",
        /// It published no address of a needed family.
        NoAddress = "no-address",
        /// Its MAC address is not unicast.
        NotUnicast = "not-unicast",
        /// Its MAC address is this node's.
        OwnMac = "own-mac",
        /// Its key is this node's.
        OwnKey = "own-key",
        /// Packets to its public IP would loop.
        Looping = "looping",
        /// It is not on-link on the underlay.
        OffLink = "off-link",
        /// An older lease has its MAC address.
        TakenMac = "taken-mac",
        /// An older lease has its key.
        TakenKey = "taken-key",
        /// An older lease has another object that it needs.
        Taken = "taken",
    }
}

impl PeerRefusal {
    /// The kind of reason.
    pub fn code(&self) -> RefusalCode {
        match self {
            Self::OutsideNetwork => RefusalCode::OutsideNetwork,
            Self::OtherFamily => RefusalCode::OtherFamily,
            Self::OverlapsOwn(_) => RefusalCode::OverlapsOwn,
            Self::OverlapsOlder(_) => RefusalCode::OverlapsOlder,
            Self::HoldsHost(_) => RefusalCode::HoldsHost,
            Self::MeetsOlder(_) => RefusalCode::MeetsOlder,
            Self::MovesInto(_) => RefusalCode::MovesInto,
            Self::Copies { what, .. } => match what {
                IdentityKind::Mac => RefusalCode::CopiesMac,
                IdentityKind::Key => RefusalCode::CopiesKey,
            },
            Self::PublicIp { .. } => RefusalCode::PublicIp,
            Self::OurPublicIp(_) => RefusalCode::OurPublicIp,
            Self::OtherBackend { .. } => RefusalCode::OtherBackend,
            Self::NoBackendData(_) => RefusalCode::NoBackendData,
            Self::BackendData(_) => RefusalCode::BackendData,
            Self::NoAddress(_) | Self::NoEndpoint(_) => RefusalCode::NoAddress,
            Self::NotUnicast(_) => RefusalCode::NotUnicast,
            Self::OwnMac(_) => RefusalCode::OwnMac,
            Self::OwnKey(_) => RefusalCode::OwnKey,
            Self::Looping { .. } => RefusalCode::Looping,
            Self::OffLink { .. } => RefusalCode::OffLink,
            Self::Taken { what, .. } => match what {
                Claimed::Mac => RefusalCode::TakenMac,
                Claimed::Key => RefusalCode::TakenKey,
                Claimed::Other => RefusalCode::Taken,
            },
        }
    }

    /// The other lease whose change would end this refusal, if any.
    pub(crate) fn holder(&self) -> Option<&SubnetKey> {
        match self {
            Self::MeetsOlder(holder) | Self::MovesInto(holder) | Self::Copies { holder, .. } => {
                Some(holder)
            }
            _ => None,
        }
    }

    /// The object of the refusal, besides the lease itself: an older lease, an address, a key, a backend.
    pub fn object(&self) -> Option<String> {
        Some(match self {
            Self::OutsideNetwork | Self::OtherFamily | Self::BackendData(_) => return None,
            Self::OverlapsOwn(key)
            | Self::OverlapsOlder(key)
            | Self::MeetsOlder(key)
            | Self::MovesInto(key) => key.to_string(),
            Self::HoldsHost(address)
            | Self::OurPublicIp(address)
            | Self::PublicIp { address, .. }
            | Self::Looping {
                public: address, ..
            }
            | Self::OffLink {
                public: address, ..
            } => address.to_string(),
            Self::OtherBackend { theirs } => {
                return Some(theirs.clone()).filter(|it| !it.is_empty());
            }
            Self::NoBackendData(net) => data_key(*net).to_owned(),
            Self::NoAddress(net) => address_key(*net).to_owned(),
            Self::NoEndpoint(key) => (*key).to_owned(),
            Self::NotUnicast(mac) | Self::OwnMac(mac) => mac.to_string(),
            Self::OwnKey(key) => key.clone(),
            Self::Copies { holder, .. } | Self::Taken { holder, .. } => holder.to_string(),
        })
    }
}

impl RefusalCode {
    /// The classes that metrics count by.
    pub const CLASSES: [&'static str; 9] = [
        "outside-network",
        "other-family",
        "overlaps-own",
        "overlaps-older",
        "public-ip",
        "our-public-ip",
        "other-backend",
        "backend-data",
        "not-programmable",
    ];

    /// The one of [`Self::CLASSES`] that it belongs to: a code has its own series only if an alert may need it.
    pub fn class(self) -> &'static str {
        match self {
            Self::OutsideNetwork => "outside-network",
            Self::OtherFamily => "other-family",
            Self::OverlapsOwn | Self::HoldsHost => "overlaps-own",
            Self::OverlapsOlder
            | Self::MeetsOlder
            | Self::MovesInto
            | Self::CopiesMac
            | Self::CopiesKey => "overlaps-older",
            Self::PublicIp => "public-ip",
            Self::OurPublicIp => "our-public-ip",
            Self::OtherBackend => "other-backend",
            Self::NoBackendData
            | Self::BackendData
            | Self::NoAddress
            | Self::NotUnicast
            | Self::OwnMac
            | Self::OwnKey
            | Self::Looping
            | Self::OffLink => "backend-data",
            Self::TakenMac | Self::TakenKey | Self::Taken | Self::Unknown => "not-programmable",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One of each kind.
    pub(crate) fn one_of_each() -> Vec<PeerRefusal> {
        let key = SubnetKey::parse_argument("10.5.1.0/24").unwrap();
        let net: IpNet = "10.5.1.0/24".parse().unwrap();
        let address = "10.0.0.1".parse().unwrap();
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        let taken = |what, object: &str| PeerRefusal::Taken {
            what,
            object: object.to_owned(),
            holder: key,
        };
        vec![
            PeerRefusal::OutsideNetwork,
            PeerRefusal::OtherFamily,
            PeerRefusal::OverlapsOwn(key),
            PeerRefusal::OverlapsOlder(key),
            PeerRefusal::HoldsHost(address),
            PeerRefusal::MeetsOlder(key),
            PeerRefusal::MovesInto(key),
            PeerRefusal::Copies {
                what: IdentityKind::Mac,
                holder: key,
            },
            PeerRefusal::Copies {
                what: IdentityKind::Key,
                holder: key,
            },
            PeerRefusal::PublicIp {
                address,
                what: "a multicast address",
            },
            PeerRefusal::OurPublicIp(address),
            PeerRefusal::OtherBackend {
                theirs: "host-gw".to_owned(),
            },
            PeerRefusal::NoBackendData(net),
            PeerRefusal::BackendData("VtepMAC: 7".to_owned()),
            PeerRefusal::NoAddress(net),
            PeerRefusal::NoEndpoint("PublicIPv6"),
            PeerRefusal::NotUnicast(mac),
            PeerRefusal::OwnMac(mac),
            PeerRefusal::OwnKey("a key".to_owned()),
            PeerRefusal::Looping {
                public: address,
                network: net,
                link: "flannel-wg".parse().unwrap(),
            },
            PeerRefusal::OffLink {
                public: address,
                on_link: net,
            },
            taken(Claimed::Mac, "fdb 02:00:00:00:00:01 dev flannel.1"),
            taken(Claimed::Key, "wireguard peer KEY dev flannel-wg"),
            taken(Claimed::Other, "neighbor 10.5.1.0 dev flannel.1"),
        ]
    }

    #[test]
    fn every_code_is_some_refusals_and_has_a_class() {
        let all = one_of_each();
        for code in RefusalCode::ALL {
            assert!(
                all.iter().any(|refusal| refusal.code() == *code),
                "nothing has {code}"
            );
            assert!(RefusalCode::CLASSES.contains(&code.class()), "{code}");
        }
        for class in RefusalCode::CLASSES {
            assert!(
                RefusalCode::ALL.iter().any(|code| code.class() == class),
                "nothing is {class}"
            );
        }
    }
}
