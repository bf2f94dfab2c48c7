use std::fs;

use super::*;
use crate::appliance::update::samples;
use crate::appliance::update::version::Version;

struct World(tempfile::TempDir);

impl World {
    /// A machine that runs a version, with these boot entries.
    fn new(running: &str, entries: &[&str]) -> Self {
        let root = samples::machine(running, "");
        let directory = root.path().join("efi/EFI/Linux");
        fs::remove_file(directory.join(format!("selvage_{running}.efi"))).unwrap();
        for entry in entries {
            fs::write(directory.join(entry), samples::uki(1, 600)).unwrap();
        }
        Self(root)
    }

    fn file(&self) -> StateFile {
        StateFile::of(self.0.path())
    }

    /// The boot check of a boot that the boot loader does not count.
    async fn check(&self) -> (u8, State) {
        let options = Options {
            root: self.0.path().to_owned(),
            patience: Duration::ZERO,
            limit: Duration::ZERO,
        };
        let status = run(&Settings::default(), &options, &mut Vec::new()).await;
        (status.unwrap(), self.file().read())
    }
}

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_boot_before_the_turn_of_a_version_does_not_count_against_it() {
    let world = World::new("1.0", &["selvage_1.0.efi", "selvage_1.1+0-0.efi"]);
    // The power failed after the record, and before the entry had its tries.
    let begin = |state: &mut State| state.begin("1.1", "1.0", Health::default(), 1);
    world.file().change(begin).unwrap();
    let (status, state) = world.check().await;
    assert_eq!(status, GOOD);
    assert_eq!((state.pending, state.failed.len()), (None, 0));
}

#[tokio::test]
async fn an_older_version_that_was_not_started_is_not_chosen_any_more() {
    let world = World::new("1.0", &["selvage_0.9+0-0.efi", "selvage_1.0.efi"]);
    let change = |state: &mut State| {
        state.begin("0.9", "1.0", Health::default(), 1);
        state.prefer(&version("0.9"), &version("1.0"), 1);
    };
    world.file().change(change).unwrap();
    let (_, state) = world.check().await;
    assert_eq!((state.pending, state.by_hand), (None, None));
}

#[tokio::test]
async fn a_rollback_that_the_power_cut_off_is_forgotten_by_the_next_boot() {
    let world = World::new("1.1", &["selvage_1.0.efi", "selvage_1.1.efi"]);
    let roll_back = |state: &mut State| state.roll_back(&version("1.0"), &version("1.1"), 1);
    world.file().change(roll_back).unwrap();
    // In the same boot, a version that is being left must not be blessed.
    let (status, state) = world.check().await;
    assert_eq!(status, UNDECIDED);
    assert!(state.by_hand.is_some() && state.failure("1.1").is_some());
    let next_boot = |state: &mut State| {
        if let Some(by_hand) = &mut state.by_hand {
            by_hand.boot = "another".to_owned();
        }
    };
    world.file().change(next_boot).unwrap();
    let (status, state) = world.check().await;
    assert_eq!(status, GOOD);
    assert!(state.by_hand.is_none() && state.failure("1.1").is_none());
}

#[tokio::test]
async fn a_rollback_that_was_carried_out_stays_recorded() {
    let world = World::new("1.0", &["selvage_1.0.efi", "selvage_1.1+0-1.efi"]);
    let roll_back = |state: &mut State| state.roll_back(&version("1.0"), &version("1.1"), 1);
    world.file().change(roll_back).unwrap();
    let (status, state) = world.check().await;
    assert_eq!(status, GOOD);
    let failed = state.failure("1.1").unwrap();
    assert_eq!(failed.code, FailureCode::RolledBack);
    assert!(state.by_hand.unwrap().rollback);
}
