//! What a server does not put up with: hostile clients, and settings that cannot work.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use crate::etcd::Server;
use crate::program::Program;
use crate::rest::{CONFIG, WIDE, cursor, put, serving};
use crate::wait::{PATIENCE, look_until};

#[tokio::test]
async fn bad_clients_are_cut_off_and_harm_nobody() {
    let (_etcd, program) = serving(WIDE).await;
    let before = program.open_files();
    // A body without end.
    let huge = "x".repeat(200 * 1024);
    let reply = program.ask("POST", "/v1/_/leases", &huge);
    assert_eq!(reply.status, 413, "{reply:?}");
    // A body that is announced as endless, and one that never comes.
    let announced = "POST /v1/_/leases HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{";
    let slow = "POST /v1/_/leases HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\n{";
    let header = format!(
        "GET /v1/_/config HTTP/1.1\r\nX: {}\r\n\r\n",
        "y".repeat(40_000)
    );
    let fields = format!(
        "GET /v1/_/config HTTP/1.1\r\n{}\r\n",
        "a: b\r\n".repeat(100)
    );
    std::thread::scope(|scope| {
        let polls: Vec<_> = (0..40)
            .map(|_| {
                let mut stream = TcpStream::connect(program.address).unwrap();
                stream.write_all(b"GET /v1/_/leases?next=").unwrap();
                stream
            })
            .collect();
        let threads = [
            announced,
            slow,
            &header,
            &fields,
            "\x16\x03\x01\x02",
            "\r\n\r\n\0",
        ]
        .map(|text| {
            let program = &program;
            scope.spawn(move || {
                let start = Instant::now();
                (program.send(text.as_bytes()), start.elapsed())
            })
        });
        // Others are served meanwhile.
        assert_eq!(program.ask("GET", "/v1/_/config", "").status, 200);
        for (thread, status) in threads
            .into_iter()
            .zip(["413", "408", "431", "431", "", ""])
        {
            let (answer, took) = thread.join().unwrap();
            // A server waits 10 s at the most, and a client that nobody cuts off for as long as it likes.
            assert!(took < PATIENCE / 2, "{took:?}: {answer}");
            let line = answer.lines().next().unwrap_or_default();
            assert!(line.contains(status), "{status}: {answer}");
        }
        // A header that never ends is not waited for.
        for mut stream in polls {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
        }
    });
    assert_eq!(program.ask("GET", "/v1/_/config", "").status, 200);
    look_until(
        "the connections' files to be closed",
        || program.open_files(),
        |files| *files <= before + 2,
    );
}

#[tokio::test]
async fn one_address_has_no_more_than_its_share_of_connections() {
    let (_etcd, program) = serving(WIDE).await;
    let cursor = cursor(&program);
    let mut polls = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(program.address).unwrap();
        let request = format!("GET /v1/_/leases?next={cursor} HTTP/1.1\r\nHost: x\r\n\r\n");
        let _ = stream.write_all(request.as_bytes());
        polls.push(stream);
    }
    look_until(
        "the server to tell of too many connections",
        || program.log(),
        |log| log.contains("too many connections"),
    );
    assert!(program.open_files() < 300, "{}", program.open_files());
    drop(polls);
    look_until(
        "the connections' files to be closed",
        || program.open_files(),
        |files| *files <= 40,
    );
    assert_eq!(program.ask("GET", "/v1/_/config", "").status, 200);
}

#[tokio::test]
async fn sockets_of_the_service_manager_are_served() {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    let etcd = Server::start().await;
    put(&etcd, "config", CONFIG).await;
    let command = |listen: &str, sockets: &str| {
        let mut command = std::process::Command::new("sh");
        // The variables name the process that they are for.
        let script = r#"export LISTEN_PID=$$; exec "$0" "$@""#;
        command
            .args(["-c", script, env!("CARGO_BIN_EXE_selvage"), "serve"])
            .args(["--insecure", "--listen", listen])
            .args(["--etcd-endpoints", &etcd.url()])
            .env("LISTEN_FDS", sockets);
        command
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut serving = command("fd://", "1");
    let socket = listener.as_raw_fd();
    // SAFETY: dup2(2) is async-signal-safe, and the socket outlives the fork.
    unsafe {
        serving.pre_exec(move || {
            let socket = std::os::fd::BorrowedFd::borrow_raw(socket);
            let third = nix::unistd::dup2_raw(socket, 3)?;
            // It stays open in the program.
            std::mem::forget(third);
            Ok(())
        });
    }
    let program = Program::run(serving, address);
    assert_eq!(program.ask("GET", "/v1/_/config", "").status, 200);

    let output = command("fd://4", "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains(
            "remote.listen = fd://4: the service manager gave 1 sockets; expected fd://3 to fd://3"
        ),
        "{text}"
    );
}

#[test]
fn server_that_cannot_serve_says_why_and_ends() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    for (arguments, status, text) in [
        (
            &[][..],
            78,
            "remote.listen is not set: expected HOST:PORT or fd://",
        ),
        (
            &["--listen", "x"],
            64,
            "flag --listen: remote.listen = \"x\": expected HOST:PORT",
        ),
        (
            &["--insecure", "--listen", taken.as_str()],
            1,
            "failed to listen on 127.0.0.1:",
        ),
        (
            &[
                "--insecure",
                "--listen=:1",
                "--remote-certfile=/no/cert",
                "--remote-keyfile=/no/key",
            ],
            78,
            "invalid TLS settings: failed to read /no/cert",
        ),
        (
            &["--listen=:1"],
            78,
            "remote.cafile is not set, so any host that reaches this address could take subnets",
        ),
        (
            &[
                "--listen=:1",
                "--remote-certfile=/no/cert",
                "--remote-keyfile=/no/key",
            ],
            78,
            "Set remote.cafile, remote.certfile and remote.keyfile, or remote.insecure = true (--insecure)",
        ),
        (
            &["--listen=:1", "--remote-cafile=/no/ca"],
            64,
            "remote.cafile is set, but remote.certfile is not",
        ),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_selvage"))
            .arg("serve")
            .args(arguments)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            output.status.code(),
            Some(status),
            "{arguments:?}: {stderr}"
        );
        assert!(stderr.contains(text), "{arguments:?}: {stderr}");
    }
}
