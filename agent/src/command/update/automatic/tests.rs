use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;

use super::*;
use crate::appliance::update::samples::server::{Fault, TestServer};
use crate::appliance::update::samples::{self, Site};
use crate::appliance::update::state::LastCheck;
use crate::appliance::update::turn::TurnError;
use crate::appliance::update::version::Version;
use crate::settings::{self, Environment, SettingsFlags, Sources};

/// A fleet that answers as it is told, and writes down what it is asked.
#[derive(Clone, Default)]
struct Fleet {
    start: Option<Leave>,
    lock: Option<Leave>,
    bad_drain: bool,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fleet {
    fn note(&self, what: &str) {
        self.asked.lock().unwrap().push(what.to_owned());
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Turn for Fleet {
    async fn may_start(&mut self, release: &Release) -> Result<Leave, TurnError> {
        self.note(&format!("start {}", release.version));
        Ok(self.start.clone().unwrap_or(Leave::Now))
    }

    async fn acquire(&mut self, version: &Version) -> Result<Leave, TurnError> {
        self.note(&format!("lock {version}"));
        Ok(self.lock.clone().unwrap_or(Leave::Now))
    }

    async fn release(&mut self) -> Result<(), TurnError> {
        self.note("release");
        Ok(())
    }

    async fn settle(&mut self, state: &State, running: &Version) -> Result<(), TurnError> {
        let pending = state
            .pending
            .as_ref()
            .map_or("nothing", |pending| &pending.version);
        self.note(&format!("settle {running} {pending}"));
        Ok(())
    }

    async fn drain(&mut self, _: &Version) -> Result<(), TurnError> {
        self.note("drain");
        match self.bad_drain {
            true => Err("a hook failed".into()),
            false => Ok(()),
        }
    }
}

struct World {
    server: TestServer,
    root: tempfile::TempDir,
    fleet: Fleet,
}

/// 2026-11-29 is a Sunday.
const NOON: u64 = 1_795_953_600;

impl World {
    async fn new(settings: &str, severity: &str) -> Self {
        let mut site = Site::new();
        let mut release = samples::release("1.1", &mut site);
        release["severity"] = severity.into();
        samples::publish(&mut site, 5, &[release]);
        let server = TestServer::start(site).await;
        let settings = format!(
            "server = \"http://{}/releases\"\ntime-zone = \"local\"\n{settings}",
            server.address
        );
        Self {
            root: samples::machine("1.0", &settings),
            server,
            fleet: Fleet::default(),
        }
    }

    fn machine(&self) -> Machine {
        let settings = settings::update::load(Sources {
            root: self.root.path(),
            config: None,
            environment: &Environment::default(),
            flags: &SettingsFlags::default(),
        });
        Machine::new(self.root.path(), settings.unwrap()).unwrap()
    }

    /// What a run says whose clock is so.
    async fn run_by(&mut self, clock: impl Fn() -> u64) -> Result<Stop, Error> {
        let machine = self.machine();
        let run = Run {
            machine: &machine,
            root: self.root.path(),
            turn: &mut self.fleet,
            health: &async || Health::default(),
            clock: || UNIX_EPOCH + Duration::from_secs(clock()),
        };
        run.run().await
    }

    /// What a run at a time says.
    async fn run_at(&mut self, secs: u64) -> Result<Stop, Error> {
        self.run_by(|| secs).await
    }

    async fn run(&mut self) -> String {
        self.run_at(NOON).await.unwrap().to_string()
    }

    fn reboots(&self) -> String {
        std::fs::read_to_string(self.root.path().join("systemctl")).unwrap_or_default()
    }

    fn has_entry(&self, counter: &str) -> bool {
        let name = format!("efi/EFI/Linux/selvage_1.1{counter}.efi");
        self.root.path().join(name).exists()
    }

    fn is_installed(&self) -> bool {
        self.has_entry("+0-0") || self.is_armed()
    }

    /// Whether the next boot starts the new version.
    fn is_armed(&self) -> bool {
        self.has_entry("+3-0")
    }

    fn downloads(&self) -> usize {
        self.server.requests(".zst").len()
    }
}

#[tokio::test]
async fn the_settings_say_how_far_it_goes() {
    for (auto, expected, downloads, installed, rebooted) in [
        ("off", "no updates: update.auto is off", 0, false, ""),
        (
            "check",
            "version 1.1 is available in the channel stable",
            0,
            false,
            "",
        ),
        ("download", "version 1.1 is downloaded", 3, false, ""),
        (
            "apply",
            "rebooting into version 1.1",
            3,
            true,
            "reboot --no-block\n",
        ),
    ] {
        let mut world = World::new(&format!("auto = \"{auto}\""), "normal").await;
        assert_eq!(world.run().await, expected);
        assert_eq!(world.downloads(), downloads, "{auto}");
        assert_eq!(world.is_installed(), installed, "{auto}");
        assert_eq!(world.reboots(), rebooted, "{auto}");
    }
    let mut world = World::new("", "normal").await;
    std::fs::write(world.root.path().join("etc/selvage/agent.toml"), "").unwrap();
    assert_eq!(world.run().await, "no updates: update.server is not set");
}

#[tokio::test]
async fn installation_and_reboot_wait_for_a_window_but_the_download_does_not() {
    let settings = "auto = \"apply\"\nwindows = [\"Mon 02:00-03:00\"]";
    let mut world = World::new(settings, "security").await;
    let expected = "version 1.1 waits for the window that opens at 2026-11-30T02:00:00Z";
    assert_eq!(world.run().await, expected);
    assert_eq!((world.downloads(), world.is_installed()), (3, false));
    assert_eq!(world.fleet.asked(), ["settle 1.0 nothing"]);
    // In the window no byte is needed from the server.
    world
        .server
        .shared()
        .site
        .retain(|name, _| name.starts_with("stable"));
    let monday = NOON + 14 * 3600;
    let stop = world.run_at(monday).await.unwrap();
    assert_eq!(stop, Stop::Reboots("rebooting into version 1.1".to_owned()));
    assert_eq!(
        world.fleet.asked(),
        [
            "settle 1.0 nothing",
            "settle 1.0 nothing",
            "start 1.1",
            "lock 1.1",
            "drain"
        ]
    );

    for (skip, severity, waits) in [
        ("critical", "critical", false),
        ("critical", "security", true),
        ("security", "security", false),
        ("security", "normal", true),
        ("never", "critical", true),
    ] {
        let settings = format!("{settings}\nskip-window = \"{skip}\"");
        let mut world = World::new(&settings, severity).await;
        assert_eq!(
            world.run().await.contains("waits"),
            waits,
            "{skip} {severity}"
        );
    }
}

#[tokio::test]
async fn the_fleet_is_asked_before_the_slot_is_written_and_locked_before_the_reboot() {
    let mut world = World::new("auto = \"apply\"", "normal").await;
    world.fleet.start = Some(Leave::Later {
        until: Some(UNIX_EPOCH + Duration::from_secs(NOON + 60)),
        why: "its wave comes then".to_owned(),
    });
    let said = world.run().await;
    assert_eq!(
        said,
        "version 1.1 waits until 2026-11-29T12:01:00Z: its wave comes then"
    );
    assert!(!world.is_installed());
    world.fleet.start = Some(Leave::Never {
        why: "it failed on 2 nodes".to_owned(),
    });
    assert_eq!(
        world.run().await,
        "version 1.1 is not started: it failed on 2 nodes"
    );
    assert!(!world.is_installed());
    world.fleet.start = None;
    world.fleet.lock = Some(Leave::Later {
        until: None,
        why: "node-2 has the lock".to_owned(),
    });
    let said = world.run().await;
    assert_eq!(
        said,
        "version 1.1 is installed and waits: node-2 has the lock"
    );
    // A chance reboot starts the running version.
    assert!(world.is_installed() && !world.is_armed());
    assert_eq!(world.machine().state().pending, None);
    // The next run does not install it again.
    let sysupdate = world.root.path().join("usr/lib/systemd/systemd-sysupdate");
    samples::program(&sysupdate, "exit 1");
    world.fleet.lock = None;
    world.fleet.bad_drain = true;
    let said = world.run().await;
    assert_eq!(said, "version 1.1 is installed and waits: a hook failed");
    assert_eq!(world.reboots(), "");
    assert!(!world.is_armed());
    world.fleet.bad_drain = false;
    assert_eq!(world.run().await, "rebooting into version 1.1");
    assert_eq!(world.reboots(), "reboot --no-block\n");
    assert!(world.is_armed());
    assert_eq!(world.machine().state().pending.unwrap().version, "1.1");
}

#[tokio::test]
async fn the_fleet_is_told_after_a_boot_check_whatever_the_timer_may_do() {
    let mut world = World::new("auto = \"off\"", "normal").await;
    let machine = world.machine();
    machine
        .change_state(|state| state.begin("1.0", "0.9", Health::default(), 1))
        .unwrap();
    settle(&machine, &mut world.fleet).await.unwrap();
    machine.change_state(|state| state.bless("1.0", 2)).unwrap();
    settle(&machine, &mut world.fleet).await.unwrap();
    assert_eq!(
        world.fleet.asked(),
        ["settle 1.0 1.0", "settle 1.0 nothing"]
    );
    // A machine that takes no updates is in no fleet.
    std::fs::write(world.root.path().join("etc/selvage/agent.toml"), "").unwrap();
    settle(&world.machine(), &mut world.fleet).await.unwrap();
    assert_eq!(world.fleet.asked().len(), 2);
}

#[tokio::test]
async fn a_reboot_that_does_not_start_gives_the_lock_back() {
    let mut world = World::new("auto = \"apply\"", "normal").await;
    samples::program(&world.root.path().join("usr/bin/systemctl"), "exit 1");
    let error = world.run_at(NOON).await.unwrap_err();
    assert!(matches!(error, Error::NoReboot { .. }), "{error}");
    // Whoever reboots now has no lock.
    assert!(world.is_installed() && !world.is_armed());
    assert_eq!(world.machine().state().pending, None);
    assert_eq!(
        world.fleet.asked(),
        [
            "settle 1.0 nothing",
            "start 1.1",
            "lock 1.1",
            "drain",
            "release"
        ]
    );
}

#[tokio::test]
async fn the_server_is_asked_once_in_an_interval() {
    let mut world = World::new("check-interval = 3600", "normal").await;
    let now = seconds(SystemTime::now());
    world.run_at(now).await.unwrap();
    world.run_at(now + 3500).await.unwrap();
    assert_eq!(world.server.requests("stable.json").len(), 1);
    world.run_at(now + 3700).await.unwrap();
    assert_eq!(world.server.requests("stable.json").len(), 2);
    // A failure is repeated earlier, and until then the last index holds.
    world.server.shared().site.remove("stable.json");
    let available = "version 1.1 is available in the channel stable";
    let failed = " (by the index 5 of 2026-11-29T10:00:00Z: the check failed)";
    for (after, said, asked) in [
        (8000, format!("{available}{failed}"), 3),
        (60, available.to_owned(), 3),
        (1000, format!("{available}{failed}"), 4),
    ] {
        let stop = world.run_at(now + after).await.unwrap();
        assert_eq!(stop, Stop::Waits(said), "{after}");
        assert_eq!(world.server.requests("stable.json").len(), asked);
    }
}

#[tokio::test]
async fn an_installed_version_gets_its_turn_while_the_server_is_away() {
    let settings = "auto = \"apply\"\ncheck-interval = 300";
    let mut world = World::new(settings, "normal").await;
    let now = seconds(SystemTime::now());
    let later = |why: &str| {
        Some(Leave::Later {
            until: None,
            why: why.to_owned(),
        })
    };
    world.fleet.lock = later("node-2 has the lock");
    world.run_at(now).await.unwrap();
    assert!(world.is_installed());
    world.server.shared().site.clear();
    world.fleet.lock = None;
    let stop = world.run_at(now + 3600).await.unwrap();
    let said =
        "rebooting into version 1.1 (by the index 5 of 2026-11-29T10:00:00Z: the check failed)";
    assert_eq!(stop, Stop::Reboots(said.to_owned()));
    assert_eq!(world.reboots(), "reboot --no-block\n");

    // So it does behind a portal that answers anything with a page of its own.
    let mut world = World::new(settings, "normal").await;
    world.fleet.lock = later("node-2 has the lock");
    world.run_at(now).await.unwrap();
    let mut site = Site::new();
    for name in ["stable.json", "stable.json.sig"] {
        site.insert(name.to_owned(), b"<html>".to_vec());
    }
    world.server.shared().site = site;
    world.fleet.lock = None;
    let stop = world.run_at(now + 3600).await.unwrap();
    assert!(matches!(stop, Stop::Reboots(_)), "{stop}");

    // Who never had an index has none to go by.
    let mut world = World::new(settings, "normal").await;
    world.server.shared().site.clear();
    let error = world.run_at(now).await.unwrap_err().to_string();
    assert!(error.ends_with("stable.json: HTTP status 404"), "{error}");
}

#[tokio::test]
async fn a_window_that_closes_during_a_step_stops_what_follows() {
    const AFTER: u64 = NOON + 5400;
    let settings = "auto = \"apply\"\nwindows = [\"Sun 12:00-13:00\"]";
    let opens = "waits for the window that opens at 2026-12-06T12:00:00Z";
    let clock = |over: bool| if over { AFTER } else { NOON };

    let mut world = World::new(settings, "normal").await;
    let staged = (world.root.path()).join("var/lib/selvage/update/download/selvage_1.1");
    let stop = world.run_by(|| clock(staged.exists())).await.unwrap();
    assert_eq!(stop, Stop::Waits(format!("version 1.1 {opens}")));
    assert_eq!((world.downloads(), world.is_installed()), (3, false));

    let mut world = World::new(settings, "normal").await;
    let entry = (world.root.path()).join("efi/EFI/Linux/selvage_1.1+0-0.efi");
    let stop = world.run_by(|| clock(entry.exists())).await.unwrap();
    assert_eq!(
        stop,
        Stop::Waits(format!("version 1.1 is installed and {opens}"))
    );
    assert_eq!(world.fleet.asked(), ["settle 1.0 nothing", "start 1.1"]);

    let mut world = World::new(settings, "normal").await;
    let fleet = world.fleet.clone();
    let is_drained = || fleet.asked().contains(&"drain".to_owned());
    let stop = world.run_by(|| clock(is_drained())).await.unwrap();
    assert_eq!(
        stop,
        Stop::Waits(format!(
            "version 1.1 is installed and {opens}: the drain took longer than the window"
        ))
    );
    assert_eq!(
        world.fleet.asked()[2..],
        ["lock 1.1", "drain", "release"].map(str::to_owned)
    );
    assert_eq!(world.reboots(), "");
    // The next window finds it installed.
    let stop = world.run_at(NOON + 7 * 86_400).await.unwrap();
    assert_eq!(stop, Stop::Reboots("rebooting into version 1.1".to_owned()));
}

#[test]
fn checks_are_due_after_their_interval_and_when_the_clock_went_back() {
    let hour = Duration::from_secs(3600);
    for (last, now, due) in [
        (None, 0, true),
        (Some((1000, false)), 1000, false),
        (Some((1000, false)), 4599, false),
        (Some((1000, false)), 4600, true),
        (Some((1000, false)), 999, true),
        (Some((1000, true)), 1899, false),
        (Some((1000, true)), 1900, true),
    ] {
        let mut state = State::default();
        state.last_check = last.map(|(at, failed)| LastCheck {
            at,
            failed,
            result: String::new(),
        });
        let now = UNIX_EPOCH + Duration::from_secs(now);
        assert_eq!(is_due(&state, hour, now), due, "{last:?} {now:?}");
    }
}

#[tokio::test]
async fn a_version_that_failed_or_was_rolled_back_from_is_left_alone() {
    let mut world = World::new("auto = \"apply\"", "critical").await;
    world.run().await;
    let machine = world.machine();
    // As if 1.1 ran.
    let release = world.root.path().join("usr/lib/os-release");
    std::fs::write(&release, "IMAGE_ID=selvage\nIMAGE_VERSION=1.1\n").unwrap();
    assert_eq!(world.run().await, "version 1.1 is the newest");
    world.machine().roll_back().unwrap();
    std::fs::write(&release, "IMAGE_ID=selvage\nIMAGE_VERSION=1.0\n").unwrap();
    let said = world.run().await;
    assert!(
        said.contains("somebody had this machine go back from 1.1 by hand"),
        "{said}"
    );
    assert_eq!(world.reboots(), "reboot --no-block\n");
    drop(machine);
}

#[tokio::test]
async fn nothing_is_installed_over_the_version_to_fall_back_to() {
    let mut world = World::new("auto = \"apply\"", "critical").await;
    let entries = world.root.path().join("efi/EFI/Linux");
    let (good, tried) = (
        entries.join("selvage_1.0.efi"),
        entries.join("selvage_1.0+2-1.efi"),
    );
    std::fs::rename(&good, &tried).unwrap();
    assert_eq!(
        world.run().await,
        "version 1.1 waits until 1.0 has passed its boot check"
    );
    assert_eq!((world.downloads(), world.is_installed()), (0, false));
    std::fs::rename(&tried, &good).unwrap();
    assert_eq!(world.run().await, "rebooting into version 1.1");
}

#[tokio::test]
async fn a_run_waits_for_nobody_who_is_at_it() {
    let mut world = World::new("auto = \"apply\"", "normal").await;
    let machine = world.machine();
    let _lock = machine.lock().unwrap();
    let error = world.run_at(NOON).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("another selvage update is at work"),
        "{error}"
    );
}

#[tokio::test]
async fn a_broken_download_or_reboot_is_told() {
    let mut world = World::new("auto = \"download\"", "normal").await;
    world.server.fail([Fault::Status(403, "")]);
    let error = world.run_at(NOON).await.unwrap_err().to_string();
    assert!(error.ends_with("HTTP status 403"), "{error}");
    let mut world = World::new("auto = \"apply\"", "normal").await;
    samples::program(
        &world.root.path().join("usr/bin/systemctl"),
        "echo 'Access denied' >&2; exit 1",
    );
    let error = world.run_at(NOON).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "failed to reboot: systemctl reboot: Access denied; version 1.1 waits for its turn again"
    );
}
