use std::path::Path;
use std::process::Command;

use tokio_rustls::TlsAcceptor;

use super::*;
use crate::appliance::update::samples::Site;
use crate::appliance::update::samples::server::{Fault, TestServer};
use crate::settings::{self, Environment, SettingsFlags, Sources};

/// An authority, and a certificate by it for localhost.
fn certificates() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let openssl = |arguments: &str| {
        let output = Command::new("openssl")
            .current_dir(directory.path())
            .args(arguments.split(' '))
            .output()
            .expect("openssl 3 is needed for this test");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    std::fs::write(
        directory.path().join("ext"),
        "subjectAltName=DNS:localhost\n",
    )
    .unwrap();
    let new = "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!(
        "{new} -x509 -keyout ca.key -out ca.pem -subj /CN=authority -days 2"
    ));
    openssl(&format!(
        "{new} -keyout key.pem -out request.pem -subj /CN=localhost"
    ));
    openssl(
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -days 2 -extfile ext -out cert.pem",
    );
    directory
}

async fn tls_server(files: &Path) -> TestServer {
    let config = Files {
        certfile: Some(files.join("cert.pem")),
        keyfile: Some(files.join("key.pem")),
        ..Files::default()
    };
    let acceptor = TlsAcceptor::from(Arc::new(config.server().unwrap().unwrap()));
    let site = Site::from([("a/b".to_owned(), b"content".to_vec())]);
    TestServer::start_with(site, Some(acceptor)).await
}

fn settings_of(settings: &str) -> Update {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("agent.toml");
    std::fs::write(&path, format!("[update]\n{settings}\n")).unwrap();
    let settings = settings::update::load(Sources {
        root: root.path(),
        config: Some(&path),
        environment: &Environment::default(),
        flags: &SettingsFlags::default(),
    });
    settings.unwrap()
}

/// Gets `a/b` by the settings.
async fn get(settings: &str) -> Result<Vec<u8>, ServerError> {
    let server = Server::new(&settings_of(settings)).unwrap();
    server.small("a/b", 100).await
}

#[tokio::test]
async fn a_server_with_tls_is_checked() {
    let files = certificates();
    let server = tls_server(files.path()).await;
    let port = server.address.port();
    let cafile = format!("cafile = \"{}\"", files.path().join("ca.pem").display());
    let good = format!("server = \"https://localhost:{port}\"\n{cafile}");
    assert_eq!(get(&good).await.unwrap(), b"content");
    // The certificate is for localhost.
    let other = format!("server = \"https://127.0.0.1:{port}\"\n{cafile}");
    let error = get(&other).await.unwrap_err().to_string();
    assert!(error.contains("not valid for name"), "{error}");
    let others = certificates();
    let cafile = others.path().join("ca.pem");
    let unknown = format!(
        "server = \"https://localhost:{port}\"\ncafile = \"{}\"",
        cafile.display()
    );
    let error = get(&unknown).await.unwrap_err().to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");
    let none = format!("server = \"https://localhost:{port}\"\ncafile = \"/nonexistent/ca.pem\"");
    let error = get(&none).await.unwrap_err();
    assert!(error.is_bad_configuration() && !error.is_transient());
    let error = crate::base::logging::chain(&error);
    assert!(
        error.starts_with("update.cafile in agent.toml cannot be used: ")
            && error.contains("/nonexistent/ca.pem"),
        "{error}"
    );
    // Who asks without TLS gets no answer that is HTTP.
    let plain = format!("server = \"http://localhost:{port}\"");
    let error = get(&plain).await.unwrap_err();
    assert!(matches!(error, ServerError::Http { .. }), "{error}");
    let url = format!("http://localhost:{port}/a/b: the connection to localhost:{port} broke");
    assert!(error.to_string().starts_with(&url), "{error}");
}

#[tokio::test]
async fn who_does_not_answer_or_stops_is_named_with_the_address_that_was_asked_for() {
    // Nobody has a listener on port 1.
    let error = get("server = \"http://127.0.0.1:1/c\"").await.unwrap_err();
    let start = "http://127.0.0.1:1/c/a/b: failed to connect to 127.0.0.1:1: ";
    assert!(error.to_string().starts_with(start), "{error}");

    let site = Site::from([("a/b".to_owned(), b"content".to_vec())]);
    let server = TestServer::start(site).await;
    let base = format!("http://{}", server.address);
    let asked = async |fault| {
        server.fail([fault]);
        let settings = settings_of(&format!("server = \"{base}\""));
        let patience = Patience {
            answer: Duration::from_secs(20),
            bytes: Duration::from_millis(50),
        };
        let server = Server::new(&settings).unwrap().with_patience(patience);
        server.small("a/b", 100).await.unwrap_err().to_string()
    };
    let error = asked(Fault::Stall(1)).await;
    let start = format!("{base}/a/b: nothing came from {} for ", server.address);
    assert!(error.starts_with(&start), "{error}");
    let error = asked(Fault::Cut(1)).await;
    let start = format!("{base}/a/b: the connection to {} broke: ", server.address);
    assert!(error.starts_with(&start), "{error}");
    // Where a redirect leads to may have a secret in its query.
    let to_nobody = "Location: http://127.0.0.1:1/x?token=secret\r\n";
    let error = asked(Fault::Status(302, to_nobody)).await;
    let start = format!("{base}/a/b: failed to connect to 127.0.0.1:1: ");
    assert!(
        error.starts_with(&start) && !error.contains("secret"),
        "{error}"
    );
}

#[tokio::test]
async fn a_proxy_connects_to_a_server_with_tls_and_sees_its_name_alone() {
    let files = certificates();
    let server = tls_server(files.path()).await;
    let proxy = TestServer::start(Site::new()).await;
    let settings = format!(
        "server = \"https://localhost:{}\"\ncafile = \"{}\"\nproxy = \"http://me:pw@{}\"",
        server.address.port(),
        files.path().join("ca.pem").display(),
        proxy.address
    );
    assert_eq!(get(&settings).await.unwrap(), b"content");
    let requests = proxy.shared().requests.clone();
    let [head] = &requests[..] else {
        panic!("{requests:?}")
    };
    let start = format!("CONNECT localhost:{} HTTP/1.1\r\n", server.address.port());
    assert!(head.starts_with(&start), "{head}");
    assert!(
        head.contains("proxy-authorization: Basic bWU6cHc="),
        "{head}"
    );
    assert!(!server.shared().requests[0].contains("proxy-authorization"));

    // One that refuses is named with what it said.
    let refusing = TestServer::start(Site::new()).await;
    refusing.shared().refuses_tunnels = true;
    let settings = settings.replace(&proxy.address.to_string(), &refusing.address.to_string());
    let error = get(&settings).await.unwrap_err().to_string();
    let expected = format!(
        "https://localhost:{}/a/b: the proxy {} answers 407 for localhost:",
        server.address.port(),
        refusing.address
    );
    assert!(error.starts_with(&expected), "{error}");
}

#[tokio::test]
async fn no_redirect_leads_away_from_tls() {
    let files = certificates();
    let server = tls_server(files.path()).await;
    server.fail([Fault::Status(302, "Location: http://127.0.0.1:1/x\r\n")]);
    let settings = format!(
        "server = \"https://localhost:{}\"\ncafile = \"{}\"",
        server.address.port(),
        files.path().join("ca.pem").display()
    );
    let error = get(&settings).await.unwrap_err().to_string();
    assert!(
        error.ends_with("from https to a server without TLS"),
        "{error}"
    );
}

#[test]
fn a_redirect_is_resolved_against_what_was_asked_for() {
    let from: Uri = "https://a:8443/releases/x/y.zst".parse().unwrap();
    for (location, to) in [
        ("https://b/c", "https://b/c"),
        ("//b/c", "https://b/c"),
        ("/c", "https://a:8443/c"),
        ("c", "https://a:8443/releases/x/c"),
    ] {
        let header = HeaderValue::from_static(location);
        assert_eq!(redirected(&from, Some(&header)).unwrap(), to);
    }
    let bytes = HeaderValue::from_bytes(b"\xff").unwrap();
    assert!(redirected(&from, Some(&bytes)).is_err());
}

#[test]
fn addresses_have_the_usual_ports() {
    for (address, authority, host, header) in [
        ("http://a/x", "a:80", "a", "a"),
        ("https://a/x", "a:443", "a", "a"),
        ("http://a:8080/x", "a:8080", "a", "a:8080"),
        ("https://[::1]:8443/x", "[::1]:8443", "::1", "[::1]:8443"),
    ] {
        let target = Target::of(&address.parse().unwrap(), address.to_owned()).unwrap();
        assert_eq!(target.authority, authority);
        assert_eq!(target.host, host);
        assert_eq!(target.host_header, header);
    }
    for address in ["ftp://a/x", "/x", "a:80"] {
        assert!(
            Target::of(&address.parse().unwrap(), address.to_owned()).is_err(),
            "{address}"
        );
    }
}
