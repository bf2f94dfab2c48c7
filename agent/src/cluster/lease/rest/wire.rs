//! The JSON of the REST interface, identical to flannel's byte for byte.

use std::time::{Duration, SystemTime};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::Serialize;
use serde_json::value::RawValue;
use thiserror::Error;

use crate::base::go_json::{self, GoJsonError, Object};
use crate::base::time::rfc3339;
use crate::cluster::lease::{Lease, LeaseAttrs, LeaseValueError, SubnetKey};

/// Go's encoding of a zero `time.Time`.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// The TTL of a lease whose server does not say: flannel's.
pub(crate) const FLANNELS_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// A lease as sent.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LeaseBody {
    #[serde(rename = "Subnet")]
    subnet: Ipv4Net,
    #[serde(rename = "IPv6Subnet", skip_serializing_if = "Option::is_none")]
    subnet_v6: Option<Ipv6Net>,
    #[serde(rename = "Attrs")]
    attrs: LeaseAttrs,
    #[serde(rename = "Expiration")]
    expiration: String,
    #[serde(rename = "Asof")]
    modified: u64,
    #[serde(rename = "TTL", skip_serializing_if = "Option::is_none")]
    ttl: Option<u64>,
    #[serde(rename = "Created")]
    created: u64,
}

impl LeaseBody {
    /// A lease without its remaining time.
    pub(crate) fn new(lease: &Lease) -> Self {
        Self {
            subnet: lease.key.v4.unwrap_or_default(),
            subnet_v6: lease.key.v6,
            attrs: lease.attrs.clone(),
            expiration: ZERO_TIME.to_owned(),
            modified: 0,
            ttl: None,
            created: lease.created,
        }
    }

    /// The same with its remaining time from `now` (`None` for a reservation) and the revision of its last change.
    pub(crate) fn lasting(self, ttl: Option<Duration>, modified: u64, now: SystemTime) -> Self {
        Self {
            expiration: ttl.map_or_else(|| ZERO_TIME.to_owned(), |ttl| rfc3339(now + ttl)),
            ttl: ttl.map(|ttl| ttl.as_secs()),
            modified,
            ..self
        }
    }
}

/// What happened to a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EventType {
    /// It is new, has other attributes, or was renewed.
    Added,
    /// It expired or was deleted.
    Removed,
}

/// One change of a lease.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Event {
    #[serde(rename = "type")]
    pub(crate) event: EventType,
    pub(crate) lease: LeaseBody,
}

/// The answer to a watch. Without events it is a snapshot, even if empty.
#[derive(Debug, Serialize)]
pub(crate) struct WatchResult<'a, E, S> {
    pub(crate) events: Option<&'a [E]>,
    pub(crate) snapshot: Option<&'a [S]>,
    /// The cursor for the next request.
    pub(crate) cursor: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) unreadable: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) config: Option<&'a str>,
}

/// The bytes that Go's `json.Encoder` writes: no white space except the final line feed.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<String, serde_json::Error> {
    Ok(go_json::escape_as_go(&serde_json::to_string(value)?) + "\n")
}

/// Malformed input.
#[derive(Debug, Error)]
pub(crate) enum WireError {
    /// It is not JSON of the right shape.
    #[error(transparent)]
    Json(#[from] GoJsonError),
    /// A lease's attributes cannot be parsed.
    #[error("Attrs: {0}")]
    Attrs(#[from] LeaseValueError),
    /// A subnet has host bits, or both families are missing.
    #[error("Subnet: {0} is not a subnet such as \"10.5.34.0/24\"")]
    Subnet(String),
    /// Not a list.
    #[error("{0} is not a list")]
    List(&'static str),
    /// An event has an unknown type.
    #[error("type: {0} is not \"added\" or \"removed\"")]
    Type(String),
}

impl From<serde_json::Error> for WireError {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error.into())
    }
}

/// A lease as received.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) key: SubnetKey,
    /// Absent in the events of some old servers.
    pub(crate) attrs: Option<LeaseAttrs>,
    pub(crate) created: u64,
    pub(crate) ttl: Option<Duration>,
}

impl Received {
    /// Parses a lease. Missing attributes are allowed, malformed ones are an error.
    pub(crate) fn parse(text: &str) -> Result<Self, WireError> {
        let object = Object::parse(text)?;
        let Some(key) = subnets(&object)? else {
            let shown = object.raw("Subnet").map_or("null", RawValue::get);
            return Err(WireError::Subnet(go_json::shorten(shown)));
        };
        let attrs = object.raw("Attrs").map(RawValue::get);
        let attrs = attrs
            .filter(|text| *text != "null")
            .map(|text| LeaseAttrs::parse(text.as_bytes()))
            .transpose()?;
        let ttl: Option<u32> = object.get("TTL", "a number of seconds")?;
        Ok(Self {
            key,
            attrs,
            created: object.get("Created", "a revision")?.unwrap_or(0),
            ttl: ttl.map(|secs| Duration::from_secs(secs.into())),
        })
    }

    /// The lease, if it has attributes.
    pub(crate) fn into_lease(self) -> Option<Lease> {
        Some(Lease {
            key: self.key,
            attrs: self.attrs?,
            created: self.created,
        })
    }
}

/// The answer to a watch, as received.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) update: WatchUpdate,
    /// The cursor for the next request.
    pub(crate) cursor: String,
    /// A tag that changes with the network config; `None` from a server that does not send one.
    pub(crate) config: Option<String>,
}

/// What a watch returned. Leases that cannot be parsed are listed by their subnet, if that can be parsed.
#[derive(Debug)]
pub(crate) enum WatchUpdate {
    /// All existing leases.
    Snapshot {
        leases: Vec<Lease>,
        unreadable: Vec<SubnetKey>,
    },
    /// Changes in order; `None` for a lease that expired or was deleted.
    Changes(Vec<(SubnetKey, Option<Lease>)>),
}

impl Watched {
    /// Parses an answer. `waited`: an answer without events and snapshot means no news.
    pub(crate) fn parse(text: &str, waited: bool) -> Result<Self, WireError> {
        let object = Object::parse(text)?;
        let list = |name: &'static str| -> Result<Option<Vec<&RawValue>>, WireError> {
            match object.raw(name).map(RawValue::get) {
                None | Some("null") => Ok(None),
                Some(text) => serde_json::from_str(text)
                    .map(Some)
                    .map_err(|_| WireError::List(name)),
            }
        };
        let events = list("events")?.filter(|events| !events.is_empty());
        let snapshot = list("snapshot")?;
        let update = match (events, snapshot) {
            (Some(events), _) => WatchUpdate::Changes(
                events
                    .into_iter()
                    .filter_map(|event| change(event.get()).transpose())
                    .collect::<Result<_, _>>()?,
            ),
            (None, None) if waited => WatchUpdate::Changes(Vec::new()),
            (None, snapshot) => {
                let unreadable = list("unreadable")?.unwrap_or_default();
                snapshot_of(snapshot.unwrap_or_default(), unreadable)
            }
        };
        let cursor: String = object.required("cursor", "a string")?;
        // The cursor becomes part of a URL, so check it.
        if cursor.len() > 128
            || !cursor
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        {
            let shown = object.raw("cursor").map_or("null", RawValue::get);
            return Err(GoJsonError::Field {
                name: "cursor",
                value: go_json::shorten(shown),
                expected: "up to 128 letters, digits and '-'".into(),
            }
            .into());
        }
        Ok(Self {
            update,
            cursor,
            config: object.get("config", "a string")?,
        })
    }
}

/// A snapshot of these leases, and of the subnets whose leases the server itself could not parse.
fn snapshot_of(snapshot: Vec<&RawValue>, named: Vec<&RawValue>) -> WatchUpdate {
    let named = named.into_iter().filter_map(|name| {
        let name: String = serde_json::from_str(name.get()).ok()?;
        SubnetKey::parse_name(&name).ok()
    });
    let mut unreadable: Vec<_> = named.collect();
    let mut leases = Vec::new();
    for lease in snapshot {
        match Received::parse(lease.get()) {
            Ok(Received {
                key, attrs: None, ..
            }) => unreadable.push(key),
            Ok(received) => leases.extend(received.into_lease()),
            Err(_) => unreadable.extend(subnet_of(lease.get())),
        }
    }
    WatchUpdate::Snapshot { leases, unreadable }
}

/// One event. A changed lease that cannot be parsed changes nothing: the previous one stays in use.
fn change(text: &str) -> Result<Option<(SubnetKey, Option<Lease>)>, WireError> {
    let object = Object::parse(text)?;
    let event: String = object.required("type", "\"added\" or \"removed\"")?;
    let lease = object.raw("lease").map_or("null", RawValue::get);
    match event.as_str() {
        "added" => {
            let lease = Received::parse(lease).ok().and_then(Received::into_lease);
            Ok(lease.map(|lease| (lease.key, Some(lease))))
        }
        "removed" => Ok(subnet_of(lease).map(|key| (key, None))),
        _ => Err(WireError::Type(go_json::shorten(&event))),
    }
}

/// The subnet of a lease, whatever its attributes are.
fn subnet_of(text: &str) -> Option<SubnetKey> {
    subnets(&Object::parse(text).ok()?).ok()?
}

/// The subnets of a lease; `None` if one has host bits, or if there are none.
fn subnets(object: &Object<'_>) -> Result<Option<SubnetKey>, GoJsonError> {
    let v4: Option<Ipv4Net> = object.get("Subnet", "a subnet such as \"10.5.34.0/24\"")?;
    let v6: Option<Ipv6Net> = object.get("IPv6Subnet", "a subnet such as \"fd00:10:5:22::/64\"")?;
    // Go writes its zero value for a missing family.
    let v4 = v4.filter(|net| net.prefix_len() != 0);
    let v6 = v6.filter(|net| net.prefix_len() != 0);
    let key = SubnetKey::new(v4, v6);
    let is_whole = (key.v4, key.v6) == (v4, v6) && (v4.is_some() || v6.is_some());
    Ok(is_whole.then_some(key))
}

#[cfg(test)]
mod tests;
