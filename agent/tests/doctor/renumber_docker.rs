//! What `selvage-docker.service` does, on a host with a real bridge. systemd and Docker are stand-ins: the one says which
//! process is dockerd and notes what it is told to restart, the other has the names of containers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use tempfile::TempDir;

use crate::host_docker::Daemon;
use crate::namespace::Namespace;

const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../units/selvage/renumber-docker"
);

/// As the agent writes it, but for what nobody reads here.
const SUBNET_ENV: &str = "FLANNEL_SUBNET=10.5.9.1/24\nDOCKER_OPT_BIP=--bip=10.5.9.1/24\nDOCKER_OPT_MTU=--mtu=1450\n\
                          DOCKER_OPT_IPV6=--ipv6=true\nDOCKER_OPT_IPV6_CIDR=--fixed-cidr-v6=fd00:5:0:9::/64\n";

struct Scene {
    namespace: Namespace,
    directory: TempDir,
    daemon: Option<Daemon>,
}

impl Scene {
    /// A host whose Docker runs with these options, and whose bridge has these addresses.
    fn new(options: &[&str], addresses: &[&str]) -> Self {
        let scene = Self {
            namespace: Namespace::new(),
            directory: TempDir::new().expect("a directory"),
            daemon: Some(Daemon::start(options)),
        };
        scene.namespace.ip("link add docker0 type bridge");
        scene.namespace.ip("link set docker0 up");
        scene.move_bridge(addresses);
        scene.program(
            "systemctl",
            r#"case $1 in
               show) cat "${0%/*}/../pid" ;;
               *) echo "$@" >>"${0%/*}/../told" ;;
               esac"#,
        );
        scene.program("docker", r#"cat "${0%/*}/../names""#);
        scene.has_containers("");
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.path("bin").join(name);
        fs::create_dir_all(self.path("bin")).expect("a directory");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a program");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a program");
    }

    fn move_bridge(&self, addresses: &[&str]) {
        self.namespace.ip("address flush dev docker0 scope global");
        for address in addresses {
            self.namespace
                .ip(&format!("address add {address} dev docker0"));
        }
    }

    fn has_containers(&self, names: &str) {
        fs::write(self.path("names"), names).expect("names");
    }

    fn run(&self) -> Output {
        let pid = self.daemon.as_ref().map_or(0, Daemon::id);
        fs::write(self.path("pid"), format!("{pid}\n")).expect("a process id");
        let path = std::env::var("PATH").expect("PATH");
        let set_up = "mount -t tmpfs none /run; mkdir /run/flannel; echo \"$1\" >/run/flannel/subnet.env; exec \"$0\"";
        self.namespace
            .command("unshare")
            .args(["-m", "sh", "-ec", set_up, SCRIPT, SUBNET_ENV])
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .stdin(Stdio::null())
            .output()
            .expect("the script")
    }

    /// What systemd was told to do.
    fn told(&self) -> String {
        fs::read_to_string(self.path("told")).unwrap_or_default()
    }

    /// It ends well and leaves Docker alone.
    fn is_content(&self) {
        let output = self.run();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(self.told(), "", "{output:?}");
    }

    /// It fails; what it says.
    fn fails(&self) -> String {
        let output = self.run();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).expect("UTF-8")
    }
}

const NEW: [&str; 2] = ["--bip=10.5.9.1/24", "--fixed-cidr-v6=fd00:5:0:9::/64"];

#[test]
fn docker_on_the_subnet_or_on_one_of_its_own_is_left_alone() {
    let on_it = ["10.5.9.1/24", "fd00:5:0:9::1/64"];
    Scene::new(&NEW, &on_it).is_content();
    // Without the options, on a network of its own or of daemon.json.
    Scene::new(&[], &["172.17.0.1/16"]).is_content();
    // Of one IP version alone.
    Scene::new(&["--bip=10.5.9.1/24"], &["10.5.9.1/24"]).is_content();
    // What is given twice counts once.
    Scene::new(&["--bip=192.168.9.1/24", NEW[0]], &["10.5.9.1/24"]).is_content();
    let mut scene = Scene::new(&NEW, &["10.5.3.1/24"]);
    scene.namespace.ip("link delete docker0");
    scene.is_content();
    scene.daemon = None;
    scene.is_content();
}

#[test]
fn docker_with_the_former_subnets_options_is_restarted_once() {
    let old = ["--bip=10.5.3.1/24"];
    let scene = Scene::new(&old, &["10.5.3.1/24"]);
    // It comes back as it was, since nobody else starts it anew here.
    let said = scene.fails();
    assert!(said.contains("does not come from"), "{said}");
    assert_eq!(scene.told(), "try-restart docker.service\n");
}

#[test]
fn bridge_that_live_restore_keeps_is_told_with_its_containers() {
    for (addresses, option) in [
        (["10.5.3.1/24", "fd00:5:0:9::1/64"], NEW[0]),
        (["10.5.9.1/24", "fd00:5:0:3::1/64"], NEW[1]),
        // Another length is another subnet.
        (["10.5.9.1/20", "fd00:5:0:9::1/64"], NEW[0]),
    ] {
        let scene = Scene::new(&NEW, &addresses);
        scene.has_containers("web\ndb\n");
        let said = scene.fails();
        let first = format!(
            "Docker was started with {option}, but its bridge docker0 is on {}\n",
            addresses.join(" ")
        );
        assert!(said.starts_with(&first), "{said}");
        assert!(said.contains("containers run: web db\n"), "{said}");
        assert!(
            said.contains("docker stop $running; systemctl restart docker.service; docker start"),
            "{said}"
        );
        // Containers are the user's, and a restart would not help.
        assert_eq!(scene.told(), "", "{said}");
        scene.move_bridge(&["10.5.9.1/24", "fd00:5:0:9::1/64"]);
        scene.is_content();
    }
    let scene = Scene::new(&NEW[..1], &["10.5.3.1/24"]);
    let many: Vec<String> = (1..=13).map(|number| format!("c{number}\n")).collect();
    scene.has_containers(&many.concat());
    let said = scene.fails();
    assert!(said.contains(" c9 c10 and 3 more\n"), "{said}");
    // Nothing holds it any more.
    scene.has_containers("");
    let said = scene.fails();
    assert!(
        said.ends_with("restart Docker: systemctl restart docker.service\n"),
        "{said}"
    );
}
