//! The choice of the underlay in a real kernel, in a network namespace of its own:
//!
//! ```text
//!   lo 127.0.0.1        u0 10.77.0.11/24 ── veth ── u1 192.0.2.1/24
//!                       └─ default via 10.77.0.1 metric 200    └─ default via 192.0.2.2 metric 100
//! ```

#![expect(clippy::unwrap_used, reason = "a test ends by panicking")]

use std::net::Ipv4Addr;
use std::process::Command;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use selvage::settings::{Interface, Underlay as Wanted};
use selvage::underlay::{Attachment, Underlay, discover};

fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {stderr}");
}

fn wanted(interface: Option<Interface>) -> Wanted {
    Wanted {
        interfaces: interface.into_iter().collect(),
        ..Wanted::default()
    }
}

fn named(name: &str) -> Wanted {
    wanted(Some(Interface::Name(name.parse().unwrap())))
}

async fn check() {
    let error = discover(&wanted(None), None).await.unwrap_err();
    assert!(error.is_transient());
    let message = error.to_string();
    assert!(message.contains("lo (no IPv4 address)"), "{message}");

    ip("link set lo up");
    ip("link add u0 mtu 1400 type veth peer name u1");
    ip("address add 10.77.0.11/24 dev u0");
    ip("address add 192.0.2.1/24 dev u1");
    ip("link set u0 up");
    ip("link set u1 up");
    ip("route add default via 10.77.0.1 metric 200");
    ip("route add default via 192.0.2.2 metric 100");
    // Neither another table's nor a blackhole is a way to anywhere.
    ip("route add default via 10.77.0.1 table 77");
    ip("route add blackhole default metric 50");

    let by_name = discover(&named("u0"), None).await.unwrap();
    let expected = Underlay {
        index: by_name.index,
        name: "u0".parse().unwrap(),
        mtu: 1400,
        v4: Some(Attachment {
            address: Ipv4Addr::new(10, 77, 0, 11),
            prefix_len: 24,
            public: Ipv4Addr::new(10, 77, 0, 11),
        }),
        v6: None,
    };
    assert_eq!(by_name, expected);
    let address = Interface::Address(Ipv4Addr::new(10, 77, 0, 11).into());
    assert_eq!(
        discover(&wanted(Some(address)), None).await.unwrap(),
        expected
    );
    let by_route = discover(&wanted(None), None).await.unwrap();
    assert_eq!((by_route.name.as_str(), by_route.mtu), ("u1", 1500));

    stays(&by_route).await;

    let message = discover(&named("u7"), None).await.unwrap_err().to_string();
    assert!(message.contains("u0 (10.77.0.11/24)"), "{message}");
    let message = discover(&named("lo"), None).await.unwrap_err().to_string();
    assert!(message.contains("no usable IPv4 address"), "{message}");
}

/// What may happen beside a running overlay on `u1`, and what makes it move.
async fn stays(current: &Underlay) {
    // As if from DHCP, so that a permanent service address comes first. So does a route of a lower metric.
    ip("address change 192.0.2.1/24 dev u1 valid_lft 1000 preferred_lft 1000");
    ip("address add 192.0.2.100/32 dev u1");
    ip("route add default via 10.77.0.1 metric 10");
    let moved = discover(&named("u1"), None).await.unwrap();
    assert_eq!(moved.v4.unwrap().address, Ipv4Addr::new(192, 0, 2, 100));
    let moved = discover(&wanted(None), None).await.unwrap();
    assert_eq!(moved.name.as_str(), "u0");
    for asked in [wanted(None), named("u1")] {
        let kept = discover(&asked, Some(current)).await.unwrap();
        assert_eq!(kept, *current);
    }
    ip("link set u1 mtu 1450");
    let kept = discover(&wanted(None), Some(current)).await.unwrap();
    assert_eq!(
        (kept.v4.unwrap().address, kept.mtu),
        (current.v4.unwrap().address, 1450)
    );

    // One of two ways out is enough, whichever it is.
    ip("route del default metric 100");
    ip("route add default metric 100 nexthop via 10.77.0.1 nexthop via 192.0.2.2");
    let kept = discover(&wanted(None), Some(current)).await.unwrap();
    assert_eq!(kept.name.as_str(), "u1");
    ip("route del default metric 100");
    let moved = discover(&wanted(None), Some(current)).await.unwrap();
    assert_eq!(moved.name.as_str(), "u0");

    ip("address del 192.0.2.1/24 dev u1");
    let moved = discover(&named("u1"), Some(current)).await.unwrap();
    assert_eq!(moved.v4.unwrap().address, Ipv4Addr::new(192, 0, 2, 100));
}

#[test]
fn interface_is_found_by_name_by_address_and_by_default_route() {
    let thread = std::thread::spawn(|| {
        match unshare(CloneFlags::CLONE_NEWNET) {
            Err(Errno::EPERM) => {
                eprintln!("skipped: no right to make a network namespace; run as root");
                return;
            }
            made => made.unwrap(),
        }
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(check());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
