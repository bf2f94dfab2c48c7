use clap::Parser;
use ring::digest::{SHA256, digest};
use serde_json::json;

use super::*;
use crate::appliance::update::index::hex;
use crate::appliance::update::samples::server::TestServer;
use crate::appliance::update::samples::{self, Site, signer};
use crate::appliance::update::state::Health;
use crate::command::cli::{Cli, Command};
use crate::settings::{self, Environment, SettingsFlags, Sources};

/// Does what systemd-sysext does with the extensions of version 1.0: merges those that begin with "good", and none at all
/// where one is "torn".
const SYSTEMCTL: &str = "
    echo $* >>ROOT/systemctl
    ! cat ROOT/var/lib/extensions/*.raw ROOT/var/lib/selvage/sysexts/1.0/*.raw 2>/dev/null | grep -q torn || exit 1
    mkdir -p ROOT/usr/.systemd-sysext; : >ROOT/usr/.systemd-sysext/extensions
    for file in ROOT/var/lib/selvage/sysexts/1.0/*.raw; do
        case $(cat $file) in good*) basename $file .raw >>ROOT/usr/.systemd-sysext/extensions ;; esac
    done 2>/dev/null; true";

struct World {
    server: TestServer,
    root: tempfile::TempDir,
}

fn sysext(version: &str, name: &str, content: &str, site: &mut Site) -> serde_json::Value {
    let path = format!("selvage_{version}/selvage_{version}_{name}.sysext.raw");
    site.insert(path.clone(), content.as_bytes().to_vec());
    let hash = hex(digest(&SHA256, content.as_bytes()).as_ref());
    json!({"part": "sysext", "name": path, "size": content.len(), "sha256": hash, "unpacked_size": content.len(), "unpacked_sha256": hash})
}

impl World {
    /// A machine with version 1.0; a server that has it, and 1.1, with their extensions.
    async fn new() -> Self {
        let mut site = Site::new();
        let mut releases = ["1.1", "1.0"].map(|version| samples::release(version, &mut site));
        for (release, version) in releases.iter_mut().zip(["1.1", "1.0"]) {
            let mut sums = String::new();
            let mut add = |name: &str, content: &str| {
                let file = sysext(version, name, content, &mut site);
                sums += &format!(
                    "{}  selvage_{version}_{name}.sysext.raw\n",
                    file["sha256"].as_str().unwrap()
                );
                release["files"].as_array_mut().unwrap().push(file);
            };
            add("debug", &format!("good {version}"));
            if version == "1.0" {
                add("podman", "good podman");
                add("broken", "of another system");
            }
            let directory = format!("selvage_{version}");
            let signature = signer(1).sign(sums.as_bytes()).as_ref().to_vec();
            site.insert(format!("{directory}/SHA256SUMS.sig"), signature);
            site.insert(format!("{directory}/SHA256SUMS"), sums.into_bytes());
        }
        samples::publish(&mut site, 5, &releases);
        let server = TestServer::start(site).await;
        let settings = format!("server = \"http://{}/releases\"", server.address);
        let root = samples::machine("1.0", &settings);
        let script = SYSTEMCTL.replace("ROOT", root.path().to_str().unwrap());
        samples::program(&root.path().join("usr/bin/systemctl"), &script);
        Self { server, root }
    }

    fn settings(&self) -> Update {
        let settings = settings::update::load(Sources {
            root: self.root.path(),
            config: None,
            environment: &Environment::default(),
            flags: &SettingsFlags::default(),
        });
        settings.unwrap()
    }

    /// Exit status and output of `selvage sysext …`.
    async fn say(&self, arguments: &[&str]) -> Result<(u8, String), String> {
        let all = ["selvage", "sysext"].iter().chain(arguments);
        let parsed = Cli::try_parse_from(all).map_err(|error| error.to_string())?;
        let Command::Sysext(command) = parsed.command else {
            panic!("not sysext");
        };
        let mut output = Vec::new();
        let status = run(&command, self.settings(), self.root.path(), &mut output).await;
        let status = status.map_err(|error| logging::chain(&error))?;
        Ok((status, String::from_utf8(output).unwrap()))
    }

    async fn fails(&self, arguments: &[&str], expected: &str) {
        let error = self.say(arguments).await.unwrap_err();
        assert!(error.contains(expected), "{error}");
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/releases/{path}", self.server.address)
    }

    fn file(&self, path: &str) -> Option<String> {
        let path = self.root.path().join("var/lib/selvage/sysexts").join(path);
        fs::read_to_string(path).ok()
    }
}

#[tokio::test]
async fn an_extension_comes_from_the_release_and_goes() {
    let world = World::new().await;
    assert_eq!(
        world.say(&["list"]).await.unwrap(),
        (0, "no system extensions\n".to_owned())
    );
    let (status, said) = world.say(&["add", "debug"]).await.unwrap();
    assert_eq!(
        (status, &*said),
        (0, "debug is merged into /usr, also after a reboot\n")
    );
    assert_eq!(world.file("1.0/debug.raw").as_deref(), Some("good 1.0"));
    let asked = fs::read_to_string(world.root.path().join("systemctl")).unwrap();
    assert_eq!(asked, "reload-or-restart systemd-sysext.service\n");
    let (status, said) = world.say(&["list"]).await.unwrap();
    assert_eq!(status, 0);
    assert!(
        said.contains("\ndebug            1.0                merged\n"),
        "{said}"
    );
    let (_, json) = world.say(&["list", "--json"]).await.unwrap();
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&rows[0]["name"], &rows[0]["state"]),
        (&json!("debug"), &json!("merged"))
    );

    // Somebody has unmerged it.
    fs::write(world.root.path().join("usr/.systemd-sysext/extensions"), "").unwrap();
    let (status, said) = world.say(&["list"]).await.unwrap();
    assert!(status == 1 && said.contains("not merged"), "{said}");

    world.say(&["remove", "debug"]).await.unwrap();
    assert_eq!(world.file("1.0/debug.raw"), None);
    world
        .fails(&["remove", "debug"], "there is no system extension debug")
        .await;
}

#[tokio::test]
async fn what_systemd_does_not_merge_is_not_kept() {
    let world = World::new().await;
    world
        .fails(&["add", "broken"], "systemd-sysext did not merge broken")
        .await;
    assert_eq!(world.file("1.0/broken.raw"), None);
    world
        .fails(
            &["add", "nothing"],
            "has no system extension nothing: it has broken, debug, podman",
        )
        .await;
    world
        .fails(&["add", "Debug"], "is no name of a system extension")
        .await;
}

#[tokio::test]
async fn what_was_there_before_is_back_if_its_successor_is_not_merged() {
    let world = World::new().await;
    world.say(&["add", "debug"]).await.unwrap();
    for content in ["of another system", "torn"] {
        let file = world.root.path().join("selvage_1.0_debug.sysext.raw");
        fs::write(&file, content).unwrap();
        let hash = hex(digest(&SHA256, content.as_bytes()).as_ref());
        let add = ["add", file.to_str().unwrap(), "--sha256", &hash];
        world
            .fails(&add, "did not merge debug, so it was removed again")
            .await;
        assert_eq!(world.file("1.0/debug.raw").as_deref(), Some("good 1.0"));
        let (status, said) = world.say(&["list"]).await.unwrap();
        assert!(status == 0 && said.contains(" merged\n"), "{said}");
    }
    // Not what was there before somebody removed it.
    world.say(&["remove", "debug"]).await.unwrap();
    world
        .fails(&["add", "broken"], "did not merge broken")
        .await;
    assert_eq!(world.file("1.0/debug.raw"), None);
    assert_eq!(world.file("1.0/broken.raw"), None);
}

#[tokio::test]
async fn an_extension_is_not_removed_for_the_fault_of_another() {
    let world = World::new().await;
    world.say(&["add", "debug"]).await.unwrap();
    let by_hand = world.root.path().join("var/lib/extensions");
    fs::create_dir_all(&by_hand).unwrap();
    fs::write(by_hand.join("zfs.raw"), "torn").unwrap();
    for (name, content) in [("debug", "good 1.0"), ("podman", "good podman")] {
        world
            .fails(
                &["add", name],
                "merges no extension, without NAME neither"
                    .replace("NAME", name)
                    .as_str(),
            )
            .await;
        let kept = world.file(&format!("1.0/{name}.raw"));
        assert_eq!(kept.as_deref(), Some(content));
    }
    fs::remove_file(by_hand.join("zfs.raw")).unwrap();
    world.say(&["add", "debug"]).await.unwrap();
    let (status, said) = world.say(&["list"]).await.unwrap();
    assert_eq!(
        (status, said.matches(" merged\n").count()),
        (0, 2),
        "{said}"
    );
    assert_eq!(world.file("download"), None, "nothing is left of it");
}

#[tokio::test]
async fn a_file_is_believed_by_a_signature_or_a_hash() {
    let world = World::new().await;
    let name = "selvage_1.0_debug.sysext.raw";
    let file = world.root.path().join(name);
    let path = file.to_str().unwrap();
    fs::write(&file, "good by hand").unwrap();
    world
        .fails(
            &["add", path],
            "SHA256SUMS, which says what the extension must be",
        )
        .await;
    world
        .fails(
            &["add", path, "--sha256", &"0".repeat(64)],
            "the file is damaged",
        )
        .await;
    world
        .fails(
            &["add", path, "--sha256", "abc"],
            "expected 64 hexadecimal digits",
        )
        .await;
    let hash = hex(digest(&SHA256, b"good by hand").as_ref());
    world.say(&["add", path, "--sha256", &hash]).await.unwrap();
    assert_eq!(world.file("1.0/debug.raw").as_deref(), Some("good by hand"));

    // A list of the right key, one of another, and one without the file.
    let sums = world.root.path().join("SHA256SUMS");
    let signature = world.root.path().join("SHA256SUMS.sig");
    let list = |text: &str, key: u8| {
        fs::write(&sums, text).unwrap();
        fs::write(&signature, signer(key).sign(text.as_bytes())).unwrap();
    };
    list(&format!("{hash}  {name}\n"), 1);
    world.say(&["add", path]).await.unwrap();
    list(&format!("{hash}  {name}\n"), 2);
    world
        .fails(&["add", path], "is not by one of the keys test.pem")
        .await;
    list(&format!("{hash}  other.raw\n"), 1);
    world
        .fails(&["add", path], "does not list selvage_1.0_debug.sysext.raw")
        .await;

    let other = world.root.path().join("selvage_0.9_debug.sysext.raw");
    world
        .fails(
            &["add", other.to_str().unwrap()],
            "fits version 0.9 of the image alone",
        )
        .await;
    world
        .fails(
            &["add", "./kubernetes-v1.33.2-x86-64.raw"],
            "is no system extension of this image",
        )
        .await;
}

#[tokio::test]
async fn a_url_is_a_file_with_its_sums_beside_it() {
    let world = World::new().await;
    let url = |file: &str| world.url(&format!("selvage_1.0/{file}"));
    world
        .say(&["add", &url("selvage_1.0_podman.sysext.raw")])
        .await
        .unwrap();
    assert_eq!(world.file("1.0/podman.raw").as_deref(), Some("good podman"));
    world
        .fails(
            &["add", &url("selvage_1.0_none.sysext.raw")],
            "does not list",
        )
        .await;
    let missing = url("selvage_1.0_none.sysext.raw");
    world
        .fails(
            &["add", &missing, "--sha256", &"0".repeat(64)],
            "HTTP status 404",
        )
        .await;
    let debug = url("selvage_1.0_debug.sysext.raw");
    world
        .fails(
            &["add", &debug, "--sha256", &"0".repeat(64)],
            "the SHA-256 is",
        )
        .await;
    assert_eq!(world.file("1.0/debug.raw"), None);
}

#[tokio::test]
async fn an_update_brings_the_extensions_that_the_machine_has() {
    let world = World::new().await;
    for name in ["debug", "podman"] {
        world.say(&["add", name]).await.unwrap();
    }
    let machine = Machine::new(world.root.path(), world.settings()).unwrap();
    let index = machine.check().await.unwrap();
    let release = &index.releases[0];
    let health = async || Health::default();
    machine.apply(release, health, &mut |_| ()).await.unwrap();
    assert_eq!(world.file("1.1/debug.raw").as_deref(), Some("good 1.1"));
    assert_eq!(world.file("1.1/podman.raw"), None, "1.1 has none");
    assert_eq!(world.file("1.0/podman.raw").as_deref(), Some("good podman"));

    // The next boot runs the new version: what it lacks is named.
    let release = "IMAGE_ID=selvage\nIMAGE_VERSION=1.1\n";
    fs::write(world.root.path().join("usr/lib/os-release"), release).unwrap();
    let machine = Machine::new(world.root.path(), world.settings()).unwrap();
    let behind = machine.sysexts().left_behind(machine.running()).unwrap();
    assert_eq!(
        behind.iter().map(|kept| &*kept.name).collect::<Vec<_>>(),
        ["podman"]
    );
}

#[tokio::test]
async fn a_release_is_installed_without_the_extension_that_does_not_come() {
    for damage in [None, Some("good 9.9")] {
        let world = World::new().await;
        world.say(&["add", "debug"]).await.unwrap();
        let path = "selvage_1.1/selvage_1.1_debug.sysext.raw";
        {
            let mut shared = world.server.shared();
            shared.site.remove(path);
            let content = damage.map(|content| (path.to_owned(), content.into()));
            shared.site.extend(content);
        }
        let machine = Machine::new(world.root.path(), world.settings()).unwrap();
        let index = machine.check().await.unwrap();
        let health = async || Health::default();
        let release = &index.releases[0];
        machine.apply(release, health, &mut |_| ()).await.unwrap();
        assert!(machine.is_installed(&release.version).unwrap());
        assert_eq!(world.file("1.1/debug.raw"), None);
        assert_eq!(world.file("1.0/debug.raw").as_deref(), Some("good 1.0"));
    }
}

#[tokio::test]
async fn the_version_in_the_other_slot_keeps_its_extensions_until_it_is_overwritten() {
    let world = World::new().await;
    world.say(&["add", "debug"]).await.unwrap();
    let former = world.root.path().join("var/lib/selvage/sysexts/0.9");
    fs::create_dir_all(&former).unwrap();
    fs::write(former.join("debug.raw"), "good 0.9").unwrap();
    let program = world.root.path().join("usr/lib/systemd/systemd-sysupdate");
    let good = fs::read_to_string(&program).unwrap();
    samples::program(&program, "exit 1");
    let machine = Machine::new(world.root.path(), world.settings()).unwrap();
    let index = machine.check().await.unwrap();
    for (is_written, kept) in [(false, Some("good 0.9")), (true, None)] {
        let release = &index.releases[0];
        let installed = machine.install(release, &mut |_| ()).await;
        assert_eq!(installed.is_ok(), is_written, "{installed:?}");
        assert_eq!(world.file("0.9/debug.raw").as_deref(), kept);
        samples::program(&program, &good);
    }
    assert_eq!(world.file("1.1/debug.raw").as_deref(), Some("good 1.1"));
}

#[tokio::test]
async fn another_system_than_the_image_is_named() {
    let world = World::new().await;
    fs::write(world.root.path().join("usr/lib/os-release"), "ID=debian\n").unwrap();
    world
        .fails(&["list"], "this machine does not run a Selvage image")
        .await;
}
