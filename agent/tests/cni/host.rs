//! A host with the plugin, a delegate that records its calls, and a `subnet.env`.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// The usual `subnet.env`: our subnet is 10.1.17.0/24.
pub(crate) const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n\
                                     FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";

/// The result of the recording delegate, in a layout that nobody would make of it again.
pub(crate) const RESULT: &str = "{ \"cniVersion\" :\"0.4.0\",\n\"ips\":[ ]}";

/// A plugin that writes down each call and what it finds remembered of it, and answers as the files beside it say.
const RECORDER: &str = r#"#!/bin/sh
here=${0%/*}
if [ "$CNI_COMMAND" = VERSION ]; then cat "$here/versions"; exit; fi
{
  echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME netns=$CNI_NETNS args=$CNI_ARGS path=${CNI_PATH##*/}"
  cat
  echo
} >> "$here/calls"
cp "$here/../data/$CNI_CONTAINERID" "$here/remembered" 2>/dev/null
echo "words for the log" >&2
if [ -e "$here/fail-$CNI_COMMAND" ]; then cat "$here/fail-$CNI_COMMAND"; exit 3; fi
if [ "$CNI_COMMAND" = ADD ]; then cat "$here/result"; fi
"#;

/// No call takes longer than this, not even with a busy executable.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Host {
    directory: TempDir,
    /// `CNI_PATH`.
    pub(crate) plugins: PathBuf,
}

/// How a call ended.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) succeeded: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Answer {
    /// The error's code and message.
    pub(crate) fn error(&self) -> (u64, String) {
        assert!(!self.succeeded, "{self:?}");
        let error: Value =
            serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        let message = error["msg"].as_str().unwrap_or_default().to_owned();
        (error["code"].as_u64().unwrap_or_default(), message)
    }

    /// What it printed, having succeeded.
    pub(crate) fn result(&self) -> &str {
        assert!(self.succeeded, "{self:?}");
        &self.stdout
    }
}

impl Host {
    /// A host whose delegate is the recording one, of version 1.0.0.
    pub(crate) fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let plugins = directory.path().join("plugins");
        let host = Self { directory, plugins };
        fs::create_dir(host.path("bin")).unwrap();
        fs::create_dir(&host.plugins).unwrap();
        symlink(env!("CARGO_BIN_EXE_selvage"), host.path("bin/flannel")).unwrap();
        host.install("bridge", RECORDER);
        host.install("host-local", "#!/bin/sh\nexit 9\n");
        host.write("plugins/result", RESULT);
        host.delegate_speaks(&["0.4.0", "1.0.0"]);
        host.write("subnet.env", SUBNET_ENV);
        host
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, contents: &str) {
        fs::write(self.path(name), contents).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// Puts a plugin into `CNI_PATH`.
    pub(crate) fn install(&self, name: &str, script: &str) {
        let path = self.plugins.join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Makes host-local a recording plugin, too: its calls begin with its name.
    pub(crate) fn record_host_local(&self) {
        let named = RECORDER.replace("echo \"$CNI_COMMAND", "echo \"host-local $CNI_COMMAND");
        self.install("host-local", &named);
    }

    pub(crate) fn delegate_speaks(&self, versions: &[&str]) {
        let answer = json!({"cniVersion": versions.last(), "supportedVersions": versions});
        self.write("plugins/versions", &answer.to_string());
    }

    /// The calls of the recording delegate since this was last asked, each its variables and its configuration.
    pub(crate) fn calls(&self) -> Vec<(String, String)> {
        let text = fs::read_to_string(self.path("plugins/calls")).unwrap_or_default();
        let _ = fs::remove_file(self.path("plugins/calls"));
        let lines: Vec<_> = text.lines().collect();
        let pairs = lines.chunks(2);
        pairs
            .map(|pair| (pair[0].to_owned(), pair[1].to_owned()))
            .collect()
    }

    /// The names in the data directory, sorted.
    pub(crate) fn remembered(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path("data")) else {
            return Vec::new();
        };
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        let mut names: Vec<_> = entries.map(|entry| name(entry.unwrap())).collect();
        // The mark of the boot is about no container.
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        names
    }

    /// A configuration for this host's files, with more keys.
    pub(crate) fn conf(&self, more: Value) -> String {
        let mut conf = json!({
            "name": "net", "type": "flannel", "cniVersion": "0.4.0",
            "subnetFile": self.path("subnet.env"), "dataDir": self.path("data"),
        });
        let (Value::Object(conf), Value::Object(more)) = (&mut conf, more) else {
            panic!("more keys must be an object");
        };
        conf.extend(more);
        conf.retain(|_, value| !value.is_null());
        json!(conf).to_string()
    }

    /// Calls the plugin about interface `eth0` of container `c1`.
    pub(crate) fn call(&self, command: &str, conf: &str) -> Answer {
        self.call_about(command, "c1", "eth0", conf)
    }

    pub(crate) fn call_about(
        &self,
        command: &str,
        container: &str,
        interface: &str,
        conf: &str,
    ) -> Answer {
        let mut process = self.plugin();
        process
            .env("CNI_COMMAND", command)
            .env("CNI_PATH", &self.plugins);
        if !matches!(command, "GC" | "STATUS") {
            process
                .env("CNI_CONTAINERID", container)
                .env("CNI_IFNAME", interface)
                .env("CNI_NETNS", "/run/netns/x")
                .env("CNI_ARGS", "A=1");
        }
        run(process, conf)
    }

    /// The plugin with an empty environment, but for `PATH`.
    pub(crate) fn plugin(&self) -> Command {
        let mut process = Command::new(self.path("bin/flannel"));
        process
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        process
    }
}

/// Runs a plugin with this on its standard input; panics if it takes too long.
pub(crate) fn run(mut process: Command, stdin: &str) -> Answer {
    let mut child = process
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let text = stdin.to_owned();
    // It may end before it has read everything.
    let writer = thread::spawn(move || drop(input.write_all(text.as_bytes())));
    let stdout = collect(child.stdout.take().unwrap());
    let stderr = collect(child.stderr.take().unwrap());
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > DEADLINE {
            child.kill().unwrap();
            panic!("the plugin did not end within {DEADLINE:?}");
        }
        thread::sleep(Duration::from_millis(2));
    };
    writer.join().unwrap();
    Answer {
        succeeded: status.success(),
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

fn collect(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        from.read_to_string(&mut text).unwrap();
        text
    })
}

/// A delegate's configuration as flannel's plugin leaves it.
pub(crate) fn of_flannel(network: &str) -> String {
    json!({
        "name": network, "type": "bridge", "cniVersion": "0.4.0", "of": "flannel",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.17.0/24"}]]},
    })
    .to_string()
}

/// The commands, containers and interfaces of the delegate's calls, with their networks.
pub(crate) fn summary(host: &Host) -> Vec<String> {
    let line = |(variables, conf): (String, String)| {
        let conf: Value = serde_json::from_str(&conf).unwrap();
        let words: Vec<_> = variables.split(' ').take(3).collect();
        format!("{} {}", words.join(" "), conf["name"].as_str().unwrap())
    };
    host.calls().into_iter().map(line).collect()
}

/// A file's permission bits.
pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}
