//! The names of lease keys: which subnet a key stands for.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};
use thiserror::Error;

use crate::go_json::shorten;

/// What identifies a lease: the leased subnets, always masked to their network addresses.
///
/// Ordered by IPv4 subnet. Shown as the subnet itself; [`SubnetKey::name`] is the form used in etcd.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SubnetKey {
    /// The IPv4 subnet, for example 10.5.34.0/24.
    pub v4: Ipv4Net,
    /// The IPv6 subnet of a dual-stack lease.
    pub v6: Option<Ipv6Net>,
}

/// The last part of a lease key does not name a subnet.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LeaseKeyError {
    /// The text has another form.
    #[error("{0:?} is not a lease key such as 10.5.34.0-24 or 10.5.34.0-24&fd00:10:5:22::-64")]
    Form(String),
    /// The text has the right form, but flannel spells this subnet differently; a second spelling of one subnet would
    /// be a second lease for it.
    #[error(
        "{text:?} is not how flannel writes a lease key; the key of that subnet is {canonical}"
    )]
    Spelling {
        /// The key as found.
        text: String,
        /// The key that flannel would write.
        canonical: String,
    },
}

impl SubnetKey {
    /// The key of the subnets that these addresses lie in.
    pub fn new(v4: Ipv4Net, v6: Option<Ipv6Net>) -> Self {
        Self {
            v4: v4.trunc(),
            v6: v6.map(|v6| v6.trunc()),
        }
    }

    /// Reads the last part of a lease key, `A.B.C.D-LEN` or `A.B.C.D-LEN&V6-LEN6`.
    ///
    /// Stricter than flannel, since other nodes write these keys: nothing may stand before the address (flannel's
    /// pattern is anchored at the end only), host bits must be 0, and numbers and IPv6 addresses must be spelled as
    /// flannel itself spells them.
    pub fn parse_name(name: &str) -> Result<Self, LeaseKeyError> {
        let form = || LeaseKeyError::Form(shorten(name));
        let (v4, v6) = match name.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (name, None),
        };
        let (v4, len): (Ipv4Addr, u8) = parse_half(v4).ok_or_else(form)?;
        // flannel reads this length into 5 bits and the other one into 7.
        let v4 = Ipv4Net::new(v4, len).ok().filter(|_| len <= 31);
        let v6 = match v6.map(parse_half::<Ipv6Addr>) {
            None => None,
            Some(None) => return Err(form()),
            Some(Some((_, len))) if len > 127 => return Err(form()),
            Some(Some((v6, len))) => Some(Ipv6Net::new(v6, len).map_err(|_| form())?),
        };
        let key = Self::new(v4.ok_or_else(form)?, v6);
        let canonical = key.name();
        if canonical == name {
            Ok(key)
        } else {
            Err(LeaseKeyError::Spelling {
                text: shorten(name),
                canonical,
            })
        }
    }

    /// The last part of the lease key, as flannel writes it: `10.5.34.0-24` or `10.5.34.0-24&fd00:10:5:22::-64`.
    pub fn name(&self) -> String {
        let (v4, len) = (self.v4.network(), self.v4.prefix_len());
        match self.v6 {
            None => format!("{v4}-{len}"),
            Some(v6) => format!("{v4}-{len}&{}-{}", v6.network(), v6.prefix_len()),
        }
    }
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.v4)?;
        match self.v6 {
            Some(v6) => write!(f, " and {v6}"),
            None => Ok(()),
        }
    }
}

fn parse_half<A: FromStr>(half: &str) -> Option<(A, u8)> {
    let (address, len) = half.rsplit_once('-')?;
    Some((address.parse().ok()?, len.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn flannels_keys_are_read_and_written() {
        for name in [
            "10.12.13.0-24",
            "0.0.0.0-0",
            "10.12.13.0-24&fd00:12:13::-56",
            "10.5.0.2-31&::-1",
        ] {
            let key = SubnetKey::parse_name(name).unwrap();
            assert_eq!(key.name(), name);
        }
        let key = SubnetKey::parse_name("10.12.13.0-24&fd00:12:13::-56").unwrap();
        assert_eq!(key.to_string(), "10.12.13.0/24 and fd00:12:13::/56");
    }

    /// Upstream's own list, and then what only flannel accepts.
    #[test]
    fn everything_else_is_refused() {
        for name in [
            "10",
            "10.12.13.0",
            "10.12.13-24",
            "10.12.13.300-24",
            "10.12.13.0-24hi",
            "&2001::-56",
            "10.12.13.0-24&:12:13:-56",
            "10.12.13.0-24&20011::-56",
            "10.12.13.0-24&2001-56",
            "10.12.13.0-24&2001::",
            "10.12.13.0-24&2001::-56hi",
            "",
            "junk10.1.2.0-24",
            "subnets/10.1.2.0-24",
            "10.1.2.0-24&",
            "10.1.2.0-24&fd00::-64&fd00::-64",
            "10.1.2.0-32",
            "10.1.2.0-024",
            "10.1.2.0-+24",
            "10.1.2.0--24",
            "10.01.2.0-24",
            "10.1.2.1-24",
            "10.1.2.0-16",
            "10.1.2.0-24&fd00::-128",
            "10.1.2.0-24&fd00::1-64",
            "10.1.2.0-24&FD00::-64",
            "10.1.2.0-24&fd00:0::-64",
            "10.1.2.0-24\n",
            "10.1.2.0-99999999999",
        ] {
            assert!(
                SubnetKey::parse_name(name).is_err(),
                "{name:?} was accepted"
            );
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_names_are_unique(name in "[0-9.&:a-f/-]{0,40}") {
            if let Ok(key) = SubnetKey::parse_name(&name) {
                prop_assert_eq!(key.name(), name);
            }
        }

        #[test]
        fn keys_read_back(v4: u32, len in 0u8..32, v6: u128, len6 in 0u8..128, dual: bool) {
            let key = SubnetKey {
                v4: Ipv4Net::new(v4.into(), len).unwrap().trunc(),
                v6: dual.then(|| Ipv6Net::new(v6.into(), len6).unwrap().trunc()),
            };
            prop_assert_eq!(SubnetKey::parse_name(&key.name()), Ok(key));
        }
    }
}
