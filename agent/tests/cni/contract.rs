//! What the specification and flannel's users can tell of one call: streams, exit status, the delegate's call.

use std::fs::OpenOptions;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::host::{Host, RESULT, mode, run};

/// What the delegate gets for [`Host::conf`] without more keys.
const DELEGATE: &str = r#"{"cniVersion":"0.4.0","ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"}],"type":"host-local"},"isGateway":true,"mtu":1472,"name":"net","type":"bridge"}"#;

#[test]
fn add_remembers_then_delegates_and_passes_the_result_through() {
    let host = Host::new();
    let answer = host.call("ADD", &host.conf(json!({})));
    assert_eq!(answer.result(), RESULT);
    let call = "ADD c1 eth0 netns=/run/netns/x args=A=1 path=plugins";
    assert_eq!(host.calls(), [(call.into(), DELEGATE.into())]);
    assert_eq!(
        answer.stderr,
        format!("delegateAdd: netconf sent to delegate plugin:\n{DELEGATE}\nwords for the log\n")
    );
    // On the disk before the delegate ran, readable by root alone.
    assert_eq!(host.read("plugins/remembered"), DELEGATE);
    assert_eq!(host.remembered(), ["c1", "c1:net:eth0"]);
    assert_eq!(mode(&host.path("data")), 0o700);
    for name in ["data/c1", "data/c1:net:eth0"] {
        assert_eq!(host.read(name), DELEGATE);
        assert_eq!(mode(&host.path(name)), 0o600, "{name}");
    }
}

#[test]
fn rkts_configuration_without_a_version_works() {
    let host = Host::new();
    let conf = host.conf(json!({"name": "containers", "cniVersion": null}));
    assert_eq!(host.call("ADD", &conf).result(), RESULT);
    let (_, delegate) = host.calls().remove(0);
    let delegate: Value = serde_json::from_str(&delegate).unwrap();
    assert_eq!(delegate.get("cniVersion"), None);
    assert_eq!(delegate["name"], "containers");
    assert_eq!(delegate["type"], "bridge");
    assert_eq!(host.call("DEL", &conf).result(), "");
    assert_eq!(host.remembered(), [""; 0]);
}

#[test]
fn delegates_own_error_reaches_the_runtime_unchanged() {
    let host = Host::new();
    let error = "{ \"cniVersion\":\"0.4.0\", \"code\":105,\"msg\":\"no room\" }\n";
    host.write("plugins/fail-ADD", error);
    let answer = host.call("ADD", &host.conf(json!({})));
    assert!(!answer.succeeded);
    assert_eq!(answer.stdout, error);
    assert!(answer.stderr.ends_with("words for the log\n"));
}

#[test]
fn what_a_runtime_cannot_read_of_a_delegate_is_completed() {
    let host = Host::new();
    let conf = host.conf(json!({}));
    host.write("plugins/result", r#"{"ips":[]}"#);
    let answer = host.call("ADD", &conf);
    assert_eq!(answer.result(), r#"{"cniVersion":"0.4.0","ips":[]}"#);
    host.write("plugins/result", r#"{"cniVersion":"7.0.0","ips":[]}"#);
    let (code, message) = host.call("ADD", &conf).error();
    assert_eq!(code, 999);
    assert!(message.contains("\"7.0.0\""), "{message}");
    host.write("plugins/fail-ADD", r#"{"msg":"x"}"#);
    assert_eq!(host.call("ADD", &conf).error(), (999, "x".to_owned()));
}

#[test]
fn texts_that_only_go_reads_are_taken() {
    let host = Host::new();
    let conf = json!({
        "ipam": {"routes": [{"dst": "0.0.0.0/0", "gw": ""}]},
        "delegate": {"alias": "SURROGATE"},
    });
    let conf = host.conf(conf).replace("SURROGATE", r"\ud800");
    host.call("ADD", &conf).result();
    let (_, delegate) = host.calls().remove(0);
    let delegate: Value = serde_json::from_str(&delegate).unwrap();
    assert_eq!(delegate["ipam"]["routes"][0], json!({"dst": "0.0.0.0/0"}));
    assert_eq!(delegate["alias"], "\u{fffd}");
}

#[test]
fn delegate_that_dies_without_an_error_is_reported() {
    let host = Host::new();
    let conf = host.conf(json!({}));
    for (script, expected) in [
        (
            "#!/bin/sh\necho broken >&2; exit 7",
            r#"netplugin failed: bridge ended with exit status: 7: "broken""#,
        ),
        (
            "#!/bin/sh\necho '[1]'; exit 7",
            r#"netplugin failed: bridge ended with exit status: 7: "[1]""#,
        ),
        (
            "#!/bin/sh\nkill -9 $$",
            "netplugin failed: bridge ended with signal: 9 (SIGKILL) and without a message",
        ),
        (
            "#!/bin/sh\necho fine",
            r#"netplugin "bridge" printed no result: "fine\n""#,
        ),
        ("#!/nonexistent", "failed to delegate add: "),
    ] {
        host.install("bridge", script);
        let (code, message) = host.call("ADD", &conf).error();
        assert!(message.starts_with(expected), "{script}: {message}");
        assert_eq!(code, if script.contains("fine") { 6 } else { 999 });
        // The runtime will call DEL, which needs it.
        assert_eq!(host.remembered(), ["c1", "c1:net:eth0"]);
    }
}

#[test]
fn delegate_that_is_not_there_or_has_a_path_leaves_nothing_behind() {
    let host = Host::new();
    let (code, message) = host
        .call("ADD", &host.conf(json!({"delegate": {"type": "ipvlan"}})))
        .error();
    let path = host.plugins.display();
    assert_eq!(code, 999);
    assert_eq!(
        message,
        format!("failed to delegate add: failed to find plugin \"ipvlan\" in path [{path}]")
    );
    for kind in ["../bin/flannel", "/bin/sh", ""] {
        let conf = host.conf(json!({"delegate": {"type": kind}}));
        let (code, message) = host.call("ADD", &conf).error();
        assert_eq!(
            (code, message),
            (7, format!("invalid plugin name: {kind:?}"))
        );
    }
    assert_eq!(host.remembered(), [""; 0]);
}

#[test]
fn missing_subnet_file_is_a_reason_to_try_again_later() {
    let host = Host::new();
    host.remove("subnet.env");
    let file = host.path("subnet.env");
    let (code, message) = host.call("ADD", &host.conf(json!({}))).error();
    assert_eq!(code, 11);
    assert!(message.contains(file.to_str().unwrap()), "{message}");
    assert!(message.contains("selvage.service or flanneld"), "{message}");
    host.write("subnet.env", "FLANNEL_MTU=1450\n");
    let (code, message) = host.call("ADD", &host.conf(json!({}))).error();
    assert_eq!(code, 999);
    assert!(
        message.contains("is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET"),
        "{message}"
    );
    assert_eq!(host.calls(), []);
}

#[test]
fn without_a_command_it_says_what_it_is() {
    let host = Host::new();
    let answer = run(host.plugin(), "");
    assert_eq!(answer.result(), "");
    assert!(
        answer.stderr.starts_with("CNI Plugin flannel version "),
        "{answer:?}"
    );
    assert!(answer.stderr.ends_with(
        "\nCNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n"
    ));
}

#[test]
fn container_id_cannot_lead_out_of_the_data_directory() {
    let host = Host::new();
    host.write("victim", r#"{"name":"net","type":"bridge"}"#);
    for command in ["ADD", "DEL", "CHECK"] {
        for id in ["../victim", "x/../../victim", "/victim", "", "..", "é"] {
            let answer = host.call_about(command, id, "eth0", &host.conf(json!({})));
            let (code, message) = answer.error();
            assert_eq!(code, 4, "{id:?}: {message}");
        }
    }
    assert_eq!(host.calls(), []);
    assert!(host.path("victim").exists());
}

#[test]
fn delegate_that_does_not_read_its_large_input_blocks_nothing() {
    let host = Host::new();
    let script = format!("#!/bin/sh\nhead -c 300000 /dev/zero >&2\necho '{RESULT}'\n");
    host.install("bridge", &script);
    let conf = host.conf(json!({"runtimeConfig": {"large": "x".repeat(1 << 20)}}));
    let answer = host.call("ADD", &conf);
    assert_eq!(answer.result().trim_end(), RESULT);
    assert!(answer.stderr.len() > 1_300_000);
}

#[test]
fn delegate_that_is_being_replaced_is_waited_for() {
    let host = Host::new();
    let busy = OpenOptions::new()
        .append(true)
        .open(host.plugins.join("bridge"))
        .unwrap();
    let start = Instant::now();
    let writer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        drop(busy);
    });
    assert_eq!(host.call("ADD", &host.conf(json!({}))).result(), RESULT);
    assert!(start.elapsed() >= Duration::from_millis(300));
    writer.join().unwrap();
}

#[test]
fn status_is_about_the_next_add() {
    let host = Host::new();
    let conf = |more: Value| {
        let mut all = json!({"cniVersion": "1.1.0"});
        all.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        host.conf(all)
    };
    let plain = conf(json!({}));
    assert_eq!(host.call("STATUS", &plain).result(), "");
    assert_eq!(host.calls(), [], "a delegate of 1.0.0 has no STATUS");

    host.delegate_speaks(&["1.0.0", "1.1.0"]);
    assert_eq!(host.call("STATUS", &plain).result(), "");
    let calls = host.calls();
    assert_eq!(calls[0].0, "STATUS   netns= args= path=plugins");
    assert_eq!(calls[0].1, DELEGATE.replace("0.4.0", "1.1.0"));
    host.write("plugins/fail-STATUS", r#"{"code":51,"msg":"limited"}"#);
    assert_eq!(host.call("STATUS", &plain).error(), (51, "limited".into()));

    host.write("plugins/fail-STATUS", "");
    assert_eq!(host.call("STATUS", &plain).error().0, 50);

    let absent = |conf: &str, word: &str| {
        let (code, message) = host.call("STATUS", conf).error();
        assert_eq!(code, 50, "{message}");
        assert!(message.contains(word), "{message}");
    };
    absent(&conf(json!({"delegate": {"type": "ipvlan"}})), "\"ipvlan\"");
    absent(
        &conf(json!({"ipam": {"type": "whereabouts"}})),
        "\"whereabouts\"",
    );
    host.write("subnet.env", "FLANNEL_MTU=1450\n");
    absent(&plain, "is missing FLANNEL_NETWORK");
    host.remove("subnet.env");
    absent(&plain, "has not written it yet");
}
