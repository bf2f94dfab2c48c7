//! The root file system's layout with the real overlayfs, in a mount namespace of its own. Needs root.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use selvage::appliance::sysroot;
use sys_mount::{Mount, MountFlags, UnmountFlags, unmount};

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
        let defaults = root.join("usr/share/selvage/etc");
        fs::create_dir_all(&defaults).expect("the image's /usr");
        fs::write(defaults.join("issue"), "image\n").expect("a default");
        fs::write(defaults.join(".updated"), "TIMESTAMP_NSEC=1\n").expect("a default");
        test(root);
        let _ = unmount(root.join("etc"), UnmountFlags::DETACH);
        let _ = unmount(root, UnmountFlags::DETACH);
    })
    .join()
    .expect("the test's thread");
}

fn prepare(root: &Path, first_boot: bool) -> String {
    let mut output = Vec::new();
    sysroot::prepare(root, first_boot, &mut output).expect("a root to switch to");
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
        // /usr is a file system of its own on a machine, and must survive.
        let usr = root.join("usr");
        Mount::builder()
            .flags(MountFlags::BIND)
            .mount(&usr, &usr)
            .expect("a mount");
        Mount::builder()
            .fstype("tmpfs")
            .mount("tmpfs", &usr)
            .expect("a mount");
        fs::create_dir_all(usr.join("share/selvage/etc")).expect("the image's /usr");

        assert!(prepare(root, true).contains("clearing the root partition"));
        assert!(!root.join("var/lib/half").exists());
        assert!(!root.join("etc/machine-id").exists());
        assert!(usr.join("share/selvage/etc").is_dir());
        let _ = unmount(&usr, UnmountFlags::DETACH);
        let _ = unmount(&usr, UnmountFlags::DETACH);
    });
}

#[test]
fn usr_that_is_not_mounted_is_named() {
    with_root(|root| {
        fs::remove_dir_all(root.join("usr")).expect("no /usr");
        let error = sysroot::prepare(root, false, &mut Vec::new()).expect_err("no image");
        assert!(
            error.to_string().contains("usr/share/selvage/etc"),
            "{error}"
        );
        assert!(!root.join("var").exists());
    });
}
