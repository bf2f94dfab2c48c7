//! Golden files, and properties of all texts.

use std::time::{Duration, Instant};

use super::*;
use crate::base::terminal::Colour;
use crate::telemetry::status::samples::{
    compare_with_golden, degraded, full, healthy, joining, peer, stopped, wireguard,
};
use crate::telemetry::status::{Peer, PeerState};

fn style(colours: bool) -> Style {
    Style::choose(if colours {
        Colour::Always
    } else {
        Colour::Never
    })
}

fn no_peers() -> Status {
    Status {
        peers: Vec::new(),
        ..healthy()
    }
}

/// A node of Kubernetes: nothing expires there, and nobody has reserved anything.
fn kubernetes() -> Status {
    let healthy = healthy();
    Status {
        store: Store {
            kind: "kubernetes".to_owned(),
            servers: vec!["https://10.96.0.1:443".to_owned()],
            server: Some("https://10.96.0.1:443".to_owned()),
            prefix: "flannel.alpha.coreos.com/".to_owned(),
            ..healthy.store
        },
        lease: healthy.lease.map(|lease| Lease {
            ttl_seconds: None,
            left_seconds: None,
            ..lease
        }),
        ..healthy
    }
}

/// A status and its name.
type Sample = (&'static str, fn() -> Status);

const SAMPLES: [Sample; 8] = [
    ("healthy", healthy),
    ("degraded", degraded),
    ("joining", joining),
    ("stopped", stopped),
    ("wireguard", wireguard),
    ("kubernetes", kubernetes),
    ("no-peers", no_peers),
    ("everything", full),
];

/// A text without its colours.
fn plain(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |plain, part| {
        plain + part.split_once('m').map_or("", |(_, rest)| rest)
    })
}

#[test]
fn text_is_as_committed() {
    for (name, sample) in SAMPLES {
        let status = sample();
        for width in [80, 200] {
            let golden = format!("{name}-{width}.txt");
            compare_with_golden(&golden, &render(&status, Some(width), style(false)));
        }
        compare_with_golden(
            &format!("{name}-piped.txt"),
            &render(&status, None, style(false)),
        );
    }
    let coloured = render(&degraded(), Some(80), style(true));
    compare_with_golden("degraded-80-coloured.txt", &coloured);
    let coloured = render(&healthy(), Some(200), style(true));
    compare_with_golden("healthy-200-coloured.txt", &coloured);
}

#[test]
fn colours_are_decoration() {
    for (name, sample) in SAMPLES {
        let status = sample();
        for width in [Some(40), Some(80), Some(200), None] {
            let without = render(&status, width, style(false));
            assert!(!without.contains('\x1b'), "{name}: {without}");
            let with = render(&status, width, style(true));
            assert_eq!(plain(&with), without, "{name} at {width:?}");
            assert_ne!(with, without);
        }
    }
}

#[test]
fn lines_keep_to_the_width() {
    for (name, sample) in SAMPLES {
        let status = sample();
        for width in [80, 100, 132, 200] {
            let text = render(&status, Some(width), style(false));
            for line in text.lines() {
                assert!(line.width() <= width, "{name} at {width}: {line}");
                assert_eq!(line.trim_end(), line, "{name} at {width}");
            }
        }
    }
}

#[test]
fn any_width_shows_all_subnets() {
    let status = degraded();
    for width in 0..250 {
        let text = render(&status, Some(width), style(false));
        for net in status.peers.iter().flat_map(Peer::nets) {
            assert!(text.contains(&net.to_string()), "{net} at {width}");
        }
    }
}

#[test]
fn nothing_commands_the_terminal() {
    for width in [Some(80), None] {
        let text = render(&degraded(), width, style(false));
        let control = |c: char| c.is_control() && c != '\n';
        assert!(!text.contains(control), "{text:?}");
        assert!(!text.contains('\u{202e}'), "{text:?}");
    }
    assert!(render(&degraded(), None, style(false)).contains("機械\u{fffd}[2J-Nürnberg\u{fffd}"));
}

#[test]
fn ten_thousand_peers_are_all_told_in_no_time() {
    let numbers = 0..10_000u32;
    let peers = numbers.map(|number| Peer {
        subnet: format!("10.{}.{}.0/24", number / 256, number % 256)
            .parse()
            .ok(),
        reason: (number == 7).then(|| "a reason".to_owned()),
        state: if number == 7 {
            PeerState::Failed
        } else {
            PeerState::Programmed
        },
        ..peer(1, 12)
    });
    let status = Status {
        peers: peers.collect(),
        ..healthy()
    };
    let start = Instant::now();
    let text = render(&status, Some(80), style(true));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(text.contains("10,000 peers, 9,999 programmed, 1 failed:"));
    assert_eq!(text.matches("/24").count(), 10_000 + 3);
}

#[test]
fn words_wrap_between_them() {
    assert_eq!(wrap("", Some(5)), [""]);
    assert_eq!(wrap("one two three", None), ["one two three"]);
    assert_eq!(wrap("one two three", Some(7)), ["one two", "three"]);
    assert_eq!(wrap("one two three", Some(3)), ["one", "two", "three"]);
    assert_eq!(wrap("three one", Some(0)), ["three", "one"]);
    assert_eq!(wrap("機械 機械", Some(5)), ["機械", "機械"]);
}
