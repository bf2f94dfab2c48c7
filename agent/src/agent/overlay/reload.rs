//! The overlay's part in a reload of the settings.

use super::Overlay;
use crate::settings;

impl Overlay {
    /// Sets new firewall settings. Programs nothing yet.
    pub(crate) fn set_firewall(&mut self, settings: &settings::Firewall) {
        self.firewall_settings = settings.clone();
    }
}
