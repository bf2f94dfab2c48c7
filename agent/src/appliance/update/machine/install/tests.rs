use std::fs;

use super::*;
use crate::appliance::update::choose::{Choice, choose};
use crate::appliance::update::machine::tests::{World, site};
use crate::appliance::update::samples;
use crate::appliance::update::state::{Failed, FailureCode};

impl World {
    async fn install(&self) -> Result<(), UpdateError> {
        let machine = self.machine();
        let index = machine.check().await?;
        machine.install(&index.releases[0], &mut |_| ()).await
    }

    fn rename(&self, from: &str, to: &str) {
        let entries = self.root.path().join("efi/EFI/Linux");
        fs::rename(entries.join(from), entries.join(to)).unwrap();
    }

    fn downloads(&self) -> usize {
        self.server.requests(".zst").len()
    }

    /// What the next boot check finds of the state when a version runs.
    fn runs(&self, version: &str) {
        let release = format!("IMAGE_ID=selvage\nIMAGE_VERSION={version}\n");
        fs::write(self.root.path().join("usr/lib/os-release"), release).unwrap();
    }
}

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

#[tokio::test]
async fn no_reboot_starts_what_is_installed_before_its_turn() {
    let world = World::new().await;
    world.install().await.unwrap();
    // Without tries: systemd-boot sorts it behind the running one.
    assert_eq!(world.entries(), ["selvage_1.0.efi", "selvage_1.1+0-0.efi"]);
    let machine = world.machine();
    assert_eq!(machine.state().pending, None, "nothing is tried yet");
    assert!(machine.is_installed(&version("1.1")).unwrap());
    assert_eq!(machine.is_judging().unwrap(), None, "it has not failed");
    // A second run finds it as it is.
    let downloads = world.downloads();
    world.sysupdate("exit 1");
    world.install().await.unwrap();
    assert_eq!(world.downloads(), downloads);

    machine.arm(&version("1.1"), Health::default()).unwrap();
    assert_eq!(world.entries(), ["selvage_1.0.efi", "selvage_1.1+3-0.efi"]);
    assert_eq!(machine.state().pending.unwrap().version, "1.1");
    machine.disarm(&version("1.1")).unwrap();
    assert_eq!(world.entries(), ["selvage_1.0.efi", "selvage_1.1+0-0.efi"]);
    assert_eq!(machine.state().pending, None);
}

#[tokio::test]
async fn transfers_that_give_tries_at_once_are_overruled() {
    let world = World::new().await;
    let program = world.root.path().join("usr/lib/systemd/systemd-sysupdate");
    let text = fs::read_to_string(&program).unwrap();
    let text = text.replace("+0-0.efi", "+3-0.efi");
    samples::program(&program, &text);
    world.install().await.unwrap();
    assert_eq!(world.entries(), ["selvage_1.0.efi", "selvage_1.1+0-0.efi"]);
}

#[tokio::test]
async fn a_version_that_is_about_to_be_overwritten_is_not_the_one_that_boots() {
    let world = World::new().await;
    world.apply().await.unwrap();
    world.server.shared().site = site(6, &["1.2"]);
    // The power fails while the slot is being written.
    world.sysupdate("exit 1");
    world.install().await.unwrap_err();
    assert_eq!(world.entries(), ["selvage_1.0.efi", "selvage_1.1+0-0.efi"]);
}

#[tokio::test]
async fn entries_without_content_do_not_keep_a_version_from_being_installed() {
    for damage in [
        vec![],
        vec![0; 50_000],
        samples::uki(1, 50_000)[..40_000].to_vec(),
    ] {
        for name in [
            "selvage_1.1+0-0.efi",
            "selvage_1.1+3-0.efi",
            "selvage_1.1.efi",
        ] {
            let world = World::new().await;
            let entry = world.root.path().join("efi/EFI/Linux").join(name);
            fs::write(&entry, &damage).unwrap();
            assert!(!world.machine().is_installed(&version("1.1")).unwrap());
            world.apply().await.unwrap();
            assert_eq!(world.entries(), ["selvage_1.0.efi", "selvage_1.1+3-0.efi"]);
            let entry = world.root.path().join("efi/EFI/Linux/selvage_1.1+3-0.efi");
            assert_eq!(fs::metadata(entry).unwrap().len(), 50_000, "{name}");
        }
    }
}

#[tokio::test]
async fn a_slot_that_was_damaged_is_written_anew() {
    for (file, at) in [
        ("dev/vda4", 299_999),
        ("dev/vda5", 0),
        // Its headers are whole.
        ("efi/EFI/Linux/selvage_1.1.efi", 30_000),
    ] {
        let world = World::new().await;
        world.apply().await.unwrap();
        world.rename("selvage_1.1+3-0.efi", "selvage_1.1.efi");
        let path = world.root.path().join(file);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[at] ^= 1;
        // What comes after a file in its partition is of no concern.
        bad.extend(file.starts_with("dev").then_some(9));
        fs::write(&path, &bad).unwrap();
        // Like the real one, it brings only what has no place yet: a partition with the label counts as installed.
        world.sysupdate(
            "set -eu; cd ${0%/usr/*}; entry=efi/EFI/Linux/selvage_1.1; ls $entry*.efi >/dev/null 2>&1 ||
             cp var/lib/selvage/update/staging/selvage_1.1.efi $entry+0-0.efi",
        );
        world.apply().await.unwrap();
        assert_eq!(world.entries(), ["selvage_1.0.efi", "selvage_1.1+3-0.efi"]);
        let path = match file.starts_with("dev") {
            true => path,
            false => world.root.path().join("efi/EFI/Linux/selvage_1.1+3-0.efi"),
        };
        assert!(fs::read(path).unwrap().starts_with(&good), "{file}");
        // It is whole now, and nothing is done a second time.
        let downloads = world.downloads();
        world.sysupdate("exit 1");
        world.apply().await.unwrap();
        assert_eq!(world.downloads(), downloads);
    }
}

#[tokio::test]
async fn what_is_read_back_must_be_what_was_written() {
    let world = World::new().await;
    let program = world.root.path().join("usr/lib/systemd/systemd-sysupdate");
    let text =
        fs::read_to_string(&program).unwrap() + "\necho x | dd of=$root/dev/vda5 conv=notrunc";
    samples::program(&program, &text);
    let error = world.apply().await.unwrap_err().to_string();
    let expected = format!(
        "selvage_1.1_{}.usr-verity.raw was written, but",
        samples::UUID
    );
    assert!(error.starts_with(&expected), "{error}");
    assert_eq!(world.machine().state().pending, None);
    assert_eq!(world.entries(), ["selvage_1.0.efi", "selvage_1.1+0-0.efi"]);
}

#[tokio::test]
async fn nothing_is_written_while_a_copy_of_the_disk_is_there() {
    let world = World::new().await;
    samples::partition(world.root.path(), "sda2", "selvage_1.0", 524_288);
    let error = world.apply().await.unwrap_err().to_string();
    assert!(
        error.starts_with("2 partitions of this disk or of others have the label selvage_1.0"),
        "{error}"
    );
    assert_eq!(world.downloads(), 0);
}

#[tokio::test]
async fn a_version_that_failed_is_tried_again_by_hand_without_a_download() {
    let world = World::new().await;
    world.apply().await.unwrap();
    world.rename("selvage_1.1+3-0.efi", "selvage_1.1+0-3.efi");
    let failed = Failed {
        version: "1.1".to_owned(),
        at: 1,
        boots: 3,
        code: FailureCode::Docker,
        reason: "Docker does not answer".to_owned(),
    };
    world
        .machine()
        .change_state(|state| state.fail(failed))
        .unwrap();
    let before = world.downloads();
    assert!(!world.machine().is_installed(&version("1.1")).unwrap());
    world.apply().await.unwrap();
    assert_eq!(world.entries(), ["selvage_1.0.efi", "selvage_1.1+3-0.efi"]);
    assert_eq!(world.downloads(), before);
    let state = world.machine().state();
    assert!(state.failed.is_empty() && state.pending.is_some());
}

#[tokio::test]
async fn an_older_version_by_hand_goes_before_the_running_one_and_stays() {
    let world = World::new().await;
    world.server.shared().site = site(6, &["0.9"]);
    world.apply().await.unwrap();
    // The boot loader takes the newest that has tries or needs none.
    assert_eq!(
        world.entries(),
        ["selvage_0.9+3-0.efi", "selvage_1.0+0-0.efi"]
    );
    let state = world.machine().state();
    assert!(state.failed.is_empty(), "1.0 is not at fault");
    assert_eq!(state.pending.unwrap().version, "0.9");
    let by_hand = state.by_hand.unwrap();
    assert_eq!((&*by_hand.from, &*by_hand.to), ("1.0", "0.9"));

    // It runs and is blessed. Only what is newer than the one that was left comes by itself.
    world.runs("0.9");
    world.rename("selvage_0.9+3-0.efi", "selvage_0.9.efi");
    let machine = world.machine();
    machine.change_state(|state| state.bless("0.9", 1)).unwrap();
    for (versions, expected) in [
        (&["1.0"][..], None),
        (&["1.0", "0.9.5"], None),
        (&["1.1", "1.0"], Some("1.1")),
    ] {
        world.server.shared().site = site(7, versions);
        let index = machine.check().await.unwrap();
        let state = machine.state();
        let chosen = match choose(&index, machine.running(), &state) {
            Choice::Update { release, .. } => Some(release.version.to_string()),
            Choice::Blocked { why, .. } => {
                let why = why.to_string();
                assert!(
                    why.starts_with("somebody had this machine go back from 1.0"),
                    "{why}"
                );
                None
            }
            Choice::UpToDate => panic!("1.0 is there"),
        };
        assert_eq!(chosen.as_deref(), expected, "{versions:?}");
    }
    // Who asks gets it.
    machine.arm(&version("1.0"), Health::default()).unwrap();
    assert_eq!(world.entries(), ["selvage_0.9.efi", "selvage_1.0+3-0.efi"]);
    assert_eq!(machine.state().by_hand, None);
}

#[tokio::test]
async fn an_older_version_that_cannot_be_tried_is_not_recorded() {
    let world = World::new().await;
    world.server.shared().site = site(6, &["0.9"]);
    world.install().await.unwrap();
    // A directory is in the way of the new name.
    let taken = world.root.path().join("efi/EFI/Linux/selvage_0.9+3-0.efi");
    fs::create_dir(&taken).unwrap();
    let machine = world.machine();
    let before = machine.state();
    machine.arm(&version("0.9"), Health::default()).unwrap_err();
    assert_eq!(machine.state(), before);
    fs::remove_dir(taken).unwrap();
    assert_eq!(world.entries(), ["selvage_0.9+0-0.efi", "selvage_1.0.efi"]);
}

#[tokio::test]
async fn a_rollback_is_remembered_and_goes_only_to_a_proven_version() {
    let world = World::new().await;
    world.apply().await.unwrap();
    let error = world.machine().roll_back().unwrap_err().to_string();
    assert!(
        error.contains("1.1 is installed and not proven yet"),
        "{error}"
    );
    assert_eq!(world.entries(), ["selvage_1.0.efi", "selvage_1.1+3-0.efi"]);
    world.rename("selvage_1.1+3-0.efi", "selvage_1.1.efi");
    world.runs("1.1");
    // The second time changes nothing more.
    for _ in 0..2 {
        let other = world.machine().roll_back().unwrap();
        assert_eq!(other.as_str(), "1.0");
        assert_eq!(world.entries(), ["selvage_1.0.efi", "selvage_1.1+0-1.efi"]);
    }
    let state = world.machine().state();
    let failed = state.failure("1.1").unwrap();
    assert_eq!(failed.code, FailureCode::RolledBack);
    assert_eq!(failed.reason, "rolled back by hand to 1.0");
    let by_hand = state.by_hand.unwrap();
    assert!(by_hand.rollback);
    assert_eq!((&*by_hand.from, &*by_hand.to), ("1.1", "1.0"));
}

#[tokio::test]
async fn a_rollback_is_recorded_before_it_is_done_and_taken_back_if_it_cannot_be() {
    let world = World::new().await;
    world.apply().await.unwrap();
    world.rename("selvage_1.1+3-0.efi", "selvage_1.1.efi");
    world.runs("1.1");
    let machine = world.machine();
    let before = machine.state();
    assert!(before.pending.is_some());
    let taken = world.root.path().join("efi/EFI/Linux/selvage_1.1+0-1.efi");
    fs::create_dir(&taken).unwrap();
    machine.roll_back().unwrap_err();
    assert_eq!(machine.state(), before);
    fs::remove_dir(taken).unwrap();

    // At the rename, the record is there already.
    let mut seen = None;
    let act = || {
        seen = machine.state().by_hand;
        Ok(())
    };
    let record = |state: &mut State| state.roll_back(&version("1.0"), &version("1.1"), 5);
    machine.record_and(record, act).unwrap();
    assert!(seen.unwrap().rollback);
}

#[tokio::test]
async fn systemd_sysupdate_is_told_the_disk_since_it_finds_none_below_an_extension() {
    let world = World::new().await;
    let at = |path: &str| world.root.path().join(path);
    // As in a real /sys: the partitions are directories of their disk, to which the class has links.
    fs::create_dir_all(at("sys/devices/vda")).unwrap();
    std::os::unix::fs::symlink("../../devices/vda", at("sys/class/block/vda")).unwrap();
    for device in ["vda2", "vda3", "vda4", "vda5"] {
        let (link, to) = (format!("sys/class/block/{device}"), format!("vda/{device}"));
        fs::rename(at(&link), at("sys/devices").join(&to)).unwrap();
        std::os::unix::fs::symlink(format!("../../devices/{to}"), at(&link)).unwrap();
    }
    fs::create_dir_all(at("usr/lib/sysupdate.d")).unwrap();
    fs::write(at("usr/lib/sysupdate.d/20-usr.transfer"), "Path=auto\n").unwrap();
    world.sysupdate("cat ${1#--definitions=}/*; exit 1");
    let error = world.install().await.unwrap_err().to_string();
    let expected = format!(": Path={}", at("dev/vda").display());
    assert!(error.ends_with(&expected), "{error}");
}
