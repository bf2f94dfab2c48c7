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

#[test]
fn every_edit_by_hand_is_found() {
    on_host(Nft, || {
        let mut agent = Agent::new(Mode::Nftables);
        let mut watcher = agent.watch();
        type Edit = fn() -> String;
        let edits: [(&str, Edit, bool); 4] = [
            ("added rule", add, true),
            ("deleted rule", delete, true),
            ("replaced rule", replace, true),
            // Only who has seen the rules before can tell that one with the right comment is wrong.
            ("forged rule", forge, false),
        ];
        for (what, edit, even_after_restart) in edits {
            agent.ensure(&rules());
            assert!(!agent.ensure(&rules()), "{what}");
            sh(&format!("nft '{}'", edit()));
            assert!(agent.hears(&mut watcher), "{what}");
            assert!(agent.ensure(&rules()), "{what}");
            assert!(!agent.ensure(&rules()), "{what}");

            sh(&format!("nft '{}'", edit()));
            agent.restart();
            assert_eq!(agent.ensure(&rules()), even_after_restart, "{what}");
            sh("nft delete table inet selvage");
        }
    });
}
