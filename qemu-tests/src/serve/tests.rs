use std::{io::Read as _, io::Write as _, os::unix::net::UnixStream, sync::Arc};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, Stream as TlsStream,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use super::*;

/// The answer to one connection's text.
fn ask(server: &Server, request: &str) -> String {
    let mut output = Vec::new();
    server.answer(request.as_bytes(), &mut output).unwrap();
    String::from_utf8(output).unwrap()
}

/// A server with the file `v/a`, and its notes.
fn noted(contents: &str) -> (tempfile::TempDir, Server) {
    let dir = tempfile::tempdir().unwrap();
    let (files, notes) = (dir.path().join("files"), dir.path().join("notes"));
    fs::create_dir_all(files.join("v")).unwrap();
    fs::create_dir(&notes).unwrap();
    fs::write(files.join("v/a"), contents).unwrap();
    let notes = Some(Notes::new(&notes));
    (dir, Server { files, notes })
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

#[test]
fn a_file_is_served_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let served = dir.path().join("served");
    let files = [("a.ign".to_owned(), b"{}\n".to_vec())];
    let command = prepare(&served, &files).unwrap().unwrap();
    assert!(
        command.contains("served' --notes '") && command.ends_with("served.notes'"),
        "{command}"
    );
    fs::write(dir.path().join("secret"), "x").unwrap();
    let server = Server {
        files: served,
        notes: None,
    };
    let said = ask(&server, "GET /a.ign HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(
        said.starts_with("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n")
            && said.ends_with("\r\n\r\n{}\n"),
        "{said}"
    );
    for other in [
        "GET /b HTTP/1.1",
        "GET /../secret HTTP/1.1",
        "GET /./a.ign HTTP/1.1",
        "GET //a.ign HTTP/1.1",
        "GET / HTTP/1.1",
        "PUT /a.ign HTTP/1.1",
        "",
    ] {
        let said = ask(&server, &format!("{other}\r\n\r\n"));
        assert!(said.starts_with("HTTP/1.1 404 "), "{other}: {said}");
    }
}

#[test]
fn nothing_to_serve_needs_no_command() {
    assert_eq!(prepare(Path::new("/nonexistent"), &[]).unwrap(), None);
}

#[test]
fn the_rest_of_the_same_version_of_a_file_is_served() {
    let (_dir, server) = noted("0123456789");
    let whole = ask(&server, "GET /v/a HTTP/1.1\r\n\r\n");
    let tag = whole
        .split("ETag: ")
        .nth(1)
        .unwrap()
        .lines()
        .next()
        .unwrap();
    for (headers, status, expected) in [
        (
            format!("Range: bytes=4-\r\nIf-Range: {tag}\r\n"),
            206,
            "456789",
        ),
        ("range: bytes=4-\r\n".to_owned(), 206, "456789"),
        (
            "Range: bytes=4-\r\nIf-Range: \"other\"\r\n".to_owned(),
            200,
            "0123456789",
        ),
        ("Range: bytes=10-\r\n".to_owned(), 200, "0123456789"),
    ] {
        let said = ask(&server, &format!("GET /v/a HTTP/1.1\r\n{headers}\r\n"));
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{said}");
        assert_eq!(body(&said), expected, "{headers}");
        let range = said.contains("Content-Range: bytes 4-9/10\r\n");
        assert_eq!(range, status == 206, "{said}");
    }
    let asked = server.notes.unwrap().asked().unwrap();
    let from: Vec<_> = asked
        .iter()
        .map(|asked| (asked.from, asked.status))
        .collect();
    let (four, ten) = (Some(4), Some(10));
    assert_eq!(
        from,
        [
            (None, 200),
            (four, 206),
            (four, 206),
            (four, 200),
            (ten, 200)
        ]
    );
}

#[test]
fn one_answer_is_cut_off() {
    let (_dir, server) = noted("0123456789");
    server.notes.as_ref().unwrap().cut("/a", 3).unwrap();
    assert!(ask(&server, "GET /v/b HTTP/1.1\r\n\r\n").contains(" 404 "));
    let said = ask(&server, "GET /v/a HTTP/1.1\r\n\r\n");
    assert!(said.contains("Content-Length: 10\r\n"), "{said}");
    assert_eq!(body(&said), "012");
    assert_eq!(
        body(&ask(&server, "GET /v/a HTTP/1.1\r\n\r\n")),
        "0123456789"
    );
}

#[test]
fn a_proxy_serves_the_files_under_any_name() {
    let (_dir, server) = noted("x");
    let request = "GET http://r.example:81/v/a HTTP/1.1\r\nProxy-Authorization: Basic eDp5\r\n\r\n";
    assert_eq!(body(&ask(&server, request)), "x");
    let asked = server.notes.unwrap().asked().unwrap();
    assert_eq!(asked[0].target, "http://r.example:81/v/a");
    assert_eq!(asked[0].proxy_authorization.as_deref(), Some("Basic eDp5"));
}

#[test]
fn tls_is_spoken_on_the_same_port_and_within_a_tunnel() {
    for tunnel in [false, true] {
        let (dir, server) = noted("x");
        let notes = dir.path().join("notes");
        tls::certify(&notes).unwrap();
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(notes.join(tls::AUTHORITY)).unwrap();
        roots.add(authority).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (mut here, there) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let input = std::io::BufReader::new(there.try_clone().unwrap());
                server.answer(input, there).unwrap();
            });
            if tunnel {
                here.write_all(b"CONNECT r.example:443 HTTP/1.1\r\n\r\n")
                    .unwrap();
                let mut answer = [0; 19];
                here.read_exact(&mut answer).unwrap();
                assert_eq!(&answer, b"HTTP/1.1 200 OK\r\n\r\n");
            }
            let name = if tunnel { tls::NAME } else { ADDRESS };
            let name = name.try_into().unwrap();
            let mut session = ClientConnection::new(Arc::new(config), name).unwrap();
            let mut stream = TlsStream::new(&mut session, &mut here);
            stream.write_all(b"GET /v/a HTTP/1.1\r\n\r\n").unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).unwrap();
            assert!(said.ends_with("\r\n\r\nx"), "{said}");
        });
        let asked = Notes::new(&notes).asked().unwrap();
        let seen: Vec<_> = asked
            .iter()
            .map(|asked| (&*asked.method, asked.tls))
            .collect();
        let expected: &[_] = match tunnel {
            true => &[("CONNECT", false), ("GET", true)],
            false => &[("GET", true)],
        };
        assert_eq!(seen, expected);
    }
}

/// A server with a list of keys, and these demands.
fn demanding(demands: &Demands) -> (tempfile::TempDir, Server) {
    let dir = tempfile::tempdir().unwrap();
    let files = [
        demands.file().unwrap(),
        ("keys/index".to_owned(), b"0=a".to_vec()),
    ];
    let served = dir.path().join("served");
    prepare(&served, &files).unwrap();
    let notes = Some(Notes::new(&notes_of(&served)));
    let server = Server {
        files: served,
        notes,
    };
    (dir, server)
}

fn all_are_answered(server: &Server, expected: &[(&str, u16, &str)]) {
    for (request, status, text) in expected {
        let said = ask(server, request);
        assert!(
            said.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {said}"
        );
        assert_eq!(body(&said), *text, "{request}");
    }
    let asked = server.notes.as_ref().unwrap().asked().unwrap();
    let noted: Vec<_> = asked.iter().map(|asked| asked.status).collect();
    let expected: Vec<_> = expected.iter().map(|(_, status, _)| *status).collect();
    assert_eq!(noted, expected);
}

#[test]
fn a_service_with_tokens_answers_nobody_else() {
    let (_dir, server) = demanding(&Demands {
        token: Some(demands::Token {
            target: "/latest/api/token".into(),
            lifetime: "x-ttl".into(),
            header: "x-token".into(),
            token: "t0ken".into(),
        }),
        ..Demands::default()
    });
    let put = "PUT /latest/api/token HTTP/1.1\r\n";
    let get = "GET /keys/ HTTP/1.1\r\n";
    all_are_answered(
        &server,
        &[
            (&format!("{put}X-TTL: 21600\r\n\r\n"), 200, "t0ken"),
            (&format!("{put}\r\n"), 400, ""),
            (&format!("{put}X-TTL: 0\r\n\r\n"), 400, ""),
            (&format!("{put}X-TTL: 21601\r\n\r\n"), 400, ""),
            (&format!("{get}\r\n"), 401, ""),
            (&format!("{get}X-Token: other\r\n\r\n"), 401, ""),
            (&format!("{get}X-Token: t0ken\r\n\r\n"), 200, "0=a"),
            (
                &format!("{get}X-Token: t0ken\r\nX-Forwarded-For: x\r\n\r\n"),
                403,
                "",
            ),
            ("GET /.demands HTTP/1.1\r\nX-Token: t0ken\r\n\r\n", 404, ""),
        ],
    );
}

#[test]
fn a_service_with_a_header_answers_nobody_else_and_takes_reports() {
    let (_dir, server) = demanding(&Demands {
        header: Some(demands::Header {
            name: "metadata".into(),
            value: "true".into(),
            refusal: 400,
        }),
        takes: Some("/machine/?comp=health".into()),
        ..Demands::default()
    });
    let post = "POST /machine/?comp=health HTTP/1.1\r\nContent-Length: 5\r\n";
    all_are_answered(
        &server,
        &[
            ("GET /keys/ HTTP/1.1\r\n\r\n", 400, ""),
            ("GET /keys/ HTTP/1.1\r\nMetadata: True\r\n\r\n", 400, ""),
            ("GET /keys/ HTTP/1.1\r\nMetadata: true\r\n\r\n", 200, "0=a"),
            (&format!("{post}\r\nReady"), 400, ""),
            (&format!("{post}Metadata: true\r\n\r\nReady!"), 200, ""),
            ("POST /machine/ HTTP/1.1\r\nMetadata: true\r\n\r\n", 404, ""),
        ],
    );
    let asked = server.notes.unwrap().asked().unwrap();
    assert_eq!((&*asked[4].method, &*asked[4].body), ("POST", "Ready"));
}

#[test]
fn an_option_keeps_the_commas_of_a_path() {
    assert_eq!(
        option(AZURE_HOST, "'/a,b/c' serve"),
        "guestfwd=tcp:168.63.129.16:80-cmd:'/a,,b/c' serve"
    );
}
