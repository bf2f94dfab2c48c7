use proptest::prelude::*;

use super::*;

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let hash = digest::digest(&digest::SHA256, bytes);
    hash.as_ref().try_into().unwrap()
}

/// The names that other makers give their extensions: flatcar/sysext-bakery, extensions.fcos.fr, mkosi's own.
#[test]
fn only_what_is_published_for_this_image_has_such_a_name() {
    let (found, name) = parse_file_name("selvage_0.1.0.684_debug.sysext.raw").unwrap();
    assert_eq!((found.as_str(), &*name.0), ("0.1.0.684", "debug"));
    let (found, name) = parse_file_name("selvage_1.0~rc1_k8s-1-34.sysext.raw").unwrap();
    assert_eq!((found.as_str(), &*name.0), ("1.0~rc1", "k8s-1-34"));
    for other in [
        "kubernetes-v1.33.2-x86-64.raw",
        "docker_compose-2.40.3-x86-64.raw",
        "semanage-3.8-1.fc42-42-x86-64.raw",
        "selvage_0.1.0.684_8484680c-9521-48c6-9c11-b0720656f69e.usr.raw.zst",
        "selvage_1.0_debug.raw",
        "selvage_1.0__.sysext.raw",
        "selvage_1.0_a/b.sysext.raw",
        "selvage_v1_debug.sysext.raw",
        "selvage_.sysext.raw",
        "",
    ] {
        assert!(parse_file_name(other).is_none(), "{other}");
    }
}

#[test]
fn each_version_has_its_own() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::new(root.path());
    assert_eq!(store.list().unwrap(), []);
    let source = root.path().join("source");
    fs::write(&source, "content").unwrap();
    let hash = sha256(b"content");
    for (of, called) in [("1.10", "debug"), ("1.9", "debug"), ("1.9", "podman")] {
        store
            .copy(&source, &hash, &version(of), &name(called))
            .unwrap();
    }
    // Left over from downloads, and of somebody else.
    fs::write(
        store
            .directory(&version("1.9"))
            .join("selvage_1.9_k.sysext.raw.part"),
        "",
    )
    .unwrap();
    fs::create_dir_all(root.path().join(DIRECTORY).join("lost+found")).unwrap();
    fs::create_dir_all(root.path().join("etc/extensions/tree")).unwrap();
    fs::create_dir_all(root.path().join("var/lib/extensions")).unwrap();
    fs::write(root.path().join("var/lib/extensions/zfs.raw"), "").unwrap();
    let shown: Vec<String> = (store.list().unwrap().iter())
        .map(|kept| {
            let of = kept.version.as_ref().map_or("-", Version::as_str);
            format!("{of} {}", kept.name)
        })
        .collect();
    assert_eq!(
        shown,
        ["1.9 debug", "1.9 podman", "1.10 debug", "- tree", "- zfs"]
    );

    let behind = store.left_behind(&version("1.10")).unwrap();
    assert_eq!(behind.len(), 1);
    assert_eq!(behind[0].name, "podman");
    // After a roll-back, what the newer version had is no loss.
    assert_eq!(store.left_behind(&version("1.9")).unwrap(), []);

    assert!(store.remove(&name("debug")).unwrap());
    assert!(!store.remove(&name("debug")).unwrap());
    assert!(!store.remove(&name("zfs")).unwrap(), "by hand");
    store.keep_only(&[&version("1.10")]).unwrap();
    assert_eq!(store.names(&version("1.9")).unwrap(), []);
    assert!(root.path().join("var/lib/extensions/zfs.raw").exists());
}

#[test]
fn another_file_than_expected_is_not_kept() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::new(root.path());
    let source = root.path().join("source");
    fs::write(&source, "content").unwrap();
    let copy = |hash| store.copy(&source, &hash, &version("1.0"), &name("debug"));
    let error = copy(sha256(b"other")).unwrap_err().to_string();
    assert!(
        error.contains("the file is damaged or was exchanged"),
        "{error}"
    );
    assert_eq!(store.list().unwrap(), []);
    // systemd-sysext would look at whatever is there, checked or not.
    assert!(!store.directory(&version("1.0")).exists());
    assert!(!store.path(&version("1.0"), &name("debug")).exists());
    // What is there stays if its successor is wrong.
    copy(sha256(b"content")).unwrap();
    copy(sha256(b"other")).unwrap_err();
    assert_eq!(
        fs::read(store.path(&version("1.0"), &name("debug"))).unwrap(),
        b"content"
    );
    fs::remove_file(&source).unwrap();
    let error = copy(sha256(b"content")).unwrap_err().to_string();
    assert!(error.starts_with("failed to read "), "{error}");
}

proptest! {
    #[test]
    fn no_name_leads_out_of_the_directory(text in ".{0,40}") {
        if let Some((version, name)) = parse_file_name(&text) {
            let path = Store::new(Path::new("/")).path(&version, &name);
            prop_assert!(path.components().count() == 7, "{}", path.display());
            prop_assert!(!path.to_str().unwrap().contains(".."));
        }
    }
}
