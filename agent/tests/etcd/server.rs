//! An etcd server of a test's own, on loopback.

use std::net::{SocketAddr, TcpListener};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use etcd_client::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use selvage::cluster::lease::etcd::EtcdStore;
use selvage::settings::Etcd;

use crate::authority::loopback;

/// Killed, with its data, when dropped.
pub(crate) struct Server {
    dir: tempfile::TempDir,
    client: SocketAddr,
    peer: SocketAddr,
    /// The cluster that it is a member of, if it is not one by itself.
    cluster: Option<String>,
    tls: bool,
    args: Vec<String>,
    child: Option<Child>,
}

impl Server {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            client: free_port(),
            peer: free_port(),
            cluster: None,
            tls: false,
            args: Vec::new(),
            child: None,
        }
    }

    /// Starts a server and waits until it answers.
    pub(crate) async fn start() -> Self {
        let mut server = Self::new();
        server.up().await;
        server
    }

    /// Starts the three members of a cluster and waits until all answer.
    pub(crate) async fn start_cluster() -> [Self; 3] {
        let mut members = [(); 3].map(|()| Self::new());
        let names: Vec<_> = members.iter().map(Self::as_member).collect();
        for member in &mut members {
            member.cluster = Some(names.join(","));
            // Three of them share the processor with other tests, and must not depose each other for being slow.
            member.args = ["--heartbeat-interval=100", "--election-timeout=1000"]
                .map(str::to_owned)
                .to_vec();
            member.spawn();
        }
        for member in &members {
            member.wait_until_it_answers().await;
        }
        members
    }

    /// Starts a server that speaks TLS only; `args` say with which certificates. Does not wait.
    pub(crate) fn start_with_tls(args: Vec<String>) -> Self {
        let mut server = Self::new();
        server.tls = true;
        server.args = args;
        server.spawn();
        server
    }

    /// How members of a cluster name each other. Peer addresses are unique, so they serve as names.
    fn as_member(&self) -> String {
        format!("{0}=http://{0}", self.peer)
    }

    /// Where it listens for clients.
    pub(crate) fn address(&self) -> SocketAddr {
        self.client
    }

    /// The address for clients.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.client)
    }

    /// Starts the server again, with its old data on its old port.
    pub(crate) async fn up(&mut self) {
        self.spawn();
        self.wait_until_it_answers().await;
    }

    /// The same without a plain client's proof that it answers.
    pub(crate) fn up_without_waiting(&mut self) {
        self.spawn();
    }

    fn spawn(&mut self) {
        assert!(self.child.is_none());
        let (client, peer) = (self.url(), format!("http://{}", self.peer));
        let cluster = self.cluster.clone().unwrap_or_else(|| self.as_member());
        let log = std::fs::File::create(self.log()).unwrap();
        // A kube-apiserver asks for a newer one than Debian's.
        let program = std::env::var_os("ETCD").unwrap_or_else(|| "etcd".into());
        let child = Command::new(program)
            .arg(format!("--name={}", self.peer))
            .arg(format!(
                "--data-dir={}",
                self.dir.path().join("data").display()
            ))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster={cluster}"))
            .args(["--logger=zap", "--log-outputs=stderr"])
            // A server alone elects itself; the usual second would be most of what these tests take.
            .args(["--heartbeat-interval=20", "--election-timeout=200"])
            .args(&self.args)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("etcd (package etcd-server) is needed for this test"));
    }

    /// Kills the server without warning.
    pub(crate) fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Makes the next start use another address for clients. Returns the one before.
    pub(crate) fn move_to(&mut self, client: SocketAddr) -> SocketAddr {
        assert!(self.child.is_none());
        std::mem::replace(&mut self.client, client)
    }

    /// Makes the next start begin with no data.
    pub(crate) fn forget(&mut self) {
        assert!(self.child.is_none());
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
    }

    /// Writes a backup of the data.
    pub(crate) fn save(&self) -> PathBuf {
        let backup = self.dir.path().join("backup");
        etcdctl(
            Command::new("etcdctl")
                .arg(format!("--endpoints={}", self.url()))
                .args(["snapshot", "save"])
                .arg(&backup),
        );
        backup
    }

    /// Makes the next start begin with the data of a backup. The cluster ID is made from the token and the addresses, which
    /// stay as they are; the usual token is `etcd-cluster`.
    pub(crate) fn restore(&mut self, backup: &Path, token: &str) {
        self.forget();
        etcdctl(
            Command::new("etcdctl")
                .args(["snapshot", "restore"])
                .arg(backup)
                .arg(format!("--name={}", self.peer))
                .arg(format!(
                    "--data-dir={}",
                    self.dir.path().join("data").display()
                ))
                .arg(format!("--initial-cluster={}", self.as_member()))
                .arg(format!("--initial-cluster-token={token}"))
                .arg(format!(
                    "--initial-advertise-peer-urls=http://{}",
                    self.peer
                )),
        );
    }

    /// Stops the process as a frozen machine would be: its connections stay open, and nothing answers.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub(crate) fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().expect("the server runs").id();
        kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Waits until it answers, as it does with a leader alone.
    pub(crate) async fn wait_until_it_answers(&self) {
        let limit = Duration::from_secs(90);
        let deadline = Instant::now() + limit;
        loop {
            let mut client = self.client().await;
            // With authentication a refusal is an answer, too; without a connection there are no answers.
            match tokio::time::timeout(Duration::from_secs(1), client.get("up", None)).await {
                Ok(Ok(_)) => return,
                Ok(Err(error)) if error.to_string().contains("etcdserver: user name is empty") => {
                    return;
                }
                _ => {}
            }
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(self.log()).unwrap_or_default();
                panic!("etcd does not answer within {limit:?}; its log:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A plain client, to look at the store and to meddle with it.
    pub(crate) async fn client(&self) -> Client {
        Client::connect([self.url()], None).await.unwrap()
    }

    /// The agent's store for a machine.
    pub(crate) fn store(&self, owner: &str) -> EtcdStore {
        self.store_with(owner, |_| {})
    }

    /// The same with other settings.
    pub(crate) fn store_with(
        &self,
        owner: &str,
        change: impl FnOnce(&mut StoreSettings),
    ) -> EtcdStore {
        let mut settings = StoreSettings {
            etcd: Etcd {
                endpoints: vec![self.url()],
                ..Etcd::default()
            },
            grace: Duration::from_secs(20),
        };
        change(&mut settings);
        EtcdStore::with_grace(settings.etcd, owner.to_owned(), settings.grace).unwrap()
    }
}

/// The settings of a store, and for how long what vanished in an outage counts as there.
pub(crate) struct StoreSettings {
    etcd: Etcd,
    pub(crate) grace: Duration,
}

impl Deref for StoreSettings {
    type Target = Etcd;

    fn deref(&self) -> &Etcd {
        &self.etcd
    }
}

impl DerefMut for StoreSettings {
    fn deref_mut(&mut self) -> &mut Etcd {
        &mut self.etcd
    }
}

fn etcdctl(command: &mut Command) {
    let output = command.env("ETCDCTL_API", "3").output();
    let output = output.expect("etcdctl (package etcd-client) is needed for this test");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {stderr}");
}

impl Drop for Server {
    fn drop(&mut self) {
        self.down();
    }
}

/// A port that nobody else uses, now or later: on the address of this process. Where all tests are on 127.0.0.1, the port of
/// a server that is down for a moment may be given to anybody who connects to another.
pub(crate) fn free_port() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    loop {
        let address = (loopback(), NEXT.fetch_add(1, Ordering::Relaxed));
        // A program of the machine's own may have it on all addresses.
        if TcpListener::bind(address).is_ok() {
            return address.into();
        }
    }
}
