//! The delegate's configuration to the byte, the words of every refusal, and input that must not crash us. What the
//! plugin does with a delegate is in `tests/cni`.

use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;
use serde_json::Value;

use super::*;

const V4: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n";
const V6: &str = "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:5::1/64\n";
const REST: &str = "FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";

fn env(parts: &[&str]) -> String {
    parts.concat()
}

fn delegate(conf: &str, env: &str) -> String {
    delegate_configuration(conf.as_bytes(), env.as_bytes()).unwrap()
}

fn refusal(conf: &str, env: &str) -> (u32, String) {
    let error = delegate_configuration(conf.as_bytes(), env.as_bytes()).unwrap_err();
    (error.code(), error.to_string())
}

#[test]
fn delegate_is_flannels_to_the_byte() {
    let v4 = env(&[V4, REST]);
    let cases = [
        (
            "IPv4, nothing configured, as rkt does",
            r#"{"name":"containers","type":"flannel"}"#,
            v4.clone(),
            r#"{"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"}],"type":"host-local"},"isGateway":true,"mtu":1472,"name":"containers","type":"bridge"}"#,
        ),
        (
            "IPv6",
            r#"{"name":"cbr0","cniVersion":"1.0.0"}"#,
            env(&[V6, REST]),
            r#"{"cniVersion":"1.0.0","ipMasq":false,"ipam":{"ranges":[[{"subnet":"fc00:0:0:5::/64"}]],"routes":[{"dst":"fc00::/48"}],"type":"host-local"},"isGateway":true,"mtu":1472,"name":"cbr0","type":"bridge"}"#,
        ),
        (
            "both families, whatever the order of the file, and the agent does not masquerade",
            r#"{"name":"cbr0","cniVersion":"0.3.1"}"#,
            env(&[
                V6,
                V4,
                "FLANNEL_MTU=1450\r\nFLANNEL_IPMASQ=yes\nDOCKER_OPT_MTU=--mtu=1\n",
            ]),
            r#"{"cniVersion":"0.3.1","ipMasq":true,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}],[{"subnet":"fc00:0:0:5::/64"}]],"routes":[{"dst":"10.1.0.0/16"},{"dst":"fc00::/48"}],"type":"host-local"},"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#,
        ),
        (
            "comma lists, each network once and masked",
            r#"{"name":"cbr0","cniVersion":""}"#,
            env(&[
                "FLANNEL_NETWORK=10.1.0.0/16,192.168.0.0/16,10.1.2.3/16\n",
                "FLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_IPV6_NETWORK=fc00::/48,fd00::1/48\n",
                REST,
            ]),
            r#"{"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"},{"dst":"192.168.0.0/16"},{"dst":"fc00::/48"},{"dst":"fd00::/48"}],"type":"host-local"},"isGateway":true,"mtu":1472,"name":"cbr0","type":"bridge"}"#,
        ),
        (
            "what the delegate and ipam already say is kept, but for the ranges",
            r#"{"name":"cbr0","cniVersion":"0.4.0","args":{"a":1},"dns":{"domain":"x"},"delegate":{"hairpinMode":true,"isDefaultGateway":true,"isGateway":false,"ipMasq":true,"mtu":1400.0,"promisc<Mode>":1e2},
               "ipam":{"type":"my-ipam","unknown-param":"unknown-value","dataDir":"/x","ranges":[[{"subnet":"1.2.3.0/24"}]],"routes":[{"dst":"10.96.0.1/12"},{"dst":"192.168.244.0/24","gw":"10.1.17.20","mtu":1400}]}}"#,
            v4.clone(),
            r#"{"cniVersion":"0.4.0","hairpinMode":true,"ipMasq":true,"ipam":{"dataDir":"/x","ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.96.0.1/12"},{"dst":"192.168.244.0/24","gw":"10.1.17.20","mtu":1400},{"dst":"10.1.0.0/16"}],"type":"my-ipam","unknown-param":"unknown-value"},"isDefaultGateway":true,"isGateway":false,"mtu":1400,"name":"cbr0","promisc\u003cMode\u003e":100,"type":"bridge"}"#,
        ),
        (
            "another type has no gateway by default, and the runtime's runtimeConfig counts",
            r#"{"name":"a.b_c-1","CNIVersion":"1.1.0","delegate":{"type":"ipvlan","runtimeConfig":{}},"runtimeConfig":{"portMappings":[{"hostPort":80}]}}"#,
            v4.clone(),
            r#"{"cniVersion":"1.1.0","ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"}],"type":"host-local"},"mtu":1472,"name":"a.b_c-1","runtimeConfig":{"portMappings":[{"hostPort":80}]},"type":"ipvlan"}"#,
        ),
        (
            "null is nothing",
            r#"{"name":"n","delegate":null,"ipam":{"routes":null},"runtimeConfig":null,"dataDir":null,"subnetFile":""}"#,
            v4.clone(),
            r#"{"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"}],"type":"host-local"},"isGateway":true,"mtu":1472,"name":"n","type":"bridge"}"#,
        ),
    ];
    for (what, conf, env, expected) in cases {
        assert_eq!(delegate(conf, &env), expected, "{what}");
    }
}

#[test]
fn refused_configurations_say_what_flannel_says() {
    let good = env(&[V4, REST]);
    let named = |rest: &str| format!(r#"{{"name":"n",{rest}}}"#);
    let routes = "failed to assemble Delegate IPAM: failed to read IPAM routes: failed to parse ipam.routes: ";
    let cases = [
        (
            "{".into(),
            6,
            "error unmarshall network config: not valid JSON: EOF while parsing an object at line 1 column 1",
        ),
        ("[]".into(), 6, "error unmarshall network config: "),
        (String::new(), 6, "error unmarshall network config: "),
        ("{}".into(), 7, "missing network name"),
        ("null".into(), 7, "missing network name"),
        (
            r#"{"name":"../x"}"#.into(),
            7,
            "invalid characters found in network name",
        ),
        (
            r#"{"name":"a:b"}"#.into(),
            7,
            "invalid characters found in network name",
        ),
        (
            named(r#""cniVersion":"9.0""#),
            1,
            "incompatible CNI versions",
        ),
        (
            named(r#""delegate":5"#),
            7,
            "failed to load netconf: delegate: 5 is not an object",
        ),
        (
            named(r#""subnetFile":{}"#),
            7,
            "failed to load netconf: subnetFile: {} is not a string",
        ),
        (
            named(r#""delegate":{"type":5}"#),
            7,
            "'delegate' dictionary, if present, must have (string) 'type' field",
        ),
        (
            named(r#""delegate":{"name":"x"}"#),
            7,
            "'delegate' dictionary must not have 'name' field, it'll be set by flannel",
        ),
        (
            named(r#""delegate":{"ipam":null}"#),
            7,
            "'delegate' dictionary must not have 'ipam' field, it'll be set by flannel",
        ),
        (named(r#""ipam":{"routes":{}}"#), 7, routes),
        (named(r#""ipam":{"routes":[5]}"#), 7, routes),
        (named(r#""ipam":{"routes":[{"gw":"10.0.0.1"}]}"#), 7, routes),
        (
            named(r#""ipam":{"routes":[{"dst":"10.0.0.1"}]}"#),
            7,
            routes,
        ),
        (
            named(r#""ipam":{"routes":[{"dst":"10.0.0.0/8","gw":"x"}]}"#),
            7,
            routes,
        ),
    ];
    for (conf, code, message) in cases {
        let (found, text) = refusal(&conf, &good);
        assert_eq!(found, code, "{conf}: {text}");
        assert!(text.starts_with(message), "{conf}: {text}");
    }
}

#[test]
fn refused_subnet_files_say_what_flannel_says() {
    let all = "FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ";
    let bad = |line: &str| env(&[V4, line, "\n", REST]);
    let cases = [
        (String::new(), format!("/e is missing {all}")),
        ("foo=bar\n# x".into(), format!("/e is missing {all}")),
        (
            env(&[V4, "FLANNEL_MTU=1\n"]),
            "/e is missing FLANNEL_IPMASQ".into(),
        ),
        (
            env(&["FLANNEL_NETWORK=10.1.0.0/16\n", REST]),
            "/e is missing FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET".into(),
        ),
        (
            bad("FLANNEL_SUBNET=10.1/16"),
            "invalid CIDR address: 10.1/16".into(),
        ),
        (bad("FLANNEL_NETWORK="), "invalid CIDR address: ".into()),
        (
            bad("FLANNEL_NETWORK=10.1.0.0/16,"),
            "invalid CIDR address: ".into(),
        ),
        (
            bad("FLANNEL_IPV6_SUBNET=\"fc00::/64\""),
            "invalid CIDR address: \"fc00::/64\"".into(),
        ),
        (
            env(&[V4, REST, "FLANNEL_MTU=+5"]),
            r#"strconv.ParseUint: parsing "+5": invalid syntax"#.into(),
        ),
        (
            env(&[V4, REST, "FLANNEL_MTU=4294967296"]),
            r#"strconv.ParseUint: parsing "4294967296": value out of range"#.into(),
        ),
        // Flannel's plugin crashes on this one.
        (bad("FLANNEL_MTU"), "FLANNEL_MTU has no '='".into()),
    ];
    for (env, inner) in cases {
        let (code, text) = refusal(r#"{"name":"n","subnetFile":"/e"}"#, &env);
        assert_eq!(code, 999, "{env:?}: {text}");
        let expected = format!(
            "failed to load flannel 'subnet.env' file: {inner}. Check the flannel pod log for this node, \
             or the journal of selvage.service"
        );
        assert_eq!(text, expected, "{env:?}");
    }
}

/// One call in this process; variables as `NAME=value` words.
fn call(variables: &str, stdin: &str) -> (String, Result<(), (u32, Value)>) {
    let variables: BTreeMap<_, _> = variables
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .collect();
    let get = |name: &str| variables.get(name).map(OsString::from);
    let mut stdout = Vec::new();
    let outcome = run(get, &mut stdin.as_bytes(), &mut stdout).map_err(|(error, version)| {
        let report = error.report(version);
        (error.code(), serde_json::from_slice(&report).unwrap())
    });
    (String::from_utf8(stdout).unwrap(), outcome)
}

#[test]
fn variables_are_demanded_as_the_specification_does() {
    let conf = r#"{"name":"n","cniVersion":"1.1.0","subnetFile":"/nonexistent/subnet.env","dataDir":"/nonexistent"}"#;
    let cases = [
        ("", 4, "required env variables [CNI_COMMAND] missing"),
        (
            "CNI_COMMAND=ADD",
            4,
            "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH] missing",
        ),
        (
            "CNI_COMMAND=CHECK CNI_IFNAME=eth0",
            4,
            "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_PATH] missing",
        ),
        (
            "CNI_COMMAND=DEL",
            4,
            "required env variables [CNI_CONTAINERID,CNI_IFNAME,CNI_PATH] missing",
        ),
        (
            "CNI_COMMAND=STATUS",
            4,
            "required env variables [CNI_PATH] missing",
        ),
        (
            "CNI_COMMAND=GC",
            4,
            "required env variables [CNI_PATH] missing",
        ),
        ("CNI_COMMAND=FOO", 4, "unknown CNI_COMMAND: FOO"),
        (
            "CNI_COMMAND=DEL CNI_CONTAINERID=../etc/passwd CNI_IFNAME=eth0 CNI_PATH=/p",
            4,
            "invalid characters in containerID",
        ),
        (
            "CNI_COMMAND=DEL CNI_CONTAINERID=.. CNI_IFNAME=eth0 CNI_PATH=/p",
            4,
            "invalid characters in containerID",
        ),
        (
            "CNI_COMMAND=DEL CNI_CONTAINERID=a/../../b CNI_IFNAME=eth0 CNI_PATH=/p",
            4,
            "invalid characters in containerID",
        ),
        (
            "CNI_COMMAND=DEL CNI_CONTAINERID=a CNI_IFNAME=a/b CNI_PATH=/p",
            4,
            "invalid characters in interface name",
        ),
        (
            "CNI_COMMAND=DEL CNI_CONTAINERID=a CNI_IFNAME=abcdefghijklmnop CNI_PATH=/p",
            4,
            "invalid characters in interface name",
        ),
        (
            "CNI_COMMAND=ADD CNI_CONTAINERID=a CNI_NETNS=/n CNI_IFNAME=eth0 CNI_PATH=/p",
            11,
            "failed to load flannel 'subnet.env' file: open /nonexistent/subnet.env: no such file or directory. \
             The agent (selvage.service or flanneld) has not written it yet",
        ),
        (
            "CNI_COMMAND=STATUS CNI_PATH=/p",
            50,
            "failed to load flannel 'subnet.env' file: open /nonexistent/subnet.env: no such file or directory. \
             The agent (selvage.service or flanneld) has not written it yet",
        ),
        (
            "CNI_COMMAND=CHECK CNI_CONTAINERID=a CNI_NETNS=/n CNI_IFNAME=eth0 CNI_PATH=/p",
            7,
            "CHECK needs prevResult in the network configuration",
        ),
        (
            "CNI_COMMAND=GC CNI_PATH=/p",
            7,
            "GC needs cni.dev/valid-attachments in the network configuration",
        ),
    ];
    for (variables, code, message) in cases {
        let (_, outcome) = call(variables, conf);
        let (found, report) = outcome.unwrap_err();
        assert_eq!(report["msg"], message, "{variables}");
        assert_eq!(
            (found, &report["code"]),
            (code, &code.into()),
            "{variables}"
        );
        assert_eq!(report["cniVersion"], "1.1.0", "{variables}");
    }
    let del = "CNI_COMMAND=DEL CNI_CONTAINERID=a CNI_IFNAME=eth0 CNI_PATH=/p";
    assert_eq!(
        call(del, conf),
        (String::new(), Ok(())),
        "nothing known, so detached"
    );
}

#[test]
fn commands_need_the_version_that_brought_them() {
    let conf = |version: &str| {
        format!(r#"{{"name":"n","cniVersion":"{version}","dataDir":"/nonexistent"}}"#)
    };
    let all = "CNI_CONTAINERID=a CNI_NETNS=/n CNI_IFNAME=eth0 CNI_PATH=/p";
    for (command, too_old) in [("CHECK", "0.3.1"), ("STATUS", "1.0.0"), ("GC", "1.0.0")] {
        let (_, outcome) = call(&format!("CNI_COMMAND={command} {all}"), &conf(too_old));
        let (code, report) = outcome.unwrap_err();
        assert_eq!(code, 1);
        assert_eq!(
            report["msg"],
            format!("config version does not allow {command}")
        );
        assert_eq!(report["cniVersion"], too_old);
    }
    for version in Version::ALL {
        let (_, outcome) = call(&format!("CNI_COMMAND=DEL {all}"), &conf(version.as_str()));
        assert_eq!(outcome, Ok(()), "{version}");
    }
    let (_, outcome) = call(&format!("CNI_COMMAND=DEL {all}"), &conf("0.5.0"));
    assert_eq!(
        outcome.unwrap_err().1["details"],
        r#"config is "0.5.0", plugin supports ["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]"#
    );
    let (answer, outcome) = call("CNI_COMMAND=VERSION", "");
    assert_eq!(outcome, Ok(()));
    assert_eq!(
        answer,
        "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n"
    );
}

#[test]
fn report_has_upstreams_layout() {
    let report = Error::NoName.report(Some(Version::V0_3_1));
    assert_eq!(
        String::from_utf8(report).unwrap(),
        "{\n    \"cniVersion\": \"0.3.1\",\n    \"code\": 7,\n    \"msg\": \"missing network name\"\n}\n"
    );
    let own = b"{\"code\": 105}".to_vec();
    assert_eq!(Error::Delegate(own.clone()).report(None), own);
}

/// JSON that is a little like a configuration, often enough to get past the first checks.
fn configuration() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        "(10\\.[0-9]{1,3}\\.0\\.0/[0-9]{1,2}|fd00::/[0-9]{1,3}|0\\.4\\.0|1\\.1\\.0|bridge)"
            .prop_map(Value::from),
    ];
    let key = "(name|type|ipam|delegate|routes|dst|gw|cniVersion|prevResult|runtimeConfig|containerID|ifname|\
               cni\\.dev/valid-attachments|mtu|bridge|ranges|.{0,3})";
    let value = leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    (value, any::<bool>()).prop_map(|(mut value, named)| {
        if let (Some(map), true) = (value.as_object_mut(), named) {
            map.insert("name".into(), "n".into());
            map.remove("cniVersion");
        }
        value.to_string()
    })
}

proptest! {
    #[test]
    fn any_bytes_give_a_configuration_or_a_refusal(stdin in prop::collection::vec(any::<u8>(), 0..64), env in ".{0,64}") {
        let _ = delegate_configuration(&stdin, env.as_bytes());
    }

    #[test]
    fn any_configuration_gives_valid_json_or_a_refusal(
        conf in configuration(),
        extra in "(FLANNEL_(NETWORK|SUBNET|IPV6_NETWORK|IPV6_SUBNET|MTU|IPMASQ)[=,]?[0-9a-f:.,/]{0,12}\n){0,3}",
    ) {
        for env in [env(&[V4, REST]), env(&[V4, V6, REST, &extra])] {
            match delegate_configuration(conf.as_bytes(), env.as_bytes()) {
                Ok(text) => prop_assert!(serde_json::from_str::<Value>(&text).unwrap().is_object()),
                Err(error) => {
                    let report: Value = serde_json::from_slice(&error.report(None)).unwrap();
                    prop_assert!(report["code"].as_u64().unwrap() > 0);
                    prop_assert!(!report["msg"].as_str().unwrap().is_empty());
                }
            }
        }
    }

    #[test]
    fn no_call_panics_or_leaves_its_directory(
        command in "(ADD|DEL|CHECK|STATUS|GC|VERSION|[A-Z]{0,4})",
        container in "([a-z0-9]{1,4}|a/\\.\\./\\.\\./b|\\.\\.|[ -~]{0,8}|..)",
        interface in "(eth0|[ -~]{0,18})",
        conf in configuration(),
        stored in "\\PC{0,16}",
    ) {
        let outer = tempfile::tempdir().unwrap();
        let directory = outer.path().join("data");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("c1"), &stored).unwrap();
        fs::write(directory.join("c2:n:eth0"), &stored).unwrap();
        fs::write(directory.join("::"), &stored).unwrap();
        let subnet_file = outer.path().join("subnet.env");
        fs::write(&subnet_file, env(&[V4, REST])).unwrap();
        let mut conf: Value = serde_json::from_str(&conf).unwrap();
        if let Some(map) = conf.as_object_mut() {
            map.insert("dataDir".into(), directory.to_str().into());
            map.insert("subnetFile".into(), subnet_file.to_str().into());
        }
        let get = |name: &str| Some(match name {
            "CNI_COMMAND" => OsString::from(&command),
            "CNI_CONTAINERID" => OsString::from(&container),
            "CNI_IFNAME" => OsString::from(&interface),
            "CNI_NETNS" => "/nonexistent".into(),
            "CNI_PATH" => "/nonexistent".into(),
            _ => return None,
        });
        // A configuration that is no object would use the directory of the machine.
        if conf.is_object() {
            let text = conf.to_string();
            let _ = run(get, &mut text.as_bytes(), &mut Vec::new());
        }
        prop_assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 2);
    }
}
