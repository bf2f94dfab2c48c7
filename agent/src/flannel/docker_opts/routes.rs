//! Finds gateway routes that the kernel already has for a subnet.

use std::fs;
use std::io;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// The text form of the kernel's main routing table: `fib_route_seq_show()` in net/ipv4/fib_trie.c.
const TABLE: &str = "/proc/net/route";

/// `RTF_GATEWAY` of linux/route.h: the route has a gateway.
const GATEWAY: u32 = 0x2;

/// The gateway routes to exactly this subnet, in the form in which `ip route` begins its lines.
///
/// # Errors
/// If the table cannot be read.
pub(super) fn gateways(subnet: Ipv4Net) -> io::Result<Vec<String>> {
    Ok(find(&fs::read_to_string(TABLE)?, subnet))
}

fn find(table: &str, subnet: Ipv4Net) -> Vec<String> {
    let route = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let device = fields.next()?;
        let destination = address(fields.next()?)?;
        let gateway = address(fields.next()?)?;
        let flags = u32::from_str_radix(fields.next()?, 16).ok()?;
        // Skip reference count, use and metric.
        let mask = address(fields.nth(3)?)?;
        let here = destination == subnet.network() && mask == subnet.netmask();
        (here && flags & GATEWAY != 0).then(|| format!("{subnet} via {gateway} dev {device}"))
    };
    table.lines().skip(1).filter_map(route).collect()
}

/// An address as the kernel prints it: its four bytes as a number in host byte order.
fn address(field: &str) -> Option<Ipv4Addr> {
    let number = u32::from_str_radix(field, 16).ok()?;
    Some(Ipv4Addr::from(number.to_ne_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn only_the_very_subnet_behind_a_gateway_is_found() {
        let table = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t004A010A\t0900000A\t0003\t0\t0\t0\t00FFFFFF\t0\t0\t0
docker0\t004A010A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth0\t004A010A\t0900000A\t0003\t0\t0\t0\t80FFFFFF\t0\t0\t0
eth0\t004B010A\t0900000A\t0003\t0\t0\t0\t00FFFFFF\t0\t0\t0
broken line
";
        let subnet = "10.1.74.0/24".parse().unwrap();
        assert_eq!(find(table, subnet), ["10.1.74.0/24 via 10.0.0.9 dev eth0"]);
    }

    #[test]
    fn this_machines_table_can_be_read() {
        assert!(gateways("192.0.2.0/24".parse().unwrap()).is_ok());
    }
}
