use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::settings::{self, Environment, Settings, SettingsFlags, Sources};

/// The settings that one settings file results in.
fn load(directory: &Path, text: &str) -> Settings {
    let path = directory.join("agent.toml");
    fs::write(&path, text).unwrap();
    settings::load(Sources {
        root: directory,
        config: Some(&path),
        environment: &Environment::default(),
        flags: &SettingsFlags::default(),
    })
    .unwrap()
}

#[test]
fn every_change_is_named_and_only_the_live_ones_take_effect() {
    let directory = TempDir::new().unwrap();
    let old = load(directory.path(), "");
    let new = load(
        directory.path(),
        "\
[etcd]
prefix = \"/other\"
cafile = \"/etc/ca.pem\"
[underlay]
interfaces = [\"eth1\", \"10.0.0.1\"]
[firewall]
mode = \"nftables\"
masquerade-exclude = \"10.9.0.0/16\"
[files]
state-dir = \"/srv/selvage\"
[health]
port = 8285
[agent]
log = \"debug\"
resync = 60
",
    );
    let found = old.changes(&new);
    let texts: Vec<_> = found
        .iter()
        .map(|change| {
            let Change {
                key,
                old,
                new,
                live,
            } = change;
            format!("{key}: {old} -> {new} ({live})")
        })
        .collect();
    assert_eq!(
        texts,
        [
            "etcd.prefix: /coreos.com/network -> /other (false)",
            "etcd.cafile: none -> /etc/ca.pem (true)",
            "underlay.interfaces:  -> eth1, 10.0.0.1 (false)",
            "firewall.mode: auto -> nftables (true)",
            "firewall.masquerade-exclude:  -> 10.9.0.0/16 (true)",
            "files.state-dir: /var/lib/selvage -> /srv/selvage (false)",
            "health.port: 0 -> 8285 (true)",
            "agent.log: info -> debug (true)",
            "agent.resync: 300 s -> 60 s (true)",
        ]
    );
    // Afterwards exactly the others still differ.
    let effective = new.clone().without_restart(&old);
    let left: Vec<_> = found.into_iter().filter(|change| !change.live).collect();
    assert_eq!(effective.changes(&new), left);
    assert_eq!(new.changes(&new), []);
}

#[test]
fn a_password_is_never_in_a_change() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("password");
    let text = format!(
        "[etcd]\nusername = \"agent\"\npassword-file = {:?}\n",
        file.display().to_string()
    );
    fs::write(&file, "first-secret-word").unwrap();
    let old = load(directory.path(), &text);
    fs::write(&file, "second-secret-word").unwrap();
    let new = load(directory.path(), &text);
    let found = old.changes(&new);
    assert_eq!(found.len(), 1);
    assert!(found[0].live && found[0].key == "etcd.password-file");
    assert!(!format!("{found:?}").contains("secret-word"));
    assert_eq!(new.clone().without_restart(&old).changes(&new), []);
}
