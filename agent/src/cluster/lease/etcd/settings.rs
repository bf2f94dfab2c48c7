//! How to reach the etcd cluster, checked before the first connection.

use std::path::Path;
use std::time::Duration;

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};

use crate::base::endpoint::{self, Endpoint};
use crate::base::tls::{SYSTEM_ROOTS, system_roots};
use crate::cluster::lease::{LeaseKeyError, SettingsError, SubnetKey};
use crate::settings::Etcd;

/// The keys of one network.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) config: String,
    /// The key prefix of all leases.
    pub(super) subnets: String,
    /// The end, exclusive, of the range of lease keys.
    pub(super) subnets_end: String,
    /// The key prefix of all challenges. No network can have such a name.
    pub(super) challenges: String,
}

impl Keys {
    /// The subnet that a key stands for; `None` if it is not a lease key at all.
    pub(super) fn subnet(&self, key: &[u8]) -> Option<Result<SubnetKey, LeaseKeyError>> {
        let name = key.strip_prefix(self.subnets.as_bytes())?;
        Some(SubnetKey::parse_name(&String::from_utf8_lossy(name)))
    }
}

impl Etcd {
    /// Checks everything that needs no connection.
    pub(super) fn check(&self) -> Result<Vec<Endpoint>, SettingsError> {
        let together = |a, has_a, b, has_b| match (has_a, has_b) {
            (true, false) => Err(SettingsError::Alone {
                given: a,
                missing: b,
            }),
            (false, true) => Err(SettingsError::Alone {
                given: b,
                missing: a,
            }),
            (true, true) | (false, false) => Ok(()),
        };
        let (cert, key) = (self.certfile.is_some(), self.keyfile.is_some());
        together("certfile", cert, "keyfile", key)?;
        let (user, password) = (self.username.is_some(), self.password.is_some());
        together("username", user, "password", password)?;
        if self.lease_ttl.subsec_nanos() != 0
            || !(1..=9_000_000_000).contains(&self.lease_ttl.as_secs())
        {
            return Err(SettingsError::Ttl(self.lease_ttl));
        }
        let tls_by_default = self.cafile.is_some() || self.certfile.is_some();
        let read = |text: &String| {
            Endpoint::parse(text, tls_by_default)
                .ok_or_else(|| SettingsError::Endpoint(endpoint::without_user(text)))
        };
        let endpoints: Vec<_> = self.endpoints.iter().map(read).collect::<Result<_, _>>()?;
        if endpoints.is_empty() {
            return Err(SettingsError::NoEndpoint);
        }
        if endpoints.iter().any(|endpoint| endpoint.tls) {
            self.tls()?;
        }
        Ok(endpoints)
    }

    /// Options for a connection to `endpoint`. The files are read for each connection, so renewed certificates take
    /// effect.
    pub(super) fn connect_options(
        &self,
        endpoint: &Endpoint,
    ) -> Result<ConnectOptions, SettingsError> {
        // etcd closes connections that ping more often than every 5 s (its --grpc-keepalive-min-time).
        const PING_INTERVAL: Duration = Duration::from_secs(10);
        const PING_TIMEOUT: Duration = Duration::from_secs(5);
        let mut options = ConnectOptions::new()
            .with_connect_timeout(crate::cluster::lease::store::DEADLINE)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        // A plain-text endpoint stays plain text even if certificates are configured, as in flannel.
        if endpoint.tls {
            options = options.with_tls(self.tls()?);
        }
        if let (Some(username), Some(password)) = (&self.username, &self.password) {
            options = options
                .with_user(username, password.expose())
                .with_auto_token_refresh(true);
        }
        Ok(options)
    }

    fn tls(&self) -> Result<TlsOptions, SettingsError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| SettingsError::Read {
                path: path.to_owned(),
                source,
            })
        };
        let roots = match &self.cafile {
            Some(path) => read(path)?,
            None => system_roots()
                .ok_or_else(|| SettingsError::NoSystemRoots(SYSTEM_ROOTS.join(", ")))?,
        };
        let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(roots));
        if let (Some(cert), Some(key)) = (&self.certfile, &self.keyfile) {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        Ok(tls)
    }

    pub(super) fn keys(&self) -> Keys {
        Keys {
            config: join_path(&self.prefix, "config"),
            subnets: join_path(&self.prefix, "subnets/"),
            // '0' is the byte after '/'.
            subnets_end: join_path(&self.prefix, "subnets") + "0",
            challenges: join_path(&self.prefix, ".challenges/"),
        }
    }
}

/// Go's `path.Join`, which flannel builds its keys with: no empty, `.` or `..` elements, no slash at the end; a path
/// without a leading slash gets none, and an empty folder is dropped. `name` is kept as it is.
fn join_path(folder: &str, name: &str) -> String {
    let rooted = folder.starts_with('/');
    let mut elements: Vec<&str> = Vec::new();
    for element in folder.split('/') {
        match element {
            "" | "." => {}
            ".." if elements.last().is_some_and(|last| *last != "..") => {
                elements.pop();
            }
            ".." if rooted => {}
            element => elements.push(element),
        }
    }
    elements.push(name);
    let joined = elements.join("/");
    if rooted { format!("/{joined}") } else { joined }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Secret;

    fn with_prefix(prefix: &str) -> Keys {
        Etcd {
            prefix: prefix.to_owned(),
            ..Etcd::default()
        }
        .keys()
    }

    #[test]
    fn keys_are_joined_as_in_go() {
        for (prefix, config) in [
            ("/coreos.com/network", "/coreos.com/network/config"),
            ("/coreos.com//network/", "/coreos.com/network/config"),
            ("coreos.com/network", "coreos.com/network/config"),
            ("//a/./b/../c//", "/a/c/config"),
            ("/../a", "/a/config"),
            ("../a", "../a/config"),
            ("", "config"),
            ("/", "/config"),
        ] {
            assert_eq!(with_prefix(prefix).config, config, "{prefix:?}");
        }
        let keys = with_prefix("/a");
        assert_eq!(
            (keys.subnets.as_str(), keys.subnets_end.as_str()),
            ("/a/subnets/", "/a/subnets0")
        );
    }

    #[test]
    fn halves_and_bad_values_are_refused_and_secrets_hidden() {
        let half = |change: fn(&mut Etcd)| {
            let mut settings = Etcd::default();
            change(&mut settings);
            settings.check().expect_err("accepted").to_string()
        };
        assert!(half(|s| s.username = Some("u".into())).contains("password is not"));
        assert!(half(|s| s.keyfile = Some("k".into())).contains("certfile is not"));
        assert!(half(|s| s.lease_ttl = Duration::from_millis(500)).contains("outside 1 s"));
        assert!(half(|s| s.endpoints.clear()).contains("endpoints is empty"));
        let bad = half(|s| s.endpoints = vec!["http://u:hunter2@a:1".into()]);
        assert!(
            bad.starts_with(r#"invalid endpoint "http://***@a:1": expected"#),
            "{bad}"
        );
        let missing = half(|s| {
            s.cafile = Some("/nonexistent/ca.pem".into());
            s.endpoints = vec!["a:1".into()];
        });
        assert_eq!(missing, "failed to read /nonexistent/ca.pem");

        let settings = Etcd {
            password: Some(Secret::new("hunter2".to_owned())),
            ..Etcd::default()
        };
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
