//! Files that a guest fetches by HTTP, in its initrd as well.
//!
//! QEMU's user-mode network starts this program anew for each connection to port 80 of [`ADDRESS`] and hands it the
//! connection as standard input and output. So no port of the host is open, and a guest that is cut off from the rest
//! of the world still reaches what is meant for it.
//!
//! One port speaks HTTP and HTTPS, and is a proxy as well: what is asked for by the address of another server comes
//! from the same files.

pub(crate) mod demands;
mod http;
mod notes;
pub(crate) mod tls;

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

pub(crate) use notes::{Asked, Notes};

use demands::{Answer, Demands};
use http::{Request, Stream, Wire};

/// Where guests find the files: an address of the user-mode network that QEMU itself does not use.
pub(crate) const ADDRESS: &str = "10.0.2.4";

/// Where the machines of a cloud find its metadata; on their network this takes the place of [`ADDRESS`].
pub(crate) const METADATA_ADDRESS: &str = "169.254.169.254";

/// Azure's host, as each of its machines sees it ("What is IP address 168.63.129.16?").
pub(crate) const AZURE_HOST: &str = "168.63.129.16";

/// Puts `files` below `dir`, and gives the command that answers for them; none when there are no files. What is asked is
/// noted in [`notes_of`] that directory.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn prepare(dir: &Path, files: &[(String, Vec<u8>)]) -> Result<Option<String>> {
    if files.is_empty() {
        return Ok(None);
    }
    write_all(dir, files)?;
    let notes = notes_of(dir);
    fs::create_dir_all(&notes).with_context(|| format!("failed to create {}", notes.display()))?;
    command(dir, Some(&notes)).map(Some)
}

/// The directory of the [`Notes`] on what [`prepare`] has put into `dir`.
pub(crate) fn notes_of(dir: &Path) -> PathBuf {
    dir.with_extension("notes")
}

/// The option of QEMU's user-mode network by which `command` answers a guest's connections to port 80 of `address`.
pub(crate) fn option(address: &str, command: &str) -> String {
    // QEMU splits options at commas; a comma in a value is doubled.
    let command = command.replace(',', ",,");
    format!("guestfwd=tcp:{address}:80-cmd:{command}")
}

/// Puts `files` below `dir`.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn write_all(dir: &Path, files: &[(String, Vec<u8>)]) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
    for (name, contents) in files {
        let path = dir.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("failed to create {}", parent.display()))?;
        }
        fs::write(&path, contents)
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

/// The command that answers for the files in `dir`; `notes` is a directory for [`Notes`].
///
/// # Errors
/// When a directory is not there.
pub(crate) fn command(dir: &Path, notes: Option<&Path>) -> Result<String> {
    let whole = |dir: &Path| {
        fs::canonicalize(dir).with_context(|| format!("failed to find {}", dir.display()))
    };
    let program = std::env::current_exe().context("failed to find this program")?;
    // QEMU splits the command as a shell would.
    let mut command = format!("'{}' serve '{}'", program.display(), whole(dir)?.display());
    if let Some(notes) = notes {
        command += &format!(" --notes '{}'", whole(notes)?.display());
    }
    Ok(command)
}

/// What answers a connection.
#[derive(Debug)]
pub(crate) struct Server {
    /// Directory of the files.
    pub files: PathBuf,
    /// Where requests are noted, and what else [`Notes`] can do.
    pub notes: Option<Notes>,
}

/// A file that is there.
struct Found {
    file: fs::File,
    length: u64,
    tag: String,
}

impl Server {
    /// Answers the one request that the connection brings.
    ///
    /// # Errors
    /// When the connection ends too early.
    pub(crate) fn answer(
        &self,
        input: impl std::io::BufRead,
        output: impl std::io::Write,
    ) -> Result<()> {
        self.serve(&mut Wire { input, output }, false)
    }

    fn serve(&self, stream: &mut dyn Stream, tls: bool) -> Result<()> {
        if !tls && http::is_tls(stream)? {
            let notes = self.notes.as_ref().context("no certificate for TLS")?;
            let identity = notes.0.join(tls::IDENTITY);
            return tls::within(&identity, stream, |inner| self.serve(inner, true));
        }
        let request = Request::read(stream)?;
        if request.method == "CONNECT" && !tls {
            self.note(&request, tls, 200)?;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\n\r\n")
                .and_then(|()| stream.flush())
                .context("failed to answer")?;
            return self.serve(stream, false);
        }
        self.respond(&request, stream, tls)
    }

    fn respond(&self, request: &Request, stream: &mut dyn Stream, tls: bool) -> Result<()> {
        let demands = Demands::of(&self.files)?;
        if let Some(answer) = demands.answer(request) {
            self.note(request, tls, answer.status)?;
            return send(stream, &answer);
        }
        let found = request.path().and_then(|path| self.open(path));
        let Some(mut found) = found else {
            self.note(request, tls, 404)?;
            return send(stream, &Answer::empty(404));
        };
        let from = request
            .from()
            .filter(|from| *from < found.length && request.is_for_version(&found.tag));
        let (first, status) = match from {
            Some(first) => (first, "206 Partial Content"),
            None => (0, "200 OK"),
        };
        self.note(request, tls, if from.is_some() { 206 } else { 200 })?;
        let length = found.length - first;
        let mut head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nETag: {}\r\n",
            found.tag
        );
        if from.is_some() {
            let (last, all) = (found.length - 1, found.length);
            head += &format!("Content-Range: bytes {first}-{last}/{all}\r\n");
        }
        head += "Connection: close\r\n\r\n";
        let cut = (self.notes.as_ref()).and_then(|notes| notes.take_cut(request.path()?));
        let sent = cut.map_or(length, |cut| cut.min(length));
        stream
            .write_all(head.as_bytes())
            .and_then(|()| found.file.seek(SeekFrom::Start(first)))
            .and_then(|_| std::io::copy(&mut found.file.take(sent), stream))
            .and_then(|_| stream.flush())
            .context("failed to answer")
    }

    /// A file below the directory, and nothing else: no path leads out of it, and hidden files are not served.
    fn open(&self, path: &str) -> Option<Found> {
        // A list, as metadata services have them.
        let list = format!("{path}index");
        let path = if path.ends_with('/') { &list } else { path };
        let is_good = |part: &str| !part.is_empty() && !part.starts_with('.');
        if !path.split('/').all(is_good) {
            return None;
        }
        let file = fs::File::open(self.files.join(path)).ok()?;
        let metadata = file.metadata().ok().filter(fs::Metadata::is_file)?;
        let (length, at) = (metadata.len(), metadata.mtime_nsec());
        let tag = format!("\"{length}-{}.{at}\"", metadata.mtime());
        Some(Found { file, length, tag })
    }

    fn note(&self, request: &Request, tls: bool, status: u16) -> Result<()> {
        let Some(notes) = &self.notes else {
            return Ok(());
        };
        notes.add(&Asked {
            method: request.method.clone(),
            target: request.target.clone(),
            from: request.from(),
            proxy_authorization: request.header("proxy-authorization").map(str::to_owned),
            body: request.body.clone(),
            tls,
            status,
        })
    }
}

/// Answers without a file.
fn send(stream: &mut dyn Stream, answer: &Answer) -> Result<()> {
    let Answer {
        status,
        header,
        body,
    } = answer;
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        _ => "Forbidden",
    };
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status} {reason}\r\n{header}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    (stream.write_all(answer.as_bytes()))
        .and_then(|()| stream.flush())
        .context("failed to answer")
}

#[cfg(test)]
mod tests;
