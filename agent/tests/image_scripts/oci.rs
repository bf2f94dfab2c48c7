//! `image/oci`: the container image, made here of small packages and an agent that does nothing. `make test-oci`
//! builds and runs the real one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ring::digest::{SHA256, digest};
use serde_json::Value;
use tempfile::TempDir;

use super::sbom::metadata;

/// OCI's name of an architecture, Debian's directory for it, the place of the loader, and ELF's number.
type Machine = (&'static str, &'static str, &'static str, u8);
const AMD64: Machine = (
    "amd64",
    "x86_64-linux-gnu",
    "usr/lib64/ld-linux-x86-64.so.2",
    62,
);
const ARM64: Machine = (
    "arm64",
    "aarch64-linux-gnu",
    "usr/lib/ld-linux-aarch64.so.1",
    183,
);

fn run(command: &mut Command) -> Vec<u8> {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    output.stdout
}

/// A program or library for a machine, which is linked with these libraries.
fn link(path: &Path, machine: Machine, libraries: &[&str]) {
    let directory = path.parent().expect("a directory");
    fs::create_dir_all(directory).expect("a directory");
    let stubs = TempDir::new().expect("a directory");
    let build = |target: &Path, name: &str, with: &[PathBuf]| {
        let options = [
            "-shared",
            "-nostdlib",
            "-Wl,--no-as-needed",
            "-xc",
            "/dev/null",
            "-xnone",
        ];
        let name = format!("-Wl,-soname,{name}");
        run(Command::new("gcc")
            .args(options)
            .arg(name)
            .args(with)
            .arg("-o")
            .arg(target));
    };
    let stubs: Vec<_> = libraries
        .iter()
        .map(|name| stubs.path().join(name))
        .collect();
    for (stub, name) in stubs.iter().zip(libraries) {
        build(stub, name, &[]);
    }
    let name = path.file_name().expect("a name").to_string_lossy();
    build(path, &name, &stubs);
    let mut bytes = fs::read(path).expect("a file");
    bytes[18] = machine.3;
    fs::write(path, bytes).expect("a file");
}

/// Packs what `fill` puts into a directory.
fn package(into: &Path, name: &str, fill: impl FnOnce(&Path)) {
    let tree = TempDir::new().expect("a directory");
    let root = tree.path();
    let architecture = into.file_name().expect("a name").to_string_lossy();
    for (path, text) in [
        (
            "DEBIAN/control",
            format!(
                "Package: {name}\nVersion: 1.0-1\nArchitecture: {architecture}\nMaintainer: M\nDescription: D\n"
            ),
        ),
        (
            &format!("usr/share/doc/{name}/copyright"),
            format!("The terms of {name}.\n"),
        ),
    ] {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, text).expect("a file");
    }
    fill(root);
    let deb = into.join(format!("{name}.deb"));
    run(Command::new("dpkg-deb")
        .args(["--root-owner-group", "--build"])
        .arg(root)
        .arg(deb));
}

/// Small packages for a machine: as Debian has them, but for what is in the libraries.
fn packages(directory: &Path, machine: Machine) {
    let (architecture, triplet, loader, _) = machine;
    let into = directory.join(architecture);
    fs::create_dir_all(&into).expect("a directory");
    let libraries = Path::new("usr/lib").join(triplet);
    programs(&into, machine, &libraries);
    package(&into, "libnftables1", |root| {
        let libraries = root.join(&libraries);
        link(
            &libraries.join("libnftables.so.1.1.0"),
            machine,
            &["libc.so.6"],
        );
        symlink("libnftables.so.1.1.0", libraries.join("libnftables.so.1")).expect("a link");
    });
    package(&into, "libc6", |root| {
        link(&root.join(&libraries).join("libc.so.6"), machine, &[]);
        link(&root.join(&libraries).join("ld-linux.so"), machine, &[]);
        let loader = root.join(loader);
        fs::create_dir_all(loader.parent().expect("a directory")).expect("a directory");
        let up = if machine == AMD64 { "../lib" } else { "." };
        symlink(format!("{up}/{triplet}/ld-linux.so"), loader).expect("a link");
    });
    package(&into, "ca-certificates", |root| {
        let certificates = root.join("usr/share/ca-certificates/mozilla");
        fs::create_dir_all(&certificates).expect("a directory");
        for name in ["B", "A"] {
            let certificate = certificates.join(format!("{name}.crt"));
            fs::write(certificate, format!("certificate {name}")).expect("a file");
        }
    });
}

fn programs(into: &Path, machine: Machine, libraries: &Path) {
    package(into, "nftables", |root| {
        let nft = root.join("usr/sbin/nft");
        link(&nft, machine, &["libnftables.so.1", "libc.so.6"]);
        fs::write(root.join("usr/sbin/unused"), "unused").expect("a file");
    });
    package(into, "iptables", |root| {
        for variant in ["nft", "legacy"] {
            let program = format!("xtables-{variant}-multi");
            link(
                &root.join("usr/sbin").join(&program),
                machine,
                &["libc.so.6"],
            );
            let name = root.join(format!("usr/sbin/iptables-{variant}-save"));
            symlink(program, name).expect("a link");
        }
        let extensions = root.join(libraries).join("xtables");
        link(
            &extensions.join("libxt_comment.so"),
            machine,
            &["libc.so.6"],
        );
        fs::write(extensions.join("libebt_mark.so"), "").expect("a file");
    });
}

/// An agent for a machine, with what cargo says about it.
fn agent(directory: &Path, machine: Machine) -> PathBuf {
    let agent = directory.join(format!("selvage-{}", machine.0));
    link(&agent, machine, &[]);
    fs::write(
        directory.join(format!("selvage-{}.metadata.json", machine.0)),
        metadata(),
    )
    .expect("a file");
    agent
}

/// Runs the script, in other surroundings each time.
fn oci(directory: &Path, into: &str, agents: &[&PathBuf], umask: &str) -> (bool, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../image/oci");
    let output = Command::new("sh")
        .args(["-c", "umask $0; exec \"$@\"", umask])
        .arg(script)
        .arg(directory.join(into))
        .args(agents)
        .env("OCI_PACKAGES", directory.join("packages"))
        .env("VERSION", "1.2.3")
        .env("SOURCE_DATE_EPOCH", "1760000000")
        .env(
            "TZ",
            if umask == "022" {
                "UTC"
            } else {
                "Asia/Kathmandu"
            },
        )
        .output()
        .expect("python3");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let listed = run(Command::new("find")
        .arg(directory)
        .args(["-type", "f", "-printf", "%P\\n"]));
    let listed = String::from_utf8(listed).expect("names");
    let names = listed.lines().map(ToOwned::to_owned);
    names
        .map(|name| {
            (
                name.clone(),
                fs::read(directory.join(name)).expect("a file"),
            )
        })
        .collect()
}

/// A blob by its descriptor, which must have its size and digest.
fn blob(files: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Vec<u8> {
    let hash = descriptor["digest"]
        .as_str()
        .and_then(|digest| digest.strip_prefix("sha256:"));
    let hash = hash.expect("a digest");
    let blob = &files[&format!("layout/blobs/sha256/{hash}")];
    assert_eq!(hex(blob), hash);
    assert_eq!(descriptor["size"], blob.len());
    blob.clone()
}

fn hex(bytes: &[u8]) -> String {
    let digest = digest(&SHA256, bytes);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}

/// What a program makes of its input.
fn filter(program: &str, arguments: &[&str], input: &Path) -> Vec<u8> {
    let input = fs::File::open(input).expect("a file");
    run(Command::new(program)
        .args(arguments)
        .stdin(Stdio::from(input)))
}

#[test]
fn two_builds_of_a_container_image_are_the_same_bytes() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path();
    packages(&path.join("packages"), AMD64);
    let agent = agent(path, AMD64);
    for (into, umask) in [("one", "022"), ("two/below", "077"), ("one", "027")] {
        let (well, said) = oci(path, into, &[&agent], umask);
        assert!(well && said.contains("MB (amd64) of 15"), "{said}");
    }
    let (one, two) = (files(&path.join("one")), files(&path.join("two/below")));
    assert_eq!(
        one.keys().collect::<Vec<_>>(),
        two.keys().collect::<Vec<_>>()
    );
    for (name, bytes) in &one {
        assert!(*bytes == two[name], "{name} differs");
    }
    let names: BTreeSet<_> = one
        .keys()
        .filter(|name| !name.contains("blobs"))
        .map(String::as_str)
        .collect();
    assert_eq!(
        names,
        BTreeSet::from([
            "SHA256SUMS",
            "layout/index.json",
            "layout/oci-layout",
            "selvage_1.2.3.oci.tar",
            "selvage_1.2.3_amd64.spdx.json"
        ])
    );
    run(Command::new("sha256sum")
        .args(["--check", "SHA256SUMS"])
        .current_dir(path.join("one")));
    // The archive is the layout.
    let archive = path.join("one/selvage_1.2.3.oci.tar");
    let unpacked = path.join("unpacked");
    fs::create_dir(&unpacked).expect("a directory");
    run(Command::new("tar")
        .arg("-xf")
        .arg(archive)
        .arg("-C")
        .arg(&unpacked));
    let layout = files(&path.join("one/layout"));
    assert!(files(&unpacked) == layout);
}

#[test]
fn a_container_image_has_all_architectures_in_one_index() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path();
    let machines = [ARM64, AMD64];
    for machine in machines {
        packages(&path.join("packages"), machine);
    }
    let agents = machines.map(|machine| agent(path, machine));
    let (well, said) = oci(path, "out", &agents.each_ref(), "022");
    assert!(well, "{said}");
    let files = files(&path.join("out"));
    let top = &json(&files["layout/index.json"])["manifests"];
    assert_eq!(
        top.as_array().map(Vec::len),
        Some(1),
        "a name stands for all"
    );
    let name = "registry.example/selvage:1.2.3";
    assert_eq!(top[0]["annotations"]["io.containerd.image.name"], name);
    let index = json(&blob(&files, &top[0]));
    let manifests = index["manifests"].as_array().expect("a list");
    for (manifest, machine @ (architecture, ..)) in manifests.iter().zip([AMD64, ARM64]) {
        assert_eq!(manifest["platform"]["architecture"], architecture);
        let image = json(&blob(&files, manifest));
        let config = json(&blob(&files, &image["config"]));
        assert_eq!(config["architecture"], architecture);
        assert_eq!(config["created"], "2025-10-09T08:53:20Z");
        assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/selvage");
        let labels = &config["config"]["Labels"];
        assert_eq!(labels["org.opencontainers.image.version"], "1.2.3");
        let layers = image["layers"].as_array().into_iter().flatten();
        let unpacked = config["rootfs"]["diff_ids"]
            .as_array()
            .into_iter()
            .flatten();
        let layers = layers.zip(unpacked).map(|(layer, unpacked)| {
            let packed = path.join("layer");
            fs::write(&packed, blob(&files, layer)).expect("a file");
            let bytes = filter("gzip", &["-dc"], &packed);
            assert_eq!(*unpacked, format!("sha256:{}", hex(&bytes)));
            let listed = filter("tar", &["-tvz", "--utc"], &packed);
            String::from_utf8(listed).expect("names")
        });
        has_all(&layers.collect::<String>(), machine);
        let listed = &files[&format!("selvage_1.2.3_{architecture}.spdx.json")];
        let listed = json(listed).to_string();
        let package = format!("pkg:deb/debian/libc6@1.0-1?arch={architecture}");
        assert!(listed.contains(&package), "{package}");
        assert!(listed.contains("\"primaryPackagePurpose\":\"CONTAINER\""));
    }
}

/// Whether the layers, as tar lists them, have what the image needs and nothing else.
fn has_all(tree: &str, (_, triplet, loader, _): Machine) {
    for wanted in [
        "usr/sbin/nft",
        "usr/sbin/ip6tables-restore -> xtables-nft-multi",
        "usr/sbin/iptables-legacy-save -> xtables-legacy-multi",
        &format!("usr/lib/{triplet}/libnftables.so.1 -> libnftables.so.1.1.0"),
        &format!("usr/lib/{triplet}/libnftables.so.1.1.0"),
        &format!("usr/lib/{triplet}/xtables/libxt_comment.so"),
        &format!("{loader} -> "),
        "lib -> usr/lib",
        "etc/ssl/certs/ca-certificates.crt",
        "usr/share/doc/libc6/copyright",
        "usr/bin/selvage",
        "opt/bin/flanneld -> ../../usr/bin/selvage",
        "usr/lib/cni/flannel -> ../../bin/selvage",
        "usr/share/selvage/container.spdx.json",
    ] {
        let found = tree.contains(&format!(" {wanted}"));
        assert!(found, "{wanted} is not in\n{tree}");
    }
    for absent in ["unused", "libebt", "bin/sh"] {
        assert!(!tree.contains(absent), "{absent} is in\n{tree}");
    }
    let entries = tree.lines().count();
    assert_eq!(entries, tree.matches(" 0/0 ").count(), "owners: {tree}");
    let times = tree.matches(" 2025-10-09 08:53 ").count();
    assert_eq!(entries, times, "times: {tree}");
}

#[test]
fn what_cannot_become_a_container_image_is_named() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path();
    let given = path.join("packages");
    packages(&given, AMD64);
    let good = agent(path, AMD64);
    let fails = |agents: &[&PathBuf], words: &str| {
        let (well, said) = oci(path, "out", agents, "022");
        assert!(!well && said.contains(words), "{words}: {said}");
        assert!(!said.contains("Traceback"), "{said}");
    };
    fails(
        &[&good, &good],
        "two of the agents are for the same architecture",
    );
    let script = path.join("script");
    fs::write(&script, "#!/bin/sh\n").expect("a file");
    fails(&[&script], "is not a program for Linux");
    fails(&[&path.join("none")], "there is no agent at");
    let dynamic = path.join("dynamic");
    link(&dynamic, AMD64, &["libc.so.6"]);
    fails(&[&dynamic], "is not static: it is linked with libc.so.6");
    let other = path.join("other");
    link(&other, ("riscv64", "", "", 243), &[]);
    fails(&[&other], "e_machine 243");
    let alone = path.join("alone");
    link(&alone, AMD64, &[]);
    fails(
        &[&alone],
        "alone.metadata.json, cargo's metadata about the agent",
    );
    fails(&[&agent(path, ARM64)], "no package has /usr/sbin/nft");

    let amd64 = given.join("amd64");
    let library = fs::read(amd64.join("libnftables1.deb")).expect("a package");
    fs::remove_file(amd64.join("libnftables1.deb")).expect("a package");
    fails(
        &[&good],
        "no package has /usr/lib/x86_64-linux-gnu/libnftables.so.1: add to the list",
    );
    fs::write(amd64.join("libnftables1.deb"), &library).expect("a package");
    package(&amd64, "nano", |root| {
        fs::create_dir_all(root.join("usr/bin")).expect("a directory");
        fs::write(root.join("usr/bin/nano"), "").expect("a file");
    });
    fails(&[&good], "the image needs nothing of nano");
    fs::write(amd64.join("nano.deb"), &library[..library.len() / 2]).expect("half a package");
    fails(&[&good], "nano.deb");
}
