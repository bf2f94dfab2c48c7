//! What Prometheus is told: names, types and meaning of all metrics.
//!
//! A [`Sample`] is what the agent's loop knows at one moment; it is made when somebody asks, from the very state that the
//! loop works on. The names are an interface, as flags are: alerts and dashboards hang on them. No label has more values
//! than there are kinds of something, or devices of ours: the number of series does not grow with the cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use self::process::Process;
use self::text::{Kind, Text};
use crate::host::reconcile::Counts;
use crate::host::udp::Counters;
use crate::telemetry::status::Device;

mod process;
mod text;

/// How often each kind of something happened.
pub(crate) type Tally = BTreeMap<&'static str, u64>;

/// What the agent's loop knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    /// Whether the loop still joins and so cannot be asked.
    pub(crate) joining: bool,
    /// When the process started, in seconds since the Unix epoch.
    pub(crate) started: u64,
    /// What may be wrong, and whether it is.
    pub(crate) troubles: Vec<(&'static str, bool)>,
    /// How often each task failed.
    pub(crate) task_failures: Tally,
    pub(crate) store: Store,
    /// The own lease; `None` before there is one.
    pub(crate) lease: Option<Lease>,
    /// The overlay; `None` before there is one.
    pub(crate) overlay: Option<Overlay>,
    /// The overlay devices.
    pub(crate) devices: Vec<Device>,
    /// What went through the udp back end's data plane, if there is one.
    pub(crate) data_plane: Option<Counters>,
    pub(crate) clock_jumps: u64,
    /// What happened since the start of the process.
    pub(crate) events: Events,
}

/// What happened since the start of the process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Events {
    /// The own lease was extended.
    pub(crate) renewals: u64,
    /// It could not be.
    pub(crate) renewal_failures: u64,
    /// It was lost: expired, revoked, or taken by another.
    pub(crate) leases_lost: u64,
    /// This host was given another subnet.
    pub(crate) renumberings: u64,
    /// Requests to the store that failed, by kind.
    pub(crate) store_errors: Tally,
    /// Network configs that were refused.
    pub(crate) configs_rejected: u64,
    /// Settings were read anew.
    pub(crate) reloads: Reloads,
}

/// What became of reading the settings anew.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reloads {
    pub(crate) done: u64,
    pub(crate) failed: u64,
    /// Whether the last one failed.
    pub(crate) last_failed: bool,
    /// How many changed keys wait for a restart.
    pub(crate) pending: usize,
}

/// Where leases are kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    pub(crate) kind: &'static str,
    /// The server in use; `None` while none answers.
    pub(crate) server: Option<String>,
}

/// The own lease.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    /// Whether the store still has it as this node's.
    pub(crate) held: bool,
    /// When this process took it, in seconds since the Unix epoch.
    pub(crate) since: u64,
    /// For how long it is granted; `None` for a reservation.
    pub(crate) ttl: Option<Duration>,
    /// When it ends if nothing extends it.
    pub(crate) expires: Option<Instant>,
}

/// The overlay.
#[derive(Clone, Debug)]
pub(crate) struct Overlay {
    pub(crate) backend: &'static str,
    /// By which rules the firewall works; `None` before it did.
    pub(crate) firewall: Option<String>,
    /// The underlay's interface.
    pub(crate) underlay: String,
    /// Peers that this host is set up to reach.
    pub(crate) peers: usize,
    /// Those of them for which the kernel lacks something.
    pub(crate) peers_failed: usize,
    /// Leases that are not used, by the kind of reason.
    pub(crate) refused: Tally,
    /// All leases that there are, the own one included.
    pub(crate) leases: usize,
    /// How many subnets can be leased.
    pub(crate) subnets: u64,
    pub(crate) kernel: Counts,
    /// Kernel objects that are not as they should be.
    pub(crate) troubled: usize,
    pub(crate) resyncs: u64,
    /// How long all of them took together.
    pub(crate) resync_total: Duration,
    /// When the last one was, and how long it took.
    pub(crate) resync_last: Option<(u64, Duration)>,
    pub(crate) resync_interval: Duration,
    pub(crate) firewall_updates: u64,
}

impl Sample {
    /// The whole text that Prometheus reads.
    pub(crate) fn text(&self, ready: bool) -> String {
        self.write(ready, &Process::read(), Instant::now())
    }

    fn write(&self, ready: bool, process: &Process, now: Instant) -> String {
        let mut text = Text::default();
        text.family(
            "selvage_build_info",
            Kind::Gauge,
            "Which agent this is; always 1.",
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
            "Whether this is a reason for not being ready: 1 or 0.",
        );
        for (reason, holds) in &self.troubles {
            reasons.with(&[("reason", reason)], u8::from(*holds));
        }
        tally(
            &mut text,
            "selvage_task_failures_total",
            "How often the agent failed at what it does, by task.",
            "task",
            &self.task_failures,
        );
        self.write_store(&mut text);
        self.write_lease(&mut text, now);
        if let Some(overlay) = &self.overlay {
            overlay.write(&mut text);
        }
        self.write_rest(&mut text);
        self.write_devices(&mut text);
        if let Some(counters) = &self.data_plane {
            write_data_plane(&mut text, counters);
        }
        process.write(self.started, &mut text);
        text.into_string()
    }

    fn write_store(&self, text: &mut Text) {
        text.gauge(
            "selvage_store_reachable",
            "Whether a server of the lease store answers: 1 or 0.",
            u8::from(self.store.server.is_some()),
        );
        if let Some(server) = &self.store.server {
            text.family(
                "selvage_store_info",
                Kind::Gauge,
                "Which server of the lease store is in use; always 1.",
            )
            .with(&[("kind", self.store.kind), ("server", server)], 1);
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
        if let Some(lease) = &self.lease {
            text.gauge(
                "selvage_lease_held",
                "Whether the lease store has this host's subnet as its own: 1 or 0.",
                u8::from(lease.held),
            );
            text.gauge(
                "selvage_lease_acquired_timestamp_seconds",
                "When the agent took the lease, in seconds since the Unix epoch.",
                lease.since,
            );
            if let Some(ttl) = lease.ttl {
                text.gauge(
                    "selvage_lease_ttl_seconds",
                    "For how long the lease is granted; absent for a reservation.",
                    ttl.as_secs(),
                );
            }
            if let Some(expires) = lease.expires {
                text.gauge(
                    "selvage_lease_remaining_seconds",
                    "How long the lease lasts if nothing extends it; absent for a reservation.",
                    expires.saturating_duration_since(now).as_secs_f64(),
                );
            }
        }
        let events = &self.events;
        for (name, help, value) in [
            (
                "selvage_lease_renewals_total",
                "How often the lease was extended.",
                events.renewals,
            ),
            (
                "selvage_lease_renewal_failures_total",
                "How often it was reported that the lease could not be extended.",
                events.renewal_failures,
            ),
            (
                "selvage_lease_lost_total",
                "How often the lease on this host's subnet was lost.",
                events.leases_lost,
            ),
            (
                "selvage_renumberings_total",
                "How often this host was given another subnet while running.",
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
            "Network configs that were written and cannot be used here.",
            events.configs_rejected,
        );
        let mut reloads = text.family(
            "selvage_reloads_total",
            Kind::Counter,
            "How often the settings were read anew, by outcome.",
        );
        reloads.with(&[("result", "success")], events.reloads.done);
        reloads.with(&[("result", "failure")], events.reloads.failed);
        text.gauge(
            "selvage_reload_last_successful",
            "Whether the settings that were read last are good: 1 or 0.",
            u8::from(!events.reloads.last_failed),
        );
        text.gauge(
            "selvage_settings_pending_restart",
            "Changed settings that only a restart puts into effect.",
            events.reloads.pending,
        );
        text.counter(
            "selvage_clock_jumps_total",
            "How often the wall clock jumped.",
            self.clock_jumps,
        );
    }

    fn write_devices(&self, text: &mut Text) {
        type Read = fn(&Device) -> u64;
        let counters: [(_, _, Read); 8] = [
            (
                "selvage_device_receive_bytes_total",
                "Bytes that an overlay device received.",
                |device| device.traffic.rx_bytes,
            ),
            (
                "selvage_device_transmit_bytes_total",
                "Bytes that an overlay device sent.",
                |device| device.traffic.tx_bytes,
            ),
            (
                "selvage_device_receive_packets_total",
                "Packets that an overlay device received.",
                |device| device.traffic.rx_packets.unwrap_or_default(),
            ),
            (
                "selvage_device_transmit_packets_total",
                "Packets that an overlay device sent.",
                |device| device.traffic.tx_packets.unwrap_or_default(),
            ),
            (
                "selvage_device_receive_errors_total",
                "Packets that an overlay device received and could not use.",
                |device| device.rx_errors,
            ),
            (
                "selvage_device_transmit_errors_total",
                "Packets that an overlay device could not send.",
                |device| device.tx_errors,
            ),
            (
                "selvage_device_receive_dropped_total",
                "Packets that an overlay device dropped when receiving.",
                |device| device.rx_dropped,
            ),
            (
                "selvage_device_transmit_dropped_total",
                "Packets that an overlay device dropped when sending.",
                |device| device.tx_dropped,
            ),
        ];
        let mut present = text.family(
            "selvage_device_present",
            Kind::Gauge,
            "Whether the kernel has an overlay device: 1 or 0.",
        );
        for device in &self.devices {
            present.with(&[("device", &device.name)], u8::from(device.present));
        }
        for (name, help, read) in counters {
            let mut family = text.family(name, Kind::Counter, help);
            for device in self.devices.iter().filter(|device| device.present) {
                family.with(&[("device", &device.name)], read(device));
            }
        }
    }
}

impl Overlay {
    fn write(&self, text: &mut Text) {
        text.family(
            "selvage_overlay_info",
            Kind::Gauge,
            "By what the overlay works here; always 1.",
        )
        .with(
            &[
                ("backend", self.backend),
                ("firewall", self.firewall.as_deref().unwrap_or_default()),
                ("underlay", &self.underlay),
            ],
            1,
        );
        let gauges = [
            (
                "selvage_peers",
                "Other hosts of the overlay that this one is set up to reach.",
                self.peers,
            ),
            (
                "selvage_peers_failed",
                "Those of them for which the kernel lacks something.",
                self.peers_failed,
            ),
            (
                "selvage_pool_leases",
                "Leases in the network, this host's included.",
                self.leases,
            ),
            (
                "selvage_kernel_objects_wrong",
                "Kernel objects that are not as they should be.",
                self.troubled,
            ),
        ];
        for (name, help, value) in gauges {
            text.gauge(name, help, value);
        }
        text.gauge(
            "selvage_pool_subnets",
            "Subnets of the network that can be leased.",
            self.subnets,
        );
        let mut refused = text.family(
            "selvage_leases_refused",
            Kind::Gauge,
            "Leases of other hosts, or updates of such, that are not used, by kind of reason.",
        );
        for (reason, count) in &self.refused {
            refused.with(&[("reason", reason)], count);
        }
        let mut changes = text.family(
            "selvage_kernel_changes_total",
            Kind::Counter,
            "Kernel objects that were made, changed or removed.",
        );
        for (operation, count) in [
            ("created", self.kernel.created),
            ("changed", self.kernel.changed),
            ("removed", self.kernel.removed),
        ] {
            changes.with(&[("operation", operation)], count);
        }
        text.counter(
            "selvage_kernel_change_failures_total",
            "Changes that did not come about.",
            self.kernel.failed,
        );
        text.summary(
            "selvage_resync_duration_seconds",
            "How long complete comparisons with the kernel took.",
            self.resync_total.as_secs_f64(),
            self.resyncs,
        );
        if let Some((at, took)) = self.resync_last {
            text.gauge(
                "selvage_resync_last_timestamp_seconds",
                "When everything was compared last, in seconds since the Unix epoch.",
                at,
            );
            text.gauge(
                "selvage_resync_last_duration_seconds",
                "How long the last complete comparison took.",
                took.as_secs_f64(),
            );
        }
        text.gauge(
            "selvage_resync_interval_seconds",
            "The longest time between two complete comparisons.",
            self.resync_interval.as_secs(),
        );
        text.counter(
            "selvage_firewall_updates_total",
            "How often the firewall's rules had to be put right, the first time included.",
            self.firewall_updates,
        );
    }
}

fn write_data_plane(text: &mut Text, counters: &Counters) {
    // Every counter has its place here: a new one does not compile before it has one too.
    let Counters {
        sent_packets,
        sent_bytes,
        received_packets,
        received_bytes,
        not_ipv4,
        no_route,
        ttl_exceeded,
        malformed,
        oversize,
        send_failed,
        tun_failed,
        unknown_peer,
        icmp_sent,
    } = *counters;
    for (name, help, value) in [
        (
            "selvage_udp_transmit_packets_total",
            "Packets that the udp back end sent to peers.",
            sent_packets,
        ),
        (
            "selvage_udp_transmit_bytes_total",
            "Bytes that the udp back end sent to peers, without the outer headers.",
            sent_bytes,
        ),
        (
            "selvage_udp_receive_packets_total",
            "Packets that the udp back end received from peers.",
            received_packets,
        ),
        (
            "selvage_udp_receive_bytes_total",
            "Bytes that the udp back end received from peers, without the outer headers.",
            received_bytes,
        ),
        (
            "selvage_udp_unknown_peer_packets_total",
            "Packets that the udp back end received from addresses that no peer has; they are not dropped.",
            unknown_peer,
        ),
        (
            "selvage_udp_icmp_errors_total",
            "ICMP errors that the udp back end sent.",
            icmp_sent,
        ),
    ] {
        text.counter(name, help, value);
    }
    let mut dropped = text.family(
        "selvage_udp_dropped_packets_total",
        Kind::Counter,
        "Packets that the udp back end dropped, by reason.",
    );
    for (reason, count) in [
        ("not-ipv4", not_ipv4),
        ("no-route", no_route),
        ("ttl-exceeded", ttl_exceeded),
        ("malformed", malformed),
        ("oversize", oversize),
        ("send-failed", send_failed),
        ("tun-failed", tun_failed),
    ] {
        dropped.with(&[("reason", reason)], count);
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
