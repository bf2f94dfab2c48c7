use super::*;

fn tables(names: &[(TableFamily, &str)]) -> Tables {
    let table = |(family, name): &(TableFamily, &str)| {
        ((*family, (*name).to_owned()), Attributes::default())
    };
    Tables {
        generation: Some(1),
        tables: Some(names.iter().map(table).collect()),
    }
}

#[test]
fn a_named_network_removes_its_own_table_alone() {
    let tables = tables(&[
        (TableFamily::Inet, "selvage"),
        (TableFamily::Inet, "selvage-blue"),
        (TableFamily::Ip, "flannel-ipv4"),
        // Nobody's: flannel's is of the other family.
        (TableFamily::Ip, "flannel-ipv6"),
    ]);
    let blue = "blue".parse().unwrap();
    let green = "green".parse().unwrap();
    let stale = |network, in_use| {
        let stale = Nftables::new(network).stale(&tables, in_use);
        stale.into_iter().map(|(_, name)| name).collect::<Vec<_>>()
    };
    assert_eq!(stale(None, true), ["flannel-ipv4"]);
    assert_eq!(stale(None, false), ["selvage", "flannel-ipv4"]);
    assert_eq!(stale(Some(&blue), true), [""; 0]);
    assert_eq!(stale(Some(&blue), false), ["selvage-blue"]);
    assert_eq!(stale(Some(&green), false), [""; 0]);
}

#[test]
fn unknown_tables_may_be_there_and_are_not_said_to_be() {
    let unknown = Tables::unknown();
    assert!(unknown.may_have(TableFamily::Ip, "filter"));
    assert!(!unknown.has(TableFamily::Ip, "filter"));
    let known = tables(&[(TableFamily::Ip, "nat")]);
    assert!(!known.may_have(TableFamily::Ip, "filter"));
    assert!(!known.may_have(TableFamily::Ip6, "nat"));
    assert!(known.may_have(TableFamily::Ip, "nat"));
}

/// A kernel that lists our rules as no kernel does yet must not have them written again and again.
#[test]
fn words_of_a_newer_kernel_are_learned_from_an_untouched_table() {
    let rules = ruleset::tests::rules();
    let table = Table::ours("selvage", &rules, false).unwrap();
    let strange = |word: u8| {
        let mut rule = Attributes::default();
        rule.put(99, &[word]);
        Listing {
            table: Attributes::default(),
            chains: Vec::new(),
            rules: vec![rule],
        }
    };
    let mut nftables = Nftables::new(None);
    assert!(
        !nftables.is_in_place(&table, strange(1), Some(8)),
        "not ours"
    );
    nftables.written = Some(Written {
        table: table.clone(),
        generation: 8,
        spelling: None,
    });
    assert!(!nftables.is_in_place(&table, strange(1), Some(9)), "edited");
    assert!(!nftables.is_in_place(&table, strange(1), None), "who knows");
    assert!(
        nftables.is_in_place(&table, strange(1), Some(8)),
        "as written"
    );
    assert!(nftables.is_in_place(&table, strange(1), Some(10)), "known");
    assert!(
        !nftables.is_in_place(&table, strange(2), Some(10)),
        "edited"
    );
    let other = Table::ours("selvage", &ruleset::tests::dual(), false).unwrap();
    assert!(
        !nftables.is_in_place(&other, strange(1), Some(8)),
        "other rules"
    );
}
