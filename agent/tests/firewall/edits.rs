//! Edits of our nftables table by hand: every one is found, and undone.

use selvage::host::firewall::Mode;

use crate::host::{Agent, Nft, on_host, rules, sh};

const CHAIN: &str = "inet selvage postrouting";

/// The handle of the rule whose comment begins with `comment`.
fn handle(comment: &str) -> String {
    let listing = sh("nft -a list table inet selvage");
    let comment = format!("comment \"{comment}");
    let line = listing
        .lines()
        .find(|line| line.contains(&comment))
        .unwrap();
    line.rsplit(' ').next().unwrap().to_owned()
}

fn add() -> String {
    format!("insert rule {CHAIN} accept")
}

fn delete() -> String {
    let handle = handle("outside to local containers");
    format!("delete rule {CHAIN} handle {handle}")
}

fn replace() -> String {
    let handle = handle("marked by kube-proxy");
    format!("replace rule {CHAIN} handle {handle} accept")
}

fn forge() -> String {
    let handle = handle("marked by kube-proxy");
    let comment = "marked by kube-proxy, which masquerades it";
    format!("replace rule {CHAIN} handle {handle} accept comment \"{comment}\"")
}

/// The same with one option more: what the agent never writes must be found, too.
fn option() -> String {
    let comment = "the overlay to outside: masquerade";
    let handle = handle(comment);
    format!(
        "replace rule {CHAIN} handle {handle} ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 \
        masquerade random,fully-random comment \"{comment}\""
    )
}

fn uncomment() -> String {
    let handle = handle("marked by kube-proxy");
    format!("replace rule {CHAIN} handle {handle} meta mark & 0x4000 == 0x4000 return")
}

#[test]
fn every_edit_by_hand_is_found() {
    on_host(Nft, || {
        let mut agent = Agent::new(Mode::Nftables);
        let mut watcher = agent.watch();
        type Edit = fn() -> String;
        let edits: [(&str, Edit); 10] = [
            ("added rule", add),
            ("deleted rule", delete),
            ("replaced rule", replace),
            ("forged rule", forge),
            ("rule with another option", option),
            ("rule without a comment", uncomment),
            ("added chain", || "add chain inet selvage mine".to_owned()),
            ("added set", || {
                "add set inet selvage mine { type ipv4_addr; }".to_owned()
            }),
            ("table put to sleep", || {
                "add table inet selvage { flags dormant; }".to_owned()
            }),
            ("policy", || {
                let hook = "type nat hook postrouting priority srcnat";
                format!("chain {CHAIN} {{ {hook}; policy drop; }}")
            }),
        ];
        for (what, edit) in edits {
            agent.ensure(&rules());
            assert!(!agent.ensure(&rules()), "{what}");
            sh(&format!("nft '{}'", edit()));
            assert!(agent.hears(&mut watcher), "{what}");
            assert!(agent.ensure(&rules()), "{what}");
            assert!(!agent.ensure(&rules()), "{what}");

            sh(&format!("nft '{}'", edit()));
            agent.restart();
            assert!(agent.ensure(&rules()), "{what}");
            sh("nft delete table inet selvage");
        }
    });
}
