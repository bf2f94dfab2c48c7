//! What flanneld's command line says, as one more source of settings.

use std::net::Ipv4Addr;
use std::path::Path;

use super::{DEFAULT_ENDPOINTS, DEFAULT_SUBNET_DIR, Flags, definition};
use crate::base::network_name::NetworkName;
use crate::settings::inputs::Inputs;
use crate::settings::kind::{Kind, Value};
use crate::settings::setting::Setting;
use crate::settings::table::{ALL, key};
use crate::settings::{Environment, Error, Secret, Settings, Source, split_list};

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
    let endpoints = Value::Texts(split_list(DEFAULT_ENDPOINTS));
    let address = Value::Text(DEFAULT_HEALTH_ADDRESS.to_owned());
    for (setting, value) in [
        (&key::etcd::endpoints, endpoints),
        (&key::health::address, address),
    ] {
        inputs.put(setting, value, Source::Flag(setting.flag));
    }
    let from_variables = |place: &Source| matches!(place, Source::Variable(_));
    read_flags(&mut inputs, flags, from_variables);
    inputs.read_environment(&environment.ours())?;
    read_flags(&mut inputs, flags, |place| !from_variables(place));
    name_network(&mut inputs, flags, several);
    let password = flags.text("etcd-password").filter(|text| !text.is_empty());
    inputs.password = password.map(|text| Secret::new(text.to_owned()));
    inputs.read_password()?;
    Settings::check(&inputs)
}

/// Tells one of several networks of this host from the others, unless `SELVAGE_NETWORK` does.
///
/// flannel 0.5 had `--networks`, with keys below the prefix and a subnet file for each. Later ones run as several daemons
/// that differ in `--etcd-prefix` and `--subnet-file`; who changes both of them may mean one of several networks, and if there
/// are several the subnet file's name becomes the network's.
fn name_network(inputs: &mut Inputs, flags: &Flags, several: &dyn Fn(&NetworkName, &Path) -> bool) {
    if inputs.filled(&key::agent::network).is_some() {
        return;
    }
    let put = |inputs: &mut Inputs, setting: &'static Setting, text: String| {
        inputs.put(setting, Value::Text(text), flags.place(setting.flag));
    };
    let given = |setting: &Setting| match inputs.get(setting) {
        Some(found) => found.text().to_owned(),
        None => setting.default.to_owned(),
    };
    let prefix = given(&key::etcd::prefix);
    let file = given(&key::files::subnet_file);
    if let Some(name) = flags.network() {
        let directory = absolute(flags.text("subnet-dir").unwrap_or(DEFAULT_SUBNET_DIR));
        put(inputs, &key::etcd::prefix, format!("{prefix}/{name}"));
        let file = format!("{directory}/{name}.env");
        put(inputs, &key::files::subnet_file, file);
        if inputs.get(&key::remote::network).is_none() {
            put(inputs, &key::remote::network, name.to_owned());
        }
        let name = NetworkName::derive(name).to_string();
        put(inputs, &key::agent::network, name);
        return;
    }
    let elements = |path: &str| -> Vec<String> {
        let elements = path.split('/').filter(|element| !element.is_empty());
        elements.map(str::to_owned).collect()
    };
    let differs = |path, setting: &Setting| elements(path) != elements(setting.default);
    if differs(&prefix, &key::etcd::prefix) && differs(&file, &key::files::subnet_file) {
        let name = NetworkName::of_subnet_file(Path::new(&file));
        let state_dir = match inputs.get(&key::files::state_dir) {
            Some(directory) => directory.text().to_owned(),
            None => key::files::state_dir.default_of(Some(&name)),
        };
        // A server joins none.
        let serves = inputs.get(&key::remote::listen).is_some();
        if serves || several(&name, Path::new(&state_dir)) {
            put(inputs, &key::agent::network, name.to_string());
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

/// flanneld's flag for a setting: the one of that name, but for some; `None` if flannel has no such setting.
fn flag(setting: &Setting) -> Option<&'static str> {
    Some(match setting.path {
        // The opposite.
        "firewall.random-fully" => "ip-masq-fully-random-disable",
        "agent.log" => "v",
        // flannel took whoever came, and had no word for it.
        "remote.insecure" => "listen",
        _ => definition::find(setting.flag)?.name,
    })
}

/// Puts in what flags of a `wanted` place say.
fn read_flags(inputs: &mut Inputs, flags: &Flags, wanted: impl Fn(&Source) -> bool) {
    for setting in ALL {
        let Some(flag) = flag(setting) else { continue };
        let place = flags.place(flag);
        if let Some(value) = value(flags, flag, setting).filter(|_| wanted(&place)) {
            inputs.put(setting, value, place);
        }
    }
}

/// What flanneld's flag says about a setting.
fn value(flags: &Flags, flag: &str, setting: &Setting) -> Option<Value> {
    Some(match (setting.path, setting.kind) {
        ("firewall.random-fully", _) => Value::Switch(!flags.switch(flag)?),
        ("agent.log", _) => Value::Text(filter(flags.number(flag)?).to_owned()),
        ("remote.insecure", _) => Value::Switch(flags.text(flag).map(|_| true)?),
        // Without a pause flanneld never stops looking; and there is no harm in looking once a day.
        ("firewall.resync", _) => Value::Number(flags.number(flag)?.clamp(1, 24 * 60 * 60)),
        // A negative port means none, too.
        ("health.port", _) => Value::Number(flags.number(flag)?.max(0)),
        ("health.address", _) => match flags.text(flag)? {
            // Everywhere, which is the default.
            "" => return None,
            // Always this host, RFC 6761 §6.3.
            text if text.eq_ignore_ascii_case("localhost") => {
                Value::Text(Ipv4Addr::LOCALHOST.to_string())
            }
            text => Value::Text(text.to_owned()),
        },
        (_, Kind::Text) if setting.value == "FILE" => Value::Text(absolute(flags.text(flag)?)),
        (_, Kind::Text) => Value::Text(flags.text(flag)?.to_owned()),
        (_, Kind::Number) => Value::Number(flags.number(flag)?),
        (_, Kind::Switch) => Value::Switch(flags.switch(flag)?),
        (_, Kind::Each) => Value::Texts(flags.texts(flag)?),
        (_, Kind::Urls | Kind::Commas | Kind::Networks) => {
            Value::Texts(split_list(flags.text(flag)?))
        }
    })
}

/// The log filter for klog's verbosity. Only our own modules say more: those below may print what they send.
fn filter(level: i64) -> &'static str {
    match level {
        ..=1 => "info",
        2..=4 => "info,selvage=debug",
        5.. => "info,selvage=trace",
    }
}
