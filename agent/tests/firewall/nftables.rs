//! Our nftables table: what is in it, whom it wakes, and what it leaves alone.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use selvage::base::logging::chain;
use selvage::cluster::network_config::NetworkConfig;
use selvage::host::firewall::{Mode, Rules};
use selvage::host::privileges::Privileges;
use selvage::plan::backend::BackendConfig;

use crate::host::{Agent, Nft, dual, nothing, on_host, rules, sh, uninstall};

const SECOND: Duration = Duration::from_secs(1);

/// Rules with every expression that the agent can write but Docker's mark.
fn outside() -> Rules {
    Rules {
        exclude: ["198.51.100.0/22", "2001:db8:f0::/44", "203.0.113.7/32"]
            .map(|net| net.parse().unwrap())
            .into(),
        outside: ["10.5.99.0/25", "10.5.3.4/32", "fd00:5:0:63::/63"]
            .map(|net| net.parse().unwrap())
            .into(),
        devices: ["flannel.1", "flannel-v6.1"]
            .map(|device| device.parse().unwrap())
            .into(),
        random_fully: false,
        ..dual()
    }
}

/// The rules of a case, and the table as `nft list` shows it.
fn golden() -> [(Rules, &'static str); 3] {
    let excluded = Rules {
        exclude: ["192.0.2.128/25", "2001:db8:ff::/48"]
            .map(|net| net.parse().unwrap())
            .into(),
        ..dual()
    };
    [
        (rules(), include_str!("nftables/whole.nft")),
        (excluded, include_str!("nftables/dual.nft")),
        (outside(), include_str!("nftables/outside.nft")),
    ]
}

fn listed() -> String {
    let listing = sh("nft list table inet selvage");
    let lines = listing.split_inclusive('\n');
    lines.filter(|line| *line != "\n").collect()
}

#[test]
fn applied_rules_are_listed_as_written_and_a_restart_changes_nothing() {
    on_host(Nft, || {
        for (rules, expected) in golden() {
            let mut agent = Agent::new(Mode::Nftables);
            assert!(agent.ensure(&rules));
            assert!(!agent.ensure(&rules));
            assert_eq!(listed(), expected);

            let before = sh("nft -a list ruleset");
            agent.restart();
            assert!(!agent.ensure(&rules));
            assert_eq!(sh("nft -a list ruleset"), before);
        }
    });
}

/// The expressions and the user data are the very ones that `nft` makes of the same text: so we take its rules for ours,
/// such as those of an agent that still wrote them with `nft`.
#[test]
fn nfts_own_bytes_for_the_same_text_are_ours() {
    on_host(Nft, || {
        // What `nft` prints for each rule when it reads it back: registers, offsets, values, comments.
        let expressions = || sh("nft --debug=netlink list table inet selvage");
        for (rules, text) in golden() {
            let mut agent = Agent::new(Mode::Nftables);
            agent.ensure(&rules);
            let ours = expressions();
            assert!(ours.contains("[ payload load"), "{ours}");
            sh(&format!(
                "nft delete table inet selvage; nft -f - <<'END'\n{text}END"
            ));
            assert_eq!(without_handles(&expressions()), without_handles(&ours));
            assert!(!agent.ensure(&rules), "{text}");
            agent.restart();
            assert!(!agent.ensure(&rules), "{text}");
        }
    });
}

/// `nft --debug=netlink` numbers the rules by their handles: `inet selvage forward 2`, with the previous one's after it.
fn without_handles(expressions: &str) -> String {
    let lines = expressions.lines();
    let lines = lines.map(|line| match line.strip_prefix("inet selvage ") {
        Some(rule) => rule.split(' ').next().unwrap_or_default(),
        None => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Programs that change the ruleset as long as this lives.
struct Others(Child);

impl Others {
    fn start() -> Self {
        let change = "nft add rule ip others c accept; do nft flush chain ip others c";
        let others = Command::new("sh")
            .args(["-c", &format!("while {change}; done")])
            .process_group(0)
            .spawn();
        Self(others.unwrap())
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        if let Ok(group) = i32::try_from(self.0.id()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _ = self.0.wait();
    }
}

/// A ruleset that changes all the time (kube-proxy's, with a thousand services): the kernel refuses what rests on an
/// old generation (google/nftables#325), and the agent's rules are right all the same.
#[test]
fn changes_of_others_between_look_and_change_are_noticed() {
    on_host(Nft, || {
        sh("nft add table ip others; nft add chain ip others c");
        let others = Others::start();
        let mut agent = Agent::new(Mode::Nftables);
        for _ in 0..100 {
            for rules in [rules(), dual()] {
                assert!(agent.ensure(&rules));
            }
        }
        drop(others);
        assert!(!agent.ensure(&dual()));
        assert!(agent.ensure(&rules()));
        assert_eq!(listed(), include_str!("nftables/whole.nft"));
    });
}

/// All of it is one datagram, and one answer comes back, however many rules there are (siderolabs/talos#14001: no buffer
/// space for ever once the rules exceed the defaults).
#[test]
fn thousands_of_rules_are_one_transaction() {
    on_host(Nft, || {
        let many = |count: u32| Rules {
            exclude: (0..count)
                .map(|number| IpNet::from(IpAddr::from(Ipv4Addr::from(0x0b00_0000 + number))))
                .collect(),
            ..rules()
        };
        let mut agent = Agent::new(Mode::Nftables);
        for count in [5000, 4999] {
            assert!(agent.ensure(&many(count)));
            assert!(!agent.ensure(&many(count)));
            let generation = sh("nft --json list tables");
            agent.restart();
            assert!(!agent.ensure(&many(count)));
            assert_eq!(sh("nft --json list tables"), generation);
        }
    });
}

/// A table that another process owns (`flags owner`): the kernel refuses us, and says so.
#[test]
fn refusal_names_the_deed_and_the_reason_and_changes_nothing() {
    on_host(Nft, || {
        let mut owner = Command::new("nft")
            .arg("-i")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = owner.stdin.take().unwrap();
        input
            .write_all(b"add table inet selvage { flags owner; }\n")
            .unwrap();
        let start = Instant::now();
        while !sh("nft list tables").contains("selvage") {
            assert!(start.elapsed() < 20 * SECOND, "nft makes no table");
        }
        let before = sh("nft list ruleset");
        let mut agent = Agent::new(Mode::Nftables);
        let error = chain(&agent.try_ensure(&rules()).unwrap_err());
        assert_eq!(
            error,
            "the kernel refused to replace the agent's table: EPERM: Operation not permitted"
        );
        assert_eq!(sh("nft list ruleset"), before);
        // Its table goes with it.
        drop(input);
        owner.wait().unwrap();
        assert!(agent.ensure(&rules()));
        assert!(!agent.ensure(&rules()));
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
fn nothing_needs_nft() {
    on_host(Nft, || {
        let mut agent = Agent::new(Mode::Nftables);
        let mut watcher = agent.watch();
        uninstall("nft");
        assert!(agent.ensure(&rules()));
        assert!(!agent.ensure(&rules()));
        assert!(agent.hears(&mut watcher));
        assert!(agent.ensure(&dual()));
        agent.restart();
        assert!(!agent.ensure(&dual()));
        assert!(agent.ensure(&nothing()));
        assert!(!agent.clear(&[]));
        assert!(agent.ensure(&dual()));
        assert!(agent.clear(&[]));
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
