//! A charon for a host, with the settings that the image has, and swanctl to ask it.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use crate::host::Host;
use crate::namespace::Namespace;
use crate::wait::{look_until, wait_until};

/// The image's settings.
const SETTINGS: &str = include_str!("../../../../units/selvage/charon.conf");

/// Whether this kernel has ESP: an association with the null cipher needs nothing else.
pub(super) fn has_esp() -> bool {
    let namespace = Namespace::new();
    let mut command = namespace.command("ip");
    let state = "xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x100 mode tunnel enc";
    command.args(state.split(' '));
    command.args(["ecb(cipher_null)", "", "auth", "digest_null", ""]);
    command.output().expect("ip").status.success()
}

/// What gets new keys.
#[derive(Clone, Copy, Debug)]
pub(super) enum Renewed {
    /// IKE's association.
    Association,
    /// The tunnel.
    Tunnel,
}

/// The name of the tunnel that [`Charon::load_flannels`] loads.
const FLANNELS_TUNNEL: &str = "tunnel";

pub(super) struct Charon {
    namespace: Arc<Namespace>,
    directory: TempDir,
    child: Option<Child>,
}

impl Charon {
    /// Starts it on a host, and waits until it answers.
    pub(super) fn start(host: &Host) -> Self {
        let mut charon = Self {
            namespace: Arc::clone(&host.namespace),
            directory: TempDir::new().expect("a directory for charon"),
            child: None,
        };
        let socket = charon.socket();
        let settings = SETTINGS.replace("/run/selvage/charon.vici", &socket.display().to_string());
        assert_ne!(settings, SETTINGS);
        let log = format!(
            "\ncharon-systemd {{\n filelog {{\n  log {{\n   path = {}\n   default = 1\n   flush_line = yes\n  }}\n }}\n}}\n",
            charon.log().display()
        );
        fs::write(charon.path("charon.conf"), settings + &log).expect("charon's settings");
        charon.restart(host);
        charon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn log(&self) -> PathBuf {
        self.path("log")
    }

    /// Its VICI socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.path("charon.vici")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.namespace.command(program);
        command.env("STRONGSWAN_CONF", self.path("charon.conf"));
        command
    }

    /// Starts it again.
    pub(super) fn restart(&mut self, host: &Host) {
        assert!(self.child.is_none(), "{} has a charon", host.address);
        let child = self
            .command("charon-systemd")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("charon-systemd (package charon-systemd)");
        self.child = Some(child);
        wait_until("charon to answer", || self.try_swanctl("--stats").is_some());
    }

    /// Kills it outright.
    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("to kill charon");
            child.wait().expect("charon's end");
        }
    }

    fn try_swanctl(&self, arguments: &str) -> Option<String> {
        let output = self
            .command("swanctl")
            .args(arguments.split(' '))
            .arg("--uri")
            .arg(format!("unix://{}", self.socket().display()))
            .output()
            .expect("swanctl (package strongswan-swanctl)");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(text)
    }

    /// What swanctl prints, whether it succeeds or not.
    pub(super) fn swanctl(&self, arguments: &str) -> String {
        self.try_swanctl(arguments).unwrap_or_default()
    }

    /// Its associations, as swanctl prints them.
    pub(super) fn associations(&self) -> String {
        self.swanctl("--list-sas")
    }

    /// The names of its connections.
    pub(super) fn connections(&self) -> Vec<String> {
        let text = self.swanctl("--list-conns");
        let names = text.lines().filter(|line| !line.starts_with(' '));
        // What follows is wrong for names with dots.
        let names = names.filter_map(|line| line.split_once(": "));
        names.map(|(name, _)| name.to_owned()).collect()
    }

    /// Waits until it and a peer's have proved who they are.
    pub(super) fn wait_established(&self, peer: &Host) {
        let address = peer.address.to_string();
        look_until(
            "an association",
            || self.associations(),
            |text| {
                let lines: Vec<_> = text.lines().collect();
                lines
                    .windows(3)
                    .any(|three| three[0].contains("ESTABLISHED") && three[2].contains(&address))
            },
        );
    }

    /// Ends the association with a peer, and begins another. Returns whether the peers accept each other.
    pub(super) fn reconnects(&self, peer: &Host) -> bool {
        let Some(name) = self.connections().pop() else {
            return false;
        };
        self.swanctl(&format!("--terminate --force --timeout 30 --ike {name}"));
        self.swanctl(&format!("--initiate --timeout 30 --ike {name}"));
        let text = self.associations();
        text.contains("ESTABLISHED") && text.contains(&peer.address.to_string())
    }

    /// Replaces the secret that it has for a peer.
    pub(super) fn load_secret(&self, host: &Host, peer: &Host, secret: &str) {
        let name = self.connections().pop().expect("a connection");
        assert!(name.contains(&host.address.to_string()), "{name}");
        let id = peer.address;
        self.write_config(&format!(
            "secrets {{\n ike-wrong {{\n  id = {id}\n  secret = {secret}\n }}\n}}\n"
        ));
        // Unloads what is not in its file.
        self.load("--load-creds --clear");
    }

    fn write_config(&self, text: &str) {
        fs::write(self.path("swanctl.conf"), text).expect("swanctl's settings");
    }

    fn load(&self, what: &str) {
        let file = self.path("swanctl.conf").display().to_string();
        let loaded = self.try_swanctl(&format!("{what} --file {file}"));
        assert!(loaded.is_some(), "swanctl {what} failed");
    }

    /// Loads what a flannel on `host` loads for one peer, and sets the policies that it sets. Only the names are others: with
    /// flannel's, which have dots, swanctl.conf(5) could not have them.
    pub(super) fn load_flannels(
        &self,
        host: &Host,
        subnet: &str,
        peer: &Host,
        peer_subnet: &str,
        secret: &str,
    ) {
        let (here, there) = (host.address, peer.address);
        self.write_config(&format!(
            "connections {{
 flannel {{
  local_addrs = {here}
  remote_addrs = {there}
  proposals = aes256-sha256-modp4096
  version = 2
  keyingtries = 0
  encap = no
  local {{
   auth = psk
  }}
  remote {{
   auth = psk
  }}
  children {{
   {FLANNELS_TUNNEL} {{
    local_ts = {subnet}
    remote_ts = {peer_subnet}
    esp_proposals = aes128gcm16-sha256-prfsha256-ecp256
    start_action = start
    close_action = trap
    dpd_action = restart
    mode = tunnel
    reqid = 11
    rekey_time = 1h
    policies = no
   }}
  }}
 }}
}}
secrets {{
 ike-own {{
  id = {here}
  secret = {secret}
 }}
 ike-peer {{
  id = {there}
  secret = {secret}
 }}
}}
"
        ));
        for (direction, from, to, outer, end) in [
            ("out", subnet, peer_subnet, here, there),
            ("in", peer_subnet, subnet, there, here),
            ("fwd", peer_subnet, subnet, there, here),
        ] {
            host.namespace.ip(&format!(
                "xfrm policy add src {from} dst {to} dir {direction} tmpl src {outer} dst {end} proto esp reqid 11 mode tunnel"
            ));
        }
        self.load("--load-creds");
        self.load("--load-conns");
        assert!(!self.connections().is_empty(), "{}", self.said());
    }

    /// Gives the tunnel of its one connection new keys, or the association that the tunnel belongs to.
    pub(super) fn renew(&self, what: Renewed) {
        let name = self.connections().pop().expect("a connection");
        let order = match what {
            Renewed::Association => format!("--rekey --ike {name}"),
            Renewed::Tunnel => format!("--rekey --child {}", tunnel_of(&name)),
        };
        let before = self.renewals(what);
        self.swanctl(&order);
        wait_until("new keys", || self.renewals(what) > before);
    }

    /// How often that was done, at either end's request, by the log.
    fn renewals(&self, what: Renewed) -> usize {
        let line = match what {
            Renewed::Association => "rekeyed between",
            // With the state for packets that leave.
            Renewed::Tunnel => "outbound CHILD_SA",
        };
        self.said().matches(line).count()
    }

    /// Its log.
    pub(super) fn said(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }
}

/// The name of a connection's tunnel: the subnets of `PUBLIC-SUBNET-SUBNET-PUBLIC`. The double of a flannel node has another.
fn tunnel_of(connection: &str) -> String {
    match connection.split('-').collect::<Vec<_>>()[..] {
        [_, own, other, _] => format!("{own}-{other}"),
        _ => FLANNELS_TUNNEL.to_owned(),
    }
}

impl Drop for Charon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let directory = self.directory.path().display();
            eprintln!("--- charon in {directory} logged\n{}", self.said());
            eprintln!("--- its associations\n{}", self.associations());
        }
        self.kill();
    }
}
