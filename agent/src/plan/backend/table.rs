//! The table of backends, and the `Backend` object of a network config.
//!
//! Everything that cleanup, the privileges, the doctor and the switch between backends need to know about a backend is
//! a field of [`Definition`], so that no other code matches on backends.

use std::any::Any;
use std::fmt;

use thiserror::Error;

use super::opening::{FirstCommand, Opening, Setup, Unfit};
use crate::base::go_json::{GoJsonError, Object};
use crate::base::net::InterfaceName;
use crate::cluster::network_config::NetworkConfig;
use crate::plan::state::{self, LinkKind};

/// The backends. A new one needs a file beside this one and a line here.
static BACKENDS: &[&Definition] = &[
    &super::alloc::BACKEND,
    &super::cloud::ALI,
    &super::cloud::AWS,
    &super::cloud::AZURE,
    &super::cloud::GCE,
    &super::cloud::OPENSTACK,
    &super::cloud::TENCENT,
    &super::extension::BACKEND,
    &super::host_gw::BACKEND,
    &super::ipip::BACKEND,
    &super::ipsec::BACKEND,
    &super::udp::BACKEND,
    &super::vxlan::BACKEND,
    &super::wireguard::BACKEND,
];

/// Parses a backend's keys of the network config, and refuses families that the backend does not carry.
pub(super) type Parse =
    fn(&Object<'_>, &NetworkConfig) -> Result<Box<dyn Options>, BackendConfigError>;

/// The properties of a backend that do not depend on its config.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// Its name in the network config.
    pub(crate) kind: &'static str,
    /// Parses its keys.
    pub(super) parse: Parse,
    /// Whether it creates devices with this name and kind.
    pub(super) makes: fn(&InterfaceName, &LinkKind) -> bool,
    /// Its devices with fixed names.
    pub(super) devices: &'static [&'static str],
    /// Its file in the state directory, removed by cleanup; not the files of MAC addresses.
    pub(crate) memory: Option<&'static str>,
    /// Whether it runs the administrator's commands, which get all privileges that the agent was started with.
    pub(crate) runs_commands: bool,
    /// Whether other programs make the routes to peers, or any route is good, so that routes cannot be judged.
    pub(crate) leaves_routes: bool,
    /// Whether it can run beside its successor until the last peer has switched. Not so if encrypted traffic would
    /// continue in plain text or the reverse, and not for the administrator's commands.
    pub(crate) side_by_side: bool,
}

impl Definition {
    /// A backend without devices or files that cannot run beside another.
    pub(super) const fn new(kind: &'static str, parse: Parse) -> Self {
        Self {
            kind,
            parse,
            makes: |_, _| false,
            devices: &[],
            memory: None,
            runs_commands: false,
            leaves_routes: false,
            side_by_side: false,
        }
    }

    /// Its devices with fixed names.
    pub(crate) fn devices(&self) -> impl Iterator<Item = InterfaceName> {
        self.devices.iter().filter_map(|name| name.parse().ok())
    }
}

/// All backends.
pub(crate) fn all() -> impl Iterator<Item = &'static Definition> {
    BACKENDS.iter().copied()
}

/// The backend with a name.
pub(crate) fn find(kind: &str) -> Option<&'static Definition> {
    all().find(|backend| backend.kind == kind)
}

/// The backend that creates such a device, by the device's name and kind.
pub(crate) fn maker(name: &InterfaceName, object: &state::Object) -> Option<&'static Definition> {
    let state::Object::Link(link) = object else {
        return None;
    };
    all().find(|backend| (backend.makes)(name, &link.kind))
}

/// Equality of two trait objects.
pub(super) trait Same: Any {
    /// Whether the other has the same type and value.
    fn is_same(&self, other: &dyn Any) -> bool;
}

impl<T: Any + PartialEq> Same for T {
    fn is_same(&self, other: &dyn Any) -> bool {
        other.downcast_ref() == Some(self)
    }
}

/// The validated keys of one backend.
pub(super) trait Options: Same + fmt::Debug + Send + Sync {
    /// The backend's devices as far as the config determines them: a TUN device gets the first free name.
    fn devices(&self, _: &NetworkConfig) -> Vec<InterfaceName> {
        Vec::new()
    }

    /// The UDP port that it listens on; the lower of two.
    fn port(&self) -> Option<u16> {
        None
    }

    /// The command that runs before the backend is opened, if any.
    fn first_command(&self) -> Option<FirstCommand> {
        None
    }

    /// Starts opening the backend.
    ///
    /// # Errors
    ///
    /// It cannot work here.
    fn open(&self, setup: Setup<'_>) -> Result<Opening, Unfit>;
}

/// The `Backend` part of a network config is unusable.
#[derive(Debug, Error)]
pub enum BackendConfigError {
    /// The network has no family that the backend carries.
    #[error(
        "EnableIPv4: false is not possible with the backend {0}, which carries only IPv4; allowed: true"
    )]
    Ipv6Alone(&'static str),
    /// A mode of the wireguard backend needs a family that the network does not have.
    #[error("Backend: Mode is not possible without {0}: true; allowed: \"separate\" or \"auto\"")]
    ModeWithout(&'static str),
    /// Unknown backend.
    #[error("the backend {0:?} does not exist; the backends are: {list}", list = names())]
    Kind(String),
    /// A key is invalid. The text is complete; it has no source.
    #[error("Backend: {0}")]
    Json(GoJsonError),
}

impl From<GoJsonError> for BackendConfigError {
    fn from(error: GoJsonError) -> Self {
        Self::Json(error)
    }
}

fn names() -> String {
    let names: Vec<&str> = all().map(|backend| backend.kind).collect();
    names.join(", ")
}

/// The validated `Backend` object of the network config.
#[derive(Debug)]
pub struct BackendConfig {
    definition: &'static Definition,
    options: Box<dyn Options>,
}

impl PartialEq for BackendConfig {
    fn eq(&self, other: &Self) -> bool {
        let theirs: &dyn Any = &*other.options;
        self.kind() == other.kind() && self.options.is_same(theirs)
    }
}

impl BackendConfig {
    /// Parses the backend's part of a network config, and checks that the backend carries the network's families.
    ///
    /// # Errors
    ///
    /// Names the key, the value and the allowed values.
    pub fn parse(config: &NetworkConfig) -> Result<Self, BackendConfigError> {
        let spec = &config.backend;
        let options = Object::parse(spec.options.get())?;
        let definition =
            find(&spec.kind).ok_or_else(|| BackendConfigError::Kind(spec.kind.clone()))?;
        Ok(Self {
            definition,
            options: (definition.parse)(&options, config)?,
        })
    }

    /// The definition of its kind.
    pub(crate) fn definition(&self) -> &'static Definition {
        self.definition
    }

    /// The backend's name.
    pub fn kind(&self) -> &'static str {
        self.definition.kind
    }

    /// The backend's devices as far as the config determines them: a TUN device gets the first free name.
    pub(crate) fn devices(&self, network: &NetworkConfig) -> Vec<InterfaceName> {
        self.options.devices(network)
    }

    /// The UDP port that it listens on; the lower of two.
    pub fn port(&self) -> Option<u16> {
        self.options.port()
    }

    /// The command that runs before the backend is opened, if any.
    pub(crate) fn first_command(&self) -> Option<FirstCommand> {
        self.options.first_command()
    }

    /// Starts opening the backend.
    ///
    /// # Errors
    ///
    /// It cannot work here.
    pub(crate) fn open(&self, setup: Setup<'_>) -> Result<Opening, Unfit> {
        self.options.open(setup)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_has_a_name_of_its_own_and_devices_that_can_exist() {
        let kinds: BTreeSet<&str> = all().map(|backend| backend.kind).collect();
        assert_eq!(kinds.len(), BACKENDS.len());
        for backend in all() {
            assert_eq!(backend.devices().count(), backend.devices.len());
        }
    }

    #[test]
    fn all_of_flannels_that_there_are_go_by_its_names() {
        let flannels = "ali-vpc alloc aws-vpc extension gce host-gw ipip ipsec tencent-vpc udp vxlan wireguard";
        for kind in flannels.split(' ') {
            assert_eq!(find(kind).map(|backend| backend.kind), Some(kind));
        }
    }

    #[test]
    fn configs_are_equal_if_all_keys_are() {
        let parse = |backend: &str| {
            let config = format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#);
            BackendConfig::parse(&NetworkConfig::parse(&config).unwrap()).unwrap()
        };
        let keyed = |first: &str| {
            let key = format!("{first}{}=", "A".repeat(42));
            parse(&format!(r#"{{"Type":"wireguard","PSK":"{key}"}}"#))
        };
        // Fields that Debug hides are compared, too.
        assert_eq!(keyed("B"), keyed("B"));
        assert_ne!(keyed("B"), keyed("C"));
        assert_eq!(parse(r#"{"Type":"alloc"}"#), parse(r#"{"Type":"alloc"}"#));
        assert_ne!(parse(r#"{"Type":"alloc"}"#), parse(r#"{"Type":"host-gw"}"#));
        assert_ne!(
            parse(r#"{"Type":"vxlan"}"#),
            parse(r#"{"Type":"vxlan","VNI":2}"#)
        );
    }

    #[test]
    fn an_unknown_kind_is_told_what_there_is() {
        let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"hostgw"}}"#;
        let error = BackendConfig::parse(&NetworkConfig::parse(config).unwrap()).unwrap_err();
        let kinds: Vec<&str> = BACKENDS.iter().map(|backend| backend.kind).collect();
        let list = kinds.join(", ");
        assert_eq!(
            error.to_string(),
            format!("the backend \"hostgw\" does not exist; the backends are: {list}")
        );
    }
}
