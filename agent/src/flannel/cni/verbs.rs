//! The commands that concern a network: ADD, DEL, CHECK, STATUS and GC.

use std::collections::BTreeSet;
use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::attachment::{Attachment, Store};
use super::bridge;
use super::config::NetConf;
use super::delegate::{self, HOST_LOCAL};
use super::environment::{Call, Interface};
use super::error::Error;
use super::host_local;
use super::plugin::Plugin;
use super::reboot;
use super::subnet_env::SubnetEnv;
use super::version::Version;
use crate::base::go_json::shorten;

/// GC's key for the attachments that the runtime knows, and the one of libcni 1.2.0 to 1.2.2.
const VALID_ATTACHMENTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// ADD: the delegate attaches the interface; its result goes to `stdout`.
///
/// Before the delegate runs, its configuration is stored durably, and it stays there if the delegate fails: the runtime
/// then calls DEL, which needs it.
pub(super) fn add(call: &Call, conf: &NetConf, stdout: &mut dyn Write) -> Result<(), Error> {
    let env = SubnetEnv::load(&conf.subnet_file)?;
    let delegate = delegate::configuration(conf, &env)?;
    let plugin = Plugin::find(type_of(&delegate), &call.path, "ADD")?;
    reboot::free_addresses(&store(conf), &call.path)?;
    bridge::remove_old_addresses(&delegate, &env)?;
    let text = delegate::serialize(delegate);
    note(&format!(
        "delegateAdd: netconf sent to delegate plugin:\n{text}"
    ));
    store(conf).put(&conf.name, &call.interface, &text)?;
    let result = complete(plugin.call("ADD", &text)?, conf, &plugin)?;
    stdout
        .write_all(&result)
        .and_then(|()| stdout.flush())
        .map_err(Error::Stdout)
}

/// The delegate's result in a form that a runtime can read: with the configuration's version if it has none, otherwise
/// unchanged.
fn complete(output: Vec<u8>, conf: &NetConf, plugin: &Plugin) -> Result<Vec<u8>, Error> {
    let Ok(Value::Object(mut result)) = serde_json::from_slice(&output) else {
        return Err(Error::NoResult {
            name: plugin.name().to_owned(),
            output: shorten(&String::from_utf8_lossy(&output)),
        });
    };
    let version = result.get("cniVersion").and_then(Value::as_str);
    match version.filter(|version| !version.is_empty()) {
        Some(version) if Version::parse(version).is_none() => Err(Error::ResultVersion {
            name: plugin.name().to_owned(),
            version: version.to_owned(),
        }),
        Some(_) => Ok(output),
        None => match conf.cni_version {
            Some(version) => {
                result.insert("cniVersion".into(), version.as_str().into());
                Ok(Value::Object(result).to_string().into_bytes())
            }
            None => Ok(output),
        },
    }
}

/// DEL: the delegate detaches the interface, with the configuration of the ADD, even if `subnet.env` has changed.
///
/// An unknown attachment counts as detached.
pub(super) fn del(call: &Call, conf: &NetConf) -> Result<(), Error> {
    let store = store(conf);
    let Some(attachment) = store.get(&conf.name, &call.interface)? else {
        return Ok(());
    };
    let Some(delegate) = attachment.delegate() else {
        // As flannel's plugin: a runtime would repeat a failing DEL forever.
        let path = attachment.path().display();
        note(&format!(
            "failed to parse netconf: {path} is not a JSON object"
        ));
        return Ok(());
    };
    let plugin = Plugin::find(type_of(&delegate), &call.path, "DEL")?;
    plugin.call("DEL", &with_prev_result(conf, delegate))?;
    forget(&store, &attachment);
    Ok(())
}

/// CHECK: the attachment is known, its subnets are still this host's, and the delegate's CHECK succeeds.
pub(super) fn check(call: &Call, conf: &NetConf) -> Result<(), Error> {
    if conf.prev_result.is_none() {
        return Err(Error::MissingKey {
            command: "CHECK",
            key: "prevResult",
        });
    }
    let attachment = store(conf).get(&conf.name, &call.interface)?;
    let Some(delegate) = attachment.as_ref().and_then(Attachment::delegate) else {
        return Err(Error::UnknownAttachment {
            container: call.interface.to_string(),
            network: conf.name.clone(),
        });
    };
    let env = SubnetEnv::load(&conf.subnet_file)?;
    let was = subnets_of(&delegate);
    let now: Vec<_> = env.subnets.iter().map(ToString::to_string).collect();
    if was.iter().any(|subnet| !now.contains(subnet)) {
        return Err(Error::OldSubnet {
            container: call.interface.to_string(),
            was: was.join(" and "),
            now: now.join(" and "),
        });
    }
    let plugin = Plugin::find(type_of(&delegate), &call.path, "CHECK")?;
    plugin.call("CHECK", &with_prev_result(conf, delegate))?;
    Ok(())
}

/// STATUS: `subnet.env` and the plugins for an ADD exist, and the delegate's STATUS succeeds if it has one.
pub(super) fn status(call: &Call, conf: &NetConf) -> Result<(), Error> {
    let not_ready = |error| Error::NotReady(Box::new(error));
    let env = SubnetEnv::load(&conf.subnet_file).map_err(not_ready)?;
    let delegate = delegate::configuration(conf, &env)?;
    let plugin = Plugin::find(type_of(&delegate), &call.path, "STATUS").map_err(not_ready)?;
    let ipam = delegate.get("ipam").and_then(|ipam| ipam.get("type"));
    if let Some(ipam) = ipam.and_then(Value::as_str) {
        Plugin::find(ipam, &call.path, "STATUS").map_err(not_ready)?;
    }
    if plugin.speaks(Version::V1_1_0) {
        let answer = plugin.call("STATUS", &delegate::serialize(delegate));
        answer.map_err(|error| match error {
            Error::Delegate(_) => error,
            error => not_ready(error),
        })?;
    }
    Ok(())
}

/// GC: detaches what the runtime no longer knows, frees addresses of which nobody knows, then calls the delegate's GC.
///
/// Continues after a failure, and reports the first one at the end.
pub(super) fn gc(call: &Call, conf: &NetConf) -> Result<(), Error> {
    let Some(valid) = &conf.valid_attachments else {
        // Without the list every attachment would be stale.
        return Err(Error::MissingKey {
            command: "GC",
            key: VALID_ATTACHMENTS[0],
        });
    };
    let store = store(conf);
    let mut errors = Vec::new();
    let attachments = store.list(&conf.name).unwrap_or_else(|error| {
        errors.push(error);
        Vec::new()
    });
    for attachment in attachments {
        let interface = &attachment.interface;
        let known = if store.is_foreign(&attachment) {
            let mut containers = valid.iter().map(|valid| &valid.container_id);
            containers.any(|id| *id == interface.container_id)
        } else {
            valid.contains(interface)
        };
        if !known && let Err(error) = collect(call, &store, &attachment) {
            errors.push(error);
        }
    }
    errors.extend(pass_on(call, conf, valid).err());
    let failed = errors.len();
    match errors.into_iter().next() {
        None => Ok(()),
        Some(only) if failed == 1 => Err(only),
        Some(first) => Err(Error::Collect {
            failed,
            first: Box::new(first),
        }),
    }
}

/// Detaches a stale attachment.
fn collect(call: &Call, store: &Store, attachment: &Attachment) -> Result<(), Error> {
    note(&format!(
        "flannel: detaching {}, which the runtime no longer knows",
        attachment.interface
    ));
    if let Some(delegate) = attachment.delegate() {
        let plugin = Plugin::find(type_of(&delegate), &call.path, "DEL")?;
        let text = delegate::serialize(delegate);
        plugin.call_about(&attachment.interface, "DEL", &text)?;
    }
    forget(store, attachment);
    Ok(())
}

/// Frees what host-local gave out to containers that the runtime does not know, and calls the delegate's GC, if it has
/// one.
///
/// Neither is possible before the agent has written the subnet file; a runtime calls GC as it starts, which may be
/// sooner.
fn pass_on(call: &Call, conf: &NetConf, valid: &[Interface]) -> Result<(), Error> {
    let env = match SubnetEnv::load(&conf.subnet_file) {
        Err(error @ Error::NoSubnetFile { .. }) => {
            note(&format!(
                "flannel: the rest of GC is left to a later one: {error}"
            ));
            return Ok(());
        }
        env => env?,
    };
    let mut delegate = delegate::configuration(conf, &env)?;
    let freed = free_unknown(call, conf, &delegate, valid);
    let plugin = Plugin::find(type_of(&delegate), &call.path, "GC")?;
    if !plugin.speaks(Version::V1_1_0) {
        return freed;
    }
    let valid: Value = valid
        .iter()
        .map(
            |Interface { container_id, name }| json!({"containerID": container_id, "ifname": name}),
        )
        .collect();
    for key in VALID_ATTACHMENTS {
        delegate.insert(key.into(), valid.clone());
    }
    plugin.call("GC", &delegate::serialize(delegate))?;
    freed
}

/// Has host-local free the addresses of containers that neither the runtime nor a record knows. What still has a record
/// is of a container whose DEL failed: the next GC tries again.
fn free_unknown(
    call: &Call,
    conf: &NetConf,
    delegate: &Map<String, Value>,
    valid: &[Interface],
) -> Result<(), Error> {
    // Before the records: ADD writes its record before it has an address, so one that a container gets meanwhile has one.
    let taken = host_local::attachments(delegate)?;
    let recorded = store(conf).list(&conf.name)?;
    let recorded = recorded.iter().map(|attachment| &attachment.interface);
    let known: BTreeSet<_> = valid
        .iter()
        .chain(recorded)
        .map(|of| &of.container_id)
        .collect();
    let unknown = |interface: &Interface| !known.contains(&interface.container_id);
    let mut delegate = delegate.clone();
    // GC's own version may be too new for an installed host-local, whose DEL is the same in all.
    delegate.insert("cniVersion".into(), Version::V0_3_1.as_str().into());
    let text = delegate::serialize(delegate);
    let mut failed = Ok(());
    for interface in taken.into_iter().filter(unknown) {
        note(&format!(
            "flannel: freeing the address of {interface}, which nobody knows"
        ));
        let freed = Plugin::find(HOST_LOCAL, &call.path, "DEL")
            .and_then(|plugin| plugin.call_about(&interface, "DEL", &text));
        if let Err(error) = freed
            && failed.is_ok()
        {
            failed = Err(error);
        }
    }
    failed
}

fn store(conf: &NetConf) -> Store {
    Store::new(conf.data_dir.clone())
}

/// The plugin in a delegate's configuration.
fn type_of(delegate: &Map<String, Value>) -> &str {
    let kind = delegate.get("type").and_then(Value::as_str);
    kind.unwrap_or_default()
}

/// The stored configuration plus the runtime's `prevResult`, which CHECK and DEL have since 0.4.0. The delegate parses
/// a result by its `cniVersion`, so that must be the version in which the runtime wrote it.
fn with_prev_result(conf: &NetConf, mut delegate: Map<String, Value>) -> String {
    if let Some(mut result) = conf.prev_result.clone()
        && let Some(version) = conf.cni_version.filter(|v| *v >= Version::V0_4_0)
    {
        name_gateways(&mut result);
        delegate.insert("cniVersion".into(), version.as_str().into());
        delegate.insert("prevResult".into(), result.into());
    }
    delegate::serialize(delegate)
}

/// Adds the plugins' default gateway to routes without one: the first address of the family.
///
/// Our routes have none, as flannel's. Debian's plugins, and all before containernetworking/plugins#887 (1.3.0), add
/// such a route via that gateway, but their CHECK looks for one without: it would fail for each of our containers.
fn name_gateways(result: &mut Map<String, Value>) {
    let is_v6 = |address: &str| address.contains(':');
    let ips = result.get("ips").and_then(Value::as_array).into_iter();
    let gateway = |ip: &Value| Some(ip.get("gateway")?.as_str()?.to_owned());
    let gateways: Vec<String> = ips.flatten().filter_map(gateway).collect();
    let routes = result.get_mut("routes").and_then(Value::as_array_mut);
    for route in routes
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        let Some(dst) = route.get("dst").and_then(Value::as_str) else {
            continue;
        };
        let gateway = gateways.iter().find(|g| is_v6(g) == is_v6(dst)).cloned();
        if let Some(gateway) = gateway
            && route.get("gw").is_none_or(Value::is_null)
        {
            route.insert("gw".into(), gateway.into());
        }
    }
}

/// The subnets in a stored configuration; plugins before flannel's own used a single `subnet`.
fn subnets_of(delegate: &Map<String, Value>) -> Vec<String> {
    let ipam = delegate.get("ipam");
    let ranges = ipam.and_then(|ipam| ipam.get("ranges"));
    let sets = ranges.and_then(Value::as_array).into_iter().flatten();
    let ranges = sets.filter_map(Value::as_array).flatten();
    let subnet = |value: &Value| Some(value.get("subnet")?.as_str()?.to_owned());
    ranges.chain(ipam).filter_map(subnet).collect()
}

/// Removes the file of a detached attachment. DEL must succeed even if something is left over, and a repeated DEL is
/// harmless.
fn forget(store: &Store, attachment: &Attachment) {
    if let Err(error) = store.remove(attachment) {
        note(&error.to_string());
    }
}

/// A line for the runtime's log.
pub(super) fn note(text: &str) {
    // Standard error is gone, so the error cannot be reported.
    let _ = writeln!(io::stderr(), "{text}");
}
