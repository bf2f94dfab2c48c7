//! GC: requests as runtimes send them, and what is freed of what host-local gave out.

use std::fs;

use serde_json::{Value, json};

use crate::host::{Host, of_flannel, summary};

#[test]
fn gc_detaches_what_the_runtime_no_longer_knows() {
    let host = Host::new();
    host.delegate_speaks(&["1.1.0"]);
    let [one, two] = ["one", "two"].map(|name| host.conf(json!({"name": name})));
    for (container, interface, conf) in [
        ("kept", "eth0", &one),
        ("kept", "stale1", &one),
        ("gone", "eth0", &one),
        ("gone", "net1", &two),
    ] {
        host.call_about("ADD", container, interface, conf).result();
    }
    host.write("data/gone-of-flannel", &of_flannel("one"));
    host.write("data/kept-of-flannel", &of_flannel("one"));
    host.write("data/other-of-flannel", &of_flannel("two"));
    host.calls();

    let gc = |more: Value| {
        let mut all = json!({"name": "one", "cniVersion": "1.1.0"});
        all.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        host.call("GC", &host.conf(all))
    };
    assert_eq!(gc(json!({})).error().0, 7, "no list is not an empty list");
    assert_eq!(host.calls(), []);

    let known = |id: &str, name: &str| json!({"containerID": id, "ifname": name});
    let lists = json!({
        "cni.dev/valid-attachments": [known("kept", "eth0")],
        "cni.dev/attachments": [known("kept-of-flannel", "net7")],
    });
    assert_eq!(gc(lists).result(), "");
    assert_eq!(
        host.remembered(),
        [
            "gone",
            "gone:two:net1",
            "kept",
            "kept-of-flannel",
            "kept:one:eth0",
            "other-of-flannel"
        ]
    );
    let mut calls = host.calls();
    let (variables, conf) = calls.pop().unwrap();
    assert_eq!(variables, "GC   netns= args= path=plugins");
    let conf: Value = serde_json::from_str(&conf).unwrap();
    assert_eq!(
        conf["cni.dev/valid-attachments"],
        json!([known("kept", "eth0"), known("kept-of-flannel", "net7")])
    );
    assert_eq!(conf["type"], "bridge");
    let variables: Vec<_> = calls
        .iter()
        .map(|(variables, _)| variables.as_str())
        .collect();
    assert_eq!(
        variables,
        [
            "DEL gone-of-flannel eth0 netns= args= path=plugins",
            "DEL gone eth0 netns= args= path=plugins",
            "DEL kept stale1 netns= args= path=plugins",
        ]
    );
}

#[test]
fn gc_goes_on_after_a_failure_and_reports_it() {
    let host = Host::new();
    for container in ["a", "b"] {
        host.call_about("ADD", container, "eth0", &host.conf(json!({})))
            .result();
    }
    host.calls();
    host.write("plugins/fail-DEL", r#"{"code":100,"msg":"busy"}"#);
    let conf = host.conf(json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}));
    let (code, message) = host.call("GC", &conf).error();
    assert_eq!(code, 999);
    assert!(
        message.starts_with("2 steps failed; the first: "),
        "{message}"
    );
    assert!(message.contains("busy"), "{message}");
    assert_eq!(summary(&host), ["DEL a eth0 net", "DEL b eth0 net"]);
    assert_eq!(host.remembered().len(), 4);
    host.remove("plugins/fail-DEL");
    assert_eq!(
        host.call("GC", &conf).result(),
        "",
        "a delegate of 1.0.0 has no GC"
    );
    assert_eq!(host.remembered(), [""; 0]);
}

/// Requests that others wrote, each with what it leaves of the attachments below.
///
/// The first two are what libcni makes of the calls in its test "issues GC" (containernetworking/cni,
/// libcni/api_test.go), the second time without any attachment, which is also what CRI-O has when no pod is left
/// (cri-o/ocicni, pkg/ocicni/ocicni.go, `GC`): Go writes `null`. Then multus-cni's (pkg/multus/multus_gc_test.go),
/// Calico's (cni-plugin/tests, "accepts GC requests"), and what libcni 1.2.0 to 1.2.2 wrote.
const REQUESTS: [(&str, &[&str]); 5] = [
    (
        r#"{"cni.dev/attachments":[{"containerID":"some-container-id","ifname":"some-eth0"}],
            "cni.dev/valid-attachments":[{"containerID":"some-container-id","ifname":"some-eth0"}]}"#,
        &["some-container-id some-eth0"],
    ),
    (
        r#"{"cni.dev/attachments":null,"cni.dev/valid-attachments":null}"#,
        &[],
    ),
    (
        r#"{"cni.dev/valid-attachments": [
            {
                "containerID": "3f6940ab5ab43bc522569d15b23f8c1bbde1d7678b080398506924fc01d72755",
                "ifname": "eth0"
            },
            {
                "containerID": "3f6940ab5ab43bc522569d15b23f8c1bbde1d7678b080398506924fc01d72755",
                "ifname": "net1"
            }
        ]}"#,
        &[
            "3f6940ab5ab43bc522569d15b23f8c1bbde1d7678b080398506924fc01d72755 eth0",
            "3f6940ab5ab43bc522569d15b23f8c1bbde1d7678b080398506924fc01d72755 net1",
        ],
    ),
    (
        r#"{"cni.dev/valid-attachments": [{"containerID": "gc-test-container", "ifname": "eth0"}]}"#,
        &["gc-test-container eth0"],
    ),
    (
        r#"{"cni.dev/attachments": [{"containerID": "gc-test-container", "ifname": "eth0"}]}"#,
        &["gc-test-container eth0"],
    ),
];

#[test]
fn requests_of_runtimes_are_understood() {
    let all = [
        "some-container-id some-eth0",
        "some-container-id eth7",
        "3f6940ab5ab43bc522569d15b23f8c1bbde1d7678b080398506924fc01d72755 eth0",
        "3f6940ab5ab43bc522569d15b23f8c1bbde1d7678b080398506924fc01d72755 net1",
        "gc-test-container eth0",
        "gc-test-container eth9",
        "7c1d0f eth0",
    ];
    for (request, left) in REQUESTS {
        let host = Host::new();
        for attachment in all {
            let (container, interface) = attachment.split_once(' ').unwrap();
            host.call_about("ADD", container, interface, &host.conf(json!({})))
                .result();
        }
        host.calls();
        // As libcni makes it: the plugin's configuration of the list, with the list's name and version.
        let delegate = json!({"hairpinMode": true, "isDefaultGateway": true});
        let conf = host.conf(json!({"cniVersion": "1.1.0", "delegate": delegate}));
        let mut conf: Value = serde_json::from_str(&conf).unwrap();
        let request_keys: Value = serde_json::from_str(request).unwrap();
        conf.as_object_mut()
            .unwrap()
            .extend(request_keys.as_object().unwrap().clone());
        assert_eq!(host.call("GC", &conf.to_string()).result(), "", "{request}");
        let records = host.remembered();
        let records = records.iter().filter_map(|name| name.split_once(":net:"));
        let mut kept: Vec<_> = records.map(|(id, name)| format!("{id} {name}")).collect();
        kept.sort();
        assert_eq!(kept, left, "{request}");
        let detached = summary(&host).len();
        assert_eq!(detached, all.len() - left.len(), "{request}");
    }
}

#[test]
fn gc_before_the_agent_is_ready_detaches_what_it_can() {
    let host = Host::new();
    host.call("ADD", &host.conf(json!({}))).result();
    host.calls();
    host.remove("subnet.env");
    let conf = host.conf(json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}));
    let answer = host.call("GC", &conf);
    assert_eq!(answer.result(), "");
    assert!(answer.stderr.contains("left to a later one"), "{answer:?}");
    assert_eq!(summary(&host), ["DEL c1 eth0 net"]);
    assert_eq!(host.remembered(), [""; 0]);
}

#[test]
fn gc_frees_addresses_of_which_nobody_knows_and_no_others() {
    let host = Host::new();
    host.record_host_local();
    let ipam = json!({"dataDir": host.path("ipam")});
    fs::create_dir_all(host.path("ipam/net")).unwrap();
    fs::create_dir_all(host.path("ipam/other")).unwrap();
    for (address, text) in [
        ("net/10.1.17.2", "valid\r\neth0"),
        ("net/10.1.17.3", "lost\r\neth0"),
        ("net/fd00::3", "lost\r\neth0"),
        // Of an older subnet of this host.
        ("net/10.1.99.4", "old"),
        ("net/10.1.17.5", "stuck\r\neth0"),
        ("other/10.9.0.2", "lost\r\neth0"),
    ] {
        host.write(&format!("ipam/{address}"), text);
    }
    let conf = |more: Value| {
        let mut all = json!({"cniVersion": "1.1.0", "ipam": ipam});
        all.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        host.conf(all)
    };
    host.call_about("ADD", "stuck", "eth0", &conf(json!({})))
        .result();
    host.calls();
    let valid = json!({"cni.dev/valid-attachments": [{"containerID": "valid", "ifname": "eth0"}]});
    // The delegate cannot detach it now; the next GC tries again.
    let bridge = host.read("plugins/bridge");
    host.install(
        "bridge",
        "#!/bin/sh\n[ $CNI_COMMAND = VERSION ] || exit 3\n",
    );
    let (code, message) = host.call("GC", &conf(valid.clone())).error();
    assert_eq!(code, 999, "{message}");
    let freed = || -> Vec<String> {
        let words = |(variables, _): (String, String)| {
            variables.split(' ').take(4).collect::<Vec<_>>().join(" ")
        };
        host.calls().into_iter().map(words).collect()
    };
    assert_eq!(
        freed(),
        ["host-local DEL lost eth0", "host-local DEL old eth0"]
    );

    host.install("bridge", &bridge);
    for name in ["net/10.1.17.3", "net/fd00::3", "net/10.1.99.4"] {
        host.remove(&format!("ipam/{name}"));
    }
    assert_eq!(host.call("GC", &conf(valid.clone())).result(), "");
    // By the real plugin, the delegate's DEL frees the address; here it stays, and is now of nobody.
    assert_eq!(
        freed(),
        ["DEL stuck eth0 netns=", "host-local DEL stuck eth0"]
    );

    host.write("plugins/fail-DEL", r#"{"code":101,"msg":"locked"}"#);
    assert_eq!(
        host.call("GC", &conf(valid)).error(),
        (101, "locked".into())
    );
}
