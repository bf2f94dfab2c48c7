//! Our nftables table in a real kernel, each case in a network namespace of its own:
//!
//! ```text
//!   test thread ── unshare(CLONE_NEWNET) ── nft (child, same namespace)
//!                                        └─ Watcher (netlink socket, same namespace)
//! ```
//!
//! Needs `nft`, and root or `unshare -rn`; without the right to make a namespace a case says so and ends.

#![expect(clippy::unwrap_used, reason = "a test ends by panicking")]

use std::process::Command;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use selvage::firewall::Watcher;
use selvage::firewall::nftables::{Nftables, Rules};
use selvage::privileges;
use tokio::time::timeout;

fn rules() -> Rules {
    Rules {
        network: net("10.5.0.0/16"),
        subnet: net("10.5.72.0/24"),
        masquerade: true,
        forward: true,
        random_fully: true,
    }
}

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

/// Runs `case` on a thread with a network namespace and a runtime of its own.
fn in_namespace<F: Future<Output = ()>>(case: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(|| {
        match unshare(CloneFlags::CLONE_NEWNET) {
            Err(Errno::EPERM) => {
                eprintln!("skipped: no right to make a network namespace; run as root");
                return;
            }
            made => made.unwrap(),
        }
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(case());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `nft` in the namespace and returns what it prints; it must succeed.
fn nft(command: &str) -> String {
    run_nft(&[command])
}

/// The same, with the handles of all objects, which change when an object is made anew.
fn nft_with_handles(command: &str) -> String {
    run_nft(&["-a", command])
}

fn run_nft(arguments: &[&str]) -> String {
    let output = Command::new("nft").args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The handle of the rule whose comment begins with `comment`.
fn handle(comment: &str) -> String {
    let listing = nft_with_handles("list table inet selvage");
    let comment = format!("comment \"{comment}");
    let line = listing
        .lines()
        .find(|line| line.contains(&comment))
        .unwrap();
    line.rsplit(' ').next().unwrap().to_owned()
}

#[test]
fn applied_rules_are_listed_as_written_and_a_restart_changes_nothing() {
    in_namespace(|| async {
        let mut table = Nftables::new();
        assert!(!table.is_current(&rules()).await.unwrap());
        assert!(table.ensure(&rules()).await.unwrap());
        assert!(!table.ensure(&rules()).await.unwrap());

        let written = include_str!("../src/firewall/nftables/script/tests/whole.nft");
        let written: Vec<&str> = written.lines().skip(2).collect();
        let listing = nft("list table inet selvage");
        let listed: Vec<&str> = listing.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(listed, written);

        let before = nft_with_handles("list ruleset");
        let mut restarted = Nftables::new();
        assert!(!restarted.ensure(&rules()).await.unwrap());
        assert_eq!(nft_with_handles("list ruleset"), before);
    });
}

#[test]
fn other_rules_replace_the_old_ones() {
    in_namespace(|| async {
        let mut table = Nftables::new();
        table.apply(&rules()).await.unwrap();
        let moved = Rules {
            subnet: net("10.5.9.0/24"),
            ..rules()
        };
        assert!(!table.is_current(&moved).await.unwrap());
        assert!(table.ensure(&moved).await.unwrap());
        let listing = nft("list ruleset");
        assert!(listing.contains("10.5.9.0/24"), "{listing}");
        assert!(!listing.contains("10.5.72.0/24"), "{listing}");

        let nothing = Rules {
            masquerade: false,
            forward: false,
            ..rules()
        };
        assert!(table.ensure(&nothing).await.unwrap());
        assert_eq!(nft("list ruleset"), "");
        assert!(!table.ensure(&nothing).await.unwrap());
    });
}

#[test]
fn flush_is_noticed_within_a_second_and_mended_without_a_loop() {
    in_namespace(|| async {
        let mut table = Nftables::new();
        let mut watcher = Watcher::open().unwrap();
        table.apply(&rules()).await.unwrap();
        // Our own change is announced as well, once.
        timeout(Duration::from_secs(1), watcher.changed())
            .await
            .unwrap();
        assert!(!table.ensure(&rules()).await.unwrap());

        for by_hand in [
            "flush ruleset",
            "delete table inet selvage",
            "flush table inet selvage",
        ] {
            let start = Instant::now();
            nft(by_hand);
            timeout(Duration::from_secs(1), watcher.changed())
                .await
                .unwrap();
            assert!(table.ensure(&rules()).await.unwrap(), "after {by_hand}");
            assert!(start.elapsed() < Duration::from_secs(1), "after {by_hand}");
            timeout(Duration::from_secs(1), watcher.changed())
                .await
                .unwrap();
            assert!(!table.ensure(&rules()).await.unwrap(), "after {by_hand}");
            let quiet = timeout(Duration::from_millis(300), watcher.changed()).await;
            assert!(quiet.is_err(), "reading the rules announced a change");
        }
    });
}

#[test]
fn tables_of_others_neither_wake_us_nor_are_touched() {
    in_namespace(|| async {
        let mut table = Nftables::new();
        table.apply(&rules()).await.unwrap();
        let mut watcher = Watcher::open().unwrap();
        nft("add table ip docker; add chain ip docker nat; add rule ip docker nat accept");
        nft("add table inet selvage2; add chain inet selvage2 forward");
        let woken = timeout(Duration::from_millis(500), watcher.changed()).await;
        assert!(woken.is_err(), "woken by another table");

        let others = nft_with_handles("list table ip docker");
        assert!(table.clear().await.unwrap());
        assert!(!table.clear().await.unwrap());
        assert_eq!(nft_with_handles("list table ip docker"), others);
        assert!(!nft("list tables").contains("inet selvage\n"));
    });
}

#[test]
fn dropped_wait_loses_no_change() {
    in_namespace(|| async {
        let mut table = Nftables::new();
        let mut watcher = Watcher::open().unwrap();
        table.apply(&rules()).await.unwrap();
        // Long enough to hear of it, too short to report it.
        let dropped = timeout(Duration::from_millis(30), watcher.changed()).await;
        assert!(dropped.is_err());
        timeout(Duration::from_secs(1), watcher.changed())
            .await
            .unwrap();
    });
}

#[test]
fn every_edit_by_hand_is_found() {
    in_namespace(|| async {
        let mut table = Nftables::new();
        let mut watcher = Watcher::open().unwrap();
        table.apply(&rules()).await.unwrap();
        let chain = "inet selvage postrouting";
        type Edit = fn(&str) -> String;
        let edits: [(&str, Edit, bool); 4] = [
            (
                "added rule",
                |chain| format!("insert rule {chain} accept"),
                true,
            ),
            (
                "deleted rule",
                |chain| {
                    format!(
                        "delete rule {chain} handle {}",
                        handle("from outside to containers here")
                    )
                },
                true,
            ),
            (
                "replaced rule",
                |chain| {
                    format!(
                        "replace rule {chain} handle {} accept",
                        handle("marked by kube-proxy")
                    )
                },
                true,
            ),
            // Only who has seen the rules before can tell that one with the right comment is wrong.
            (
                "forged rule",
                |chain| {
                    let handle = handle("marked by kube-proxy");
                    let comment = "marked by kube-proxy, which masquerades it itself";
                    format!("replace rule {chain} handle {handle} accept comment \"{comment}\"")
                },
                false,
            ),
        ];
        for (what, edit, even_after_restart) in edits {
            nft(&edit(chain));
            timeout(Duration::from_secs(1), watcher.changed())
                .await
                .unwrap();
            let restarted = Nftables::new().is_current(&rules()).await.unwrap();
            assert_eq!(!restarted, even_after_restart, "{what}");
            assert!(table.ensure(&rules()).await.unwrap(), "{what}");
            assert!(!table.ensure(&rules()).await.unwrap(), "{what}");
        }
    });
}

#[test]
fn firewall_works_with_the_privileges_that_are_left() {
    in_namespace(|| async {
        nix::sys::prctl::set_no_new_privs().unwrap();
        privileges::restrict().unwrap();
        // Again, as in a service whose manager restricted it before: nothing is left to take, and that is fine.
        privileges::restrict().unwrap();

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

        let mut table = Nftables::new();
        let mut watcher = Watcher::open().unwrap();
        assert!(table.ensure(&rules()).await.unwrap());
        timeout(Duration::from_secs(1), watcher.changed())
            .await
            .unwrap();
        assert!(table.clear().await.unwrap());
    });
}
