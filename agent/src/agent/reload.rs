//! SIGHUP: the settings are read anew, and what can change while the agent runs takes effect.
//!
//! That is the log level, how etcd is logged in to (passwords and certificates are read again even if no path changed),
//! the firewall, the health endpoints' address, and how often things are looked at. What else changed is named and waits
//! for a restart, because containers, peers or the kernel hang on it. Settings with a mistake change nothing.

mod changes;

use std::net::SocketAddr;

use tracing::{info, warn};

use self::changes::{changes, live};
use super::overlay::Overlay;
use super::{Agent, Tasks};
use crate::base::logging::{self, chain};
use crate::cluster::lease::LeaseStore;
use crate::settings::{self, Settings};
use crate::telemetry::health::Server;

/// Reads the settings from where those that the agent was started with came from.
pub type Load<'a> = Box<dyn Fn() -> Result<Settings, settings::Error> + 'a>;

impl<S: LeaseStore> Agent<'_, S> {
    /// Does what SIGHUP asks for, while the overlay is up.
    pub(super) async fn on_hangup(&mut self, overlay: &mut Overlay, tasks: &mut Tasks) {
        self.service.reloading();
        self.reload().await;
        overlay.set_firewall(&self.settings.firewall);
        let programmed = overlay.program().await;
        // The firewall is not even looked at where the host's own device is missing.
        let firewall_follows = programmed.subnet_file.is_some();
        tasks.programmed_all(programmed);
        self.reloading = true;
        if !firewall_follows {
            self.end_reload(overlay, tasks);
        }
    }

    /// Says that the settings are in effect, if they were read anew and that was not said.
    pub(super) fn end_reload(&mut self, overlay: &Overlay, tasks: &Tasks) {
        if std::mem::take(&mut self.reloading) {
            self.service.ready(&self.status(overlay, tasks));
        }
    }

    /// Reads the settings anew and puts into effect what can be, but for what hangs on the overlay.
    pub(super) async fn reload(&mut self) {
        let loaded = (self.load)();
        let outcome = match loaded {
            Ok(settings) => self.take_over(settings).await,
            Err(error) => Err(chain(&error)),
        };
        let reloads = &mut self.events.reloads;
        reloads.last_failed = outcome.is_err();
        match outcome {
            Ok(()) => reloads.done += 1,
            Err(reason) => {
                reloads.failed += 1;
                let reason = format!("the settings were not reloaded: {reason}");
                warn!("{reason}");
                self.process.settings_rejected = Some(reason);
            }
        }
    }

    async fn take_over(&mut self, new: Settings) -> Result<(), String> {
        // Nothing has changed yet, so that what cannot be used leaves all as it is.
        self.store
            .set_access(&new.etcd)
            .map_err(|error| chain(&error))?;
        // Cannot fail, since the settings were checked.
        logging::set_filter(&new.agent.log).map_err(|error| chain(&error))?;
        let mut effective = live(&self.settings, new.clone());
        effective.health.listen = self.listen(&effective).await;
        // Where nobody can listen at the new address, it did not change.
        let health = effective.health;
        let changes = changes(&self.settings, &Settings { health, ..new });
        let mut pending = Vec::new();
        for change in &changes {
            let (key, old, new) = (change.key, &change.old, &change.new);
            if change.live {
                info!(key, old, new, "a setting changed");
            } else {
                warn!(
                    key,
                    old, new, "a setting changed, which only a restart puts into effect"
                );
                pending.push(key.to_owned());
            }
        }
        info!(
            changed = changes.len() - pending.len(),
            waiting_for_restart = pending.len(),
            "settings reloaded"
        );
        self.process.settings_rejected = None;
        self.process.settings_pending = pending;
        self.settings = effective;
        Ok(())
    }

    /// Moves the health endpoints, if they are wanted elsewhere; says where they are then.
    async fn listen(&mut self, wanted: &Settings) -> Option<SocketAddr> {
        let (old, new) = (self.settings.health.listen, wanted.health.listen);
        if old == new {
            return old;
        }
        // The old address may stand in the way of the new one: all addresses, say, and one of them.
        if let Some(server) = self.server_task.take() {
            server.stop().await;
        }
        let address = new?;
        match Server::bind(address).await {
            Ok(server) => {
                self.server_task = Some(server.start(self.health.clone()));
                info!(%address, "answering /healthz, /readyz and /metrics");
                return Some(address);
            }
            Err(error) => warn!("{}; they stay where they were", chain(&error)),
        }
        let address = old?;
        match Server::bind(address).await {
            Ok(server) => {
                self.server_task = Some(server.start(self.health.clone()));
                Some(address)
            }
            Err(error) => {
                warn!("{}; there are none now", chain(&error));
                None
            }
        }
    }
}
