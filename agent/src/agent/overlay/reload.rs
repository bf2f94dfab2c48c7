//! The overlay's part in reading the settings anew.

use super::Overlay;
use crate::settings;

impl Overlay {
    /// Takes over other settings for the firewall. Nothing is programmed yet.
    pub(crate) fn set_firewall(&mut self, settings: &settings::Firewall) {
        self.firewall_settings = settings.clone();
    }
}
