//! The table is consistent, and differences between a tree and the table are reported.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::verify::{Differences, differences};
use super::*;

/// A table and a tree that agree.
struct Small {
    root: tempfile::TempDir,
    table: String,
}

impl Small {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let small = Self {
            root,
            table: include_str!("small.toml").to_owned(),
        };
        for (path, text) in [
            (
                "etc/passwd",
                "root:x:0:0:root:/root:/bin/bash\ncore:x:1000:1000::/home/core:/bin/bash\n",
            ),
            ("etc/group", "root:x:0:\nadm:x:4:core\ncore:x:1000:\n"),
            ("etc/hosts", ""),
            ("usr/bin/bash", ""),
            ("usr/bin/nologin", ""),
            ("usr/sbin/useradd", ""),
            ("usr/lib/cni/bridge", ""),
            (
                "usr/lib/systemd/system-preset/50-selvage.preset",
                "enable on.service\ndisable *\n",
            ),
            ("usr/lib/systemd/system/on.service", "[Install]\n"),
            ("usr/lib/systemd/system/off.service", "[Install]\n"),
            ("usr/lib/systemd/system/basic.target", "[Unit]\n"),
            ("usr/lib/systemd/system/on.service.d/x.conf", ""),
            ("usr/share/zoneinfo/Europe/Berlin", ""),
        ] {
            small.write(path, text);
        }
        for (path, target) in [
            ("usr/lib/systemd/system/other.service", "on.service"),
            ("usr/lib/systemd/system/never.service", "/dev/null"),
            (
                "etc/systemd/system/second.service",
                "/usr/lib/systemd/system/on.service",
            ),
            ("etc/mtab", "../proc/self/mounts"),
            ("usr/local", "../var/usrlocal"),
        ] {
            let path = small.path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(target, path).unwrap();
        }
        small
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn differences(&self) -> Differences {
        let table = toml::from_str(&self.table).unwrap();
        differences(&table, self.root.path()).unwrap()
    }
}

#[test]
fn the_table_is_consistent_in_itself() {
    let image = image();
    let units = &image.units;
    let lists = [
        &units.enabled,
        &units.available,
        &units.static_,
        &units.masked,
    ];
    let names: Vec<&String> = lists.into_iter().flatten().collect();
    let names_once: BTreeSet<&String> = names.iter().copied().collect();
    assert_eq!(names.len(), names_once.len(), "a unit is in two lists");
    for (alias, unit) in &units.aliases {
        assert!(
            names_once.contains(unit),
            "{alias} is another name of {unit}"
        );
        assert!(!names_once.contains(alias), "{alias} is a unit, too");
    }
    for tool in image.tools.sysroot.keys().chain(image.tools.usr.keys()) {
        assert!(image.programs.path.contains(tool), "{tool}");
    }
    let all = [&image.tools.initrd, &image.tools.usr, &image.tools.sysroot];
    let tools: BTreeSet<&String> = all.iter().flat_map(|tools| tools.keys()).collect();
    assert_eq!(
        tools.len(),
        all.iter().map(|tools| tools.len()).sum::<usize>()
    );
}

#[test]
fn the_initrd_enables_by_other_names_what_the_table_says() {
    let units = &image().units;
    let script = include_str!(
        "../../../../../image/mkosi.images/initrd/mkosi.extra/usr/lib/selvage/finish-provisioning"
    );
    let told: Vec<String> = script
        .lines()
        .filter_map(|line| line.strip_prefix("other_name "))
        .map(ToOwned::to_owned)
        .collect();
    let mut promised: Vec<String> = (units.enabled_by_alias.iter())
        .map(|(alias, names)| format!("{alias} {}", names.join(" ")))
        .collect();
    promised.sort_unstable_by_key(|line| told.iter().position(|other| other == line));
    assert_eq!(promised, told);
    for (alias, names) in &units.enabled_by_alias {
        assert_eq!(units.aliases.get(alias), names.first());
    }
}

#[test]
fn a_tree_that_is_as_promised_has_no_differences() {
    assert_eq!(Small::new().differences(), Differences::default());
}

#[test]
fn what_the_table_promises_must_be_in_the_tree() {
    // What is taken from the tree, and what is said then.
    for (path, said) in [
        ("etc/hosts", "  etc.files: /etc/hosts is not in the image"),
        (
            "etc/mtab",
            "  etc.links: /etc/mtab -> ../proc/self/mounts is not in the image",
        ),
        ("usr/bin/bash", "  programs.path: bash is not in the image"),
        (
            "usr/lib/cni/bridge",
            "  programs.other: /usr/lib/cni/bridge is not in the image",
        ),
        (
            "usr/lib/systemd/system/on.service",
            "  units.enabled: on.service is not in the image",
        ),
        (
            "usr/lib/systemd/system/never.service",
            "  units.masked: never.service is not in the image",
        ),
        (
            "etc/systemd/system/second.service",
            "  units.aliases: second.service = on.service is not in the image",
        ),
        (
            "usr/share/zoneinfo/Europe/Berlin",
            "  time.zones: /usr/share/zoneinfo/Europe/Berlin is not in the image",
        ),
        (
            "usr/bin/nologin",
            "  shells.none: /usr/bin/nologin is not in the image",
        ),
    ] {
        let small = Small::new();
        std::fs::remove_file(small.path(path)).unwrap();
        let found = small.differences().lacking;
        assert!(found.iter().any(|line| line == said), "{path}: {found:?}");
    }
    for (path, text, said) in [
        (
            "etc/passwd",
            "root:x:0:0:\n",
            "  users: core is not in the image",
        ),
        (
            "etc/group",
            "root:x:0:\nadm:x:5:core\ncore:x:1000:\n",
            "  groups: adm is 5 in the image, not 4",
        ),
    ] {
        let small = Small::new();
        small.write(path, text);
        assert_eq!(small.differences().lacking, [said]);
    }
}

#[test]
fn what_the_table_does_not_know_is_told() {
    for (path, text, said) in [
        ("usr/bin/zsh", "", "  programs.path: the image has zsh too"),
        (
            "usr/lib/systemd/system/new.service",
            "[Install]\n",
            "  units.available: the image has new.service too",
        ),
        (
            "usr/lib/systemd/system/new.target",
            "",
            "  units.static: the image has new.target too",
        ),
        (
            "etc/group",
            "root:x:0:\nadm:x:4:core\ncore:x:1000:\nwheel:x:992:\n",
            "  groups: the image has wheel = 992 too",
        ),
    ] {
        let small = Small::new();
        small.write(path, text);
        let found = small.differences();
        assert_eq!(
            (found.lacking, found.unknown),
            (vec![], vec![said.to_owned()])
        );
    }
}

/// What the initrd's `clevis` does with these arguments: the command that it runs, or what it complains of.
fn clevis(arguments: &[&str]) -> String {
    const SCRIPT: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../image/mkosi.images/initrd/mkosi.extra/usr/lib/selvage/clevis"
    );
    let tools = tempfile::tempdir().unwrap();
    for tool in ["systemd-cryptenroll", "systemd-cryptsetup"] {
        let path = tools.path().join(tool);
        std::fs::write(&path, "#!/bin/sh\necho \"${0##*/} $*\"\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
    }
    let path = format!("{}:/usr/bin:/bin", tools.path().display());
    let mut command = std::process::Command::new("sh");
    let command = command.arg(SCRIPT).args(arguments).env("PATH", path);
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8(said).unwrap().trim_end().to_owned()
}

/// The calls are those of Ignition 2.14.0 (`internal/exec/stages/disks/luks.go`).
#[test]
fn the_tpm_does_what_ignition_asks_of_clevis() {
    let bind = |pin: &str, config: &str| {
        clevis(&[
            "luks", "bind", "-f", "-k", "/tmp/k", "-d", "/dev/a", pin, config,
        ])
    };
    let enroll = "systemd-cryptenroll --unlock-key-file=/tmp/k --tpm2-device=auto --tpm2-pcrs=";
    for (pin, config, pcrs) in [
        ("sss", r#"{"pins":{"tang":null,"tpm2":{}},"t":1}"#, ""),
        ("tpm2", "{}", ""),
        ("tpm2", r#"{"pcr_bank":"sha256","pcr_ids":"0,7"}"#, "0+7"),
    ] {
        assert_eq!(bind(pin, config), format!("{enroll}{pcrs} /dev/a"));
    }
    for (pin, config) in [
        ("tang", r#"{"url":"http://x","thp":"y"}"#),
        (
            "sss",
            r#"{"pins":{"tang":[{"url":"http://x"}],"tpm2":{}},"t":2}"#,
        ),
    ] {
        assert!(
            bind(pin, config).contains("no client of Tang servers"),
            "{config}"
        );
    }
    assert_eq!(
        clevis(&["luks", "unlock", "-d", "/dev/a", "-n", "secret"]),
        "systemd-cryptsetup attach secret /dev/a none tpm2-device=auto,headless=true"
    );
    assert!(clevis(&["luks", "list", "-d", "/dev/a"]).contains("luks list is not known here"));
}
