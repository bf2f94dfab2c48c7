use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A machine on which everything works.
fn well() -> Health {
    Health {
        agent_ready: Some(true),
        causes: Vec::new(),
        peers_answering: vec!["10.5.2.0".parse().unwrap(), "10.5.3.0".parse().unwrap()],
        underlay_answering: vec!["10.77.0.12".parse().unwrap()],
        docker_ok: Some(true),
        units_known: true,
        failed_units: Vec::new(),
        starting_units: Vec::new(),
        checks_passed: vec![site::ITSELF.to_owned(), "10-disk".to_owned()],
        checks_failed: Vec::new(),
    }
}

/// The same machine with something changed.
fn with(change: impl FnOnce(&mut Health)) -> Health {
    let mut health = well();
    change(&mut health);
    health
}

/// The agent waits because of a cause; Docker waits for the agent.
fn stuck(health: &mut Health, code: Code) {
    health.agent_ready = Some(false);
    health.causes = vec![Cause::new(code, format!("it is {code}"))];
    health.peers_answering.clear();
    health.docker_ok = Some(false);
    health.starting_units = vec!["selvage.service".to_owned()];
}

fn check(name: &str, outside: bool) -> FailedCheck {
    FailedCheck {
        name: name.to_owned(),
        why: "exit status 1".to_owned(),
        outside,
    }
}

#[derive(PartialEq, Debug)]
enum Expected {
    Good,
    Bad(FailureCode),
    Undecided(FailureCode),
}

use Expected::{Bad, Good, Undecided};

fn judged(before: &Health, now: &Health) -> Expected {
    match verdict(before, now) {
        Verdict::Good => Good,
        Verdict::Bad(concerns) => Bad(concerns[0].code),
        Verdict::Undecided(concerns) => Undecided(concerns[0].code),
    }
}

#[test]
fn what_held_before_and_fails_now_condemns() {
    for (what, now, expected) in [
        ("nothing changed", well(), Good),
        (
            "no driver for the network card",
            with(|now| stuck(now, Code::NoUnderlay)),
            Bad(FailureCode::Agent),
        ),
        (
            "no module for the overlay",
            with(|now| {
                stuck(now, Code::KernelNoModule);
                now.starting_units.clear();
            }),
            Bad(FailureCode::Agent),
        ),
        (
            "the agent does not run",
            with(|now| stuck(now, Code::NoAgent)),
            Bad(FailureCode::Agent),
        ),
        (
            "a new TLS library does not take the store's certificate",
            with(|now| stuck(now, Code::StoreTls)),
            Bad(FailureCode::Agent),
        ),
        (
            "the agent's unit is gone",
            with(|now| now.agent_ready = None),
            Bad(FailureCode::Agent),
        ),
        (
            "only one of two causes is outside",
            with(|now| {
                stuck(now, Code::StoreUnreachable);
                now.causes
                    .push(Cause::new(Code::Firewall, "nft is missing"));
            }),
            Bad(FailureCode::Agent),
        ),
        (
            "packets no longer leave: neither store nor hosts answer",
            with(|now| {
                stuck(now, Code::StoreUnreachable);
                now.underlay_answering.clear();
            }),
            Bad(FailureCode::Agent),
        ),
        (
            "this host's own etcd fails",
            with(|now| {
                stuck(now, Code::StoreUnreachable);
                now.failed_units = vec!["etcd.service".to_owned()];
            }),
            Bad(FailureCode::Agent),
        ),
        (
            "the overlay carries nothing although peers are there",
            with(|now| now.peers_answering.clear()),
            Bad(FailureCode::Overlay),
        ),
        (
            "Docker does not start",
            with(|now| now.docker_ok = Some(false)),
            Bad(FailureCode::Docker),
        ),
        (
            "Docker is gone",
            with(|now| now.docker_ok = None),
            Bad(FailureCode::Docker),
        ),
        (
            "a unit fails",
            with(|now| now.failed_units = vec!["systemd-sysctl.service".to_owned()]),
            Bad(FailureCode::FailedUnit),
        ),
        (
            "a unit hangs",
            with(|now| now.starting_units = vec!["mine.service".to_owned()]),
            Bad(FailureCode::HungUnit),
        ),
        (
            "systemd does not answer",
            with(|now| now.units_known = false),
            Bad(FailureCode::HungUnit),
        ),
        (
            "a site's check fails",
            with(|now| now.checks_failed = vec![check("10-disk", false)]),
            Bad(FailureCode::SiteCheck),
        ),
    ] {
        assert_eq!(judged(&well(), &now), expected, "{what}");
    }
}

#[test]
fn what_is_no_fault_of_the_version_does_not_condemn() {
    for (what, before, now, expected) in [
        (
            "the store is down for everybody",
            well(),
            with(|now| stuck(now, Code::StoreUnreachable)),
            Undecided(FailureCode::Agent),
        ),
        (
            "the store was down before, and is still",
            with(|before| {
                before.agent_ready = Some(false);
                before.causes = vec![Cause::new(Code::StoreUnreachable, "no answer")];
            }),
            with(|now| stuck(now, Code::StoreUnreachable)),
            Undecided(FailureCode::Agent),
        ),
        (
            "somebody removed the network config meanwhile",
            well(),
            with(|now| stuck(now, Code::NoNetworkConfig)),
            Undecided(FailureCode::Agent),
        ),
        (
            "all subnets are leased meanwhile",
            well(),
            with(|now| stuck(now, Code::OutOfSubnets)),
            Undecided(FailureCode::Agent),
        ),
        (
            "the only peers are down",
            well(),
            with(|now| {
                now.peers_answering.clear();
                now.underlay_answering.clear();
            }),
            Undecided(FailureCode::Overlay),
        ),
        (
            "another peer answers",
            well(),
            with(|now| now.peers_answering = vec!["10.5.9.0".parse().unwrap()]),
            Good,
        ),
        (
            "no peer answered before",
            with(|before| before.peers_answering.clear()),
            with(|now| now.peers_answering.clear()),
            Good,
        ),
        (
            "Docker was broken before",
            with(|before| before.docker_ok = Some(false)),
            with(|now| now.docker_ok = Some(false)),
            Undecided(FailureCode::Docker),
        ),
        (
            "a unit failed before and fails again",
            with(|before| before.failed_units = vec!["flaky.service".to_owned()]),
            with(|now| now.failed_units = vec!["flaky.service".to_owned()]),
            Good,
        ),
        (
            "a site's check failed before",
            with(|before| {
                before.checks_passed.clear();
                before.checks_failed = vec![check("10-disk", false)];
            }),
            with(|now| now.checks_failed = vec![check("10-disk", false)]),
            Undecided(FailureCode::SiteCheck),
        ),
        (
            "the site's checks could not be read before, or nobody looked",
            with(|before| before.checks_passed.clear()),
            with(|now| now.checks_failed = vec![check(site::ITSELF, false)]),
            Undecided(FailureCode::SiteCheck),
        ),
        (
            "a site's check is new",
            well(),
            with(|now| now.checks_failed = vec![check("20-new", false)]),
            Undecided(FailureCode::SiteCheck),
        ),
        (
            "a site's check says that the cause is outside",
            well(),
            with(|now| now.checks_failed = vec![check("10-disk", true)]),
            Undecided(FailureCode::SiteCheck),
        ),
        (
            "no agent and no Docker are enabled, before and now",
            with(|before| {
                before.agent_ready = None;
                before.docker_ok = None;
                before.peers_answering.clear();
            }),
            with(|now| {
                now.agent_ready = None;
                now.docker_ok = None;
            }),
            Good,
        ),
    ] {
        assert_eq!(judged(&before, &now), expected, "{what}");
    }
}

#[test]
fn the_first_concern_is_the_one_that_condemns() {
    let before = with(|before| before.docker_ok = Some(false));
    let now = with(|now| {
        now.docker_ok = Some(false);
        now.failed_units = vec!["a.service".to_owned()];
    });
    let verdict = verdict(&before, &now);
    let texts: Vec<String> = verdict.concerns().iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "a.service failed",
            "Docker does not answer (also before the update)"
        ]
    );
}

#[test]
fn only_units_that_are_starting_are_waited_for_until_the_end() {
    let starting = |now: &mut Health| now.starting_units = vec!["mine.service".to_owned()];
    let only_hangs = |now: &Health| verdict(&well(), now).only_hangs();
    assert!(only_hangs(&with(starting)));
    assert!(!only_hangs(&well()), "there is nothing to wait for");
    let failed = |now: &mut Health| {
        starting(now);
        now.docker_ok = Some(false);
    };
    assert!(!only_hangs(&with(failed)));
    assert!(!only_hangs(&with(|now| now.units_known = false)));
}

fn addresses() -> impl Strategy<Value = Vec<std::net::IpAddr>> {
    vec(
        (1..5u8).prop_map(|host| std::net::Ipv4Addr::new(10, 5, host, 0).into()),
        0..3,
    )
}

fn units() -> impl Strategy<Value = Vec<String>> {
    vec(
        prop::sample::select(vec!["etcd.service", "docker.service", "mine.service"])
            .prop_map(str::to_owned),
        0..3,
    )
}

fn causes() -> impl Strategy<Value = Vec<Cause>> {
    let code = prop::sample::select(Code::ALL.to_vec());
    vec(code.prop_map(|code| Cause::new(code, "a reason")), 0..3)
}

prop_compose! {
    fn health()(
        agent_ready in any::<Option<bool>>(),
        causes in causes(),
        peers_answering in addresses(),
        underlay_answering in addresses(),
        docker_ok in any::<Option<bool>>(),
        units_known in any::<bool>(),
        failed_units in units(),
        starting_units in units(),
        passed in prop::sample::subsequence(vec!["a", "b", "c"], 0..3),
        failing in prop::sample::subsequence(vec!["a", "b", "c"], 0..3),
        outside in any::<bool>(),
    ) -> Health {
        Health {
            causes: if agent_ready == Some(false) { causes } else { Vec::new() },
            agent_ready,
            peers_answering,
            underlay_answering,
            docker_ok,
            failed_units: if units_known { failed_units } else { Vec::new() },
            starting_units: if units_known { starting_units } else { Vec::new() },
            units_known,
            checks_passed: passed.iter().filter(|name| !failing.contains(name)).map(ToString::to_string).collect(),
            checks_failed: failing.into_iter().map(|name| check(name, outside)).collect(),
        }
    }
}

fn is_bad(before: &Health, now: &Health) -> bool {
    matches!(verdict(before, now), Verdict::Bad(_))
}

proptest! {
    #[test]
    fn a_machine_that_is_as_it_was_is_never_condemned(health in health()) {
        prop_assert!(!is_bad(&health, &health));
    }

    #[test]
    fn a_check_that_failed_before_never_condemns(before in health(), now in health()) {
        let concerns = |now: &Health| match verdict(&before, now) {
            Verdict::Bad(concerns) => concerns,
            _ => Vec::new(),
        };
        for concern in concerns(&now) {
            if concern.blame != Blame::ThisVersion {
                continue;
            }
            let failed_before = match concern.code {
                FailureCode::Agent => before.agent_ready != Some(true),
                FailureCode::Overlay => before.peers_answering.is_empty(),
                FailureCode::Docker => before.docker_ok != Some(true),
                FailureCode::FailedUnit => before.failed_units.contains(concern.object.as_ref().unwrap()),
                FailureCode::HungUnit => concern.object.as_ref().is_some_and(|unit| before.starting_units.contains(unit)),
                FailureCode::SiteCheck => before.checks_failed.iter().any(|check| Some(&check.name) == concern.object.as_ref()),
                _ => true,
            };
            let units = [FailureCode::FailedUnit, FailureCode::HungUnit];
            prop_assert!(before.units_known || !units.contains(&concern.code), "{concern:?}");
            prop_assert!(!failed_before, "{concern:?}");
        }
    }

    /// Whatever follows from it: Docker that waits, units that fail or hang, peers that are not programmed, site checks.
    #[test]
    fn a_store_that_is_down_for_everybody_never_condemns(before in health(), after in health()) {
        let now = Health {
            agent_ready: Some(false),
            causes: vec![Cause::new(Code::StoreUnreachable, "no server answers")],
            // Hosts are still there, and so is whatever is enabled.
            underlay_answering: before.underlay_answering.clone(),
            docker_ok: before.docker_ok.map(|_| after.docker_ok.unwrap_or_default()),
            failed_units: after.failed_units.iter().filter(|unit| !OWN_STORE.contains(&unit.as_str())).cloned().collect(),
            ..after
        };
        prop_assert!(!is_bad(&before, &now));
    }

    #[test]
    fn who_does_not_know_how_it_was_condemns_nothing(now in health()) {
        prop_assert!(!is_bad(&Health::default(), &now));
    }

    #[test]
    fn what_is_well_is_good_whatever_was_before(before in health()) {
        let now = Health { checks_passed: vec!["a".to_owned()], ..well() };
        prop_assert_eq!(verdict(&before, &now), Verdict::Good);
    }
}
