//! Where nothing is wrong, nothing is said: three hosts on every backend that this machine's kernel has.

use crate::cluster::Store;
use crate::diagnosis::Diagnosis;

const V4: &str = r#""Network":"10.5.0.0/16""#;
const DUAL: &str = r#""Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48""#;
const V6: &str = r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48""#;

/// Three hosts whose containers reach each other, and the doctor on each.
fn is_silent(families: &str, backend: &str) {
    let store = Store::start(&format!(r#"{{{families},"Backend":{backend}}}"#));
    let mut hosts = [1, 2, 3].map(|number| store.host(number));
    for host in &mut hosts {
        host.join();
    }
    for (one, other) in [(0, 1), (1, 2), (2, 0)] {
        hosts[one].wait_reaches(&hosts[other]);
    }
    for host in &hosts {
        Diagnosis::of(host).assert_silent();
    }
}

#[test]
fn vxlan() {
    is_silent(V4, r#"{"Type":"vxlan"}"#);
}

#[test]
fn vxlan_dual_stack() {
    is_silent(DUAL, r#"{"Type":"vxlan"}"#);
}

#[test]
fn vxlan_v6() {
    is_silent(V6, r#"{"Type":"vxlan"}"#);
}

#[test]
fn vxlan_direct_routing() {
    is_silent(DUAL, r#"{"Type":"vxlan","DirectRouting":true}"#);
}

#[test]
fn host_gw() {
    is_silent(DUAL, r#"{"Type":"host-gw"}"#);
}

#[test]
fn udp() {
    is_silent(V4, r#"{"Type":"udp"}"#);
}
