//! A running `selvage serve`, and a plain HTTP client.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::etcd::{self, free_port};
use crate::wait::{PATIENCE, wait_for, wait_until};

/// A server of leases; killed when dropped.
pub(crate) struct Program {
    child: Child,
    pub(crate) address: SocketAddr,
    directory: TempDir,
}

impl Program {
    /// Starts one on loopback before an etcd, with more arguments, and waits until it is ready.
    pub(crate) fn start(etcd: &etcd::Server, arguments: &[String]) -> Self {
        Self::start_at(free_port(), etcd, arguments)
    }

    /// The same at a known address.
    pub(crate) fn start_at(address: SocketAddr, etcd: &etcd::Server, arguments: &[String]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_selvage"));
        command
            .args(["serve", "--etcd-endpoints", &etcd.url()])
            .args(["--listen", &address.to_string()])
            .args(arguments);
        if !arguments
            .iter()
            .any(|arg| arg.starts_with("--remote-cafile"))
        {
            command.arg("--insecure");
        }
        Self::run(command, address)
    }

    /// Runs a prepared command that serves at an address, and waits until it is ready.
    pub(crate) fn run(mut command: Command, address: SocketAddr) -> Self {
        let directory = TempDir::new().expect("a directory");
        let socket = directory.path().join("notify");
        let notify = UnixDatagram::bind(&socket).expect("the notify socket");
        notify.set_nonblocking(true).expect("a socket");
        let log = fs::File::create(directory.path().join("log")).expect("a log");
        let child = command
            .env("NOTIFY_SOCKET", &socket)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("selvage serve");
        let mut program = Self {
            child,
            address,
            directory,
        };
        wait_for(PATIENCE, "the server to be ready", || {
            let mut buffer = [0; 1024];
            while let Ok(length) = notify.recv(&mut buffer) {
                if buffer[..length].starts_with(b"READY=1") {
                    return Some(());
                }
            }
            let ended = program.child.try_wait().expect("the server's status");
            assert!(ended.is_none(), "{ended:?}\n{}", program.log());
            None
        });
        program
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Asks it to stop, and returns its exit status.
    pub(crate) fn stop(mut self) -> Option<i32> {
        let id = i32::try_from(self.child.id()).expect("a process id");
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(id),
            nix::sys::signal::Signal::SIGTERM,
        )
        .expect("to signal the server");
        wait_for(PATIENCE, "the server to end", || {
            self.child.try_wait().expect("the server's status")
        })
        .code()
    }

    /// How many files it has open.
    pub(crate) fn open_files(&self) -> usize {
        let directory = format!("/proc/{}/fd", self.child.id());
        fs::read_dir(directory).expect("its files").count()
    }

    /// One request and the answer to it.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> Reply {
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        Reply::parse(&self.send(text.as_bytes()))
    }

    /// Waits until it lists so many leases: what it was asked to write it hears of a moment later.
    pub(crate) fn wait_listed(&self, leases: usize) {
        wait_until("the server to list the leases", || {
            let all = self.ask("GET", "/v1/_/leases", "").json();
            all["snapshot"].as_array().map(Vec::len) == Some(leases)
        });
    }

    /// Whatever is sent, and all that comes back until the connection ends.
    pub(crate) fn send(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        // The server may have had enough before all is sent.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!(
                "--- {}: what the server logged\n{}",
                self.address,
                self.log()
            );
        }
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: String,
    pub(crate) body: String,
}

impl Reply {
    fn parse(text: &str) -> Self {
        let (headers, body) = text.split_once("\r\n\r\n").expect("a whole answer");
        let status = headers.split(' ').nth(1).and_then(|s| s.parse().ok());
        Self {
            status: status.expect("a status"),
            headers: headers.to_lowercase(),
            body: body.to_owned(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let prefix = format!("{name}: ");
        let mut lines = self.headers.lines();
        lines.find_map(|line| line.strip_prefix(&prefix))
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
