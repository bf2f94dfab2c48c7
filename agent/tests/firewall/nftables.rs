//! Our nftables table: what is in it, whom it wakes, and what it leaves alone.

use std::process::Command;
use std::time::{Duration, Instant};

use selvage::cluster::network_config::NetworkConfig;
use selvage::host::firewall::{Mode, Rules};
use selvage::host::privileges::Privileges;
use selvage::plan::backend::BackendConfig;

use crate::host::{Agent, Nft, dual, nothing, on_host, rules, sh, uninstall};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn applied_rules_are_listed_as_written_and_a_restart_changes_nothing() {
    on_host(Nft, || {
        for (rules, written) in [
            (
                rules(),
                include_str!("../../src/host/firewall/nftables/script/tests/whole.nft"),
            ),
            (
                Rules {
                    exclude: ["192.0.2.128/25", "2001:db8:ff::/48"]
                        .map(|net| net.parse().unwrap())
                        .into(),
                    ..dual()
                },
                include_str!("../../src/host/firewall/nftables/script/tests/dual.nft"),
            ),
        ] {
            let mut agent = Agent::new(Mode::Nftables);
            assert!(agent.ensure(&rules));
            assert!(!agent.ensure(&rules));
            let written: Vec<&str> = written.lines().skip(2).collect();
            let listing = sh("nft list table inet selvage");
            let listed: Vec<&str> = listing.lines().filter(|line| !line.is_empty()).collect();
            assert_eq!(listed, written);

            let before = sh("nft -a list ruleset");
            agent.restart();
            assert!(!agent.ensure(&rules));
            assert_eq!(sh("nft -a list ruleset"), before);
        }
    });
}

#[test]
fn other_rules_replace_the_old_ones() {
    on_host(Nft, || {
        let mut agent = Agent::new(Mode::Nftables);
        agent.ensure(&dual());
        let mut moved = rules();
        moved.v4.as_mut().unwrap().subnet = "10.5.9.0/24".parse().unwrap();
        assert!(agent.ensure(&moved));
        let listing = sh("nft list ruleset");
        assert!(listing.contains("10.5.9.0/24"), "{listing}");
        assert!(!listing.contains("10.5.72.0/24"), "{listing}");
        assert!(!listing.contains("ip6"), "{listing}");

        assert!(agent.ensure(&nothing()));
        assert_eq!(sh("nft list ruleset"), "");
        assert!(!agent.ensure(&nothing()));
    });
}

#[test]
fn flush_is_noticed_within_a_second_and_mended_without_a_loop() {
    on_host(Nft, || {
        let mut agent = Agent::new(Mode::Nftables);
        let mut watcher = agent.watch();
        agent.ensure(&rules());
        // Our own change is announced as well, once.
        assert!(agent.hears(&mut watcher));
        assert!(!agent.ensure(&rules()));

        for by_hand in [
            "nft flush ruleset",
            "nft delete table inet selvage",
            "nft flush table inet selvage",
        ] {
            // A machine that is busy for a moment is not so each time.
            let times = (0..3).map(|_| {
                let start = Instant::now();
                sh(by_hand);
                assert!(agent.hears(&mut watcher), "after {by_hand}");
                assert!(agent.ensure(&rules()), "after {by_hand}");
                let took = start.elapsed();
                assert!(agent.hears(&mut watcher), "after {by_hand}");
                assert!(!agent.ensure(&rules()), "after {by_hand}");
                let quiet = !agent.hears_within(&mut watcher, Duration::from_millis(300));
                assert!(quiet, "reading the rules announced a change");
                took
            });
            let times: Vec<_> = times.collect();
            assert!(
                times.iter().any(|took| *took < SECOND),
                "after {by_hand}: {times:?}"
            );
        }
    });
}

#[test]
fn tables_of_others_neither_wake_us_nor_are_touched() {
    on_host(Nft, || {
        let mut agent = Agent::new(Mode::Nftables);
        agent.ensure(&rules());
        let mut watcher = agent.watch();
        sh("nft 'add table ip docker; add chain ip docker nat; add rule ip docker nat accept'");
        sh("nft 'add table inet selvage2; add chain inet selvage2 forward'");
        assert!(
            !agent.hears_within(&mut watcher, SECOND / 2),
            "woken by another table"
        );

        let others = sh("nft -a list table ip docker");
        assert!(agent.clear(&[]));
        assert!(!agent.clear(&[]));
        assert_eq!(sh("nft -a list table ip docker"), others);
        assert!(!sh("nft list tables").contains("inet selvage\n"));
    });
}

#[test]
fn dropped_wait_loses_no_change() {
    on_host(Nft, || {
        let mut agent = Agent::new(Mode::Nftables);
        let mut watcher = agent.watch();
        agent.ensure(&rules());
        // Long enough to hear of it, too short to report it; unless this thread is held up meanwhile, which is no wait that
        // was dropped.
        let mut rounds = 0;
        while agent.hears_within(&mut watcher, Duration::from_millis(30)) {
            rounds += 1;
            assert!(rounds < 20, "changes are reported at once");
            sh("nft flush table inet selvage");
            agent.ensure(&rules());
        }
        assert!(agent.hears(&mut watcher));
    });
}

#[test]
fn look_that_finds_nothing_new_starts_no_program() {
    on_host(Nft, || {
        let mut agent = Agent::new(Mode::Nftables);
        agent.ensure(&rules());
        assert!(!agent.ensure(&rules()));
        uninstall("nft");
        assert!(!agent.ensure(&rules()));
        // Other rules cannot be had without it.
        let error = agent.try_ensure(&dual()).unwrap_err().to_string();
        assert!(error.contains("install nftables"), "{error}");
        // None at all can.
        agent.restart();
        assert!(!agent.ensure(&nothing()));
        assert!(!agent.clear(&[]));
    });
}

#[test]
fn firewall_works_with_the_privileges_that_are_left() {
    on_host(Nft, || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        // Twice, as in a service whose manager restricted it before: nothing is left to take, and that is fine.
        for _ in 0..2 {
            let privileges = Privileges::bare().unwrap();
            let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"alloc"}}"#;
            let config = NetworkConfig::parse(config).unwrap();
            let backend = BackendConfig::parse(&config).unwrap();
            privileges.settle(&backend).unwrap();
        }

        let status = Command::new("cat")
            .arg("/proc/self/status")
            .output()
            .unwrap();
        let status = String::from_utf8(status.stdout).unwrap();
        // CAP_NET_ADMIN is bit 12, CAP_NET_RAW bit 13.
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd"] {
            let line = status.lines().find(|line| line.starts_with(set)).unwrap();
            assert!(line.ends_with("\t0000000000003000"), "a child has {line}");
        }

        let mut agent = Agent::new(Mode::Nftables);
        let mut watcher = agent.watch();
        assert!(agent.ensure(&rules()));
        assert!(agent.hears(&mut watcher));
        assert!(agent.clear(&[]));
    });
}
