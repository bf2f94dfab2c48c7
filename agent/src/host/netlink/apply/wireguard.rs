//! Changes of WireGuard devices and peers, which use their own socket.

use super::{BATCH, Change, ChangeError, Kernel, KernelError, Work};
use crate::base::net::InterfaceName;
use crate::plan::state::{Link, LinkKind, Object, Wireguard, WireguardPeer};
use crate::plan::wireguard_key::PublicKey;

/// A peer to start a session with.
#[derive(Debug)]
pub(crate) struct HandshakeRequest {
    /// Its device.
    pub(crate) link: InterfaceName,
    /// Its public key.
    pub(crate) peer: PublicKey,
    /// Its unchanged state in the kernel.
    pub(crate) want: WireguardPeer,
    /// Whether an earlier handshake initiation got no answer.
    pub(crate) unanswered: bool,
}

impl Kernel {
    /// Starts a session with peers that have none. Returns whether the kernel refused a request, so that a peer may now
    /// be missing.
    pub(crate) async fn start_handshakes(
        &mut self,
        requests: &[HandshakeRequest],
    ) -> Result<bool, KernelError> {
        let mut refused = false;
        // Each request is at most four messages.
        for requests in requests.chunks(BATCH / 4) {
            let mut changes = Vec::with_capacity(BATCH);
            for request in requests {
                let Some(&device) = self.indices.get(&request.link) else {
                    continue;
                };
                changes.extend(self.wireguard.start_handshake(device, request));
            }
            let outcomes = self.wireguard.batch(changes).await?;
            refused |= outcomes.iter().any(Result::is_err);
        }
        Ok(refused)
    }

    /// Queues a peer's change after everything queued before.
    pub(super) async fn queue_peer(
        &mut self,
        work: &mut Work<'_>,
        index: usize,
        key: &PublicKey,
        change: &Change,
    ) -> Result<(), KernelError> {
        if !work.queue.is_empty() || work.peers.len() >= BATCH {
            self.flush(work).await?;
        }
        let device = match self.device_of(work, change).await? {
            Ok(Some(device)) => device,
            Ok(None) => return Ok(()),
            Err(error) => {
                work.fail(index, error);
                return Ok(());
            }
        };
        let encoded = match change {
            Change::Del { .. } => self.wireguard.delete_peer(device, key).await?,
            Change::Set { object, was, .. } => {
                let Object::WireguardPeer(want) = object else {
                    return Ok(());
                };
                let was = match was {
                    Some(Object::WireguardPeer(was)) => Some(&**was),
                    _ => None,
                };
                self.wireguard.set_peer(device, key, was, want).await?
            }
        };
        match encoded {
            Ok(encoded) => work.peers.push((index, encoded)),
            Err(refused) => work.fail(index, refused.into()),
        }
        Ok(())
    }

    /// Sends the queued peer changes and records the results.
    pub(super) async fn flush_peers(&mut self, work: &mut Work<'_>) -> Result<(), KernelError> {
        if work.peers.is_empty() {
            return Ok(());
        }
        let (indices, changes): (Vec<_>, Vec<_>) = work.peers.drain(..).unzip();
        let outcomes = self.wireguard.batch(changes).await?;
        for (index, outcome) in indices.into_iter().zip(outcomes) {
            if let Err(refused) = outcome {
                self.note_refusal(work, index, refused);
            }
        }
        Ok(())
    }

    /// Sets the options of a WireGuard device that differ; does nothing for other devices.
    pub(super) async fn set_wireguard(
        &mut self,
        index: u32,
        was: &Wireguard,
        want: &Link,
    ) -> Result<Result<(), ChangeError>, KernelError> {
        let LinkKind::Wireguard(want) = &want.kind else {
            return Ok(Ok(()));
        };
        let outcome = self.wireguard.set_device(index, was, want).await?;
        Ok(outcome.map_err(ChangeError::from))
    }
}
