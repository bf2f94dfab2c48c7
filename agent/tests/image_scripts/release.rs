//! Releases: published, promoted, and checked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A release server's directory, keys, and what stands in for a built image.
struct Site {
    directory: TempDir,
}

impl Site {
    fn new() -> Self {
        let directory = TempDir::new().expect("a directory");
        let site = Self { directory };
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../image");
        fs::create_dir_all(site.path("work/image")).expect("a directory");
        fs::copy(here.join("release"), site.path("work/image/release")).expect("a script");
        fs::create_dir(site.path("keys")).expect("a directory");
        let (key, public) = (site.text("keys/update.key"), site.text("keys/update.pem"));
        for arguments in [
            &["genpkey", "-algorithm", "ed25519", "-out", &key][..],
            &["pkey", "-in", &key, "-pubout", "-out", &public],
        ] {
            let made = Command::new("openssl").args(arguments).output();
            assert!(made.expect("openssl 3").status.success());
        }
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// What `image/release` says, with the published directory put in.
    fn release(
        &self,
        option: &str,
        channels: &[&str],
        environment: &[(&str, &str)],
    ) -> (bool, String) {
        let output = Command::new(self.path("work/image/release"))
            .args([option].iter().filter(|option| !option.is_empty()))
            .arg(self.path("www"))
            .args(channels)
            .env("KEYS", self.path("keys"))
            .envs(environment.iter().copied())
            .output()
            .expect("python 3");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        (
            output.status.success(),
            said.replace(&self.text("www"), "www"),
        )
    }

    /// Puts what is published back as it was.
    fn restore(&self, published: &[(PathBuf, Vec<u8>)]) {
        fs::remove_dir_all(self.path("www")).expect("to remove");
        for (path, bytes) in published {
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            fs::write(path, bytes).expect("a file");
        }
    }

    /// Stands in for a build of a version.
    fn build(&self, version: &str) {
        let update = self.path("work/target/image/update");
        fs::create_dir_all(&update).expect("a directory");
        let files: Vec<Value> = [
            ("usr", "usr.raw"),
            ("usr-verity", "usr-verity.raw"),
            ("uki", "efi"),
        ]
        .map(|(part, suffix)| {
            let name = format!("selvage_{version}.{suffix}.zst");
            let bytes = format!("{part} of {version}");
            fs::write(update.join(&name), &bytes).expect("an artefact");
            let digest = digest(&SHA256, bytes.as_bytes());
            let hex: String = digest
                .as_ref()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            json!({
                "part": part,
                "name": format!("selvage_{version}/{name}"),
                "size": bytes.len(),
                "sha256": hex,
                "unpacked_size": 1,
                "unpacked_sha256": hex,
            })
        })
        .into();
        let contents = format!("selvage_{version}.spdx.json");
        fs::write(update.join(contents), "{}").expect("a list");
        let built = json!({"version": version, "files": files});
        fs::write(update.join("files.json"), built.to_string()).expect("an artefact");
    }

    /// Stands in for a build of a version's system extension.
    fn build_sysext(&self, version: &str, content: &str, signed: bool) {
        let directory = self.path("work/target/sysexts");
        fs::create_dir_all(&directory).expect("a directory");
        let name = format!("selvage_{version}_debug.sysext.raw");
        fs::write(directory.join(&name), content).expect("an extension");
        let digest = digest(&SHA256, content.as_bytes());
        let hex: String = (digest.as_ref().iter())
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let file = json!({"part": "sysext", "name": format!("selvage_{version}/{name}"), "size": content.len(), "sha256": hex, "unpacked_size": content.len(), "unpacked_sha256": hex});
        let built = json!({"version": version, "signed": signed, "files": [file]});
        fs::write(directory.join("files.json"), built.to_string()).expect("a list");
    }

    fn index(&self, channel: &str) -> Value {
        let text = fs::read(self.path("www").join(format!("{channel}.json"))).expect("an index");
        serde_json::from_slice(&text).expect("JSON")
    }
}

/// Two versions in beta, the older one also in stable.
fn published() -> Site {
    let site = Site::new();
    for (version, channels) in [("1.0", &["beta", "stable"][..]), ("1.1", &["beta"])] {
        site.build(version);
        for channel in channels {
            let (well, said) = site.release(
                "",
                &[channel],
                &[("SEVERITY", "security"), ("NOTES", "new")],
            );
            assert!(well, "{said}");
        }
    }
    site
}

#[test]
fn a_release_has_the_extensions_that_were_built_for_it() {
    let site = Site::new();
    site.build("1.0");
    site.build_sysext("0.9", "of the version before", false);
    let (well, said) = site.release("", &["stable"], &[]);
    assert!(
        well && said.contains("without system extensions: "),
        "{said}"
    );
    assert!(
        said.contains("are for version 0.9 (make sysexts)"),
        "{said}"
    );
    site.build("1.1");
    site.build_sysext("1.1", "tools", false);
    let (well, said) = site.release("", &["stable"], &[]);
    assert!(well && !said.contains("without"), "{said}");
    let index = site.index("stable");
    let parts = |release: &Value| {
        let files = release["files"].as_array().expect("files").iter();
        files.filter(|file| file["part"] == "sysext").count()
    };
    let releases = index["releases"].as_array().expect("releases");
    assert_eq!(releases.iter().map(parts).collect::<Vec<_>>(), [1, 0]);
    let published = "www/selvage_1.1/selvage_1.1_debug.sysext.raw";
    assert_eq!(
        fs::read_to_string(site.path(published)).expect("published"),
        "tools"
    );
    let (well, said) = site.release("--check", &[], &[]);
    assert!(well, "{said}");
    fs::write(site.path(published), "tOols").expect("a change");
    let (well, said) = site.release("--check", &[], &[]);
    assert!(
        !well && said.contains("selvage_1.1_debug.sysext.raw has the SHA-256"),
        "{said}"
    );
}

#[test]
fn a_signed_image_is_released_with_signed_extensions_alone() {
    for (signed, expected) in [(false, 0), (true, 1)] {
        let site = Site::new();
        site.build("1.0");
        let list = site.path("work/target/image/update/files.json");
        let mut built: Value =
            serde_json::from_slice(&fs::read(&list).expect("a list")).expect("JSON");
        // Its bytes are those of another part; it is what the part says that counts.
        let mut signature = built["files"][1].clone();
        signature["part"] = "usr-verity-sig".into();
        built["files"]
            .as_array_mut()
            .expect("files")
            .push(signature);
        fs::write(&list, built.to_string()).expect("a list");
        site.build_sysext("1.0", "tools", signed);
        let (well, said) = site.release("", &["stable"], &[]);
        assert!(well, "{said}");
        assert_eq!(
            said.contains("are not signed, as the image is"),
            !signed,
            "{said}"
        );
        let index = site.index("stable");
        let files = index["releases"][0]["files"].as_array().expect("files");
        let extensions = files.iter().filter(|file| file["part"] == "sysext");
        assert_eq!(extensions.count(), expected);
    }
}

#[test]
fn a_version_is_promoted_as_it_is() {
    let site = published();
    let beta = fs::read(site.path("www/beta.json")).expect("an index");
    // A build meanwhile is none of its business.
    fs::remove_dir_all(site.path("work/target")).expect("no build");
    let (well, said) = site.release("--promote", &["beta", "stable"], &[("ROLL_OUT", "60")]);
    assert_eq!(
        (well, &*said),
        (true, "released 1.1 in www/stable.json, serial 2\n")
    );
    let (from, to) = (site.index("beta"), site.index("stable"));
    assert_eq!(
        (to["serial"].as_u64(), to["channel"].as_str()),
        (Some(2), Some("stable"))
    );
    let (from, to) = (&from["releases"][0], &to["releases"][0]);
    assert_eq!(to["version"], "1.1");
    for same in ["files", "severity", "notes"] {
        assert_eq!(to[same], from[same], "{same}");
    }
    assert_eq!(to["roll_out_seconds"], 60);
    assert_eq!(
        fs::read(site.path("www/beta.json")).expect("an index"),
        beta
    );
    let (well, said) = site.release("--check", &[], &[]);
    assert!(well, "{said}");

    // A new channel begins to count.
    let (well, said) = site.release("--promote", &["beta", "canary"], &[]);
    assert_eq!(
        (well, &*said),
        (true, "released 1.1 in www/canary.json, serial 1\n")
    );
    let (well, said) = site.release("--promote", &["beta", "beta"], &[]);
    assert!(!well && said.contains("are both 'beta'"), "{said}");
    let (well, said) = site.release("--promote", &["gamma", "stable"], &[]);
    assert!(
        !well && said.contains("there is no www/gamma.json"),
        "{said}"
    );
}

#[test]
fn what_is_published_is_checked_and_nothing_damaged_is_promoted() {
    const USR: &str = "selvage_1.1/selvage_1.1.usr.raw.zst";
    /// What happens to the published files, and what is said of it.
    type Case = (&'static str, fn(&Path), &'static str);
    let site = published();
    let (well, said) = site.release("--check", &[], &[]);
    assert!(well, "{said}");
    assert!(
        said.contains("www/beta.json: serial 2, 2 releases, newest 1.1\n"),
        "{said}"
    );
    let files = |directory: PathBuf| {
        fs::read_dir(directory)
            .expect("a directory")
            .map(|one| one.expect("a file").path())
    };
    let good: Vec<_> = files(site.path("www"))
        .flat_map(|path| match path.is_dir() {
            true => files(path).collect(),
            false => vec![path],
        })
        .map(|path| (path.clone(), fs::read(path).expect("a file")))
        .collect();
    let cases: [Case; 8] = [
        (
            "a changed file",
            |www| fs::write(www.join(USR), "usr of 1.2").expect("damage"),
            "has the SHA-256",
        ),
        (
            "half a file",
            |www| fs::write(www.join(USR), "usr").expect("damage"),
            "has 3 bytes, www/beta.json says 10",
        ),
        (
            "a lost file",
            |www| fs::remove_file(www.join(USR)).expect("damage"),
            "which is not there",
        ),
        (
            "a changed index",
            |www| {
                let path = www.join("beta.json");
                let text = fs::read_to_string(&path).expect("an index");
                fs::write(path, text.replace("\"serial\": 2", "\"serial\": 9")).expect("damage");
            },
            "www/beta.json.sig is not a signature of beta.json",
        ),
        (
            "a lost signature",
            |www| fs::remove_file(www.join("beta.json.sig")).expect("damage"),
            "there is no www/beta.json.sig",
        ),
        (
            "another channel's index",
            |www| {
                for end in ["json", "json.sig"] {
                    let name = |channel| www.join(format!("{channel}.{end}"));
                    fs::copy(name("stable"), name("beta")).expect("damage");
                }
            },
            "www/beta.json: channel is 'stable'",
        ),
        (
            "changed sums",
            |www| {
                let path = www.join("selvage_1.1/SHA256SUMS");
                fs::write(path, "").expect("damage");
            },
            "SHA256SUMS.sig is not a signature",
        ),
        (
            "a file too many",
            |www| fs::write(www.join("selvage_1.1/README"), "").expect("damage"),
            "belongs to no release",
        ),
    ];
    for (name, damage, expected) in cases {
        site.restore(&good);
        damage(&site.path("www"));
        let (well, said) = site.release("--check", &[], &[]);
        assert!(!well && said.contains(expected), "{name}: {said}");
        let stable = fs::read(site.path("www/stable.json")).expect("an index");
        let (well, said) = site.release("--promote", &["beta", "stable"], &[]);
        assert!(
            !well && said.contains("nothing was changed"),
            "{name}: {said}"
        );
        assert_eq!(
            fs::read(site.path("www/stable.json")).expect("an index"),
            stable,
            "{name}"
        );
    }
    // An old version may go, though not without a word.
    site.restore(&good);
    fs::remove_dir_all(site.path("www/selvage_1.0")).expect("to remove");
    let (well, said) = site.release("--check", &[], &[]);
    let gone = "www/beta.json: version 1.0 is not there any more";
    assert!(!well && said.contains(gone), "{said}");
    assert!(
        said.contains("www/stable.json names www/selvage_1.0/"),
        "the newest of stable: {said}"
    );
    let (well, said) = site.release("--promote", &["beta", "stable"], &[]);
    assert!(well, "{said}");
    let (well, said) = site.release("--check", &[], &[]);
    assert!(well && said.contains(gone), "{said}");

    let (well, said) = site.release("--check", &[], &[("KEYS", "/nowhere")]);
    assert!(
        !well && said.contains("no update*.pem in /nowhere"),
        "{said}"
    );
    fs::remove_dir_all(site.path("www")).expect("nothing");
    fs::create_dir(site.path("www")).expect("a directory");
    let (well, said) = site.release("--check", &[], &[]);
    assert!(!well && said.contains("www has no index"), "{said}");
}
