//! Files that a guest fetches by HTTP, in its initrd as well, and servers of the host that it reaches.
//!
//! QEMU's user-mode network starts this program anew for each connection to a port of [`ADDRESS`] and hands it the
//! connection as standard input and output. So no port of the host is open, and a guest that is cut off from the rest
//! of the world still reaches what is meant for it.

use std::{
    fs::{self, File},
    io::{BufRead, Write},
    net::{Ipv4Addr, Shutdown, TcpStream},
    os::fd::OwnedFd,
    path::Path,
};

use anyhow::{Context as _, Result};

/// Where guests find the files: an address of the user-mode network that QEMU itself does not use.
pub(crate) const ADDRESS: &str = "10.0.2.4";
/// Where they are answered for.
const HTTP: u16 = 80;

/// Puts `files` below `dir`, and gives what answers for them; none when there are no files.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn prepare(dir: &Path, files: &[(String, Vec<u8>)]) -> Result<Option<Forward>> {
    if files.is_empty() {
        return Ok(None);
    }
    fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
    for (name, contents) in files {
        let path = dir.join(name);
        fs::write(&path, contents)
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    directory(dir).map(Some)
}

/// What answers a guest's HTTP requests from the files below `dir`.
///
/// # Errors
/// When the directory, or this program, cannot be found.
pub(crate) fn directory(dir: &Path) -> Result<Forward> {
    let dir = fs::canonicalize(dir).with_context(|| format!("failed to find {}", dir.display()))?;
    Forward::new(HTTP, &format!("serve '{}'", dir.display()))
}

/// What leads a guest's connections to `port` of [`ADDRESS`] to the same port of this host's 127.0.0.1.
///
/// # Errors
/// When this program cannot be found.
pub(crate) fn port(port: u16) -> Result<Forward> {
    Forward::new(port, &format!("relay {port}"))
}

/// A port of [`ADDRESS`], and the command that QEMU starts for each connection to it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Forward {
    /// The port.
    pub port: u16,
    /// The command; QEMU splits it as a shell would.
    pub command: String,
}

impl Forward {
    fn new(port: u16, arguments: &str) -> Result<Self> {
        let program = std::env::current_exe().context("failed to find this program")?;
        let command = format!("'{}' {arguments}", program.display());
        Ok(Self { port, command })
    }
}

/// Carries bytes between `guest`, for which QEMU started this program, and `port` of 127.0.0.1, until the server ends the
/// connection.
///
/// # Errors
/// When nobody listens there, or the connection breaks.
pub(crate) fn relay(port: u16, guest: OwnedFd) -> Result<()> {
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .with_context(|| format!("nobody listens on port {port} of 127.0.0.1"))?;
    // Not by std's standard output, which waits for the end of a line.
    let mut to_guest = File::from(guest);
    let mut from_guest = to_guest.try_clone().context("failed to share a socket")?;
    let mut to_server = server.try_clone().context("failed to share a socket")?;
    std::thread::spawn(move || {
        // What breaks here breaks below as well.
        let _ = std::io::copy(&mut from_guest, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    std::io::copy(&mut server, &mut to_guest)
        .map(drop)
        .context("the connection broke")
}

/// Answers the one request that `input` brings from the files in `dir`.
///
/// # Errors
/// When the connection ends too early.
pub(crate) fn answer(dir: &Path, mut input: impl BufRead, mut output: impl Write) -> Result<()> {
    let mut request = String::new();
    input
        .read_line(&mut request)
        .context("failed to read a request")?;
    // The header tells nothing that matters here, but a client may not like an answer before its end.
    let mut line = String::new();
    while input
        .read_line(&mut line)
        .context("failed to read a header")?
        > 2
    {
        line.clear();
    }
    // What is below one directory, and no way out of it.
    let name = request
        .strip_prefix("GET /")
        .and_then(|rest| rest.split(' ').next())
        .filter(|name| {
            !name
                .split('/')
                .any(|part| part.is_empty() || part.starts_with('.'))
        });
    let contents = name.and_then(|name| fs::read(dir.join(name)).ok());
    let status = if contents.is_some() {
        "200 OK"
    } else {
        "404 Not Found"
    };
    let contents = contents.unwrap_or_default();
    write!(
        output,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        contents.len()
    )
    .and_then(|()| output.write_all(&contents))
    .and_then(|()| output.flush())
    .context("failed to answer")
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, net::TcpListener, os::unix::net::UnixStream};

    use super::*;

    fn ask(dir: &Path, request: &str) -> String {
        let mut output = Vec::new();
        answer(dir, request.as_bytes(), &mut output).unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn a_file_is_served_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let served = dir.path().join("served");
        let files = [("a.ign".to_owned(), b"{}\n".to_vec())];
        let command = prepare(&served, &files).unwrap().unwrap();
        assert_eq!(command.port, 80);
        assert!(command.command.ends_with("served'"), "{command:?}");
        fs::write(dir.path().join("secret"), "x").unwrap();
        fs::create_dir(served.join("below")).unwrap();
        fs::write(served.join("below/b.raw"), "b").unwrap();
        assert!(ask(&served, "GET /below/b.raw HTTP/1.1\r\n\r\n").ends_with("\r\n\r\nb"));
        assert_eq!(
            ask(&served, "GET /a.ign HTTP/1.1\r\nHost: x\r\n\r\n"),
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\n{}\n"
        );
        for other in [
            "GET /b HTTP/1.1",
            "GET /../secret HTTP/1.1",
            "GET /below/../../secret HTTP/1.1",
            "GET //etc/hostname HTTP/1.1",
            "GET / HTTP/1.1",
            "PUT /a.ign HTTP/1.1",
            "",
        ] {
            let said = ask(&served, &format!("{other}\r\n\r\n"));
            assert!(said.starts_with("HTTP/1.1 404 "), "{other}: {said}");
        }
    }

    #[test]
    fn a_relay_carries_both_ways_until_the_server_ends() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let mut asked = [0; 4];
            connection.read_exact(&mut asked).unwrap();
            connection.write_all(b"no newline").unwrap();
            asked
        });
        let (ours, guest) = UnixStream::pair().unwrap();
        let relay = std::thread::spawn(move || relay(port, guest.into()));
        (&ours).write_all(b"ask?").unwrap();
        let mut answer = [0; 10];
        (&ours).read_exact(&mut answer).unwrap();
        assert_eq!((&answer, &server.join().unwrap()), (b"no newline", b"ask?"));
        relay.join().unwrap().unwrap();
        let closed = UnixStream::pair().unwrap().0;
        let error = super::relay(port, closed.into()).unwrap_err().to_string();
        assert!(error.contains("nobody listens"), "{error}");
    }

    #[test]
    fn nothing_to_serve_needs_no_command() {
        assert_eq!(prepare(Path::new("/nonexistent"), &[]).unwrap(), None);
    }
}
