//! Text output of a [`Status`].
//!
//! Pure: the same status, width and style give the same text. All times are relative to [`Status::time`]. Without a
//! width, as for another program, nothing is wrapped or left out.

mod peers;
mod table;

use std::fmt::Write;

use unicode_width::UnicodeWidthStr;

pub(crate) use self::peers::{describe as describe_peers, state as describe_state};
pub(crate) use self::table::{Cell, Column, Table};
use crate::base::terminal::{Style, Tone};
use crate::base::words::{ago, bytes, duration, grouped, harmless, micros, times};
use crate::telemetry::status::{
    Clock, Cloud, Device, Docker, Firewall, Kernel, Lease, Network, State, Status, Store, Underlay,
};

/// The width of the label column, including the gap.
pub(crate) const LABEL: usize = 11;

/// Maximum number of failed kernel objects on a terminal; the first ones show the problem.
const FAILURES: usize = 10;

/// Renders all of a status. It ends with a line break.
pub(crate) fn render(status: &Status, width: Option<usize>, style: Style) -> String {
    let mut page = Page {
        text: String::with_capacity(2_048 + status.peers.len() * 128),
        width,
        style,
    };
    page.health(status);
    page.text.push('\n');
    page.overview(status);
    if !status.devices.is_empty() {
        page.text.push('\n');
        page.devices(&status.devices);
    }
    page.text.push('\n');
    page.text.push_str(&describe_peers(status, width, style));
    page.text
}

/// The text so far.
struct Page {
    text: String,
    width: Option<usize>,
    style: Style,
}

impl Page {
    /// The overlay's state and the reasons.
    fn health(&mut self, status: &Status) {
        let (tone, word, meaning) = match status.health.state {
            State::Ready => (Tone::Good, "ready", "the overlay is up"),
            State::Degraded => (
                Tone::Bad,
                "degraded",
                "the overlay is up, but something is wrong",
            ),
            State::Joining => (
                Tone::Warn,
                "joining",
                "the overlay is not up yet; the kernel state of an earlier run stays in place",
            ),
            State::Stopped => (
                Tone::Bad,
                "stopped",
                "no agent is running; this is what its files and the kernel show",
            ),
        };
        for (at, line) in wrap(&format!("{word}: {meaning}"), self.width)
            .into_iter()
            .enumerate()
        {
            let rest = if at == 0 {
                let _ = write!(self.text, "{}", self.style.tone(tone, word));
                line.get(word.len()..).unwrap_or_default()
            } else {
                line
            };
            let _ = writeln!(self.text, "{rest}");
        }
        for reason in &status.health.reasons {
            self.item("  - ", 4, reason);
        }
    }

    fn overview(&mut self, status: &Status) {
        let now = status.time;
        let stopped = status.health.state == State::Stopped;
        let unknown = match status.health.state {
            State::Joining => "not known yet",
            _ => "unknown",
        };
        match &status.lease {
            Some(lease) => self.lease(lease, status, stopped),
            None => self.line("Lease", "none"),
        }
        self.store(&status.store, now, stopped);
        match &status.network {
            Some(network) => self.network(network),
            None => self.line("Network", unknown),
        }
        match &status.underlay {
            Some(underlay) => self.underlay(underlay),
            None => self.line("Underlay", unknown),
        }
        match &status.firewall {
            Some(firewall) => self.firewall(firewall, now, stopped),
            None => self.line("Firewall", unknown),
        }
        if let Some(cloud) = &status.cloud {
            self.cloud(cloud, now);
        }
        if !stopped {
            self.kernel(&status.kernel, now);
        }
        self.files(status, stopped);
        if let Some(docker) = &status.docker {
            self.docker(docker);
        }
        self.agent(status, stopped);
        self.clock(&status.clock, now);
    }

    fn files(&mut self, status: &Status, stopped: bool) {
        let files = &status.files;
        let written = match files.written_time {
            Some(at) => format!("written {}", ago(status.time, at)),
            None if stopped => "missing".to_owned(),
            None if status.lease.is_none() => "not written yet".to_owned(),
            None => "unchanged since an earlier run".to_owned(),
        };
        self.line("Files", &format!("{}, {written}", files.subnet_file));
    }

    fn docker(&mut self, docker: &Docker) {
        let nets = match docker.addresses.is_empty() {
            true => "no address".to_owned(),
            false => list(docker.addresses.iter()),
        };
        let tone = match docker.trouble {
            Some(_) => Tone::Bad,
            None => Tone::Plain,
        };
        self.toned("Docker", tone, &format!("{}, {nets}", docker.bridge));
    }

    fn agent(&mut self, status: &Status, stopped: bool) {
        let agent = &status.agent;
        let mut text = format!("selvage {}", agent.version);
        if !stopped {
            let age = duration(status.time.saturating_sub(agent.started_time));
            let _ = write!(text, ", process {}, running for {age}", agent.pid);
        }
        if let Some(network) = &agent.network {
            let _ = write!(text, ", network {network}");
        }
        if !agent.node_id.is_empty() {
            let _ = write!(text, ", node {}", agent.node_id);
        }
        self.line("Agent", &text);
        if let Some(rejected) = &agent.settings_rejected {
            self.toned("", Tone::Warn, rejected);
        }
        if !agent.settings_pending.is_empty() {
            let keys = agent.settings_pending.join(", ");
            let text = format!("changed settings that need a restart: {keys}");
            self.toned("", Tone::Warn, &text);
        }
    }

    fn clock(&mut self, clock: &Clock, now: u64) {
        let (Some(at), Some(by)) = (clock.last_time, clock.last_seconds) else {
            return;
        };
        let direction = if by < 0 { "back" } else { "ahead" };
        let by = duration(by.unsigned_abs());
        let (times, at) = (times(clock.jumps), ago(now, at));
        let text = format!("jumped {times}, last by {by} {direction}, {at}");
        self.toned("Clock", Tone::Warn, &text);
    }

    fn lease(&mut self, lease: &Lease, status: &Status, stopped: bool) {
        let now = status.time;
        let mut text = list(lease.nets());
        let public = list(lease.addresses());
        if !public.is_empty() {
            let _ = write!(text, " as {public}");
        }
        self.line("Lease", &text);
        let taken = format!("acquired {}", ago(now, lease.since_time));
        match (lease.left_seconds, lease.ttl_seconds) {
            _ if stopped => {}
            _ if !lease.held => self.toned("", Tone::Bad, "no longer this node's"),
            (Some(left), Some(ttl)) => {
                let (left, ttl) = (duration(left), duration(ttl));
                self.line("", &format!("{left} left of {ttl}, {taken}"));
            }
            _ if lease.reservation => {
                self.line("", &format!("a reservation, without a TTL, {taken}"))
            }
            _ if status.store.is_kubernetes() => {
                self.line("", &format!("the podCIDR of this node, {taken}"));
            }
            _ => self.line("", &taken),
        }
        if let Some(trouble) = &lease.trouble {
            self.toned("", if stopped { Tone::Dim } else { Tone::Bad }, trouble);
        }
    }

    fn store(&mut self, store: &Store, now: u64, stopped: bool) {
        if store.kind.is_empty() {
            self.line("Store", "unknown");
            return;
        }
        let servers = store.servers.join(", ");
        let at = match (&store.server, store.servers.len()) {
            (Some(server), _) => format!(" at {server}"),
            (None, _) if stopped => format!(" at {servers}"),
            (None, 1) => format!(", not connected to {servers}"),
            (None, _) => format!(", connected to none of {servers}"),
        };
        let what = match store.kind.as_str() {
            "remote" => format!("lease server{at}"),
            "kubernetes" => format!("Kubernetes{at}, annotations {}", store.prefix),
            kind => format!("{kind}{at}, key prefix {}", or_slash(&store.prefix)),
        };
        self.line("Store", &what);
        if store.server.is_some() && store.servers.len() > 1 {
            self.line("", &format!("one of {servers}"));
        }
        if let Some(trouble) = &store.trouble {
            self.toned("", if stopped { Tone::Dim } else { Tone::Bad }, trouble);
        }
        let history = &store.history;
        if let (Some(at), Some(reason)) = (history.last_time, &history.last_reason) {
            let how_often = match history.changes {
                1 => String::new(),
                more => format!("{}, last ", times(more)),
            };
            let at = ago(now, at);
            let text = format!("restored from a backup or recreated {how_often}{at}: {reason}");
            self.toned("", Tone::Warn, &text);
        }
    }

    fn network(&mut self, network: &Network) {
        let nets = list(network.nets());
        let nets = if nets.is_empty() { "unknown" } else { &nets };
        let (backend, mtu) = (&network.backend, network.mtu);
        let room = match network.subnets {
            Some(1) => ", room for 1 node".to_owned(),
            Some(subnets) => format!(", room for {} nodes", grouped(subnets)),
            None => String::new(),
        };
        self.line("Network", &format!("{nets} by {backend}, MTU {mtu}{room}"));
        if let Some(rejected) = &network.rejected {
            let text = format!("the latest network config is not in use: {rejected}");
            self.toned("", Tone::Bad, &text);
        }
    }

    fn underlay(&mut self, underlay: &Underlay) {
        let addresses = list(underlay.nets());
        let (interface, mtu) = (&underlay.interface, underlay.mtu);
        self.line("Underlay", &format!("{interface}, {addresses}, MTU {mtu}"));
    }

    fn firewall(&mut self, firewall: &Firewall, now: u64, stopped: bool) {
        let mode = match &firewall.mode {
            Some(mode) if stopped => format!("{mode} rules in place"),
            Some(mode) => mode.clone(),
            None if stopped => "no rules of the agent".to_owned(),
            None => format!("no rules written yet ({})", firewall.wanted),
        };
        let does = match (firewall.masquerade, firewall.forward) {
            (true, true) => "masquerades, accepts forwarding",
            (true, false) => "masquerades, leaves forwarding to others",
            (false, true) => "does not masquerade, accepts forwarding",
            (false, false) => "neither masquerades nor accepts forwarding",
        };
        self.line("Firewall", &format!("{mode}; {does}"));
        if let Some(at) = firewall.programmed_time {
            let (how_often, at) = (times(firewall.programmed), ago(now, at));
            let last = if firewall.programmed > 1 { "last " } else { "" };
            self.line("", &format!("rules written {how_often}, {last}{at}"));
        }
    }

    /// The provider's tables, and what is wrong with them.
    fn cloud(&mut self, cloud: &Cloud, now: u64) {
        let seen = match cloud.settled_time {
            Some(at) => format!("in order {}", ago(now, at)),
            None => "not seen in order yet".to_owned(),
        };
        let next = duration(cloud.next_seconds);
        let provider = &cloud.provider;
        self.line(
            "Cloud",
            &format!("{provider} routes {seen}, next look within {next}"),
        );
        for table in &cloud.tables {
            let (id, routes) = (&table.id, table.routes);
            if table.complete {
                self.line(
                    "",
                    &format!("{id}: {routes} routes, this node's among them"),
                );
            } else {
                let text = format!("{id}: {routes} routes, this node's is missing");
                self.toned("", Tone::Bad, &text);
            }
        }
        let text = format!(
            "{} added, {} replaced, {} removed, {} failures",
            grouped(cloud.added),
            grouped(cloud.replaced),
            grouped(cloud.removed),
            grouped(cloud.failures)
        );
        self.line("", &text);
        for cause in &cloud.causes {
            self.toned("", Tone::Bad, &cause.text);
        }
    }

    fn kernel(&mut self, kernel: &Kernel, now: u64) {
        let every = duration(kernel.interval_seconds);
        let text = match (kernel.resync_time, kernel.resync_usec) {
            (Some(at), Some(took)) => {
                let (at, took) = (ago(now, at), micros(took));
                format!("resynced {at} in {took}, at least every {every}")
            }
            _ => format!("not resynced yet, at least every {every}"),
        };
        self.line("Kernel", &text);
        if kernel.resyncs == 0 {
            return;
        }
        let text = format!(
            "{} created, {} changed, {} removed, {} failed, resynced {}",
            grouped(kernel.created),
            grouped(kernel.changed),
            grouped(kernel.removed),
            grouped(kernel.failed),
            times(kernel.resyncs)
        );
        self.line("", &text);
        let most = if self.width.is_some() {
            FAILURES
        } else {
            usize::MAX
        };
        for failure in kernel.failures.iter().take(most) {
            self.toned("", Tone::Bad, failure);
        }
        if let Some(more @ 1..) = kernel.failures.len().checked_sub(most) {
            self.toned("", Tone::Bad, &format!("and {more} more; --json has all"));
        }
    }

    fn devices(&mut self, devices: &[Device]) {
        let column = |title, right, lightness| Column {
            title,
            right,
            lightness,
        };
        let columns = [
            column("DEVICE", false, 0),
            column("KIND", false, 0),
            column("MTU", true, 2),
            column("MAC", false, 3),
            column("RECEIVED", true, 1),
            column("SENT", true, 1),
            column("DROPPED", true, 1),
            column("ERRORS", true, 1),
        ];
        let mut table = Table::new(&columns, "");
        for device in devices {
            let name = Cell::new(harmless(&device.name));
            if !device.present {
                table.push(vec![name, Cell::new("missing").toned(Tone::Bad)], None);
                continue;
            }
            let kind = match &device.kind {
                Some(kind) => Cell::new(kind.as_str()),
                None => Cell::new("another kind").toned(Tone::Bad),
            };
            let lost = |count: u64| {
                let tone = if count > 0 { Tone::Warn } else { Tone::Plain };
                Cell::new(grouped(count)).toned(tone)
            };
            let cells = vec![
                name,
                kind,
                Cell::new(device.mtu.map(|mtu| mtu.to_string()).unwrap_or_default()),
                Cell::new(device.mac.clone().unwrap_or_default()),
                Cell::new(bytes(device.traffic.rx_bytes)),
                Cell::new(bytes(device.traffic.tx_bytes)),
                lost(device.rx_dropped.saturating_add(device.tx_dropped)),
                lost(device.rx_errors.saturating_add(device.tx_errors)),
            ];
            table.push(cells, None);
        }
        table.render(self.width, self.style, &mut self.text);
    }

    fn line(&mut self, label: &str, text: &str) {
        self.toned(label, Tone::Plain, text);
    }

    fn toned(&mut self, label: &str, tone: Tone, text: &str) {
        labelled(&mut self.text, (self.width, self.style), label, tone, text);
    }

    /// A text after a mark, indented by `indent`.
    fn item(&mut self, mark: &str, indent: usize, text: &str) {
        let text = harmless(text);
        let room = self.width.map(|width| width.saturating_sub(indent));
        for (at, line) in wrap(&text, room).into_iter().enumerate() {
            let mark = if at == 0 { mark } else { "" };
            let _ = writeln!(self.text, "{mark:indent$}{line}");
        }
    }
}

/// Appends a text after a label; without a label it continues the line above.
pub(crate) fn labelled(
    page: &mut String,
    (width, style): (Option<usize>, Style),
    label: &str,
    tone: Tone,
    text: &str,
) {
    let text = harmless(text);
    let room = width.map(|width| width.saturating_sub(LABEL));
    for (at, line) in wrap(&text, room).into_iter().enumerate() {
        let label = if at == 0 { label } else { "" };
        // No escape sequences around an empty label.
        let label_tone = if label.is_empty() {
            Tone::Plain
        } else {
            Tone::Bold
        };
        let (label, line) = (style.tone(label_tone, label), style.tone(tone, line));
        let _ = writeln!(page, "{label:LABEL$}{line}");
    }
}

fn or_slash(prefix: &str) -> &str {
    if prefix.is_empty() { "/" } else { prefix }
}

fn list<T: ToString>(values: impl Iterator<Item = T>) -> String {
    let texts: Vec<_> = values.map(|value| value.to_string()).collect();
    texts.join(", ")
}

/// Wraps a text at spaces into lines of at most `width` columns, or longer if a single word is. Returns at least one
/// line.
pub(crate) fn wrap(text: &str, width: Option<usize>) -> Vec<&str> {
    let Some(width) = width else {
        return vec![text];
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while rest.width() > width {
        // The last space that makes the line fit, otherwise the first one.
        let spaces = rest.match_indices(' ').map(|(at, _)| at);
        let fitting = spaces
            .clone()
            .take_while(|at| rest.get(..*at).is_some_and(|line| line.width() <= width));
        let Some(at) = fitting.last().or_else(|| spaces.min()) else {
            break;
        };
        let (line, next) = rest.split_at(at);
        lines.push(line);
        rest = next.trim_start();
    }
    if !rest.is_empty() || lines.is_empty() {
        lines.push(rest);
    }
    lines
}

#[cfg(test)]
mod tests;
