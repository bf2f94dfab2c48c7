//! The root file system's layout with the real overlayfs, in a mount namespace of its own. Needs root.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use selvage::appliance::etc::{self, Change};
use selvage::appliance::reset;
use selvage::appliance::sysroot::{self, Boot};
use selvage::appliance::update::state::{Failed, FailureCode, Health, State, StateFile};
use sys_mount::{Mount, UnmountFlags, unmount};

/// Runs a test with an empty root file system that holds nothing but an image's `/usr`.
fn with_root(test: impl FnOnce(&Path) + Send + 'static) {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace of one's own needs root");
        let directory = tempfile::TempDir::new().expect("a directory");
        let root = directory.path();
        // Mounts of this namespace must not reach the others.
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
        Mount::builder()
            .fstype("tmpfs")
            .mount("tmpfs", root)
            .expect("a file system for the root");
        // A file system of its own, as on a machine.
        fs::create_dir(root.join("usr")).expect("a mount point");
        Mount::builder()
            .fstype("tmpfs")
            .mount("tmpfs", root.join("usr"))
            .expect("a file system for the image");
        let defaults = root.join("usr/share/selvage/etc");
        fs::create_dir_all(&defaults).expect("the image's /usr");
        fs::write(defaults.join("issue"), "image\n").expect("a default");
        fs::write(defaults.join(".updated"), "TIMESTAMP_NSEC=1\n").expect("a default");
        test(root);
        for mounted in ["etc", "usr", ""] {
            let _ = unmount(root.join(mounted), UnmountFlags::DETACH);
        }
    })
    .join()
    .expect("the test's thread");
}

const ORDINARY: Boot = Boot {
    first: false,
    reset: false,
};

/// Ends a boot: provisioning is complete, and nothing is mounted any more.
fn end_of_boot(root: &Path) {
    fs::write(root.join(".selvage/provisioned"), "").expect("the marker");
    unmount(root.join("etc"), UnmountFlags::DETACH).expect("to switch off");
}

fn prepare(root: &Path, first_boot: bool) -> String {
    let mut output = Vec::new();
    let boot = Boot {
        first: first_boot,
        reset: false,
    };
    sysroot::prepare(root, boot, &mut output).expect("a root to switch to");
    String::from_utf8(output).expect("UTF-8")
}

fn read(root: &Path, name: &str) -> String {
    fs::read_to_string(root.join(name)).unwrap_or_default()
}

#[test]
fn empty_partition_becomes_a_root_with_the_images_etc() {
    with_root(|root| {
        assert_eq!(prepare(root, true), "");
        assert_eq!(read(root, "etc/issue"), "image\n");
        assert_eq!(read(root, "var/.updated"), "TIMESTAMP_NSEC=1\n");
        assert!(read(root, "etc/selinux/config").contains("SELINUX=disabled"));
        assert_eq!(
            fs::read_link(root.join("sbin")).expect("a link"),
            Path::new("usr/sbin")
        );
        let mode = |name: &str| {
            fs::metadata(root.join(name))
                .expect("a directory")
                .permissions()
                .mode()
                & 0o7777
        };
        assert_eq!(
            (mode("root"), mode("tmp"), mode("var")),
            (0o700, 0o1777, 0o755)
        );
    });
}

#[test]
fn changes_to_etc_stay_and_the_image_stays_as_it_is() {
    with_root(|root| {
        prepare(root, true);
        fs::write(root.join("etc/issue"), "machine\n").expect("a change");
        fs::write(root.join("etc/machine-id"), "0123\n").expect("an identity");
        fs::write(root.join(".selvage/provisioned"), "").expect("the marker");
        unmount(root.join("etc"), UnmountFlags::DETACH).expect("to switch off");

        assert_eq!(prepare(root, false), "");
        assert_eq!(read(root, "etc/issue"), "machine\n");
        assert_eq!(read(root, "etc/machine-id"), "0123\n");
        assert_eq!(read(root, "usr/share/selvage/etc/issue"), "image\n");
    });
}

#[test]
fn provisioning_that_was_cut_off_starts_from_nothing() {
    with_root(|root| {
        prepare(root, true);
        fs::write(root.join("etc/machine-id"), "0123\n").expect("a left-over");
        fs::create_dir_all(root.join("var/lib/half")).expect("a left-over");
        unmount(root.join("etc"), UnmountFlags::DETACH).expect("to switch off");
        assert!(prepare(root, true).contains("clearing the root partition"));
        assert!(!root.join("var/lib/half").exists());
        assert!(!root.join("etc/machine-id").exists());
        assert!(root.join("usr/share/selvage/etc").is_dir());
    });
}

#[test]
fn usr_that_is_not_mounted_is_named() {
    with_root(|root| {
        unmount(root.join("usr"), UnmountFlags::DETACH).expect("no /usr");
        let error = sysroot::prepare(root, ORDINARY, &mut Vec::new()).expect_err("no image");
        assert!(
            error.to_string().contains("usr/share/selvage/etc"),
            "{error}"
        );
        assert!(!root.join("var").exists());
    });
}

/// Gives the image another version, with another default.
fn update(root: &Path, version: &str, issue: &str) {
    let release = format!("ID=debian\nIMAGE_VERSION={version}\n");
    fs::create_dir_all(root.join("usr/lib")).expect("the image's /usr");
    fs::write(root.join("usr/lib/os-release"), release).expect("a version");
    fs::write(root.join("usr/share/selvage/etc/issue"), issue).expect("a default");
}

#[test]
fn a_new_version_brings_its_defaults_to_what_nobody_changed() {
    with_root(|root| {
        let default = |name: &str, text: &str| {
            fs::write(root.join("usr/share/selvage/etc").join(name), text).expect("a default");
        };
        default("mine.conf", "image\n");
        default("mode.conf", "image\n");
        default("owner.conf", "image\n");
        update(root, "1", "one\n");
        prepare(root, true);
        // Copied up by being opened for writing, and by a change of mode that is taken back.
        let touched = fs::File::options()
            .append(true)
            .open(root.join("etc/issue"))
            .expect("a file");
        drop(touched);
        fs::write(root.join("etc/mine.conf"), "mine\n").expect("a change");
        let mode = |mode| {
            fs::set_permissions(root.join("etc/mode.conf"), fs::Permissions::from_mode(mode))
        };
        mode(0o600).expect("a mode");
        std::os::unix::fs::chown(root.join("etc/owner.conf"), Some(1000), None).expect("an owner");
        assert!(root.join(".selvage/etc/issue").exists(), "copied up");
        end_of_boot(root);
        assert_eq!(prepare(root, false), "");
        assert!(!root.join(".selvage/etc/issue").exists(), "only a copy");
        end_of_boot(root);

        update(root, "2", "two\n");
        default("mine.conf", "newer\n");
        default("mode.conf", "newer\n");
        default("owner.conf", "newer\n");
        let said = prepare(root, false);
        assert!(said.contains("first boot of 2"), "{said}");
        assert_eq!(read(root, "etc/issue"), "two\n");
        assert_eq!(read(root, "etc/mine.conf"), "mine\n");
        assert_eq!(
            read(root, "etc/mode.conf"),
            "image\n",
            "its mode is this machine's"
        );
        assert_eq!(
            read(root, "etc/owner.conf"),
            "image\n",
            "its owner is this machine's"
        );
        for name in ["etc/.updated", "var/.updated"] {
            assert!(!root.join(name).exists(), "{name}: systemd is to update");
        }
        end_of_boot(root);
        assert_eq!(prepare(root, false), "", "once");
    });
}

#[test]
fn a_power_cut_on_the_first_boot_of_a_version_repeats_its_updates() {
    with_root(|root| {
        update(root, "1", "one\n");
        prepare(root, true);
        end_of_boot(root);
        update(root, "2", "two\n");
        prepare(root, false);
        // systemd has not come to write them.
        unmount(root.join("etc"), UnmountFlags::DETACH).expect("to switch off");
        prepare(root, false);
        assert!(!root.join("etc/.updated").exists());
    });
}

/// Takes all that is left of the root's file system: nothing can be created until what is returned is removed.
fn fill(root: &Path) -> std::path::PathBuf {
    let filler = root.join("var/filler");
    fs::create_dir(&filler).expect("a directory");
    let options = MsFlags::MS_REMOUNT;
    mount(
        None::<&str>,
        root,
        None::<&str>,
        options,
        Some("nr_inodes=400"),
    )
    .expect("a small disk");
    let full = (0..500).find_map(|n| fs::write(filler.join(n.to_string()), "").err());
    let full = full.expect("a full disk");
    assert_eq!(full.raw_os_error(), Some(nix::libc::ENOSPC));
    filler
}

#[test]
fn a_full_disk_boots_a_new_version_and_is_brought_up_to_date_when_it_can() {
    with_root(|root| {
        update(root, "1", "one\n");
        let gone = "usr/share/selvage/etc/gone.conf";
        fs::write(root.join(gone), "image\n").expect("a default");
        prepare(root, true);
        fs::write(root.join("etc/mine.conf"), "mine\n").expect("a file");
        fs::remove_file(root.join("etc/gone.conf")).expect("a removal");
        end_of_boot(root);
        update(root, "2", "two\n");
        let filler = fill(root);
        let said = prepare(root, false);
        assert!(said.contains("first boot of 2"), "{said}");
        for expected in [
            "/etc is read-only in this boot: failed to mount the overlay on ",
            "No space left on device",
            "skipped, and tried again at the next boot: failed to ",
        ] {
            assert!(said.contains(expected), "{said}");
        }
        assert_eq!(read(root, "etc/issue"), "two\n");
        assert_eq!(read(root, "etc/mine.conf"), "mine\n");
        assert!(!root.join("etc/gone.conf").exists(), "removed by hand");
        assert_eq!(read(root, ".selvage/version"), "1\n");
        end_of_boot(root);

        fs::remove_dir_all(filler).expect("space");
        let said = prepare(root, false);
        assert_eq!(said, "first boot of 2: bringing /etc and /var up to date\n");
        assert!(!root.join("etc/.updated").exists());
        assert_eq!(read(root, ".selvage/version"), "2\n");
    });
}

#[test]
fn a_full_disk_can_be_reset() {
    with_root(|root| {
        used(root, &[]);
        reset::cancel(root).expect("no request");
        fill(root);
        let boot = Boot {
            reset: true,
            ..FIRST
        };
        let mut said = Vec::new();
        sysroot::prepare(root, boot, &mut said).expect("a root to switch to");
        let said = String::from_utf8_lossy(&said);
        assert!(
            said.contains("reset: clearing the root partition"),
            "{said}"
        );
        assert!(!root.join("home/core").exists() && !root.join("var/filler").exists());
        assert!(!root.join(".selvage/provisioned").exists());
    });
}

#[test]
fn differences_of_etc_are_found() {
    with_root(|root| {
        let default = root.join("usr/share/selvage/etc");
        for name in ["a/one", "a/two", "b/three", "c/four"] {
            fs::create_dir_all(default.join(name).parent().expect("a directory"))
                .expect("a directory");
            fs::write(default.join(name), "x").expect("a default");
        }
        std::os::unix::fs::symlink("issue", default.join("link")).expect("a link");
        prepare(root, true);
        let etc = root.join("etc");
        fs::write(etc.join("a/one"), "y").expect("a change");
        fs::remove_file(etc.join("a/two")).expect("a removal");
        fs::remove_dir_all(etc.join("b")).expect("a removal");
        fs::remove_dir_all(etc.join("c")).expect("a removal");
        fs::create_dir(etc.join("c")).expect("an opaque directory");
        fs::write(etc.join("c/four"), "x").expect("a file as the image's");
        fs::remove_file(etc.join("link")).expect("a removal");
        std::os::unix::fs::symlink("elsewhere", etc.join("link")).expect("a link");
        fs::create_dir_all(etc.join("d/e")).expect("an addition");
        fs::remove_dir_all(etc.join("selinux")).expect("the last step of provisioning");
        let found = etc::differences(&default, &etc).expect("a comparison");
        let found: Vec<_> = found
            .iter()
            .map(|difference| (difference.path.to_str().expect("UTF-8"), difference.change))
            .collect();
        let expected = [
            ("a/one", Change::Changed),
            ("a/two", Change::Removed),
            ("b", Change::Removed),
            ("d", Change::Added),
            ("link", Change::Changed),
        ];
        assert_eq!(found, expected);
        end_of_boot(root);
        prepare(root, false);
        assert!(
            root.join(".selvage/etc/c/four").exists(),
            "in a directory that hides the image's"
        );
        assert_eq!(read(root, "etc/c/four"), "x");
    });
}

/// A machine that has been used, and is asked for a reset that keeps `keep`.
fn used(root: &Path, keep: &[&str]) {
    prepare(root, true);
    for name in [
        "var/log/journal/x",
        "var/lib/docker/y",
        "home/core/z",
        "etc/ssh/key",
        "etc/ssh/config",
    ] {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, name).expect("data");
    }
    let keep: Vec<_> = keep
        .iter()
        .map(|path| reset::kept(root, Path::new(path)).expect("to keep"))
        .collect();
    end_of_boot(root);
    reset::request(root, &keep).expect("a request");
}

const FIRST: Boot = Boot {
    first: true,
    reset: false,
};

#[test]
fn a_reset_keeps_what_it_is_told_to() {
    with_root(|root| {
        used(root, &["/var/log/journal", "/etc/ssh/key"]);
        let said = prepare(root, true);
        assert!(said.contains("keeping var/log/journal"), "{said}");
        assert_eq!(read(root, "var/log/journal/x"), "var/log/journal/x");
        assert_eq!(read(root, "etc/ssh/key"), "etc/ssh/key");
        for name in [
            "var/lib/docker",
            "home/core",
            "etc/ssh/config",
            ".selvage/provisioned",
        ] {
            assert!(!root.join(name).exists(), "{name}");
        }
        assert!(root.join("usr/share/selvage/etc/issue").exists());
        assert!(
            root.join(reset::FILE).exists(),
            "until provisioning is complete"
        );

        // A power cut while Ignition writes: what it wrote goes, what is kept stays.
        fs::write(root.join("home/half"), "").expect("a left-over");
        unmount(root.join("etc"), UnmountFlags::DETACH).expect("to switch off");
        prepare(root, true);
        assert!(!root.join("home/half").exists());
        assert_eq!(read(root, "etc/ssh/key"), "etc/ssh/key");
    });
}

/// An index of long ago must not be believed after a reset, nor a version tried again that failed.
#[test]
fn a_reset_forgets_neither_the_serial_of_the_index_nor_what_failed() {
    with_root(|root| {
        used(root, &[]);
        let file = StateFile::of(root);
        let failed = Failed {
            version: "1.1".to_owned(),
            at: 5,
            boots: 3,
            code: FailureCode::Docker,
            reason: "Docker does not answer".to_owned(),
        };
        let change = |state: &mut State| {
            state.accept_serial("stable", 17);
            state.fail(failed.clone());
            state.begin("1.2", "1.0", Health::default(), 6);
            state.pinned = Some("1.2".to_owned());
        };
        file.change(change).expect("a state");
        let told = root.join("var/lib/selvage/update/fleet-reported");
        fs::write(&told, "1.1 5\n").expect("what the fleet was told");
        fs::write(told.with_file_name("index-stable.json"), "{}").expect("an index");
        // The second time as after a power cut.
        for _ in 0..2 {
            prepare(root, true);
            let state = file.read();
            assert_eq!(state.highest_serial("stable"), 17);
            assert_eq!(state.failure("1.1"), Some(&failed));
            assert_eq!((state.pending, state.pinned), (None, None));
            assert_eq!(
                read(root, "var/lib/selvage/update/fleet-reported"),
                "1.1 5\n"
            );
            assert!(!told.with_file_name("index-stable.json").exists());
            assert!(!root.join("var/lib/docker").exists());
            unmount(root.join("etc"), UnmountFlags::DETACH).expect("to switch off");
        }
    });
}

#[test]
fn a_reset_removes_what_is_immutable_or_append_only() {
    with_root(|root| {
        used(root, &["/home/core"]);
        let chattr = |flag: &str, name: &str| {
            let done = std::process::Command::new("chattr")
                .arg(flag)
                .arg(root.join(name))
                .status();
            assert!(done.expect("chattr, of e2fsprogs").success());
        };
        fs::write(root.join("home/locked"), "").expect("data");
        chattr("+i", "var/lib/docker/y");
        chattr("+a", "var/lib/docker");
        chattr("+i", "home/locked");
        chattr("+i", "home");
        prepare(root, true);
        assert!(!root.join("var/lib/docker").exists());
        assert!(!root.join("home/locked").exists());
        assert_eq!(read(root, "home/core/z"), "home/core/z");
    });
}

#[test]
fn a_default_of_a_version_on_trial_takes_no_file_of_the_users() {
    with_root(|root| {
        update(root, "1", "one\n");
        prepare(root, true);
        fs::write(root.join("etc/issue"), "two\n").expect("a change");
        end_of_boot(root);
        update(root, "2", "two\n");
        prepare(root, false);
        end_of_boot(root);
        // It fell back.
        update(root, "1", "one\n");
        prepare(root, false);
        assert_eq!(read(root, "etc/issue"), "two\n");
    });
}

#[test]
fn a_reset_from_the_boot_menu_needs_no_request() {
    with_root(|root| {
        used(root, &[]);
        reset::cancel(root).expect("no request");
        let boot = Boot {
            reset: true,
            ..FIRST
        };
        sysroot::prepare(root, boot, &mut Vec::new()).expect("a root to switch to");
        assert!(!root.join("home/core").exists());
        assert!(
            root.join(reset::FILE).exists(),
            "a power cut now must not end it"
        );
    });
}

#[test]
fn a_request_that_is_damaged_keeps_nothing_else() {
    with_root(|root| {
        used(root, &[]);
        fs::write(
            root.join(reset::FILE),
            b"../etc\n/var\n\nhome/core\n./x\n\xff\xfe\n",
        )
        .expect("a request");
        let kept = reset::requested(root).expect("a request").expect("one");
        let kept: Vec<_> = kept.iter().map(|path| path.to_string_lossy()).collect();
        assert_eq!(kept, ["home/core", "\u{fffd}\u{fffd}"]);
        prepare(root, true);
        assert_eq!(read(root, "home/core/z"), "home/core/z");
        assert!(!root.join("var/lib/docker").exists());
    });
}

#[test]
fn what_cannot_be_kept_is_refused() {
    with_root(|root| {
        prepare(root, true);
        fs::write(root.join("etc/machine-id"), "0123").expect("an identity");
        fs::create_dir_all(root.join("var/usrlocal/bin")).expect("a directory");
        std::os::unix::fs::symlink("../var/usrlocal", root.join("usr/local")).expect("a link");
        let kept =
            |path: &str| reset::kept(root, Path::new(path)).map_err(|error| error.to_string());
        assert_eq!(kept("/usr/local/bin"), Ok("var/usrlocal/bin".into()));
        for (path, why) in [
            ("var", "not an absolute path"),
            ("/nothing", "failed to look at /nothing"),
            ("/", "all that a reset clears"),
            ("/etc", "all that a reset clears"),
            ("/etc/issue", "the image's own"),
            ("/etc/machine-id", "a new identity"),
            ("/.selvage/etc", "not on the root partition"),
        ] {
            let said = kept(path).expect_err(path);
            assert!(said.contains(why), "{path}: {said}");
        }
    });
}
