use super::*;

/// From a peer's container, by the overlay device, to one behind the bridge.
fn inward() -> Packet {
    Packet {
        source: "10.5.9.2".parse().unwrap(),
        destination: "10.5.72.2".parse().unwrap(),
        from: Some("flannel.1".to_owned()),
        to: Some("docker0".to_owned()),
    }
}

/// Where the packet is dropped: the chain, and the rule if it is not the policy.
fn dropped(filter: &Filter, packet: &Packet) -> Option<String> {
    let dropped = filter.dropped(packet)?;
    let rule = dropped.rule.map(|rule| format!(": {rule}"));
    Some(format!("{}{}", dropped.chain, rule.unwrap_or_default()))
}

fn iptables(rules: &str) -> Option<String> {
    let text = format!("*filter\n:FORWARD ACCEPT [0:0]\n:INNER - [0:0]\n{rules}COMMIT\n");
    let tables = iptables::read(&text, "iptables", Ip::V4);
    dropped(&Filter { tables }, &inward())
}

#[test]
fn only_what_drops_every_such_packet_counts() {
    for (rules, expected) in [
        ("", None),
        (":FORWARD DROP [0:0]\n", Some("FORWARD")),
        ("-A FORWARD -j DROP\n", Some("FORWARD: -j DROP")),
        (
            "-A FORWARD -s 10.5.0.0/16 -j ACCEPT\n-A FORWARD -j DROP\n",
            None,
        ),
        (
            "-A FORWARD ! -s 10.5.0.0/16 -j ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-port-unreachable\n",
            Some("FORWARD: -j REJECT --reject-with icmp-port-unreachable"),
        ),
        (
            "-A FORWARD -i flannel+ -j DROP\n",
            Some("FORWARD: -i flannel+ -j DROP"),
        ),
        (
            "-A FORWARD ! -i docker0 -o docker0 -j DROP\n",
            Some("FORWARD: ! -i docker0 -o docker0 -j DROP"),
        ),
        ("-A FORWARD -i eth0 -j DROP\n", None),
        ("-A FORWARD -p udp -j DROP\n", None),
        (
            "-A FORWARD ! -p udp -j DROP\n",
            Some("FORWARD: ! -p udp -j DROP"),
        ),
        ("-A FORWARD -p tcp -m tcp --dport 80 -j DROP\n", None),
        (
            "-A FORWARD -p tcp -m multiport --dports 80,1024:65535 -j DROP\n",
            Some("FORWARD: -p tcp -m multiport --dports 80,1024:65535 -j DROP"),
        ),
        ("-A FORWARD -m conntrack --ctstate INVALID -j DROP\n", None),
        // Sets, limits and what is not known here may hold or not: doubt is for the rules.
        (
            "-A FORWARD -m set --match-set allowed src -j ACCEPT\n-A FORWARD -j DROP\n",
            None,
        ),
        (
            "-A FORWARD -m set ! --match-set allowed src -j DROP\n",
            None,
        ),
        ("-A FORWARD -m limit --limit 1/sec -j DROP\n", None),
        (
            "-A FORWARD -j NFQUEUE --queue-num 1\n-A FORWARD -j DROP\n",
            None,
        ),
        (
            "-A FORWARD -m set --match-set odd src -j DROP\n:FORWARD DROP [0:0]\n",
            Some("FORWARD"),
        ),
        // Chains.
        (
            "-A FORWARD -j INNER\n-A FORWARD -j DROP\n-A INNER -d 10.5.72.0/24 -j ACCEPT\n",
            None,
        ),
        (
            "-A FORWARD -j INNER\n-A INNER -j RETURN\n-A INNER -j DROP\n",
            None,
        ),
        (
            "-A FORWARD -g INNER\n-A FORWARD -j DROP\n-A INNER -p udp -j DROP\n",
            None,
        ),
        (
            "-A FORWARD -j INNER\n-A INNER -j DROP\n",
            Some("INNER: -j DROP"),
        ),
        ("-A FORWARD -j INNER\n-A INNER -j INNER\n", None),
        // Marks.
        (
            "-A FORWARD -j MARK --set-xmark 0x10/0x10\n-A FORWARD -m mark --mark 0x10/0x10 -j ACCEPT\n-A FORWARD -j DROP\n",
            None,
        ),
        (
            "-A FORWARD -m mark --mark 0x10/0x10 -j ACCEPT\n-A FORWARD -j LOG\n-A FORWARD -j DROP\n",
            Some("FORWARD: -j DROP"),
        ),
        (
            "-A FORWARD -m comment --comment \"! -s 1.2.3.4 -j ACCEPT\" -j DROP\n",
            Some("FORWARD: -m comment --comment \"! -s 1.2.3.4 -j ACCEPT\" -j DROP"),
        ),
    ] {
        assert_eq!(iptables(rules).as_deref(), expected, "{rules}");
    }
}

#[test]
fn a_packet_meets_the_tables_of_its_family_alone() {
    // As ufw leaves it, and Docker where it manages IPv6: packets that no rule accepts are dropped.
    let text = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -i eth9 -j ACCEPT\nCOMMIT\n";
    let by_iptables = |command, ip| iptables::read(text, command, ip);
    let by_nft = |family: &str| {
        let text = format!(
            r#"{{"nftables":[{{"table":{{"family":"{family}","name":"t","handle":1}}}},
            {{"chain":{{"family":"{family}","table":"t","name":"FORWARD","type":"filter","hook":"forward","prio":0,"policy":"drop"}}}}]}}"#
        );
        nft::read(&text).unwrap()
    };
    let v6 = Packet {
        source: "fd00:5::9:2".parse().unwrap(),
        destination: "fd00:5::72:2".parse().unwrap(),
        ..inward()
    };
    for (tables, drops_v4, drops_v6) in [
        (by_iptables("iptables", Ip::V4), true, false),
        (by_iptables("ip6tables", Ip::V6), false, true),
        (by_nft("ip"), true, false),
        (by_nft("ip6"), false, true),
        (by_nft("inet"), true, true),
    ] {
        let filter = Filter { tables };
        assert_eq!(
            dropped(&filter, &inward()).is_some(),
            drops_v4,
            "{filter:?}"
        );
        assert_eq!(dropped(&filter, &v6).is_some(), drops_v6, "{filter:?}");
    }
}

#[test]
fn an_interface_that_is_not_there_yet_is_unknown() {
    let text =
        "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD ! -i docker0 -o docker0 -j DROP\nCOMMIT\n";
    let filter = Filter {
        tables: iptables::read(text, "iptables", Ip::V4),
    };
    assert!(filter.dropped(&inward()).is_some());
    let unknown = Packet {
        to: None,
        ..inward()
    };
    assert!(filter.dropped(&unknown).is_none());
}

/// `nft -j` of one chain at the hook forward, in a table with sets.
fn nftables(policy: &str, rules: &str) -> Option<String> {
    let text = format!(
        r#"{{"nftables":[{{"metainfo":{{}}}},{{"table":{{"family":"inet","name":"t","handle":1}}}},
        {{"set":{{"family":"inet","table":"t","name":"s","elem":[{{"prefix":{{"addr":"10.5.0.0","len":16}}}},
            {{"elem":{{"val":{{"range":["192.0.2.1","192.0.2.7"]}},"timeout":9}}}}]}}}},
        {{"chain":{{"family":"inet","table":"t","name":"c","type":"filter","hook":"forward","prio":0,"policy":"{policy}"}}}},
        {{"chain":{{"family":"inet","table":"t","name":"inner"}}}}{rules}]}}"#
    );
    let tables = nft::read(&text).unwrap();
    dropped(&Filter { tables }, &inward())
}

fn rule(chain: &str, expression: &str) -> String {
    format!(
        r#",{{"rule":{{"family":"inet","table":"t","chain":"{chain}","handle":7,"expr":[{expression}]}}}}"#
    )
}

fn matches(left: &str, operator: &str, right: &str) -> String {
    format!(r#"{{"match":{{"op":"{operator}","left":{left},"right":{right}}}}}"#)
}

const SOURCE: &str = r#"{"payload":{"protocol":"ip","field":"saddr"}}"#;
const STATE: &str = r#"{"ct":{"key":"state"}}"#;
const IN: &str = r#"{"meta":{"key":"iifname"}}"#;
const DROP: &str = r#"{"drop":null}"#;
const ACCEPT: &str = r#"{"accept":null}"#;

#[test]
fn nftables_conditions_come_to_what_nft_means() {
    let held = [
        matches(SOURCE, "==", r#""@s""#),
        matches(SOURCE, "!=", r#""10.5.9.3""#),
        matches(
            SOURCE,
            "==",
            r#"{"set":["192.0.2.1",{"range":["10.5.9.0","10.5.9.9"]}]}"#,
        ),
        matches(STATE, "in", r#"["new","untracked"]"#),
        matches(STATE, "!=", r#"{"set":["established","related"]}"#),
        matches(r#"{"ct":{"key":"status"}}"#, "!=", r#""dnat""#),
        matches(IN, "==", r#"{"set":["lo","flannel*"]}"#),
        matches(r#"{"meta":{"key":"nfproto"}}"#, "==", r#""ipv4""#),
        matches(
            r#"{"meta":{"key":"l4proto"}}"#,
            "==",
            r#"{"set":["tcp","udp"]}"#,
        ),
        matches(
            r#"{"payload":{"protocol":"th","field":"dport"}}"#,
            "==",
            r#"{"range":[1024,65535]}"#,
        ),
        matches(r#"{"&":[{"meta":{"key":"mark"}},4096]}"#, "!=", "4096"),
    ];
    for condition in held {
        let rules = rule("c", &format!("{condition},{{\"counter\":null}},{DROP}"));
        let found = nftables("accept", &rules);
        assert_eq!(found.as_deref(), Some("c: handle 7"), "{condition}");
    }
    let not_held = [
        matches(SOURCE, "!=", r#""@s""#),
        matches(SOURCE, "==", r#"{"prefix":{"addr":"10.6.0.0","len":16}}"#),
        matches(
            r#"{"payload":{"protocol":"ip6","field":"saddr"}}"#,
            "!=",
            r#""fd00::1""#,
        ),
        matches(STATE, "in", r#"["invalid"]"#),
        matches(IN, "!=", r#""flannel.1""#),
        matches(
            r#"{"payload":{"protocol":"udp","field":"dport"}}"#,
            "!=",
            "53",
        ),
        matches(
            r#"{"payload":{"protocol":"tcp","field":"dport"}}"#,
            "==",
            "22",
        ),
        // What is not known may not hold.
        matches(
            r#"{"fib":{"result":"type","flags":["saddr"]}}"#,
            "==",
            r#""local""#,
        ),
        matches(
            r#"{"concat":[{"meta":{"key":"iifname"}},{"meta":{"key":"oifname"}}]}"#,
            "==",
            r#""@s""#,
        ),
        r#"{"limit":{"rate":3,"per":"second"}}"#.to_owned(),
        r#"{"xt":{"type":"match","name":"bpf"}}"#.to_owned(),
    ];
    for condition in not_held {
        let rules = rule("c", &format!("{condition},{DROP}"));
        assert_eq!(nftables("accept", &rules), None, "{condition}");
    }
}

#[test]
fn nftables_verdicts_and_policies_decide_as_in_the_kernel() {
    let jump = |kind: &str| format!(r#"{{"{kind}":{{"target":"inner"}}}}"#);
    let map = |data: &str| format!(r#"{{"vmap":{{"key":{IN},"data":{{"set":[{data}]}}}}}}"#);
    let mark =
        r#"{"mangle":{"key":{"meta":{"key":"mark"}},"value":{"|":[{"meta":{"key":"mark"}},16]}}}"#;
    let marked = matches(r#"{"&":[{"meta":{"key":"mark"}},16]}"#, "==", "16");
    for (policy, rules, expected) in [
        ("accept", String::new(), None),
        ("drop", String::new(), Some("c")),
        ("drop", rule("c", ACCEPT), None),
        (
            "drop",
            rule("c", &jump("jump")) + &rule("inner", ACCEPT),
            None,
        ),
        (
            "drop",
            rule("c", &jump("goto")) + &rule("c", ACCEPT),
            Some("c"),
        ),
        ("drop", rule("c", &jump("jump")) + &rule("c", ACCEPT), None),
        (
            "accept",
            rule(
                "c",
                r#"{"reject":{"type":"icmpx","expr":"admin-prohibited"}}"#,
            ),
            Some("c: handle 7"),
        ),
        (
            "drop",
            rule(
                "c",
                &map(&format!(r#"["lo",{DROP}],["flannel*",{ACCEPT}]"#)),
            ),
            None,
        ),
        (
            "accept",
            rule("c", &map(&format!(r#"["flannel.1",{}]"#, jump("jump")))) + &rule("inner", DROP),
            Some("inner: handle 7"),
        ),
        (
            "drop",
            rule("c", mark) + &rule("c", &format!("{marked},{ACCEPT}")),
            None,
        ),
        ("drop", rule("c", &format!("{marked},{ACCEPT}")), Some("c")),
        ("drop", rule("c", r#"{"queue":{"num":1}}"#), None),
        (
            "accept",
            rule("c", &format!(r#"{{"log":{{"prefix":"x"}}}},{DROP}"#)),
            Some("c: handle 7"),
        ),
    ] {
        assert_eq!(
            nftables(policy, &rules).as_deref(),
            expected,
            "{policy} {rules}"
        );
    }
}

#[test]
fn rubbish_is_refused_without_a_panic() {
    assert!(nft::read("{").is_err());
    for text in [
        "{}",
        "[]",
        r#"{"nftables":[{"rule":1},{"chain":{}},{"table":{"family":"ip"}}]}"#,
    ] {
        assert!(nft::read(text).unwrap().is_empty(), "{text}");
    }
}
