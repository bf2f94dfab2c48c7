//! What one source says: the form of a settings file, in which every key may be missing.

use std::fmt;
use std::path::Path;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::{Error, Source};

/// One settings file. A key or table that is not listed here is an error, so that a misspelt one is noticed.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Fragment {
    pub(super) etcd: Etcd,
    pub(super) remote: Remote,
    pub(super) underlay: Underlay,
    pub(super) firewall: Firewall,
    pub(super) files: Files,
    pub(super) health: Health,
    pub(super) agent: Agent,
}

/// `[etcd]`: how the lease store is reached. An empty text means "none" wherever a value is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Etcd {
    /// URLs of the members (default: `["http://127.0.0.1:2379"]`).
    pub(super) endpoints: Option<Spanned<Vec<String>>>,
    /// What all keys begin with (default: `/coreos.com/network`, with `/NAME` for a network that has a name).
    pub(super) prefix: Option<Spanned<String>>,
    /// File of certificate authorities to trust, PEM (default: none).
    pub(super) cafile: Option<Spanned<String>>,
    /// File of our certificate, PEM (default: none); needs `keyfile`.
    pub(super) certfile: Option<Spanned<String>>,
    /// File of the key to it, PEM (default: none); needs `certfile`.
    pub(super) keyfile: Option<Spanned<String>>,
    /// Whom to log in as (default: none); needs `password-file`.
    pub(super) username: Option<Spanned<String>>,
    /// File that holds the password, and nothing else (default: none); needs `username`.
    pub(super) password_file: Option<Spanned<String>>,
    /// Seconds for which a lease outlives its node, 60 to 31536000 (default: 86400).
    pub(super) lease_ttl: Option<Spanned<i64>>,
}

/// `[remote]`: leases kept by a server, and being one.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Remote {
    /// Servers that keep the leases in place of etcd, `HOST:PORT` (default: none).
    pub(super) server: Option<Spanned<Texts>>,
    /// The network's name at the server (default: `agent.network`, else `_`, the one that has none).
    pub(super) network: Option<Spanned<String>>,
    /// Where `selvage serve` listens: `HOST:PORT`, `fd://` or `fd://N` (default: none).
    pub(super) listen: Option<Spanned<String>>,
    /// File of certificate authorities that the other side's certificate is checked against, PEM (default: none).
    pub(super) cafile: Option<Spanned<String>>,
    /// File of our certificate, PEM (default: none); needs `keyfile`.
    pub(super) certfile: Option<Spanned<String>>,
    /// File of the key to it, PEM (default: none); needs `certfile`.
    pub(super) keyfile: Option<Spanned<String>>,
    /// Whether `selvage serve` takes clients without a certificate (default: false).
    pub(super) insecure: Option<Spanned<bool>>,
}

/// `[underlay]`: what carries the overlay's packets.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Underlay {
    /// Names of interfaces, or addresses that they have; the first that is there (default: the default route's).
    pub(super) interfaces: Option<Spanned<Texts>>,
    /// Regular expressions for addresses, then for names; tried in order, after `interfaces` (default: none).
    pub(super) interface_regex: Option<Spanned<Texts>>,
    /// The address that the interface must lead to; tried after `interface-regex` (default: none).
    pub(super) can_reach: Option<Spanned<String>>,
    /// Networks that the interface's address is in; tried in order, after `can-reach` (default: none).
    pub(super) interface_cidr: Option<Spanned<Texts>>,
    /// IPv4 address that peers send to (default: the interface's).
    pub(super) public_ip: Option<Spanned<String>>,
    /// IPv6 address that peers send to (default: the interface's).
    pub(super) public_ipv6: Option<Spanned<String>>,
}

/// `[firewall]`: what the packet filter does.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Firewall {
    /// `auto`, `nftables` or `iptables` (default: `auto`).
    pub(super) mode: Option<Spanned<String>>,
    /// Give packets that leave the overlay this host's address (default: false).
    pub(super) masquerade: Option<Spanned<bool>>,
    /// Accept forwarding from and to the overlay (default: true).
    pub(super) forward: Option<Spanned<bool>>,
    /// Pick source ports at random when masquerading (default: true).
    pub(super) random_fully: Option<Spanned<bool>>,
    /// Destination networks that masquerading leaves out (default: none).
    pub(super) masquerade_exclude: Option<Spanned<Texts>>,
    /// Seconds between two looks at the rules, 1 to 86400 (default: 5).
    pub(super) resync: Option<Spanned<i64>>,
    /// Drop packets to addresses of the own subnet that no container has (default: false).
    pub(super) blackhole_route: Option<Spanned<bool>>,
}

/// `[files]`: what is written where; absolute paths.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Files {
    /// What container runtimes read (default: `/run/flannel/subnet.env`, of a network that has a name
    /// `/run/flannel/networks/NAME.env`).
    pub(super) subnet_file: Option<Spanned<String>>,
    /// What must outlive a reboot (default: `/var/lib/selvage`, of a network that has a name
    /// `/var/lib/selvage/networks/NAME`).
    pub(super) state_dir: Option<Spanned<String>>,
    /// Where operators' commands ask the agent (default: `/run/selvage/agent.sock`, of a network that has a
    /// name `/run/selvage/networks/NAME.sock`).
    pub(super) socket: Option<Spanned<String>>,
}

/// `[health]`: where the agent answers whether it is well.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Health {
    /// Address to listen on (default: `127.0.0.1`).
    pub(super) address: Option<Spanned<String>>,
    /// TCP port, 1 to 65535, or 0 for none (default: 0).
    pub(super) port: Option<Spanned<i64>>,
}

/// `[agent]`: how the agent itself behaves.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Agent {
    /// Name of the network where several are on this host: 1 to 10 of a-z, 0-9 and -, the first a letter (default: none).
    pub(super) network: Option<Spanned<String>>,
    /// Who holds the lease, 1 to 64 letters, digits, `.`, `_` or `-` (default: derived from `/etc/machine-id`).
    pub(super) node_id: Option<Spanned<String>>,
    /// Log level or filter list (default: `info`).
    pub(super) log: Option<Spanned<String>>,
    /// Seconds between complete comparisons with the kernel, 1 to 86400 (default: 300). Signed, so that a negative
    /// number gets the message that names the range.
    pub(super) resync: Option<Spanned<i64>>,
    /// Give the subnet back when the agent is stopped (default: false).
    pub(super) leave_on_stop: Option<Spanned<bool>>,
}

/// A list of texts; a single text is a list of one.
#[derive(Debug)]
pub(super) struct Texts(pub(super) Vec<String>);

impl From<Texts> for Vec<String> {
    fn from(texts: Texts) -> Self {
        texts.0
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;

        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Texts, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(Texts)
            }
        }

        deserializer.deserialize_any(OneOrMany)
    }
}

impl Fragment {
    /// Reads one settings file's text; `path` is what messages call it.
    ///
    /// # Errors
    /// [`Error::Syntax`], for what is not TOML, and for unknown keys and wrong types.
    pub(super) fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let message = match key_at(text, at) {
                Some(key) => format!("{key}: {}", error.message()),
                None => error.message().to_owned(),
            };
            Error::Syntax {
                place: Source::File {
                    path: path.to_owned(),
                    line: line_at(text, at),
                },
                message,
            }
        })
    }
}

/// The number of the line that the byte `at` is in, counted from 1.
pub(super) fn line_at(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// The key of the line that the byte `at` is in. Not the whole line: who writes a password into the file should not
/// read it in the journal.
fn key_at(text: &str, at: usize) -> Option<&str> {
    let line = text.lines().nth(line_at(text, at) - 1)?;
    let (key, _) = line.split_once('=')?;
    let key = key.trim();
    (!key.is_empty() && !key.starts_with('#')).then_some(key)
}
