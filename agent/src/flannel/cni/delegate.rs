//! The delegate's configuration, made from the runtime's configuration and `subnet.env`.
//!
//! Every rule is flannel's (its `flannel.go` and `flannel_linux.go`). The text is what Go's `json.Marshal` makes of a
//! map: sorted keys, and numbers without a fraction as integers.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::config::NetConf;
use super::error::Error;
use super::subnet_env::SubnetEnv;
use crate::base::go_json::{Object, escape_as_go, shorten};

/// The default type of the delegate.
pub(super) const BRIDGE: &str = "bridge";
/// The default IPAM plugin.
pub(super) const HOST_LOCAL: &str = "host-local";

/// The configuration for ADD.
pub(super) fn configuration(conf: &NetConf, env: &SubnetEnv) -> Result<Map<String, Value>, Error> {
    let mut delegate = conf.delegate.clone();
    let rule = |message| Err(Error::DelegateRule(message));
    if delegate.get("type").is_some_and(|kind| !kind.is_string()) {
        return rule("'delegate' dictionary, if present, must have (string) 'type' field");
    }
    if delegate.contains_key("name") {
        return rule("'delegate' dictionary must not have 'name' field, it'll be set by flannel");
    }
    if delegate.contains_key("ipam") {
        return rule("'delegate' dictionary must not have 'ipam' field, it'll be set by flannel");
    }
    if let Some(runtime) = &conf.runtime_config {
        delegate.insert("runtimeConfig".into(), runtime.clone().into());
    }
    delegate.insert("name".into(), conf.name.clone().into());
    let is_bridge = delegate.entry("type").or_insert(BRIDGE.into()) == BRIDGE;
    // If the agent does not masquerade, the delegate must.
    delegate
        .entry("ipMasq")
        .or_insert_with(|| (!env.masquerade).into());
    delegate.entry("mtu").or_insert_with(|| env.mtu.into());
    if is_bridge {
        delegate.entry("isGateway").or_insert(true.into());
    }
    if let Some(version) = conf.cni_version {
        delegate.insert("cniVersion".into(), version.as_str().into());
    }
    delegate.insert("ipam".into(), ipam(conf, env)?.into());
    for value in delegate.values_mut() {
        write_numbers_as_go(value);
    }
    Ok(delegate)
}

fn ipam(conf: &NetConf, env: &SubnetEnv) -> Result<Map<String, Value>, Error> {
    let mut ipam = conf.ipam.clone();
    ipam.entry("type").or_insert(HOST_LOCAL.into());
    ipam.insert("ranges".into(), ranges(env));
    let mut routes = match ipam.remove("routes") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(routes)) => routes
            .into_iter()
            .map(|route| check_route(route).map_err(Error::Routes))
            .collect::<Result<_, _>>()?,
        Some(other) => {
            let other = shorten(&other.to_string());
            return Err(Error::Routes(format!("{other} is not a list of routes")));
        }
    };
    let networks = env.networks.iter();
    routes.extend(networks.map(|network| json!({ "dst": network.to_string() })));
    ipam.insert("routes".into(), routes.into());
    Ok(ipam)
}

/// The address ranges: one set per family, each the whole subnet.
pub(super) fn ranges(env: &SubnetEnv) -> Value {
    let sets = env.subnets.iter();
    sets.map(|subnet| json!([{ "subnet": subnet.to_string() }]))
        .collect()
}

/// A route of the input, with normalized addresses; `gw` and keys of newer specifications are optional.
fn check_route(mut route: Value) -> Result<Value, String> {
    if let Value::Object(fields) = &mut route {
        // An empty string is not an address for Go's decoder either.
        fields.retain(|key, value| !(key.eq_ignore_ascii_case("gw") && value == ""));
    }
    let text = route.to_string();
    let wrong = |what: &str| format!("{}: {what}", shorten(&text));
    let Value::Object(mut fields) = route else {
        return Err(wrong(
            "not a route: expected an object with dst, and gw if need be",
        ));
    };
    let object = Object::parse(&text).map_err(|error| wrong(&error.to_string()))?;
    let dst: Option<IpNet> = object
        .get("dst", "a CIDR address such as 10.96.0.0/12")
        .map_err(|error| error.to_string())?;
    let gw: Option<IpAddr> = object
        .get("gw", "an IP address")
        .map_err(|error| error.to_string())?;
    let dst = dst.ok_or_else(|| wrong("a route needs dst"))?;
    fields.retain(|key, _| {
        !["dst", "gw"]
            .iter()
            .any(|name| key.eq_ignore_ascii_case(name))
    });
    fields.insert("dst".into(), dst.to_string().into());
    if let Some(gw) = gw {
        fields.insert("gw".into(), gw.to_string().into());
    }
    Ok(fields.into())
}

/// Go reads every number as a float and writes those without a fraction as integers, which matters to a delegate that
/// expects an integer. Integers are kept unchanged, even where a float would round them.
fn write_numbers_as_go(value: &mut Value) {
    /// Beyond this, adjacent floats are more than 1 apart.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) if number.is_f64() => {
            let float = number.as_f64().unwrap_or(f64::NAN);
            if float.fract() == 0.0 && float.abs() < EXACT {
                #[expect(clippy::cast_possible_truncation, reason = "whole, and below 2^53")]
                let whole = float as i64;
                *value = whole.into();
            }
        }
        Value::Array(values) => values.iter_mut().for_each(write_numbers_as_go),
        Value::Object(map) => map.values_mut().for_each(write_numbers_as_go),
        _ => {}
    }
}

/// The text as Go writes it.
pub(super) fn serialize(delegate: Map<String, Value>) -> String {
    escape_as_go(&Value::Object(delegate).to_string())
}
