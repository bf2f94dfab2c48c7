//! A client for servers behind a Unix socket: our own agent, or Docker.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The longest answer accepted, in bytes. Docker writes some kilobytes per container.
const MAX_ANSWER: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The socket does not exist or refuses connections.
    Connect(io::Error),
    /// The connection broke or timed out, or the answer is not HTTP.
    Exchange(io::Error),
}

/// The status code and the body of the answer to `GET target`.
pub(crate) async fn get(
    path: &Path,
    target: &str,
    deadline: Duration,
) -> Result<(u16, Vec<u8>), Trouble> {
    let stream = UnixStream::connect(path).await;
    let mut stream = stream.map_err(Trouble::Connect)?;
    // HTTP/1.0: no chunked encoding, and the answer ends with the connection.
    let request = format!("GET {target} HTTP/1.0\r\n\r\n");
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        (&mut stream)
            .take(MAX_ANSWER)
            .read_to_end(&mut answer)
            .await
    };
    timeout(deadline, exchange)
        .await
        .map_err(io::Error::from)
        .flatten()
        .map_err(Trouble::Exchange)?;
    split(&answer).ok_or_else(|| Trouble::Exchange(io::ErrorKind::InvalidData.into()))
}

/// The status code and the body of an answer.
fn split(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    const END: &[u8] = b"\r\n\r\n";
    let end = answer.windows(END.len()).position(|part| part == END)?;
    let (head, body) = answer.split_at_checked(end)?;
    let head = std::str::from_utf8(head).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.get(END.len()..)?.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn an_answer_is_split_and_rubbish_is_refused() {
        let answer = b"HTTP/1.1 404 Not Found\r\nA: b\r\n\r\nno\r\n\r\n";
        assert_eq!(split(answer), Some((404, b"no\r\n\r\n".to_vec())));
        for rubbish in ["", "HTTP/1.1 200 OK\r\n", "\r\n\r\n", "HTTP/1.1 x\r\n\r\n"] {
            assert_eq!(split(rubbish.as_bytes()), None, "{rubbish:?}");
        }
    }
}
