//! What `make install` and the packages put on a host beside the agent.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

fn repository(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The value of a key.
fn value<'a>(text: &'a str, key: &str) -> &'a str {
    let mut lines = text.lines();
    lines
        .find_map(|line| line.strip_prefix(key))
        .unwrap_or_else(|| panic!("no {key} in {text}"))
}

#[test]
fn networkd_and_networkmanager_leave_the_same_devices_alone() {
    let networkd = repository("units/network/50-selvage.network");
    assert!(networkd.contains("Unmanaged=yes"));
    let networkd: BTreeSet<_> = value(&networkd, "Name=").split(' ').collect();
    let manager = repository("units/NetworkManager/conf.d/50-selvage.conf");
    assert!(manager.lines().any(|line| line == "[keyfile]"));
    // Added to the administrator's own list, not put in its place.
    let manager = value(&manager, "unmanaged-devices+=");
    let manager: BTreeSet<_> = manager
        .split(';')
        .map(|spec| spec.strip_prefix("interface-name:").expect(spec))
        // The administrator may have bridges of such names there.
        .map(|name| {
            if name == "br-????????????" {
                "br-*"
            } else {
                name
            }
        })
        .collect();
    assert_eq!(manager, networkd);
    for name in ["flannel*", "cni*", "docker*", "veth*"] {
        assert!(manager.contains(name), "{name}");
    }
}

/// The agent as a release has it: without what only a debugger reads, which would take minutes to pack.
fn agent(directory: &Path) -> PathBuf {
    let agent = directory.join("agent");
    let arguments = [
        Path::new("-o"),
        &agent,
        Path::new(env!("CARGO_BIN_EXE_selvage")),
    ];
    run(Command::new("strip").args(arguments));
    agent
}

fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

fn script(name: &str) -> PathBuf {
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("packages");
    packages.join(name)
}

/// All files and links below a directory, relative to it.
fn files(root: &Path) -> BTreeSet<String> {
    let found = run(Command::new("find")
        .current_dir(root)
        .args([".", "!", "-type", "d"]));
    let names = found.lines().filter_map(|line| line.strip_prefix("./"));
    names.map(str::to_owned).collect()
}

#[test]
fn make_install_has_all_that_hosts_need() {
    let makefile = repository("Makefile");
    assert!(makefile.contains("\tagent/packages/install $(AGENT) $(DESTDIR)\n"));
    let directory = TempDir::new().expect("a directory");
    let root = directory.path().join("root");
    run(Command::new(script("install"))
        .arg(agent(directory.path()))
        .arg(&root));
    let found = files(&root);
    for path in [
        "usr/bin/selvage",
        "usr/lib/NetworkManager/conf.d/50-selvage.conf",
        "usr/lib/modules-load.d/50-selvage.conf",
        "usr/lib/selvage/accept-ra",
        "usr/lib/selvage/charon.conf",
        "usr/lib/sysctl.d/50-selvage.conf",
        "usr/lib/systemd/network/50-selvage.link",
        "usr/lib/systemd/network/50-selvage.network",
        "usr/lib/systemd/networkd.conf.d/50-selvage.conf",
        "usr/lib/systemd/system/selvage.service",
        "usr/lib/systemd/system/selvage-charon.path",
        "usr/lib/systemd/system/selvage-charon.service",
        "usr/lib/systemd/system/selvage@.service",
        "usr/lib/systemd/system/systemd-sysctl.service.d/50-selvage.conf",
        "usr/share/bash-completion/completions/selvage",
        "usr/share/man/man1/selvage-run.1.gz",
        "usr/share/man/man5/agent.toml.5.gz",
    ] {
        assert!(found.contains(path), "{path} is not among {found:#?}");
    }
    // What the units start is there as well, unless the system has it.
    let unit_directory = root.join("usr/lib/systemd/system");
    for unit in fs::read_dir(&unit_directory).expect("units") {
        let unit = unit.expect("a unit").path();
        let text = fs::read_to_string(&unit).unwrap_or_default();
        for line in text.lines().filter(|line| line.starts_with("Exec")) {
            let program = line.split_once('=').map_or("", |(_, value)| value);
            let program = program.split(' ').next().unwrap_or_default();
            let is_ours = program.contains("selvage");
            let is_there = found.contains(program.trim_start_matches('/'));
            assert!(!is_ours || is_there, "{}: {line}", unit.display());
        }
    }
}

#[test]
fn packages_do_not_depend_on_who_builds_them_and_where() {
    let directory = TempDir::new().expect("a directory");
    let agent = agent(directory.path());
    let build = |name: &str, umask: &str, environment: &[(&str, &str)]| {
        let out = directory.path().join(name);
        let command_line = "umask \"$0\"; exec \"$@\"";
        let mut command = Command::new("sh");
        command
            .args(["-c", command_line, umask])
            .arg(script("build"));
        run(command
            .args([&agent, &out])
            .current_dir("/")
            .envs(environment.iter().copied())
            .env("VERSION", "1.2.3-rc1"));
        out
    };
    let one = build("one", "022", &[("TZ", "Asia/Tokyo"), ("LC_ALL", "C")]);
    std::thread::sleep(std::time::Duration::from_secs(1)); // the clock's next second
    let two = build(
        "two",
        "077",
        &[("TZ", "America/Lima"), ("LC_ALL", "C.UTF-8")],
    );
    let sums = fs::read_to_string(one.join("SHA256SUMS")).expect("sums");
    let again = fs::read_to_string(two.join("SHA256SUMS")).expect("sums");
    assert_eq!(sums, again);
    run(Command::new("sha256sum")
        .args(["--check", "--strict", "SHA256SUMS"])
        .current_dir(&two));
    let names: Vec<_> = sums
        .lines()
        .filter_map(|line| line.split("  ").nth(1))
        .collect();
    let [deb, raw] = names[..] else {
        panic!("{names:?}")
    };
    assert!(deb.ends_with(".deb") && raw.ends_with(".raw"), "{names:?}");

    // A candidate comes before its release, for Debian as for us.
    let field = |name| {
        run(Command::new("dpkg-deb")
            .arg("--field")
            .arg(one.join(deb))
            .arg(name))
    };
    assert_eq!(field("Version").trim(), "1.2.3~rc1");
    let contents = run(Command::new("dpkg-deb")
        .arg("--contents")
        .arg(one.join(deb)));
    assert!(
        contents.lines().all(|line| line.contains(" root/root ")),
        "{contents}"
    );
    let control = run(Command::new("dpkg-deb")
        .arg("--info")
        .arg(one.join(deb))
        .arg("conffiles"));
    assert_eq!(control, "/etc/selvage/agent.toml\n");

    // The extension: where it fits, and what it must not put in the place of a host's directory.
    let tree = directory.path().join("tree");
    run(Command::new("unsquashfs")
        .args(["-no-xattrs", "-quiet", "-dest"])
        .arg(&tree)
        .arg(one.join(raw)));
    let release = "usr/lib/extension-release.d/extension-release.selvage";
    let release = fs::read_to_string(tree.join(release)).expect("extension-release");
    assert!(release.starts_with("ID=_any\nARCHITECTURE="), "{release}");
    assert!(release.contains("\nIMAGE_VERSION=1.2.3-rc1\n"), "{release}");
    assert!(files(&tree).contains("usr/lib/flatcar/flannel-wrapper"));
    assert!(!tree.join("usr/lib/coreos").exists() && !tree.join("etc").exists());
}
