//! `selvage metadata` at the address that platforms use, in a network namespace.
//!
//! ```text
//!  selvage metadata ── lo, 169.254.169.254 and fd00:ec2::254 ── a service that knows tokens only
//! ```

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends by panicking"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use selvage::base::env_file::{Variables, source};
use tempfile::TempDir;

const TOKEN: &str = "AQAAALH-k7i18JMkK-ORLZQfAa7nkNjQbKwpQPExNHqzk1oL_7eh-A==";
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

/// As EC2's documentation shows them ("Instance metadata categories").
const DOCUMENTS: [(&str, &str); 7] = [
    ("local-ipv4", "10.251.50.12"),
    ("public-ipv4", "203.0.113.25"),
    ("hostname", "ip-10-251-50-12.ec2.internal"),
    ("instance-id", "i-0e9801d129EXAMPLE"),
    ("instance-type", "t3.small"),
    ("public-keys/", "0=my-public-key"),
    ("public-keys/0/openssh-key", KEY),
];

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.expect("ip");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {stderr}");
}

/// Runs a test in a network namespace with these addresses on its loopback device.
fn in_namespace(addresses: &'static [&'static str], test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of one's own needs root");
        ip("link set lo up");
        for address in addresses {
            // At once: without the wait that detects duplicates.
            let nodad = if address.contains(':') { " nodad" } else { "" };
            ip(&format!("address add {address} dev lo{nodad}"));
        }
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Serves EC2's documents at an address until the test ends. Threads are in the namespace of the one that starts them.
fn serve(address: &'static str) {
    let listener = TcpListener::bind((address, 80)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            answer(stream.unwrap());
        }
    });
}

fn answer(mut stream: TcpStream) {
    let mut head = String::new();
    let mut buffer = [0; 1024];
    while !head.contains("\r\n\r\n") {
        let count = stream.read(&mut buffer).unwrap_or_default();
        if count == 0 {
            return;
        }
        head += std::str::from_utf8(&buffer[..count]).unwrap();
    }
    let shown = head.lines().any(|line| {
        let (name, value) = line.split_once(": ").unwrap_or_default();
        name.eq_ignore_ascii_case("x-aws-ec2-metadata-token") && value == TOKEN
    });
    let path = head.split(' ').nth(1).unwrap();
    // Hetzner's service knows no tokens.
    let of_hetzner = path.strip_prefix("/hetzner/v1/metadata/");
    let shown = shown || of_hetzner.is_some();
    let document = path
        .strip_prefix("/2021-01-03/meta-data/")
        .or(of_hetzner)
        .and_then(|name| DOCUMENTS.iter().find(|(known, _)| *known == name));
    let (status, body) = match document {
        _ if head.starts_with("PUT /latest/api/token ") => (200, TOKEN),
        _ if !shown => (401, ""),
        Some((_, body)) => (200, *body),
        None => (404, ""),
    };
    let length = body.len();
    let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\n\r\n{body}");
    let _ = stream.write_all(answer.as_bytes());
}

fn selvage(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_selvage"));
    command.arg("metadata").args(arguments).env_clear();
    command.output().unwrap()
}

/// Writes the file of variables.
fn written(path: &Path) -> Variables {
    let attributes = format!("--attributes={}", path.display());
    let output = selvage(&["--provider=ec2", &attributes, "--patience=20"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let mut variables = BTreeMap::new();
    let text = fs::read_to_string(path).unwrap();
    assert_eq!(source(&text, &mut variables), Ok(Vec::new()), "{text}");
    variables
}

#[test]
fn a_config_for_coreos_on_ec2_finds_its_addresses() {
    in_namespace(&["169.254.169.254/32", "10.251.50.12/32"], || {
        serve("169.254.169.254");
        let directory = TempDir::new().unwrap();
        let variables = written(&directory.path().join("metadata/coreos"));
        assert_eq!(variables["COREOS_EC2_IPV4_LOCAL"], "10.251.50.12");
        assert_eq!(variables["COREOS_EC2_IPV4_PUBLIC"], "203.0.113.25");
        assert_eq!(variables["AFTERBURN_AWS_INSTANCE_TYPE"], "t3.small");
        assert_eq!(variables["SELVAGE_METADATA_PLATFORM"], "aws");

        // What a drop-in for flanneld.service says, and what systemd makes of it.
        let status = |metadata: &Variables| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_selvage"));
            command.args(["status", "--json"]).env_clear();
            command.envs(metadata);
            command.env("FLANNELD_IFACE", "${COREOS_EC2_IPV4_LOCAL}");
            command.env("FLANNELD_PUBLIC_IP", "${COREOS_EC2_IPV4_PUBLIC}");
            command.output().unwrap()
        };
        let output = status(&variables);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_ne!(output.status.code(), Some(78), "{stderr}");
        let output = status(&Variables::new());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{stderr}");
        assert!(stderr.contains("After=coreos-metadata.service"), "{stderr}");
    });
}

#[test]
fn an_instance_with_ipv6_alone_is_served_too() {
    in_namespace(&["fd00:ec2::254/128"], || {
        serve("fd00:ec2::254");
        let directory = TempDir::new().unwrap();
        let variables = written(&directory.path().join("coreos"));
        assert_eq!(
            variables["COREOS_EC2_HOSTNAME"],
            "ip-10-251-50-12.ec2.internal"
        );
    });
}

/// A device for the interface, which `/sys` shows for the namespace that it was mounted in.
const WITH_DEVICE: &str = r#"
mount -t tmpfs tmpfs /sys/class/net && mkdir -p /sys/class/net/uplink/device
exec "$1" metadata show --provider=hetzner
"#;

#[test]
fn a_machine_of_hetzners_without_ipv4_asks_on_its_link() {
    in_namespace(&[], || {
        ip("link add uplink type veth peer name switch");
        ip("link set uplink up");
        ip("link set switch up");
        ip("address add fe80::a9fe:a9fe/64 dev uplink nodad");
        serve("fe80::a9fe:a9fe%uplink");
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", WITH_DEVICE, "sh"])
            .arg(env!("CARGO_BIN_EXE_selvage"))
            .output()
            .expect("unshare");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{stdout}{stderr}");
        for line in [
            "source: http://[fe80::a9fe:a9fe%uplink]",
            "COREOS_HETZNER_HOSTNAME=ip-10-251-50-12.ec2.internal",
        ] {
            assert!(stdout.lines().any(|is| is == line), "{line:?}: {stdout}");
        }
    });
}

#[test]
fn a_missing_service_is_named_with_the_time_waited() {
    in_namespace(&["169.254.169.254/32"], || {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("coreos");
        let attributes = format!("--attributes={}", path.display());
        let output = selvage(&["--provider=aws", &attributes, "--patience=1"]);
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&output.stderr);
        for part in [
            "no answer from platform aws after 1 s: ",
            "http://169.254.169.254/latest/api/token: failed to connect: Connection refused",
            "http://[fd00:ec2::254]/latest/api/token: failed to connect: ",
        ] {
            assert!(stderr.contains(part), "{part:?} is not in {stderr}");
        }
        assert!(!path.exists());
    });
}

#[test]
fn show_tells_what_is_there() {
    in_namespace(&["169.254.169.254/32"], || {
        serve("169.254.169.254");
        let output = selvage(&["show", "--provider=aws"]);
        let stdout = String::from_utf8_lossy(&output.stdout);
        for line in [
            "platform: aws (--provider=aws)",
            "source: http://169.254.169.254",
            "COREOS_EC2_INSTANCE_ID=i-0e9801d129EXAMPLE",
            &format!("SSH key: {KEY}"),
        ] {
            assert!(stdout.lines().any(|is| is == line), "{line:?}: {stdout}");
        }
        let output = selvage(&["show", "--provider=aws", "--json"]);
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["attributes"]["IPV4_LOCAL"], "10.251.50.12");
        assert_eq!(json["sshKeys"][0], KEY);
    });
}

/// Attaches the file as a disk with the label, where nobody else sees it; prints what the agent says, and what is still
/// mounted afterwards.
const WITH_DISK: &str = r#"
set -e
disk=$(losetup --read-only --show --find "$1")
trap 'losetup --detach "$disk"' EXIT
mkdir -p /dev/disk
mount -t tmpfs tmpfs /dev/disk
mkdir /dev/disk/by-label
ln -s "$disk" /dev/disk/by-label/cidata
"$2" metadata show --provider=proxmoxve
grep selvage-drive /proc/mounts || true
ls -d /run/selvage-drive-* 2>/dev/null || true
"#;

#[test]
fn a_drive_is_mounted_while_it_is_read() {
    let directory = TempDir::new().unwrap();
    let contents = directory.path().join("contents");
    fs::create_dir(&contents).unwrap();
    // As Proxmox VE writes them.
    let user_data = format!("#cloud-config\nhostname: vm1\nssh_authorized_keys:\n  - {KEY}\n");
    for (name, text) in [
        (
            "meta-data",
            "instance-id: 15a9919cb91024fbd1d70fa07f0efa749cbba03b\n",
        ),
        ("network-config", "version: 1\nconfig: []\n"),
        ("user-data", &user_data),
    ] {
        fs::write(contents.join(name), text).unwrap();
    }
    let disk = directory.path().join("disk");
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-L", "cidata", "-d"])
        .arg(&contents)
        .args([disk.as_os_str(), "8M".as_ref()])
        .status();
    assert!(made.expect("mke2fs").success());
    if !Path::new("/dev/loop-control").exists() {
        eprintln!("skipped: there is no /dev/loop-control to make a disk with");
        return;
    }
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", WITH_DISK, "sh"])
        .arg(&disk)
        .arg(env!("CARGO_BIN_EXE_selvage"))
        .output()
        .expect("unshare");
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}{stderr}");
    assert_eq!(
        stdout,
        format!(
            "platform: proxmoxve (--provider=proxmoxve)\nsource: the disk labelled cidata\n\
             SELVAGE_METADATA_PLATFORM=proxmoxve\nSELVAGE_METADATA_HOSTNAME=vm1\n\
             SELVAGE_METADATA_INSTANCE_ID=15a9919cb91024fbd1d70fa07f0efa749cbba03b\n\
             COREOS_PROXMOXVE_HOSTNAME=vm1\n\
             COREOS_PROXMOXVE_INSTANCE_ID=15a9919cb91024fbd1d70fa07f0efa749cbba03b\n\
             AFTERBURN_PROXMOXVE_HOSTNAME=vm1\n\
             AFTERBURN_PROXMOXVE_INSTANCE_ID=15a9919cb91024fbd1d70fa07f0efa749cbba03b\n\
             SSH key: {KEY}\n"
        ),
        "{stderr}"
    );
}
