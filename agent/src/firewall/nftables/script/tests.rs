use super::*;

const RULES: Rules = Rules {
    network: ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 5, 0, 0), 16),
    subnet: ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 5, 72, 0), 24),
    masquerade: true,
    forward: true,
    random_fully: true,
};

#[test]
fn whole_table_is_one_transaction() {
    let expected = include_str!("tests/whole.nft");
    assert_eq!(Script::new(&RULES).replace(), expected);
}

#[test]
fn new_table_is_made_from_the_same_text() {
    let made = Script::new(&RULES).create();
    let (create, table) = made.split_once('\n').unwrap();
    assert!(create.starts_with("create table inet selvage { comment \"made by selvage, "));
    assert!(Script::new(&RULES).replace().ends_with(table));
}

#[test]
fn each_part_can_be_left_out() {
    let forward = Script::new(&Rules {
        masquerade: false,
        ..RULES
    });
    assert!(!forward.replace().contains("chain postrouting"));
    assert!(forward.replace().contains("chain forward"));
    let masquerade = Script::new(&Rules {
        forward: false,
        random_fully: false,
        ..RULES
    });
    assert!(!masquerade.replace().contains("chain forward"));
    assert!(!masquerade.replace().contains("fully-random"));
    let nothing = Script::new(&Rules {
        forward: false,
        masquerade: false,
        ..RULES
    });
    assert!(nothing.is_empty());
}

/// What follows the two lines that remove the old table has the form of a listing.
fn listing(rules: &Rules) -> String {
    let script = Script::new(rules).replace();
    script.split_inclusive('\n').skip(2).collect()
}

#[test]
fn own_listing_is_recognised_in_other_words() {
    let script = Script::new(&RULES);
    let listing = listing(&RULES);
    assert!(script.made(&listing));
    let reworded = listing.replace("srcnat", "100").replace(
        "meta mark & 0x00004000 == 0x00004000",
        "meta mark and 0x4000 == 0x4000",
    );
    assert!(script.made(&reworded));
}

#[test]
fn any_other_listing_is_not_ours() {
    let script = Script::new(&RULES);
    let whole = listing(&RULES);
    for line in whole.lines().filter(|line| line.contains("comment")) {
        let without = whole.replace(&format!("{line}\n"), "");
        assert!(!script.made(&without), "without {line}");
        let twice = whole.replace(line, &format!("{line}\n{line}"));
        if is_rule(line.trim()) {
            assert!(!script.made(&twice), "with twice {line}");
        }
    }
    let added = whole.replace("policy accept;\n", "policy accept;\n\t\taccept\n");
    assert!(!script.made(&added));
    let subnet = "10.5.73.0/24".parse().unwrap();
    assert!(!script.made(&listing(&Rules { subnet, ..RULES })));
    assert!(!script.made(""));
}
