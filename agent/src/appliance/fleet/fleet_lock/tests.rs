use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::settings::fleet::{Fleet, Lock};

/// The ID and group of the protocol's own example.
const ID: &str = "c988d2509fdf5cdcbed39037c56406fb";

/// A client of a server that gives these answers, one for each connection. The task ends with the requests.
async fn asking(base: &str, answers: &[String]) -> (FleetLock, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = format!("http://{}{base}", listener.local_addr().unwrap());
    let answers = answers.to_vec();
    let server = tokio::spawn(async move {
        let mut requests = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"}}") {
                let read = stream.read_buf(&mut request).await.unwrap();
                assert!(read > 0, "{}", String::from_utf8_lossy(&request));
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            requests.push(String::from_utf8(request).unwrap());
        }
        requests
    });
    let settings = Fleet {
        lock: Lock::None,
        group: "default".to_owned(),
        ..Fleet::default()
    };
    let client = FleetLock::new(&address.parse().unwrap(), &settings, ID).unwrap();
    (client, server)
}

fn answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn requests_are_those_of_the_protocol() {
    let yes = answer("200 OK", "");
    let (mut lock, server) = asking("/base/", &[yes.clone(), yes.clone(), yes]).await;
    assert_eq!(lock.acquire().await.unwrap(), Leave::Now);
    lock.confirm().await.unwrap();
    lock.release().await.unwrap();
    let requests = server.await.unwrap();
    let lines: Vec<&str> = requests
        .iter()
        .map(|request| request.lines().next().unwrap())
        .collect();
    assert_eq!(
        lines,
        [
            "POST /base/v1/pre-reboot HTTP/1.1",
            "POST /base/v1/pre-reboot HTTP/1.1",
            "POST /base/v1/steady-state HTTP/1.1",
        ]
    );
    for request in requests {
        assert!(
            request.contains("\r\nfleet-lock-protocol: true\r\n"),
            "{request}"
        );
        assert!(request.contains("\r\nhost: 127.0.0.1:"), "{request}");
        let (_, body) = request.split_once("\r\n\r\n").unwrap();
        // The example of Zincati's documentation.
        let expected: serde_json::Value = serde_json::from_str(
            r#"{"client_params": {"group": "default", "id": "c988d2509fdf5cdcbed39037c56406fb"}}"#,
        )
        .unwrap();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(body).unwrap(),
            expected
        );
    }
}

/// What a machine makes of an answer: when it asks for the lock, confirms that it has it, and gives it back.
async fn met(status: &str, body: &str) -> [String; 3] {
    let answer = match status {
        "204 No Content" => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
        _ => answer(status, body),
    };
    let (mut lock, server) = asking("", &[answer.clone(), answer.clone(), answer]).await;
    let name = lock.server.clone();
    let acquired = match lock.acquire().await {
        Ok(Leave::Later { until: None, why }) => format!("later: {why}"),
        other => format!("{:?}", other.map_err(|error| error.to_string())),
    };
    let confirmed = match lock.confirm().await {
        Err(FleetError::Lost) => "lost".to_owned(),
        other => format!("{:?}", other.map_err(|error| error.to_string())),
    };
    let released = match lock.release().await {
        Ok(()) => "done".to_owned(),
        Err(error) => error.to_string(),
    };
    server.await.unwrap();
    [acquired, confirmed, released].map(|said| said.replace(&name, "S"))
}

#[tokio::test]
async fn a_lock_that_others_hold_is_waited_for_and_one_that_is_not_held_is_given_back() {
    // The first is of the protocol's documentation; then what airlock answers, before its errors were JSON; then poseidon's
    // fleetlock; then a status alone.
    for (status, body, expected) in [
        (
            "409 Conflict",
            "{\n  \"kind\": \"failed_lock_semaphore_full\",\n  \"value\": \"semaphore currently full, all slots are locked already\"\n}\n",
            "semaphore currently full, all slots are locked already (failed_lock_semaphore_full, HTTP 409)",
        ),
        (
            "500 Internal Server Error",
            "semaphore currently full, all slots are locked already\n",
            "semaphore currently full, all slots are locked already (no kind, HTTP 500)",
        ),
        (
            "423 Locked",
            r#"{"kind":"locked","value":"reboot lease unavailable, held by 7"}"#,
            "reboot lease unavailable, held by 7 (locked, HTTP 423)",
        ),
        ("409 Conflict", "", "no reason given (no kind, HTTP 409)"),
    ] {
        let later = format!("later: others have the lock; S says: {expected}");
        assert_eq!(
            met(status, body).await,
            [&*later, "lost", "done"],
            "{status}"
        );
    }
    for kind in ["lock_not_held", "failed-unlock-not-held", "NOT_LOCKED"] {
        let body = format!(r#"{{"kind":"{kind}","value":"not yours"}}"#);
        let later = format!("later: the lock server S says: not yours ({kind}, HTTP 404)");
        assert_eq!(met("404 Not Found", &body).await, [&*later, "lost", "done"]);
    }
}

#[tokio::test]
async fn another_refusal_is_waited_for_and_says_why() {
    // What Zincati's tests send, and what poseidon's fleetlock says to who does not keep to the protocol.
    for (status, body, expected) in [
        (
            "466 Failure",
            "\n{\n  \"kind\": \"failure_foo\",\n  \"value\": \"failed to perform foo\"\n}\n",
            "failed to perform foo (failure_foo, HTTP 466)",
        ),
        (
            "400 Bad Request",
            r#"{"kind":"failed_decoding_request","value":"error decoding\u001b[31m"}"#,
            "error decoding\u{fffd}[31m (failed_decoding_request, HTTP 400)",
        ),
    ] {
        let [later, confirmed, refused] = met(status, body).await;
        assert_eq!(later, format!("later: the lock server S says: {expected}"));
        assert_eq!(confirmed, "lost");
        assert_eq!(
            refused,
            format!("the lock server S does not take the lock back: {expected}")
        );
    }
}

#[tokio::test]
async fn a_server_that_is_broken_has_decided_nothing() {
    for (status, body, expected) in [
        (
            "500 Internal Server Error",
            r#"{"kind":"generic_error","value":"generic error"}"#,
            "generic error (generic_error, HTTP 500)",
        ),
        (
            "400 Bad Request",
            "unknown group \"workers\"\n",
            "unknown group \"workers\" (no kind, HTTP 400)",
        ),
        ("433 Failure", "", "no reason given (no kind, HTTP 433)"),
        (
            "502 Bad Gateway",
            "<html>\u{1b}[31m</html>",
            "<html>\u{fffd}[31m</html> (no kind, HTTP 502)",
        ),
        // A redirection is followed by nobody: the header is there to say that the request is meant for this server.
        ("302 Found", "", "no reason given (no kind, HTTP 302)"),
        // Success, but not the one that the protocol has.
        ("204 No Content", "", "no reason given (no kind, HTTP 204)"),
    ] {
        let error = format!(
            "the lock server S does not do its work: {expected}; see its log, and fleet.lock and fleet.group in agent.toml"
        );
        let shown = format!("{:?}", Err::<(), _>(&error));
        assert_eq!(
            met(status, body).await,
            [&*shown, &*shown, &*error],
            "{status}"
        );
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_or_speaks_no_http_is_an_error_that_names_it() {
    let (mut lock, server) = asking("", &["SSH-2.0-OpenSSH\r\n".to_owned()]).await;
    let error = lock.acquire().await.unwrap_err().to_string();
    assert!(error.contains("lock server http://127.0.0.1:"), "{error}");
    server.await.unwrap();
    // Its listener is gone.
    let error = lock.release().await.unwrap_err().to_string();
    assert!(
        error.starts_with("failed to connect to the lock server http://127.0.0.1:"),
        "{error}"
    );
}

#[test]
fn addresses_may_have_any_path() {
    for (address, expected) in [
        ("http://locks.example", "http://locks.example"),
        ("https://locks.example/a/b/", "https://locks.example/a/b"),
        ("http://[fd00::1]:3333/", "http://[fd00::1]:3333"),
    ] {
        let lock = FleetLock::new(&address.parse().unwrap(), &Fleet::default(), ID).unwrap();
        assert_eq!(lock.server, expected);
    }
}
