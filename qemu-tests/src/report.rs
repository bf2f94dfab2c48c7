//! The closing screen of the demo, and tables in general. Pure.

use std::{net::Ipv4Addr, time::Duration};

use crate::{
    container::Ping,
    facts::{Facts, Image},
    timeline::Timeline,
};

/// What became known of one node.
#[derive(Debug, Clone)]
pub(crate) struct NodeReport {
    /// Its name.
    pub name: String,
    /// Its underlay address.
    pub underlay: Ipv4Addr,
    /// Its place in the overlay.
    pub facts: Facts,
    /// What it runs.
    pub image: Image,
    /// Its boot.
    pub timeline: Timeline,
    /// Start of its first container.
    pub first_container: Option<Duration>,
}

/// What two containers on different hosts found out.
#[derive(Debug, Clone)]
pub(crate) struct CrossReport {
    /// Host of the client.
    pub from: String,
    /// Host of the server.
    pub to: String,
    /// Overlay address of the client.
    pub client: Ipv4Addr,
    /// Overlay address of the server.
    pub server: Ipv4Addr,
    /// Ping from client to server.
    pub ping: Ping,
    /// The client's address as the web server saw it.
    pub seen: String,
}

impl CrossReport {
    /// Whether packets came back, and the server saw the client itself.
    pub(crate) fn is_good(&self) -> bool {
        self.ping.rtt_ms.is_some()
            && self.ping.loss_percent < 50.0
            && self.seen == self.client.to_string()
    }
}

/// The whole closing screen.
pub(crate) fn closing_screen(nodes: &[NodeReport], crossings: &[CrossReport]) -> String {
    let mut screen = format!("\n  {} on one overlay\n\n", counted(nodes.len(), "host"));
    screen.push_str(&node_table(nodes));
    screen.push_str("\n  Image\n\n");
    screen.push_str(&image_table(nodes));
    if !crossings.is_empty() {
        screen.push_str("\n  Containers across hosts\n\n");
        screen.push_str(&crossing_table(crossings));
    }
    screen.push_str("\n  Boot, seconds since kernel start (by each guest's own clock)\n\n");
    screen.push_str(&boot_table(nodes));
    screen
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn node_table(nodes: &[NodeReport]) -> String {
    let mut rows = vec![
        [
            "node",
            "underlay IP",
            "leased subnet",
            "docker0",
            "MTU",
            "peers",
        ]
        .map(str::to_owned),
    ];
    rows.extend(nodes.iter().map(|node| {
        [
            node.name.clone(),
            node.underlay.to_string(),
            node.facts.subnet.to_string(),
            node.facts.docker_bridge.to_string(),
            node.facts.docker_mtu.to_string(),
            node.facts.peers.len().to_string(),
        ]
    }));
    table(&rows)
}

fn image_table(nodes: &[NodeReport]) -> String {
    let mut rows = vec![["node", "version", "slot", "update"].map(str::to_owned)];
    rows.extend(nodes.iter().map(|node| {
        let image = &node.image;
        [&node.name, &image.version, &image.slot, &image.update].map(Clone::clone)
    }));
    table(&rows)
}

fn crossing_table(crossings: &[CrossReport]) -> String {
    let mut rows = vec![["from", "to", "ping", "HTTP server saw", ""].map(str::to_owned)];
    rows.extend(crossings.iter().map(|crossing| {
        let rtt = crossing
            .ping
            .rtt_ms
            .map_or_else(|| "no answer".to_owned(), |rtt| format!("rtt {rtt:.1} ms"));
        let own = crossing.seen == crossing.client.to_string();
        [
            format!("{} {}", crossing.from, crossing.client),
            format!("{} {}", crossing.to, crossing.server),
            format!("{:.0}% loss, {rtt}", crossing.ping.loss_percent),
            crossing.seen.clone(),
            if own {
                "the client's own address"
            } else {
                "NOT the client's address"
            }
            .to_owned(),
        ]
    }));
    table(&rows)
}

fn boot_table(nodes: &[NodeReport]) -> String {
    let mut header = vec!["node".to_owned()];
    header.extend(
        Timeline::default()
            .milestones()
            .map(|(label, _)| label.to_owned()),
    );
    header.push("first container".to_owned());
    let mut rows = vec![header];
    for node in nodes {
        let mut row = vec![node.name.clone()];
        row.extend(node.timeline.milestones().map(|(_, time)| seconds(time)));
        row.push(seconds(node.first_container));
        rows.push(row);
    }
    table(&rows)
}

/// A time in seconds, or a dash for what did not happen.
pub(crate) fn seconds(time: Option<Duration>) -> String {
    time.map_or_else(
        || "-".to_owned(),
        |time| format!("{:.1}", time.as_secs_f64()),
    )
}

/// Aligns columns; the first row is the heading.
pub(crate) fn table<R: AsRef<[String]>>(rows: &[R]) -> String {
    let columns = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
    let cell = |row: &R, column: usize| row.as_ref().get(column).cloned().unwrap_or_default();
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .map(|row| cell(row, column).chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<_> = (0..columns)
            .map(|column| format!("{:<1$}", cell(row, column), widths[column]))
            .collect();
        text.push_str(&format!("  {}\n", cells.join("   ").trim_end()).replace("  \n", "\n"));
        if index == 0 {
            let total = widths.iter().sum::<usize>() + 3 * columns.saturating_sub(1);
            text.push_str(&format!("  {}\n", "─".repeat(total)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeReport {
        NodeReport {
            name: name.into(),
            underlay: Ipv4Addr::new(10, 77, 0, 11),
            facts: Facts {
                machine_id: "m".into(),
                subnet: "10.5.72.0/24".parse().unwrap(),
                network: "10.5.0.0/16".parse().unwrap(),
                mtu: 1450,
                docker_bridge: "10.5.72.1/24".parse().unwrap(),
                docker_mtu: 1450,
                overlay_mac: "0e:00:00:00:00:01".into(),
                peers: vec![Ipv4Addr::new(10, 77, 0, 12)],
            },
            image: Image {
                version: "0.1.0.1500".into(),
                slot: "a".into(),
                update: "none is pending".into(),
            },
            timeline: Timeline {
                lease: Some(Duration::from_millis(15_240)),
                ..Timeline::default()
            },
            first_container: Some(Duration::from_secs(40)),
        }
    }

    fn crossing(seen: &str, rtt_ms: Option<f64>) -> CrossReport {
        CrossReport {
            from: "node1".into(),
            to: "node2".into(),
            client: Ipv4Addr::new(10, 5, 72, 2),
            server: Ipv4Addr::new(10, 5, 9, 2),
            ping: Ping {
                loss_percent: 0.0,
                rtt_ms,
            },
            seen: seen.into(),
        }
    }

    #[test]
    fn screen_shows_what_was_found() {
        let screen = closing_screen(
            &[node("node1"), node("node2")],
            &[crossing("10.5.72.2", Some(2.25))],
        );
        for word in [
            "2 hosts",
            "10.5.72.0/24",
            "10.5.72.1/24",
            "0.1.0.1500   a      none is pending",
            "0% loss, rtt 2.2 ms",
            "own address",
            "15.2",
            "40.0",
        ] {
            assert!(screen.contains(word), "{word} is missing in\n{screen}");
        }
    }

    #[test]
    fn a_masqueraded_client_is_no_success() {
        assert!(crossing("10.5.72.2", Some(1.0)).is_good());
        assert!(!crossing("10.77.0.11", Some(1.0)).is_good());
        assert!(!crossing("10.5.72.2", None).is_good());
    }

    #[test]
    fn columns_line_up() {
        let text = table(&[
            ["a", "b"].map(str::to_owned),
            ["long", "x"].map(str::to_owned),
        ]);
        assert_eq!(text, "  a      b\n  ────────\n  long   x\n");
    }
}
