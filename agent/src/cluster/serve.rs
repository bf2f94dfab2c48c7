//! `selvage serve`: keeps leases in etcd for hosts that cannot reach it; flannel's server mode.
//!
//! The interface is that of [`crate::cluster::lease::rest`]. It serves the network at the etcd prefix and those below it.
//! The server keeps no essential state: leases are written to etcd with the same compared transactions as a node's own,
//! and reads are answered from a watch. So there may be several servers for one cluster, beside nodes that use etcd
//! directly, real flannels included, and a server may be stopped at any time: its clients keep running and use the next
//! one.
//!
//! Clients are not trusted. A client may renew and give back only what it acquired: the lease contains its owner ID,
//! and with client certificates the owner ID is bound to the certificate's subject. A lease without an owner ID, such
//! as a real flannel's or a reservation, belongs to any admitted client that sends its public address.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use self::connections::Tls;
pub use self::listener::ListenError;
use self::networks::Networks;
use self::site::LeaseService;
use crate::base::service::Service;
use crate::cluster::lease::SettingsError;
use crate::cluster::lease::rest::tls::{Files, TlsError};
use crate::settings::Settings;

mod answer;
mod connections;
mod listener;
mod networks;
mod request;
mod site;
mod table;

/// The longest request body accepted, in bytes: that of the longest lease, with some room.
const LONGEST_BODY: usize = 80 * 1024;

/// The interval between status updates.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// How long writes in flight to etcd may take when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the server ended by itself.
#[derive(Debug, Error)]
pub enum Error {
    /// No listen address is configured.
    #[error("remote.listen is not set: expected HOST:PORT or fd://, for example --listen=:8889")]
    Nowhere,
    /// Without client certificates any host would be admitted.
    #[error(
        "remote.cafile is not set, so any host that reaches this address could take subnets and read all leases. Set \
         remote.cafile, remote.certfile and remote.keyfile, or remote.insecure = true (--insecure) if you trust the whole \
         network"
    )]
    Insecure,
    /// The certificates cannot be used.
    #[error("invalid TLS settings")]
    Tls(#[from] TlsError),
    /// The settings for etcd are wrong.
    #[error("invalid etcd settings")]
    Etcd(#[from] SettingsError),
    /// Cannot listen on the address.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Cannot install a signal handler.
    #[error("failed to install the handler for {signal}")]
    Signal {
        /// Which.
        signal: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Whether only a changed configuration helps.
    pub fn is_bad_configuration(&self) -> bool {
        matches!(
            self,
            Self::Nowhere | Self::Insecure | Self::Tls(_) | Self::Etcd(_)
        )
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// What makes serving impossible. An unreachable etcd is retried.
pub async fn run(settings: &Settings) -> Result<(), Error> {
    let failed = |signal| move |source| Error::Signal { signal, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed("SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("SIGINT"))?;
    let remote = &settings.remote;
    let listen = remote.listen.as_ref().ok_or(Error::Nowhere)?;
    if remote.cafile.is_none() && !remote.insecure {
        return Err(Error::Insecure);
    }
    let tls = Tls::new(Files {
        cafile: remote.cafile.clone(),
        certfile: remote.certfile.clone(),
        keyfile: remote.keyfile.clone(),
    })?;
    match (tls.is_on(), &remote.cafile) {
        (false, _) => {
            warn!("serving in plain text: any host that reaches this address can take leases")
        }
        (true, None) => warn!("serving without client certificates: any client can take leases"),
        (true, Some(_)) => {}
    }
    let site = Arc::new(LeaseService::new(Networks::new(settings.etcd.clone())?));
    let (listener, address) = listener::open(listen).await?;
    info!(%address, tls = tls.is_on(), "serving leases");
    let service = Service::from_environment();
    service.ready(&status(&site));
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let beating = async {
        loop {
            heartbeat.tick().await;
            service.status(&status(&site));
        }
    };
    tokio::select! {
        () = connections::serve(listener, tls, Arc::clone(&site)) => {}
        () = beating => {}
        // Requests are handled in tasks, so this loop is always responsive.
        () = service.idle() => {}
        () = service.feed_watchdog() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    service.stopping();
    // Connections are closed, but writes in flight are completed.
    if timeout(STOP_TIMEOUT, site.finish()).await.is_err() {
        warn!("stopping with unfinished requests: etcd did not answer in time");
    }
    info!("stopping; leases stay valid, and clients keep running without a server");
    Ok(())
}

/// One line for `systemctl status`.
fn status(site: &LeaseService) -> String {
    let (networks, leases) = site.networks().count();
    let mut status = format!("serving networks: {networks}, leases: {leases}");
    if let Some(trouble) = site.networks().trouble() {
        status.push_str("; ");
        status.push_str(&trouble);
    }
    status
}
