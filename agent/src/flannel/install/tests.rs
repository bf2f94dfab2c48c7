//! On directories of the test's, with scripts as plugins.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::status::{PluginState, Status};
use super::*;

mod later;
mod lists;

/// A host, and a program to install.
struct Host {
    directory: TempDir,
    places: Places,
    program: Program,
}

/// A plugin that says this when it is run by hand.
fn saying(text: &str) -> String {
    format!("#!/bin/sh\necho '{text}' >&2\n")
}

/// A plugin that knows these versions of CNI.
fn knowing(versions: &str) -> String {
    format!("#!/bin/sh\necho '{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[{versions}]}}'\n")
}

fn of_ours(version: &str) -> String {
    saying(&format!(
        "CNI Plugin flannel version {version} (selvage, linux/amd64)"
    ))
}

const OLD_PLUGINS: &str = r#""0.3.1","0.4.0","1.0.0""#;

impl Host {
    /// A host with the plugins of kube-flannel's config list, but without flannel's.
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let path = |name: &str| directory.path().join(name);
        let places = Places {
            bin_dir: path("bin"),
            conf_dir: path("net.d"),
        };
        let program = Program {
            path: path("own"),
            version: "0.2.0".into(),
        };
        let host = Self {
            directory,
            places,
            program,
        };
        host.put("own", &of_ours("0.2.0"), 0o755);
        for name in ["bridge", "host-local", "portmap"] {
            host.put(&format!("bin/{name}"), &knowing(OLD_PLUGINS), 0o755);
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn put(&self, name: &str, text: &str, mode: u32) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The names in a directory, without the plugins of others.
    fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(directory)).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !["bridge", "host-local", "portmap"].contains(&name.as_str()))
            .collect();
        names.sort();
        names
    }

    fn install(&self, wish: &Wish) -> Outcome {
        install_program(&self.program, &self.places, wish)
            .unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    /// What is said of each file, without the directory.
    fn says(&self, outcome: &Outcome) -> Vec<String> {
        let prefix = format!("{}/", self.directory.path().display());
        let all = outcome.done.iter().chain(&outcome.warnings);
        all.map(|line| line.replace(&prefix, "")).collect()
    }

    fn copying(&self, text: &str) -> Wish {
        self.put("cni-conf.json", text, 0o644);
        Wish {
            conf_from: Some(self.path("cni-conf.json")),
            force: false,
        }
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().mode() & 0o7777
    }

    fn inode(&self, name: &str) -> u64 {
        fs::metadata(self.path(name)).unwrap().ino()
    }
}

/// Another delegate than the default, and no containers.
fn custom(mtu: u32) -> String {
    let delegate = json!({"isDefaultGateway": true, "mtu": mtu});
    let flannel = json!({"type": "flannel", "dataDir": "/nonexistent", "delegate": delegate});
    json!({"name": "cbr0", "cniVersion": "1.0.0", "plugins": [flannel, {"type": "portmap"}]})
        .to_string()
}

fn force() -> Wish {
    Wish {
        force: true,
        ..Wish::default()
    }
}

#[test]
fn new_host_gets_both_and_the_second_time_nothing_is_written() {
    let host = Host::new();
    fs::remove_dir_all(host.path("net.d")).unwrap_or_default();
    let outcome = host.install(&Wish::default());
    assert_eq!(
        host.says(&outcome),
        [
            "bin/flannel: version 0.2.0 written",
            "net.d/10-flannel.conflist: written"
        ]
    );
    assert_eq!(host.read("bin/flannel"), of_ours("0.2.0"));
    assert_eq!(host.read("net.d/10-flannel.conflist"), BUILT_IN);
    assert_eq!(host.mode("bin/flannel"), 0o755);
    assert_eq!(host.mode("net.d/10-flannel.conflist"), 0o644);
    assert_eq!(host.names("bin"), ["flannel"]);
    let conf = [".10-flannel.conflist.selvage", "10-flannel.conflist"];
    assert_eq!(host.names("net.d"), conf);

    let files = [
        "bin/flannel",
        "net.d/10-flannel.conflist",
        "net.d/.10-flannel.conflist.selvage",
    ];
    let before = files.map(|name| host.inode(name));
    let outcome = host.install(&Wish::default());
    assert_eq!(
        host.says(&outcome),
        [
            "bin/flannel: is this version, 0.2.0, already",
            "net.d/10-flannel.conflist: is as it should be already"
        ]
    );
    assert_eq!(files.map(|name| host.inode(name)), before);
    // Right contents with wrong modes, as an interrupted copy by other means leaves them.
    host.put("bin/flannel", &of_ours("0.2.0"), 0o644);
    host.put("net.d/10-flannel.conflist", BUILT_IN, 0o600);
    host.install(&Wish::default());
    assert_eq!(host.mode("bin/flannel"), 0o755);
    assert_eq!(host.mode("net.d/10-flannel.conflist"), 0o644);
}

#[test]
fn only_a_newer_version_of_ours_is_kept() {
    let host = Host::new();
    for (found, said, replaced) in [
        (of_ours("0.1.9"), "version 0.1.9 replaced by 0.2.0", true),
        // Another build.
        (
            of_ours("0.2.0") + "#\n",
            "version 0.2.0 replaced by 0.2.0",
            true,
        ),
        (
            of_ours("0.10.0"),
            "kept, since its version 0.10.0 is newer than this, 0.2.0; --force replaces it",
            false,
        ),
        // As flannel-io/cni-plugin says it. Its numbers are of another program.
        (
            saying("CNI Plugin flannel version v1.9.1-flannel3 (linux/amd64) commit 5c3b2b4"),
            "flannel's plugin v1.9.1-flannel3 replaced by Selvage's 0.2.0",
            true,
        ),
        // A copy that was cut off, or of another machine.
        (
            "\x7fELF".to_owned(),
            "replaced by Selvage's 0.2.0; what was there did not say what it is",
            true,
        ),
    ] {
        host.put("bin/flannel", &found, 0o755);
        let outcome = host.install(&Wish::default());
        assert_eq!(host.says(&outcome)[0], format!("bin/flannel: {said}"));
        assert_eq!(
            host.read("bin/flannel") == of_ours("0.2.0"),
            replaced,
            "{said}"
        );
    }
    host.put("bin/flannel", &of_ours("0.10.0"), 0o755);
    assert_eq!(
        host.says(&host.install(&force()))[0],
        "bin/flannel: version 0.10.0 replaced by 0.2.0"
    );
}

#[test]
fn config_list_that_somebody_changed_is_not_lost() {
    let host = Host::new();
    let path = "net.d/10-flannel.conflist";
    let says = |wish: &Wish| host.says(&host.install(wish))[1].clone();
    host.put(path, &custom(1400), 0o644);
    assert_eq!(
        says(&Wish::default()),
        "net.d/10-flannel.conflist is kept, since somebody has changed it: --force replaces it, \
         --conf-from names another"
    );
    assert_eq!(host.read(path), custom(1400));

    // The ConfigMap is what counts, as with kube-flannel.
    let replaced = "net.d/10-flannel.conflist: replaced; what somebody had changed is in \
                    10-flannel.conflist.replaced beside it";
    assert_eq!(says(&host.copying(&custom(1300))), replaced);
    assert_eq!(host.read(path), custom(1300));
    assert_eq!(
        host.read("net.d/10-flannel.conflist.replaced"),
        custom(1400)
    );
    // What we wrote ourselves is no change of somebody's: the ConfigMap has changed.
    fs::remove_file(host.path("net.d/10-flannel.conflist.replaced")).unwrap();
    assert_eq!(
        says(&host.copying(&custom(1200))),
        "net.d/10-flannel.conflist: replaced"
    );
    assert_eq!(host.read(path), custom(1200));
    assert!(!host.path("net.d/10-flannel.conflist.replaced").exists());

    host.put(path, "{", 0o644);
    assert_eq!(says(&force()), replaced);
    assert_eq!(host.read(path), BUILT_IN);
}

#[test]
fn config_list_of_kube_flannel_is_taken_over() {
    let host = Host::new();
    // As kube-flannel.yml of v0.28.9 has it, whose layout is another than ours.
    let value: Value = serde_json::from_str(BUILT_IN).unwrap();
    let path = "net.d/10-flannel.conflist";
    host.put(path, &value.to_string(), 0o644);
    let outcome = host.install(&Wish::default());
    assert_eq!(outcome.warnings, [""; 0]);
    assert_eq!(host.read(path), value.to_string(), "it means the same");
    // The same ConfigMap as before, which is then ours, and goes when we do.
    host.put(path, &custom(1300), 0o644);
    host.install(&host.copying(&custom(1300)));
    let outcome = uninstall_program(&host.program, &host.places, false).unwrap();
    assert!(!outcome.is_left, "{outcome:?}");
    assert_eq!(host.names("net.d"), [""; 0]);
}

#[test]
fn what_keeps_pods_from_the_overlay_is_named() {
    let host = Host::new();
    host.put("net.d/05-cilium.conflist", "{}", 0o644);
    host.put("net.d/00-multus.conf", "{}", 0o644);
    host.put("net.d/87-podman-bridge.conflist", "{}", 0o644);
    // Multus calls our plugin itself.
    let multus = r#"{"type":"multus","delegates":[{"plugins":[{"type":"flannel"}]}]}"#;
    host.put("net.d/01-multus.conf", multus, 0o644);
    host.put("net.d/05-cilium.conflist.cilium_bak", "{}", 0o644);
    fs::create_dir(host.path("net.d/04-x.conf")).unwrap();
    fs::remove_file(host.path("bin/portmap")).unwrap();
    let text = r#"{"name":"cbr0","cniVersion":"0.3.1","cniVersions":["1.1.0"],"plugins":[
        {"type":"flannel"},{"type":"portmap"}]}"#;
    let outcome = host.install(&host.copying(text));
    let before = "comes before 10-flannel.conflist: container runtimes take that one";
    let unknown = "does not know version 1.1.0 of CNI, which the config list names, so no pod can start: \
                   it knows 0.3.1, 0.4.0, 1.0.0";
    for (says, expected) in host.says(&outcome).iter().skip(2).zip([
        format!("net.d/00-multus.conf {before}"),
        format!("net.d/05-cilium.conflist {before}"),
        format!("bin/bridge {unknown}"),
        format!("bin/host-local {unknown}"),
        "bin/portmap is missing, so no pod can start".into(),
    ]) {
        assert!(says.starts_with(&expected), "{says}");
    }
    assert_eq!(outcome.warnings.len(), 5, "{outcome:?}");
}

#[test]
fn leftovers_of_a_crash_go_and_what_is_no_file_stays() {
    let host = Host::new();
    host.put("bin/.flannelAb3dE9", "half", 0o600);
    host.put("net.d/.10-flannel.conflistAb3dE9", "{", 0o600);
    host.put("net.d/..10-flannel.conflist.selvageAb3dE9", "", 0o600);
    fs::write(host.path("net.d/.10-flannel.conflist.selvage"), b"\xff").unwrap();
    host.install(&Wish::default());
    assert_eq!(host.names("bin"), ["flannel"]);
    let conf = [".10-flannel.conflist.selvage", "10-flannel.conflist"];
    assert_eq!(host.names("net.d"), conf);
    fs::remove_file(host.path("bin/flannel")).unwrap();
    fs::create_dir(host.path("bin/flannel")).unwrap();
    let error = install_program(&host.program, &host.places, &Wish::default()).unwrap_err();
    assert!(chain(&error).contains("bin/flannel"), "{}", chain(&error));
}

#[test]
fn link_of_a_package_is_left_to_it_while_it_is_the_same() {
    let host = Host::new();
    symlink(host.path("own"), host.path("bin/flannel")).unwrap();
    host.put("own", &of_ours("0.2.0"), 0o555);
    let outcome = host.install(&Wish::default());
    assert_eq!(
        host.says(&outcome)[0],
        "bin/flannel: is this version, 0.2.0, already"
    );
    assert_eq!(host.mode("own"), 0o555);
    let outcome = uninstall_program(&host.program, &host.places, true).unwrap();
    assert!(
        host.says(&outcome)[1].contains("it is a link"),
        "{outcome:?}"
    );
    assert!(host.path("bin/flannel").is_symlink());
}

#[test]
fn link_to_a_file_outside_of_the_container_is_kept() {
    let host = Host::new();
    symlink("/nonexistent/lib/cni/flannel", host.path("bin/flannel")).unwrap();
    fs::remove_file(host.path("bin/bridge")).unwrap();
    symlink("/nonexistent/lib/cni/bridge", host.path("bin/bridge")).unwrap();
    let outcome = host.install(&Wish::default());
    let [warning] = &outcome.warnings[..] else {
        panic!("{outcome:?}");
    };
    assert!(
        warning.contains("is a link to /nonexistent/lib/cni/flannel"),
        "{warning}"
    );
    assert!(host.path("bin/flannel").is_symlink());
    assert_eq!(
        Status::look(&host.places).unwrap().plugin_state,
        PluginState::Link
    );
    host.install(&force());
    assert_eq!(host.read("bin/flannel"), of_ours("0.2.0"));
    assert!(!host.path("bin/flannel").is_symlink());
}

#[test]
fn read_only_target_is_said_with_what_to_do() {
    let error =
        |kind: io::ErrorKind| Error::file("write", Path::new("/opt/cni/bin/flannel"), kind.into());
    assert_eq!(
        chain(&error(io::ErrorKind::ReadOnlyFilesystem)),
        "failed to write /opt/cni/bin/flannel (mount the host's directory writable; for a systemd unit: \
         ReadWritePaths=): read-only filesystem or storage medium"
    );
    assert!(chain(&error(io::ErrorKind::PermissionDenied)).contains("(as root? "));
}
