//! The name of one of several networks on this host.
//!
//! The first or only network has no name. Every further network has its own agent, and its name keeps that agent's
//! objects apart: next-hop IDs, names of firewall rules, aliases of devices, files.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use thiserror::Error;

/// The longest name in bytes: `FLANNEL-POSTRTG-NAME` must fit the 28 bytes of an iptables chain name
/// (`XT_EXTENSION_MAXNAMELEN`).
const MAX_LEN: usize = 10;

/// The syntax of a name, for messages.
pub(crate) const FORM: &str =
    "1 to 10 characters of a-z, 0-9 and -, starting with a letter, except config and subnets";

/// Directories in which the file name alone identifies a network.
const FLANNELS_DIRECTORIES: [&str; 2] = ["/run/flannel", "/run/flannel/networks"];

/// Keys below an etcd prefix that are not networks.
const KEYS: [&str; 2] = ["config", "subnets"];

/// A network name: 1 to 10 of `a-z`, `0-9` and `-`, starting with a letter; not `config` or `subnets`, which are keys
/// next to it in etcd.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NetworkName(String);

/// The text is not a network name.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{0:?} is not a network name: expected {FORM}")]
pub struct ParseNetworkNameError(String);

impl NetworkName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name made from another text: the text itself if it is valid; otherwise its valid characters, with a hash that
    /// tells similar texts apart.
    pub(crate) fn derive(text: &str) -> Self {
        text.parse().unwrap_or_else(|_| Self::shorten(text, text))
    }

    /// A name for the network with its subnet file at `path`: the file's name without extension if it is in one of
    /// flannel's directories, otherwise with a hash of the whole path.
    pub(crate) fn of_subnet_file(path: &Path) -> Self {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let is_flannels = path.parent().is_some_and(|parent| {
            FLANNELS_DIRECTORIES
                .iter()
                .any(|dir| parent == Path::new(dir))
        });
        match is_flannels {
            true => Self::derive(&stem),
            false => Self::shorten(&stem, &path.to_string_lossy()),
        }
    }

    /// Up to five letters and digits of `text`, and 16 bits of the hash of `whole`.
    fn shorten(text: &str, whole: &str) -> Self {
        let hash = fnv1a(whole.as_bytes());
        let lower = text.chars().map(|c| c.to_ascii_lowercase());
        let allowed = lower.filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let start: String = allowed.skip_while(char::is_ascii_digit).take(5).collect();
        let start = if start.is_empty() { "n" } else { &start };
        Self(format!("{start}-{:04x}", (hash >> 16) ^ (hash & 0xffff)))
    }

    /// A number for the network, 0 to 4095; the same in every build and on every machine. Two names may share one.
    pub(crate) fn number(&self) -> u32 {
        let hash = fnv1a(self.0.as_bytes());
        (hash >> 20) ^ (hash & 0xfff)
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NetworkName {
    type Err = ParseNetworkNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if text.starts_with(|first: char| first.is_ascii_lowercase())
            && text.len() <= MAX_LEN
            && text.bytes().all(allowed)
            && !KEYS.contains(&text)
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseNetworkNameError(text.chars().take(64).collect()))
        }
    }
}

/// The network in messages: by its name, or as the default network.
pub(crate) fn describe(network: Option<&NetworkName>) -> String {
    match network {
        Some(name) => format!("the network {name}"),
        None => "the default network".to_owned(),
    }
}

/// The systemd unit of a network's agent, without `.service`.
pub(crate) fn unit(network: Option<&NetworkName>) -> String {
    match network {
        Some(name) => format!("selvage@{name}"),
        None => "selvage".to_owned(),
    }
}

/// `BASE` for the default network, `BASE-NAME` for any other.
pub(crate) fn suffixed(base: &str, network: Option<&NetworkName>) -> String {
    match network {
        Some(name) => format!("{base}-{name}"),
        None => base.to_owned(),
    }
}

/// FNV-1a, 32 bits.
pub(crate) fn fnv1a<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u32 {
    bytes.into_iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for text in ["a", "blue", "net-2", "abcdefghij", "a-"] {
            assert_eq!(text.parse::<NetworkName>().unwrap().as_str(), text);
        }
        for text in [
            "",
            "2a",
            "-a",
            "Blue",
            "a_b",
            "a/b",
            "abcdefghijk",
            "blu\u{e9}",
            "config",
            "subnets",
        ] {
            let error = text.parse::<NetworkName>().unwrap_err().to_string();
            assert!(
                error.contains("1 to 10 characters of a-z, 0-9 and -"),
                "{error}"
            );
        }
    }

    #[test]
    fn subnet_files_give_names_that_stay_the_same() {
        for (path, name) in [
            ("/run/flannel/a.env", "a"),
            ("/run/flannel/networks/blue.env", "blue"),
            ("/run/flannel/Blue_Net.env", "bluen-ad92"),
            ("/run/flannel/customer-network-1.env", "custo-faab"),
            ("/run/flannel-a/subnet.env", "subne-0302"),
            ("/run/flannel-b/subnet.env", "subne-c1d5"),
            ("/run/flannel/2.env", "n-9cd9"),
            ("/", "n-bd52"),
        ] {
            assert_eq!(NetworkName::of_subnet_file(path.as_ref()).as_str(), name);
        }
    }

    #[test]
    fn numbers_spread_and_stay_the_same() {
        let number = |text: &str| text.parse::<NetworkName>().unwrap().number();
        assert_eq!([number("blue"), number("green")], [3554, 3245]);
        let numbers: BTreeSet<u32> = (0..500).map(|n| number(&format!("net{n}"))).collect();
        assert!(numbers.len() > 450, "{}", numbers.len());
        assert!(numbers.iter().all(|number| *number <= 0xfff));
    }

    proptest! {
        #[test]
        fn any_text_gives_a_name(text in ".{0,40}") {
            let name = NetworkName::derive(&text);
            prop_assert_eq!(name.as_str().parse::<NetworkName>(), Ok(name.clone()));
            let path = format!("/run/{text}");
            let name = NetworkName::of_subnet_file(path.as_ref());
            prop_assert_eq!(name.as_str().parse::<NetworkName>(), Ok(name.clone()));
        }
    }
}
