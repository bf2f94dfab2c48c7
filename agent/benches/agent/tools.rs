//! ip(8) and bridge(8) in batch mode with the objects that flannel makes for a peer: the limit for a program that sends one
//! request after the other.

use std::fmt::Write;
use std::ops::Range;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::NamedTempFile;

use crate::host::Host;
use crate::leases::{LEN, mac, public_ip, subnet};
use crate::process::cpu_of_children;

/// Time on the clock and of the processor.
pub(crate) struct Cost {
    pub(crate) time: Duration,
    pub(crate) cpu: Duration,
}

/// Makes the device that peers are reached over.
pub(crate) fn add_device(host: &Host) {
    host.namespace.ip(&format!(
        "link add flannel.1 type vxlan id 1 dev eth0 local {} dstport 8472 nolearning",
        host.address
    ));
    host.namespace.ip("link set flannel.1 up");
}

/// Makes the device, then a neighbour, a forwarding entry and an onlink route for each peer.
pub(crate) fn program(host: &Host, peers: Range<u16>) -> Result<Cost> {
    add_device(host);
    let (mut neighbors, mut entries, mut routes) = (String::new(), String::new(), String::new());
    for peer in peers {
        let (subnet, mac, public_ip) = (subnet(peer), mac(peer), public_ip(peer));
        writeln!(
            neighbors,
            "neighbor replace {subnet} lladdr {mac} dev flannel.1 nud permanent"
        )?;
        writeln!(
            entries,
            "fdb replace {mac} dev flannel.1 dst {public_ip} self permanent"
        )?;
        writeln!(
            routes,
            "route replace {subnet}/{LEN} via {subnet} dev flannel.1 onlink"
        )?;
    }
    let before = cpu_of_children()?;
    let mut time = Duration::ZERO;
    for (tool, lines) in [("ip", &neighbors), ("bridge", &entries), ("ip", &routes)] {
        time += batch(host, tool, lines)?;
    }
    let cpu = cpu_of_children()?.saturating_sub(before);
    Ok(Cost { time, cpu })
}

fn batch(host: &Host, tool: &str, lines: &str) -> Result<Duration> {
    let file = NamedTempFile::new().context("a batch file")?;
    std::fs::write(&file, lines).context("a batch file")?;
    let mut command = host.namespace.command(tool);
    command.arg("-batch").arg(file.path()).stdout(Stdio::null());
    let start = Instant::now();
    let status = command.status().with_context(|| tool.to_owned())?;
    let time = start.elapsed();
    ensure!(status.success(), "`{tool} -batch` ended with {status}");
    Ok(time)
}
