//! The overlay's tunnels of IPsec, which an IKE daemon makes.

use std::sync::Arc;
use std::time::Duration;

use super::Overlay;
use crate::host::ike::{Tunnel, TunnelState, ViciError, Worker};
use crate::plan::state::{Key, Object};
use crate::telemetry::metrics::Tally;

/// How long the nodes may take to negotiate a tunnel until its lack is reported.
const PATIENCE: Duration = Duration::from_secs(10);

impl Overlay {
    fn ike(&self) -> Option<&Worker> {
        self.reconciler.executor().ike()
    }

    /// Waits until something else is wrong with the IKE daemon, or nothing more; forever if there is none. Cancel-safe.
    pub(crate) async fn ike_changed(&self) {
        match self.ike() {
            Some(ike) => ike.changed().await,
            None => std::future::pending().await,
        }
    }

    /// What is wrong with the IKE daemon.
    pub(crate) fn ike_trouble(&self) -> Option<Arc<ViciError>> {
        self.ike()?.report().trouble.clone()
    }

    /// The tunnel to a peer that has these objects, and why there is none, if that lasts.
    pub(super) fn tunnel(
        &self,
        objects: &[(Key, Object)],
    ) -> (Option<Tunnel>, Option<&'static str>) {
        let address = objects.iter().find_map(|(key, _)| match key {
            Key::Connection(address) => Some(address),
            _ => None,
        });
        let Some((address, ike)) = address.zip(self.ike()) else {
            return (None, None);
        };
        let report = ike.report();
        let tunnel = report.tunnels.get(address).copied();
        let since = report.without.get(address);
        let why = since
            .filter(|since| since.elapsed() >= PATIENCE)
            .and_then(|_| tunnel.and_then(|tunnel| tunnel.state.lack()));
        (tunnel, why)
    }

    /// The number of tunnels by state; `None` without IPsec.
    pub(crate) fn count_tunnels(&self) -> Option<Tally> {
        let report = self.ike()?.report();
        let states = TunnelState::ALL.iter();
        let mut tally: Tally = states.map(|state| (state.as_str(), 0)).collect();
        for tunnel in report.tunnels.values() {
            *tally.entry(tunnel.state.as_str()).or_default() += 1;
        }
        Some(tally)
    }
}
