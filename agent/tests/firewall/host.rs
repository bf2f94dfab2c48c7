//! A host under test: a thread in a network namespace, with a choice of programs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use ipnet::IpNet;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use selvage::base::net::Leased;
use selvage::host::firewall::{DEFAULT_RESYNC, Error, Firewall, Mode, Rules, Watcher};
use tokio::runtime::Runtime;
use tokio::time::timeout;

pub(crate) fn rules() -> Rules {
    Rules {
        v4: Some(Leased {
            network: "10.5.0.0/16".parse().unwrap(),
            subnet: "10.5.72.0/24".parse().unwrap(),
        }),
        v6: None,
        masquerade: true,
        forward: true,
        random_fully: true,
        exclude: Vec::new(),
        outside: Vec::new(),
        devices: Vec::new(),
        prefer_nftables: false,
    }
}

pub(crate) fn dual() -> Rules {
    Rules {
        v6: Some(Leased {
            network: "fd00:5::/48".parse().unwrap(),
            subnet: "fd00:5:0:48::/64".parse().unwrap(),
        }),
        ..rules()
    }
}

pub(crate) fn nothing() -> Rules {
    Rules {
        masquerade: false,
        forward: false,
        ..dual()
    }
}

/// What a host can change its rules with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Installed {
    /// `nft` alone.
    Nft,
    /// `nft`, both kinds of iptables, and `iptables` is made from nftables.
    IptablesNft,
    /// `nft`, both kinds of iptables, and `iptables` is the old one.
    IptablesLegacy,
}

pub(crate) use Installed::{IptablesLegacy, IptablesNft, Nft};

impl Installed {
    /// What follows `iptables` in the names of the programs that the plain name stands for.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Nft | IptablesNft => "nft",
            IptablesLegacy => "legacy",
        }
    }
}

/// Runs `case` on a host of its own. The thread is that host; what it starts is on the same one.
pub(crate) fn on_host(installed: Installed, case: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let host = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                .expect("a network namespace of one's own needs root");
            install(installed);
            case();
        });
        if let Err(panic) = host.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Shows this thread, and what it starts, a `/usr/sbin` with no other programs for rules than those.
fn install(installed: Installed) {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("/usr/sbin"), "/mnt", none, MsFlags::MS_BIND, none).unwrap();
    mount(
        Some("tmpfs"),
        "/usr/sbin",
        Some("tmpfs"),
        MsFlags::empty(),
        none,
    )
    .unwrap();
    for entry in fs::read_dir("/mnt").unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.contains("tables") && name != "firewall-cmd" {
            symlink(Path::new("/mnt").join(&name), sbin(&name)).unwrap();
        }
    }
    if installed == Nft {
        return;
    }
    for (suffix, kind) in [
        ("", installed.kind()),
        ("-nft", "nft"),
        ("-legacy", "legacy"),
    ] {
        let program = format!("/mnt/xtables-{kind}-multi");
        assert!(
            Path::new(&program).exists(),
            "no {program}: install iptables"
        );
        for family in ["iptables", "ip6tables"] {
            for verb in ["", "-save", "-restore"] {
                symlink(&program, sbin(&format!("{family}{suffix}{verb}"))).unwrap();
            }
        }
    }
}

fn sbin(name: &str) -> String {
    format!("/usr/sbin/{name}")
}

/// Removes a program from this host.
pub(crate) fn uninstall(name: &str) {
    fs::remove_file(sbin(name)).unwrap();
}

/// Runs a shell command, which must succeed, and returns what it prints.
pub(crate) fn sh(command: &str) -> String {
    let output = try_sh(command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn try_sh(command: &str) -> Output {
    Command::new("sh").args(["-ec", command]).output().unwrap()
}

/// All rules of `iptables-KIND` and `ip6tables-KIND`, without what changes by itself.
pub(crate) fn saved(kind: &str) -> String {
    let text = sh(&format!("iptables-{kind}-save; ip6tables-{kind}-save"));
    let lines = text.split_inclusive('\n');
    lines.filter(|line| !line.starts_with('#')).collect()
}

/// The same without what is there whenever a table is: rules, and chains that somebody made.
pub(crate) fn made(kind: &str) -> Vec<String> {
    let is_made = |line: &&str| line.starts_with("-A") || line.ends_with(" - [0:0]");
    let saved = saved(kind);
    saved.lines().filter(is_made).map(str::to_owned).collect()
}

/// Everything of either mode and every kind on this host.
pub(crate) fn everything() -> String {
    sh("nft -a list ruleset") + &saved("nft") + &saved("legacy")
}

/// The agent on this host.
pub(crate) struct Agent {
    runtime: Runtime,
    firewall: Firewall,
    mode: Mode,
}

impl Agent {
    pub(crate) fn new(mode: Mode) -> Self {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        Self {
            runtime: runtime.enable_all().build().unwrap(),
            firewall: Firewall::new(mode, DEFAULT_RESYNC),
            mode,
        }
    }

    /// Makes the rules, and says whether anything was changed.
    pub(crate) fn ensure(&mut self, rules: &Rules) -> bool {
        self.try_ensure(rules).unwrap()
    }

    pub(crate) fn try_ensure(&mut self, rules: &Rules) -> Result<bool, Error> {
        self.runtime.block_on(self.firewall.ensure(rules))
    }

    pub(crate) fn clear(&mut self, networks: &[IpNet]) -> bool {
        self.runtime
            .block_on(self.firewall.clear(networks))
            .unwrap()
    }

    /// Forgets all it knows.
    pub(crate) fn restart(&mut self) {
        self.firewall = Firewall::new(self.mode, DEFAULT_RESYNC);
    }

    pub(crate) fn watch(&self) -> Watcher {
        self.runtime.block_on(async { Watcher::open().unwrap() })
    }

    /// Whether the watcher reports, for all that anybody can wait.
    pub(crate) fn hears(&self, watcher: &mut Watcher) -> bool {
        self.hears_within(watcher, Duration::from_secs(60))
    }

    /// Whether the watcher reports within `time`.
    pub(crate) fn hears_within(&self, watcher: &mut Watcher, time: Duration) -> bool {
        let heard = async { timeout(time, watcher.changed()).await };
        self.runtime.block_on(heard).is_ok()
    }
}
