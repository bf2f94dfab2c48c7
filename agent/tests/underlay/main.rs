//! The choice of the underlay in a real kernel, each test in a network namespace of its own.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends by panicking"
)]

use std::future::Future;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use selvage::cluster::network_config::Families;
use selvage::host::underlay::discover;
use selvage::plan::underlay::Underlay;
use selvage::settings::{Interface, Pattern, Underlay as Wanted};

mod dual_stack;
mod ipv4;
mod routes;
mod ways;

/// How long one test may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a test in a network namespace of its own.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of one's own needs root");
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        let test = async { tokio::time::timeout(DEADLINE, test()).await };
        runtime.block_on(test).unwrap();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {stderr}");
}

/// Makes the devices u0 and u1, which are the ends of one cable.
fn cable() {
    ip("link set lo up");
    ip("link add u0 mtu 1400 type veth peer name u1");
    for device in ["u0", "u1"] {
        ip(&format!("link set {device} up"));
    }
}

/// Gives a device an address that can be used at once.
fn address(device: &str, address: &str) {
    let nodad = if address.contains(':') { " nodad" } else { "" };
    ip(&format!("address add {address} dev {device}{nodad}"));
}

/// Sets net.ipv6.conf.DEVICE.NAME of this namespace.
fn sysctl(device: &str, name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/{name}"), value).unwrap();
}

const V4: Families = Families {
    v4: Some(ipnet::Ipv4Net::new_assert(
        std::net::Ipv4Addr::new(10, 5, 0, 0),
        16,
    )),
    v6: None,
};
const V6: Families = Families {
    v4: None,
    v6: Some(ipnet::Ipv6Net::new_assert(
        std::net::Ipv6Addr::new(0xfd00, 5, 0, 0, 0, 0, 0, 0),
        48,
    )),
};
const DUAL: Families = Families {
    v4: V4.v4,
    v6: V6.v6,
};

/// Nothing asked for.
fn any() -> Wanted {
    Wanted::default()
}

/// An interface by its name or by an address.
fn named(text: &str) -> Wanted {
    let interface = match text.parse() {
        Ok(address) => Interface::Address(address),
        Err(_) => Interface::Name(text.parse().unwrap()),
    };
    Wanted {
        interfaces: vec![interface],
        ..any()
    }
}

fn matching(pattern: &str) -> Wanted {
    Wanted {
        interface_regex: vec![Pattern::new(pattern).unwrap()],
        ..any()
    }
}

fn reaching(address: &str) -> Wanted {
    Wanted {
        can_reach: Some(address.parse().unwrap()),
        ..any()
    }
}

fn inside(network: &str) -> Wanted {
    Wanted {
        interface_cidr: vec![network.parse().unwrap()],
        ..any()
    }
}

/// What is found, as text: `u0 10.77.0.11 2001:db8::11`, or why nothing is.
async fn found(wanted: &Wanted, families: Families, current: Option<&Underlay>) -> String {
    match discover(wanted, families, current).await {
        Ok(underlay) => place(&underlay),
        Err(error) => error.to_string(),
    }
}

fn place(underlay: &Underlay) -> String {
    let v4 = underlay.v4.map(|v4| format!(" {}", v4.address));
    let v6 = underlay.v6.map(|v6| format!(" {}", v6.address));
    let [v4, v6] = [v4, v6].map(Option::unwrap_or_default);
    format!("{}{v4}{v6}", underlay.name)
}
