//! Size, start and memory of the agent, with the real etcd and the real kernel in network namespaces.
//!
//! `SELVAGE_BIN` names the binary to measure, `FLANNELD` a rival that takes flannel's flags: then both run in turns,
//! each in the same namespaces and against the same etcd, and the table shows the ratio. Medians, since machines are noisy.

#![expect(
    clippy::expect_used,
    reason = "a measurement that cannot be made ends the program"
)]

#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../tests/overlay/cluster.rs"]
mod cluster;
#[path = "../tests/overlay/namespace.rs"]
mod namespace;
#[path = "../tests/overlay/wait.rs"]
mod wait;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use cluster::{ETCD, Host, NETWORK, Store};

/// Starts measured per program; an odd number, for the median.
const STARTS: usize = 21;

/// A program that leases a subnet and writes `subnet.env`.
struct Program {
    name: &'static str,
    path: PathBuf,
    arguments: &'static [&'static str],
}

impl Program {
    fn spawn(&self, host: &Host, state: &Path) -> Child {
        let mut command = host
            .namespace
            .command(self.path.to_str().expect("a path in UTF-8"));
        command
            .args(self.arguments)
            .args([
                "--etcd-endpoints",
                ETCD,
                "--iface",
                "eth0",
                "--ip-masq",
                "--subnet-file",
            ])
            .arg(host.subnet_file())
            .env("SELVAGE_STATE_DIR", state)
            .env("SELVAGE_NODE_ID", "bench")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
            .spawn()
            .unwrap_or_else(|error| panic!("{} did not start: {error}", self.path.display()))
    }
}

/// From the program's start to a `subnet.env` in place, in a namespace without an overlay device.
fn start_to_subnet_env(program: &Program, host: &Host, state: &Path) -> Duration {
    let _ = fs::remove_file(host.subnet_file());
    let start = Instant::now();
    let mut child = program.spawn(host, state);
    while !host.subnet_file().exists() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{} wrote no subnet.env",
            program.name
        );
        std::thread::sleep(Duration::from_micros(200));
    }
    let elapsed = start.elapsed();
    let _ = child.kill();
    let _ = child.wait();
    host.namespace.try_run("ip link del flannel.1");
    elapsed
}

/// Resident memory in KiB once the program has been idle for some seconds: now, and at its peak.
fn resident(program: &Program, host: &Host, state: &Path) -> (u64, u64) {
    let _ = fs::remove_file(host.subnet_file());
    let mut child = program.spawn(host, state);
    std::thread::sleep(Duration::from_secs(5));
    let status =
        fs::read_to_string(format!("/proc/{}/status", child.id())).expect("the program's status");
    let _ = child.kill();
    let _ = child.wait();
    host.namespace.try_run("ip link del flannel.1");
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect("a field of the status");
        line.trim()
            .trim_end_matches(" kB")
            .parse()
            .expect("a number of KiB")
    };
    (field("VmRSS:"), field("VmHWM:"))
}

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort_unstable();
    values[values.len() / 2]
}

fn main() {
    let own = std::env::var_os("SELVAGE_BIN")
        .map_or_else(|| env!("CARGO_BIN_EXE_selvage").into(), PathBuf::from);
    let mut programs = vec![Program {
        name: "selvage",
        path: own,
        arguments: &["run"],
    }];
    if let Some(path) = std::env::var_os("FLANNELD") {
        programs.push(Program {
            name: "flanneld",
            path: path.into(),
            arguments: &[],
        });
    }

    let store = Store::start(NETWORK);
    let host = store.host(1);
    let state = tempfile::TempDir::new().expect("a state directory");
    let mut starts = vec![Vec::new(); programs.len()];
    for _ in 0..STARTS {
        for (program, starts) in programs.iter().zip(&mut starts) {
            starts.push(start_to_subnet_env(program, &host, state.path()));
        }
    }
    let mut memory = Vec::new();
    for program in &programs {
        memory.push([resident(program, &host, state.path())].to_vec());
    }
    for number in 1..=100u8 {
        let value = format!(
            r#"{{"PublicIP":"10.77.1.{number}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:{number:02x}"}}}}"#
        );
        store.put_lease(&format!("10.5.{}.0-24", 100 + u16::from(number)), &value);
    }
    for (program, memory) in programs.iter().zip(&mut memory) {
        memory.push(resident(program, &host, state.path()));
    }

    println!(
        "| what | {} |",
        programs
            .iter()
            .map(|p| p.name)
            .collect::<Vec<_>>()
            .join(" | ")
    );
    println!("|---|{}", "---|".repeat(programs.len()));
    let row = |what: &str, cells: Vec<String>| println!("| {what} | {} |", cells.join(" | "));
    let size = |program: &Program| fs::metadata(&program.path).expect("the binary").len();
    row(
        "binary, bytes",
        programs.iter().map(|p| size(p).to_string()).collect(),
    );
    let milliseconds = |value: Duration| format!("{:.1}", value.as_secs_f64() * 1000.0);
    let medians: Vec<_> = starts.into_iter().map(median).collect();
    row(
        "start to subnet.env, ms (median)",
        medians.iter().copied().map(milliseconds).collect(),
    );
    for (index, peers) in [0, 100].into_iter().enumerate() {
        let cells = memory
            .iter()
            .map(|m| format!("{} ({})", m[index].0, m[index].1))
            .collect();
        row(&format!("idle RSS with {peers} peers, KiB (peak)"), cells);
    }
    if let [own, rival] = medians[..] {
        println!(
            "\nstart to subnet.env: {:.2} of flanneld's",
            own.as_secs_f64() / rival.as_secs_f64()
        );
    }
}
