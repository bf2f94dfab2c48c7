use super::*;

const MAIN: Role = Role {
    main: true,
    random_fully: true,
    raw: true,
};
const OTHER: Role = Role {
    main: false,
    random_fully: true,
    raw: true,
};

fn rules() -> Rules {
    Rules {
        v4: Some(Leased {
            network: "10.5.0.0/16".parse().unwrap(),
            subnet: "10.5.72.0/24".parse().unwrap(),
        }),
        v6: Some(Leased {
            network: "fd00:5::/48".parse().unwrap(),
            subnet: "fd00:5:0:48::/64".parse().unwrap(),
        }),
        masquerade: true,
        forward: true,
        random_fully: true,
        exclude: Vec::new(),
        outside: Vec::new(),
        devices: Vec::new(),
        prefer_nftables: false,
    }
}

/// What `iptables-restore` is given on a host that is as `save` says.
fn change(save: &str, rules: &Rules, role: Role) -> Option<String> {
    let save = Save::parse(save);
    let wanted = Wanted::new(&Chains::new(None), rules, Family::V4, role, &save);
    restore(&Chains::new(None), &save, &wanted, None)
}

/// The rules as `iptables-save` prints them where there are no others.
fn saved() -> String {
    format!(
        "*nat\n:POSTROUTING ACCEPT [0:0]\n:FLANNEL-POSTRTG - [0:0]\n\
         -A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n{}COMMIT\n\
         *filter\n:FORWARD ACCEPT [0:0]\n:FLANNEL-FWD - [0:0]\n\
         -A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n{}COMMIT\n",
        chain("FLANNEL-POSTRTG"),
        chain("FLANNEL-FWD"),
    )
}

fn chain(name: &str) -> String {
    let golden = include_str!("tests/v4.rules");
    let start = format!("-A {name} ");
    let lines = golden.split_inclusive('\n');
    lines.filter(|line| line.starts_with(&start)).collect()
}

#[test]
fn rules_are_flannels_in_its_order() {
    let made = change("", &rules(), MAIN);
    assert_eq!(made.as_deref(), Some(include_str!("tests/v4.rules")));
    let nothing = Save::default();
    let v6 = Wanted::new(&Chains::new(None), &rules(), Family::V6, MAIN, &nothing);
    let made = restore(&Chains::new(None), &nothing, &v6, None);
    assert_eq!(made.as_deref(), Some(include_str!("tests/v6.rules")));
}

#[test]
fn rules_that_are_there_are_left_alone() {
    assert_eq!(change(&saved(), &rules(), MAIN), None);
}

#[test]
fn any_difference_replaces_the_chain_and_its_jump() {
    let saved = saved();
    let rule = "-A FLANNEL-POSTRTG -s 10.5.72.0/24 -d 10.5.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN\n";
    let jump = "-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n";
    let first = "-A FLANNEL-POSTRTG -m mark";
    for (what, damaged) in [
        ("rule gone", saved.replace(rule, "")),
        ("rule twice", saved.replace(rule, &rule.repeat(2))),
        (
            "rule moved",
            saved
                .replace(rule, "")
                .replace(first, &format!("{rule}{first}")),
        ),
        (
            "rule added",
            saved.replace(rule, "-A FLANNEL-POSTRTG -j ACCEPT\n"),
        ),
        ("jump gone", saved.replace(jump, "")),
        ("jump twice", saved.replace(jump, &jump.repeat(2))),
        (
            "jump behind",
            saved.replace(jump, &format!("-A POSTROUTING -j ACCEPT\n{jump}")),
        ),
        (
            "all gone",
            format!("*filter{}", saved.split_once("*filter").unwrap().1),
        ),
    ] {
        assert_ne!(damaged, saved, "{what}");
        let text = change(&damaged, &rules(), MAIN).expect(what);
        assert!(
            text.contains("*nat\n:FLANNEL-POSTRTG - [0:0]\n"),
            "{what}: {text}"
        );
        assert_eq!(
            text.matches("-D POSTROUTING").count(),
            damaged.matches(jump.trim_end()).count(),
            "{what}: {text}"
        );
        assert_eq!(
            text.matches("-I POSTROUTING 1 ").count(),
            1,
            "{what}: {text}"
        );
        assert!(!text.contains("*filter"), "{what}: {text}");
    }
}

#[test]
fn jump_goes_behind_policies_and_before_what_drops() {
    let host = "*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n:DOCKER-FORWARD - [0:0]\n:cali-FORWARD - [0:0]\n\
        -A FORWARD -m comment --comment \"cali:x\" -j cali-FORWARD\n-A FORWARD -j DOCKER-USER\n\
        -A FORWARD -j DOCKER-FORWARD\n-A FORWARD -j KUBE-FORWARD\nCOMMIT\n";
    let text = change(host, &rules(), OTHER).unwrap();
    assert!(text.contains("-I FORWARD 3 "), "{text}");

    // Another policy that moves to the front does not move us; what Docker puts there does.
    let jump = "-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n";
    let with = |order: &str| {
        let forward = saved();
        let (_, forward) = forward.split_once("*filter").unwrap();
        format!("*filter{}", forward.replace(jump, order))
    };
    for (order, in_front) in [
        (
            format!("{jump}-A FORWARD -j DOCKER-USER\n-A FORWARD -j DROP\n"),
            true,
        ),
        (
            format!("-A FORWARD -j DOCKER-USER\n-A FORWARD -j cali-FORWARD\n{jump}"),
            true,
        ),
        (
            format!("-A FORWARD -j DOCKER-USER\n-A FORWARD -j DOCKER-FORWARD\n{jump}"),
            false,
        ),
        (format!("-A FORWARD -j REJECT\n{jump}"), false),
    ] {
        let only_forward = Rules {
            masquerade: false,
            ..rules()
        };
        let changed = change(&with(&order), &only_forward, MAIN);
        let moved = changed.is_some_and(|text| text.contains("-I FORWARD"));
        assert_eq!(moved, !in_front, "{order}");
    }
}

/// `iptables -S FORWARD` of clusters with Calico and flannel: kubernetes/kops#6469 for `Append`, and Felix 3.2x, which
/// accepts at the end what its policies have marked.
#[test]
fn calico_that_comes_last_is_not_overridden() {
    let policies = "-A FORWARD -m comment --comment \"cali:wUHhoiAYhphO9Mso\" -j cali-FORWARD\n";
    let accepted = "-A FORWARD -m comment --comment \"cali:S93hcgKJrXEqnTfs\" -m comment --comment \
         \"Policy explicitly accepted packet.\" -m mark --mark 0x10000/0x10000 -j ACCEPT\n\
         -A FORWARD -m comment --comment \"cali:mp77cMpurHhyjLrM\" -j MARK --set-xmark 0x10000/0x10000\n";
    let proxy = "-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n";
    let flannel = "-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n";
    for (what, order, opens) in [
        ("appended", vec![proxy, policies], false),
        ("appended", vec![proxy, policies, accepted], false),
        (
            "appended, after us",
            vec![flannel, proxy, policies, accepted],
            false,
        ),
        ("alone", vec![policies, accepted], false),
        ("alone, after us", vec![flannel, policies, accepted], false),
        ("first", vec![policies, proxy, accepted], true),
        (
            "first, and we second",
            vec![policies, flannel, proxy, accepted],
            true,
        ),
        (
            "first, with a drop",
            vec![policies, "-A FORWARD -j DROP\n"],
            true,
        ),
        ("none", vec![proxy], true),
    ] {
        for policy in ["ACCEPT", "DROP"] {
            let rules_of_others = order.concat();
            let host = format!(
                "*filter\n:FORWARD {policy} [0:0]\n:FLANNEL-FWD - [0:0]\n:cali-FORWARD - [0:0]\n{rules_of_others}{}COMMIT\n",
                chain("FLANNEL-FWD")
            );
            for role in [MAIN, OTHER] {
                let save = Save::parse(&host);
                let wanted = Wanted::new(&Chains::new(None), &rules(), Family::V4, role, &save);
                let forward = wanted.0.iter().any(|(name, _)| name == FORWARD);
                assert_eq!(forward, opens, "{what}, {policy}");
                let text = change(&host, &rules(), role).unwrap_or_default();
                assert_eq!(text.contains("-X FLANNEL-FWD"), !opens, "{what}: {text}");
            }
        }
    }
}

#[test]
fn other_kind_of_iptables_gets_what_opens_it_and_nothing_else() {
    for (host, opened) in [
        ("", false),
        ("*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n", false),
        ("*filter\n:FORWARD DROP [0:0]\nCOMMIT\n", true),
        (
            "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j REJECT\nCOMMIT\n",
            true,
        ),
    ] {
        let text = change(host, &rules(), OTHER).unwrap_or_default();
        assert_eq!(text.contains("-I FORWARD 1 "), opened, "{host}: {text}");
        assert!(!text.contains("*nat"), "{text}");
        let closed = Rules {
            forward: false,
            ..rules()
        };
        assert_eq!(change(host, &closed, OTHER), None, "{host}");
    }
    // What was opened is closed again when nobody else is left, and its own jump does not count.
    let left = saved();
    let (_, filter) = left.split_once("*filter").unwrap();
    let text = change(&format!("*filter{filter}"), &rules(), OTHER).unwrap();
    assert!(text.contains("-X FLANNEL-FWD"), "{text}");
}

#[test]
fn overlay_passes_where_docker_drops_what_is_sent_to_containers() {
    let drop = |address: &str, rest: &str| {
        format!(
            "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -d {address} {rest} -j DROP\nCOMMIT\n"
        )
    };
    let open = "*raw\n:SELVAGE-RAW - [0:0]\n\
        -I PREROUTING 1 -m comment --comment \"selvage direct\" -j SELVAGE-RAW\n\
        -A SELVAGE-RAW -s 10.5.0.0/16 -d 10.5.72.0/24 -m comment --comment \"selvage direct\" -j ACCEPT\nCOMMIT\n";
    for (host, opened) in [
        (drop("10.5.72.2/32", "! -i docker0"), true),
        (
            drop("10.5.72.2/32", "! -i docker0 -p tcp -m tcp --dport 80"),
            true,
        ),
        (drop("10.5.72.2/32", "-i eth0"), false),
        (drop("192.0.2.7/32", "! -i docker0"), false),
        (
            "*filter\n:DOCKER-FORWARD - [0:0]\nCOMMIT\n".to_owned(),
            true,
        ),
        ("*filter\n:DOCKER-USER - [0:0]\nCOMMIT\n".to_owned(), false),
    ] {
        for role in [MAIN, OTHER] {
            let text = change(&host, &rules(), role).unwrap_or_default();
            assert_eq!(text.contains(open), opened, "{host}: {text}");
        }
    }
}

#[test]
fn no_table_raw_is_asked_of_a_kernel_that_may_have_none() {
    let role = Role { raw: false, ..MAIN };
    for (host, opened) in [
        ("*filter\n:DOCKER-FORWARD - [0:0]\nCOMMIT\n", false),
        (
            "*raw\nCOMMIT\n*filter\n:DOCKER-FORWARD - [0:0]\nCOMMIT\n",
            true,
        ),
    ] {
        let text = change(host, &rules(), role).unwrap();
        assert_eq!(text.contains("SELVAGE-RAW"), opened, "{host}: {text}");
    }
}

#[test]
fn what_is_not_wanted_goes_with_everything_that_leads_to_it() {
    let host = saved().replace(
        "*filter\n",
        "*filter\n:MINE - [0:0]\n-A MINE -s 10.0.0.0/8 -g FLANNEL-FWD\n-A MINE -j ACCEPT\n",
    );
    let save = Save::parse(&host);
    let text = restore(&Chains::new(None), &save, &Wanted::default(), None).unwrap();
    assert_eq!(
        text,
        "*filter\n:FLANNEL-FWD - [0:0]\n-D MINE -s 10.0.0.0/8 -g FLANNEL-FWD\n\
         -D FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n-X FLANNEL-FWD\nCOMMIT\n\
         *nat\n:FLANNEL-POSTRTG - [0:0]\n\
         -D POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n-X FLANNEL-POSTRTG\nCOMMIT\n"
    );
    // flannel looks for its chain in the wrong table, and makes it there.
    let wrong = Save::parse("*nat\n:FLANNEL-FWD - [0:0]\nCOMMIT\n");
    let text = restore(&Chains::new(None), &wrong, &Wanted::default(), None).unwrap();
    assert_eq!(text, "*nat\n:FLANNEL-FWD - [0:0]\n-X FLANNEL-FWD\nCOMMIT\n");
    assert_eq!(
        restore(
            &Chains::new(None),
            &Save::default(),
            &Wanted::default(),
            None
        ),
        None
    );
}

#[test]
fn each_part_can_be_left_out() {
    let none = |rules: &Rules| change("", rules, MAIN).unwrap_or_default();
    assert!(
        !none(&Rules {
            masquerade: false,
            ..rules()
        })
        .contains("nat")
    );
    assert!(
        !none(&Rules {
            forward: false,
            ..rules()
        })
        .contains("filter")
    );
    assert!(
        !none(&Rules {
            random_fully: false,
            ..rules()
        })
        .contains("random")
    );
    assert_eq!(
        none(&Rules {
            v4: None,
            ..rules()
        }),
        ""
    );
    let old = Role {
        random_fully: false,
        ..MAIN
    };
    assert!(!change("", &rules(), old).unwrap().contains("random"));
    let exclude = vec![
        "192.0.2.0/24".parse().unwrap(),
        "2001:db8::/32".parse().unwrap(),
    ];
    let text = none(&Rules { exclude, ..rules() });
    let excluded = "-A FLANNEL-POSTRTG -d 192.0.2.0/24 -m comment --comment \"flanneld masq\" -j RETURN\n\
        -A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 ";
    assert!(text.contains(excluded), "{text}");
    assert!(!text.contains("2001:db8"), "{text}");
}

#[test]
fn other_spelling_of_the_same_rules_is_learned() {
    let reworded = saved().replace("0x4000/0x4000", "16384/16384");
    let save = Save::parse(&reworded);
    let wanted = Wanted::new(&Chains::new(None), &rules(), Family::V4, MAIN, &save);
    assert!(restore(&Chains::new(None), &save, &wanted, None).is_some());
    let printed = ours(&Chains::new(None), &save);
    assert_eq!(
        restore(&Chains::new(None), &save, &wanted, Some(&printed)),
        None
    );
    let edited = Save::parse(&reworded.replace("-j RETURN", "-j ACCEPT"));
    assert!(restore(&Chains::new(None), &edited, &wanted, Some(&printed)).is_some());
}

fn of(name: &str) -> Chains {
    Chains::new(Some(&name.parse().unwrap()))
}

#[test]
fn named_networks_have_chains_of_their_own() {
    let nothing = Save::default();
    for name in ["blue", "abcdefghij"] {
        let chains = of(name);
        let wanted = Wanted::new(&chains, &rules(), Family::V4, MAIN, &nothing);
        let made = restore(&chains, &nothing, &wanted, None).unwrap();
        let golden = include_str!("tests/v4.rules")
            .replace("FLANNEL-POSTRTG", &format!("FLANNEL-POSTRTG-{name}"))
            .replace("FLANNEL-FWD", &format!("FLANNEL-FWD-{name}"));
        assert_eq!(made, golden);
        // XT_EXTENSION_MAXNAMELEN, with the NUL.
        assert!(chains.names().iter().all(|name| name.len() < 29));
    }
}

#[test]
fn networks_leave_each_others_chains_alone_and_do_not_push_each_other_down() {
    let default = saved();
    let blue = of("blue");
    let save = Save::parse(&default);
    let wanted = Wanted::new(&blue, &rules(), Family::V4, MAIN, &save);
    let added = restore(&blue, &save, &wanted, None).unwrap();
    assert!(added.contains("-I FORWARD 2 "), "{added}");
    assert!(!added.contains("FLANNEL-FWD -"), "{added}");

    // With both there, in either order, neither has anything to do.
    let both = |first: &str, second: &str| {
        let jumps = |parent: &str, base: &str, comment: &str| {
            [first, second]
                .map(|suffix| {
                    format!("-A {parent} -m comment --comment \"{comment}\" -j {base}{suffix}\n")
                })
                .concat()
        };
        let chains = |base: &str| {
            let of_blue = chain(base).replace(base, &format!("{base}-blue"));
            format!("{}{of_blue}", chain(base))
        };
        format!(
            "*nat\n:POSTROUTING ACCEPT [0:0]\n:FLANNEL-POSTRTG - [0:0]\n:FLANNEL-POSTRTG-blue - [0:0]\n{}{}COMMIT\n\
             *filter\n:FORWARD ACCEPT [0:0]\n:FLANNEL-FWD - [0:0]\n:FLANNEL-FWD-blue - [0:0]\n{}{}COMMIT\n",
            jumps("POSTROUTING", "FLANNEL-POSTRTG", "flanneld masq"),
            chains("FLANNEL-POSTRTG"),
            jumps("FORWARD", "FLANNEL-FWD", "flanneld forward"),
            chains("FLANNEL-FWD"),
        )
    };
    for text in [both("", "-blue"), both("-blue", "")] {
        let save = Save::parse(&text);
        for chains in [Chains::new(None), of("blue")] {
            let wanted = Wanted::new(&chains, &rules(), Family::V4, MAIN, &save);
            assert_eq!(restore(&chains, &save, &wanted, None), None, "{text}");
            // Their jumps are no reason to open a chain that is not ours.
            let other = Wanted::new(&chains, &rules(), Family::V4, OTHER, &save);
            assert!(other.is_empty());
            let removed = restore(&chains, &save, &Wanted::default(), None).unwrap();
            let of_both = removed.matches("-X FLANNEL-").count();
            assert_eq!(of_both, 2, "{removed}");
            let [_, postrouting, forward] = chains.names();
            assert!(
                removed.contains(&format!("-X {postrouting}\n")),
                "{removed}"
            );
            assert!(removed.contains(&format!("-X {forward}\n")), "{removed}");
        }
    }
}

/// What flannel 0.17 leaves, which had its comments already and no chains yet, as `iptables-save` prints it.
const UNCHAINED: &str = "*nat
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -o eth7 -m comment --comment \"not flanneld masq\" -j MASQUERADE
-A POSTROUTING -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN
-A POSTROUTING -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
-A POSTROUTING ! -s 10.5.0.0/16 -d 10.5.72.0/24 -m comment --comment \"flanneld masq\" -j RETURN
-A POSTROUTING ! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG-blue
COMMIT
*filter
:FORWARD ACCEPT [0:0]
-A FORWARD -s 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
-A FORWARD -d 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
COMMIT
";

#[test]
fn rules_of_a_flannel_without_chains_go_in_either_mode() {
    let mut flannels: Vec<String> = UNCHAINED
        .lines()
        .filter(|line| line.contains(" \"flanneld ") && !line.contains("-blue"))
        .map(|line| line.replacen("-A ", "-D ", 1))
        .collect();
    assert_eq!(flannels.len(), 6);
    flannels.sort();
    for role in [MAIN, OTHER] {
        let text = change(UNCHAINED, &rules(), role).unwrap();
        let mut deleted: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("-D "))
            .collect();
        deleted.sort_unstable();
        assert_eq!(deleted, flannels, "{text}");
        // They close nothing, so that nothing is to be opened.
        assert_eq!(text.contains("FLANNEL-FWD"), role.main, "{text}");
    }
    let blue = "blue".parse().unwrap();
    let chains = Chains::new(Some(&blue));
    let save = Save::parse(UNCHAINED);
    let text = restore(&chains, &save, &Wanted::default(), None);
    assert_eq!(text, None, "a named network leaves them");
}
