//! The boot check on a host with a real agent: systemd, which no namespace has, is a script.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use selvage::appliance::update::state::{FailureCode, Finding, Health, State, StateFile};
use tempfile::TempDir;

use crate::cluster::{NETWORK, pair, pair_in};
use crate::host::Host;
use crate::wait::wait_until;

/// Answers as systemctl does, from files beside it, and notes what it is asked to do.
const SYSTEMCTL: &str = r#"#!/bin/sh
cd "$(dirname "$0")"
case $1 in
list-units)
    echo looked >>looked
    case $* in
    *selvage@*) cat networks ;;
    *) cat failed ;;
    esac
    ;;
list-jobs) cat jobs ;;
is-enabled)
    shift
    for unit; do grep -qx "$unit" enabled && echo enabled || echo disabled; done
    ;;
*) echo "$*" >>done ;;
esac
"#;

/// Runs the program that follows the options, as systemd-run does.
const SYSTEMD_RUN: &str = r#"#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"#;

const COUNTER: &str =
    "sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// A machine's files, beside those of the host's agent.
struct Machine {
    root: TempDir,
    state: StateFile,
}

/// How a command ended.
struct Ended {
    status: Option<i32>,
    said: String,
}

/// The least that is a whole boot entry: the headers of a PE file with one section that ends with the file.
fn uki() -> Vec<u8> {
    let mut bytes = vec![0; 512];
    bytes[..2].copy_from_slice(b"MZ");
    bytes[0x3c] = 64;
    bytes[64..68].copy_from_slice(b"PE\0\0");
    bytes[70] = 1;
    // The section's size in memory, its size in the file, and its place there.
    for (at, value) in [(96, 256_u32), (104, 256), (108, 256)] {
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

impl Machine {
    /// A machine that runs this version; its agent is enabled.
    fn running(version: &str, host: &mut Host) -> Self {
        let root = TempDir::new().expect("a directory for the machine");
        let state = StateFile::new(&root.path().join("var/lib/selvage/update"));
        let machine = Self { root, state };
        machine.run_version(version);
        for name in ["failed", "jobs", "networks", "done"] {
            machine.write(&format!("usr/bin/{name}"), "");
        }
        machine.write("usr/bin/enabled", "selvage.service\n");
        machine.write_program("usr/bin/systemctl", SYSTEMCTL);
        machine.write_program("usr/bin/systemd-run", SYSTEMD_RUN);
        let path = std::env::var("PATH").unwrap_or_default();
        let bin = machine.root.path().join("usr/bin");
        let path = format!("{}:{path}", bin.display());
        host.environment.push(("PATH", path));
        machine
    }

    fn run_version(&self, version: &str) {
        let text = format!("IMAGE_ID=selvage\nIMAGE_VERSION={version}\n");
        self.write("usr/lib/os-release", &text);
    }

    fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.root.path().join(path);
        let directory = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).expect("a directory");
        fs::write(path, text).expect("to write a file");
    }

    fn write_program(&self, path: &str, text: &str) {
        self.write(path, text);
        let path = self.root.path().join(path);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("to set the mode");
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.path().join(path)).unwrap_or_default()
    }

    /// What systemd was asked to do.
    fn done(&self) -> String {
        self.read("usr/bin/done")
    }

    /// What the boot loader says about this boot.
    fn count(&self, entry: &str) {
        let mut value = vec![6, 0, 0, 0];
        let name = format!("\\EFI\\Linux\\{entry}\0");
        value.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
        self.write(COUNTER, value);
    }

    /// Installs version 2 over version 1.
    fn install(&self, health_before: Health) {
        self.change(|state| state.begin("2", "1", health_before, 1));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.change(change).expect("to change the state");
    }

    fn state(&self) -> State {
        self.state.read()
    }

    fn finding(&self) -> Finding {
        let pending = self.state().pending.expect("a pending version");
        pending.finding.expect("a finding")
    }

    fn command(&self, host: &Host) -> Command {
        let mut command = host.selvage("boot-check");
        command.arg(format!("--root={}", self.root.path().display()));
        command
    }

    fn boot_check(&self, host: &Host, arguments: &[&str]) -> Ended {
        let output = self
            .command(host)
            .args(["--patience=2", "--limit=60"])
            .args(arguments)
            .output()
            .expect("the boot check");
        Ended {
            status: output.status.code(),
            said: String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr),
        }
    }
}

/// The address of a host in the overlay.
fn overlay_address(host: &Host) -> IpAddr {
    let (network, _) = host.lease_key().split_once('-').map_or_else(
        || panic!("a lease key"),
        |(network, length)| (network.to_owned(), length.to_owned()),
    );
    network.parse().expect("an address")
}

/// All is well, and this peer answers.
fn well(peer: &Host) -> Health {
    Health {
        agent_ready: Some(true),
        peers_answering: vec![overlay_address(peer)],
        underlay_answering: vec![peer.address.into()],
        units_known: true,
        checks_passed: vec!["10-site".to_owned()],
        ..Health::default()
    }
}

/// Lets no packet of the overlay leave.
fn block(host: &Host) {
    host.namespace.run("nft add table inet broken");
    host.namespace
        .run("nft add chain inet broken out { type filter hook output priority 0 ; }");
    host.namespace
        .run("nft add rule inet broken out udp dport 8472 drop");
}

/// What is compared after an update, with each way to a peer: over a device, and with the peer as the gateway.
#[test]
fn health_names_the_peers_that_answer() {
    let host_gw = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
    for (network, over) in [(NETWORK, true), (host_gw, false)] {
        let (_store, mut one, two) = pair_in(network);
        let machine = Machine::running("1", &mut one);
        let shown = machine.boot_check(&one, &["--show"]);
        assert_eq!(shown.status, Some(0), "{}", shown.said);
        let health: Health = serde_json::from_str(&shown.said).expect("a health");
        let under = IpAddr::from(two.address);
        let over = if over { overlay_address(&two) } else { under };
        assert_eq!(health.peers_answering, [over], "{network}");
        assert_eq!(health.underlay_answering, [under], "{network}");
        assert_eq!(health.agent_ready, Some(true), "{:?}", health.causes);
        assert_eq!(health.docker_ok, None);
        assert!(health.units_known);
        assert_eq!(machine.state(), State::default(), "nothing is changed");
    }
}

#[test]
fn agents_of_all_networks_are_asked() {
    let (_store, mut one, _two) = pair();
    let machine = Machine::running("1", &mut one);
    machine.write(
        "usr/bin/networks",
        "selvage@blue.service loaded active running B\nselvage@off.service loaded inactive dead O\n",
    );
    machine.write("usr/bin/enabled", "selvage.service\nselvage@blue.service\n");
    let health = || -> Health {
        let shown = machine.boot_check(&one, &["--show"]);
        serde_json::from_str(&shown.said).expect("a health")
    };
    let missing = health();
    assert_eq!(missing.agent_ready, Some(false));
    let texts: Vec<_> = missing.causes.iter().map(|cause| &cause.text).collect();
    let [text] = texts[..] else {
        panic!("{texts:?}")
    };
    assert!(
        text.starts_with("network blue: no agent answers on /run/selvage/networks/"),
        "{text}"
    );
    // One socket stands for both here.
    let settings = format!(
        "[files]\nsocket = {:?}\nsubnet-file = {:?}\n",
        one.socket(),
        one.subnet_file()
    );
    machine.write("etc/selvage/networks/blue.toml", settings);
    let both = health();
    assert_eq!(both.agent_ready, Some(true), "{:?}", both.causes);
}

#[test]
fn version_that_works_is_blessed() {
    let (_store, mut one, two) = pair();
    let machine = Machine::running("2", &mut one);
    machine.count("selvage_2+2-1.efi");
    machine.install(well(&two));
    let ended = machine.boot_check(&one, &[]);
    assert_eq!(ended.status, Some(0), "{}", ended.said);
    let state = machine.state();
    assert_eq!(state.blessed.expect("a blessed version").version, "2");
    assert_eq!(state.pending, None);
    assert_eq!(
        machine.done(),
        "start --no-block systemd-bless-boot.service\n"
    );
    // The next boot is one like any other.
    fs::remove_file(machine.root.path().join(COUNTER)).expect("to remove the counter");
    assert_eq!(machine.boot_check(&one, &[]).status, Some(0));
    assert_eq!(machine.done().lines().count(), 1);
}

#[test]
fn version_that_breaks_the_overlay_falls_back_and_is_recorded_with_its_reason() {
    let (_store, mut one, two) = pair();
    let machine = Machine::running("2", &mut one);
    machine.count("selvage_2+2-1.efi");
    machine.install(well(&two));
    block(&one);
    let ended = machine.boot_check(&one, &[]);
    assert_eq!(ended.status, Some(1), "{}", ended.said);
    assert!(
        ended
            .said
            .contains("2 failed its boot check: no peer answers over the overlay"),
        "{}",
        ended.said
    );
    let finding = machine.finding();
    assert!(finding.bad);
    assert_eq!(finding.code, FailureCode::Overlay);
    assert!(machine.state().failed.is_empty(), "it may be tried again");

    // systemd starts the next try, but also between two runs of a check that is undecided.
    let monitored = |status: &str| {
        [
            ("MONITOR_UNIT", "selvage-boot-check.service".to_owned()),
            ("MONITOR_SERVICE_RESULT", "exit-code".to_owned()),
            ("MONITOR_EXIT_CODE", "exited".to_owned()),
            ("MONITOR_EXIT_STATUS", status.to_owned()),
        ]
    };
    let own = one.environment.len();
    one.environment.extend(monitored("75"));
    let ended = machine.boot_check(&one, &["--next-try"]);
    assert_eq!(ended.status, Some(0), "{}", ended.said);
    assert_eq!(machine.done(), "", "{}", ended.said);
    one.environment.truncate(own);
    one.environment.extend(monitored("1"));
    assert_eq!(machine.boot_check(&one, &["--next-try"]).status, Some(0));
    assert_eq!(machine.done(), "reboot --no-block\n");
    assert_eq!(machine.finding(), finding, "the check's own reason is kept");
    // Where the boot loader starts it although its tries are used up, nothing else works: stay reachable.
    machine.count("selvage_2+0-4.efi");
    let ended = machine.boot_check(&one, &["--next-try"]);
    assert_eq!(ended.status, Some(0));
    assert!(ended.said.contains("stays up"), "{}", ended.said);
    assert_eq!(machine.done(), "reboot --no-block\n");

    // The old version, while tries are left, and after the last.
    fs::remove_file(machine.root.path().join(COUNTER)).expect("to remove the counter");
    machine.run_version("1");
    one.namespace.run("nft delete table inet broken");
    machine.write("efi/EFI/Linux/selvage_1.efi", uki());
    machine.write("efi/EFI/Linux/selvage_2+1-2.efi", uki());
    assert_eq!(machine.boot_check(&one, &[]).status, Some(0));
    assert!(machine.state().failed.is_empty(), "it has a try left");
    fs::remove_file(machine.root.path().join("efi/EFI/Linux/selvage_2+1-2.efi"))
        .expect("to remove the entry");
    machine.write("efi/EFI/Linux/selvage_2+0-3.efi", uki());
    let ended = machine.boot_check(&one, &[]);
    assert_eq!(ended.status, Some(0), "{}", ended.said);
    let state = machine.state();
    let failed = state.failure("2").expect("a failure");
    assert_eq!(failed.code, FailureCode::Overlay);
    assert_eq!(failed.reason, finding.reason);
    assert_eq!(state.pending, None);
    assert!(
        ended.said.contains("this machine runs 1 again"),
        "{}",
        ended.said
    );
    let issue = machine.read("run/issue.d/50-selvage-update.issue");
    assert!(issue.contains("Update 2 failed"), "{issue}");
    let metrics = machine.read("var/lib/selvage/update/metrics.prom");
    let series = "selvage_update_failed_timestamp_seconds{version=\"2\",code=\"overlay\"} ";
    assert!(metrics.contains(series), "{metrics}");
}

#[test]
fn version_is_not_to_blame_for_a_shutdown_before_the_end_of_its_check() {
    let (_store, mut one, two) = pair();
    let machine = Machine::running("2", &mut one);
    machine.count("selvage_2+0-3.efi");
    machine.install(well(&two));
    block(&one);
    let mut check = machine.command(&one).spawn().expect("the boot check");
    wait_until("the boot to be counted", || {
        machine
            .state()
            .pending
            .is_some_and(|pending| pending.boots == 1)
    });
    // It listens to signals by the time it looks.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(check.id()).expect("a process id"));
    wait_until("the check to look", || {
        !machine.read("usr/bin/looked").is_empty()
    });
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("to signal the check");
    let status = check.wait().expect("the check's end");
    assert_eq!(status.code(), Some(75));
    assert!(!machine.finding().bad);

    // So the old version does not record a failure.
    fs::remove_file(machine.root.path().join(COUNTER)).expect("to remove the counter");
    machine.run_version("1");
    machine.write("efi/EFI/Linux/selvage_2+0-3.efi", uki());
    assert_eq!(machine.boot_check(&one, &[]).status, Some(0));
    let state = machine.state();
    assert!(state.failed.is_empty());
    assert_eq!(state.pending, None);
}

#[test]
fn version_is_not_to_blame_for_what_the_old_one_shows_as_well() {
    let (_store, mut one, two) = pair();
    let machine = Machine::running("1", &mut one);
    machine.install(well(&two));
    machine.change(|state| {
        if let Some(pending) = &mut state.pending {
            pending.boots = 3;
            pending.finding = Some(Finding {
                at: 2,
                bad: true,
                code: FailureCode::Overlay,
                object: None,
                reason: "no peer answers".to_owned(),
            });
        }
    });
    machine.write("efi/EFI/Linux/selvage_2+0-3.efi", uki());
    block(&one);
    let ended = machine.boot_check(&one, &[]);
    assert_eq!(ended.status, Some(0), "{}", ended.said);
    let state = machine.state();
    assert!(state.failed.is_empty());
    assert_eq!(state.pending, None);
    assert!(ended.said.contains("but so does 1"), "{}", ended.said);
}

#[test]
fn store_that_is_down_for_everybody_condemns_no_version() {
    let (mut store, mut one, two) = pair();
    let machine = Machine::running("2", &mut one);
    machine.count("selvage_2+2-1.efi");
    machine.install(well(&two));
    // As after a reboot, but for the kernel's objects.
    store.stop_etcd();
    one.kill_agent();
    fs::remove_file(one.subnet_file()).expect("to remove subnet.env");
    one.start_agent();
    wait_until("the agent to listen", || one.socket().exists());
    machine.write("usr/bin/jobs", "7 selvage.service start running\n");
    machine.write(
        "usr/bin/failed",
        "needs-network.service loaded failed failed A\n",
    );
    let ended = machine.boot_check(&one, &[]);
    assert_eq!(ended.status, Some(75), "{}", ended.said);
    let finding = machine.finding();
    assert!(!finding.bad, "{finding:?}");
    assert_eq!(finding.code, FailureCode::Agent);
    assert!(
        ended.said.contains("outside of this machine"),
        "{}",
        ended.said
    );

    // It is back, and so is everything that waited for it.
    store.start_etcd();
    one.wait_ready();
    machine.write("usr/bin/jobs", "");
    machine.write("usr/bin/failed", "");
    let ended = machine.boot_check(&one, &[]);
    assert_eq!(ended.status, Some(0), "{}", ended.said);
    assert_eq!(
        machine.state().blessed.expect("a blessed version").version,
        "2"
    );
}

#[test]
fn units_and_checks_of_the_site_decide_as_well() {
    let (_store, mut one, two) = pair();
    let machine = Machine::running("2", &mut one);
    let site = "etc/selvage/boot-checks.d/10-site";
    for (failed, program, status, code) in [
        ("old.service loaded failed failed O\n", "exit 0", 0, None),
        (
            "new.service loaded failed failed N\n",
            "exit 0",
            1,
            Some(FailureCode::FailedUnit),
        ),
        (
            "",
            "echo no disk >&2; exit 3",
            1,
            Some(FailureCode::SiteCheck),
        ),
        ("", "exit 75", 75, Some(FailureCode::SiteCheck)),
        ("", "kill -9 $$", 1, Some(FailureCode::SiteCheck)),
    ] {
        let mut before = well(&two);
        before.failed_units = vec!["old.service".to_owned()];
        machine.install(before);
        machine.write("usr/bin/failed", failed);
        machine.write_program(site, &format!("#!/bin/sh\n{program}\n"));
        let ended = machine.boot_check(&one, &[]);
        assert_eq!(ended.status, Some(status), "{program}: {}", ended.said);
        let finding = machine.state().pending.and_then(|pending| pending.finding);
        assert_eq!(finding.as_ref().map(|finding| finding.code), code);
        if program.contains("no disk") {
            let reason = finding.expect("a finding").reason;
            assert!(
                reason.contains("10-site: exit status: 3: no disk"),
                "{reason}"
            );
        }
    }
}

#[test]
fn emergency_mode_and_a_damaged_state_end_in_the_next_try() {
    let (_store, mut one, two) = pair();
    let machine = Machine::running("2", &mut one);
    machine.count("selvage_2+1-2.efi");
    machine.install(well(&two));
    assert_eq!(machine.boot_check(&one, &["--next-try"]).status, Some(0));
    assert_eq!(machine.done(), "reboot --no-block\n");
    assert_eq!(machine.finding().code, FailureCode::Emergency);

    machine.write("var/lib/selvage/update/state.json", "{\"pending\":");
    assert_eq!(machine.boot_check(&one, &["--next-try"]).status, Some(0));
    assert_eq!(machine.done().lines().count(), 2);
    // Without what was before, a version that works is blessed all the same.
    let ended = machine.boot_check(&one, &[]);
    assert_eq!(ended.status, Some(0), "{}", ended.said);
    assert_eq!(
        machine.state().blessed.expect("a blessed version").version,
        "2"
    );
}

#[test]
fn a_check_that_hangs_is_ended_by_the_deadline_and_one_that_is_undecided_is_not() {
    let (_store, mut one, two) = pair();
    let machine = Machine::running("2", &mut one);
    machine.count("selvage_2+1-2.efi");
    machine.install(well(&two));
    assert_eq!(machine.boot_check(&one, &["--deadline"]).status, Some(0));
    assert_eq!(machine.done(), "reboot --no-block\n");
    assert_eq!(machine.finding().code, FailureCode::CutShort);

    machine.write_program("etc/selvage/boot-checks.d/10-site", "#!/bin/sh\nexit 75\n");
    let ended = machine.boot_check(&one, &[]);
    assert_eq!(ended.status, Some(75), "{}", ended.said);
    assert_eq!(machine.boot_check(&one, &["--deadline"]).status, Some(0));
    assert_eq!(machine.done().lines().count(), 1, "{}", machine.done());
}
