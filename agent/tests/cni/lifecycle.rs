//! What is remembered of attachments, and what is not lost: failed DELs, several networks, a change of the plugin.

use std::fs;

use serde_json::{Value, json};

use crate::host::{Host, of_flannel, summary};

#[test]
fn failed_del_can_be_repeated_until_it_succeeds() {
    let host = Host::new();
    let conf = host.conf(json!({}));
    host.call("ADD", &conf).result();
    let (_, added) = host.calls().remove(0);
    // The file has changed by now; what counts is the configuration of the ADD.
    host.remove("subnet.env");
    host.write("plugins/fail-DEL", r#"{"code":100,"msg":"busy"}"#);
    for _ in 0..2 {
        assert_eq!(host.call("DEL", &conf).error(), (100, "busy".into()));
        assert_eq!(host.remembered(), ["c1", "c1:net:eth0"]);
        assert_eq!(host.calls().remove(0).1, added);
    }
    host.remove("plugins/fail-DEL");
    assert_eq!(host.call("DEL", &conf).result(), "");
    assert_eq!(host.remembered(), [""; 0]);
    assert_eq!(host.calls().remove(0).1, added);
    assert_eq!(host.call("DEL", &conf).result(), "", "DEL may be repeated");
    assert_eq!(host.calls(), []);
}

#[test]
fn failed_add_is_undone_by_del() {
    let host = Host::new();
    let conf = host.conf(json!({}));
    host.write("plugins/fail-ADD", r#"{"code":100,"msg":"no room"}"#);
    host.call("ADD", &conf).error();
    assert_eq!(host.call("DEL", &conf).result(), "");
    assert_eq!(summary(&host), ["ADD c1 eth0 net", "DEL c1 eth0 net"]);
    assert_eq!(host.remembered(), [""; 0]);
}

#[test]
fn add_that_is_killed_is_undone_by_del() {
    let host = Host::new();
    let conf = host.conf(json!({}));
    let recorder = host.read("plugins/bridge");
    // The delegate has begun its work when the plugin dies; its parent is the plugin.
    host.install("bridge", "#!/bin/sh\nkill -9 $PPID\n");
    assert!(!host.call("ADD", &conf).succeeded);
    host.install("bridge", &recorder);
    assert_eq!(host.call("DEL", &conf).result(), "");
    assert_eq!(summary(&host), ["DEL c1 eth0 net"]);
    assert_eq!(host.remembered(), [""; 0]);
}

#[test]
fn prev_result_is_passed_on_since_0_4_0() {
    let host = Host::new();
    let result = json!({"cniVersion": "1.0.0", "ips": []});
    for (version, expected) in [("1.0.0", result.clone()), ("0.3.1", Value::Null)] {
        host.call("ADD", &host.conf(json!({}))).result();
        host.calls();
        let conf = host.conf(json!({"cniVersion": version, "prevResult": result}));
        assert_eq!(host.call("DEL", &conf).result(), "");
        let conf: Value = serde_json::from_str(&host.calls().remove(0).1).unwrap();
        assert_eq!(conf["prevResult"], expected, "{version}");
        // The delegate reads the result by this version, so it must be the one that the result was written in.
        let expected = if version == "1.0.0" { "1.0.0" } else { "0.4.0" };
        assert_eq!(conf["cniVersion"], expected);
        assert_eq!(conf["ipam"]["type"], "host-local");
    }
}

#[test]
fn networks_and_interfaces_of_one_container_do_not_collide() {
    let host = Host::new();
    let [one, two] = ["one", "two"].map(|name| host.conf(json!({"name": name})));
    host.call_about("ADD", "c1", "eth0", &one).result();
    host.call_about("ADD", "c1", "net1", &two).result();
    host.call_about("ADD", "c1", "net2", &two).result();
    host.call_about("ADD", "c10", "eth0", &one).result();
    assert_eq!(
        host.remembered(),
        [
            "c1",
            "c10",
            "c10:one:eth0",
            "c1:one:eth0",
            "c1:two:net1",
            "c1:two:net2"
        ]
    );
    host.calls();
    host.call_about("DEL", "c1", "eth0", &one).result();
    assert_eq!(host.read("data/c1"), host.read("data/c1:two:net1"));
    host.call_about("DEL", "c1", "eth0", &one).result();
    host.call_about("DEL", "c1", "net2", &two).result();
    // The same configuration, and still the other interface's: a repeated DEL must not take it away.
    host.call_about("DEL", "c1", "net2", &two).result();
    assert_eq!(
        host.remembered(),
        ["c1", "c10", "c10:one:eth0", "c1:two:net1"]
    );
    host.call_about("DEL", "c1", "net1", &two).result();
    assert_eq!(host.remembered(), ["c10", "c10:one:eth0"]);
    assert_eq!(
        summary(&host),
        ["DEL c1 eth0 one", "DEL c1 net2 two", "DEL c1 net1 two"]
    );
}

#[test]
fn containers_of_flannels_plugin_are_detached_after_an_upgrade() {
    let host = Host::new();
    let stored = of_flannel("net");
    fs::create_dir(host.path("data")).unwrap();
    host.write("data/c1", &stored);
    let other = host.conf(json!({"name": "other"}));
    host.call("DEL", &other).result();
    assert_eq!(host.read("data/c1"), stored, "of another network");

    // A second network comes and goes.
    host.call_about("ADD", "c1", "net1", &other).result();
    assert_eq!(host.read("data/c1"), stored);
    host.call_about("DEL", "c1", "net1", &other).result();
    assert_eq!(host.remembered(), ["c1"]);
    host.calls();

    let conf = host.conf(json!({}));
    host.write("plugins/fail-DEL", r#"{"code":100,"msg":"busy"}"#);
    host.call("DEL", &conf).error();
    assert_eq!(host.remembered(), ["c1"], "kept until the delegate is done");
    host.remove("plugins/fail-DEL");
    host.call("DEL", &conf).result();
    assert_eq!(host.remembered(), [""; 0]);
    let (_, delegate) = host.calls().remove(0);
    assert!(delegate.contains(r#""of":"flannel""#), "{delegate}");
}

#[test]
fn flannels_plugin_can_detach_our_containers_after_a_downgrade() {
    let host = Host::new();
    let conf = host.conf(json!({}));
    host.call("ADD", &conf).result();
    let (_, added) = host.calls().remove(0);
    // All that flannel's plugin knows is this name; it gives the contents to the delegate and removes the file.
    assert_eq!(host.read("data/c1"), added);
    host.remove("data/c1");
    // Ours again, long after: nothing is in the way, neither of a DEL nor of a new ADD.
    host.call("ADD", &conf).result();
    host.call("DEL", &conf).result();
    assert_eq!(host.remembered(), [""; 0]);
}

#[test]
fn unreadable_memory_is_reported_and_no_reason_to_repeat_del_for_ever() {
    let host = Host::new();
    fs::create_dir(host.path("data")).unwrap();
    for name in ["c1", "c2:net:eth0"] {
        host.write(&format!("data/{name}"), "{\"name\":");
    }
    for container in ["c1", "c2"] {
        let answer = host.call_about("DEL", container, "eth0", &host.conf(json!({})));
        assert_eq!(answer.result(), "");
        assert!(
            answer.stderr.contains("failed to parse netconf"),
            "{answer:?}"
        );
    }
    assert_eq!(host.remembered(), ["c1", "c2:net:eth0"]);
    assert_eq!(host.calls(), []);
}

#[test]
fn check_wants_a_known_attachment_of_the_current_subnet() {
    let host = Host::new();
    let conf = host.conf(json!({"prevResult": {"cniVersion": "0.4.0", "ips": []}}));
    let (code, message) = host.call("CHECK", &conf).error();
    assert_eq!(code, 100);
    assert!(
        message.contains("eth0 of container c1 in network \"net\""),
        "{message}"
    );

    host.call("ADD", &host.conf(json!({}))).result();
    host.calls();
    assert_eq!(host.call("CHECK", &conf).result(), "");
    let calls = host.calls();
    assert!(calls[0].0.starts_with("CHECK c1 eth0 netns=/run/netns/x"));
    assert!(
        calls[0]
            .1
            .contains(r#""prevResult":{"cniVersion":"0.4.0","ips":[]}"#)
    );

    host.write("plugins/fail-CHECK", r#"{"code":104,"msg":"eth0 is gone"}"#);
    assert_eq!(
        host.call("CHECK", &conf).error(),
        (104, "eth0 is gone".into())
    );
    host.remove("plugins/fail-CHECK");
    host.calls();

    // One family more does not make the other one wrong.
    let v6 = "FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00::1/64\n";
    host.write("subnet.env", &[crate::host::SUBNET_ENV, v6].concat());
    assert_eq!(host.call("CHECK", &conf).result(), "");
    host.calls();

    let moved = crate::host::SUBNET_ENV.replace("10.1.17.1", "10.1.99.1");
    host.write("subnet.env", &moved);
    let (code, message) = host.call("CHECK", &conf).error();
    assert_eq!(code, 101);
    assert!(
        message.contains("subnet 10.1.17.0/24, but this host's subnet is now 10.1.99.0/24"),
        "{message}"
    );
    host.remove("subnet.env");
    assert_eq!(host.call("CHECK", &conf).error().0, 11);
    assert_eq!(host.calls(), []);
}

#[test]
fn check_knows_the_old_plugins_single_subnet() {
    let host = Host::new();
    fs::create_dir(host.path("data")).unwrap();
    let conf = host.conf(json!({"prevResult": {"cniVersion": "0.4.0"}}));
    for (subnet, code) in [("10.1.17.0/24", None), ("10.1.18.0/24", Some(101))] {
        let old = json!({"name": "net", "type": "bridge", "ipam": {"subnet": subnet}});
        host.write("data/c1", &old.to_string());
        let answer = host.call("CHECK", &conf);
        match code {
            None => assert_eq!(answer.result(), ""),
            Some(code) => assert_eq!(answer.error().0, code),
        }
    }
}
