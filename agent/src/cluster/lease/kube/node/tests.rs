use serde_json::json;

use super::*;
use crate::base::net::unusable_v4;
use crate::cluster::network_config::NetworkConfig;

fn annotations() -> Annotations {
    Annotations::new("flannel.alpha.coreos.com/")
}

fn families(config: &str) -> Families {
    NetworkConfig::parse(config).unwrap().families()
}

fn v4() -> Families {
    families(r#"{"Network":"10.244.0.0/16"}"#)
}

fn dual() -> Families {
    families(r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/56"}"#)
}

fn node(cidrs: &[&str], given: &[(&str, &str)]) -> Node {
    let of =
        |(name, value): &(&str, &str)| (format!("flannel.alpha.coreos.com/{name}"), json!(value));
    let annotations: serde_json::Map<_, _> = given.iter().map(of).collect();
    serde_json::from_value(json!({
        "metadata": {
            "name": "n1", "creationTimestamp": "2024-02-29T23:59:59Z", "annotations": annotations,
            "managedFields": [{"manager": "kubelet"}],
        },
        "spec": {"podCIDR": cidrs.first().unwrap_or(&""), "podCIDRs": cidrs},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }))
    .unwrap()
}

fn attrs(kind: &str, v4: Option<&str>, v6: Option<&str>) -> LeaseAttrs {
    let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
    LeaseAttrs {
        public_ip: Some(Ipv4Addr::new(192, 168, 0, 1)),
        public_ipv6: Some("fd00::1".parse().unwrap()),
        backend_type: kind.to_owned(),
        backend_data: v4.map(raw),
        backend_v6_data: v6.map(raw),
        owner: None,
    }
}

/// What flannel v0.28.9 shows in `kubectl describe node`, from its issues #1231 and #2524.
const VXLAN: [(&str, &str); 4] = [
    ("backend-data", r#"{"VNI":1,"VtepMAC":"5a:cd:a5:a4:fb:0c"}"#),
    ("backend-type", "vxlan"),
    ("kube-subnet-manager", "true"),
    ("public-ip", "10.0.2.15"),
];

#[test]
fn flannels_annotations_are_read() {
    let Reading::Lease(key, attrs) = annotations().read(&node(&["10.244.1.0/24"], &VXLAN), v4())
    else {
        panic!("no lease");
    };
    assert_eq!(key.to_string(), "10.244.1.0/24");
    assert_eq!(
        attrs.to_json().unwrap(),
        r#"{"PublicIP":"10.0.2.15","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5a:cd:a5:a4:fb:0c"},"SelvageOwner":"n1"}"#
    );
    // host-gw has no data, and the flannel of an IPv6-only node writes 0.0.0.0.
    let given = [
        ("backend-data", "null"),
        ("backend-type", "host-gw"),
        ("kube-subnet-manager", "true"),
        ("public-ip", "0.0.0.0"),
        ("public-ipv6", "fd00::7"),
    ];
    let node = node(&["fd00:10:244:1::/64", "10.244.1.0/24"], &given);
    let Reading::Lease(key, attrs) = annotations().read(&node, dual()) else {
        panic!("no lease");
    };
    assert_eq!(key.name(), "10.244.1.0-24&fd00:10:244:1::-64");
    assert_eq!(
        (attrs.public_ip, attrs.backend_data.is_none()),
        (None, true)
    );
    assert_eq!(attrs.public_ipv6, Some("fd00::7".parse().unwrap()));
    // In a network without IPv6 that half does not count.
    let Reading::Lease(key, attrs) = annotations().read(&node, v4()) else {
        panic!("no lease");
    };
    assert_eq!((key.v6, attrs.public_ipv6), (None, None));
}

#[test]
fn who_takes_no_part_has_no_lease_and_nonsense_is_named() {
    let with = |name: &'static str, value: &'static str| {
        let mut given = VXLAN.to_vec();
        given.retain(|(known, _)| *known != name);
        given.push((name, value));
        annotations().read(&node(&["10.244.1.0/24"], &given), v4())
    };
    for (name, value) in [
        ("kube-subnet-manager", "false"),
        ("kube-subnet-manager", ""),
        ("kube-subnet-manager", "True"),
    ] {
        assert_eq!(with(name, value), Reading::Nothing, "{name} {value}");
    }
    for cidrs in [
        &[][..],
        &["fd00::/64"],
        &["10.244.1.0"],
        &["10.1.0.0/24"; 3],
    ] {
        let reading = annotations().read(&node(cidrs, &VXLAN), v4());
        assert_eq!(reading, Reading::Nothing, "{cidrs:?}");
    }
    for (name, value, expected) in [
        ("public-ip", "", r#"public-ip: "" is not an address"#),
        ("public-ip", "10.0.0", "is not an address"),
        ("public-ip", "fd00::1", "is not an address"),
        ("backend-data", "{", "backend-data: \"{\" is not JSON"),
        ("backend-data", "{} x", "is not JSON"),
    ] {
        let Reading::Unreadable(key, reason) = with(name, value) else {
            panic!("{name} {value}");
        };
        assert_eq!(key.name(), "10.244.1.0-24");
        assert!(reason.contains(expected), "{reason}");
    }
    let long: &'static str = "x".repeat(LONGEST_VALUE + 1).leak();
    assert!(matches!(
        with("backend-data", long),
        Reading::Unreadable(..)
    ));
}

/// The table of backends in flannel's `AcquireLease`.
#[test]
fn each_backends_annotations_are_written_as_flannel_does() {
    let node = node(&["10.244.1.0/24"], &[]);
    let (some, none) = (Some(r#"{"a":1}"#), None);
    for (kind, data, data_v6, expected) in [
        ("vxlan", some, none, "data=type=public-ip="),
        ("vxlan", none, some, "type=v6-data=public-ipv6="),
        (
            "vxlan",
            some,
            some,
            "data=type=v6-data=public-ip=public-ipv6=",
        ),
        ("wireguard", some, none, "data=type=public-ip="),
        (
            "wireguard",
            none,
            some,
            "data=type=v6-data=public-ip=public-ipv6=",
        ),
        (
            "host-gw",
            none,
            none,
            "data=type=v6-data=public-ip=public-ipv6=",
        ),
        (
            "extension",
            some,
            none,
            "data=type=v6-data=public-ip=public-ipv6=",
        ),
        ("ipip", none, none, "data=type=public-ip="),
        ("ipsec", some, none, "data=type=public-ip="),
        ("", none, none, "data=type=public-ip="),
    ] {
        let wanted = annotations().wanted(&attrs(kind, data, data_v6), &node);
        assert_eq!(
            wanted["flannel.alpha.coreos.com/kube-subnet-manager"],
            "true"
        );
        assert_eq!(wanted["flannel.alpha.coreos.com/backend-type"], kind);
        let names: String = (wanted.keys())
            .filter(|name| !name.ends_with("kube-subnet-manager"))
            .map(|name| {
                name.replace("flannel.alpha.coreos.com/", "")
                    .replace("backend-", "")
                    + "="
            })
            .collect();
        assert_eq!(names, expected, "{kind} {data:?} {data_v6:?}");
    }
    let wanted = annotations().wanted(&attrs("host-gw", none, none), &node);
    assert_eq!(wanted["flannel.alpha.coreos.com/backend-data"], "null");
}

#[test]
fn an_overwritten_address_is_published_and_nothing_is_written_twice() {
    let mut given = VXLAN.to_vec();
    given.push(("public-ip-overwrite", "203.0.113.5"));
    let node = node(&["10.244.1.0/24"], &given);
    let of = attrs("vxlan", Some(VXLAN[0].1), None);
    let wanted = annotations().wanted(&of, &node);
    assert_eq!(wanted["flannel.alpha.coreos.com/public-ip"], "203.0.113.5");
    let missing = annotations().missing(wanted, &node);
    let names: Vec<_> = missing.keys().collect();
    assert_eq!(names, ["flannel.alpha.coreos.com/public-ip"]);
}

#[test]
fn the_own_subnets_must_be_inside_the_network() {
    let of = |cidrs: &[&str], families| node(cidrs, &[]).own_subnets(families);
    let text = |cidrs: &[&str], families| of(cidrs, families).unwrap_err().to_string();
    let key = of(&["fd00:10:244:5::/64", "10.244.5.0/25"], dual()).unwrap();
    assert_eq!(key.name(), "10.244.5.0-25&fd00:10:244:5::-64");
    assert_eq!(
        text(&[], v4()),
        "node n1 has no IPv4 podCIDR: kube-controller-manager assigns it with --allocate-node-cidrs=true and --cluster-cidr"
    );
    assert!(text(&["10.244.5.0/24"], dual()).contains("has no IPv6 podCIDR"));
    assert!(
        text(&["10.42.0.0/24"], v4()).starts_with(
            "the podCIDR 10.42.0.0/24 of node n1 is outside the network 10.244.0.0/16"
        )
    );
    assert!(text(&["10.0.0.0/8"], v4()).contains("is outside the network"));
    assert!(of(&["10.244.5.0/30"], v4()).is_ok());
    for small in ["10.244.5.0/31", "10.244.5.0/32"] {
        assert!(
            text(&[small], v4()).contains("has room for no pod"),
            "{small}"
        );
    }
    assert!(text(&["x"], v4()).contains("the podCIDR x of node n1 is not a subnet"));
    assert!(text(&["10.244.1.0/24", "10.244.2.0/24"], v4()).contains("more than one"));
}

#[test]
fn only_a_list_of_nodes_is_one() {
    let is_list = |text: &str| NodeList::parse(text.as_bytes()).is_ok();
    assert!(is_list(
        r#"{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[]}"#
    ));
    for text in [
        r#"{"metadata":{}}"#,
        r#"{"kind":"Status","metadata":{"resourceVersion":"7"},"items":[]}"#,
        r#"{"kind":"NodeList","metadata":{},"items":[]}"#,
        r#"{"kind":"NodeList","metadata":{"resourceVersion":"0"},"items":[]}"#,
        r#"{"kind":"NodeList","metadata":{"resourceVersion":"7"}}"#,
        r#"{"kind":"NodeList","metadata":{"resourceVersion":"7"},"items":null}"#,
    ] {
        assert!(!is_list(text), "{text}");
    }
}

#[test]
fn a_prescribed_address_must_be_one() {
    let of = |text| {
        let node = node(&[], &[("node-public-ip", text)]);
        annotations().prescribed(&node, "node-public-ip", unusable_v4)
    };
    assert_eq!(of("203.0.113.5"), Ok(Some(Ipv4Addr::new(203, 0, 113, 5))));
    assert_eq!(of(""), Ok(None));
    for (text, expected) in [("x", "no such address"), ("127.0.0.1", "a loopback")] {
        let error = of(text).unwrap_err();
        assert!(
            error.starts_with("ignoring the annotation flannel.alpha.coreos.com/node-public-ip"),
            "{error}"
        );
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(node(&[], &[]).created(), 1_709_251_199);
}

proptest::proptest! {
    #[test]
    fn no_annotation_makes_it_panic(value: String, kind: String) {
        let given = [
            ("kube-subnet-manager", "true"),
            ("public-ip", value.as_str()),
            ("backend-data", value.as_str()),
            ("backend-type", kind.as_str()),
        ];
        let _ = annotations().read(&node(&["10.244.1.0/24"], &given), v4());
        let _ = annotations().read(&node(&[value.as_str()], &given), dual());
    }
}

#[test]
fn a_pages_token_is_part_of_the_path() {
    assert_eq!(NodeList::path(""), "/api/v1/nodes?limit=250");
    let next = NodeList::path("eyJ2+/=");
    assert_eq!(next, "/api/v1/nodes?limit=250&continue=eyJ2%2B%2F%3D");
}

/// What others write there is theirs: none of it can spoil a list of all nodes.
#[test]
fn of_annotations_and_conditions_only_ours_are_kept() {
    let node: Node = serde_json::from_str(
        r#"{"metadata":{"name":"n1","annotations":{"csi.volume.kubernetes.io/nodeid":{"odd":[1]},"x.org/public-ip":"\u0031.2.3.4"}},
            "status":{"conditions":[{"type":"Ready","status":"True","reason":"KubeletReady"},
                {"type":"NetworkUnavailable","status":"False","reason":"FlannelIsUp","lastHeartbeatTime":null}]}}"#,
    )
    .unwrap();
    let kept = node.metadata.annotations.as_ref().unwrap();
    assert_eq!(
        kept.iter().collect::<Vec<_>>(),
        [(&"x.org/public-ip".to_owned(), &"1.2.3.4".to_owned())]
    );
    let [condition] = &node.status.conditions[..] else {
        panic!("{:?}", node.status.conditions)
    };
    assert_eq!(
        (condition.status.as_str(), condition.reason.as_str()),
        ("False", "FlannelIsUp")
    );
    let without: Node =
        serde_json::from_str(r#"{"metadata":{"name":"n1","annotations":null},"status":{}}"#)
            .unwrap();
    assert!(without.metadata.annotations.is_none() && without.status.conditions.is_empty());
}

#[test]
fn where_the_next_page_is_stands_at_the_beginning_of_this_one() {
    let page = |text: &str| NodeList::token_after(text.as_bytes());
    let whole = r#"{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"5","continue":"eyJ2"},"items":[{}]}"#;
    assert_eq!(page(whole), "eyJ2");
    // It is there before the page has come to its end, and is not looked for behind the items.
    assert_eq!(page(&whole[..whole.len() - 5]), "eyJ2");
    let behind = r#"{"items":[],"metadata":{"resourceVersion":"5","continue":"eyJ2"}}"#;
    assert_eq!(page(behind), "");
    for last in [
        r#"{"metadata":{"resourceVersion":"5"},"items":[]}"#,
        "[]",
        "",
        "{",
    ] {
        assert_eq!(page(last), "", "{last}");
    }
}
