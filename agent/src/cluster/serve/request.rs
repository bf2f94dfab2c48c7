//! Requests: path, query and client.

use std::borrow::Cow;
use std::net::IpAddr;

use hyper::{Method, Uri};
use percent_encoding::percent_decode_str;

/// The client.
#[derive(Clone, Debug)]
pub(super) struct Client {
    /// Where it connects from.
    pub(super) address: IpAddr,
    /// Its identity from the client certificate, if those are required.
    pub(super) identity: Option<String>,
}

impl Client {
    /// The owner ID to write for the one that a client sent. With certificates the identity is appended: no other
    /// client can use it.
    pub(super) fn owner(&self, named: Option<&str>) -> Option<String> {
        match &self.identity {
            None => named.map(str::to_owned),
            Some(identity) => Some(format!("{}@{identity}", named.unwrap_or_default())),
        }
    }
}

/// The object of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Target<'a> {
    /// The names of the networks.
    Networks,
    /// A network's config.
    Config(Cow<'a, str>),
    /// A network's leases.
    Leases(Cow<'a, str>),
    /// One lease: network and subnet.
    Lease(Cow<'a, str>, Cow<'a, str>),
    /// A network's reservations, or one of them.
    Reservations(Cow<'a, str>),
}

/// The operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verb {
    Get,
    Post,
    Put,
    Delete,
}

/// Parses method and path. `None` for what is not served.
pub(super) fn target<'a>(method: &Method, uri: &'a Uri) -> Option<(Verb, Target<'a>)> {
    let path = uri.path().strip_prefix("/v1/")?;
    let verb = match *method {
        Method::GET => Verb::Get,
        Method::POST => Verb::Post,
        Method::PUT => Verb::Put,
        Method::DELETE => Verb::Delete,
        _ => return None,
    };
    let mut parts = Vec::new();
    for part in path.split('/') {
        parts.push(percent_decode_str(part).decode_utf8().ok()?);
    }
    let target = match (verb, parts.as_mut_slice()) {
        (Verb::Get, [empty]) if empty.is_empty() => Target::Networks,
        (Verb::Get, [net, what]) if what == "config" => Target::Config(std::mem::take(net)),
        (Verb::Get | Verb::Post, [net, what]) if what == "leases" => {
            Target::Leases(std::mem::take(net))
        }
        (Verb::Get | Verb::Put | Verb::Delete, [net, what, subnet]) if what == "leases" => {
            Target::Lease(std::mem::take(net), std::mem::take(subnet))
        }
        (Verb::Get | Verb::Post, [net, what]) if what == "reservations" => {
            Target::Reservations(std::mem::take(net))
        }
        (Verb::Delete, [net, what, _]) if what == "reservations" => {
            Target::Reservations(std::mem::take(net))
        }
        _ => return None,
    };
    Some((verb, target))
}

/// The values of a query parameter. Values that are not UTF-8 are skipped.
pub(super) fn parameters(uri: &Uri, name: &str) -> Vec<String> {
    let query = uri.query().unwrap_or_default();
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .filter(|(key, _)| *key == name)
        .filter_map(|(_, value)| percent_decode_str(value).decode_utf8().ok())
        .map(Cow::into_owned)
        .collect()
}

/// The first non-empty value of a query parameter.
pub(super) fn parameter(uri: &Uri, name: &str) -> Option<String> {
    let values = parameters(uri, name).into_iter();
    values.into_iter().find(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_flannels() {
        let (get, post, put, delete) = (Method::GET, Method::POST, Method::PUT, Method::DELETE);
        for (method, path, expected) in [
            (&get, "/v1/", Some((Verb::Get, Target::Networks))),
            (
                &get,
                "/v1/_/config",
                Some((Verb::Get, Target::Config("_".into()))),
            ),
            (
                &get,
                "/v1/blue/leases?next=12",
                Some((Verb::Get, Target::Leases("blue".into()))),
            ),
            (
                &post,
                "/v1/_/leases",
                Some((Verb::Post, Target::Leases("_".into()))),
            ),
            (
                &put,
                "/v1/_/leases/10.5.1.0-24&fd00::-64",
                Some((
                    Verb::Put,
                    Target::Lease("_".into(), "10.5.1.0-24&fd00::-64".into()),
                )),
            ),
            (
                &delete,
                "/v1/_/leases/10.5.1.0-24%26fd00%3A%3A-64",
                Some((
                    Verb::Delete,
                    Target::Lease("_".into(), "10.5.1.0-24&fd00::-64".into()),
                )),
            ),
            (
                &delete,
                "/v1/_/reservations/10.5.1.0-24",
                Some((Verb::Delete, Target::Reservations("_".into()))),
            ),
            (&get, "/", None),
            (&get, "/v2/_/config", None),
            (&get, "/v1/_", None),
            (&get, "/v1/_/config/x", None),
            (&get, "/v1/_/%ff", None),
            (&post, "/v1/_/config", None),
            (&put, "/v1/_/leases", None),
            (&Method::HEAD, "/v1/_/config", None),
        ] {
            let uri: Uri = path.parse().unwrap();
            assert_eq!(target(method, &uri), expected, "{method} {path}");
        }
    }

    #[test]
    fn queries_are_taken_apart() {
        let uri: Uri = "/v1/_/leases?next=1-2&former=10.0.0.1&former=fd00%3A%3A1&x&previous="
            .parse()
            .unwrap();
        assert_eq!(parameter(&uri, "next").as_deref(), Some("1-2"));
        assert_eq!(parameters(&uri, "former"), ["10.0.0.1", "fd00::1"]);
        assert_eq!(parameter(&uri, "previous"), None);
        assert_eq!(parameter(&uri, "x"), None);
    }

    #[test]
    fn owners_are_bound_to_certificates() {
        let mut client = Client {
            address: IpAddr::from([10, 0, 0, 1]),
            identity: None,
        };
        assert_eq!(client.owner(Some("m1")).as_deref(), Some("m1"));
        assert_eq!(client.owner(None), None);
        client.identity = Some("c1".to_owned());
        assert_eq!(client.owner(Some("m1")).as_deref(), Some("m1@c1"));
        assert_eq!(client.owner(None).as_deref(), Some("@c1"));
    }
}
