//! Messages to the service manager: sd_notify(3).
//!
//! Outside of a service (no `NOTIFY_SOCKET`) these do nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;

/// The number of steps that the process has completed.
static STEPS: AtomicU64 = AtomicU64::new(0);

/// Records a step of a long operation, so that the service counts as alive while its loop is busy.
pub(crate) fn step() {
    STEPS.fetch_add(1, Ordering::Relaxed);
}

/// The connection to the service manager.
#[derive(Debug)]
pub struct Service {
    watchdog: Option<Duration>,
    status: Mutex<String>,
    /// Whether the loop is idle.
    idle: AtomicBool,
}

impl Service {
    /// Reads the service manager's environment variables. Sends no message.
    pub fn from_environment() -> Self {
        Self {
            watchdog: sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero()),
            status: Mutex::new(String::new()),
            idle: AtomicBool::new(false),
        }
    }

    /// Reports that the service is up, with a status text.
    pub fn ready(&self, status: &str) {
        let status = one_line(status);
        send(&[NotifyState::Ready, NotifyState::Status(&status)]);
        self.set_status(status);
    }

    /// Sets the status text. The same text twice in a row is sent once.
    pub fn status(&self, status: &str) {
        let status = one_line(status);
        if *self.status.lock().unwrap_or_else(PoisonError::into_inner) == status {
            return;
        }
        send(&[NotifyState::Status(&status)]);
        self.set_status(status);
    }

    /// Reports that the service reloads its settings; [`Self::ready`] ends that.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => send(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "failed to read the clock"),
        }
    }

    /// Reports that the service is stopping.
    pub fn stopping(&self) {
        send(&[NotifyState::Stopping]);
    }

    /// Marks the loop as idle until dropped. Await it next to everything else that the loop waits for.
    pub(crate) async fn idle(&self) {
        let _idle = Idle::begin(&self.idle);
        std::future::pending().await
    }

    /// Sends the watchdog message four times per `WatchdogSec=`, while the loop is idle or completes steps. Never
    /// returns; does nothing without a watchdog.
    ///
    /// Poll it next to the loop, not from it: a long operation that makes progress is alive.
    pub async fn feed_watchdog(&self) {
        let Some(watchdog) = self.watchdog else {
            return std::future::pending().await;
        };
        let mut interval = tokio::time::interval(watchdog / 4);
        let mut seen = STEPS.load(Ordering::Relaxed);
        loop {
            interval.tick().await;
            let steps = STEPS.load(Ordering::Relaxed);
            if self.idle.load(Ordering::Relaxed) || steps != seen {
                send(&[NotifyState::Watchdog]);
            }
            seen = steps;
        }
    }

    fn set_status(&self, status: String) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

/// Pending until another event.
struct Idle<'a>(&'a AtomicBool);

impl<'a> Idle<'a> {
    fn begin(idle: &'a AtomicBool) -> Self {
        idle.store(true, Ordering::Relaxed);
        Self(idle)
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
        step();
    }
}

/// Sets a failure's reason as status text, which `systemctl status` shows after the exit.
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

    /// Runs the watchdog for slightly more than two of its intervals, next to an operation that takes as long.
    fn live(service: &Service, steps: bool, idle: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let pause = service.watchdog.unwrap() / 4;
            let work = async {
                tokio::time::sleep(pause * 3 / 2).await;
                if steps {
                    step();
                }
                tokio::time::sleep(pause).await;
            };
            tokio::select! {
                () = service.feed_watchdog() => {}
                () = service.idle(), if idle => {}
                () = work => {}
            }
        });
    }

    /// Sends one message of each kind.
    fn as_a_service() {
        let service = Service::from_environment();
        service.status("waiting for etcd:\nconnection refused");
        service.status("waiting for etcd:\nconnection refused");
        service.ready("10.5.72.0/24, 2 peers");
        service.status("10.5.72.0/24, 2 peers");
        // A stuck process sends nothing.
        live(&service, false, false);
        service.status("now it gets on");
        live(&service, true, false);
        service.status("now it is idle");
        live(&service, false, true);
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
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "base::service::tests::messages_are_what_the_service_manager_expects",
            ])
            .env("SELVAGE_TEST_SERVICE", "1")
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "800000")
            .env_remove("WATCHDOG_PID")
            .spawn()
            .unwrap();
        let mut told = Vec::new();
        let mut message = [0; 256];
        loop {
            let ended = child.try_wait().unwrap();
            match (socket.recv(&mut message), ended) {
                (Ok(length), _) => {
                    told.push(String::from_utf8_lossy(&message[..length]).into_owned());
                }
                (Err(_), None) => {}
                (Err(_), Some(status)) => {
                    assert!(status.success());
                    break;
                }
            }
        }
        // The number of watchdog messages depends on the machine.
        told.dedup_by(|a, b| a == b && a == "WATCHDOG=1\n");
        assert_eq!(
            told,
            [
                "STATUS=waiting for etcd: connection refused\n",
                "READY=1\nSTATUS=10.5.72.0/24, 2 peers\n",
                "STATUS=now it gets on\n",
                "WATCHDOG=1\n",
                "STATUS=now it is idle\n",
                "WATCHDOG=1\n",
                "STOPPING=1\n",
                "STATUS=failed: out of subnets\n",
            ]
        );
    }
}
