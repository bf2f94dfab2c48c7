//! What the agent tells the service manager: sd_notify(3).
//!
//! Outside of a service (no `NOTIFY_SOCKET`) all of it does nothing.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;

/// The connection to the service manager.
#[derive(Debug)]
pub struct Service {
    watchdog: Option<Duration>,
    status: Mutex<String>,
}

impl Service {
    /// Takes what the service manager put into the environment. No message is sent.
    pub fn from_environment() -> Self {
        Self {
            watchdog: sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero()),
            status: Mutex::new(String::new()),
        }
    }

    /// Says that the service is up, and what it does now.
    pub fn ready(&self, status: &str) {
        let status = one_line(status);
        send(&[NotifyState::Ready, NotifyState::Status(&status)]);
        self.remember(status);
    }

    /// Says what the service does or waits for. The same text twice running is sent once.
    pub fn status(&self, status: &str) {
        let status = one_line(status);
        if *self.status.lock().unwrap_or_else(PoisonError::into_inner) == status {
            return;
        }
        send(&[NotifyState::Status(&status)]);
        self.remember(status);
    }

    /// Says that the service reads its settings anew; [`Self::ready`] says that it did.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => send(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "failed to read the clock"),
        }
    }

    /// Says that the service is going down.
    pub fn stopping(&self) {
        send(&[NotifyState::Stopping]);
    }

    /// Says that the service is alive; due every [`Self::watchdog_interval`]. Nothing is sent when nobody watches.
    pub fn watchdog(&self) {
        if self.watchdog.is_some() {
            send(&[NotifyState::Watchdog]);
        }
    }

    /// How often [`Self::watchdog`] must be called: half of `WatchdogSec=`, as sd_watchdog_enabled(3) advises. `None`
    /// when the service manager does not watch.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|interval| interval / 2)
    }

    fn remember(&self, status: String) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

/// Leaves the reason for a failure in the status that `systemctl status` shows after the end.
pub fn failed(reason: &str) {
    send(&[NotifyState::Status(&one_line(&format!("failed: {reason}")))]);
}

/// The protocol separates its assignments by line feeds.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(error = %error, "failed to notify the service manager");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;

    use super::*;

    /// Says all there is to say.
    fn as_a_service() {
        let service = Service::from_environment();
        assert_eq!(service.watchdog_interval(), Some(Duration::from_secs(15)));
        service.status("waiting for etcd:\nconnection refused");
        service.status("waiting for etcd:\nconnection refused");
        service.ready("10.5.72.0/24, 2 peers");
        service.status("10.5.72.0/24, 2 peers");
        service.watchdog();
        service.stopping();
        failed("out of subnets");
    }

    #[test]
    fn messages_are_what_the_service_manager_expects() {
        // The environment of a test process is shared by all its threads, so the service is a child: this test again.
        if std::env::var_os("SELVAGE_TEST_SERVICE").is_some() {
            return as_a_service();
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "service::tests::messages_are_what_the_service_manager_expects",
            ])
            .env("SELVAGE_TEST_SERVICE", "1")
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "30000000")
            .env_remove("WATCHDOG_PID")
            .status()
            .unwrap();
        assert!(status.success());
        for expected in [
            "STATUS=waiting for etcd: connection refused\n",
            "READY=1\nSTATUS=10.5.72.0/24, 2 peers\n",
            "WATCHDOG=1\n",
            "STOPPING=1\n",
            "STATUS=failed: out of subnets\n",
        ] {
            let mut message = [0; 256];
            let length = socket.recv(&mut message).unwrap();
            assert_eq!(String::from_utf8_lossy(&message[..length]), expected);
        }
    }
}
