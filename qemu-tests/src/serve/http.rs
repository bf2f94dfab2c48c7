//! The HTTP that [`super`] needs: one request of a connection.

use std::io::{self, BufRead, Read, Write};

use anyhow::{Context as _, Result};

/// What every TLS connection begins with: the type of a handshake record (RFC 8446 §5.1). No method of HTTP does.
const HANDSHAKE: u8 = 0x16;

/// A connection.
pub(super) trait Stream: BufRead + Write {}

impl<T: BufRead + Write> Stream for T {}

/// A connection of two halves.
pub(super) struct Wire<R, W> {
    pub(super) input: R,
    pub(super) output: W,
}

impl<R: Read, W> Read for Wire<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.read(buffer)
    }
}

impl<R: BufRead, W> BufRead for Wire<R, W> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.input.consume(amount);
    }
}

impl<R, W: Write> Write for Wire<R, W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.output.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Whether the client begins with a TLS handshake. Takes nothing from the connection.
pub(super) fn is_tls(stream: &mut dyn Stream) -> Result<bool> {
    let begin = stream.fill_buf().context("failed to read a request")?;
    Ok(begin.first() == Some(&HANDSHAKE))
}

/// The largest body that is read, in bytes: what a machine reports to its platform has some hundred.
const BODY_MAX: u64 = 1 << 20;

/// A request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Request {
    /// Reads all of it: a client may not like an answer before its end.
    pub(super) fn read(stream: &mut dyn Stream) -> Result<Self> {
        let mut line = || -> Result<String> {
            let mut line = String::new();
            (stream.read_line(&mut line)).context("failed to read a request")?;
            Ok(line.trim_end().to_owned())
        };
        let first = line()?;
        let mut words = first.split(' ').map(str::to_owned);
        let mut request = Self {
            method: words.next().unwrap_or_default(),
            target: words.next().unwrap_or_default(),
            headers: Vec::new(),
            body: String::new(),
        };
        loop {
            let line = line()?;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':') {
                let name = name.trim().to_ascii_lowercase();
                request.headers.push((name, value.trim().to_owned()));
            }
        }
        let length = request.header("content-length");
        let length = length.and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = Vec::new();
        (stream.take(BODY_MAX.min(length)).read_to_end(&mut body))
            .context("failed to read what is sent with a request")?;
        request.body = String::from_utf8_lossy(&body).into_owned();
        Ok(request)
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(other, _)| other == name)
            .map(|(_, value)| value.as_str())
    }

    /// The path without the slash before it, also where a proxy is told the whole address; none unless it is asked for.
    pub(super) fn path(&self) -> Option<&str> {
        let target = match self.target.strip_prefix("http://") {
            Some(rest) => rest.split_once('/')?.1,
            None => self.target.strip_prefix('/')?,
        };
        (self.method == "GET").then_some(target)
    }

    /// The first byte that is asked for: `Range: bytes=FIRST-`.
    pub(super) fn from(&self) -> Option<u64> {
        let range = self.header("range")?;
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    }

    /// Whether a part of this version of the file is what the client wants (`If-Range`).
    pub(super) fn is_for_version(&self, tag: &str) -> bool {
        self.header("if-range").is_none_or(|wanted| wanted == tag)
    }
}
