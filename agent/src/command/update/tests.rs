use clap::Parser;
use serde_json::Value;

use super::*;
use crate::appliance::fleet::Fleet;
use crate::appliance::update::samples::server::TestServer;
use crate::appliance::update::samples::{self, Site};
use crate::appliance::update::state::{FailureCode, Finding, State, StateFile};
use crate::command::cli::{Cli, Command};
use crate::settings::{self, Environment, SettingsFlags, Sources};

struct World {
    server: TestServer,
    root: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let mut site = Site::new();
        let releases = ["1.1", "0.9"].map(|version| samples::release(version, &mut site));
        samples::publish(&mut site, 5, &releases);
        let server = TestServer::start(site).await;
        let settings = format!(
            "server = \"http://{}/releases\"\nwindows = [\"00:00-24:00\"]",
            server.address
        );
        let root = samples::machine("1.0", &settings);
        Self { server, root }
    }

    /// Exit status and output of `selvage update …`.
    async fn say(&self, arguments: &[&str]) -> Result<(u8, String), String> {
        let all = ["selvage", "update"].iter().chain(arguments);
        let Command::Update(command) = Cli::try_parse_from(all).unwrap().command else {
            panic!("not update");
        };
        let settings = settings::update::load(Sources {
            root: self.root.path(),
            config: command.config(),
            environment: &Environment::default(),
            flags: &SettingsFlags::default(),
        });
        let mut output = Vec::new();
        let health = async || Health::default();
        let status = run(
            &command,
            settings.unwrap(),
            health,
            |_: &Version| -> Result<Fleet, TurnError> { panic!("nobody is asked") },
            self.root.path(),
            &mut output,
        )
        .await;
        let status = status.map_err(|error| error.to_string())?;
        Ok((status, String::from_utf8(output).unwrap()))
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let (_, output) = self.say(arguments).await.unwrap();
        serde_json::from_str(&output).unwrap()
    }

    fn rename(&self, from: &str, to: &str) {
        let entries = self.root.path().join("efi/EFI/Linux");
        std::fs::rename(entries.join(from), entries.join(to)).unwrap();
    }

    fn become_version(&self, version: &str) {
        let release = format!("IMAGE_ID=selvage\nIMAGE_VERSION={version}\n");
        std::fs::write(self.root.path().join("usr/lib/os-release"), release).unwrap();
    }
}

#[tokio::test]
async fn a_machine_is_looked_at_updated_and_rolled_back() {
    let world = World::new().await;
    let (status, output) = world.say(&["status", "--color=never"]).await.unwrap();
    assert_eq!(status, 0);
    assert!(
        output.starts_with("running    1.0 (as installed)\n"),
        "{output}"
    );
    assert!(output.contains("checked    never\n"), "{output}");
    assert!(
        output.contains("windows    00:00-24:00 (local); open until"),
        "{output}"
    );

    let (status, output) = world.say(&["check"]).await.unwrap();
    assert_eq!(status, NEWER);
    assert!(
        output.starts_with("version 1.1 is available (normal, "),
        "{output}"
    );
    assert!(output.contains("\n  what is new\n"), "{output}");
    let found = world.json(&["check", "--json"]).await;
    assert_eq!(found["version"], "1.1");
    assert_eq!(found["serial"], 5);

    let said = world.say(&["apply"]).await.unwrap();
    assert_eq!(
        said,
        (
            0,
            "version 1.1 is installed; the next reboot starts it\n".to_owned()
        )
    );
    let (status, output) = world.say(&["status", "--color=never"]).await.unwrap();
    assert_eq!(status, NEWER);
    assert!(
        output.contains("boots      1.1 (on trial, 3 tries left)\n"),
        "{output}"
    );
    assert!(
        output.contains("pending    1.1 is installed; the next reboot starts it\n"),
        "{output}"
    );
    let report = world.json(&["status", "--json"]).await;
    assert_eq!(report["pending"]["from"], "1.0");
    assert_eq!(report["boot_entries"][1]["tries_left"], 3);

    world.rename("selvage_1.1+3-0.efi", "selvage_1.1.efi");
    world.become_version("1.1");
    let (_, output) = world.say(&["status", "--color=never"]).await.unwrap();
    assert!(
        output.starts_with("running    1.1 (not blessed)\n"),
        "{output}"
    );
    assert_eq!(
        world.say(&["apply"]).await.unwrap(),
        (0, "version 1.1 is the newest\n".to_owned())
    );
    let said = world.say(&["rollback"]).await.unwrap();
    assert_eq!(said, (0, "the next reboot starts version 1.0\n".to_owned()));

    world.become_version("1.0");
    let (status, output) = world.say(&["status", "--color=never"]).await.unwrap();
    assert_eq!(status, 1);
    assert!(
        output.contains("by hand    rolled back from 1.1 to 1.0 on ")
            && output.contains(" (rolled-back)\n"),
        "{output}"
    );
    let report = world.json(&["status", "--json"]).await;
    assert_eq!(report["by_hand"]["from"], "1.1");
    assert_eq!(report["failed"][0]["code"], "rolled-back");
    assert_eq!(report["boot_entries"][1]["state"], "bad");
    let (status, output) = world.say(&["apply"]).await.unwrap();
    assert_eq!(status, BLOCKED);
    assert!(output.contains("go back from 1.1 by hand"), "{output}");
    let (status, _) = world
        .say(&["apply", "--version=1.1", "--reboot"])
        .await
        .unwrap();
    assert_eq!(status, 0);
    let reboots = std::fs::read_to_string(world.root.path().join("systemctl")).unwrap();
    assert_eq!(reboots, "reboot --no-block\n");
}

#[tokio::test]
async fn an_installed_and_a_blessed_version_are_told_apart_and_an_undecided_one_has_words() {
    let world = World::new().await;
    let running = async || {
        let report = world.json(&["status", "--json"]).await;
        (report["as_installed"] == true, report["blessed"] == true)
    };
    assert_eq!(running().await, (true, false));
    world.say(&["apply"]).await.unwrap();
    assert_eq!(running().await, (true, false));
    world.become_version("1.1");
    // The boot loader counts its tries.
    assert_eq!(running().await, (false, false));
    let state = StateFile::new(&world.root.path().join("var/lib/selvage/update"));
    let undecided = |state: &mut State| {
        state.pending.as_mut().unwrap().finding = Some(Finding {
            at: 1,
            bad: false,
            code: FailureCode::Agent,
            object: None,
            reason: "etcd does not answer".to_owned(),
        });
    };
    state.change(undecided).unwrap();
    let (_, output) = world.say(&["status", "--color=never"]).await.unwrap();
    let words = "\nto do      mend that, and the version stays: this is looked at again every two minutes. ";
    assert!(output.contains(words), "{output}");
    assert!(output.contains("goes back to version 1.0\n"), "{output}");
    state.change(|state| state.bless("1.1", 2)).unwrap();
    assert_eq!(running().await, (false, true));
}

#[tokio::test]
async fn a_version_that_waits_for_its_turn_is_shown_and_started_by_hand() {
    let world = World::new().await;
    world.say(&["apply"]).await.unwrap();
    // As a run of the timer leaves it that does not get the lock.
    world.rename("selvage_1.1+3-0.efi", "selvage_1.1+0-0.efi");
    let state = world.root.path().join("var/lib/selvage/update/state.json");
    std::fs::remove_file(state).unwrap();
    let (status, output) = world.say(&["status", "--color=never"]).await.unwrap();
    assert_eq!(status, NEWER);
    assert!(output.contains("boots      1.1 (aside)\n"), "{output}");
    assert!(
        output.contains(
            "waiting    1.1 is installed and waits for its turn; no reboot starts it before"
        ),
        "{output}"
    );
    let report = world.json(&["status", "--json"]).await;
    assert_eq!(report["waiting"], "1.1");
    assert_eq!(report["boot_entries"][1]["state"], "aside");
    let before = world.server.requests(".zst").len();
    world.say(&["apply"]).await.unwrap();
    assert_eq!(world.server.requests(".zst").len(), before);
    assert!(
        world
            .root
            .path()
            .join("efi/EFI/Linux/selvage_1.1+3-0.efi")
            .exists()
    );
    let report = world.json(&["status", "--json"]).await;
    assert_eq!(report["waiting"], Value::Null);
}

#[tokio::test]
async fn a_pin_holds_until_it_is_taken_off() {
    let world = World::new().await;
    assert_eq!(
        world.say(&["pin"]).await.unwrap().1,
        "pinned to version 1.0\n"
    );
    let (status, output) = world.say(&["check"]).await.unwrap();
    assert_eq!(status, BLOCKED);
    assert!(
        output.contains("pinned to 1.0; selvage update unpin"),
        "{output}"
    );
    assert_eq!(world.say(&["apply"]).await.unwrap().0, BLOCKED);
    assert_eq!(
        world.say(&["unpin"]).await.unwrap().1,
        "no version is pinned\n"
    );
    assert_eq!(world.say(&["check"]).await.unwrap().0, NEWER);
    let all = ["selvage", "update", "pin", "one/two"];
    assert!(Cli::try_parse_from(all).is_err());
}

#[tokio::test]
async fn a_version_that_was_downloaded_is_installed_without_the_server() {
    let world = World::new().await;
    let said = world.say(&["apply", "--download"]).await.unwrap();
    assert_eq!(said, (0, "version 1.1 is downloaded\n".to_owned()));
    world.server.shared().site.clear();
    assert_eq!(world.say(&["apply"]).await.unwrap().0, 0);
    assert!(
        world
            .root
            .path()
            .join("efi/EFI/Linux/selvage_1.1+3-0.efi")
            .exists()
    );
    // An index that is not believed is no server that does not answer.
    let mut site = Site::new();
    samples::publish(&mut site, 1, &[]);
    world.server.shared().site = site;
    let error = world.say(&["apply"]).await.unwrap_err();
    assert!(error.contains("roll-back attack"), "{error}");
    let (status, _) = world.say(&["status"]).await.unwrap();
    assert_eq!(status, 1);
}

#[tokio::test]
async fn while_the_server_is_away_the_last_index_answers_and_is_named() {
    let world = World::new().await;
    assert_eq!(world.say(&["check"]).await.unwrap().0, NEWER);
    world.server.shared().site.clear();
    let (status, output) = world.say(&["check"]).await.unwrap();
    assert_eq!(status, 1);
    let start =
        "the check failed; the index 5 of 2026-11-29T10:00:00Z says:\nversion 1.1 is available";
    assert!(output.starts_with(start), "{output}");
    let found = world.json(&["check", "--json"]).await;
    assert_eq!(found["version"], "1.1");
    assert_eq!(found["issued"], "2026-11-29T10:00:00Z");
    assert_eq!(found["stale"], true);
    let (status, output) = world.say(&["status", "--color=never"]).await.unwrap();
    assert_eq!(status, 1);
    assert!(
        output.contains("/releases/stable.json: HTTP status 404"),
        "{output}"
    );
    let line = "\navailable  1.1 (0.4 MB), by the index 5 of 2026-11-29T10:00:00Z\n";
    assert!(output.contains(line), "{output}");
    // One that was never reached has nothing to say.
    let world = World::new().await;
    world.server.shared().site.clear();
    world.say(&["check"]).await.unwrap_err();
}

#[tokio::test]
async fn a_version_that_is_asked_for_by_name_may_be_older() {
    let world = World::new().await;
    assert_eq!(
        world.say(&["apply", "--version", "0.9"]).await.unwrap().0,
        0
    );
    let error = world.say(&["apply", "--version", "2"]).await.unwrap_err();
    assert_eq!(
        error,
        "the channel stable has no version 2: it has 1.1, 0.9"
    );
    // It is still to be proven, and going back to it would leave the machine nothing to fall back to.
    let error = world.say(&["rollback"]).await.unwrap_err();
    assert!(
        error.contains("the other version 0.9 is installed and not proven yet"),
        "{error}"
    );
}

#[tokio::test]
async fn a_version_on_trial_keeps_its_predecessor_unless_told_otherwise() {
    let world = World::new().await;
    let entries = world.root.path().join("efi/EFI/Linux");
    std::fs::rename(
        entries.join("selvage_1.0.efi"),
        entries.join("selvage_1.0+2-1.efi"),
    )
    .unwrap();
    let error = world.say(&["apply"]).await.unwrap_err();
    assert!(
        error.starts_with("version 1.0 has not passed its boot check yet"),
        "{error}"
    );
    assert!(world.server.requests(".zst").is_empty());
    assert_eq!(world.say(&["apply", "--download"]).await.unwrap().0, 0);
    assert_eq!(world.say(&["apply", "--version=1.1"]).await.unwrap().0, 0);
}

#[tokio::test]
async fn notes_move_no_cursor() {
    let world = World::new().await;
    let mut site = Site::new();
    let mut release = samples::release("1.1", &mut site);
    release["notes"] = "red \u{1b}[31m\r\nalert\u{7}".into();
    samples::publish(&mut site, 6, &[release]);
    world.server.shared().site = site;
    let (_, output) = world.say(&["check"]).await.unwrap();
    assert!(output.ends_with("  red [31m\n  alert\n"), "{output:?}");
}

#[test]
fn the_version_names_the_image() {
    let root = samples::machine("0.1.0.1500", "");
    let own = concat!("selvage ", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        version_text(root.path()),
        format!("{own} (image 0.1.0.1500)")
    );
    assert_eq!(version_text(&root.path().join("nowhere")), own);
}

#[tokio::test]
async fn an_extension_that_an_update_left_behind_is_named() {
    let world = World::new().await;
    let put = |version: &str, name: &str| {
        let directory = world
            .root
            .path()
            .join("var/lib/selvage/sysexts")
            .join(version);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(name), "").unwrap();
    };
    put("0.9", "debug.raw");
    put("0.9", "podman.raw");
    put("1.0", "podman.raw");
    put("1.1", "later.raw");
    let (_, said) = world.say(&["status", "--color=never"]).await.unwrap();
    assert!(
        said.contains("\nsysext     debug is here for 0.9 only: selvage sysext add debug\n"),
        "{said}"
    );
    assert!(
        !said.contains("podman") && !said.contains("later"),
        "{said}"
    );
    let status = world.json(&["status", "--json"]).await;
    assert_eq!(status["sysexts_left_behind"][0]["name"], "debug");
}
