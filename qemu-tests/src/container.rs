//! The container image for the guests: one static program and a web page, since guests have no registry to pull from.

use std::{
    fs,
    net::SocketAddrV4,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{machine::Machine, ssh::COMMAND_DEADLINE};

/// Name of the image in the guests.
pub(crate) const IMAGE: &str = "selvage-demo";
/// Path of the page that answers with the client's address as the server saw it.
pub(crate) const CLIENT_PAGE: &str = "/cgi-bin/client";
/// Where Debian's package busybox-static puts it.
const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];
const CLIENT_SCRIPT: &str =
    "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n%s\\n' \"$REMOTE_ADDR\"\n";

/// Builds the image as a tar archive of a root file system.
///
/// # Errors
/// When the host has no static busybox, or tar fails.
pub(crate) async fn build() -> Result<Vec<u8>> {
    let busybox = find_busybox()?;
    let root = tempfile::tempdir().context("failed to make a directory for the container image")?;
    stage(root.path(), &busybox).context("failed to stage the container image")?;
    let output = tokio::process::Command::new("tar")
        .args([
            "--create",
            "--owner=0",
            "--group=0",
            "--numeric-owner",
            "--sort=name",
            "--mtime=@0",
            "-C",
        ])
        .arg(root.path())
        .arg(".")
        .output()
        .await
        .context("failed to run tar")?;
    ensure!(
        output.status.success(),
        "tar failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output.stdout)
}

fn stage(root: &Path, busybox: &Path) -> std::io::Result<()> {
    for dir in ["bin", "tmp", "www/cgi-bin"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy(busybox, root.join("bin/busybox"))?;
    for applet in ["sh", "httpd", "ping", "nc"] {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(root.join("www/index.html"), "selvage\n")?;
    let script = root.join("www").join(CLIENT_PAGE.trim_start_matches('/'));
    fs::write(&script, CLIENT_SCRIPT)?;
    fs::set_permissions(script, fs::Permissions::from_mode(0o755))
}

fn find_busybox() -> Result<PathBuf> {
    for path in BUSYBOX.map(Path::new) {
        if fs::read(path).is_ok_and(|program| is_static(&program)) {
            return Ok(path.to_owned());
        }
    }
    bail!(
        "no statically linked {}; install the package busybox-static",
        BUSYBOX[0]
    )
}

/// Whether an ELF program asks for no interpreter (no `PT_INTERP` among its program headers, elf(5), 64 bit).
fn is_static(program: &[u8]) -> bool {
    let u16_at =
        |at: usize| Some(u16::from_le_bytes(program.get(at..at + 2)?.try_into().ok()?).into());
    let headers = || {
        let offset =
            usize::try_from(u64::from_le_bytes(program.get(32..40)?.try_into().ok()?)).ok()?;
        let (size, count): (usize, usize) = (u16_at(54)?, u16_at(56)?);
        (0..count)
            .map(|index| {
                let at = offset.checked_add(index.checked_mul(size)?)?;
                Some(u32::from_le_bytes(
                    program.get(at..at.checked_add(4)?)?.try_into().ok()?,
                ))
            })
            .collect::<Option<Vec<u32>>>()
    };
    const PT_INTERP: u32 = 3;
    program.starts_with(b"\x7fELF\x02\x01")
        && headers().is_some_and(|types| !types.contains(&PT_INTERP))
}

/// Loads the archive that [`build`] made into a machine's Docker.
///
/// # Errors
/// When Docker refuses.
pub(crate) async fn load(machine: &Machine, archive: &[u8]) -> Result<()> {
    let script = format!("docker import - {IMAGE}");
    machine
        .ssh
        .feed(&script, archive, Duration::from_secs(240))
        .await
        .map(drop)
}

/// Starts the web server in a container; `network` none is Docker's default bridge. Gives the container's id.
///
/// # Errors
/// When Docker refuses.
pub(crate) async fn start_web(
    machine: &Machine,
    name: &str,
    network: Option<&str>,
    port: u16,
) -> Result<String> {
    let network = network
        .map(|network| format!("--network {network}"))
        .unwrap_or_default();
    // The server has nothing to put in order: without the signal Docker waits 10 s for it at every reboot.
    let options = format!("--name {name} {network} --stop-signal KILL");
    // By its IPv4 address, or it would call clients by IPv4-mapped IPv6 addresses.
    let server = format!("httpd -f -p 0.0.0.0:{port} -h /www");
    let script = format!("docker run -d {options} {IMAGE} {server}");
    machine.ssh.run(&script).await
}

/// Address of a container on Docker's default bridge.
///
/// # Errors
/// When there is no such container, or it has no address.
pub(crate) async fn address(machine: &Machine, name: &str) -> Result<std::net::Ipv4Addr> {
    let script = format!("docker inspect -f '{{{{.NetworkSettings.IPAddress}}}}' {name}");
    let said = machine.ssh.run(&script).await?;
    said.parse().with_context(|| {
        format!(
            "container {name} of {} has no address but {said:?}",
            machine.name()
        )
    })
}

/// The address that the web server at `server` saw when container `name` asked it for [`CLIENT_PAGE`].
///
/// # Errors
/// When there is no answer within 20 s, or it is not the page.
pub(crate) async fn client_seen_by(
    machine: &Machine,
    name: &str,
    server: SocketAddrV4,
) -> Result<String> {
    // nc and not wget: busybox's wget looks up the port's name, and a static glibc crashes over that.
    let request = format!("GET {CLIENT_PAGE} HTTP/1.0\r\n\r\n");
    let (ip, port) = (server.ip(), server.port());
    let script = format!("docker exec -i {name} nc -w 20 {ip} {port}");
    let answer = machine
        .ssh
        .feed(&script, request.as_bytes(), COMMAND_DEADLINE)
        .await?;
    page(&answer).with_context(|| format!("{}: answer of {server}: {answer:?}", machine.name()))
}

/// The page in a server's answer.
fn page(answer: &str) -> Option<String> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.lines().next()?.split(' ').nth(1)?;
    (status == "200").then(|| body.trim().to_owned())
}

/// What ping says at its end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ping {
    /// Packets lost, in percent.
    pub loss_percent: f64,
    /// Mean round-trip time in milliseconds; none when nothing came back.
    pub rtt_ms: Option<f64>,
}

/// Pings `target` from container `name`.
///
/// # Errors
/// When ping says nothing that can be read.
pub(crate) async fn ping(
    machine: &Machine,
    name: &str,
    target: std::net::Ipv4Addr,
    count: u32,
) -> Result<Ping> {
    // ping ends with 1 when packets are missing; what it prints is the result either way.
    let script = format!("docker exec {name} ping -c {count} -W 10 -i 0.2 {target} || true");
    let said = machine.ssh.run(&script).await?;
    parse_ping(&said).with_context(|| format!("ping of {target} from {}: {said:?}", machine.name()))
}

/// Reads the last lines of busybox's ping.
fn parse_ping(said: &str) -> Option<Ping> {
    let before_percent = said
        .split("% packet loss")
        .next()
        .filter(|before| before.len() < said.len())?;
    let loss_percent = before_percent.rsplit([' ', ',']).next()?.parse().ok()?;
    let rtt_ms = said
        .split("round-trip min/avg/max = ")
        .nth(1)
        .and_then(|times| times.split('/').nth(1))
        .and_then(|mean| mean.parse().ok());
    Some(Ping {
        loss_percent,
        rtt_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_answer_has_a_page() {
        let answer = "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n10.5.1.2\n";
        assert_eq!(page(answer).as_deref(), Some("10.5.1.2"));
        assert_eq!(page(&answer.replace("200", "404")), None);
        assert_eq!(page("HTTP/1.0 200 OK\r\n"), None);
        assert_eq!(page(""), None);
    }

    #[test]
    fn ping_output_is_read() {
        let said = "--- 10.5.2.2 ping statistics ---\n10 packets transmitted, 9 packets received, 10% packet loss\n\
            round-trip min/avg/max = 1.2/3.4/5.6 ms";
        assert_eq!(
            parse_ping(said),
            Some(Ping {
                loss_percent: 10.0,
                rtt_ms: Some(3.4)
            })
        );
        let dead = "3 packets transmitted, 0 packets received, 100% packet loss";
        assert_eq!(
            parse_ping(dead),
            Some(Ping {
                loss_percent: 100.0,
                rtt_ms: None
            })
        );
        assert_eq!(parse_ping("ping: bad address"), None);
    }

    #[test]
    fn dynamic_and_broken_programs_are_refused() {
        assert!(!is_static(&fs::read("/bin/sh").unwrap()));
        assert!(!is_static(b""));
        assert!(!is_static(b"\x7fELF\x02\x01"));
        assert!(!is_static(&[&b"\x7fELF\x02\x01"[..], &[0xff; 60]].concat()));
    }

    #[test]
    fn the_page_is_executable() {
        let root = tempfile::tempdir().unwrap();
        stage(root.path(), Path::new("/bin/sh")).unwrap();
        let mode = fs::metadata(root.path().join("www/cgi-bin/client"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o111, 0o111);
    }
}
