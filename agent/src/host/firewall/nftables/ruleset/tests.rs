use super::*;

pub(in super::super) fn rules() -> Rules {
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

pub(in super::super) fn dual() -> Rules {
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

fn table(rules: &Rules) -> Table {
    Table::ours("selvage", rules, false).unwrap()
}

fn chain<'t>(table: &'t Table, name: &str) -> Option<&'t Chain> {
    table.chains.iter().find(|chain| chain.name == name)
}

fn all(table: &Table) -> impl Iterator<Item = &Rule> {
    table.chains.iter().flat_map(|chain| &chain.rules)
}

#[test]
fn ipv6_alone_has_no_rule_of_ipv4() {
    let table = table(&Rules { v4: None, ..dual() });
    for condition in all(&table).flat_map(|rule| &rule.matches) {
        let (Match::From(net) | Match::NotFrom(net) | Match::To(net) | Match::NotTo(net)) =
            condition
        else {
            continue;
        };
        assert!(matches!(net, IpNet::V6(_)), "{condition:?}");
    }
    assert_eq!(all(&table).count(), 2 + 1 + 6);
}

#[test]
fn exclusions_come_before_masquerading() {
    let table = table(&dual());
    let rules = &chain(&table, "postrouting").unwrap().rules;
    let masquerade = Action::Masquerade { fully_random: true };
    let v4 = |rule: &Rule, net: &str| rule.matches.contains(&Match::To(net.parse().unwrap()));
    let excluded = rules.iter().position(|rule| v4(rule, "192.0.2.128/25"));
    let first = rules.iter().position(|rule| rule.action == masquerade);
    assert!(excluded.is_some() && excluded < first);
}

#[test]
fn dockers_own_nftables_are_told_by_a_mark_before_their_chain() {
    let table = Table::ours("selvage", &rules(), true).unwrap();
    let docker = &table.chains[0];
    assert_eq!((docker.name, docker.hook.priority), ("docker", -1));
    let actions = docker.rules.iter().map(|rule| rule.action);
    assert!(actions.eq([Action::Mark(0x1000); 2]));
    let closed = Rules {
        forward: false,
        ..rules()
    };
    let closed = Table::ours("selvage", &closed, true).unwrap();
    assert!(chain(&closed, "docker").is_none());
}

#[test]
fn each_part_can_be_left_out() {
    let forward = table(&Rules {
        masquerade: false,
        ..rules()
    });
    assert!(chain(&forward, "postrouting").is_none());
    assert!(chain(&forward, "forward").is_some());
    let masquerade = table(&Rules {
        forward: false,
        random_fully: false,
        ..rules()
    });
    assert!(chain(&masquerade, "forward").is_none());
    let random = Action::Masquerade { fully_random: true };
    assert!(all(&masquerade).all(|rule| rule.action != random));
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
        assert!(nothing.is_empty() && Table::ours("selvage", &nothing, false).is_none());
    }
}

#[test]
fn flannel_gets_a_table_for_each_family() {
    let tables = Table::flannels(&dual(), false);
    let names = tables
        .iter()
        .map(|table| (table.family, table.name.as_str()));
    assert!(names.eq([
        (TableFamily::Ip, "flannel-ipv4"),
        (TableFamily::Ip6, "flannel-ipv6"),
    ]));
    for table in &tables {
        assert!(chain(table, "forward").is_some() && chain(table, "postrtg").is_some());
        assert_eq!(all(table).count(), 2 + 7);
    }
}
