//! The binary under flannel's names, from outside: flags, exit statuses, and what is written, byte for byte.
//!
//! The tests of the routing table and of the health endpoints need root.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;

/// The agent as flannel's programs, in a directory of its own.
struct Programs {
    directory: TempDir,
}

impl Programs {
    fn new() -> Self {
        let directory = TempDir::new().expect("a directory");
        for name in ["flanneld", "mk-docker-opts.sh", "mk-docker-opts"] {
            symlink(env!("CARGO_BIN_EXE_selvage"), directory.path().join(name)).expect("a link");
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("to write a file");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("to read a file")
    }

    /// The program, in the directory, with an empty environment.
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.path(name));
        command.current_dir(self.directory.path()).env_clear();
        command
    }

    fn run(&self, name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Run {
        let output = self
            .command(name)
            .args(arguments)
            .envs(variables.iter().copied())
            .output();
        Run::from(output.expect("the program"))
    }

    /// What mk-docker-opts.sh makes of a subnet file.
    fn docker_options(&self, arguments: &[&str], variables: &[(&str, &str)]) -> (Run, String) {
        self.write("opts", "old\n");
        let arguments = [&["-f", "subnet.env", "-d", "opts"], arguments].concat();
        let run = self.run("mk-docker-opts.sh", &arguments, variables);
        (run, self.read("opts"))
    }
}

#[derive(Debug)]
struct Run {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

const SUBNET_ENV: &str = "\
FLANNEL_NETWORK=10.1.0.0/16
FLANNEL_SUBNET=10.1.74.1/24
FLANNEL_MTU=1472
FLANNEL_IPMASQ=false
";

#[test]
fn flanneld_prints_help_and_version_to_stderr() {
    let programs = Programs::new();
    for flag in ["-h", "--help"] {
        let run = programs.run("flanneld", &[flag], &[("FLANNELD_V", "loud")]);
        assert_eq!(run.status, Some(0), "{run:?}");
        assert_eq!(run.stdout, "");
        assert!(run.stderr.starts_with("Usage: "), "{run:?}");
        assert!(run.stderr.contains("--etcd-endpoints"), "{run:?}");
    }
    for flag in ["-version", "--version=true"] {
        let run = programs.run("flanneld", &[flag], &[("FLANNELD_V", "loud")]);
        assert_eq!(run.status, Some(0), "{run:?}");
        assert_eq!(run.stdout, "");
        assert_eq!(run.stderr, concat!(env!("CARGO_PKG_VERSION"), "\n"));
    }
}

#[test]
fn any_other_name_is_selvage() {
    let programs = Programs::new();
    let agent = programs.path("agent-1.2");
    symlink(env!("CARGO_BIN_EXE_selvage"), &agent).expect("a link");
    let run = programs.run("agent-1.2", &["--version"], &[]);
    assert_eq!(run.status, Some(0), "{run:?}");
    assert!(run.stdout.starts_with("selvage "), "{run:?}");
}

#[test]
fn flanneld_ends_with_2_and_its_usage_when_the_command_line_is_wrong() {
    let programs = Programs::new();
    for (arguments, message) in [
        (&["--no-such-flag"][..], "not defined: -no-such-flag\n"),
        (
            &["-ip-masq=maybe"],
            "--ip-masq: invalid value \"maybe\": expected true or false\n",
        ),
        (
            &["--iptables-resync", "5s"],
            "--iptables-resync: invalid value \"5s\"",
        ),
        (&["--etcd-prefix"], "needs an argument: -etcd-prefix\n"),
        (
            &["--watch-networks"],
            "-watch-networks was removed in flannel 0.8: ",
        ),
    ] {
        let run = programs.run("flanneld", arguments, &[]);
        assert_eq!(run.status, Some(2), "{arguments:?}: {run:?}");
        assert_eq!(run.stdout, "");
        assert!(run.stderr.contains(message), "{arguments:?}: {run:?}");
        assert!(run.stderr.contains("\nUsage: "), "{arguments:?}: {run:?}");
    }
}

#[test]
fn flanneld_ends_with_1_for_all_else_that_is_wrong() {
    let programs = Programs::new();
    for (arguments, variables, message) in [
        (
            &[][..],
            &[("FLANNELD_IP_MASQ", "maybe")][..],
            "variable FLANNELD_IP_MASQ: ",
        ),
        (
            &["-subnet-lease-renew-margin=1440"],
            &[],
            "expected 1 to 1439 minutes",
        ),
        (
            &["--kube-subnet-mgr"],
            &[],
            "set kubernetes.node-name or NODE_NAME",
        ),
        (
            &["--etcd-endpoints=ftp://x"],
            &[],
            "flag --etcd-endpoints: ",
        ),
        (&["--public-ip=300.0.0.1"], &[], "flag --public-ip: "),
        (
            &[],
            &[("FLANNELD_ETCD_PREFIX", "/..")],
            "variable FLANNELD_ETCD_PREFIX: ",
        ),
    ] {
        let run = programs.run("flanneld", arguments, variables);
        assert_eq!(run.status, Some(1), "{arguments:?}: {run:?}");
        assert!(run.stderr.contains(message), "{arguments:?}: {run:?}");
        assert!(!run.stderr.contains("Usage: "), "{arguments:?}: {run:?}");
    }
}

#[test]
fn flanneld_never_prints_the_password() {
    let programs = Programs::new();
    for (arguments, variables) in [
        (
            &[
                "-etcd-username=u",
                "-etcd-password=hunter2",
                "-v=9",
                "-public-ip=x",
            ][..],
            &[][..],
        ),
        (&["-etcd-password=hunter2", "-no-such-flag"], &[]),
        (
            &["-v=9", "-public-ip=x"],
            &[("FLANNELD_ETCD_PASSWORD", "hunter2")],
        ),
    ] {
        let run = programs.run("flanneld", arguments, variables);
        assert_ne!(run.status, Some(0));
        assert!(!run.stderr.contains("hunter2"), "{run:?}");
    }
}

#[test]
fn flanneld_says_so_when_its_health_endpoints_cannot_listen() {
    let programs = Programs::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    let output = Command::new("timeout")
        .arg("20")
        .arg(programs.path("flanneld"))
        .args(["-healthz-ip=127.0.0.1", "-healthz-port"])
        .arg(address.port().to_string())
        .env("SELVAGE_STATE_DIR", programs.path("state"))
        .env("SELVAGE_SOCKET", programs.path("agent.sock"))
        .env("SELVAGE_NODE_ID", "node")
        .output();
    let run = Run::from(output.expect("timeout"));
    assert_eq!(run.status, Some(1), "{run:?}");
    assert!(run.stderr.contains(&address.to_string()), "{run:?}");
}

#[test]
fn docker_options_are_the_scripts_to_the_byte() {
    let programs = Programs::new();
    programs.write("subnet.env", SUBNET_ENV);
    let single = "\
DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"
DOCKER_OPT_IPMASQ=\"--ip-masq=true\"
DOCKER_OPT_MTU=\"--mtu=1472\"
";
    let all = "=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n";
    for (arguments, expected) in [
        (&[][..], format!("{single}DOCKER_OPTS{all}")),
        (&["-i"], single.to_owned()),
        (&["-c"], format!("DOCKER_OPTS{all}")),
        (&["-i", "-c"], format!("{single}DOCKER_OPTS{all}")),
        (&["-k", "CUSTOM_KEY"], format!("{single}CUSTOM_KEY{all}")),
        (&["-ckCUSTOM_KEY"], format!("CUSTOM_KEY{all}")),
        (
            &["-m"],
            "\
DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"
DOCKER_OPT_MTU=\"--mtu=1472\"
DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"
"
            .to_owned(),
        ),
    ] {
        let (run, text) = programs.docker_options(arguments, &[]);
        assert_eq!(run.status, Some(0), "{arguments:?}: {run:?}");
        assert_eq!(run.stderr, "", "{arguments:?}");
        assert_eq!(text, expected, "{arguments:?}");
    }
}

#[test]
fn subnet_file_beats_the_environment_and_both_are_passed_on() {
    let programs = Programs::new();
    programs.write("subnet.env", SUBNET_ENV);
    let variables = [
        ("FLANNEL_MTU", "9000"),
        ("DOCKER_OPT_MTU", "ignored"),
        ("DOCKER_OPT_DEBUG", "--debug"),
        ("DOCKER_OPTS", "-H fd://"),
        ("NOT-A-NAME_DOCKER_OPT_", "x"),
    ];
    let (run, text) = programs.docker_options(&[], &variables);
    assert_eq!(run.status, Some(0), "{run:?}");
    assert_eq!(
        text,
        "\
DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"
DOCKER_OPT_DEBUG=\"--debug\"
DOCKER_OPT_IPMASQ=\"--ip-masq=true\"
DOCKER_OPT_MTU=\"--mtu=1472\"
DOCKER_OPTS=\"-H fd://  --bip=10.1.74.1/24 --debug --ip-masq=true --mtu=1472\"
"
    );
    fs::remove_file(programs.path("subnet.env")).expect("to remove the file");
    let (run, text) = programs.docker_options(&["-i"], &[("FLANNEL_MTU", "9000")]);
    assert_eq!(run.status, Some(0), "{run:?}");
    assert_eq!(text, "DOCKER_OPT_MTU=\"--mtu=9000\"\n");
}

#[test]
fn our_own_subnet_file_gives_what_flannels_gives() {
    let programs = Programs::new();
    let ours = "\
DOCKER_OPT_BIP=--bip=10.1.74.1/24
DOCKER_OPT_IPMASQ=--ip-masq=true
DOCKER_OPT_MTU=--mtu=1472
";
    for arguments in [&[][..], &["-i"], &["-m"], &["-c", "-m"]] {
        programs.write("subnet.env", SUBNET_ENV);
        let (_, expected) = programs.docker_options(arguments, &[]);
        programs.write("subnet.env", &format!("{SUBNET_ENV}{ours}"));
        let (run, text) = programs.docker_options(arguments, &[]);
        assert_eq!(run.status, Some(0), "{run:?}");
        assert_eq!(text, expected, "{arguments:?}");
    }
}

#[test]
fn wrong_values_leave_the_old_options_alone() {
    let programs = Programs::new();
    for (from, to, message) in [
        (
            "IPMASQ=false",
            "IPMASQ=yes",
            "Invalid value of FLANNEL_IPMASQ: yes\n",
        ),
        (
            "10.1.74.1/24",
            "10.1.74.1",
            "Invalid value of FLANNEL_SUBNET: 10.1.74.1\n",
        ),
        (
            "1472",
            "`id -u`",
            "failed to read subnet.env: line 3: ` needs a shell and is not supported\n",
        ),
    ] {
        programs.write("subnet.env", &SUBNET_ENV.replace(from, to));
        let (run, text) = programs.docker_options(&[], &[]);
        assert_eq!(run.status, Some(1), "{run:?}");
        assert_eq!(run.stderr, message);
        assert_eq!(text, "old\n");
    }
}

#[test]
fn usage_goes_to_stderr_with_status_1() {
    let programs = Programs::new();
    programs.write("subnet.env", SUBNET_ENV);
    for arguments in [&["-h"][..], &["-?"], &["-x"], &["-k"]] {
        let (run, text) = programs.docker_options(arguments, &[]);
        assert_eq!(run.status, Some(1), "{run:?}");
        assert_eq!(run.stdout, "");
        let usage = "mk-docker-opts.sh [-f FLANNEL-ENV-FILE] [-d DOCKER-ENV-FILE] [-i] [-c] [-m] [-k COMBINED-KEY]\n";
        assert!(run.stderr.contains(usage), "{run:?}");
        assert_eq!(text, "old\n");
    }
}

#[test]
fn name_without_ending_and_standard_output_will_do() {
    let programs = Programs::new();
    programs.write("subnet.env", SUBNET_ENV);
    let arguments = ["-f", "subnet.env", "-d", "/dev/stdout", "-c"];
    let run = programs.run("mk-docker-opts", &arguments, &[]);
    assert_eq!(run.status, Some(0), "{run:?}");
    assert_eq!(
        run.stdout,
        "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n"
    );
}

#[test]
fn route_to_the_subnet_elsewhere_is_told_after_the_options_are_written() {
    let programs = Programs::new();
    programs.write("subnet.env", SUBNET_ENV);
    let script = "\
        ip link add eth0 type bridge && ip link set eth0 up && ip address add 10.0.0.1/24 dev eth0 && \
        ip route add 10.1.75.0/24 via 10.0.0.9 dev eth0 && \
        ./mk-docker-opts.sh -f subnet.env -d quiet && \
        ip route add 10.1.74.0/24 via 10.0.0.9 dev eth0 && \
        ./mk-docker-opts.sh -f subnet.env -d loud; echo status $?";
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", script])
        .current_dir(programs.directory.path())
        .output();
    let run = Run::from(output.expect("unshare"));
    assert_eq!(run.stdout, "status 1\n", "{run:?}");
    assert_eq!(
        run.stderr,
        "Your routing table already contains the subnet: 10.1.74.0/24 via 10.0.0.9 dev eth0\n"
    );
    assert_eq!(programs.read("quiet"), programs.read("loud"));
    assert!(programs.read("loud").contains("--bip=10.1.74.1/24"));
}

#[test]
fn dockers_version_decides_what_its_nftables_needs() {
    let programs = Programs::new();
    programs.write("subnet.env", SUBNET_ENV);
    for (version, more) in [
        (
            "29.0.1",
            " --allow-direct-routing --bridge-accept-fwmark=0x1000/0x1000",
        ),
        ("28.5.2", ""),
    ] {
        let script = format!("#!/bin/sh\necho 'Docker version {version}, build 0'\n");
        programs.write("dockerd", &script);
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(programs.path("dockerd"), mode).expect("an executable file");
        let output = Command::new(env!("CARGO_BIN_EXE_selvage"))
            .args(["options", "docker", "--nftables", "--subnet-file"])
            .arg(programs.path("subnet.env"))
            .env_clear()
            .env("PATH", programs.directory.path())
            .output();
        let run = Run::from(output.expect("selvage"));
        assert_eq!(run.status, Some(0), "{run:?}");
        let base = "--bip=10.1.74.1/24 --ip-masq=true --mtu=1472";
        assert_eq!(run.stdout, format!("{base}{more}\n"));
    }
}

#[test]
fn options_for_runtimes_are_printed() {
    let programs = Programs::new();
    programs.write("subnet.env", SUBNET_ENV);
    let path = programs.path("subnet.env");
    let selvage = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_selvage"));
        let output = command.arg("options").args(arguments).env_clear().output();
        Run::from(output.expect("selvage"))
    };
    let path = path.to_str().expect("a path");
    let run = selvage(&["docker", "--subnet-file", path]);
    assert_eq!(run.status, Some(0), "{run:?}");
    assert_eq!(run.stdout, "--bip=10.1.74.1/24 --ip-masq=true --mtu=1472\n");
    let run = selvage(&["docker", "--json", "--subnet-file", path]);
    assert!(run.stdout.contains("\"bip\": \"10.1.74.1/24\""), "{run:?}");
    for runtime in ["rkt", "cni"] {
        let run = selvage(&[runtime]);
        assert_eq!(run.status, Some(0), "{run:?}");
        assert!(run.stdout.contains("\"type\": \"flannel\""), "{run:?}");
    }
    // Without a Docker that could be asked for its version.
    let run = selvage(&["docker", "--nftables", "--subnet-file", path]);
    assert_eq!(run.status, Some(1), "{run:?}");
    assert!(run.stderr.contains("dockerd --version"), "{run:?}");
    let run = selvage(&["docker", "--subnet-file", "/nonexistent"]);
    assert_eq!(run.status, Some(1), "{run:?}");
    assert!(run.stderr.contains("/nonexistent"), "{run:?}");
}
