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
    fn put<T>(&self, slot: &mut Option<Sourced<T>>, key: Key, value: Option<Spanned<T>>) {
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
        let value = value.into_inner();
        *slot = Some(Sourced { value, place, key });
    }
}

/// What the sources say together; `None` where none of them says anything.
#[derive(Default)]
pub(super) struct Inputs {
    pub(super) endpoints: Option<Sourced<Vec<String>>>,
    pub(super) prefix: Option<Sourced<String>>,
    pub(super) cafile: Option<Sourced<String>>,
    pub(super) certfile: Option<Sourced<String>>,
    pub(super) keyfile: Option<Sourced<String>>,
    pub(super) username: Option<Sourced<String>>,
    pub(super) password_file: Option<Sourced<String>>,
    /// What the password file holds, or else flannel's environment variable.
    pub(super) password: Option<Secret>,
    pub(super) interface: Option<Sourced<String>>,
    pub(super) public_ip: Option<Sourced<String>>,
    pub(super) masquerade: Option<Sourced<bool>>,
    pub(super) forward: Option<Sourced<bool>>,
    pub(super) random_fully: Option<Sourced<bool>>,
    pub(super) subnet_file: Option<Sourced<String>>,
    pub(super) state_dir: Option<Sourced<String>>,
    pub(super) node_id: Option<Sourced<String>>,
    pub(super) log: Option<Sourced<String>>,
    pub(super) resync: Option<Sourced<i64>>,
}

impl Inputs {
    /// Lays a stronger source on top.
    pub(super) fn overlay(&mut self, fragment: Fragment, origin: &Origin<'_>) {
        let Fragment {
            etcd,
            underlay,
            firewall,
            files,
            agent,
        } = fragment;
        origin.put(&mut self.endpoints, key::ETCD_ENDPOINTS, etcd.endpoints);
        origin.put(&mut self.prefix, key::ETCD_PREFIX, etcd.prefix);
        origin.put(&mut self.cafile, key::ETCD_CAFILE, etcd.cafile);
        origin.put(&mut self.certfile, key::ETCD_CERTFILE, etcd.certfile);
        origin.put(&mut self.keyfile, key::ETCD_KEYFILE, etcd.keyfile);
        origin.put(&mut self.username, key::ETCD_USERNAME, etcd.username);
        let password_file = etcd.password_file;
        origin.put(
            &mut self.password_file,
            key::ETCD_PASSWORD_FILE,
            password_file,
        );
        origin.put(
            &mut self.interface,
            key::UNDERLAY_INTERFACE,
            underlay.interface,
        );
        origin.put(
            &mut self.public_ip,
            key::UNDERLAY_PUBLIC_IP,
            underlay.public_ip,
        );
        origin.put(
            &mut self.masquerade,
            key::FIREWALL_MASQUERADE,
            firewall.masquerade,
        );
        origin.put(&mut self.forward, key::FIREWALL_FORWARD, firewall.forward);
        let random_fully = firewall.random_fully;
        origin.put(
            &mut self.random_fully,
            key::FIREWALL_RANDOM_FULLY,
            random_fully,
        );
        origin.put(
            &mut self.subnet_file,
            key::FILES_SUBNET_FILE,
            files.subnet_file,
        );
        origin.put(&mut self.state_dir, key::FILES_STATE_DIR, files.state_dir);
        origin.put(&mut self.node_id, key::AGENT_NODE_ID, agent.node_id);
        origin.put(&mut self.log, key::AGENT_LOG, agent.log);
        origin.put(&mut self.resync, key::AGENT_RESYNC, agent.resync);
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
