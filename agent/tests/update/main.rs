//! Updates on a disk that is full, in a mount namespace of its own, which needs root; and exit statuses of the program.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]
#![expect(
    clippy::unwrap_used,
    reason = "the samples are shared with the unit tests"
)]

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::statvfs;
use selvage::appliance::update::machine::Machine;
use selvage::appliance::update::state::Health;
use selvage::settings::{self, Environment, SettingsFlags, Sources};
use sys_mount::{Mount, UnmountFlags, unmount};

#[path = "../../src/appliance/update/samples.rs"]
#[expect(dead_code, reason = "the unit tests use the rest")]
mod samples;

use samples::Site;
use samples::server::TestServer;

/// Runs a test with a file system of so many bytes for the directory of updates, in the root of a machine with 1.0. The
/// server has 1.1.
fn with_disk(bytes: u64, test: impl AsyncFnOnce(&TestServer, &Path) + Send + 'static) {
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace of one's own needs root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut site = Site::new();
            let release = samples::release("1.1", &mut site);
            samples::publish(&mut site, 1, &[release]);
            let server = TestServer::start(site).await;
            let settings = format!("server = \"http://{}/releases\"", server.address);
            let root = samples::machine("1.0", &settings);
            let directory = root.path().join("var/lib/selvage/update");
            fs::create_dir_all(&directory).expect("a directory");
            Mount::builder()
                .fstype("tmpfs")
                .data(&format!("size={bytes}"))
                .mount("tmpfs", &directory)
                .expect("a small file system");
            test(&server, root.path()).await;
            let _ = unmount(&directory, UnmountFlags::DETACH);
        });
    })
    .join()
    .expect("the test's thread");
}

async fn apply(root: &Path) -> Result<(), String> {
    let settings = settings::update::load(Sources {
        root,
        config: None,
        environment: &Environment::default(),
        flags: &SettingsFlags::default(),
    });
    let machine = Machine::new(root, settings.expect("settings")).expect("an image");
    let index = machine.check().await.map_err(|error| error.to_string())?;
    let applied = machine
        .apply(&index.releases[0], async || Health::default(), &mut |_| ())
        .await;
    applied.map_err(|error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    })
}

#[test]
fn an_update_that_does_not_fit_is_refused_before_it_is_downloaded() {
    with_disk(64 << 20, async |server, root| {
        let error = apply(root).await.expect_err("no space");
        assert!(
            error.contains(
                "var/lib/selvage/update/download/selvage_1.1: the update needs 1 MB on this disk"
            ),
            "{error}"
        );
        assert!(error.contains("68 MB of these must stay so"), "{error}");
        assert!(server.requests(".zst").is_empty());
    });
}

#[test]
fn a_disk_that_fills_up_meanwhile_gets_back_what_the_update_took() {
    with_disk(80 << 20, async |server, root| {
        let directory = root.join("var/lib/selvage/update");
        // Somebody else takes the rest, once the update has begun.
        let filler = async {
            while server.requests(".zst").is_empty() {
                tokio::task::yield_now().await;
            }
            let path = directory.join("filler");
            let mut size = 80 << 20;
            while size > 4096 {
                let mut file = fs::File::options()
                    .append(true)
                    .create(true)
                    .open(&path)
                    .expect("a file");
                if std::io::Write::write_all(&mut file, &vec![1; size]).is_err() {
                    size /= 2;
                }
            }
        };
        let (error, ()) = tokio::join!(apply(root), filler);
        let error = error.expect_err("no space");
        assert!(error.contains("No space left on device"), "{error}");
        // Not even the files that had come whole.
        let download = directory.join("download/selvage_1.1");
        assert!(!download.exists(), "{download:?}");
        fs::remove_file(directory.join("filler")).expect("the filler");
        assert!(statvfs(&directory).is_ok());
        apply(root).await.expect("space again");
        assert!(root.join("efi/EFI/Linux/selvage_1.1+3-0.efi").exists());
    });
}

/// What the program says and how it ends, with a settings file and a machine that runs no image.
fn ended(command: &str, settings: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("agent.toml");
    fs::write(&file, settings).expect("settings");
    let output = Command::new(env!("CARGO_BIN_EXE_selvage"))
        .args(["update", command, "--config"])
        .arg(&file)
        .output()
        .expect("the program runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let name = file.display().to_string();
    (output.status.code(), said.replace(&name, "agent.toml"))
}

#[test]
fn a_mistake_in_the_settings_ends_with_78_and_is_named_whole() {
    for (table, key, value, expected) in [
        ("update", "check-interval", "10", "300 to 2592000 seconds"),
        ("update", "auto", "true", "off, check, download or apply"),
        ("fleet", "drain-timeout", "0", "1 to 86400 seconds"),
        ("fleet", "drain-timeout", "\"5min\"", "1 to 86400 seconds"),
        (
            "fleet",
            "group",
            "\"a b\"",
            "1 to 64 of a-z, A-Z, 0-9, . and -",
        ),
    ] {
        let settings = format!("# a machine\n[{table}]\n{key} = {value}\n");
        let (status, said) = ended("auto", &settings);
        let expected = format!("agent.toml:3: {table}.{key} = {value}: expected {expected}");
        assert!(said.contains(&expected), "{said}");
        assert_eq!(status, Some(78), "{said}");
    }
    // No command by hand asks the fleet.
    let (status, said) = ended("status", "[fleet]\ngroup = \"a b\"\n");
    assert!(said.contains("does not run a Selvage image"), "{said}");
    assert_eq!(status, Some(1));
}
