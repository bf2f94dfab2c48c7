use proptest::prelude::*;

use super::super::ruleset::tests::{dual, rules};
use super::*;

/// A rule as `nft`'s own words for it, the expressions that kernel 6.18 lists for it, and what it says of a source.
type Sample = (
    &'static str,
    &'static str,
    Option<(&'static str, &'static str)>,
);

/// Rules as firewalld writes them, made by nft 1.0.6.
#[rustfmt::skip]
const SAMPLES: [Sample; 9] = [
    (
        "ip saddr 10.5.0.0/16 goto filter_FWD_trusted",
        "\
24000100090001006d6574610000000014000200080002000000000f08000100000000012c00010008000100636d7000\
20000200080001000000000108000200000000000c0003000500010002000000340001000c0001007061796c6f616400\
2400020008000100000000010800020000000001080003000000000c08000400000000022c00010008000100636d7000\
20000200080001000000000108000200000000000c000300060001000a050000480001000e000100696d6d6564696174\
65000000340002000800010000000000280002002400020008000100fffffffc1700020066696c7465725f4657445f74\
7275737465640000",
        Some(("10.5.0.0/16", "filter_FWD_trusted")),
    ),
    (
        "ip6 saddr fd00:5::/48 goto filter_FWD_trusted",
        "\
24000100090001006d6574610000000014000200080002000000000f08000100000000012c00010008000100636d7000\
20000200080001000000000108000200000000000c000300050001000a000000340001000c0001007061796c6f616400\
2400020008000100000000010800020000000001080003000000000808000400000000063000010008000100636d7000\
2400020008000100000000010800020000000000100003000a000100fd00000500000000480001000e000100696d6d65\
6469617465000000340002000800010000000000280002002400020008000100fffffffc1700020066696c7465725f46\
57445f747275737465640000",
        Some(("fd00:5::/48", "filter_FWD_trusted")),
    ),
    (
        "ip saddr 10.16.0.0/12 jump filter_FWD_trusted_dispatch_stage2",
        "\
24000100090001006d6574610000000014000200080002000000000f08000100000000012c00010008000100636d7000\
20000200080001000000000108000200000000000c0003000500010002000000340001000c0001007061796c6f616400\
2400020008000100000000010800020000000001080003000000000c08000400000000044c0001000c00010062697477\
697365003c00020008000100000000010800020000000001080003000000000408000600000000000c00040008000100\
fff000000c00050008000100000000002c00010008000100636d70002000020008000100000000010800020000000000\
0c000300080001000a100000580001000e000100696d6d65646961746500000044000200080001000000000038000200\
3400020008000100fffffffd2700020066696c7465725f4657445f747275737465645f64697370617463685f73746167\
65320000",
        Some(("10.16.0.0/12", "filter_FWD_trusted_dispatch_stage2")),
    ),
    (
        "ip saddr 10.7.0.1 counter goto filter_FWD_trusted",
        "\
24000100090001006d6574610000000014000200080002000000000f08000100000000012c00010008000100636d7000\
20000200080001000000000108000200000000000c0003000500010002000000340001000c0001007061796c6f616400\
2400020008000100000000010800020000000001080003000000000c08000400000000042c00010008000100636d7000\
20000200080001000000000108000200000000000c000300080001000a0700012c0001000c000100636f756e74657200\
1c0002000c00010000000000000000000c0002000000000000000000480001000e000100696d6d656469617465000000\
340002000800010000000000280002002400020008000100fffffffc1700020066696c7465725f4657445f7472757374\
65640000",
        Some(("10.7.0.1/32", "filter_FWD_trusted")),
    ),
    (
        "ip saddr != 10.5.0.0/16 goto filter_FWD_trusted",
        "\
24000100090001006d6574610000000014000200080002000000000f08000100000000012c00010008000100636d7000\
20000200080001000000000108000200000000000c0003000500010002000000340001000c0001007061796c6f616400\
2400020008000100000000010800020000000001080003000000000c08000400000000022c00010008000100636d7000\
20000200080001000000000108000200000000010c000300060001000a050000480001000e000100696d6d6564696174\
65000000340002000800010000000000280002002400020008000100fffffffc1700020066696c7465725f4657445f74\
7275737465640000",
        None,
    ),
    (
        "ip daddr 10.5.0.0/16 goto filter_FWD_trusted",
        "\
24000100090001006d6574610000000014000200080002000000000f08000100000000012c00010008000100636d7000\
20000200080001000000000108000200000000000c0003000500010002000000340001000c0001007061796c6f616400\
2400020008000100000000010800020000000001080003000000001008000400000000022c00010008000100636d7000\
20000200080001000000000108000200000000000c000300060001000a050000480001000e000100696d6d6564696174\
65000000340002000800010000000000280002002400020008000100fffffffc1700020066696c7465725f4657445f74\
7275737465640000",
        None,
    ),
    (
        "ip saddr 10.5.0.0/16 tcp dport 22 goto filter_FWD_trusted",
        "\
24000100090001006d6574610000000014000200080002000000000f08000100000000012c00010008000100636d7000\
20000200080001000000000108000200000000000c0003000500010002000000340001000c0001007061796c6f616400\
2400020008000100000000010800020000000001080003000000000c08000400000000022c00010008000100636d7000\
20000200080001000000000108000200000000000c000300060001000a05000024000100090001006d65746100000000\
14000200080002000000001008000100000000012c00010008000100636d700020000200080001000000000108000200\
000000000c0003000500010006000000340001000c0001007061796c6f61640024000200080001000000000108000200\
00000002080003000000000208000400000000022c00010008000100636d700020000200080001000000000108000200\
000000000c0003000600010000160000480001000e000100696d6d656469617465000000340002000800010000000000\
280002002400020008000100fffffffc1700020066696c7465725f4657445f747275737465640000",
        None,
    ),
    (
        "ip saddr 10.5.0.0/16 accept",
        "\
24000100090001006d6574610000000014000200080002000000000f08000100000000012c00010008000100636d7000\
20000200080001000000000108000200000000000c0003000500010002000000340001000c0001007061796c6f616400\
2400020008000100000000010800020000000001080003000000000c08000400000000022c00010008000100636d7000\
20000200080001000000000108000200000000000c000300060001000a050000300001000e000100696d6d6564696174\
650000001c0002000800010000000000100002000c0002000800010000000001",
        None,
    ),
    (
        r#"iifname "eth0" goto filter_FWD_trusted"#,
        "\
24000100090001006d6574610000000014000200080002000000000608000100000000013800010008000100636d7000\
2c0002000800010000000001080002000000000018000300140001006574683000000000000000000000000048000100\
0e000100696d6d656469617465000000340002000800010000000000280002002400020008000100fffffffc17000200\
66696c7465725f4657445f747275737465640000",
        None,
    ),
];

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}

fn rule_of(expressions: &[u8]) -> Attributes {
    let mut rule = Attributes::default();
    rule.put(NFTA_RULE_EXPRESSIONS, expressions);
    rule
}

#[test]
fn sources_are_read_from_the_rules_of_others() {
    for (text, expressions, expected) in SAMPLES {
        let found = branch(&rule_of(&unhex(expressions)));
        let expected = expected.map(|(net, chain)| (net.parse().unwrap(), chain.to_owned()));
        assert_eq!(found, expected, "{text}");
    }
}

/// What is sent for a table, with what the kernel adds.
fn sent(table: &Table) -> Listing {
    let number = |kind, number| {
        let mut attributes = Attributes::default();
        attributes.put_number(kind, number);
        attributes
    };
    let uses = u32::try_from(table.chains.len()).unwrap();
    let mut listed = number(NFTA_TABLE_USE, uses);
    listed.put_number(NFTA_TABLE_FLAGS, 0);
    let mut listing = Listing {
        table: listed,
        chains: Vec::new(),
        rules: Vec::new(),
    };
    for chain in &table.chains {
        // NFTA_CHAIN_HANDLE and NFTA_CHAIN_FLAGS.
        let mut attributes = number(2, 5);
        attributes.put_number(10, 1);
        chain.encode(&mut attributes);
        listing.chains.push(attributes);
        for rule in &chain.rules {
            let mut attributes = number(3, 8);
            attributes.put_text(NFTA_RULE_CHAIN, chain.name);
            rule.encode(table.family, &mut attributes);
            listing.rules.push(attributes);
        }
    }
    listing
}

/// The kernel's listing of a table: without the flags that say what is nested.
fn listing(table: &Table) -> Listing {
    let mut listing = sent(table);
    for attributes in listing.chains.iter_mut().chain(&mut listing.rules) {
        *attributes = unflagged(attributes);
    }
    listing
}

fn unflagged(sent: &Attributes) -> Attributes {
    let mut listed = Attributes::default();
    for (kind, is_nested, value) in flagged_attributes(sent.as_bytes()) {
        match is_nested {
            true => listed.put(kind, unflagged(&Attributes::of(value)).as_bytes()),
            false => listed.put(kind, value),
        }
    }
    listed
}

fn table(rules: &crate::host::firewall::Rules) -> Table {
    Table::ours("selvage", rules, false).unwrap()
}

#[test]
fn a_listing_of_ours_is_recognised_and_no_other() {
    let wanted = table(&dual());
    let whole = || listing(&wanted);
    assert!(whole().shows(&wanted));
    assert!(!listing(&table(&rules())).shows(&wanted));
    for at in 0..whole().rules.len() {
        let mut without = whole();
        let rule = without.rules.remove(at);
        assert!(!without.shows(&wanted), "without rule {at}");
        let mut twice = whole();
        twice.rules.insert(at, rule);
        assert!(!twice.shows(&wanted), "with rule {at} twice");
    }
    let mut swapped = whole();
    let last = swapped.rules.len() - 1;
    swapped.rules.swap(last, last - 1);
    assert!(!swapped.shows(&wanted), "in another order");
}

/// Where the values are that have no attributes in them. The padding between attributes means nothing.
fn values(sent: &[u8], start: usize) -> Vec<usize> {
    let mut positions = Vec::new();
    let mut at = 0;
    for (_, is_nested, value) in flagged_attributes(sent) {
        let begin = start + at + 4;
        match is_nested {
            true => positions.extend(values(value, begin)),
            false => positions.extend(begin..begin + value.len()),
        }
        at += 4 + value.len().next_multiple_of(4);
    }
    positions
}

fn changed(attributes: &Attributes, at: usize) -> Attributes {
    let mut bytes = attributes.as_bytes().to_vec();
    bytes[at] ^= 1;
    Attributes::of(&bytes)
}

#[test]
fn every_changed_byte_of_a_rule_or_a_chain_is_found() {
    let wanted = table(&dual());
    let sent = sent(&wanted);
    let whole = listing(&wanted);
    for (index, rule) in whole.rules.iter().enumerate() {
        // The first attribute is the handle.
        for at in values(sent.rules[index].as_bytes(), 0).split_off(4) {
            let mut edited = listing(&wanted);
            edited.rules[index] = changed(rule, at);
            assert!(!edited.shows(&wanted), "rule {index}, byte {at}");
        }
    }
    for (index, chain) in whole.chains.iter().enumerate() {
        // The first two are what `sent` adds.
        for at in values(sent.chains[index].as_bytes(), 0).split_off(8) {
            let mut edited = listing(&wanted);
            edited.chains[index] = changed(chain, at);
            assert!(!edited.shows(&wanted), "chain {index}, byte {at}");
        }
    }
}

#[test]
fn what_newer_kernels_add_is_no_edit_unless_it_means_something() {
    let mut sent = Attributes::default();
    sent.nest(1, |nested| nested.put_number(2, 7));
    for (added, expected) in [(0, true), (1, false)] {
        let mut listed = Attributes::default();
        listed.put_nested(1, &{
            let mut nested = Attributes::default();
            nested.put_number(2, 7);
            nested.put_number(6, added);
            nested
        });
        let same = |others| covers(sent.as_bytes(), listed.as_bytes(), others);
        assert_eq!(same(Others::MustBeZero), expected);
        assert!(same(Others::Allowed));
    }
}

#[test]
fn another_object_in_the_table_or_a_table_that_sleeps_is_found() {
    let wanted = table(&rules());
    for (kind, number) in [
        (NFTA_TABLE_USE, 3),
        (NFTA_TABLE_USE, 1),
        (NFTA_TABLE_FLAGS, 1),
    ] {
        let mut edited = listing(&wanted);
        let mut first = Attributes::default();
        first.put_number(kind, number);
        let rest = edited.table.as_bytes();
        edited.table = Attributes::of(&[first.as_bytes(), rest].concat());
        assert!(!edited.shows(&wanted), "{kind}: {number}");
    }
}

proptest! {
    #[test]
    fn no_rule_of_others_makes_the_reader_panic(
        sample in 0..SAMPLES.len(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = unhex(SAMPLES[sample].1);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = branch(&rule_of(&bytes));
        bytes.truncate(at);
        let _ = branch(&rule_of(&bytes));
    }
}
