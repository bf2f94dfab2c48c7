//! Settings of flannel's client and server mode.

use std::fmt;

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Listen {
    /// On `HOST:PORT`; the host may be a name, or empty for all addresses.
    Address(String),
    /// On a socket from the service manager, by file descriptor: 3 is the first.
    Descriptor(u16),
}

impl Listen {
    /// What [`Self::parse`] accepts, for messages.
    pub(super) const FORM: &str =
        "HOST:PORT with a port from 1 to 65535, fd://, or fd://N with a number from 3 to 65535";

    /// Parses flannel's forms: `HOST:PORT`, `tcp://HOST:PORT`, `:PORT`, `fd://`, `fd://N`. `None` for any other.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text
            .trim()
            .split_once("://")
            .unwrap_or(("tcp", text.trim()));
        match (scheme, rest) {
            ("fd", "") => Some(Self::Descriptor(3)),
            ("fd", number) => {
                let number = number.parse().ok().filter(|number| *number >= 3)?;
                Some(Self::Descriptor(number))
            }
            ("tcp", address) => {
                let (host, port) = address.rsplit_once(':')?;
                port.parse::<u16>().ok().filter(|port| *port != 0)?;
                let bracketed = host.starts_with('[') && host.ends_with(']');
                let plain = !host.contains([':', '/', '@', ' ']);
                (bracketed || plain).then(|| Self::Address(address.to_owned()))
            }
            _ => None,
        }
    }
}

/// In the form that [`Listen::parse`] accepts.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => f.write_str(address),
            Self::Descriptor(number) => write!(f, "fd://{number}"),
        }
    }
}

/// The allowed names of a network, for messages.
pub(crate) const NETWORK_NAME: &str = "_ for the network without a name, or 1 to 64 letters, digits, '.', '_' or '-', of which the \
     first is a letter or a digit, other than config and subnets";

/// Whether a network may have this name. In etcd the name is one more element of the key prefix.
pub(crate) fn is_network_name(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=64).contains(&name.len())
        && name.bytes().all(good)
        && name
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric())
        && !matches!(name, "config" | "subnets")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_names_are_single_elements_of_a_key() {
        for name in ["blue", "a.b-c_d", "0"] {
            assert!(is_network_name(name), "{name}");
        }
        let long = "x".repeat(65);
        for name in [
            "", "_", ".", "..", "a/b", "config", "subnets", "-a", "a b", "ä", &long,
        ] {
            assert!(!is_network_name(name), "{name}");
        }
    }

    #[test]
    fn flannels_forms_of_an_address_are_read() {
        let address = |text: &str| Some(Listen::Address(text.to_owned()));
        for (text, listen) in [
            ("10.0.0.1:8889", address("10.0.0.1:8889")),
            ("tcp://host:1", address("host:1")),
            (":8889", address(":8889")),
            ("[::1]:8889", address("[::1]:8889")),
            ("fd://", Some(Listen::Descriptor(3))),
            ("fd://4", Some(Listen::Descriptor(4))),
            ("fd://2", None),
            ("fd://x", None),
            ("unix:///x", None),
            ("host", None),
            ("host:0", None),
            ("host:65536", None),
            ("::1:8889", None),
            ("a/b:1", None),
            ("", None),
        ] {
            assert_eq!(Listen::parse(text), listen, "{text:?}");
        }
    }
}
