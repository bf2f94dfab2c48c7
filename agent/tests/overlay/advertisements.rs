//! What a host that is not the image does after `make install`: forwarding is switched on, and the default route that the
//! kernel has from router advertisements stays.

use std::net::Ipv6Addr;
use std::os::fd::AsRawFd;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, socket,
};

use crate::namespace::Namespace;
use crate::wait::wait_until;

/// A program and settings of the repository, as they are installed.
const UNITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../units");

/// Has the router tell the host that it is there (RFC 4861 §4.2), for half an hour.
fn advertise(router: &Namespace, to: Ipv6Addr) {
    let link = router.ip("-o link show dev eth0");
    let index = link.split(':').next().and_then(|index| index.parse().ok());
    let index: u32 = index.expect("an index");
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| {
            setns(router, CloneFlags::CLONE_NEWNET).expect("to enter the namespace");
            let socket = socket(
                AddressFamily::Inet6,
                SockType::Raw,
                SockFlag::empty(),
                SockProtocol::IcmpV6,
            )
            .expect("a raw socket");
            // The kernel adds the checksum.
            let mut message = [0; 16];
            message[0] = 134;
            message[4] = 64;
            message[6..8].copy_from_slice(&1800_u16.to_be_bytes());
            let to = std::net::SocketAddrV6::new(to, 0, 0, index);
            sendto(
                socket.as_raw_fd(),
                &message,
                &SockaddrIn6::from(to),
                MsgFlags::empty(),
            )
        });
        sent.join().expect("the thread").expect("to send");
    });
}

fn link_local(namespace: &Namespace) -> Ipv6Addr {
    let mut found = None;
    wait_until("a link-local address", || {
        let text = namespace.ip("-6 -o address show dev eth0 scope link -tentative");
        let net = text
            .split_whitespace()
            .skip_while(|word| *word != "inet6")
            .nth(1);
        found = net.and_then(|net| net.split('/').next()?.parse().ok());
        found.is_some()
    });
    found.expect("one")
}

fn accept_ra(host: &Namespace, device: &str) -> String {
    let file = format!("/proc/sys/net/ipv6/conf/{device}/accept_ra");
    host.run(&format!("cat {file}")).trim().to_owned()
}

#[test]
fn default_route_of_an_advertisement_outlives_forwarding() {
    let [host, router] = [(); 2].map(|()| Namespace::new());
    host.connect("eth0", &router, "eth0");
    host.ip("link add eth1 type veth peer name far");
    for namespace in [&host, &router] {
        namespace.ip("link set eth0 up");
    }
    // As a daemon has it that listens itself.
    host.sysctl("net.ipv6.conf.eth1.accept_ra", "0");
    host.sysctl("net.ipv6.conf.eth0.accept_ra", "1");
    router.sysctl("net.ipv6.conf.eth0.hop_limit", "255");
    let address = link_local(&host);
    link_local(&router);
    let has_default = || host.ip("-6 route show default").contains("proto ra");
    wait_until("a default route", || {
        advertise(&router, address);
        has_default()
    });

    // What systemd-sysctl.service does: first what its drop-in says, then what the file has.
    let dropin = format!("{UNITS}/system/systemd-sysctl.service.d/50-selvage.conf");
    let dropin = std::fs::read_to_string(dropin).expect("the drop-in");
    let program = dropin
        .lines()
        .find_map(|line| line.strip_prefix("ExecStartPre=-/usr/lib/selvage/"))
        .expect("a program");
    host.run(&format!("{UNITS}/selvage/{program}"));
    let settings = std::fs::read_to_string(format!("{UNITS}/sysctl.d/50-selvage.conf"));
    let settings = settings.expect("the sysctls");
    let lines = settings.lines().filter_map(|line| line.split_once(" = "));
    for (name, value) in lines.filter(|(name, _)| name.starts_with("net.ipv6.")) {
        host.sysctl(name, value);
    }

    let forwarding = host.run("cat /proc/sys/net/ipv6/conf/eth0/forwarding");
    assert_eq!(forwarding.trim(), "1");
    assert!(has_default(), "{}", host.ip("-6 route show"));
    host.ip("-6 route del default");
    wait_until("the default route again", || {
        advertise(&router, address);
        has_default()
    });
    assert_eq!(accept_ra(&host, "eth1"), "0");
    host.ip("link add eth2 type veth peer name far2");
    assert_eq!(accept_ra(&host, "eth2"), "2");
}
