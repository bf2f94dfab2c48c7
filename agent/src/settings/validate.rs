//! The last stage: what the sources say together becomes [`Settings`], or an error that says what would be right.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use super::inputs::{Inputs, Sourced};
use super::key::{self, Key};
use super::{Agent, Error, Etcd, Files, Firewall, Interface, Settings, Underlay};
use crate::lease::etcd::endpoint::{self, Endpoint};
use crate::logging;
use crate::net::unusable_v4;

const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:2379";
const DEFAULT_PREFIX: &str = "/coreos.com/network";
const DEFAULT_SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DEFAULT_STATE_DIR: &str = "/var/lib/selvage";
const DEFAULT_LOG: &str = "info";
const DEFAULT_RESYNC_SECS: u64 = 300;

/// From one second to one day.
const RESYNC_SECS: std::ops::RangeInclusive<u64> = 1..=86_400;

/// Checks everything and fills in the defaults.
pub(super) fn settings(inputs: Inputs) -> Result<Settings, Error> {
    let firewall = Firewall {
        masquerade: inputs.masquerade.as_ref().is_some_and(|on| on.value),
        forward: inputs.forward.as_ref().is_none_or(|on| on.value),
        random_fully: inputs.random_fully.as_ref().is_none_or(|on| on.value),
    };
    let underlay = Underlay {
        interface: optional(inputs.interface.as_ref(), interface)?,
        public_ip: optional(inputs.public_ip.as_ref(), public_ip)?,
    };
    let files = Files {
        subnet_file: path_or(inputs.subnet_file.as_ref(), DEFAULT_SUBNET_FILE)?,
        state_dir: path_or(inputs.state_dir.as_ref(), DEFAULT_STATE_DIR)?,
    };
    let agent = Agent {
        node_id: optional(inputs.node_id.as_ref(), node_id)?,
        log: log(inputs.log.as_ref())?,
        resync: resync(inputs.resync.as_ref())?,
    };
    Ok(Settings {
        etcd: etcd(inputs)?,
        underlay,
        firewall,
        files,
        agent,
    })
}

fn etcd(inputs: Inputs) -> Result<Etcd, Error> {
    let certfile = optional(inputs.certfile.as_ref(), absolute)?;
    let keyfile = optional(inputs.keyfile.as_ref(), absolute)?;
    let username = optional(inputs.username.as_ref(), |name| Ok(name.value.clone()))?;
    let password_file = optional(inputs.password_file.as_ref(), absolute)?;
    let has_password = password_file.is_some() || inputs.password.is_some();
    together(
        &inputs.certfile,
        certfile.is_some(),
        key::ETCD_KEYFILE,
        keyfile.is_some(),
    )?;
    together(
        &inputs.keyfile,
        keyfile.is_some(),
        key::ETCD_CERTFILE,
        certfile.is_some(),
    )?;
    together(
        &inputs.username,
        username.is_some(),
        key::ETCD_PASSWORD_FILE,
        has_password,
    )?;
    together(
        &inputs.password_file,
        password_file.is_some(),
        key::ETCD_USERNAME,
        username.is_some(),
    )?;
    let cafile = optional(inputs.cafile.as_ref(), absolute)?;
    let tls_by_default = cafile.is_some() || certfile.is_some();
    Ok(Etcd {
        endpoints: endpoints(inputs.endpoints.as_ref(), tls_by_default)?,
        prefix: prefix(inputs.prefix.as_ref())?,
        cafile,
        certfile,
        keyfile,
        // flanneld's variable without a user name means nothing, as in flanneld.
        password: inputs.password.filter(|_| username.is_some()),
        username,
    })
}

/// That a setting which is there has its partner.
fn together(
    input: &Option<Sourced<String>>,
    is_set: bool,
    partner: Key,
    partner_is_set: bool,
) -> Result<(), Error> {
    match input {
        Some(input) if is_set && !partner_is_set => Err(Error::Alone {
            place: input.place.clone(),
            key: input.key.path,
            partner: partner.path,
        }),
        _ => Ok(()),
    }
}

/// An optional text: missing and empty both mean none.
fn optional<T>(
    input: Option<&Sourced<String>>,
    check: impl FnOnce(&Sourced<String>) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    input
        .filter(|text| !text.value.is_empty())
        .map(check)
        .transpose()
}

/// A daemon has no directory that a relative path could be meant to start from.
fn absolute(input: &Sourced<String>) -> Result<PathBuf, Error> {
    let path = PathBuf::from(&input.value);
    if path.is_absolute() && !input.value.contains('\0') {
        Ok(path)
    } else {
        Err(input.error("an absolute path"))
    }
}

fn path_or(input: Option<&Sourced<String>>, default: &str) -> Result<PathBuf, Error> {
    input.map_or_else(|| Ok(PathBuf::from(default)), absolute)
}

/// The endpoints with a scheme; without one in the input, `tls_by_default` decides.
fn endpoints(
    input: Option<&Sourced<Vec<String>>>,
    tls_by_default: bool,
) -> Result<Vec<String>, Error> {
    let Some(input) = input else {
        return Ok(vec![DEFAULT_ENDPOINT.to_owned()]);
    };
    let read = |text: &String| Endpoint::parse(text, tls_by_default).map(|endpoint| endpoint.url);
    let checked: Option<Vec<_>> = input.value.iter().map(read).collect();
    if let Some(endpoints) = checked.filter(|endpoints| !endpoints.is_empty()) {
        return Ok(endpoints);
    }
    let shown = Sourced {
        value: input
            .value
            .iter()
            .map(|text| endpoint::without_user(text))
            .collect::<Vec<_>>(),
        place: input.place.clone(),
        key: input.key,
    };
    Err(shown.error(format!("at least one URL {}", endpoint::FORM)))
}

/// The prefix as Go's `path.Join` leaves it: no empty elements, and no slash at the end.
fn prefix(input: Option<&Sourced<String>>) -> Result<String, Error> {
    let Some(input) = input else {
        return Ok(DEFAULT_PREFIX.to_owned());
    };
    let text = &input.value;
    let elements: Vec<&str> = text
        .split('/')
        .filter(|element| !element.is_empty())
        .collect();
    if text.is_empty()
        || text.chars().any(char::is_control)
        || elements
            .iter()
            .any(|element| matches!(*element, "." | ".."))
    {
        return Err(input.error(
            "a key prefix such as /coreos.com/network, without \".\" and \"..\" and control characters",
        ));
    }
    let path = elements.join("/");
    let rooted = text.starts_with('/') && !path.is_empty();
    Ok(if rooted { format!("/{path}") } else { path })
}

fn interface(input: &Sourced<String>) -> Result<Interface, Error> {
    const EXPECTED: &str = "the name of an interface (1 to 15 bytes without '/', ':' or white space) or an IPv4 address that one has";
    let text = input.value.trim();
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Ok(Interface::Address(address));
    }
    // An interface may be called 10.0.0.300, but who writes that means an address.
    let looks_like_address = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    match text.parse() {
        Ok(name) if !looks_like_address => Ok(Interface::Name(name)),
        _ => Err(input.error(EXPECTED)),
    }
}

/// An address that packets can be sent to from elsewhere. Peers refuse a lease with any other.
fn public_ip(input: &Sourced<String>) -> Result<Ipv4Addr, Error> {
    let expected = "an IPv4 unicast address that peers can send to";
    let address = input.value.trim().parse::<Ipv4Addr>();
    let address = address.map_err(|_| input.error(expected))?;
    match unusable_v4(address) {
        Some(_) => Err(input.error(expected)),
        None => Ok(address),
    }
}

fn node_id(input: &Sourced<String>) -> Result<String, Error> {
    let id = &input.value;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if !(1..=64).contains(&id.len()) || !id.bytes().all(allowed) {
        return Err(input.error("1 to 64 letters, digits, '.', '_' or '-'"));
    }
    Ok(id.clone())
}

fn log(input: Option<&Sourced<String>>) -> Result<String, Error> {
    let Some(input) = input else {
        return Ok(DEFAULT_LOG.to_owned());
    };
    match logging::parse_filter(&input.value) {
        Ok(_) => Ok(input.value.clone()),
        Err(_) => Err(input.error(logging::FILTER_FORM)),
    }
}

fn resync(input: Option<&Sourced<i64>>) -> Result<Duration, Error> {
    let Some(input) = input else {
        return Ok(Duration::from_secs(DEFAULT_RESYNC_SECS));
    };
    match u64::try_from(input.value) {
        Ok(secs) if RESYNC_SECS.contains(&secs) => Ok(Duration::from_secs(secs)),
        _ => Err(input.error(format!(
            "{} to {} seconds",
            RESYNC_SECS.start(),
            RESYNC_SECS.end()
        ))),
    }
}
