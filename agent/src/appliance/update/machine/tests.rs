use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

use super::*;
use crate::appliance::update::choose::{Choice, choose};
use crate::appliance::update::samples::server::TestServer;
use crate::appliance::update::samples::{self, Site, UUID, public_pem, signer};
use crate::appliance::update::slots::SlotError;
use crate::appliance::update::state::Health;
use crate::settings::{self, Environment, SettingsFlags, Sources};

/// A machine with version 1.0, and a server with 1.1 in an index of serial 5.
pub(super) struct World {
    pub(super) server: TestServer,
    pub(super) root: tempfile::TempDir,
}

pub(super) fn site(serial: u64, versions: &[&str]) -> Site {
    let mut site = Site::new();
    let releases: Vec<_> = versions
        .iter()
        .map(|version| samples::release(version, &mut site))
        .collect();
    samples::publish(&mut site, serial, &releases);
    site
}

impl World {
    pub(super) async fn new() -> Self {
        let server = TestServer::start(site(5, &["1.1"])).await;
        let settings = format!("server = \"http://{}/releases\"", server.address);
        let root = samples::machine("1.0", &settings);
        Self { server, root }
    }

    pub(super) fn machine(&self) -> Machine {
        machine(self.root.path())
    }

    pub(super) fn entries(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root.path().join("efi/EFI/Linux")).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub(super) fn sysupdate(&self, text: &str) {
        samples::program(
            &self.root.path().join("usr/lib/systemd/systemd-sysupdate"),
            text,
        );
    }

    pub(super) async fn apply(&self) -> Result<(), UpdateError> {
        let machine = self.machine();
        let index = machine.check().await?;
        let health = Health {
            docker_ok: Some(true),
            ..Health::default()
        };
        machine
            .apply(&index.releases[0], async || health, &mut |_| ())
            .await
    }
}

fn machine(root: &Path) -> Machine {
    let settings = settings::update::load(Sources {
        root,
        config: None,
        environment: &Environment::default(),
        flags: &SettingsFlags::default(),
    });
    Machine::new(root, settings.unwrap()).unwrap()
}

#[tokio::test]
async fn a_release_comes_into_the_free_slot_and_is_tried_by_the_next_boot() {
    let world = World::new().await;
    let machine = world.machine();
    let index = machine.check().await.unwrap();
    let state = machine.state();
    let Choice::Update { release, .. } = choose(&index, machine.running(), &state) else {
        panic!("nothing to update to");
    };
    let mut steps = Vec::new();
    let health = Health {
        docker_ok: Some(true),
        ..Health::default()
    };
    machine
        .apply(release, async || health.clone(), &mut |step| {
            steps.push(format!("{step:?}"))
        })
        .await
        .unwrap();
    assert_eq!(world.entries(), ["selvage_1.0.efi", "selvage_1.1+3-0.efi"]);
    let slot = fs::read(world.root.path().join("dev/vda4")).unwrap();
    assert_eq!(
        slot.len(),
        300_000,
        "the slot has what was packed, not the packed file"
    );
    let state = machine.state();
    let pending = state.pending.as_ref().unwrap();
    assert_eq!((&*pending.version, &*pending.from), ("1.1", "1.0"));
    assert_eq!(pending.health_before, health);
    assert_eq!(state.highest_serial("stable"), 5);
    let last = |what: &str| {
        steps
            .iter()
            .rfind(|step| step.starts_with(what))
            .unwrap()
            .clone()
    };
    assert_eq!(
        last("Download"),
        format!("Download {{ done: {0}, of: {0} }}", release.size())
    );
    assert_eq!(last("Unpack"), "Unpack { done: 370000, of: 370000 }");
    assert!(last("Install").contains("Imported 50%."), "{steps:?}");
    let left: Vec<_> = fs::read_dir(world.root.path().join("var/lib/selvage/update/staging"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(machine.is_installed(&release.version).unwrap());
}

#[tokio::test]
async fn a_disk_that_filled_up_gets_back_all_that_was_downloaded() {
    let world = World::new().await;
    let machine = world.machine();
    let index = machine.check().await.unwrap();
    let release = &index.releases[0];
    machine.download(release, &mut |_| ()).await.unwrap();
    let failed = |kind: io::ErrorKind| DownloadError::File {
        path: "other.part".into(),
        source: kind.into(),
    };
    machine.give_back_space(&failed(io::ErrorKind::PermissionDenied));
    assert!(machine.is_downloaded(release));
    machine.give_back_space(&failed(io::ErrorKind::StorageFull));
    let download = world.root.path().join("var/lib/selvage/update/download");
    assert_eq!(fs::read_dir(download).unwrap().count(), 0);
}

#[tokio::test]
async fn an_index_that_is_not_signed_by_one_of_the_keys_changes_nothing() {
    let world = World::new().await;
    let good = world.server.shared().site["stable.json"].clone();
    let other_key = signer(2).sign(&good).as_ref().to_vec();
    let mut flipped = good.clone();
    flipped[20] ^= 1;
    for (name, bytes, expected) in [
        (
            "stable.json.sig",
            other_key,
            "not by one of the keys test.pem",
        ),
        (
            "stable.json.sig",
            vec![0; 64],
            "not by one of the keys test.pem",
        ),
        ("stable.json.sig", vec![0; 63], "has 63 bytes, not 64"),
        ("stable.json.sig", vec![0; 5000], "has more than 1024 bytes"),
        ("stable.json", flipped, "not by one of the keys test.pem"),
        (
            "stable.json",
            good[..good.len() / 2].to_vec(),
            "not by one of the keys test.pem",
        ),
        (
            "stable.json",
            vec![b' '; 5 << 20],
            "has more than 4194304 bytes",
        ),
    ] {
        world.server.shared().site = site(5, &["1.1"]);
        world.server.shared().site.insert(name.to_owned(), bytes);
        let error = world.machine().check().await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        let state = world.machine().state();
        let check = state.last_check.as_ref().unwrap();
        assert!(check.failed && check.result.contains(expected), "{check:?}");
        assert_eq!(state.highest_serial("stable"), 0);
        assert!(world.machine().known_index().is_none());
    }
}

#[tokio::test]
async fn an_index_that_is_replaced_while_it_is_read_is_read_again() {
    let world = World::new().await;
    let shared = site(6, &["1.1"]);
    // The index of now with the signature of before, until the machine has asked for both.
    world
        .server
        .shared()
        .site
        .insert("stable.json".to_owned(), shared["stable.json"].clone());
    let machine = world.machine();
    let publisher = async {
        while world.server.requests("stable.json.sig").is_empty() {
            tokio::task::yield_now().await;
        }
        world.server.shared().site = shared;
    };
    let (checked, ()) = tokio::join!(machine.check(), publisher);
    assert_eq!(checked.unwrap().serial, 6);
}

#[tokio::test]
async fn an_older_index_is_a_roll_back_attack() {
    let world = World::new().await;
    world.machine().check().await.unwrap();
    world.server.shared().site = site(4, &["0.9"]);
    let error = world.machine().check().await.unwrap_err().to_string();
    assert!(
        error.contains("serial 4, but 5 was accepted before"),
        "{error}"
    );
    // What was believed before is known still.
    let known = world.machine().known_index().unwrap();
    assert_eq!(known.releases[0].version.as_str(), "1.1");
    // Not even a lost state makes it believable.
    fs::remove_file(world.root.path().join("var/lib/selvage/update/state.json")).unwrap();
    let error = world.machine().check().await.unwrap_err();
    assert!(
        matches!(error, UpdateError::Index(IndexError::OldSerial { .. })),
        "{error}"
    );
    // The same one again is no attack, and another channel counts for itself.
    world.server.shared().site = site(5, &["1.1"]);
    world.machine().check().await.unwrap();
}

#[tokio::test]
async fn what_is_on_disk_is_believed_no_more_than_the_server() {
    let world = World::new().await;
    world.machine().check().await.unwrap();
    let path = world
        .root
        .path()
        .join("var/lib/selvage/update/index-stable.json");
    let text = fs::read(&path).unwrap();
    for damage in [&b""[..], b"{}", &text[1..]] {
        fs::write(&path, damage).unwrap();
        assert!(world.machine().known_index().is_none());
    }
    fs::write(&path, &text).unwrap();
    assert!(world.machine().known_index().is_some());
    // A key that was taken away takes what it signed along.
    let keys = world.root.path().join("etc/selvage/update-keys.d");
    fs::create_dir_all(&keys).unwrap();
    fs::write(keys.join("test.pem"), public_pem(&signer(9))).unwrap();
    assert!(world.machine().known_index().is_none());
}

#[tokio::test]
async fn servers_that_fail_are_named() {
    let world = World::new().await;
    world.server.shared().site.clear();
    let error = world.machine().check().await.unwrap_err().to_string();
    let url = format!(
        "http://{}/releases/stable.json: HTTP status 404",
        world.server.address
    );
    assert_eq!(error, url);
    // A port that nobody listens on any more.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let gone = samples::machine("1.0", &format!("server = \"http://{address}\""));
    let error = machine(gone.path()).check().await.unwrap_err().to_string();
    assert!(
        error.contains(&format!(
            "failed to connect to {address}: connection refused"
        )),
        "{error}"
    );
    let none = samples::machine("1.0", "");
    let error = machine(none.path()).check().await.unwrap_err();
    assert!(matches!(error, UpdateError::NoServer));
}

#[tokio::test]
async fn a_failed_installation_leaves_no_version_that_is_waited_for() {
    let world = World::new().await;
    world.sysupdate("echo 'No space left'; exit 1");
    let error = world.apply().await.unwrap_err().to_string();
    assert!(
        error.contains("systemd-sysupdate failed (exit status: 1): No space left"),
        "{error}"
    );
    assert_eq!(world.machine().state().pending, None);
    // Without a boot entry nothing was installed, whatever the program says.
    world.sysupdate("exit 0");
    let error = world.apply().await.unwrap_err();
    assert!(
        matches!(error, UpdateError::Slot(SlotError::NoEntry(_))),
        "{error}"
    );
    assert_eq!(world.machine().state().pending, None);
    assert_eq!(world.entries(), ["selvage_1.0.efi"]);
    // What was downloaded for it is used by the next try.
    let before = world.server.requests(".zst").len();
    samples::furnish(
        world.root.path(),
        "1.0",
        &format!("server = \"http://{}/releases\"", world.server.address),
    );
    world.apply().await.unwrap();
    assert_eq!(world.server.requests(".zst").len(), before);
}

#[tokio::test]
async fn a_run_that_is_cut_off_anywhere_is_completed_by_the_next() {
    let mut cut = 0;
    loop {
        let world = World::new().await;
        let machine = world.machine();
        let index = machine.check().await.unwrap();
        let mut steps = 0;
        let mut hear = |_: Step<'_>| {
            assert!(steps < cut, "cut off on purpose");
            steps += 1;
        };
        let applied = machine.apply(&index.releases[0], async || Health::default(), &mut hear);
        let is_over = AssertUnwindSafe(applied).catch_unwind().await.is_ok();
        drop(machine);
        world.apply().await.unwrap();
        assert_eq!(
            world.entries(),
            ["selvage_1.0.efi", "selvage_1.1+3-0.efi"],
            "cut at {cut}"
        );
        assert_eq!(
            fs::metadata(world.root.path().join("dev/vda4"))
                .unwrap()
                .len(),
            300_000
        );
        let pending = world.machine().state().pending.unwrap();
        assert_eq!(
            (&*pending.version, pending.health_before.docker_ok),
            ("1.1", Some(true))
        );
        if is_over {
            break;
        }
        cut += 3;
    }
    assert!(cut > 6, "there were only {cut} steps");
}

#[tokio::test]
async fn nothing_reaches_a_slot_that_is_not_what_was_signed() {
    let world = World::new().await;
    let path = format!("selvage_1.1/selvage_1.1_{UUID}.usr-verity.raw.zst");
    world.server.shared().site.get_mut(&path).unwrap()[50] ^= 1;
    world.sysupdate("touch $0.called; exit 1");
    let error = world.apply().await.unwrap_err().to_string();
    assert!(error.contains("the signed index says"), "{error}");
    assert!(
        !world
            .root
            .path()
            .join("usr/lib/systemd/systemd-sysupdate.called")
            .exists()
    );
}

#[tokio::test]
async fn a_release_for_other_machines_reaches_no_slot() {
    let world = World::new().await;
    let mut files = Site::new();
    let other = samples::release_for(0x5064, "1.2", &mut files);
    samples::publish(&mut files, 6, &[other]);
    world.server.shared().site = files;
    world.sysupdate("touch $0.called; exit 1");
    let machine = world.machine();
    let index = machine.check().await.unwrap();
    let release = index.release(&"1.2".parse().unwrap()).unwrap();
    let error = machine
        .apply(release, async || Health::default(), &mut |_| ())
        .await
        .unwrap_err();
    let expected = "version 1.2 is not for this machine: its boot entry is for 0x5064";
    assert!(error.to_string().starts_with(expected), "{error}");
    let called = "usr/lib/systemd/systemd-sysupdate.called";
    assert!(!world.root.path().join(called).exists());
}

#[tokio::test]
async fn the_running_version_and_those_that_it_is_too_old_for_are_refused() {
    let world = World::new().await;
    let mut files = Site::new();
    let mut newer = samples::release("1.2", &mut files);
    newer["from"] = "1.1".into();
    let same = samples::release("1.00", &mut files);
    samples::publish(&mut files, 6, &[newer, same]);
    world.server.shared().site = files;
    let machine = world.machine();
    let index = machine.check().await.unwrap();
    for (version, expected) in [
        (
            "1.2",
            "version 1.2 can be installed from 1.1 on, and this machine runs 1.0",
        ),
        ("1.0", "version 1.00 is the running one"),
    ] {
        let release = index.release(&version.parse().unwrap()).unwrap();
        let error = machine
            .apply(release, async || Health::default(), &mut |_| ())
            .await
            .unwrap_err();
        assert!(error.to_string().starts_with(expected), "{error}");
    }
    assert!(world.server.requests(".zst").is_empty());
}

#[tokio::test]
async fn a_release_that_is_larger_than_a_slot_is_refused_before_it_comes() {
    let world = World::new().await;
    let device = world.root.path().join("sys/class/block/vda2");
    fs::create_dir_all(&device).unwrap();
    fs::write(device.join("uevent"), "PARTNAME=selvage_1.0\n").unwrap();
    fs::write(device.join("size"), "500\n").unwrap();
    let error = world.apply().await.unwrap_err().to_string();
    assert!(
        error.ends_with("has 300000 bytes unpacked, but the slots have 256000"),
        "{error}"
    );
    assert!(world.server.requests(".zst").is_empty());
}

#[tokio::test]
async fn one_command_changes_something_at_a_time() {
    let world = World::new().await;
    let lock = world.machine().lock().unwrap();
    let error = world.machine().lock().unwrap_err().to_string();
    assert!(
        error.starts_with("another selvage update is at work ("),
        "{error}"
    );
    drop(lock);
    world.machine().lock().unwrap();
}

#[test]
fn a_host_that_runs_no_image_is_told_so() {
    let root = samples::machine("1.0", "");
    let settings = machine(root.path()).settings().clone();
    for (release, expected) in [
        ("ID=debian\n", "does not run a Selvage image"),
        (
            "IMAGE_ID=selvage\nIMAGE_VERSION=x/y\n",
            "IMAGE_VERSION in /usr/lib/os-release",
        ),
    ] {
        fs::write(root.path().join("usr/lib/os-release"), release).unwrap();
        let error = Machine::new(root.path(), settings.clone())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
}
