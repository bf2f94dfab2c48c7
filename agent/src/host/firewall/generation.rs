//! The generation of the nftables ruleset. The kernel increments it with every change (`nf_tables_commit`), so one
//! netlink message shows that nothing changed.

use std::io;
use std::time::Duration;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::time::timeout;

use crate::host::netlink::attributes;

/// `NFNL_SUBSYS_NFTABLES` with `NFT_MSG_GETGEN` and `NFT_MSG_NEWGEN` (linux/netfilter/nf_tables.h).
const GET_GENERATION: u16 = 10 << 8 | 16;
const NEW_GENERATION: u16 = 10 << 8 | 15;

/// `NLM_F_REQUEST` (linux/netlink.h).
const REQUEST: u16 = 1;

/// `struct nlmsghdr` and `struct nfgenmsg`.
const REQUEST_LENGTH: u32 = 16 + 4;

/// `NFTA_GEN_ID` (linux/netfilter/nf_tables.h), a big-endian u32.
const ID: u16 = 1;

/// The kernel answers at once; the timeout only protects the agent from an unexpected kernel.
const DEADLINE: Duration = Duration::from_secs(1);

/// A socket that reads the generation in the network namespace it was opened in.
pub(super) struct Generation(TokioSocket);

impl Generation {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Fails if the kernel has no nftables.
    pub(super) async fn read(&mut self) -> io::Result<u32> {
        let mut request = Vec::with_capacity(20);
        request.extend(REQUEST_LENGTH.to_ne_bytes());
        request.extend(GET_GENERATION.to_ne_bytes());
        request.extend(REQUEST.to_ne_bytes());
        request.extend([0; 8]);
        request.extend([0; 4]);
        let kernel = SocketAddr::new(0, 0);
        let asked = async {
            self.0.send_to(&request, &kernel).await?;
            let (answer, _) = self.0.recv_from_full().await?;
            io::Result::Ok(answer)
        };
        let answer = timeout(DEADLINE, asked)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        parse(&answer).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

/// The generation in the kernel's answer. Its other attributes name the process that made the last change.
fn parse(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    if kind != NEW_GENERATION {
        return None;
    }
    let (_, id) = attributes(answer.get(20..)?).find(|(kind, _)| *kind == ID)?;
    Some(u32::from_be_bytes(id.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_rubbish_is_refused() {
        let mut answer = Vec::new();
        answer.extend(28_u32.to_ne_bytes());
        answer.extend(NEW_GENERATION.to_ne_bytes());
        answer.extend([0; 14]);
        answer.extend(8_u16.to_ne_bytes());
        answer.extend(ID.to_ne_bytes());
        answer.extend(77_u32.to_be_bytes());
        assert_eq!(parse(&answer), Some(77));
        for length in 0..answer.len() {
            assert_eq!(parse(&answer[..length]), None, "cut to {length} bytes");
        }
        for byte in 0..answer.len() {
            let mut damaged = answer.clone();
            damaged[byte] ^= 0xff;
            let _ = parse(&damaged);
        }
    }
}
