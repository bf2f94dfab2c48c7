//! The address of one etcd or API server. Only this module knows its syntax.

use std::net::{IpAddr, Ipv6Addr};

/// The syntax of an endpoint, for messages.
pub(crate) const FORM: &str = "http://HOST:PORT or https://HOST:PORT (HOST:PORT alone is https if a cafile or certfile is \
     set, else http), with a port from 1 to 65535 and no user, path or query";

/// One server, ready to be connected to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Endpoint {
    /// With scheme and without a trailing slash: the address that the client uses and messages show.
    pub(crate) url: String,
    pub(crate) tls: bool,
}

impl Endpoint {
    /// Parses an endpoint. Without a scheme, `tls_by_default` decides, as in flannel. `None` if it is malformed.
    ///
    /// A port is required: flannel's client has no default, and nobody means port 80.
    pub(crate) fn parse(text: &str, tls_by_default: bool) -> Option<Self> {
        // The scheme is case-insensitive (RFC 3986 §3.1).
        let (tls, authority) = match text.trim().split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some(_) => return None,
            None => (tls_by_default, text.trim()),
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = authority.rsplit_once(':')?;
        let good_port = port.bytes().all(|byte| byte.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port != 0);
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let good_host = match bracketed {
            Some(address) => address.parse::<Ipv6Addr>().is_ok(),
            None => {
                let good_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
                !host.is_empty() && host.bytes().all(good_byte)
            }
        };
        let scheme = if tls { "https" } else { "http" };
        (good_port && good_host).then(|| Self {
            url: format!("{scheme}://{authority}"),
            tls,
        })
    }

    /// `HOST:PORT`.
    pub(crate) fn authority(&self) -> &str {
        self.url.split_once("://").map_or("", |(_, rest)| rest)
    }

    /// Whether what is sent there stays on this host.
    pub(crate) fn is_loopback(&self) -> bool {
        let authority = self.authority();
        let host = authority
            .rsplit_once(':')
            .map_or(authority, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host.eq_ignore_ascii_case("localhost")
            || host.parse().is_ok_and(|host: IpAddr| host.is_loopback())
    }
}

/// The address of a Kubernetes API server: an endpoint, and the path that its API is below.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ApiUrl {
    pub(crate) endpoint: Endpoint,
    /// Empty, or with a leading and without a trailing slash, as behind Rancher: `/k8s/clusters/c-x`.
    pub(crate) path: String,
}

impl ApiUrl {
    /// What [`Self::parse`] accepts, for messages.
    pub(crate) const FORM: &str =
        "https://HOST[:PORT][/PATH] or http://HOST[:PORT][/PATH], without user and query";

    /// Parses the URL of an API server as clients of Kubernetes do: without a port it is 443 or 80, and without a
    /// scheme `tls_by_default` decides.
    pub(crate) fn parse(text: &str, tls_by_default: bool) -> Option<Self> {
        let (scheme, rest) = match text.trim().split_once("://") {
            Some(parts) => parts,
            None if tls_by_default => ("https", text.trim()),
            None => ("http", text.trim()),
        };
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, path.trim_matches('/')),
            None => (rest, ""),
        };
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:%".contains(&byte);
        if !path.bytes().all(good) {
            return None;
        }
        let has_port = match authority.rsplit_once(']') {
            Some((_, port)) => !port.is_empty(),
            None => authority.contains(':'),
        };
        let port = match (has_port, scheme.eq_ignore_ascii_case("https")) {
            (true, _) => "",
            (false, true) => ":443",
            (false, false) => ":80",
        };
        Some(Self {
            endpoint: Endpoint::parse(&format!("{scheme}://{authority}{port}"), false)?,
            path: match path {
                "" => String::new(),
                path => format!("/{path}"),
            },
        })
    }
}

/// An endpoint that is safe to show, even if malformed: text before an `@` may be a password.
pub(crate) fn without_user(text: &str) -> String {
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://***@{rest}"),
        (None, Some((_, rest))) => format!("***@{rest}"),
        (_, None) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_completed() {
        let url = |text, tls| Endpoint::parse(text, tls).map(|endpoint| endpoint.url);
        for (text, expected) in [
            ("http://10.0.0.1:2379", "http://10.0.0.1:2379"),
            (" http://10.0.0.1:2379/ ", "http://10.0.0.1:2379"),
            ("HTTP://10.0.0.1:2379", "http://10.0.0.1:2379"),
            ("Https://10.0.0.1:2379", "https://10.0.0.1:2379"),
            ("10.0.0.1:2379", "http://10.0.0.1:2379"),
            ("etcd.example:2379/", "http://etcd.example:2379"),
            ("https://b-c_d.e:65535", "https://b-c_d.e:65535"),
            ("http://[fd00::1]:2379", "http://[fd00::1]:2379"),
            ("[fd00::1]:2379", "http://[fd00::1]:2379"),
        ] {
            assert_eq!(url(text, false).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(url("a:1", true).as_deref(), Some("https://a:1"));
        // Plain text stays plain text even if certificates are set, as in flannel.
        assert_eq!(url("http://a:1", true).as_deref(), Some("http://a:1"));
        let tls = |text| Endpoint::parse(text, false).map(|endpoint| endpoint.tls);
        assert_eq!((tls("https://a:1"), tls("a:1")), (Some(true), Some(false)));
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            ":2379",
            "a",
            "http://",
            "http://10.0.0.1",
            "http://[fd00::1]",
            "http://:2379",
            "http://a:0",
            "http://a:65536",
            "http://a:x",
            "http://a:",
            "http://a:+1",
            "ftp://a:1",
            "://a:1",
            "fd00::1:2379",
            "http://fd00::1:2379",
            "http://[fd00::1:2379",
            "http://u:p@a:1",
            "http://a:1/path",
            "http://a:1//",
            "http://a:1?b",
            "http://a b:1",
        ] {
            assert_eq!(Endpoint::parse(text, false), None, "{text:?}");
        }
    }

    /// The forms are those in kubeconfigs of kubeadm, k3s, Rancher and GKE.
    #[test]
    fn api_servers_have_a_default_port_and_a_path() {
        for (text, url, path) in [
            ("https://10.0.0.1:6443", "https://10.0.0.1:6443", ""),
            ("https://127.0.0.1:6443/", "https://127.0.0.1:6443", ""),
            ("https://34.72.1.2", "https://34.72.1.2:443", ""),
            ("https://[fd00::1]", "https://[fd00::1]:443", ""),
            ("https://[fd00::1]:6443", "https://[fd00::1]:6443", ""),
            (
                "https://rancher.example/k8s/clusters/c-m-x1/",
                "https://rancher.example:443",
                "/k8s/clusters/c-m-x1",
            ),
            ("http://127.0.0.1:8001", "http://127.0.0.1:8001", ""),
            ("api.example:6443", "https://api.example:6443", ""),
        ] {
            let parsed = ApiUrl::parse(text, true).unwrap();
            assert_eq!(
                (parsed.endpoint.url.as_str(), parsed.path.as_str()),
                (url, path)
            );
        }
        assert_eq!(
            ApiUrl::parse("localhost:8080", false).unwrap().endpoint.url,
            "http://localhost:8080"
        );
        for text in [
            "",
            "https://",
            "https://u:p@host:6443",
            "https://host:6443?x",
            "https://host/a b",
            "https://host:x",
            "unix:///run/api",
            "https://host/\u{e9}",
        ] {
            assert_eq!(ApiUrl::parse(text, true), None, "{text:?}");
        }
    }

    #[test]
    fn users_are_not_shown() {
        for (text, shown) in [
            ("http://user:hunter2@host:2379", "http://***@host:2379"),
            ("user:hunter2@host:2379", "***@host:2379"),
            ("http://a@b://c@host", "http://***@host"),
            ("http://host", "http://host"),
        ] {
            assert_eq!(without_user(text), shown);
        }
    }
}
