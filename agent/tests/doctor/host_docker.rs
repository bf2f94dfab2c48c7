//! A stand-in for Docker's API: it says of networks and containers what it is told, in Docker's own form. That Docker
//! itself says it so is shown where there is a real one, in the booted image.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

/// The stand-in; it answers until the test's process ends.
pub(crate) struct Docker {
    directory: TempDir,
}

impl Docker {
    pub(crate) fn start(networks: &Value, containers: &Value) -> Self {
        Self::with_live_restore(networks, containers, false)
    }

    pub(crate) fn with_live_restore(networks: &Value, containers: &Value, live: bool) -> Self {
        let info = json!({"ID": "7f", "LiveRestoreEnabled": live}).to_string();
        let directory = TempDir::new().expect("a directory for the socket");
        let listener = UnixListener::bind(directory.path().join("docker.sock")).expect("a socket");
        let (networks, containers) = (networks.to_string(), containers.to_string());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let mut line = String::new();
                let mut reader = BufReader::new(stream.try_clone().expect("the connection"));
                reader.read_line(&mut line).expect("a request");
                let body = match line.split(' ').nth(1) {
                    Some("/networks") => &networks,
                    Some("/containers/json") => &containers,
                    Some("/info") => &info,
                    _ => panic!("{line}"),
                };
                let head = "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n";
                stream
                    .write_all(format!("{head}{body}").as_bytes())
                    .expect("to answer");
            }
        });
        Self { directory }
    }

    /// What `DOCKER_HOST` is to say.
    pub(crate) fn address(&self) -> String {
        format!(
            "unix://{}",
            self.directory.path().join("docker.sock").display()
        )
    }
}

/// The default bridge, as Docker 20.10 describes it.
pub(crate) fn bridge(subnet: &str, mtu: &str, icc: bool) -> Value {
    json!([
        {"Name": "host", "Id": "1b", "Driver": "host", "IPAM": {"Driver": "default", "Options": null, "Config": []},
         "Options": {}},
        {"Name": "bridge", "Id": "2a", "Created": "2026-01-01T00:00:00Z", "Scope": "local", "Driver": "bridge",
         "EnableIPv6": false, "IPAM": {"Driver": "default", "Options": null, "Config": [{"Subnet": subnet}]},
         "Internal": false, "Containers": {}, "Options": {
            "com.docker.network.bridge.default_bridge": "true",
            "com.docker.network.bridge.enable_icc": icc.to_string(),
            "com.docker.network.bridge.name": "docker0",
            "com.docker.network.driver.mtu": mtu}},
    ])
}

/// A running container on the default bridge.
pub(crate) fn container(name: &str, address: &str) -> Value {
    json!({"Id": "0123456789abcdef", "Names": [format!("/{name}")], "State": "running",
           "NetworkSettings": {"Networks": {"bridge": {"IPAddress": address, "GlobalIPv6Address": ""}}}})
}

/// A process that looks like dockerd: by its name and its command line.
pub(crate) struct Daemon {
    child: Child,
    _directory: TempDir,
}

impl Daemon {
    pub(crate) fn start(options: &[&str]) -> Self {
        let directory = TempDir::new().expect("a directory for the program");
        let program = directory.path().join("dockerd");
        fs::copy("/bin/sh", &program).expect("a shell");
        // It waits until its input ends, which is with this value.
        let child = Command::new(&program)
            .args(["-c", "read line", "dockerd"])
            .args(options)
            .stdin(Stdio::piped())
            .spawn()
            .expect("a shell");
        Self {
            child,
            _directory: directory,
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
