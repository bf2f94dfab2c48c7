//! Files that a guest fetches by HTTP, in its initrd as well.
//!
//! QEMU's user-mode network starts this program anew for each connection to port 80 of [`ADDRESS`] and hands it the
//! connection as standard input and output. So no port of the host is open, and a guest that is cut off from the rest
//! of the world still reaches what is meant for it.

use std::{
    fs,
    io::{BufRead, Write},
    path::Path,
};

use anyhow::{Context as _, Result};

/// Where guests find the files: an address of the user-mode network that QEMU itself does not use.
pub(crate) const ADDRESS: &str = "10.0.2.4";

/// Puts `files` below `dir`, and gives the command that answers for them; none when there are no files.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn prepare(dir: &Path, files: &[(String, Vec<u8>)]) -> Result<Option<String>> {
    if files.is_empty() {
        return Ok(None);
    }
    fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
    for (name, contents) in files {
        let path = dir.join(name);
        fs::write(&path, contents)
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    command(dir).map(Some)
}

/// The command that answers for the files below `dir`.
///
/// # Errors
/// When the directory is not there.
pub(crate) fn command(dir: &Path) -> Result<String> {
    let program = std::env::current_exe().context("failed to find this program")?;
    let dir = fs::canonicalize(dir).with_context(|| format!("failed to find {}", dir.display()))?;
    // QEMU splits the command as a shell would.
    Ok(format!("'{}' serve '{}'", program.display(), dir.display()))
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
        assert!(command.ends_with("served'"), "{command}");
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
    fn nothing_to_serve_needs_no_command() {
        assert_eq!(prepare(Path::new("/nonexistent"), &[]).unwrap(), None);
    }
}
