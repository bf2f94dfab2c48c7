//! The sources laid over each other; each value remembers where it is from.

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::fragment::line_at;
use super::key::{self, Key};
use super::{Environment, Error, Fragment, Secret, Source};

/// A value and where it is from.
#[derive(Clone, Debug)]
pub(super) struct Sourced<T> {
    pub(super) value: T,
    pub(super) place: Source,
    pub(super) key: Key,
}

impl<T: Debug> Sourced<T> {
    /// The error that this value is not what is allowed.
    pub(super) fn error(&self, expected: impl Into<String>) -> Error {
        // Rust's form of a text, number, truth value or list of texts is TOML's.
        Error::Value {
            place: self.place.clone(),
            key: self.key.path,
            value: format!("{:?}", self.value),
            expected: expected.into(),
        }
    }
}

/// Which source a fragment is from.
pub(super) enum Origin<'a> {
    File {
        path: &'a Path,
        text: &'a str,
    },
    Environment(&'a Environment),
    Flags,
    /// flanneld's flags and variables, which are asked for the place.
    Flanneld(&'a dyn Fn(Key) -> Source),
}

impl Origin<'_> {
    fn put<T, V: Into<T>>(
        &self,
        slot: &mut Option<Sourced<T>>,
        key: Key,
        value: Option<Spanned<V>>,
    ) {
        let Some(value) = value else { return };
        let place = match self {
            Self::File { path, text } => Source::File {
                path: (*path).to_owned(),
                line: line_at(text, value.span().start),
            },
            Self::Environment(environment) => environment.source(key),
            Self::Flags => Source::Flag(key.flag),
            Self::Flanneld(place) => place(key),
        };
        let value = value.into_inner().into();
        *slot = Some(Sourced { value, place, key });
    }
}

/// What the sources say together; `None` where none of them says anything.
#[derive(Default)]
pub(super) struct Inputs {
    pub(super) endpoints: Option<Sourced<Vec<String>>>,
    pub(super) prefix: Option<Sourced<String>>,
    /// What a named network's prefix begins with when [`Self::prefix`] does not say all of it.
    pub(super) base_prefix: Option<Sourced<String>>,
    pub(super) cafile: Option<Sourced<String>>,
    pub(super) certfile: Option<Sourced<String>>,
    pub(super) keyfile: Option<Sourced<String>>,
    pub(super) username: Option<Sourced<String>>,
    pub(super) password_file: Option<Sourced<String>>,
    /// What the password file holds, or else flannel's environment variable.
    pub(super) password: Option<Secret>,
    pub(super) lease_ttl: Option<Sourced<i64>>,
    pub(super) remote_server: Option<Sourced<Vec<String>>>,
    pub(super) remote_network: Option<Sourced<String>>,
    pub(super) remote_listen: Option<Sourced<String>>,
    pub(super) remote_cafile: Option<Sourced<String>>,
    pub(super) remote_certfile: Option<Sourced<String>>,
    pub(super) remote_keyfile: Option<Sourced<String>>,
    pub(super) remote_insecure: Option<Sourced<bool>>,
    pub(super) interfaces: Option<Sourced<Vec<String>>>,
    pub(super) interface_regex: Option<Sourced<Vec<String>>>,
    pub(super) can_reach: Option<Sourced<String>>,
    pub(super) interface_cidr: Option<Sourced<Vec<String>>>,
    pub(super) public_ip: Option<Sourced<String>>,
    pub(super) public_ipv6: Option<Sourced<String>>,
    pub(super) firewall_mode: Option<Sourced<String>>,
    pub(super) masquerade: Option<Sourced<bool>>,
    pub(super) forward: Option<Sourced<bool>>,
    pub(super) random_fully: Option<Sourced<bool>>,
    pub(super) masquerade_exclude: Option<Sourced<Vec<String>>>,
    pub(super) firewall_resync: Option<Sourced<i64>>,
    pub(super) blackhole_route: Option<Sourced<bool>>,
    pub(super) subnet_file: Option<Sourced<String>>,
    pub(super) state_dir: Option<Sourced<String>>,
    pub(super) socket: Option<Sourced<String>>,
    pub(super) health_address: Option<Sourced<String>>,
    pub(super) health_port: Option<Sourced<i64>>,
    pub(super) network: Option<Sourced<String>>,
    pub(super) node_id: Option<Sourced<String>>,
    pub(super) log: Option<Sourced<String>>,
    pub(super) resync: Option<Sourced<i64>>,
    pub(super) leave_on_stop: Option<Sourced<bool>>,
}

impl Inputs {
    /// Lays a stronger source on top.
    pub(super) fn overlay(&mut self, fragment: Fragment, origin: &Origin<'_>) {
        let Fragment {
            etcd,
            remote,
            underlay,
            firewall,
            files,
            health,
            agent,
        } = fragment;
        macro_rules! put {
            ($($slot:ident, $key:ident, $table:ident.$field:ident;)*) => {
                $(origin.put(&mut self.$slot, key::$key, $table.$field);)*
            };
        }
        put! {
            endpoints, ETCD_ENDPOINTS, etcd.endpoints;
            prefix, ETCD_PREFIX, etcd.prefix;
            cafile, ETCD_CAFILE, etcd.cafile;
            certfile, ETCD_CERTFILE, etcd.certfile;
            keyfile, ETCD_KEYFILE, etcd.keyfile;
            username, ETCD_USERNAME, etcd.username;
            password_file, ETCD_PASSWORD_FILE, etcd.password_file;
            lease_ttl, ETCD_LEASE_TTL, etcd.lease_ttl;
            remote_server, REMOTE_SERVER, remote.server;
            remote_network, REMOTE_NETWORK, remote.network;
            remote_listen, REMOTE_LISTEN, remote.listen;
            remote_cafile, REMOTE_CAFILE, remote.cafile;
            remote_certfile, REMOTE_CERTFILE, remote.certfile;
            remote_keyfile, REMOTE_KEYFILE, remote.keyfile;
            remote_insecure, REMOTE_INSECURE, remote.insecure;
            interfaces, UNDERLAY_INTERFACES, underlay.interfaces;
            interface_regex, UNDERLAY_INTERFACE_REGEX, underlay.interface_regex;
            can_reach, UNDERLAY_CAN_REACH, underlay.can_reach;
            interface_cidr, UNDERLAY_INTERFACE_CIDR, underlay.interface_cidr;
            public_ip, UNDERLAY_PUBLIC_IP, underlay.public_ip;
            public_ipv6, UNDERLAY_PUBLIC_IPV6, underlay.public_ipv6;
            firewall_mode, FIREWALL_MODE, firewall.mode;
            masquerade, FIREWALL_MASQUERADE, firewall.masquerade;
            forward, FIREWALL_FORWARD, firewall.forward;
            random_fully, FIREWALL_RANDOM_FULLY, firewall.random_fully;
            masquerade_exclude, FIREWALL_MASQUERADE_EXCLUDE, firewall.masquerade_exclude;
            firewall_resync, FIREWALL_RESYNC, firewall.resync;
            blackhole_route, FIREWALL_BLACKHOLE_ROUTE, firewall.blackhole_route;
            subnet_file, FILES_SUBNET_FILE, files.subnet_file;
            state_dir, FILES_STATE_DIR, files.state_dir;
            socket, FILES_SOCKET, files.socket;
            health_address, HEALTH_ADDRESS, health.address;
            health_port, HEALTH_PORT, health.port;
            network, AGENT_NETWORK, agent.network;
            node_id, AGENT_NODE_ID, agent.node_id;
            log, AGENT_LOG, agent.log;
            resync, AGENT_RESYNC, agent.resync;
            leave_on_stop, AGENT_LEAVE_ON_STOP, agent.leave_on_stop;
        }
    }

    /// What the sources say so far is meant for all networks of the host, and from now on for one of them: a prefix is what
    /// its own begins with, and no two networks can have the same files and port.
    pub(super) fn share(&mut self) {
        self.base_prefix = self.prefix.take();
        self.subnet_file = None;
        self.state_dir = None;
        self.socket = None;
        self.health_port = None;
        self.remote_network = None;
        self.remote_listen = None;
    }

    /// Reads the file that holds the etcd password, if one is named; it beats flannel's environment variable.
    pub(super) fn read_password(&mut self) -> Result<(), Error> {
        let Some(file) = &self.password_file else {
            return Ok(());
        };
        if file.value.is_empty() {
            return Ok(());
        }
        let text = fs::read_to_string(&file.value).map_err(|source| Error::PasswordFile {
            place: file.place.clone(),
            key: file.key.path,
            path: PathBuf::from(&file.value),
            source,
        })?;
        let password = text.trim_end_matches(['\n', '\r']);
        if password.is_empty() || password.contains('\n') {
            return Err(file.error("a file of exactly one line, the password"));
        }
        self.password = Some(Secret::new(password.to_owned()));
        Ok(())
    }
}
