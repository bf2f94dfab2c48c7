//! The arithmetic of subnet ranges, shared by both families: addresses as 128-bit numbers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

/// The differences between the families.
pub(super) struct Family {
    /// Bits of an address.
    bits: u8,
    /// The longest subnet that has addresses for a bridge and two containers.
    longest_subnet: u8,
    /// The longest network that contains four such subnets.
    longest_network: u8,
    /// Networks up to this length get `default_subnet`; longer ones their own length plus 2.
    default_up_to: u8,
    default_subnet: u8,
    keys: Keys,
}

/// The keys' names, for errors.
struct Keys {
    network: &'static str,
    subnet_len: &'static str,
    subnet_min: &'static str,
    subnet_max: &'static str,
}

pub(super) const IPV4: Family = Family {
    bits: 32,
    longest_subnet: 30,
    longest_network: 28,
    default_up_to: 22,
    default_subnet: 24,
    keys: Keys {
        network: "Network",
        subnet_len: "SubnetLen",
        subnet_min: "SubnetMin",
        subnet_max: "SubnetMax",
    },
};

pub(super) const IPV6: Family = Family {
    bits: 128,
    longest_subnet: 126,
    longest_network: 124,
    default_up_to: 62,
    default_subnet: 64,
    keys: Keys {
        network: "IPv6Network",
        subnet_len: "IPv6SubnetLen",
        subnet_min: "IPv6SubnetMin",
        subnet_max: "IPv6SubnetMax",
    },
};

/// What the config says; 0 means "not given", as in flannel.
pub(super) struct Wanted {
    /// Network address and prefix length.
    pub(super) network: Option<(u128, u8)>,
    pub(super) subnet_len: u64,
    pub(super) min: u128,
    pub(super) max: u128,
}

/// The result.
#[derive(Debug)]
pub(super) struct Computed {
    pub(super) subnet_len: u8,
    pub(super) min: u128,
    pub(super) max: u128,
}

/// The address range in the network config is invalid.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RangeError {
    /// The network is missing, or is the whole address space.
    #[error("{key} is missing or empty: set it, for example to \"10.5.0.0/16\"")]
    NoNetwork {
        /// The key, in flannel's spelling.
        key: &'static str,
    },
    /// The network is too small for four subnets with room for hosts.
    #[error("{key}: /{length} is too small; allowed are prefix lengths up to /{longest}")]
    NetworkTooSmall {
        /// The key, in flannel's spelling.
        key: &'static str,
        /// The network's prefix length.
        length: u8,
        /// The longest allowed.
        longest: u8,
    },
    /// The subnet length leaves no room for hosts, or for four subnets in the network.
    #[error(
        "{key}: {length} is outside {shortest} to {longest}, so that the network holds at least four subnets"
    )]
    SubnetLen {
        /// The key, in flannel's spelling.
        key: &'static str,
        /// The length given.
        length: u64,
        /// The shortest allowed.
        shortest: u8,
        /// The longest allowed.
        longest: u8,
    },
    /// A bound is not an address of the network.
    #[error("{key}: {address} is not in the network, {first} to {last}")]
    Outside {
        /// The key, in flannel's spelling.
        key: &'static str,
        /// The address given.
        address: IpAddr,
        /// The network's first address.
        first: IpAddr,
        /// The network's last address.
        last: IpAddr,
    },
    /// A bound is not the first address of a subnet.
    #[error(
        "{key}: {address} is not on a boundary of {subnet_len} /{length}; the next lower one is {lower}"
    )]
    Boundary {
        /// The key, in flannel's spelling.
        key: &'static str,
        /// The key of the subnet length.
        subnet_len: &'static str,
        /// The address given.
        address: IpAddr,
        /// The prefix length of subnets.
        length: u8,
        /// The boundary below the address.
        lower: IpAddr,
    },
    /// `SubnetMin` is above `SubnetMax`.
    #[error("{min_key}: {min} is above {max_key}: {max}, which leaves no subnet to lease")]
    MinAboveMax {
        /// The key of the lower bound.
        min_key: &'static str,
        /// The lower bound.
        min: IpAddr,
        /// The key of the upper bound.
        max_key: &'static str,
        /// The upper bound.
        max: IpAddr,
    },
}

impl Family {
    /// Checks the given values and computes the missing ones: flannel's `CheckNetworkConfig`.
    pub(super) fn range(&self, wanted: &Wanted) -> Result<Computed, RangeError> {
        let keys = &self.keys;
        let no_network = RangeError::NoNetwork { key: keys.network };
        // Length 0 is flannel's empty network: an address masked by it is always 0.
        let network = wanted.network.filter(|(_, length)| *length != 0);
        let (address, length) = network.ok_or(no_network)?;
        let subnet_len = self.subnet_len(length, wanted.subnet_len)?;
        let size = self.size(subnet_len);
        let first = address & !(self.size(length) - 1);
        let last = first | (self.size(length) - 1);
        // The first subnet is skipped: its network address equals that of the whole network, which confuses old
        // software.
        let bound = |key, given| self.bound(key, given, (first, last), subnet_len);
        let min = bound(keys.subnet_min, wanted.min)?.unwrap_or(first + size);
        let max = bound(keys.subnet_max, wanted.max)?.unwrap_or(last - (size - 1));
        if min > max {
            return Err(RangeError::MinAboveMax {
                min_key: keys.subnet_min,
                min: self.address(min),
                max_key: keys.subnet_max,
                max: self.address(max),
            });
        }
        Ok(Computed {
            subnet_len,
            min,
            max,
        })
    }

    /// The first or last subnet as given; `None` if it is not, which is 0.
    fn bound(
        &self,
        key: &'static str,
        given: u128,
        (first, last): (u128, u128),
        subnet_len: u8,
    ) -> Result<Option<u128>, RangeError> {
        let host_bits = self.size(subnet_len) - 1;
        if given == 0 {
            return Ok(None);
        }
        if !(first..=last).contains(&given) {
            return Err(RangeError::Outside {
                key,
                address: self.address(given),
                first: self.address(first),
                last: self.address(last),
            });
        }
        if given & host_bits != 0 {
            return Err(RangeError::Boundary {
                key,
                subnet_len: self.keys.subnet_len,
                address: self.address(given),
                length: subnet_len,
                lower: self.address(given & !host_bits),
            });
        }
        Ok(Some(given))
    }

    fn subnet_len(&self, network: u8, wanted: u64) -> Result<u8, RangeError> {
        if network > self.longest_network {
            return Err(RangeError::NetworkTooSmall {
                key: self.keys.network,
                length: network,
                longest: self.longest_network,
            });
        }
        if wanted == 0 {
            return Ok(if network <= self.default_up_to {
                self.default_subnet
            } else {
                network + 2
            });
        }
        let shortest = network + 2;
        u8::try_from(wanted)
            .ok()
            .filter(|length| (shortest..=self.longest_subnet).contains(length))
            .ok_or(RangeError::SubnetLen {
                key: self.keys.subnet_len,
                length: wanted,
                shortest,
                longest: self.longest_subnet,
            })
    }

    /// Number of addresses under a prefix of `length`, which is never 0 here.
    fn size(&self, length: u8) -> u128 {
        1 << (self.bits - length)
    }

    fn address(&self, number: u128) -> IpAddr {
        if self.bits == 32 {
            to_ipv4(number).into()
        } else {
            Ipv6Addr::from(number).into()
        }
    }
}

/// The IPv4 address with this number; the high bits are 0 by construction.
pub(super) fn to_ipv4(number: u128) -> Ipv4Addr {
    let [.., a, b, c, d] = number.to_be_bytes();
    Ipv4Addr::new(a, b, c, d)
}
