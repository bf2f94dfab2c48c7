//! The settings of the underlay and the firewall, many of which are lists.

use super::*;

/// The one setting of `[underlay]` in `line`, accepted.
fn underlay(line: &str) -> Underlay {
    let text = format!("[underlay]\n{line}\n");
    let file = ("etc/selvage/agent.toml", text.as_str());
    load_from(&[file], &[], &[]).unwrap().underlay
}

fn named(names: &[&str]) -> Vec<Interface> {
    let name = |name: &&str| Interface::Name(name.parse().unwrap());
    names.iter().map(name).collect()
}

#[test]
fn text_is_a_list_of_one() {
    for (line, expected) in [
        ("interfaces = \"eth0\"", &["eth0"][..]),
        ("interfaces = [\"eth0\", \" eth1 \"]", &["eth0", "eth1"]),
        ("interfaces = [\"\", \"eth1\"]", &["eth1"]),
        ("interfaces = \"\"", &[]),
        ("interfaces = []", &[]),
    ] {
        assert_eq!(underlay(line).interfaces, named(expected), "{line}");
    }
}

#[test]
fn flags_are_repeated_and_variables_hold_one_element_as_in_flannel() {
    let flags = ["--iface", "eth0", "--iface=fd00::1", "--iface-regex=a,b"];
    let flags = [
        &flags[..],
        &["--iface-cidr", "10.0.0.0/8,fd00::/8"],
        &["--iface-can-reach", "1.1.1.1"],
    ];
    let underlay = load_from(&[], &[], &flags.concat()).unwrap().underlay;
    let address = Interface::Address("fd00::1".parse().unwrap());
    assert_eq!(
        underlay.interfaces,
        [named(&["eth0"]), vec![address]].concat()
    );
    assert_eq!(underlay.interface_regex, [Pattern::new("a,b").unwrap()]);
    assert_eq!(underlay.interface_cidr.len(), 2);
    assert_eq!(underlay.can_reach, "1.1.1.1".parse().ok());

    let variables = [
        ("FLANNELD_IFACE", "eth0"),
        ("FLANNELD_IFACE_REGEX", "^10.{1,3}"),
        ("SELVAGE_IFACE_CIDR", "10.0.0.0/8, fd00::/8"),
        ("SELVAGE_IP_MASQ_EXCLUDE", "192.0.2.0/24,"),
    ];
    let settings = load_from(&[], &variables, &[]).unwrap();
    assert_eq!(settings.underlay.interfaces, named(&["eth0"]));
    assert_eq!(
        settings.underlay.interface_regex,
        [Pattern::new("^10.{1,3}").unwrap()]
    );
    assert_eq!(settings.underlay.interface_cidr.len(), 2);
    assert_eq!(settings.firewall.masquerade_exclude.len(), 1);
    let error = load_from(&[], &[("FLANNELD_IFACE", "eth0,eth1 x")], &[]).unwrap_err();
    assert!(error.to_string().contains("FLANNELD_IFACE"), "{error}");
}

#[test]
fn empty_text_takes_an_optional_value_back() {
    let file = (
        "etc/selvage/agent.toml",
        "[underlay]\ninterfaces = \"eth0\"\ncan-reach = \"1.1.1.1\"\ninterface-cidr = \"10.0.0.0/8\"\n",
    );
    let flags = ["--iface", "", "--iface-can-reach=", "--iface-cidr", ""];
    let settings = load_from(&[file], &[], &flags).unwrap();
    assert_eq!(settings.underlay, Underlay::default());
}

#[test]
fn a_stronger_list_replaces_a_weaker_one() {
    let files = [
        ("usr/lib/selvage/agent.toml", "underlay.interfaces = \"a\""),
        ("etc/selvage/agent.toml", "underlay.interfaces = \"b\""),
    ];
    let settings = load_from(&files, &[], &[]).unwrap();
    assert_eq!(settings.underlay.interfaces, named(&["b"]));
}

#[test]
fn every_mistake_in_a_file_has_its_line_and_what_is_allowed() {
    let name = "expected the name of an interface (1 to 15 bytes";
    let v4 = "expected an IPv4 unicast address that peers can send to (an IPv6 one is underlay.public-ipv6)";
    let v6 = "expected an IPv6 unicast address that peers can send to, not link-local";
    let networks = "expected networks such as \"10.0.0.0/8\" or \"fd00::/8\"";
    let reach = "underlay.can-reach = ";
    for (table, line, expected) in [
        ("underlay", "interfaces = \"eth0:1\"", name),
        ("underlay", "interfaces = [\"eth0\", \"10.0.0.300\"]", name),
        ("underlay", "interfaces = \"fe80::1\"", name),
        (
            "underlay",
            "interfaces = 5",
            "interfaces: invalid type: integer `5`, expected a text or a list of texts",
        ),
        (
            "underlay",
            "interface = \"eth0\"",
            "unknown field `interface`, expected one of `interfaces`",
        ),
        (
            "underlay",
            "interface-regex = [\"eth\", \"e(th\"]",
            "underlay.interface-regex = [\"eth\", \"e(th\"]: expected regular expressions; \"e(th\": ",
        ),
        (
            "underlay",
            "interface-regex = \"eth0\\n\"",
            "expected regular expressions without control characters",
        ),
        ("underlay", "can-reach = \"host\"", reach),
        ("underlay", "can-reach = \"::1\"", reach),
        ("underlay", "can-reach = \"fe80::1\"", reach),
        ("underlay", "interface-cidr = \"10.0.0.1\"", networks),
        ("underlay", "interface-cidr = \"10.0.0.0/33\"", networks),
        ("underlay", "public-ip = \"host\"", v4),
        ("underlay", "public-ip = \"224.0.0.1\"", v4),
        ("underlay", "public-ip = \"127.0.0.1\"", v4),
        ("underlay", "public-ip = \"0.0.0.0\"", v4),
        ("underlay", "public-ip = \"255.255.255.255\"", v4),
        ("underlay", "public-ip = \"2001:db8::1\"", v4),
        ("underlay", "public-ipv6 = \"10.0.0.1\"", v6),
        ("underlay", "public-ipv6 = \"fe80::1\"", v6),
        ("underlay", "public-ipv6 = \"::ffff:10.0.0.1\"", v6),
        (
            "firewall",
            "mode = \"pf\"",
            "firewall.mode = \"pf\": expected auto, nftables or iptables",
        ),
        (
            "firewall",
            "resync = 0",
            "firewall.resync = 0: expected 1 to 86400 seconds",
        ),
        ("firewall", "masquerade-exclude = [\"all\"]", networks),
        (
            "etcd",
            "lease-ttl = 59",
            "etcd.lease-ttl = 59: expected 60 to 31536000 seconds",
        ),
        (
            "etcd",
            "lease-ttl = 31536001",
            "expected 60 to 31536000 seconds",
        ),
        (
            "health",
            "port = 65536",
            "health.port = 65536: expected a TCP port from 1 to 65535, or 0 for none",
        ),
        ("health", "port = -1", "expected a TCP port"),
        (
            "health",
            "address = \"localhost\"",
            "expected an IPv4 or IPv6 address to listen on",
        ),
    ] {
        let message = refusal(table, line);
        assert!(message.contains(expected), "{line}: {message}");
        assert!(
            message.starts_with("/etc/selvage/agent.toml:2: "),
            "{line}: {message}"
        );
    }
}

#[test]
fn health_is_served_where_a_port_says_so() {
    let listen = |flags: &[&str]| load_from(&[], &[], flags).unwrap().health.listen();
    assert_eq!(listen(&["--healthz-ip", "0.0.0.0"]), None);
    assert_eq!(
        listen(&["--healthz-port", "80"]),
        "127.0.0.1:80".parse().ok()
    );
    let error = load_from(&[], &[], &["--healthz-port", "-1"]).unwrap_err();
    assert!(
        error.to_string().starts_with("flag --healthz-port: "),
        "{error}"
    );
    assert_eq!(error.exit_code(), EXIT_USAGE);
}

#[test]
fn patterns_are_found_anywhere_and_digits_are_ascii() {
    for (pattern, text, expected) in [
        ("10", "192.0.2.10", true),
        (r"^10\.", "192.0.10.1", false),
        (r"^en(p\d+)?s\d$", "enp0s3", true),
        (r"(?i)ETH", "eth0", true),
        (r"^\d$", "٣", false),
    ] {
        let found = Pattern::new(pattern).unwrap().is_match(text);
        assert_eq!(found, expected, "{pattern} in {text}");
    }
}

#[test]
fn servers_of_leases_are_hosts_and_ports() {
    let remote = |arguments: &[&str]| load_from(&[], &[], arguments).unwrap().remote;
    let none = remote(&[]);
    assert_eq!((none.servers.len(), none.network.as_str()), (0, "_"));
    assert_eq!(
        remote(&["--remote", "a:1, http://b:2/,https://c:3"]).servers,
        ["http://a:1", "http://b:2", "https://c:3"]
    );
    let tls = remote(&["--remote", "a:1,http://b:2", "--remote-cafile", "/ca"]);
    assert_eq!(tls.servers, ["https://a:1", "http://b:2"]);
    // A network that is named on this host has the same name at the server.
    let named = |more: &[&str]| {
        let arguments = [&["--remote", "a:1", "--network", "blue"], more].concat();
        remote(&arguments).network
    };
    assert_eq!(named(&[]), "blue");
    assert_eq!(named(&["--remote-network", "green"]), "green");
    for (line, expected) in [
        (
            "server = [\"a\"]",
            "remote.server = \"a\": expected HOST:PORT",
        ),
        (
            "server = \"u:hunter2@a:1\"",
            "remote.server = \"***@a:1\": expected",
        ),
        (
            "network = \"a/b\"",
            "remote.network = \"a/b\": expected _ for",
        ),
        (
            "listen = \"host\"",
            "remote.listen = \"host\": expected HOST:PORT",
        ),
        (
            "certfile = \"/c\"",
            "remote.certfile is set, but remote.keyfile is not",
        ),
        (
            "keyfile = \"/k\"",
            "remote.keyfile is set, but remote.certfile is not",
        ),
        (
            "cafile = \"/ca\"\nlisten = \":1\"",
            "remote.cafile is set, but remote.certfile is not",
        ),
        ("cafile = \"ca\"", "expected an absolute path"),
    ] {
        let message = refusal("remote", line);
        assert!(message.contains(expected), "{line}: {message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
}
