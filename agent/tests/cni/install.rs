//! `selvage cni install` as an init container or a person calls it, and the agent at its start.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::host::{mode, run};
use crate::netns::NetNs;

const SELVAGE: &str = env!("CARGO_BIN_EXE_selvage");

/// The ConfigMap's file in kube-flannel.yml of v0.28.9, retyped.
const CNI_CONF: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
"#;

struct Host(TempDir);

impl Host {
    fn new() -> Self {
        let host = Self(TempDir::new().unwrap());
        for name in ["bin", "net.d"] {
            fs::create_dir(host.0.path().join(name)).unwrap();
        }
        fs::write(host.path("cni-conf.json"), CNI_CONF).unwrap();
        host
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn flags(&self) -> [String; 4] {
        let [bin, conf] = ["bin", "net.d"].map(|name| self.path(name));
        ["--bin-dir".into(), bin, "--conf-dir".into(), conf]
    }

    /// As the manifest's init container.
    fn install(&self) -> Command {
        let mut command = Command::new(SELVAGE);
        let conf_from = self.path("cni-conf.json");
        command
            .args(["cni", "install", "--conf-from", &conf_from])
            .args(self.flags());
        command
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(directory)).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Puts an older plugin there.
    fn put_older(&self) -> String {
        let text =
            "#!/bin/sh\necho 'CNI Plugin flannel version 0.0.1 (selvage, linux/amd64)' >&2\n";
        fs::write(self.path("bin/flannel"), text).unwrap();
        fs::set_permissions(self.path("bin/flannel"), fs::Permissions::from_mode(0o755)).unwrap();
        text.to_owned()
    }

    fn is_complete(&self) -> bool {
        fs::read(self.path("bin/flannel")).unwrap() == fs::read(SELVAGE).unwrap()
    }
}

fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{out}{err}")
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    text(&output)
}

#[test]
fn init_container_installs_a_plugin_that_answers() {
    let host = Host::new();
    let said = succeed(&mut host.install());
    assert!(said.contains("bin/flannel: version"), "{said}");
    assert!(
        said.contains("warning: ") && said.contains("bin/bridge is missing"),
        "{said}"
    );
    assert_eq!(host.names("bin"), ["flannel"]);
    assert_eq!(
        fs::read_to_string(host.path("net.d/10-flannel.conflist")).unwrap(),
        CNI_CONF
    );
    for (name, expected) in [("bin/flannel", 0o755), ("net.d/10-flannel.conflist", 0o644)] {
        assert_eq!(mode(Path::new(&host.path(name))), expected, "{name}");
        assert_eq!(fs::metadata(host.path(name)).unwrap().uid(), 0, "{name}");
    }
    let mut plugin = Command::new(host.path("bin/flannel"));
    plugin.env_clear().env("CNI_COMMAND", "VERSION");
    let answer: Value = serde_json::from_str(run(plugin, "").result()).unwrap();
    assert_eq!(answer["cniVersion"], "1.1.0");

    let inode = |name: &str| fs::metadata(host.path(name)).unwrap().ino();
    let before = inode("bin/flannel");
    let said = succeed(&mut host.install());
    assert!(said.contains("already"), "{said}");
    assert_eq!(inode("bin/flannel"), before);

    let mut status = Command::new(SELVAGE);
    let status = status
        .args(["cni", "status", "--json"])
        .args(host.flags())
        .output()
        .unwrap();
    assert_eq!(status.status.code(), Some(1), "no plugins, no subnet");
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["plugin_state"], "same");
    assert_eq!(status["conflist_state"], "ours");
    assert_eq!(status["cni_version"], "0.3.1");

    let said = succeed(
        Command::new(SELVAGE)
            .args(["cni", "uninstall", "--force"])
            .args(host.flags()),
    );
    assert_eq!(said.matches(": removed").count(), 2, "{said}");
    assert_eq!(host.names("bin").len() + host.names("net.d").len(), 0);
}

#[test]
fn wrong_config_list_ends_with_78_and_changes_nothing() {
    let host = Host::new();
    let conf = json!({"name": "cbr0", "type": "flannel"});
    fs::write(host.path("cni-conf.json"), conf.to_string()).unwrap();
    let output = host.install().output().unwrap();
    assert_eq!(output.status.code(), Some(78), "{}", text(&output));
    let said = text(&output);
    assert!(
        said.contains("cni-conf.json is no config list for flannel: plugins is missing"),
        "{said}"
    );
    assert_eq!(host.names("bin").len() + host.names("net.d").len(), 0);
}

/// Runs the installation where this directory cannot be written.
fn install_read_only(host: &Host, directory: &str) -> Output {
    let directory = host.path(directory);
    let script = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, &directory, SELVAGE]);
    command.args(host.install().get_args()).output().unwrap()
}

#[test]
fn read_only_directory_is_an_error_only_if_something_is_to_be_written() {
    for directory in ["bin", "net.d"] {
        let host = Host::new();
        let output = install_read_only(&host, directory);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let expected = format!("failed to write {}", host.path(directory));
        assert!(said.contains(&expected), "{said}");
        assert!(
            said.contains("mount the host's directory writable"),
            "{said}"
        );
        assert!(said.contains("Read-only file system"), "{said}");
        succeed(&mut host.install());
        let output = install_read_only(&host, directory);
        assert!(output.status.success(), "{}", text(&output));
    }
}

#[test]
fn killed_installation_leaves_the_old_or_the_new_plugin() {
    let host = Host::new();
    let old = host.put_older();
    for delay in (0..160).step_by(8) {
        let mut child = host.install().stdout(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        let is_old = fs::read(host.path("bin/flannel")).unwrap() == old.as_bytes();
        assert!(
            is_old || host.is_complete(),
            "half a plugin after {delay} ms"
        );
        if !is_old {
            host.put_older();
        }
    }
    succeed(&mut host.install());
    assert!(host.is_complete());
    assert_eq!(host.names("bin"), ["flannel"], "leftovers");
}

#[test]
fn installations_at_once_write_one_after_the_other() {
    let host = Host::new();
    host.put_older();
    let start = |_| host.install().stdout(Stdio::piped()).spawn().unwrap();
    let children: Vec<Child> = (0..4).map(start).collect();
    let outputs = children
        .into_iter()
        .map(|child| child.wait_with_output().unwrap());
    let mut written = 0;
    for output in outputs {
        assert!(output.status.success(), "{}", text(&output));
        written += usize::from(text(&output).contains("version 0.0.1 replaced by"));
    }
    assert_eq!(written, 1);
    assert!(host.is_complete());
    assert_eq!(host.names("bin"), ["flannel"]);
}

/// An agent that waits for etcd, in a namespace of its own.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn agent(host: &Host, netns: &NetNs, bin_dir: &str) -> Agent {
    let mut command = Command::new(SELVAGE);
    command
        .env_clear()
        .args([
            "run",
            "--etcd-endpoints=http://127.0.0.1:1",
            "--config=/dev/null",
        ])
        .arg(format!("--state-dir={}", host.path("state")))
        .arg(format!("--subnet-file={}", host.path("subnet.env")))
        .arg(format!("--socket={}", host.path("agent.sock")))
        .arg(format!("--cni-bin-dir={bin_dir}"))
        .arg(format!("--cni-conf-dir={}", host.path("net.d")))
        .arg(format!("--cni-conf-from={}", host.path("cni-conf.json")))
        .arg("--cni-install")
        .stderr(fs::File::create(host.path("log")).unwrap());
    let _inside = netns.enter();
    Agent(command.spawn().unwrap())
}

fn wait_until(what: &str, log: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        let log = || fs::read_to_string(log).unwrap_or_default();
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "{what}: {}",
            log()
        );
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn agent_installs_at_its_start_and_goes_on_without() {
    let (host, netns) = (Host::new(), NetNs::new());
    let log = host.path("log");
    {
        let _agent = agent(&host, &netns, &host.path("bin"));
        let conflist = host.path("net.d/10-flannel.conflist");
        wait_until("the config list", &log, || Path::new(&conflist).exists());
        assert!(host.is_complete());
        wait_until("the control socket", &log, || {
            Path::new(&host.path("agent.sock")).exists()
        });
    }
    fs::remove_file(host.path("agent.sock")).unwrap_or_default();
    // A file where a directory should be.
    let mut agent = agent(&host, &netns, &host.path("cni-conf.json"));
    wait_until("the control socket", &log, || {
        Path::new(&host.path("agent.sock")).exists()
    });
    let said = fs::read_to_string(&log).unwrap();
    assert!(
        said.contains("the CNI plugin is not installed: failed to make"),
        "{said}"
    );
    assert!(agent.0.try_wait().unwrap().is_none(), "{said}");
}

/// Runs the installation as a pod's root, with only these capabilities.
fn install_with(host: &Host, capabilities: &str) -> Output {
    let keep = format!("--bounding-set=-all,{capabilities}");
    let mut command = Command::new("setpriv");
    command.args([keep.as_str(), "--inh-caps=-all", SELVAGE]);
    command.args(host.install().get_args()).output().unwrap()
}

#[test]
fn pod_without_privileges_installs_into_directories_of_root_and_says_what_it_lacks() {
    let host = Host::new();
    let output = install_with(&host, "+dac_override");
    assert!(output.status.success(), "{}", text(&output));
    // As kubespray leaves them.
    for name in ["net.d/10-flannel.conflist", "bin", "net.d"] {
        chown(host.path(name), Some(1000), Some(1000)).unwrap();
    }
    let output = install_with(&host, "+dac_override");
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("warning: failed to change the mode or owner of"),
        "{said}"
    );

    host.put_older();
    let output = install_with(&host, "+dac_override");
    assert!(output.status.success(), "{}", text(&output));
    assert!(host.is_complete());
    host.put_older();
    let output = install_with(&host, "-dac_override");
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    assert!(
        said.contains("a pod needs CAP_DAC_OVERRIDE, too): Permission denied"),
        "{said}"
    );
}
