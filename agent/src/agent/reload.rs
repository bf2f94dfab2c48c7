//! SIGHUP: reloads the settings and applies those that can change at run time.
//!
//! These are the log level, the login to etcd (passwords and certificates are read again even if no path changed), the
//! firewall, the health endpoints' address, and the resync intervals. Other changes are listed and wait for a restart,
//! because containers, peers or kernel state depend on them. Invalid settings change nothing.

use std::net::SocketAddr;

use tracing::{info, warn};

use super::overlay::Overlay;
use super::{Agent, Tasks};
use crate::base::logging::{self, chain};
use crate::cluster::lease::LeaseStore;
use crate::settings::{self, Settings};
use crate::telemetry::health::Server;

/// Reads the settings from the sources that the agent was started with.
pub type Load<'a> = Box<dyn Fn() -> Result<Settings, settings::Error> + 'a>;

impl<S: LeaseStore> Agent<'_, S> {
    /// Handles SIGHUP while the overlay is up.
    pub(super) async fn on_hangup(&mut self, overlay: &mut Overlay, tasks: &mut Tasks) {
        self.service.reloading();
        self.reload().await;
        overlay.set_firewall(&self.settings.firewall);
        let programmed = overlay.program().await;
        // The firewall is not programmed while the host's own device is missing.
        let firewall_follows = programmed.subnet_file.is_some();
        tasks.programmed_all(programmed);
        self.reloading = true;
        if !firewall_follows {
            self.end_reload(overlay, tasks);
        }
    }

    /// Reports the end of a reload, unless that was done already.
    pub(super) fn end_reload(&mut self, overlay: &Overlay, tasks: &Tasks) {
        if std::mem::take(&mut self.reloading) {
            self.service.ready(&self.status(overlay, tasks));
        }
    }

    /// Reloads the settings and applies what can change, except what depends on the overlay.
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
        // Nothing has changed yet, so an unusable setting leaves everything as it is.
        self.store
            .set_access(&new.etcd)
            .map_err(|error| chain(&error))?;
        // Cannot fail: the settings were validated.
        logging::set_filter(&new.agent.log).map_err(|error| chain(&error))?;
        let mut effective = new.clone().without_restart(&self.settings);
        let listen = self.listen(&effective).await;
        if listen != effective.health.listen() {
            // The new address cannot be bound, so it did not change.
            effective.health = self.settings.health.clone();
            effective.health.port = listen.map_or(0, |address| address.port());
        }
        let health = effective.health.clone();
        let changes = self.settings.changes(&Settings { health, ..new });
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

    /// Moves the health endpoints to another address if configured; returns where they are then.
    async fn listen(&mut self, wanted: &Settings) -> Option<SocketAddr> {
        let (old, new) = (self.settings.health.listen(), wanted.health.listen());
        if old == new {
            return old;
        }
        // Close the old address first: it may conflict with the new one, for example all addresses and one of them.
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
