//! The Prometheus metrics: names, types and help.
//!
//! A [`Sample`] consists of the same [`Status`] that `selvage status` shows, and of counters used only here. The names
//! are an interface, like flags: alerts and dashboards depend on them. Label values are only kinds or devices of ours,
//! so the number of series does not grow with the cluster.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use self::process::Process;
use self::text::{Kind, Text};
use crate::host::udp::{Counters, Metric};
use crate::telemetry::status::{Cloud, Device, Kernel, State, Status, TaskName};

mod process;
pub(crate) mod text;

/// Where metrics of the image's updates are, in text format: of all processes the agent is the one that is asked.
const UPDATE_METRICS: &str = "/var/lib/selvage/update";

/// The name of that file in its directory.
pub(crate) const METRICS_FILE: &str = "metrics.prom";

/// The longest text that is added, in bytes.
const MOST_ADDED: u64 = 64 << 10;

/// Event counts by kind.
pub(crate) type Tally = BTreeMap<&'static str, u64>;

/// The agent's state and counters at one time.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// The status, without the list of peers.
    pub(crate) status: Status,
    /// When it was taken.
    pub(crate) at: Instant,
    /// Failures by task.
    pub(crate) task_failures: Tally,
    /// Peer counts; `None` while the agent joins.
    pub(crate) peers: Option<Peers>,
    /// The counters of the udp backend's data plane, if there is one.
    pub(crate) data_plane: Option<Counters>,
    /// IPsec's tunnels by state, if there are any.
    pub(crate) tunnels: Option<Tally>,
    /// What happened since the start of the process.
    pub(crate) events: Events,
}

/// What happened since the start of the process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Events {
    /// The own lease was renewed.
    pub(crate) renewals: u64,
    /// A renewal failed.
    pub(crate) renewal_failures: u64,
    /// It was lost: expired, revoked, or taken by another.
    pub(crate) leases_lost: u64,
    /// This host was given another subnet.
    pub(crate) renumberings: u64,
    /// Failed requests to the lease store, by kind.
    pub(crate) store_errors: Tally,
    /// Network configs that were refused.
    pub(crate) configs_rejected: u64,
    /// The settings were reloaded.
    pub(crate) reloads: Reloads,
}

/// The results of reloads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reloads {
    pub(crate) done: u64,
    pub(crate) failed: u64,
    /// Whether the last one failed.
    pub(crate) last_failed: bool,
}

/// Peer counts. With ten thousand peers, these are needed far more often than the list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peers {
    /// Peers that are programmed on this host.
    pub(crate) used: usize,
    /// Those of them with missing kernel objects.
    pub(crate) failed: usize,
    /// Refused leases, by class of the reason.
    pub(crate) refused: Tally,
    /// All leases, including the own one.
    pub(crate) leases: usize,
}

/// A counter of an overlay device: its name, its help, and where it is in the status.
type DeviceCounter = (&'static str, &'static str, fn(&Device) -> u64);

const DEVICE_COUNTERS: [DeviceCounter; 8] = [
    (
        "selvage_device_receive_bytes_total",
        "Bytes received by the overlay device.",
        |device| device.traffic.rx_bytes,
    ),
    (
        "selvage_device_transmit_bytes_total",
        "Bytes sent by the overlay device.",
        |device| device.traffic.tx_bytes,
    ),
    (
        "selvage_device_receive_packets_total",
        "Packets received by the overlay device.",
        |device| device.traffic.rx_packets.unwrap_or_default(),
    ),
    (
        "selvage_device_transmit_packets_total",
        "Packets sent by the overlay device.",
        |device| device.traffic.tx_packets.unwrap_or_default(),
    ),
    (
        "selvage_device_receive_errors_total",
        "Receive errors of the overlay device.",
        |device| device.rx_errors,
    ),
    (
        "selvage_device_transmit_errors_total",
        "Transmit errors of the overlay device.",
        |device| device.tx_errors,
    ),
    (
        "selvage_device_receive_dropped_total",
        "Received packets dropped by the overlay device.",
        |device| device.rx_dropped,
    ),
    (
        "selvage_device_transmit_dropped_total",
        "Packets to send dropped by the overlay device.",
        |device| device.tx_dropped,
    ),
];

impl Sample {
    /// The sample of a joining agent.
    pub(crate) fn joining(status: Status) -> Self {
        Self {
            status,
            at: Instant::now(),
            task_failures: Tally::new(),
            peers: None,
            data_plane: None,
            tunnels: None,
            events: Events::default(),
        }
    }

    /// Whether the agent still joins, so that the loop cannot be asked.
    pub(crate) fn is_joining(&self) -> bool {
        self.status.health.state == State::Joining
    }

    /// The whole text that Prometheus reads.
    pub(crate) fn text(&self, ready: bool) -> String {
        let mut text = self.write(ready, &Process::read(), Instant::now());
        text.push_str(&added(&Path::new(UPDATE_METRICS).join(METRICS_FILE)));
        text
    }

    fn write(&self, ready: bool, process: &Process, now: Instant) -> String {
        let mut text = Text::default();
        text.family(
            "selvage_build_info",
            Kind::Gauge,
            "Version of the agent; always 1.",
        )
        .with(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        text.gauge(
            "selvage_ready",
            "Whether the overlay works: 1 or 0.",
            u8::from(ready),
        );
        let mut reasons = text.family(
            "selvage_not_ready_reasons",
            Kind::Gauge,
            "Whether this reason keeps the agent from being ready: 1 or 0.",
        );
        for task in TaskName::ALL {
            let holds = self.status.cause(*task).is_some();
            reasons.with(&[("reason", task.as_str())], u8::from(holds));
        }
        tally(
            &mut text,
            "selvage_task_failures_total",
            "Failed attempts, by task.",
            "task",
            &self.task_failures,
        );
        self.write_store(&mut text);
        self.write_lease(&mut text, now);
        self.write_lease_events(&mut text);
        self.write_overlay(&mut text);
        if let Some(peers) = &self.peers {
            peers.write(&mut text);
        }
        self.write_kernel(&mut text);
        if let Some(cloud) = &self.status.cloud {
            write_cloud(&mut text, cloud);
        }
        self.write_rest(&mut text);
        self.write_devices(&mut text);
        if let Some(counters) = &self.data_plane {
            write_data_plane(&mut text, counters);
        }
        if let Some(tunnels) = &self.tunnels {
            let mut family = text.family(
                "selvage_ipsec_tunnels",
                Kind::Gauge,
                "Peers by the state of their IPsec tunnel.",
            );
            for (state, count) in tunnels {
                family.with(&[("state", state)], *count);
            }
        }
        process.write(self.status.agent.started_time, &mut text);
        text.into_string()
    }

    fn write_store(&self, text: &mut Text) {
        text.gauge(
            "selvage_store_reachable",
            "Whether a server of the lease store answers: 1 or 0.",
            u8::from(self.status.store.server.is_some()),
        );
        let store = &self.status.store;
        if let Some(server) = &store.server {
            text.family(
                "selvage_store_info",
                Kind::Gauge,
                "Server of the lease store in use; always 1.",
            )
            .with(&[("kind", &store.kind), ("server", server)], 1);
        }
        tally(
            text,
            "selvage_store_errors_total",
            "Failed requests to the lease store, by kind of error.",
            "kind",
            &self.events.store_errors,
        );
    }

    fn write_lease(&self, text: &mut Text, now: Instant) {
        let Some(lease) = &self.status.lease else {
            return;
        };
        text.gauge(
            "selvage_lease_held",
            "Whether the lease store has a lease of this host: 1 or 0.",
            u8::from(lease.held),
        );
        text.gauge(
            "selvage_lease_acquired_timestamp_seconds",
            "When the agent acquired the lease, in seconds since the Unix epoch.",
            lease.since_time,
        );
        if let Some(ttl) = lease.ttl_seconds {
            text.gauge(
                "selvage_lease_ttl_seconds",
                "TTL of the lease; absent for a reservation.",
                ttl,
            );
        }
        if let Some(left) = lease.left_seconds {
            // If the loop is too busy to answer, its last sample ages.
            let age = now.saturating_duration_since(self.at).as_secs();
            text.gauge(
                "selvage_lease_remaining_seconds",
                "Time until the lease expires if it is not renewed; absent for a reservation.",
                left.saturating_sub(age),
            );
        }
    }

    fn write_lease_events(&self, text: &mut Text) {
        let events = &self.events;
        for (name, help, value) in [
            (
                "selvage_lease_renewals_total",
                "Successful renewals of the lease.",
                events.renewals,
            ),
            (
                "selvage_lease_renewal_failures_total",
                "Reported failures to renew the lease.",
                events.renewal_failures,
            ),
            (
                "selvage_lease_lost_total",
                "Times this host lost its lease.",
                events.leases_lost,
            ),
            (
                "selvage_renumberings_total",
                "Times the subnet of this host changed while the agent was running.",
                events.renumberings,
            ),
        ] {
            text.counter(name, help, value);
        }
    }

    fn write_rest(&self, text: &mut Text) {
        let events = &self.events;
        text.counter(
            "selvage_network_configs_rejected_total",
            "Network configs that the agent refused.",
            events.configs_rejected,
        );
        let mut reloads = text.family(
            "selvage_reloads_total",
            Kind::Counter,
            "Reloads of the settings, by result.",
        );
        reloads.with(&[("result", "success")], events.reloads.done);
        reloads.with(&[("result", "failure")], events.reloads.failed);
        text.gauge(
            "selvage_reload_last_successful",
            "Whether the last reload of the settings succeeded: 1 or 0.",
            u8::from(!events.reloads.last_failed),
        );
        text.gauge(
            "selvage_settings_pending_restart",
            "Changed settings that take effect at the next restart.",
            self.status.agent.settings_pending.len(),
        );
        text.counter(
            "selvage_clock_jumps_total",
            "Jumps of the wall clock.",
            self.status.clock.jumps,
        );
    }

    fn write_devices(&self, text: &mut Text) {
        let mut present = text.family(
            "selvage_device_present",
            Kind::Gauge,
            "Whether the overlay device exists: 1 or 0.",
        );
        for device in &self.status.devices {
            present.with(&[("device", &device.name)], u8::from(device.present));
        }
        for (name, help, read) in DEVICE_COUNTERS {
            let mut family = text.family(name, Kind::Counter, help);
            for device in self.status.devices.iter().filter(|device| device.present) {
                family.with(&[("device", &device.name)], read(device));
            }
        }
    }
}

impl Sample {
    fn write_overlay(&self, text: &mut Text) {
        let Some(network) = &self.status.network else {
            return;
        };
        let firewall = self.status.firewall.as_ref();
        let underlay = self.status.underlay.as_ref();
        text.family(
            "selvage_overlay_info",
            Kind::Gauge,
            "Overlay configuration; always 1.",
        )
        .with(
            &[
                ("backend", &network.backend),
                (
                    "firewall",
                    firewall
                        .and_then(|it| it.mode.as_deref())
                        .unwrap_or_default(),
                ),
                ("underlay", underlay.map_or("", |it| &it.interface)),
            ],
            1,
        );
        if let Some(subnets) = network.subnets {
            text.gauge(
                "selvage_pool_subnets",
                "Subnets in the network that can be leased.",
                subnets,
            );
        }
        if let Some(firewall) = firewall {
            text.counter(
                "selvage_firewall_updates_total",
                "Times the agent wrote firewall rules, including the first time.",
                firewall.programmed,
            );
        }
    }

    fn write_kernel(&self, text: &mut Text) {
        if self.status.network.is_none() {
            return;
        }
        let kernel = &self.status.kernel;
        text.gauge(
            "selvage_kernel_objects_wrong",
            "Kernel objects that are missing or wrong.",
            kernel.failures.len(),
        );
        let mut changes = text.family(
            "selvage_kernel_changes_total",
            Kind::Counter,
            "Kernel objects created, changed or removed.",
        );
        for (operation, count) in [
            ("created", kernel.created),
            ("changed", kernel.changed),
            ("removed", kernel.removed),
        ] {
            changes.with(&[("operation", operation)], count);
        }
        text.counter(
            "selvage_kernel_change_failures_total",
            "Kernel changes that failed.",
            kernel.failed,
        );
        write_resyncs(kernel, text);
    }
}

fn write_resyncs(kernel: &Kernel, text: &mut Text) {
    text.summary(
        "selvage_resync_duration_seconds",
        "Duration of full resyncs with the kernel.",
        seconds(kernel.resync_total_usec),
        kernel.resyncs,
    );
    if let (Some(at), Some(took)) = (kernel.resync_time, kernel.resync_usec) {
        text.gauge(
            "selvage_resync_last_timestamp_seconds",
            "Time of the last full resync, in seconds since the Unix epoch.",
            at,
        );
        text.gauge(
            "selvage_resync_last_duration_seconds",
            "Duration of the last full resync.",
            seconds(took),
        );
    }
    text.gauge(
        "selvage_resync_interval_seconds",
        "Maximum time between two full resyncs.",
        kernel.interval_seconds,
    );
}

/// The text of a file of metrics; empty if there is none, or if a reader of all metrics would stumble over it.
fn added(path: &Path) -> String {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MOST_ADDED).read_to_string(&mut text));
    let is_ours = |line: &str| line.starts_with("selvage_update_") || line.starts_with("# ");
    match read {
        Ok(_) if text.ends_with('\n') && text.lines().all(is_ours) => text,
        _ => String::new(),
    }
}

fn seconds(usec: u64) -> f64 {
    Duration::from_micros(usec).as_secs_f64()
}

impl Peers {
    fn write(&self, text: &mut Text) {
        for (name, help, value) in [
            (
                "selvage_peers",
                "Peers programmed into the kernel.",
                self.used,
            ),
            (
                "selvage_peers_failed",
                "Peers with missing kernel objects.",
                self.failed,
            ),
            (
                "selvage_pool_leases",
                "Leases in the network, including this host's.",
                self.leases,
            ),
        ] {
            text.gauge(name, help, value);
        }
        let mut refused = text.family(
            "selvage_leases_refused",
            Kind::Gauge,
            "Leases of other hosts, or updates of them, that the agent refused, by reason.",
        );
        for (reason, count) in &self.refused {
            refused.with(&[("reason", reason)], count);
        }
    }
}

fn write_cloud(text: &mut Text, cloud: &Cloud) {
    let missing = cloud.tables.iter().filter(|table| !table.complete).count();
    text.gauge(
        "selvage_cloud_tables",
        "Route tables of the cloud provider that should lead to this host.",
        cloud.tables.len(),
    );
    text.gauge(
        "selvage_cloud_tables_incomplete",
        "Those without the route to this host, when last seen.",
        missing,
    );
    // The provider's limit is on each table alone.
    text.gauge(
        "selvage_cloud_table_routes",
        "IPv4 routes of the fullest of these tables, of all hosts and others.",
        (cloud.tables.iter().map(|table| table.routes).max()).unwrap_or_default(),
    );
    if let Some(at) = cloud.settled_time {
        text.gauge(
            "selvage_cloud_settled_timestamp_seconds",
            "When all tables were last seen to be in order, in seconds since the Unix epoch.",
            at,
        );
    }
    let mut changes = text.family(
        "selvage_cloud_route_changes_total",
        Kind::Counter,
        "Routes of the cloud provider added, replaced or removed.",
    );
    for (operation, count) in [
        ("added", cloud.added),
        ("replaced", cloud.replaced),
        ("removed", cloud.removed),
    ] {
        changes.with(&[("operation", operation)], count);
    }
    text.counter(
        "selvage_cloud_failures_total",
        "Looks at the route tables that did not succeed.",
        cloud.failures,
    );
}

fn write_data_plane(text: &mut Text, counters: &Counters) {
    for (metric, count) in counters.all() {
        if let Metric::Alone(name, help) = metric {
            text.counter(name, help, count);
        }
    }
    let mut dropped = text.family(
        "selvage_udp_dropped_packets_total",
        Kind::Counter,
        "Packets that the udp backend dropped, by reason.",
    );
    for (metric, count) in counters.all() {
        if let Metric::Dropped(reason) = metric {
            dropped.with(&[("reason", reason)], count);
        }
    }
}

fn tally(
    text: &mut Text,
    name: &'static str,
    help: &'static str,
    label: &'static str,
    counts: &Tally,
) {
    let mut family = text.family(name, Kind::Counter, help);
    for (kind, count) in counts {
        family.with(&[(label, kind)], count);
    }
}

#[cfg(test)]
mod tests;
