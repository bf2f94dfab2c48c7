//! What flanneld's command line says, as one more source of settings.

use std::net::Ipv4Addr;
use std::path::Path;

use super::{DEFAULT_ENDPOINTS, DEFAULT_SUBNET_DIR, Flags};
use crate::base::network_name::NetworkName;
use crate::settings::environment::unplaced;
use crate::settings::inputs::{Origin, Sourced};
use crate::settings::key::Key;
use crate::settings::table::fragment::{Agent, Etcd, Files, Firewall, Health, Remote, Underlay};
use crate::settings::table::key;
use crate::settings::validate::etcd::DEFAULT_PREFIX;
use crate::settings::validate::{self, DEFAULT_SUBNET_FILE};
use crate::settings::{
    Environment, Error, Fragment, Inputs, Secret, Settings, Source, Texts, split_list,
};

/// Where flanneld's health endpoints listen: everywhere, if they have a port.
const DEFAULT_HEALTH_ADDRESS: &str = "0.0.0.0";

/// The settings of an agent that is called flanneld: flanneld's defaults, its flags and its environment, which are all
/// in `flags`; and `SELVAGE_*` variables, which are stronger than `FLANNELD_*`, and weaker than flags. No files. `several`
/// says whether the network of this name is one of several on this host, which has this state directory then.
///
/// # Errors
/// As [`crate::settings::load`].
pub fn load_flanneld(
    flags: &Flags,
    environment: &Environment,
    several: &dyn Fn(&NetworkName, &Path) -> bool,
) -> Result<Settings, Error> {
    let mut inputs = Inputs::default();
    let defaults = Fragment {
        etcd: Etcd {
            endpoints: Some(unplaced(split_list(DEFAULT_ENDPOINTS))),
            ..Etcd::default()
        },
        health: Health {
            address: Some(unplaced(DEFAULT_HEALTH_ADDRESS.to_owned())),
            ..Health::default()
        },
        ..Fragment::default()
    };
    let place = |key: Key| flags.place(flag(key));
    inputs.overlay(defaults, &Origin::Flanneld(&place));
    let from_variables = |name| matches!(flags.place(name), Source::Variable(_));
    inputs.overlay(fragment(flags, from_variables), &Origin::Flanneld(&place));
    let ours = environment.ours();
    inputs.overlay(
        Fragment::of_environment(&ours)?,
        &Origin::Environment(&ours),
    );
    let from_command_line = |name| matches!(flags.place(name), Source::Flag(_));
    inputs.overlay(
        fragment(flags, from_command_line),
        &Origin::Flanneld(&place),
    );
    name_network(&mut inputs, flags, several);
    let password = flags.text("etcd-password").filter(|text| !text.is_empty());
    inputs.password = password.map(|text| Secret::new(text.to_owned()));
    inputs.read_password()?;
    validate::settings(inputs)
}

/// Tells one of several networks of this host from the others, unless `SELVAGE_NETWORK` does.
///
/// flannel 0.5 had `--networks`, with keys below the prefix and a subnet file for each. Later ones run as several daemons
/// that differ in `--etcd-prefix` and `--subnet-file`; who changes both of them may mean one of several networks, and if there
/// are several the subnet file's name becomes the network's.
fn name_network(inputs: &mut Inputs, flags: &Flags, several: &dyn Fn(&NetworkName, &Path) -> bool) {
    if inputs
        .agent
        .network
        .as_ref()
        .is_some_and(|name| !name.value.is_empty())
    {
        return;
    }
    let text = |value: String, key: Key| Sourced {
        value,
        place: flags.place(key.flag),
        key,
    };
    let prefix = inputs
        .etcd
        .prefix
        .as_ref()
        .map_or(DEFAULT_PREFIX, |prefix| &prefix.value);
    if let Some(name) = flags.network() {
        let directory = absolute(flags.text("subnet-dir").unwrap_or(DEFAULT_SUBNET_DIR));
        inputs.etcd.prefix = Some(text(format!("{prefix}/{name}"), key::ETCD_PREFIX));
        let file = text(format!("{directory}/{name}.env"), key::FILES_SUBNET_FILE);
        inputs.files.subnet_file = Some(file);
        let remote = text(name.to_owned(), key::REMOTE_NETWORK);
        inputs.remote.network.get_or_insert(remote);
        let name = NetworkName::derive(name).to_string();
        inputs.agent.network = Some(text(name, key::AGENT_NETWORK));
        return;
    }
    let elements = |path: &str| -> Vec<String> {
        let elements = path.split('/').filter(|element| !element.is_empty());
        elements.map(str::to_owned).collect()
    };
    let file = inputs.files.subnet_file.as_ref();
    let file = file.map_or(DEFAULT_SUBNET_FILE, |file| &file.value);
    if elements(prefix) != elements(DEFAULT_PREFIX)
        && elements(file) != elements(DEFAULT_SUBNET_FILE)
    {
        let name = NetworkName::of_subnet_file(Path::new(file));
        let state_dir = match &inputs.files.state_dir {
            Some(directory) => directory.value.clone().into(),
            None => validate::default_files(Some(&name)).state_dir,
        };
        // A server joins none.
        if inputs.remote.listen.is_some() || several(&name, &state_dir) {
            inputs.agent.network = Some(text(name.to_string(), key::AGENT_NETWORK));
        }
    }
}

/// A path as it is from where this process was started; flanneld takes it so, and the agent may be elsewhere when it opens
/// the file.
fn absolute(text: &str) -> String {
    let absolute = match std::path::absolute(Path::new(text)) {
        Ok(path) => path.into_os_string().into_string().ok(),
        Err(_) => None,
    };
    absolute.unwrap_or_else(|| text.to_owned())
}

/// flanneld's flag for a setting: the one of that name, but for one that says the opposite, and klog's.
fn flag(key: Key) -> &'static str {
    match key {
        key::FIREWALL_RANDOM_FULLY => "ip-masq-fully-random-disable",
        key::AGENT_LOG => "v",
        key::AGENT_NETWORK => "networks",
        key => key.flag,
    }
}

/// The flags that are `wanted`, in the form that every source has.
fn fragment(flags: &Flags, wanted: impl Fn(&'static str) -> bool) -> Fragment {
    let given = |key: Key| Some(flag(key)).filter(|flag| wanted(flag));
    let text = |key| Some(unplaced(flags.text(given(key)?)?.to_owned()));
    let split = |key| Some(unplaced(split_list(flags.text(given(key)?)?)));
    let texts = |key| Some(unplaced(Texts(flags.texts(given(key)?)?)));
    let switch = |key| Some(unplaced(flags.switch(given(key)?)?));
    let number = |key| flags.number(given(key)?);
    let path = |key| Some(unplaced(absolute(flags.text(given(key)?)?)));
    Fragment {
        etcd: Etcd {
            endpoints: split(key::ETCD_ENDPOINTS),
            prefix: text(key::ETCD_PREFIX),
            cafile: path(key::ETCD_CAFILE),
            certfile: path(key::ETCD_CERTFILE),
            keyfile: path(key::ETCD_KEYFILE),
            username: text(key::ETCD_USERNAME),
            ..Etcd::default()
        },
        remote: Remote {
            server: split(key::REMOTE_SERVER).map(|list| unplaced(Texts(list.into_inner()))),
            listen: text(key::REMOTE_LISTEN),
            cafile: path(key::REMOTE_CAFILE),
            certfile: path(key::REMOTE_CERTFILE),
            keyfile: path(key::REMOTE_KEYFILE),
            // flannel took whoever came, and had no word for it.
            insecure: text(key::REMOTE_LISTEN).map(|_| unplaced(true)),
            ..Remote::default()
        },
        underlay: Underlay {
            interfaces: texts(key::UNDERLAY_INTERFACES),
            interface_regex: texts(key::UNDERLAY_INTERFACE_REGEX),
            can_reach: text(key::UNDERLAY_CAN_REACH),
            public_ip: text(key::UNDERLAY_PUBLIC_IP),
            public_ipv6: text(key::UNDERLAY_PUBLIC_IPV6),
            ..Underlay::default()
        },
        firewall: Firewall {
            masquerade: switch(key::FIREWALL_MASQUERADE),
            forward: switch(key::FIREWALL_FORWARD),
            random_fully: switch(key::FIREWALL_RANDOM_FULLY)
                .map(|disabled| unplaced(!disabled.into_inner())),
            // Without a pause flanneld never stops looking; and there is no harm in looking once a day.
            resync: number(key::FIREWALL_RESYNC)
                .map(|seconds| unplaced(seconds.clamp(1, 24 * 60 * 60))),
            blackhole_route: switch(key::FIREWALL_BLACKHOLE_ROUTE),
            ..Firewall::default()
        },
        files: Files {
            subnet_file: path(key::FILES_SUBNET_FILE),
            ..Files::default()
        },
        health: Health {
            // Empty means everywhere, which is the default.
            address: text(key::HEALTH_ADDRESS)
                .filter(|text| !text.get_ref().is_empty())
                .map(
                    |text| match text.get_ref().eq_ignore_ascii_case("localhost") {
                        // Always this host, RFC 6761 §6.3.
                        true => unplaced(Ipv4Addr::LOCALHOST.to_string()),
                        false => text,
                    },
                ),
            // A negative port means none, too.
            port: number(key::HEALTH_PORT).map(|port| unplaced(port.max(0))),
        },
        agent: Agent {
            log: number(key::AGENT_LOG).map(|level| unplaced(filter(level).to_owned())),
            ..Agent::default()
        },
        ..Fragment::default()
    }
}

/// The log filter for klog's verbosity. Only our own modules say more: those below may print what they send.
fn filter(level: i64) -> &'static str {
    match level {
        ..=1 => "info",
        2..=4 => "info,selvage=debug",
        5.. => "info,selvage=trace",
    }
}
