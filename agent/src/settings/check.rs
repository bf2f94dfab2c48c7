//! The last stage: turns the merged value of each setting into its field in [`super::Settings`], or into an error that says
//! what is expected. [`super::table`] names a function of this file for each setting.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::inputs::{Inputs, Sourced};
use super::kind::Value;
use super::setting::Setting;
use super::table::key;
use super::{Error, FirewallMode, Interface, Listen, Pattern, Secret, Source, kubernetes, remote};
use crate::base::endpoint::{self, ApiUrl, Endpoint};
use crate::base::logging;
use crate::base::net::{unusable_v4, unusable_v6};
use crate::base::network_name::{self, NetworkName};

/// A setting, and what the sources say about it and the others.
pub(super) struct Given<'a> {
    pub(super) setting: &'static Setting,
    pub(super) inputs: &'a Inputs,
}

impl<'a> Given<'a> {
    fn found(&self) -> Option<&'a Sourced> {
        self.inputs.get(self.setting)
    }

    /// A text that is there and not empty.
    fn filled(&self) -> Option<&'a Sourced> {
        self.inputs.filled(self.setting)
    }

    fn or_default(&self, found: Option<&Sourced>) -> Result<Sourced, Error> {
        if let Some(found) = found {
            return Ok(found.clone());
        }
        let network = self.inputs.network()?;
        let default = self.setting.default_of(network.as_ref());
        Ok(Sourced {
            // A default that is not of its setting's kind is refused like any other wrong value, in every test.
            value: self
                .setting
                .kind
                .read(&default)
                .unwrap_or(Value::Text(default)),
            place: Source::Flag(self.setting.flag),
            setting: self.setting,
        })
    }

    /// Checks that another setting is there, too, if this one is.
    fn needs(&self, partner: &'static Setting) -> Result<(), Error> {
        match self.filled() {
            Some(found) if self.inputs.filled(partner).is_none() => Err(Error::Alone {
                place: found.place.clone(),
                key: found.setting.path,
                partner: partner.path,
            }),
            _ => Ok(()),
        }
    }
}

/// How a text is parsed, and what it should be.
#[derive(Clone, Copy)]
pub(super) struct Parser<T> {
    parse: fn(&str) -> Option<T>,
    expected: &'static str,
}

impl<T> Parser<T> {
    const fn new(parse: fn(&str) -> Option<T>, expected: &'static str) -> Self {
        Self { parse, expected }
    }

    fn read(&self, found: &Sourced) -> Result<T, Error> {
        (self.parse)(found.text()).ok_or_else(|| found.error(self.expected))
    }
}

/// A daemon has no working directory that a relative path could refer to.
pub(super) const PATH: Parser<PathBuf> = Parser::new(
    |text| Some(PathBuf::from(text)).filter(|path| path.is_absolute() && !text.contains('\0')),
    "an absolute path",
);

pub(super) const MODE: Parser<FirewallMode> =
    Parser::new(|text| text.parse().ok(), FirewallMode::NAMES);

pub(super) const ADDRESS: Parser<IpAddr> = Parser::new(
    |text| text.trim().parse().ok(),
    "an IPv4 or IPv6 address to listen on",
);

pub(super) const LISTEN: Parser<Listen> = Parser::new(Listen::parse, Listen::FORM);

pub(super) const NETWORK: Parser<NetworkName> =
    Parser::new(|text| text.parse().ok(), network_name::FORM);

pub(super) const NODE_ID: Parser<String> = Parser::new(
    |id| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let good = (1..=64).contains(&id.len()) && id.bytes().all(allowed);
        good.then(|| id.to_owned())
    },
    "1 to 64 letters, digits, '.', '_' or '-'",
);

pub(super) const API_URL: Parser<String> = Parser::new(
    |text| ApiUrl::parse(text, false).map(|_| text.trim().to_owned()),
    ApiUrl::FORM,
);

pub(super) const ANNOTATION_PREFIX: Parser<String> =
    Parser::new(kubernetes::annotation_prefix, kubernetes::ANNOTATION_PREFIX);

pub(super) const NODE_NAME: Parser<String> = Parser::new(
    |name| kubernetes::is_node_name(name).then(|| name.to_owned()),
    kubernetes::NODE_NAME,
);

pub(super) const FILTER: Parser<String> = Parser::new(
    |text| logging::parse_filter(text).ok().map(|_| text.to_owned()),
    logging::FILTER_FORM,
);

pub(super) const NETWORKS: Parser<IpNet> = Parser::new(
    |text| Some(text.parse::<IpNet>().ok()?.trunc()),
    "networks such as \"10.0.0.0/8\" or \"fd00::/8\"",
);

pub(super) const INTERFACE: Parser<Interface> = Parser::new(
    |text| {
        if let Ok(address) = text.parse() {
            // Every interface may have the same link-local address, so it does not identify one.
            let says_which = match address {
                IpAddr::V4(_) => true,
                IpAddr::V6(v6) => !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none(),
            };
            return says_which.then_some(Interface::Address(address));
        }
        // `10.0.0.300` is a valid interface name, but meant as an address.
        let looks_like_address = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let name = text.parse().ok().filter(|_| !looks_like_address);
        name.map(Interface::Name)
    },
    "the name of an interface (1 to 15 bytes without '/', ':' or white space) or an address that one has (IPv6: not link-local)",
);

pub(super) const CAN_REACH: Parser<IpAddr> = Parser::new(
    |text| {
        let unusable = |address: &IpAddr| match address {
            IpAddr::V4(v4) => unusable_v4(*v4),
            IpAddr::V6(v6) => unusable_v6(*v6),
        };
        let address = text.trim().parse().ok();
        address.filter(|address| unusable(address).is_none())
    },
    "a unicast address, IPv4 or IPv6, that is not link-local IPv6",
);

/// Peers refuse a lease with an address that they cannot send to.
pub(super) const PUBLIC_IP: Parser<Ipv4Addr> = Parser::new(
    |text| {
        let address = text.trim().parse().ok();
        address.filter(|address| unusable_v4(*address).is_none())
    },
    "an IPv4 unicast address that peers can send to (an IPv6 one is underlay.public-ipv6)",
);

pub(super) const PUBLIC_IPV6: Parser<Ipv6Addr> = Parser::new(
    |text| {
        let address = text.trim().parse().ok();
        address.filter(|address| unusable_v6(*address).is_none())
    },
    "an IPv6 unicast address that peers can send to, not link-local",
);

/// The unnamed network, as flannel writes it in a path.
const NO_NAME: &str = "_";

const REMOTE_NETWORK: Parser<String> = Parser::new(
    |name| (name == NO_NAME || remote::is_network_name(name)).then(|| name.to_owned()),
    remote::NETWORK_NAME,
);

/// A text that may be missing or empty: then there is none.
pub(super) fn optional<T>(parser: Parser<T>) -> impl Fn(&Given<'_>) -> Result<Option<T>, Error> {
    move |given| given.filled().map(|found| parser.read(found)).transpose()
}

pub(super) fn or_default<T>(parser: Parser<T>) -> impl Fn(&Given<'_>) -> Result<T, Error> {
    move |given| parser.read(&given.or_default(given.found())?)
}

/// As [`or_default`], but an empty text means the default.
pub(super) fn filled_or_default<T>(parser: Parser<T>) -> impl Fn(&Given<'_>) -> Result<T, Error> {
    move |given| parser.read(&given.or_default(given.filled())?)
}

/// The members of a list. Empty ones are skipped, so that an empty string means none.
pub(super) fn each<T>(parser: Parser<T>) -> impl Fn(&Given<'_>) -> Result<Vec<T>, Error> {
    move |given| {
        let Some(found) = given.found() else {
            return Ok(Vec::new());
        };
        let texts = found.texts().iter().map(|text| text.trim());
        texts
            .filter(|text| !text.is_empty())
            .map(|text| (parser.parse)(text).ok_or_else(|| found.error(parser.expected)))
            .collect()
    }
}

pub(super) fn on(given: &Given<'_>) -> Result<bool, Error> {
    let found = given.or_default(given.found())?;
    match found.value {
        Value::Switch(on) => Ok(on),
        _ => Err(found.error("true or false")),
    }
}

/// A number in the setting's range; `expected` words that range for the error.
fn number<T: TryFrom<i64>>(
    given: &Given<'_>,
    expected: impl Fn(&str) -> String,
) -> Result<T, Error> {
    let found = given.or_default(given.found())?;
    let range = given.setting.range.clone().unwrap_or(0..=i64::MAX);
    let number = match found.value {
        Value::Number(number) if range.contains(&number) => T::try_from(number).ok(),
        _ => None,
    };
    let allowed = || expected(&format!("{} to {}", range.start(), range.end()));
    number.ok_or_else(|| found.error(allowed()))
}

pub(super) fn seconds(given: &Given<'_>) -> Result<Duration, Error> {
    number(given, |range| format!("{range} seconds")).map(Duration::from_secs)
}

pub(super) fn port(given: &Given<'_>) -> Result<u16, Error> {
    number(given, |_| {
        "a TCP port from 1 to 65535, or 0 for none".to_owned()
    })
}

/// A file of a certificate or of its key, of which neither is there without the other.
pub(super) fn certificate(
    partner: &'static Setting,
) -> impl Fn(&Given<'_>) -> Result<Option<PathBuf>, Error> {
    move |given| {
        let path = optional(PATH)(given)?;
        given.needs(partner)?;
        Ok(path)
    }
}

pub(super) fn remote_cafile(given: &Given<'_>) -> Result<Option<PathBuf>, Error> {
    // In this case flannel's server admits every client, although it has a CA to verify them with.
    if given.inputs.filled(&key::remote::listen).is_some() {
        given.needs(&key::remote::certfile)?;
    }
    optional(PATH)(given)
}

pub(super) fn username(given: &Given<'_>) -> Result<Option<String>, Error> {
    if given.inputs.password.is_none() {
        given.needs(&key::etcd::password)?;
    }
    Ok(given.filled().map(|name| name.text().to_owned()))
}

/// The password, which was read before; the setting is the path of its file.
pub(super) fn password(given: &Given<'_>) -> Result<Option<Secret>, Error> {
    optional(PATH)(given)?;
    given.needs(&key::etcd::username)?;
    // flanneld ignores its password variable without a user name; do the same.
    let has_user = given.inputs.filled(&key::etcd::username).is_some();
    Ok(given.inputs.password.clone().filter(|_| has_user))
}

/// The prefix in the form of Go's `path.Join`: no empty elements, and no slash at the end.
pub(super) fn prefix(given: &Given<'_>) -> Result<String, Error> {
    const PREFIX: Parser<String> = Parser::new(
        |text| {
            let elements = || text.split('/').filter(|element| !element.is_empty());
            let wrong = text.is_empty()
                || text.chars().any(char::is_control)
                || elements().any(|element| matches!(element, "." | ".."));
            let path = elements().collect::<Vec<_>>().join("/");
            let rooted = text.starts_with('/') && !path.is_empty();
            (!wrong).then(|| if rooted { format!("/{path}") } else { path })
        },
        "a key prefix such as /coreos.com/network, without \".\" and \"..\" and control characters",
    );
    match (given.found(), &given.inputs.base_prefix) {
        (None, Some(base)) => {
            let base = PREFIX.read(base)?;
            Ok(match given.inputs.network()? {
                Some(name) => format!("{base}/{name}"),
                None => base,
            })
        }
        _ => PREFIX.read(&given.or_default(given.found())?),
    }
}

/// The URLs of etcd; those without a scheme get theirs by the files for TLS.
pub(super) fn urls(given: &Given<'_>) -> Result<Vec<String>, Error> {
    let found = given.or_default(given.found())?;
    let files = [&key::etcd::cafile, &key::etcd::certfile];
    let url = |text: &String| Some(Endpoint::parse(text, tls_by_default(given, files))?.url);
    let checked: Option<Vec<_>> = found.texts().iter().map(url).collect();
    checked.filter(|urls| !urls.is_empty()).ok_or_else(|| {
        let shown = found
            .texts()
            .iter()
            .map(|text| endpoint::without_user(text));
        let shown = Value::Texts(shown.collect());
        let expected = format!("at least one URL {}", endpoint::FORM);
        Sourced {
            value: shown,
            ..found.clone()
        }
        .error(expected)
    })
}

/// The URLs of lease servers.
pub(super) fn servers(given: &Given<'_>) -> Result<Vec<String>, Error> {
    const SERVER: &str = "HOST:PORT, http://HOST:PORT or https://HOST:PORT (HOST:PORT alone is https if remote.cafile or \
         remote.certfile is set, else http), with a port from 1 to 65535 and no user, path or query";
    let Some(found) = given.found() else {
        return Ok(Vec::new());
    };
    let files = [&key::remote::cafile, &key::remote::certfile];
    let texts = found.texts().iter().flat_map(|text| text.split(','));
    texts
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .map(
            |text| match Endpoint::parse(text, tls_by_default(given, files)) {
                Some(endpoint) => Ok(endpoint.url),
                None => {
                    let shown = Value::Text(endpoint::without_user(text));
                    Err(Sourced {
                        value: shown,
                        ..found.clone()
                    }
                    .error(SERVER))
                }
            },
        )
        .collect()
}

fn tls_by_default(given: &Given<'_>, files: [&'static Setting; 2]) -> bool {
    files
        .into_iter()
        .any(|file| given.inputs.filled(file).is_some())
}

/// The network's name at a lease server: by default its name on this host.
pub(super) fn remote_network(given: &Given<'_>) -> Result<String, Error> {
    match given.filled() {
        Some(found) => REMOTE_NETWORK.read(found),
        None => {
            let name = given.inputs.network()?;
            Ok(name.map_or_else(|| NO_NAME.to_owned(), |name| name.to_string()))
        }
    }
}

pub(super) fn patterns(given: &Given<'_>) -> Result<Vec<Pattern>, Error> {
    let Some(found) = given.found() else {
        return Ok(Vec::new());
    };
    let texts = found.texts().iter().filter(|text| !text.is_empty());
    texts
        .map(|text| {
            // No address or name contains one, but the end of a file's last line does.
            if text.chars().any(char::is_control) {
                return Err(found.error("regular expressions without control characters"));
            }
            Pattern::new(text)
                .map_err(|error| found.error(format!("regular expressions; {text:?}: {error}")))
        })
        .collect()
}
