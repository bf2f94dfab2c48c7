//! What the environment says: `SELVAGE_*`, and for whoever comes from flannel `FLANNELD_*`.

use std::collections::BTreeMap;
use std::env;

use toml::Spanned;

use super::fragment::{Agent, Etcd, Files, Firewall, Health, Remote, Texts, Underlay};
use super::key::{self, Key};
use super::{Error, Fragment, Secret, Source};

/// The environment variables that can be settings. Not `Debug`: one of them may be a password.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// This process's.
    pub fn of_process() -> Self {
        // What is not UTF-8 is not ours: none of our names or values can be.
        env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// Without flannel's variables.
    pub(super) fn ours(&self) -> Self {
        let variables = self.0.iter().filter(|(name, _)| key::is_ours(name));
        Self(
            variables
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        )
    }

    /// The stronger of a setting's variables that is there and not empty, and its value.
    fn variable(&self, names: [String; 2]) -> Option<(String, &str)> {
        names.into_iter().find_map(|name| {
            let value = self.0.get(&name).filter(|value| !value.is_empty())?;
            Some((name, value.as_str()))
        })
    }

    /// Where the setting `key` is from.
    pub(super) fn source(&self, key: Key) -> Source {
        let [ours, _] = key.variables();
        Source::Variable(
            self.variable(key.variables())
                .map_or(ours, |(name, _)| name),
        )
    }

    /// flannel's `FLANNELD_ETCD_PASSWORD`. It has no flag and no key here: a file is a better place.
    pub(super) fn password(&self) -> Option<Secret> {
        let (_, value) = self.variable(key::variables("etcd-password"))?;
        Some(Secret::new(value.to_owned()))
    }

    /// All that the environment says.
    pub(super) fn fragment(&self) -> Result<Fragment, Error> {
        Ok(Fragment {
            etcd: Etcd {
                endpoints: self.text(key::ETCD_ENDPOINTS).map(split_list),
                prefix: self.text(key::ETCD_PREFIX),
                cafile: self.text(key::ETCD_CAFILE),
                certfile: self.text(key::ETCD_CERTFILE),
                keyfile: self.text(key::ETCD_KEYFILE),
                username: self.text(key::ETCD_USERNAME),
                password_file: self.text(key::ETCD_PASSWORD_FILE),
                lease_ttl: self.parse(key::ETCD_LEASE_TTL, parse_number)?,
            },
            remote: Remote {
                server: self.list(key::REMOTE_SERVER),
                network: self.text(key::REMOTE_NETWORK),
                listen: self.text(key::REMOTE_LISTEN),
                cafile: self.text(key::REMOTE_CAFILE),
                certfile: self.text(key::REMOTE_CERTFILE),
                keyfile: self.text(key::REMOTE_KEYFILE),
                insecure: self.parse(key::REMOTE_INSECURE, parse_bool)?,
            },
            underlay: Underlay {
                interfaces: self.one(key::UNDERLAY_INTERFACES),
                interface_regex: self.one(key::UNDERLAY_INTERFACE_REGEX),
                can_reach: self.text(key::UNDERLAY_CAN_REACH),
                interface_cidr: self.list(key::UNDERLAY_INTERFACE_CIDR),
                public_ip: self.text(key::UNDERLAY_PUBLIC_IP),
                public_ipv6: self.text(key::UNDERLAY_PUBLIC_IPV6),
            },
            firewall: Firewall {
                mode: self.text(key::FIREWALL_MODE),
                masquerade: self.parse(key::FIREWALL_MASQUERADE, parse_bool)?,
                forward: self.parse(key::FIREWALL_FORWARD, parse_bool)?,
                random_fully: self.parse(key::FIREWALL_RANDOM_FULLY, parse_bool)?,
                masquerade_exclude: self.list(key::FIREWALL_MASQUERADE_EXCLUDE),
                resync: self.parse(key::FIREWALL_RESYNC, parse_number)?,
                blackhole_route: self.parse(key::FIREWALL_BLACKHOLE_ROUTE, parse_bool)?,
            },
            files: Files {
                subnet_file: self.text(key::FILES_SUBNET_FILE),
                state_dir: self.text(key::FILES_STATE_DIR),
                socket: self.text(key::FILES_SOCKET),
            },
            health: Health {
                address: self.text(key::HEALTH_ADDRESS),
                port: self.parse(key::HEALTH_PORT, parse_number)?,
            },
            agent: Agent {
                network: self.text(key::AGENT_NETWORK),
                node_id: self.text(key::AGENT_NODE_ID),
                log: self.text(key::AGENT_LOG),
                resync: self.parse(key::AGENT_RESYNC, parse_number)?,
                leave_on_stop: self.parse(key::AGENT_LEAVE_ON_STOP, parse_bool)?,
            },
        })
    }

    fn text(&self, key: Key) -> Option<Spanned<String>> {
        let (_, value) = self.variable(key.variables())?;
        Some(unplaced(value.to_owned()))
    }

    /// A list of one, as in flannel: a pattern may contain commas.
    fn one(&self, key: Key) -> Option<Spanned<Texts>> {
        let text = self.text(key)?.into_inner();
        Some(unplaced(Texts(vec![text])))
    }

    /// A list separated by commas.
    fn list(&self, key: Key) -> Option<Spanned<Texts>> {
        let list = split_list(self.text(key)?).into_inner();
        Some(unplaced(Texts(list)))
    }

    fn parse<T>(
        &self,
        key: Key,
        parse: fn(&str) -> Result<T, String>,
    ) -> Result<Option<Spanned<T>>, Error> {
        let Some((name, value)) = self.variable(key.variables()) else {
            return Ok(None);
        };
        match parse(value) {
            Ok(value) => Ok(Some(unplaced(value))),
            Err(expected) => Err(Error::Value {
                place: Source::Variable(name),
                key: key.path,
                value: format!("{value:?}"),
                expected,
            }),
        }
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        let ours = |name: &String| key::is_variable(name);
        Self(
            variables
                .into_iter()
                .filter(|(name, _)| ours(name))
                .collect(),
        )
    }
}

/// A value that is not from a file.
pub(super) fn unplaced<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

/// Splits a comma-separated list; empty members are dropped.
pub(super) fn split_list(list: Spanned<String>) -> Spanned<Vec<String>> {
    let members = list.get_ref().split(',').map(str::trim);
    unplaced(
        members
            .filter(|member| !member.is_empty())
            .map(str::to_owned)
            .collect(),
    )
}

/// Reads a truth value in any of the spellings that Go's `strconv.ParseBool` takes, as flannel's flags do.
///
/// # Errors
/// What is expected.
pub(crate) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("true or false".to_owned()),
    }
}

fn parse_number(text: &str) -> Result<i64, String> {
    text.trim().parse().map_err(|_| "a whole number".to_owned())
}
