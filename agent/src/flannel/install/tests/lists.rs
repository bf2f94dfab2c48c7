//! Which config lists are taken to be copied.

use proptest::prelude::*;

use super::*;

#[test]
fn file_to_copy_is_checked_before_anything_is_written() {
    let host = Host::new();
    let list = |plugins: Value| json!({"name": "cbr0", "plugins": plugins}).to_string();
    for (text, expected) in [
        ("".to_owned(), "not valid JSON"),
        ("{\"name\": \"cbr0\",".to_owned(), "not valid JSON"),
        // Without the list around it, as before CNI 0.3.0 (10-flannel.conf).
        (
            r#"{"name":"cbr0","type":"flannel","delegate":{"isDefaultGateway":true}}"#.to_owned(),
            "plugins is missing: expected a list of objects",
        ),
        (
            json!({"plugins": [{"type": "flannel"}]}).to_string(),
            "name is missing: expected the network's name",
        ),
        (list(json!({})), "plugins is {}"),
        (list(json!([{"type": 5}])), "plugins is [{\"type\":5}]"),
        (
            list(json!([{"type": "../x"}])),
            "plugins is [{\"type\":\"../x\"}]",
        ),
        (
            list(json!([{"type": "bridge", "ipam": {"type": "host-local"}}])),
            "none of plugins is of type flannel",
        ),
        (
            list(json!([{"type": "flannel", "delegate": {"ipam": {}}}])),
            "the plugin would refuse it: 'delegate' dictionary must not have 'ipam' field",
        ),
        (
            json!({"name": "a b", "plugins": [{"type": "flannel"}]}).to_string(),
            "the plugin would refuse it: invalid characters found in network name",
        ),
        (
            json!({"name": "a", "cniVersion": "2.0", "plugins": [{"type": "flannel"}]}).to_string(),
            "cniVersion is \"2.0\": expected a version of the CNI specification, 0.1.0 to 1.1.0",
        ),
        (
            json!({"name": "a", "cniVersions": "1.1.0", "plugins": [{"type": "flannel"}]})
                .to_string(),
            "cniVersions is \"1.1.0\": expected a list",
        ),
        (" ".repeat(2 << 20), "it has more than 1048576 bytes"),
    ] {
        let error = install_program(&host.program, &host.places, &host.copying(&text)).unwrap_err();
        let message = chain(&error);
        assert!(message.contains(expected), "{text:.80}: {message}");
        assert!(
            message.contains("cni-conf.json is no config list for flannel"),
            "{message}"
        );
        assert!(error.is_bad_configuration());
        assert_eq!(host.names("bin"), [""; 0]);
    }
    let wish = Wish {
        conf_from: Some(host.path("missing")),
        force: false,
    };
    let error = install_program(&host.program, &host.places, &wish).unwrap_err();
    assert!(!error.is_bad_configuration());
    assert!(
        chain(&error).contains("missing: No such file"),
        "{}",
        chain(&error)
    );
}

/// Three that others wrote: of a test of k3s (k3s-io/k3s, tests/integration/flannelcniconf/testdata/custom.conflist),
/// RKE's (rancher/rke, templates/flannel.go), and one without a version, as kubecfg's users write them. Then two with
/// what those lack: files of another network, and versions to choose from (CNI specification 1.1.0, section 1).
#[test]
fn config_lists_of_others_are_taken() {
    let host = Host::new();
    for (text, network, version, others) in [
        (
            r#"{
  "name":"cbr0",
  "cniVersion":"1.0.0",
  "plugins":[
    {
      "type":"flannel",
      "delegate":{
        "hairpinMode":true,
        "forceAddress":true,
        "isDefaultGateway":true,
        "mtu":1370
      }
    },
    {
      "type":"portmap",
      "capabilities":{
        "portMappings":true
      }
    },
    {
      "type":"bandwidth",
      "capabilities":{
        "bandwidth":true
      }
    }
  ]
}
"#,
            "cbr0",
            "1.0.0",
            &["bridge", "host-local", "portmap", "bandwidth"][..],
        ),
        (
            r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[
                {"type":"flannel","delegate":{"forceAddress":true,"isDefaultGateway":true}},
                {"type":"portmap","capabilities":{"portMappings":true}}]}"#,
            "cbr0",
            "0.3.1",
            &["bridge", "host-local", "portmap"],
        ),
        (
            r#"{"name":"cbr0","plugins":[
                {"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true,"forceAddress":true}},
                {"type":"portmap","capabilities":{"portMappings":true}}]}"#,
            "cbr0",
            "0.1.0",
            &["bridge", "host-local", "portmap"],
        ),
        (
            r#"{"name":"blue","cniVersion":"0.4.0","plugins":[{"type":"flannel",
                "subnetFile":"/run/flannel/networks/blue.env","dataDir":"/var/lib/cni/blue",
                "delegate":{"type":"ipvlan"},"ipam":{"type":"static"}}]}"#,
            "blue",
            "0.4.0",
            &["ipvlan", "static"],
        ),
        (
            r#"{"name":"cbr0","cniVersion":"0.3.1","cniVersions":["0.3.1","1.0.0","1.1.0","2.0.0"],
                "plugins":[{"type":"flannel"},{"type":"tuning"}]}"#,
            "cbr0",
            "1.1.0",
            &["bridge", "host-local", "tuning"],
        ),
    ] {
        let conflist = Conflist::parse(text.into()).unwrap();
        assert_eq!(conflist.network, network);
        assert_eq!(conflist.version.as_str(), version);
        assert_eq!(conflist.others, others);
        host.install(&host.copying(text));
        assert_eq!(
            host.read("net.d/10-flannel.conflist"),
            text,
            "copied to the byte"
        );
    }
}

proptest! {
    /// Whatever is in one place of a good config list, or in place of all of it.
    #[test]
    fn no_text_makes_the_check_panic(at in 0..CNI_CONF.len(), text in r#"[\[\]{}:,"a-z0-9. \\]{0,20}"#) {
        let _ = Conflist::parse(text.clone().into_bytes());
        let (before, after) = CNI_CONF.split_at(at);
        let _ = Conflist::parse(format!("{before}{text}{after}").into_bytes());
    }
}

/// kube-flannel's, in few lines.
const CNI_CONF: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[
    {"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}},
    {"type":"portmap","capabilities":{"portMappings":true}}]}"#;
