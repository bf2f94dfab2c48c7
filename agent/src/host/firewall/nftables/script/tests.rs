use super::*;

fn rules() -> Rules {
    Rules {
        v4: Some(Leased {
            network: "10.5.0.0/16".parse().unwrap(),
            subnet: "10.5.72.0/24".parse().unwrap(),
        }),
        v6: None,
        masquerade: true,
        forward: true,
        random_fully: true,
        exclude: Vec::new(),
        outside: Vec::new(),
        devices: Vec::new(),
        prefer_nftables: false,
    }
}

fn dual() -> Rules {
    Rules {
        v6: Some(Leased {
            network: "fd00:5::/48".parse().unwrap(),
            subnet: "fd00:5:0:48::/64".parse().unwrap(),
        }),
        exclude: ["192.0.2.128/25", "2001:db8:ff::/48"]
            .map(|net| net.parse().unwrap())
            .into(),
        ..rules()
    }
}

fn script(rules: &Rules) -> Script {
    Script::new("selvage", rules, false)
}

#[test]
fn whole_table_is_one_transaction() {
    let expected = include_str!("tests/whole.nft");
    assert_eq!(script(&rules()).replace(), expected);
}

#[test]
fn a_named_networks_table_has_its_name() {
    let blue = Script::new("selvage-blue", &rules(), false);
    let golden = include_str!("tests/whole.nft");
    let renamed = golden.replace("table inet selvage", "table inet selvage-blue");
    assert_eq!(blue.replace(), renamed);
    assert!(
        blue.create()
            .starts_with("create table inet selvage-blue {")
    );
    // The table of another network is not taken for this one's, though its rules may be the same.
    assert!(blue != script(&rules()));
}

#[test]
fn two_families_share_the_table_and_exclusions_come_before_masquerading() {
    let expected = include_str!("tests/dual.nft");
    assert_eq!(script(&dual()).replace(), expected);
}

#[test]
fn ipv6_alone_has_no_rule_of_ipv4() {
    let text = script(&Rules { v4: None, ..dual() }).replace();
    assert!(
        !text.contains("ip saddr") && !text.contains("ip daddr"),
        "{text}"
    );
    assert!(text.contains("ip6 saddr fd00:5:0:48::/64"), "{text}");
}

#[test]
fn dockers_own_nftables_are_told_by_a_mark_before_their_chain() {
    let text = Script::new("selvage", &rules(), true).replace();
    let marks = "\
\tchain docker {
\t\ttype filter hook forward priority filter - 1; policy accept;
\t\tip saddr 10.5.0.0/16 meta mark set meta mark | 0x00001000 comment \"from the overlay: accepted by Docker\"
\t\tip daddr 10.5.0.0/16 meta mark set meta mark | 0x00001000 comment \"to the overlay: accepted by Docker\"
\t}
";
    assert!(text.contains(marks), "{text}");
    let closed = Rules {
        forward: false,
        ..rules()
    };
    assert!(
        !Script::new("selvage", &closed, true)
            .replace()
            .contains("mark set")
    );
}

#[test]
fn new_table_is_made_from_the_same_text() {
    let made = script(&rules()).create();
    let (create, table) = made.split_once('\n').unwrap();
    assert!(create.starts_with("create table inet selvage { comment \"managed by selvage, "));
    assert!(script(&rules()).replace().ends_with(table));
}

#[test]
fn each_part_can_be_left_out() {
    let forward = script(&Rules {
        masquerade: false,
        ..rules()
    });
    assert!(!forward.replace().contains("chain postrouting"));
    assert!(forward.replace().contains("chain forward"));
    let masquerade = script(&Rules {
        forward: false,
        random_fully: false,
        ..rules()
    });
    assert!(!masquerade.replace().contains("chain forward"));
    assert!(!masquerade.replace().contains("fully-random"));
    for nothing in [
        Rules {
            forward: false,
            masquerade: false,
            ..rules()
        },
        Rules {
            v4: None,
            ..rules()
        },
    ] {
        assert!(nothing.is_empty() && script(&nothing).is_empty());
    }
}

/// What follows the two lines that remove the old table has the form of a listing.
fn listing(rules: &Rules) -> String {
    let text = script(rules).replace();
    text.split_inclusive('\n').skip(2).collect()
}

#[test]
fn own_listing_is_recognised_in_other_words() {
    let script = script(&dual());
    let listing = listing(&dual());
    assert!(script.matches(&listing));
    let reworded = listing.replace("srcnat", "100").replace(
        "meta mark & 0x00004000 == 0x00004000",
        "meta mark and 0x4000 == 0x4000",
    );
    assert!(script.matches(&reworded));
}

#[test]
fn any_other_listing_is_not_ours() {
    let script = script(&dual());
    let whole = listing(&dual());
    for line in whole.lines().filter(|line| line.contains("comment")) {
        let without = whole.replace(&format!("{line}\n"), "");
        assert!(!script.matches(&without), "without {line}");
        let twice = whole.replace(line, &format!("{line}\n{line}"));
        if is_rule(line.trim()) {
            assert!(!script.matches(&twice), "with twice {line}");
        }
    }
    let added = whole.replace("policy accept;\n", "policy accept;\n\t\taccept\n");
    assert!(!script.matches(&added));
    assert!(!script.matches(&listing(&rules())));
    assert!(!script.matches(""));
}
