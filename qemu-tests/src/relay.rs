//! Servers of this host that a guest reaches at [`serve::ADDRESS`], in the same way as files: no port is opened for it.

use std::{
    fs::File,
    net::{Ipv4Addr, Shutdown, TcpStream},
    os::fd::OwnedFd,
};

use anyhow::{Context as _, Result};

use crate::serve;

/// QEMU's option that leads a guest's connections to `port` of [`serve::ADDRESS`] to the same port of this host's 127.0.0.1.
///
/// # Errors
/// When this program cannot be found.
pub(crate) fn option(port: u16) -> Result<String> {
    let program = std::env::current_exe().context("failed to find this program")?;
    let program = program.display().to_string().replace(',', ",,");
    let address = serve::ADDRESS;
    // QEMU splits the command as a shell would.
    Ok(format!(
        "guestfwd=tcp:{address}:{port}-cmd:'{program}' relay {port}"
    ))
}

/// Carries bytes between `guest`, for which QEMU started this program, and `port` of 127.0.0.1, until the server ends the
/// connection.
///
/// # Errors
/// When nobody listens there, or the connection breaks.
pub(crate) fn run(port: u16, guest: OwnedFd) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        os::unix::net::UnixStream,
    };

    use super::*;

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
        let relay = std::thread::spawn(move || run(port, guest.into()));
        (&ours).write_all(b"ask?").unwrap();
        let mut answer = [0; 10];
        (&ours).read_exact(&mut answer).unwrap();
        assert_eq!((&answer, &server.join().unwrap()), (b"no newline", b"ask?"));
        relay.join().unwrap().unwrap();
        let closed = UnixStream::pair().unwrap().0;
        let error = run(port, closed.into()).unwrap_err().to_string();
        assert!(error.contains("nobody listens"), "{error}");
    }

    #[test]
    fn qemu_is_told_where_to_lead_to() {
        let option = option(2379).unwrap();
        assert!(option.starts_with("guestfwd=tcp:10.0.2.4:2379-cmd:'/"));
        assert!(option.ends_with("' relay 2379"), "{option}");
    }
}
