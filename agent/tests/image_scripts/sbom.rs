//! `image/sbom`, `image/lock` and `image/budgets`: what an image consists of, and how much of it there may be.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

/// dpkg's status as Debian 13 has it: a library, a package that is built from another source, one that is gone but for
/// its configuration, and one of which the image keeps nothing.
const STATUS: &str = "\
Package: libssl3t64
Status: install ok installed
Priority: optional
Section: libs
Maintainer: Debian OpenSSL Team <pkg-openssl-devel@alioth-lists.debian.net>
Architecture: amd64
Multi-Arch: same
Source: openssl
Version: 3.5.4-1~deb13u2
Description: Secure Sockets Layer toolkit - shared libraries
 This package is part of the OpenSSL project's implementation of the SSL
 and TLS cryptographic protocols.
 .
 Version: of the protocols, not of the package
Homepage: https://www.openssl.org/

Package: docker.io
Status: install ok installed
Architecture: amd64
Version: 26.1.5+dfsg1-9+b9
Source: docker.io (26.1.5+dfsg1-9)
Homepage: https://mobyproject.org

Package: nano
Status: deinstall ok config-files
Architecture: amd64
Version: 8.4-1

Package: perl-base
Status: install ok installed
Architecture: amd64
Source: perl
Version: 5.40.1-6
";

const FILES: &str = "\
docker.io.list:/usr
docker.io.list:/usr/sbin/dockerd
docker.io.list:/usr/share/doc/docker.io/copyright
libssl3t64:amd64.list:/.
libssl3t64:amd64.list:/lib/x86_64-linux-gnu/libssl.so.3
perl-base.list:/usr/bin/perl
perl-base.list:/usr/share/doc/perl-base/copyright
";

const KEPT: &str = "\
/usr/lib/x86_64-linux-gnu/libssl.so.3
/usr/sbin/dockerd
/usr/share/doc/perl-base/copyright
";

const LOCK: &str = r#"
version = 4

[[package]]
name = "selvage"
version = "0.1.0"

[[package]]
name = "libc"
version = "0.2.170"
source = "registry+crates"
checksum = "875b3680cb2f8f71bdcf9a30f38d48282f5d3c95cbf9b3fa57269bb5d5c06828"
"#;

fn image_script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../image")
        .join(name)
}

/// What a program prints, and whether it succeeds.
fn run(command: &mut Command) -> (bool, String) {
    let output = command.output().expect("a program");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.success(), said)
}

/// Cargo's metadata about an agent of two crates, the second under a licence in the old way of writing, and one for
/// tests.
pub(crate) fn metadata() -> String {
    let crates = [
        ("selvage", "0.1.0", "Apache-2.0"),
        ("libc", "0.2.170", "MIT/Apache-2.0"),
        ("proptest", "1.6.0", "MIT OR Apache-2.0"),
    ];
    let packages = crates.map(|(name, version, license)| {
        json!({"id": name, "name": name, "version": version, "license": license})
    });
    let needs = |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind, "target": null}]});
    let deps = json!([needs("libc", Value::Null), needs("proptest", json!("dev"))]);
    let nodes = json!([
        {"id": "selvage", "deps": deps},
        {"id": "libc", "deps": []},
        {"id": "proptest", "deps": []},
    ]);
    json!({"packages": packages, "resolve": {"nodes": nodes}}).to_string()
}

/// Files for the script in a directory of their own.
fn inputs() -> TempDir {
    let directory = TempDir::new().expect("a directory");
    for (name, text) in [
        ("selvage.status", STATUS),
        ("selvage.files", FILES),
        ("selvage.kept", KEPT),
        ("metadata.json", &metadata()),
        ("Cargo.lock", LOCK),
    ] {
        fs::write(directory.path().join(name), text).expect("a file");
    }
    directory
}

fn sbom(directory: &Path) -> (bool, String) {
    run(Command::new(image_script("sbom"))
        .arg(directory)
        .arg(directory.join("metadata.json"))
        .arg(directory.join("Cargo.lock"))
        .args(["1.2.3", "1760000000"]))
}

#[test]
fn packages_and_crates_of_an_image_are_listed_as_spdx() {
    let directory = inputs();
    let (well, said) = sbom(directory.path());
    assert!(well, "{said}");
    assert_eq!(sbom(directory.path()).1, said, "the same again");
    let document: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(document["creationInfo"]["created"], "2025-10-09T08:53:20Z");

    let packages = document["packages"].as_array().expect("a list");
    let names: Vec<_> = packages
        .iter()
        .map(|one| one["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(
        names,
        [
            "selvage",
            "libc",
            "docker.io",
            "libssl3t64",
            "selvage-image"
        ]
    );
    let one = |name: &str| packages.iter().find(|one| one["name"] == name);
    let docker = one("docker.io").expect("Docker");
    assert_eq!(
        docker["externalRefs"][0]["referenceLocator"],
        "pkg:deb/debian/docker.io@26.1.5%2Bdfsg1-9%2Bb9?arch=amd64&distro=trixie"
    );
    assert_eq!(docker["sourceInfo"], "built from docker.io 26.1.5+dfsg1-9");
    let ssl = one("libssl3t64").expect("a library");
    assert_eq!(ssl["versionInfo"], "3.5.4-1~deb13u2");
    assert_eq!(ssl["sourceInfo"], "built from openssl 3.5.4-1~deb13u2");
    let libc = one("libc").expect("a crate");
    assert_eq!(libc["licenseDeclared"], "MIT OR Apache-2.0");
    assert_eq!(
        libc["checksums"][0]["checksumValue"],
        "875b3680cb2f8f71bdcf9a30f38d48282f5d3c95cbf9b3fa57269bb5d5c06828"
    );
    let relationships = document["relationships"].to_string();
    assert!(relationships.contains("DEPENDS_ON") && relationships.contains("DESCRIBES"));
}

/// The reference implementation of the format, which `make test-netns` installs.
#[test]
fn the_list_of_an_image_is_valid_spdx() {
    let validator = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/venv/bin/pyspdxtools");
    assert!(
        validator.exists(),
        "there is no {}: `make target/venv/bin/pyspdxtools` installs it",
        validator.display()
    );
    let directory = inputs();
    let (well, said) = sbom(directory.path());
    assert!(well, "{said}");
    let file = directory.path().join("image.spdx.json");
    let validate = |text: &str| {
        fs::write(&file, text).expect("a file");
        run(Command::new(&validator)
            .args(["--version", "SPDX-2.3", "-i"])
            .arg(&file))
    };
    let (valid, found) = validate(&said);
    assert!(valid, "{found}");
    // It would see what is wrong.
    let (valid, found) = validate(&said.replace("MIT OR Apache-2.0", "MIT OR or"));
    assert!(!valid, "{found}");
    let (valid, found) = validate(&said.replace("SPDXRef-deb-docker.io", "SPDXRef-deb_docker"));
    assert!(!valid, "{found}");
}

#[test]
fn an_image_without_packages_or_agent_is_no_image() {
    let directory = inputs();
    fs::write(
        directory.path().join("metadata.json"),
        metadata().replace(r#""name":"selvage""#, r#""name":"other""#),
    )
    .expect("a file");
    let (well, said) = sbom(directory.path());
    assert!(!well && said.contains("no crate called selvage"), "{said}");
    fs::remove_file(directory.path().join("selvage.status")).expect("a file");
    let (well, said) = sbom(directory.path());
    assert!(!well && said.contains("there is no *.status in"), "{said}");
}

#[test]
fn a_lock_pins_what_was_installed_and_names_what_no_longer_is() {
    let directory = inputs();
    let status = directory.path().join("selvage.status");
    let lock = directory.path().join("packages.lock");
    let call = |arguments: &[&str]| {
        run(Command::new(image_script("lock"))
            .args(arguments)
            .env("LOCK_FILE", &lock))
    };
    let status = status.to_str().expect("a path");
    assert_eq!(
        call(&["preferences", "image"]),
        (true, String::new()),
        "no lock"
    );
    let (well, recorded) = call(&["record", status, status]);
    assert!(well, "{recorded}");
    let lines: Vec<_> = recorded.lines().skip(1).collect();
    assert_eq!(
        lines,
        [
            "image docker.io 26.1.5+dfsg1-9+b9",
            "image libssl3t64 3.5.4-1~deb13u2",
            "image perl-base 5.40.1-6",
            "tools docker.io 26.1.5+dfsg1-9+b9",
            "tools libssl3t64 3.5.4-1~deb13u2",
            "tools perl-base 5.40.1-6",
        ]
    );
    fs::write(&lock, &recorded).expect("a lock");
    assert_eq!(call(&["compare", status, status]), (true, String::new()));
    let pins = call(&["preferences", "tools"]).1;
    assert!(
        pins.starts_with(
            "Package: docker.io\nPin: version 26.1.5+dfsg1-9+b9\nPin-Priority: 1001\n\n"
        ),
        "{pins}"
    );
    let older = recorded.replace("tools perl-base 5.40.1-6", "tools perl-base 5.40.1-5");
    let older = older.replace("image docker.io 26.1.5+dfsg1-9+b9\n", "");
    fs::write(&lock, older).expect("a lock");
    assert_eq!(
        call(&["compare", status, status]),
        (
            true,
            "not as locked: perl-base 5.40.1-6 instead of 5.40.1-5 (tools), which the mirror has no longer\n\
             not in the lock: docker.io 26.1.5+dfsg1-9+b9 (image); `make lock` records them\n"
                .to_owned()
        )
    );
}

#[test]
fn a_part_over_its_budget_fails_the_build_and_is_named() {
    let judge_of = |architecture: &[&str], sizes: &str| {
        let mut child = Command::new(image_script("budgets"))
            .args(architecture)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("bash");
        let mut input = child.stdin.take().expect("a pipe");
        input.write_all(sizes.as_bytes()).expect("sizes");
        drop(input);
        let output = child.wait_with_output().expect("an end");
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    let judge = |sizes: &str| judge_of(&["x86-64"], sizes);
    let (well, said) = judge("image:   UKI     30.3 MB\nimage:   disk    1083.2 MB\n");
    assert!(well && said.contains("UKI     30.3 MB of 32\n"), "{said}");
    assert!(said.contains("disk    1083.2 MB\n"), "{said}");
    let (well, said) = judge("image:   UKI     32.1 MB\nimage:   verity  1.8 MB\n");
    assert!(
        !well && said.contains("UKI has 32.1 MB instead of at most 32"),
        "{said}"
    );
    // The kernel for arm64 is larger; what has no budget of its own there has that of all.
    let sizes = "image:   UKI     49.9 MB\nimage:   /usr    180.0 MB\n";
    let (well, said) = judge_of(&["arm64"], sizes);
    assert!(well && said.contains("UKI     49.9 MB of 52\n"), "{said}");
    assert!(said.contains("/usr    180.0 MB of 180\n"), "{said}");
    let (well, said) = judge_of(&["arm64"], "image:   UKI     52.1 MB\n");
    assert!(!well && said.contains("instead of at most 52"), "{said}");
    assert!(judge_of(&[], "image:   UKI     32.0 MB\n").0);
}
