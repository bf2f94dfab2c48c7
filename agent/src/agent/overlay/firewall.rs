//! The overlay's part in the firewall, which is worked on beside the loop.

use std::time::Duration;

use tracing::info;

use super::Overlay;
use super::leaving::Leaving;
use crate::base::net::InterfaceName;
use crate::host::firewall::{Error, Mode, Outcome, Rules};
use crate::telemetry::status;

impl Overlay {
    /// How often the firewall is to be looked at, though nothing was heard about it.
    pub(crate) fn firewall_resync(&self) -> Duration {
        self.firewall_settings.resync
    }

    /// Has the firewall's rules put back when they are not what they should be; [`Self::firewall_passed`] says when.
    pub(crate) fn program_firewall(&mut self) {
        let rules = self.rules();
        self.firewall.order(rules, self.firewall_settings.mode);
    }

    /// The rules to be left to whoever comes next, if they are where a flannel does not look.
    pub(crate) fn rules_to_hand_over(&self) -> Option<Rules> {
        let in_nftables = self.firewall_mode == Some(Mode::Nftables);
        in_nftables.then(|| self.rules())
    }

    fn rules(&self) -> Rules {
        let (v4, v6) = self.leased();
        Rules {
            v4,
            v6,
            masquerade: self.firewall_settings.masquerade,
            forward: self.firewall_settings.forward,
            random_fully: self.firewall_settings.random_fully,
            exclude: self.firewall_settings.masquerade_exclude.clone(),
            outside: self.outside(),
            devices: self.overlay_devices(),
            prefer_nftables: self.config.enable_nftables,
        }
    }

    /// The overlay's devices, also those of back ends that are still needed.
    fn overlay_devices(&self) -> Vec<InterfaceName> {
        let mut devices = self.backend.scope().links;
        for link in self.leaving.iter().flat_map(Leaving::links) {
            if !devices.contains(&link) {
                devices.push(link);
            }
        }
        devices
    }

    /// Waits for the end of a pass over the firewall. Cancel-safe.
    pub(crate) async fn firewall_passed(&self) -> Outcome {
        self.firewall.passed().await
    }

    /// Takes in what became of a pass over the firewall; `None` if another one follows at once.
    pub(crate) fn take_firewall(&mut self, outcome: Outcome) -> Option<Result<(), Error>> {
        let is_last = self.firewall.is_last(&outcome);
        self.firewall_mode = outcome.effective.or(self.firewall_mode);
        if let Ok(true) = outcome.result {
            self.journal.firewall = (self.journal.firewall.0 + 1, Some(status::now()));
            info!("firewall programmed");
        }
        is_last.then(|| outcome.result.map(drop))
    }
}
