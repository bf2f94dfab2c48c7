//! The agent out of the system extension that `agent/packages/build` makes, merged into another maker's `/usr`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::cluster::{NETWORK, Store};
use crate::flanneld::Flanneld;
use crate::wait::wait_until;

/// In a mount namespace of its own, whose mounts pass to systemd-sysext's and back but not to this machine, merges the
/// extensions of the root in `$0` and becomes its flanneld.
const MERGE: &str = "
    mount --make-rprivate /
    mount --make-rshared /
    mount -t tmpfs tmpfs /run
    systemd-sysext --root=\"$0\" merge >&2
    exec \"$0/usr/bin/flanneld\" \"$@\"";

fn run(command: &mut Command) -> String {
    let output = command.output().expect("a program");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// A host like Flatcar: its own `/usr`, and our extension where its users put it.
fn make_root(directory: &Path) -> PathBuf {
    let root = directory.join("root");
    for name in [
        "etc",
        "usr/bin",
        "usr/lib/flatcar",
        "usr/lib/systemd/system",
        "var/lib/extensions",
    ] {
        fs::create_dir_all(root.join(name)).expect("a directory");
    }
    let release = "ID=flatcar\nVERSION_ID=4230.2.1\nSYSEXT_LEVEL=1.0\n";
    fs::write(root.join("usr/lib/os-release"), release).expect("os-release");
    symlink("../usr/lib/os-release", root.join("etc/os-release")).expect("a link");
    fs::write(root.join("usr/lib/flatcar/update_ca"), "theirs").expect("a file");
    symlink("flatcar", root.join("usr/lib/coreos")).expect("a link");
    // The unit of flannel that Flatcar has, which configs of its users enable.
    let unit = root.join("usr/lib/systemd/system/flanneld.service");
    fs::write(
        unit,
        "[Service]\nExecStart=/usr/lib/flatcar/flannel-wrapper\n",
    )
    .expect("a unit");

    let agent = directory.join("agent");
    run(Command::new("strip")
        .arg("-o")
        .arg(&agent)
        .arg(env!("CARGO_BIN_EXE_selvage")));
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("packages/build");
    let packages = directory.join("packages");
    run(Command::new(build).args([&agent, &packages]));
    let names = fs::read_dir(&packages).expect("the packages").flatten();
    let raw = names
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|name| name == "raw"));
    fs::rename(
        raw.expect("an extension"),
        root.join("var/lib/extensions/selvage.raw"),
    )
    .expect("to move it");
    root
}

#[test]
fn flanneld_runs_out_of_a_merged_usr() {
    let store = Store::start(NETWORK);
    let [one, mut two] = [1, 2].map(|number| store.host(number));
    two.join();
    let directory = TempDir::new().expect("a directory");
    let root = make_root(directory.path());
    let mut merge = one.namespace.command("unshare");
    merge.args(["--mount", "sh", "-ec", MERGE]).arg(&root);
    let flanneld = Flanneld::launch(directory, merge, "-iface=eth0");
    flanneld.wait_ready();

    // It leased a subnet, and the other host has a route to it.
    let text = flanneld.subnet_env();
    let bridge = text
        .lines()
        .find_map(|line| line.strip_prefix("FLANNEL_SUBNET="));
    let subnet = bridge.expect("a subnet").replace(".1/", ".0/");
    wait_until("the other host to have a route here", || {
        let route = two.namespace.ip(&format!("route show {subnet}"));
        route.contains("dev flannel.1")
    });

    // In the namespace with the merged /usr:
    let pid = flanneld.child.id();
    let inside = |program: &str, arguments: &[&str]| {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &pid.to_string(), program]);
        run(command.args(arguments))
    };
    let root = root.to_str().expect("a path");
    assert_eq!(
        inside("readlink", &[&format!("/proc/{pid}/exe")]).trim(),
        format!("{root}/usr/bin/selvage")
    );
    // What was there is there, also by the name of the link.
    assert_eq!(
        inside("cat", &[&format!("{root}/usr/lib/coreos/update_ca")]),
        "theirs"
    );
    inside(
        "test",
        &["-x", &format!("{root}/usr/lib/coreos/flannel-wrapper")],
    );
    let options = flanneld.directory.path().join("options");
    let options = options.to_str().expect("a path");
    let subnet_file = flanneld.directory.path().join("run/subnet.env");
    let subnet_file = subnet_file.to_str().expect("a path");
    inside(
        &format!("{root}/usr/bin/mk-docker-opts.sh"),
        &["-f", subnet_file, "-d", options, "-i"],
    );
    let written = fs::read_to_string(options).expect("Docker's options");
    assert!(written.contains("DOCKER_OPT_BIP=\"--bip="), "{written}");

    // A first boot with systemd's presets starts none of it; who enables flanneld as on Flatcar gets the agent, whose
    // start writes the file that Flatcar's Docker reads.
    let root_argument = format!("--root={root}");
    let systemctl = |arguments: &[&str]| {
        inside(
            "systemctl",
            &[&[root_argument.as_str()], arguments].concat(),
        )
    };
    fs::create_dir(format!("{root}/etc/systemd")).expect("a directory");
    systemctl(&["preset-all"]);
    let enabled = format!("{root}/etc/systemd");
    let enabled = || inside("find", &[&enabled, "-type", "l"]);
    assert_eq!(enabled(), "");
    systemctl(&["enable", "flanneld.service"]);
    let links = enabled();
    for unit in ["multi-user.target", "docker.service"] {
        let link = format!("/{unit}.wants/selvage.service\n");
        assert!(links.contains(&link), "{links}");
    }
    let units = format!("{root}/usr/lib/systemd/system");
    let drop_in = format!("{units}/selvage.service.d/50-flannel.conf");
    assert!(inside("cat", &[&drop_in]).contains("\nWants=flannel-docker-opts.service\n"));
    let unit = inside("cat", &[&format!("{units}/flanneld.service")]);
    assert!(unit.contains("\nExecStart=/usr/bin/selvage run"), "{unit}");
    assert_eq!(flanneld.stop(), Some(0));
}
