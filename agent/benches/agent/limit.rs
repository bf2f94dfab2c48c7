//! The limit for programming peers: netlink requests that are ready beforehand, many in each datagram, and nothing else.
//!
//! The objects are those that the agent makes: a forwarding entry, a neighbour, a next hop and a route for each peer.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::net::if_::if_nametoindex;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

use crate::host::Host;
use crate::leases::{LEN, mac, public_ip, subnet};
use crate::tools::add_device;
use crate::turns::{Figures, Metric};

/// The argument that makes this program the sender of requests.
pub(crate) const SENDER: &str = "send-requests";
/// Its name in the table.
pub(crate) const NAME: &str = "netlink alone";
/// As many as the agent's.
const BATCH: usize = 128;
/// Flags of requests (linux/netlink.h): `NLM_F_REQUEST` with `NLM_F_CREATE` and `NLM_F_EXCL` to add, alone to delete;
/// `NLM_F_ACK` for the last of a datagram.
const ADD: u16 = 0x601;
const DEL: u16 = 0x001;
const ACK: u16 = 0x004;
/// The route protocol number for routes made by hand.
const STATIC: u8 = 4;

/// Programs some peers on a host and removes them again, in a process of its own, and takes in what both cost.
pub(crate) fn program(host: &Host, peers: Range<u16>, figures: &mut Figures) -> Result<()> {
    add_device(host);
    let own = std::env::current_exe().context("this program's path")?;
    let output = host
        .namespace
        .command(own.to_str().context("a path that is not UTF-8")?)
        .args([
            SENDER.to_owned(),
            peers.start.to_string(),
            peers.end.to_string(),
        ])
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "the sender of requests failed: {errors}"
    );
    let text = String::from_utf8(output.stdout)?;
    let metrics = [
        Metric::Programmed,
        Metric::ProgrammedCpu,
        Metric::Removed,
        Metric::RemovedCpu,
    ];
    for (metric, micros) in metrics.into_iter().zip(text.split_whitespace()) {
        figures.add(metric, Duration::from_micros(micros.parse()?).as_secs_f64());
    }
    Ok(())
}

/// The sender, in a host's namespace: `FROM TO`. Prints time and processor time, in microseconds, of adding and deleting.
pub(crate) fn send(words: &[&str]) -> Result<()> {
    let [from, to] = words else {
        bail!("two numbers are needed, not {words:?}");
    };
    let peers: Range<u16> = from.parse()?..to.parse()?;
    let link = if_nametoindex("flannel.1").context("the device")?;
    let mut add: Vec<Vec<u8>> = Vec::new();
    for kind in [fdb, neighbor, next_hop, route] {
        add.extend(peers.clone().map(|peer| kind(link, peer, true)));
    }
    let mut del: Vec<Vec<u8>> = Vec::new();
    for kind in [route, next_hop, neighbor, fdb] {
        del.extend(peers.clone().map(|peer| kind(link, peer, false)));
    }
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    for requests in [add, del] {
        let datagrams: Vec<_> = requests.chunks(BATCH).map(datagram).collect();
        let (before, start) = (cpu()?, Instant::now());
        for datagram in &datagrams {
            exchange(&socket, datagram)?;
        }
        let time = start.elapsed();
        println!("{} {}", time.as_micros(), (cpu()? - before).as_micros());
    }
    Ok(())
}

/// Processor time of this process so far.
fn cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let time = |time: TimeVal| {
        let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
        Ok::<_, anyhow::Error>(Duration::from_micros(u64::try_from(micros)?))
    };
    Ok(time(usage.user_time())? + time(usage.system_time())?)
}

/// Sends a datagram and waits for the acknowledgement of its last request; any refusal comes first.
fn exchange(socket: &Socket, datagram: &[u8]) -> Result<()> {
    socket.send_to(datagram, &SocketAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    // `struct nlmsghdr`, then the error number of `struct nlmsgerr`.
    let error = answer.get(16..20).and_then(|error| error.first_chunk());
    let error = i32::from_ne_bytes(*error.context("a short answer")?);
    ensure!(error == 0, "the kernel refused a request: error {error}");
    Ok(())
}

/// Requests as one datagram.
fn datagram(requests: &[Vec<u8>]) -> Vec<u8> {
    let mut datagram = requests.concat();
    let last = datagram.len() - requests.last().map_or(0, Vec::len);
    let flags = [datagram[last + 6], datagram[last + 7]];
    let flags = u16::from_ne_bytes(flags) | ACK;
    datagram[last + 6..last + 8].copy_from_slice(&flags.to_ne_bytes());
    datagram
}

/// One request: `struct nlmsghdr`, the fixed part, and attributes.
fn request(kind: u16, flags: u16, fixed: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    bytes.extend(fixed);
    for (kind, value) in attributes {
        // Addresses and numbers of this program fit.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(*value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

/// The message type and flags to add or delete an object: types come in pairs.
fn verb(new: u16, add: bool) -> (u16, u16) {
    if add { (new, ADD) } else { (new + 1, DEL) }
}

/// The octets of a peer's VTEP.
fn mac_octets(peer: u16) -> Vec<u8> {
    let text = mac(peer);
    let octets = text.split(':');
    octets
        .filter_map(|octet| u8::from_str_radix(octet, 16).ok())
        .collect()
}

/// `RTM_NEWNEIGH` with `struct ndmsg`: a permanent entry.
fn entry(link: u32, add: bool, family: u8, flags: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let (kind, verb) = verb(28, add);
    let mut fixed = vec![family, 0, 0, 0];
    fixed.extend(link.to_ne_bytes());
    fixed.extend(0x80_u16.to_ne_bytes());
    fixed.extend([flags, 0]);
    request(kind, verb, &fixed, attributes)
}

fn fdb(link: u32, peer: u16, add: bool) -> Vec<u8> {
    let (mac, remote) = (mac_octets(peer), public_ip(peer).octets());
    // `AF_BRIDGE` and `NTF_SELF`; `NDA_LLADDR` and `NDA_DST`.
    entry(link, add, 7, 2, &[(2, &mac), (1, &remote)])
}

fn neighbor(link: u32, peer: u16, add: bool) -> Vec<u8> {
    let (address, mac) = (subnet(peer).octets(), mac_octets(peer));
    entry(link, add, 2, 0, &[(1, &address), (2, &mac)])
}

/// The number of a peer's next hop.
fn number(peer: u16) -> [u8; 4] {
    (u32::from(peer) + 1).to_ne_bytes()
}

/// `RTM_NEWNEXTHOP` with `struct nhmsg`: `NHA_ID`, `NHA_OIF`, `NHA_GATEWAY`, and `RTNH_F_ONLINK`.
fn next_hop(link: u32, peer: u16, add: bool) -> Vec<u8> {
    let (kind, verb) = verb(104, add);
    let (id, gateway) = (number(peer), subnet(peer).octets());
    if !add {
        return request(kind, verb, &[0; 8], &[(1, &id)]);
    }
    let mut fixed = vec![2, 0, STATIC, 0];
    fixed.extend(4_u32.to_ne_bytes());
    let link = link.to_ne_bytes();
    request(kind, verb, &fixed, &[(1, &id), (5, &link), (6, &gateway)])
}

/// `RTM_NEWROUTE` with `struct rtmsg`: a unicast route of the main table, with `RTA_DST` and `RTA_NH_ID`.
fn route(_: u32, peer: u16, add: bool) -> Vec<u8> {
    let (kind, verb) = verb(24, add);
    let (id, destination) = (number(peer), subnet(peer).octets());
    let mut fixed = vec![2, LEN, 0, 0, 254, STATIC, 0, 1];
    fixed.extend([0; 4]);
    request(kind, verb, &fixed, &[(1, &destination), (30, &id)])
}
