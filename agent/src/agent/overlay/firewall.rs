//! The overlay's part of the firewall, which is programmed in a task beside the loop.

use std::time::Duration;

use ipnet::IpNet;
use tracing::info;

use super::Overlay;
use super::former_backend::FormerBackend;
use crate::base::net::{InterfaceName, Leased};
use crate::cluster::network_config::Families;
use crate::host::firewall::{Error, Mode, Outcome, Rules};
use crate::host::subnet_file;
use crate::host::underlay;
use crate::settings::{self, Settings};
use crate::telemetry::status;

/// The rules of an earlier run, as far as `subnet.env` and the settings show them; `None` if there was none. The
/// overlay device is unknown, which matters only to hosts inside the network: packets with the underlay's own source
/// address are not masqueraded until the next agent or flannel starts.
pub(crate) async fn rules_of_earlier_run(settings: &Settings) -> Option<Rules> {
    let previous = subnet_file::read_previous(&settings.files.subnet_file).ok()?;
    let v4 = previous.network.zip(previous.subnet);
    let v6 = previous.network_v6.zip(previous.subnet_v6);
    if (v4, v6) == (None, None) {
        return None;
    }
    let families = Families {
        v4: v4.map(|(network, _)| network),
        v6: v6.map(|(network, _)| network),
    };
    let mut outside = Vec::new();
    if let Ok((_, host)) = underlay::survey(&settings.underlay, families, None).await {
        let v4 = v4.map(|(network, own)| (IpNet::from(network), IpNet::from(own)));
        let v6 = v6.map(|(network, own)| (IpNet::from(network), IpNet::from(own)));
        for (network, own) in v4.into_iter().chain(v6) {
            outside.extend(host.outside(network, own, |_| true));
        }
    }
    Some(Rules {
        v4: v4.map(|(network, subnet)| Leased { network, subnet }),
        v6: v6.map(|(network, subnet)| Leased { network, subnet }),
        masquerade: settings.firewall.masquerade,
        forward: settings.firewall.forward,
        random_fully: settings.firewall.random_fully,
        exclude: settings.firewall.masquerade_exclude.clone(),
        outside,
        devices: Vec::new(),
        prefer_nftables: true,
    })
}

impl Overlay {
    /// Sets new firewall settings. Programs nothing yet.
    pub(crate) fn set_firewall(&mut self, settings: &settings::Firewall) {
        self.firewall_settings = settings.clone();
    }

    /// How often to check the firewall even without events.
    pub(crate) fn firewall_resync(&self) -> Duration {
        self.firewall_settings.resync
    }

    /// Starts a pass that restores the firewall's rules if needed; [`Self::firewall_passed`] returns when it has ended.
    pub(crate) fn program_firewall(&mut self) {
        let rules = self.rules();
        self.firewall.submit(rules, self.firewall_settings.mode);
    }

    /// The rules to leave to the next agent, if they are where a flannel does not look.
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

    /// The overlay devices, including those of former backends still needed.
    fn overlay_devices(&self) -> Vec<InterfaceName> {
        let mut devices = self.backend.scope().links;
        for link in self.former_backends.iter().flat_map(FormerBackend::links) {
            if !devices.contains(&link) {
                devices.push(link);
            }
        }
        devices
    }

    /// Waits for the end of a pass over the firewall. Cancel-safe.
    pub(crate) async fn firewall_passed(&self) -> Outcome {
        self.firewall.outcome().await
    }

    /// Records the result of a pass over the firewall; `None` if another one follows at once.
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
