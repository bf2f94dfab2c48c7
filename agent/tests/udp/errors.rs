//! What cannot go on: its sender is told, and nothing else happens.

use std::io::ErrorKind;
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::hosts::{connect, container, two_hosts};
use crate::traffic::{udp, wait_for};

#[test]
fn an_address_that_no_peer_has_is_unreachable_at_once() {
    let (a, b) = two_hosts();
    let (on_a, _on_b) = connect(&a, &b, 1);
    let report = a.ns.output("ping", "-c 1 -W 5 10.5.3.1");
    let report = String::from_utf8(report.stdout).unwrap();
    assert!(
        report.contains("From 10.5.1.0 icmp_seq=1 Destination Net Unreachable"),
        "{report}"
    );
    wait_for("both are counted", || {
        let counters = on_a.counters();
        (counters.no_route, counters.icmp_sent) == (1, 1)
    });

    // A program does not wait for an answer that cannot come.
    let _inside = a.ns.enter();
    let error = TcpStream::connect("10.5.3.1:9").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NetworkUnreachable);
}

#[test]
fn a_container_hears_of_errors_as_well() {
    // The kernel forwards for a container, so that the error is sent on.
    let (a, b) = two_hosts();
    let (on_a, _on_b) = connect(&a, &b, 1);
    let (container, _) = container(&a);
    container.run("ping", &format!("-q -c 1 -W 5 {}", b.overlay()));
    for (ttl, from) in [(1, "10.5.1.1"), (2, "10.5.1.0"), (3, "10.5.2.0")] {
        let report = container.output("ping", &format!("-n -c 1 -W 5 -t {ttl} {}", b.overlay()));
        let report = String::from_utf8(report.stdout).unwrap();
        let expected = format!("From {from} icmp_seq=1 Time to live exceeded");
        assert!(report.contains(&expected), "time to live {ttl}: {report}");
    }
    let report = container.output("ping", "-n -c 1 -W 5 10.5.9.9");
    let report = String::from_utf8(report.stdout).unwrap();
    assert!(report.contains("From 10.5.1.0"), "{report}");
    assert!(report.contains("Net Unreachable"), "{report}");
    wait_for("both are counted", || {
        let counters = on_a.counters();
        (counters.ttl_exceeded, counters.no_route) == (1, 1)
    });
}

#[test]
fn both_ends_count_as_a_hop() {
    let (a, b) = two_hosts();
    let (on_a, on_b) = connect(&a, &b, 1);
    let ping = |ttl| {
        let to = b.overlay();
        a.ns.output("ping", &format!("-n -c 1 -W 5 -t {ttl} {to}"))
    };
    for (ttl, from) in [(1, "10.5.1.0"), (2, "10.5.2.0")] {
        let report = String::from_utf8(ping(ttl).stdout).unwrap();
        let expected = format!("From {from} icmp_seq=1 Time to live exceeded");
        assert!(report.contains(&expected), "time to live {ttl}: {report}");
    }
    assert!(ping(3).status.success());
    wait_for("each is counted", || {
        [&on_a, &on_b].map(|plane| plane.counters().ttl_exceeded) == [1, 1]
    });
}

#[test]
fn a_flood_of_hopeless_packets_is_answered_sparingly() {
    let (a, b) = two_hosts();
    let (on_a, _on_b) = connect(&a, &b, 1);
    let socket = udp(&a);
    let start = Instant::now();
    // A send may fail with the error of the one before, and the device's queue may be full.
    wait_for("enough are counted", || {
        for _ in 0..100 {
            let _ = socket.send_to(b"hello", "10.5.3.1:9");
        }
        on_a.counters().no_route >= 2_000
    });
    let sent = u128::from(on_a.counters().icmp_sent);
    let allowed = 50 + start.elapsed().as_millis() / 10 + 1;
    assert!((50..=allowed).contains(&sent), "{sent} of {allowed}");
}

#[test]
fn garbage_from_the_underlay_is_counted_and_forgotten() {
    let (a, b) = two_hosts();
    let (on_a, on_b) = connect(&a, &b, 2);
    let inside = a.ns.enter();
    let stranger = UdpSocket::bind((a.underlay(), 0)).unwrap();
    drop(inside);
    let long = [0x45; 3000];
    let payloads: [&[u8]; 6] = [b"", b"E", &[0; 20], &[0x65; 40], &long, &[0xff; 1472]];
    for payload in payloads {
        stranger.send_to(payload, b.endpoint()).unwrap();
    }
    wait_for("all are counted", || on_b.counters().malformed == 6);
    assert_eq!(on_b.counters().received_packets, 0);
    assert_eq!(on_b.counters().unknown_peer, 0, "a is a peer");
    // Life goes on.
    a.ns.run("ping", &format!("-q -c 1 -W 5 {}", b.overlay()));
    assert!(on_a.is_alive() && on_b.is_alive());

    // Without the route nobody expects anything from there, but it is taken all the same.
    on_b.remove(a.subnet());
    let (near, far) = (udp(&a), udp(&b));
    near.send_to(b"hello", far.local_addr().unwrap()).unwrap();
    far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(far.recv(&mut [0; 9]).unwrap(), 5);
    // A worker that is still busy with what came before goes on with the table that it has.
    wait_for("they are counted", || {
        near.send_to(b"hello", far.local_addr().unwrap()).unwrap();
        on_b.counters().unknown_peer > 0
    });
}
