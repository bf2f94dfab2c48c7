//! What `selvage status` and `selvage peers` say of real agents: all is well, nothing is there yet, something is missing,
//! nothing runs; and to whom.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;

use serde_json::Value;

use crate::cluster::{NETWORK, Store, pair};
use crate::host::Host;
use crate::wait::{PATIENCE, look_until, wait_for, wait_until};

/// What a command printed, and its exit status.
#[derive(Debug)]
struct Answer {
    code: Option<i32>,
    text: String,
    errors: String,
}

impl Answer {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            code: output.status.code(),
            text: text(&output.stdout),
            errors: text(&output.stderr),
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The value behind a label.
    fn line(&self, label: &str) -> &str {
        let line = self
            .text
            .lines()
            .find_map(|line| line.strip_prefix(label)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no line {label}: {}", self.text))
            .trim()
    }
}

fn ask(host: &Host, verb: &str, arguments: &[&str]) -> Answer {
    let output = host.selvage(verb).args(arguments).output();
    Answer::of(&output.expect("selvage"))
}

/// Asks as somebody without any privileges, and without the settings that the agent has.
fn ask_as_nobody(host: &Host, verb: &str, arguments: &[&str]) -> Answer {
    let socket = host.socket();
    let directory = socket.parent().expect("the host's directory");
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("to let others in");
    let output = host
        .namespace
        .command("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["--inh-caps=-all", "--bounding-set=-all"])
        .arg(env!("CARGO_BIN_EXE_selvage"))
        .arg(verb)
        .args(arguments)
        .arg("--socket")
        .arg(&socket)
        .env("SELVAGE_SUBNET_FILE", host.subnet_file())
        .env("SELVAGE_STATE_DIR", directory.join("state"))
        .env("SELVAGE_IFACE", "eth0")
        .output();
    Answer::of(&output.expect("setpriv of util-linux"))
}

#[test]
fn healthy_hosts_say_so_to_anybody() {
    let (_store, one, two) = pair();
    wait_until("the peer to be known", || {
        ask(&one, "status", &["--json"]).json()["peers"]
            .as_array()
            .is_some_and(|peers| peers.len() == 1)
    });
    let subnet = two.lease_key().replace('-', "/");
    let text = ask(&one, "status", &[]);
    assert_eq!(text.code, Some(0), "{text:?}");
    assert!(text.text.starts_with("ready: "), "{text:?}");
    assert!(!text.text.contains('\x1b'), "{text:?}");
    let own = one.lease_key().replace('-', "/");
    assert_eq!(text.line("Lease"), format!("{own} as 10.77.0.11"));
    assert!(
        text.line("Store")
            .starts_with("etcd at http://10.77.0.1:2379"),
        "{text:?}"
    );
    assert!(text.text.contains("1 peer, programmed:"), "{text:?}");
    let row = text.text.lines().find(|line| line.starts_with(&subnet));
    assert!(
        row.is_some_and(|row| row.contains("10.77.0.12  programmed")),
        "{text:?}"
    );

    let status = ask(&one, "status", &["--json"]);
    assert_eq!(status.code, Some(0));
    let status = status.json();
    assert_eq!(status["schema"], 1);
    assert_eq!(status["health"]["state"], "ready");
    assert_eq!(status["peers"][0]["subnet"], subnet);
    assert_eq!(status["peers"][0]["state"], "programmed");
    let sent = &status["devices"][0]["traffic"]["tx_packets"];
    assert!(sent.as_u64().is_some_and(|sent| sent > 0), "{status:#}");

    let coloured = ask(&one, "status", &["--color=always"]);
    assert!(
        coloured.text.starts_with("\x1b[32mready\x1b[0m: "),
        "{coloured:?}"
    );

    for verb in ["status", "peers"] {
        let anybody = ask_as_nobody(&one, verb, &[]);
        assert_eq!(anybody.code, Some(0), "{anybody:?}");
        assert!(anybody.text.contains(&subnet), "{anybody:?}");
    }
}

#[test]
fn the_picture_is_of_what_the_agent_knows_and_peers_answer() {
    let (_store, one, two) = pair();
    let subnet = two.lease_key().replace('-', "/");
    wait_until("the peer to be known", || {
        ask(&one, "status", &[]).text.contains(&subnet)
    });
    let picture = ask(&one, "status", &["--graph", "-"]);
    assert_eq!(picture.code, Some(0), "{picture:?}");
    assert!(picture.text.starts_with("<svg "), "{picture:?}");
    for told in [subnet.as_str(), "at 10.77.0.12", "1 peer: 1 programmed"] {
        assert!(picture.text.contains(told), "{told}: {picture:?}");
    }
    // Root's echoes were answered; who may not send any is told so.
    assert!(!picture.text.contains("were not probed"), "{picture:?}");
    let anybody = ask_as_nobody(&one, "status", &["--graph=-"]);
    assert!(anybody.text.contains("were not probed"), "{anybody:?}");

    let file = one.socket().with_extension("svg");
    let path = file.to_string_lossy().into_owned();
    let kept = ask(&one, "status", &["--graph", &path]);
    assert_eq!((kept.code, kept.text.as_str()), (Some(0), ""), "{kept:?}");
    assert!(fs::read_to_string(&file).is_ok_and(|text| text.ends_with("</svg>\n")));
    let nowhere = ask(&one, "status", &["--graph", "/proc/none/x.svg"]);
    assert_eq!(nowhere.code, Some(1), "{nowhere:?}");
    assert!(nowhere.errors.contains("/proc/none/x.svg"), "{nowhere:?}");

    // A peer behind a filter is programmed as ever, and does not answer.
    two.namespace.run("nft add table inet shut");
    two.namespace
        .run("nft add chain inet shut in { type filter hook input priority -300; policy drop; }");
    let lost = ask(&one, "status", &["--graph", "-"]);
    assert!(lost.text.contains("1 peer: 1 packets lost"), "{lost:?}");
}

#[test]
fn peers_tells_whose_an_address_is() {
    let (_store, one, two) = pair();
    let container = two.container_address().to_string();
    let peer = look_until(
        "the peer to be known",
        || ask(&one, "peers", &[&container]),
        |answer| answer.code == Some(0),
    );
    let said = format!("{container} is in a peer's subnet");
    assert!(peer.text.starts_with(&said), "{peer:?}");
    assert_eq!(peer.line("Public IP"), "10.77.0.12");
    let objects = peer
        .text
        .lines()
        .filter(|line| line.starts_with("present "));
    assert_eq!(
        objects.count(),
        4,
        "fdb, neighbour, next hop, route: {peer:?}"
    );

    let host = ask(&one, "peers", &["10.77.0.12"]);
    assert_eq!(host.code, Some(0), "{host:?}");
    assert!(host.text.contains("is a peer's own address"), "{host:?}");
    for (asked, whose, code) in [
        (one.container_address().to_string(), "is this host's", 0),
        ("10.77.0.11".to_owned(), "is this host's", 0),
        // The first subnet is never leased: flannel's SubnetMin.
        ("10.5.0.7".to_owned(), "is nobody's", 1),
        ("192.0.2.1".to_owned(), "is outside the overlay", 1),
    ] {
        let answer = ask(&one, "peers", &[&asked]);
        assert_eq!(answer.code, Some(code), "{answer:?}");
        assert!(
            answer.text.starts_with(&format!("{asked} {whose}")),
            "{answer:?}"
        );
    }
    let detail = ask(&one, "peers", &[&container, "--json"]).json();
    assert_eq!(detail["owner"], "peer");
    assert_eq!(detail["objects"].as_array().map(Vec::len), Some(4));
    let all = ask(&one, "peers", &["--json"]).json();
    assert_eq!(all["peers"][0]["public_ip"], "10.77.0.12");
    assert_eq!(all["health"]["state"], "ready");
}

#[test]
fn a_missing_object_is_found() {
    let (_store, one, two) = pair();
    let subnet = two.lease_key().replace('-', "/");
    wait_until("the peer to be known", || {
        ask(&one, "peers", &[&subnet]).code == Some(0)
    });

    // The agent repairs it after a tenth of a second without further changes; who asks before that sees it.
    let gateway = subnet.trim_end_matches("/24");
    let seen = look_until(
        "the missing neighbour to be seen",
        || {
            one.namespace
                .try_run(&format!("ip neighbor del {gateway} dev flannel.1"));
            ask(&one, "peers", &[&subnet])
        },
        |answer| answer.code == Some(1),
    );
    let missing = seen.line("missing");
    assert!(
        missing.starts_with(&format!("neighbor {gateway} dev flannel.1 lladdr ")),
        "{seen:?}"
    );
    wait_until("the neighbour to be repaired", || {
        ask(&one, "peers", &[&subnet]).code == Some(0)
    });

    // Another's route stays in the way.
    one.namespace.ip(&format!(
        "route replace {subnet} via 10.77.0.1 proto static"
    ));
    let seen = look_until(
        "the route in the way to be seen",
        || ask(&one, "peers", &[&subnet]),
        |answer| answer.code == Some(1) && answer.line("State") == "failed",
    );
    assert!(
        seen.line("missing")
            .starts_with(&format!("route {subnet} via ")),
        "{seen:?}"
    );
    let status = ask(&one, "status", &[]);
    assert_eq!(status.code, Some(1), "{status:?}");
    assert!(status.text.starts_with("degraded: "), "{status:?}");
    assert!(status.text.contains("1 peer, failed:"), "{status:?}");
    let listed = ask(&one, "peers", &[]);
    assert_eq!(listed.code, Some(1), "{listed:?}");
}

#[test]
fn a_host_without_etcd_says_what_it_waits_for() {
    let mut store = Store::start(NETWORK);
    store.stop_etcd();
    let mut one = store.host(1);
    one.start_agent();
    // Before it listens, it does not run as far as anybody can tell.
    let status = look_until(
        "the agent to say why it waits",
        || ask(&one, "status", &["--json"]),
        |answer| {
            answer.code == Some(1)
                && answer.json()["health"]["reasons"]
                    .to_string()
                    .contains("etcd")
        },
    );
    assert_eq!(status.json()["health"]["state"], "joining");
    let text = ask(&one, "status", &[]);
    assert!(text.text.starts_with("joining: "), "{text:?}");
    assert!(
        text.line("Store")
            .contains("not connected to http://10.77.0.1:2379"),
        "{text:?}"
    );
    assert_eq!(ask(&one, "peers", &[]).code, Some(1));
    store.start_etcd();
    one.wait_ready();
    wait_until("all to be well", || {
        ask(&one, "status", &[]).code == Some(0)
    });
}

#[test]
fn without_an_agent_files_and_kernel_are_told() {
    let (_store, mut one, two) = pair();
    let subnet = two.lease_key().replace('-', "/");
    let container = two.container_address().to_string();
    wait_until("the peer to be known", || {
        ask(&one, "peers", &[&subnet]).code == Some(0)
    });
    let own = one.lease_key().replace('-', "/");
    let before = one.overlay_objects();
    assert_eq!(one.stop_agent(), Some(0));

    let text = ask(&one, "status", &[]);
    assert_eq!(text.code, Some(3), "{text:?}");
    assert!(
        text.text.starts_with("stopped: no agent is running"),
        "{text:?}"
    );
    assert_eq!(text.line("Lease"), format!("{own} as 10.77.0.11"));
    assert!(
        text.line("Network")
            .starts_with("10.5.0.0/16 by vxlan, MTU 1450"),
        "{text:?}"
    );
    assert!(
        text.line("Firewall").starts_with("iptables rules in place"),
        "{text:?}"
    );
    assert!(
        text.line("Underlay").starts_with("eth0, 10.77.0.11/24"),
        "{text:?}"
    );
    let row = text.text.lines().find(|line| line.starts_with(&subnet));
    assert!(
        row.is_some_and(|row| row.contains("10.77.0.12  programmed")),
        "{text:?}"
    );

    let status = ask(&one, "status", &["--json"]);
    assert_eq!(status.code, Some(3));
    let status = status.json();
    assert_eq!(status["health"]["state"], "stopped");
    assert_eq!(status["lease"]["held"], false);
    assert_eq!(status["devices"][0]["name"], "flannel.1");
    for asked in [&[][..], &[container.as_str()], &["10.77.0.12"]] {
        let peers = ask(&one, "peers", asked);
        assert_eq!(peers.code, Some(3), "{peers:?}");
        assert!(peers.text.contains(&subnet), "{peers:?}");
    }
    for (asked, expected) in [
        (
            "10.5.0.7".to_owned(),
            "the kernel has no overlay route to 10.5.0.7\n".to_owned(),
        ),
        (
            own.clone(),
            format!("{own} is this host's, according to the subnet file\n"),
        ),
    ] {
        let answer = ask(&one, "peers", &[&asked]);
        assert!(answer.text.ends_with(&expected), "{answer:?}");
    }

    let anybody = ask_as_nobody(&one, "status", &[]);
    assert_eq!(anybody.code, Some(3), "{anybody:?}");
    assert!(
        anybody
            .text
            .contains("only root may read the firewall rules"),
        "{anybody:?}"
    );
    assert!(anybody.text.contains(&subnet), "{anybody:?}");
    assert_eq!(one.overlay_objects(), before, "looking changed something");

    one.namespace.run(&format!(
        "ip neighbor del {} dev flannel.1",
        subnet.trim_end_matches("/24")
    ));
    let text = ask(&one, "status", &[]);
    assert!(text.text.contains("no neighbor entry for "), "{text:?}");
    one.namespace.ip("link del flannel.1");
    let text = ask(&one, "status", &[]);
    assert!(
        text.text
            .contains("the overlay device flannel.1 is missing"),
        "{text:?}"
    );

    // A socket that one may not open is no agent that does not run.
    one.start_agent();
    one.wait_ready();
    fs::set_permissions(one.socket(), fs::Permissions::from_mode(0o600)).expect("to shut it");
    let anybody = ask_as_nobody(&one, "status", &[]);
    assert_eq!(anybody.code, Some(1), "{anybody:?}");
    assert!(
        anybody
            .errors
            .contains("failed to connect to the control socket"),
        "{anybody:?}"
    );
}

#[test]
fn a_secret_of_the_settings_is_no_hindrance() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    one.join();
    let directory = one.socket().parent().expect("a directory").to_owned();
    let file = directory.join("password");
    fs::write(&file, "hunter2\n").expect("the password");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("to shut it");
    let text = format!("[etcd]\nusername = \"root\"\npassword-file = {file:?}\n");
    let settings = directory.join("agent.toml");
    fs::write(&settings, text).expect("the settings");
    let settings = settings.to_str().expect("a path");
    let answer = ask_as_nobody(&one, "status", &["--config", settings]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert_eq!(answer.errors, "");
}

#[test]
fn watching_survives_the_agent() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    one.join();
    let mut command: Command = one.selvage("status");
    let mut watching = command
        .arg("--watch=1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("selvage");
    let output = watching.stdout.take().expect("its output");
    let (sender, lines) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let lines = BufReader::new(output).lines().map_while(Result::ok);
        lines.for_each(|line| {
            let _ = sender.send(line);
        });
    });
    let told = |what: &str| {
        wait_for(PATIENCE, what, || {
            lines.try_iter().find(|line| line.starts_with(what))
        })
    };
    told("ready: ");
    assert_eq!(one.stop_agent(), Some(0));
    told("stopped: ");
    one.start_agent();
    one.wait_ready();
    told("ready: ");
    let pid = i32::try_from(watching.id()).expect("a process id");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGINT,
    )
    .expect("to signal it");
    let end = wait_for(PATIENCE, "it to end", || {
        watching.try_wait().expect("its status")
    });
    assert_eq!(end.code(), Some(0));
    reader.join().expect("the reader");
}

#[test]
fn ctrl_c_gives_the_terminal_back() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    one.join();
    let status = one.selvage("status");
    let words: Vec<_> = std::iter::once(status.get_program())
        .chain(status.get_args())
        .map(|word| word.to_str().expect("UTF-8"))
        .collect();
    // script(1) is the terminal. Its shell must not stay in between: dash would die of the Ctrl-C, where bash waits.
    let mut watching = one
        .namespace
        .command("script")
        .args(["--quiet", "--return", "--command"])
        .arg(format!("exec {} --watch=1", words.join(" ")))
        .arg("/dev/null")
        .envs(
            status
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .env("SHELL", "/bin/sh")
        .env("TERM", "xterm")
        .env("COLUMNS", "80")
        .env("LINES", "10")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script of bsdutils");
    let mut keyboard = watching.stdin.take().expect("its keyboard");
    let mut output = watching.stdout.take().expect("its screen");
    let (sender, parts) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = output.read(&mut buffer) {
            let _ = sender.send(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
    });
    let mut screen = String::new();
    wait_until("two pictures", || {
        screen.extend(parts.try_iter());
        screen.matches("Ctrl-C to quit").count() >= 2
    });
    let enter = "\x1b[?1049h\x1b[?25l\x1b[?7l";
    assert!(screen.starts_with(enter), "{screen:?}");
    let picture = screen.split("\x1b[H").nth(1).expect("a picture");
    assert!(picture.contains("ready"), "{picture:?}");
    assert_eq!(picture.matches('\n').count(), 9, "{picture:?}");
    keyboard.write_all(b"\x03").expect("to press Ctrl-C");
    let end = wait_for(PATIENCE, "it to end", || {
        watching.try_wait().expect("its status")
    });
    reader.join().expect("the reader");
    screen.extend(parts.try_iter());
    assert!(
        screen.ends_with("\x1b[?7h\x1b[?25h\x1b[?1049l"),
        "{screen:?}"
    );
    assert_eq!(end.code(), Some(0));
}
