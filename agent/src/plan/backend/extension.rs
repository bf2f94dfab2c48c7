//! The extension backend: the administrator's own commands set up the paths to peers.
//!
//! | object | is |
//! |---|---|
//! | hook of the own lease | `PostStartupCommand`, runs at every start of the agent |
//! | hook per peer | `SubnetAddCommand` when it appears or changes and at every start, `SubnetRemoveCommand` when it goes |
//!
//! `PreStartupCommand` runs before a lease is taken; its output is published as the lease's data, and passed to the
//! commands for a peer on standard input, with a newline. Every command runs in a shell, as flannel's samples expect
//! (flannel itself splits it into words since 0.28.2). Environment: NETWORK, SUBNET and PUBLIC_IP, with IPv6 also
//! IPV6NETWORK, IPV6SUBNET and PUBLIC_IPV6; NETWORK and IPV6NETWORK for `PostStartupCommand` alone. That command always
//! gets all of them, because scripts under `set -u` expect the variables that flannel sets; a missing family has the
//! value that flannel prints.
//!
//! `PreStartupCommand` and `PostStartupCommand` are retried with backoff until they succeed; before that no command for
//! a peer runs. A failed command for a peer is reported and retried with backoff, too; the rest of the overlay does not
//! wait for it.
//!
//! The MTU is the underlay's. `ShutdownCommand` is accepted and never run, as in flannel: the data plane stays in place.

use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_json::value::{RawValue, to_raw_value};

use super::table::{Definition, Options};
use super::{Backend, BackendConfigError, FirstCommand, Opening, Setup, Unfit, attrs, same_kind};
use crate::base::go_json;
use crate::cluster::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::cluster::network_config::NetworkConfig;
use crate::cluster::refusal::PeerRefusal;
use crate::plan::state::{Hook, Key, Object, Scope, State};
use crate::plan::underlay::Underlay;

/// The name of this backend in network configs and leases.
const KIND: &str = "extension";

/// Its entry in the table.
pub(super) static BACKEND: Definition = Definition {
    memory: Some(MEMORY),
    runs_commands: true,
    leaves_routes: true,
    ..Definition::new(KIND, |options, _| {
        Ok(Box::new(ExtensionConfig::parse(options)?))
    })
};

/// The key of the first command.
const FIRST: &str = "PreStartupCommand";

/// The file in the state directory that records the peers whose commands have run.
const MEMORY: &str = "extension.json";

/// The variables of a missing family in flannel's `PostStartupCommand`.
const NOTHING: [(&str, &str); 5] = [
    ("NETWORK", "0.0.0.0/0"),
    ("SUBNET", "0.0.0.0/0"),
    ("IPV6SUBNET", "::/0"),
    ("PUBLIC_IP", "<nil>"),
    ("PUBLIC_IPV6", "<nil>"),
];

/// The file that records the peers whose commands have run.
pub(crate) fn memory(state_dir: &Path) -> PathBuf {
    state_dir.join(MEMORY)
}

/// The extension keys of the network config's `Backend`; each command is run by the shell.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ExtensionConfig {
    /// Runs before a lease is taken; its output is the lease's data.
    pub pre_startup: Option<String>,
    /// Runs once the own subnet is known.
    pub post_startup: Option<String>,
    /// Runs for a new peer, or one whose address or data changed.
    pub subnet_add: Option<String>,
    /// Runs for a removed peer.
    pub subnet_remove: Option<String>,
}

impl ExtensionConfig {
    fn parse(options: &go_json::Object<'_>) -> Result<Self, BackendConfigError> {
        let command = |key| -> Result<Option<String>, BackendConfigError> {
            let text: Option<String> = options.get(key, "a shell command")?;
            Ok(text.filter(|text| !text.is_empty()))
        };
        Ok(Self {
            pre_startup: command(FIRST)?,
            post_startup: command("PostStartupCommand")?,
            subnet_add: command("SubnetAddCommand")?,
            subnet_remove: command("SubnetRemoveCommand")?,
        })
    }
}

impl Options for ExtensionConfig {
    fn first_command(&self) -> Option<FirstCommand> {
        let command = self.pre_startup.clone()?;
        Some(FirstCommand {
            key: FIRST,
            command,
        })
    }

    /// Requests the output of the first command.
    fn open(&self, setup: Setup<'_>) -> Result<Opening, Unfit> {
        let (config, network) = (self.clone(), setup.config.clone());
        let (underlay, state_dir) = (setup.underlay.clone(), setup.state_dir.to_owned());
        let make = move |output: Option<&str>| {
            let backend = ExtensionBackend::new(&config, &network, &underlay, &state_dir, output);
            Opening::ready(backend)
        };
        Ok(match self.first_command() {
            Some(command) => Opening::Output {
                command,
                then: Box::new(move |output| make(Some(output.trim()))),
            },
            None => make(None),
        })
    }
}

/// The extension backend of one node.
#[derive(Clone, Debug)]
pub(super) struct ExtensionBackend {
    config: ExtensionConfig,
    networks: Vec<IpNet>,
    underlay: Underlay,
    memory: PathBuf,
    /// The output of the first command.
    data: Option<Box<RawValue>>,
}

impl ExtensionBackend {
    fn new(
        config: &ExtensionConfig,
        network: &NetworkConfig,
        underlay: &Underlay,
        state_dir: &Path,
        output: Option<&str>,
    ) -> Self {
        Self {
            config: config.clone(),
            networks: network.networks().collect(),
            underlay: underlay.clone(),
            memory: memory(state_dir),
            // A text always serializes.
            data: output.and_then(|text| to_raw_value(text).ok()),
        }
    }
}

/// One variable for each family.
fn variables(
    environment: &mut Vec<(String, String)>,
    names: [&str; 2],
    values: impl IntoIterator<Item = IpNet>,
    show: fn(IpNet) -> String,
) {
    for value in values {
        let name = match value {
            IpNet::V4(_) => names[0],
            IpNet::V6(_) => names[1],
        };
        environment.push((name.to_owned(), show(value)));
    }
}

/// The environment of both kinds of commands for a lease.
fn environment(key: &SubnetKey, attrs: &LeaseAttrs) -> Vec<(String, String)> {
    let mut environment = Vec::new();
    let text = |net: IpNet| net.to_string();
    variables(&mut environment, ["SUBNET", "IPV6SUBNET"], key.nets(), text);
    let addresses = key.nets().filter_map(|net| attrs.address_for(net));
    variables(
        &mut environment,
        ["PUBLIC_IP", "PUBLIC_IPV6"],
        addresses.map(IpNet::from),
        |net| net.addr().to_string(),
    );
    environment
}

impl Backend for ExtensionBackend {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn mtu(&self) -> u32 {
        self.underlay.mtu
    }

    /// The address is the interface's own, as in flannel, even if the settings name another.
    fn lease_attrs(&self) -> LeaseAttrs {
        LeaseAttrs {
            public_ip: self.underlay.v4.map(|v4| v4.address),
            public_ipv6: self.underlay.v6.map(|v6| v6.address),
            backend_data: self.data.clone(),
            ..attrs(KIND, &self.underlay)
        }
    }

    fn over(&self, underlay: &Underlay) -> Box<dyn Backend> {
        Box::new(Self {
            underlay: underlay.clone(),
            ..self.clone()
        })
    }

    fn scope(&self) -> Scope {
        Scope {
            links: Vec::new(),
            networks: self.networks.clone(),
            shared: None,
            hooks: Some(self.memory.clone()),
            ipsec: false,
        }
    }

    fn own(&self, own: &SubnetKey) -> State {
        let Some(command) = &self.config.post_startup else {
            return State::new();
        };
        let mut environment = environment(own, &self.lease_attrs());
        let text = |net: IpNet| net.to_string();
        let networks = self.networks.iter().copied();
        variables(&mut environment, ["NETWORK", "IPV6NETWORK"], networks, text);
        for (name, nothing) in NOTHING {
            if !environment.iter().any(|(set, _)| set == name) {
                environment.push((name.to_owned(), nothing.to_owned()));
            }
        }
        let hook = Hook {
            set: Some(command.clone()),
            unset: None,
            environment,
            input: None,
            required: true,
        };
        State::from([(Key::Hook(*own), Object::Hook(Box::new(hook)))])
    }

    fn peer(&self, peer: &Lease) -> Result<Vec<(Key, Object)>, PeerRefusal> {
        same_kind(&peer.attrs, KIND)?;
        let data: Option<String> = match &peer.attrs.backend_data {
            None => None,
            Some(raw) => Some(serde_json::from_str(raw.get()).map_err(|_| {
                PeerRefusal::BackendData(format!("{} is not a string", go_json::shorten(raw.get())))
            })?),
        };
        if (&self.config.subnet_add, &self.config.subnet_remove) == (&None, &None) {
            return Ok(Vec::new());
        }
        let hook = Hook {
            set: self.config.subnet_add.clone(),
            unset: self.config.subnet_remove.clone(),
            environment: environment(&peer.key, &peer.attrs),
            input: Some(format!("{}\n", data.unwrap_or_default())),
            // As in flannel, a failure does not stop the rest. A command such as flannel's sample `ip route add` fails
            // if the route exists already, as after a restart of the agent; its undo command fails after a reboot.
            required: false,
        };
        Ok(vec![(Key::Hook(peer.key), Object::Hook(Box::new(hook)))])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::backend::vxlan::tests::{lease, underlay};

    fn backend(options: &str, output: Option<&str>) -> ExtensionBackend {
        let options = go_json::Object::parse(options).unwrap();
        let network = NetworkConfig::parse(
            r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#,
        )
        .unwrap();
        ExtensionBackend::new(
            &ExtensionConfig::parse(&options).unwrap(),
            &network,
            &underlay(),
            Path::new("/var/lib/selvage"),
            output,
        )
    }

    fn hook(objects: &[(Key, Object)]) -> Hook {
        match objects {
            [(Key::Hook(_), Object::Hook(hook))] => (**hook).clone(),
            _ => panic!("{objects:?}"),
        }
    }

    fn shown(hook: &Hook) -> String {
        let pair = |(name, value): &(String, String)| format!("{name}={value}");
        let environment: Vec<_> = hook.environment.iter().map(pair).collect();
        environment.join(" ")
    }

    fn peer(data: Option<&str>) -> Lease {
        let mut lease = lease(1, 1, 1);
        lease.attrs.backend_type = KIND.to_owned();
        lease.attrs.backend_data = data.map(|data| RawValue::from_string(data.into()).unwrap());
        lease
    }

    #[test]
    fn commands_get_flannels_environment_and_input() {
        let backend = backend(
            r#"{"PostStartupCommand":"post","SubnetAddCommand":"add","SubnetRemoveCommand":"del"}"#,
            Some("hello <world>"),
        );
        let attrs = backend.lease_attrs().to_json().unwrap();
        assert_eq!(
            attrs,
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"extension","BackendData":"hello \u003cworld\u003e"}"#
        );
        let own = SubnetKey::parse_name("10.5.1.0-24&fd00:5:0:1::-64").unwrap();
        let own: Vec<_> = backend.own(&own).into_iter().collect();
        assert_eq!(
            shown(&hook(&own)),
            "SUBNET=10.5.1.0/24 IPV6SUBNET=fd00:5:0:1::/64 PUBLIC_IP=192.0.2.1 PUBLIC_IPV6=2001:db8::1 \
             NETWORK=10.5.0.0/16 IPV6NETWORK=fd00:5::/48"
        );
        let peer = backend.peer(&peer(Some(r#""it's data""#))).unwrap();
        let peer = hook(&peer);
        assert_eq!(shown(&peer), "SUBNET=10.5.1.0/24 PUBLIC_IP=198.18.0.1");
        assert_eq!(peer.input.as_deref(), Some("it's data\n"));
        assert_eq!(
            (peer.set.as_deref(), peer.unset.as_deref()),
            (Some("add"), Some("del"))
        );
    }

    /// flannel's values, for scripts under `set -u`.
    #[test]
    fn the_own_command_has_all_variables_whatever_the_families() {
        let backend = backend(r#"{"PostStartupCommand":"post"}"#, None);
        let backend = ExtensionBackend {
            networks: vec!["10.5.0.0/16".parse().unwrap()],
            ..backend
        };
        let own = SubnetKey::parse_name("10.5.1.0-24").unwrap();
        let own: Vec<_> = backend.own(&own).into_iter().collect();
        assert_eq!(
            shown(&hook(&own)),
            "SUBNET=10.5.1.0/24 PUBLIC_IP=192.0.2.1 NETWORK=10.5.0.0/16 IPV6SUBNET=::/0 PUBLIC_IPV6=<nil>"
        );
    }

    #[test]
    fn missing_commands_are_nothing_to_do() {
        let backend = backend(r#"{"SubnetAddCommand":""}"#, None);
        assert_eq!(backend.peer(&peer(None)), Ok(Vec::new()));
        assert_eq!(backend.own(&peer(None).key), State::new());
        assert!(backend.lease_attrs().backend_data.is_none());
    }

    #[test]
    fn data_that_is_no_text_is_refused() {
        let refusal = backend("{}", None).peer(&peer(Some("{}"))).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "its BackendData is unusable: {} is not a string"
        );
        let options = go_json::Object::parse(r#"{"SubnetAddCommand":["a"]}"#).unwrap();
        assert_eq!(
            ExtensionConfig::parse(&options).unwrap_err().to_string(),
            "Backend: SubnetAddCommand: [\"a\"] is not a shell command"
        );
    }
}
