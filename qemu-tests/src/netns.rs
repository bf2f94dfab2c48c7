//! A container's network as its host sees it, whatever runtime made it.
//!
//! Commands run in the container's network namespace with the host's programs: no runtime has to start a process in the
//! container, which costs a software-emulated guest seconds, and Docker and CNI containers are asked the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use ipnet::{Ipv4Net, Ipv6Net};
use serde_json::Value;

use crate::{container::CLIENT_PAGE, machine::Machine, switch::capture::MARK};

/// Echo requests of one measurement.
const PINGS: u32 = 3;
/// Header of an ICMP echo (RFC 792, RFC 4443).
const ECHO_HEADER: u32 = 8;

/// A container's network namespace.
#[derive(Debug)]
pub(crate) struct Netns<'a> {
    machine: &'a Machine,
    process: u32,
    /// What the container's interface has.
    pub interface: Interface,
}

/// Addresses and MTU of a container's `eth0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interface {
    /// IPv4 address in its subnet.
    pub v4: Option<Ipv4Net>,
    /// Global IPv6 address in its subnet.
    pub v6: Option<Ipv6Net>,
    /// MTU in bytes.
    pub mtu: u32,
}

impl<'a> Netns<'a> {
    /// The namespace of process number `process` of a machine.
    ///
    /// # Errors
    /// When there is none, or it has no `eth0`.
    pub(crate) async fn of(machine: &'a Machine, process: u32) -> Result<Self> {
        let script = format!("sudo nsenter --target {process} --net ip -j addr show dev eth0");
        let said = machine.ssh.run(&script).await?;
        let interface = interface(&said)
            .with_context(|| format!("{}: container's eth0: {said}", machine.name()))?;
        Ok(Self {
            machine,
            process,
            interface,
        })
    }

    /// The machine it is on.
    pub(crate) fn host(&self) -> &str {
        self.machine.name()
    }

    async fn run(&self, command: &str) -> Result<String> {
        let process = self.process;
        self.machine
            .ssh
            .run(&format!("sudo nsenter --target {process} --net {command}"))
            .await
    }

    /// Sends marked pings that make IP packets of `bytes`, which must cross whole and all come back.
    ///
    /// # Errors
    /// What ping said when one is missing.
    pub(crate) async fn ping(&self, target: IpAddr, bytes: u32) -> Result<()> {
        let header = if target.is_ipv4() { 20 } else { 40 };
        let payload = bytes.saturating_sub(header + ECHO_HEADER);
        let said = self
            .run(&format!(
                "ping -n -q -M do -c {PINGS} -i 0.2 -W 10 -p {MARK:02x} -s {payload} {target}"
            ))
            .await
            .with_context(|| format!("{}: {bytes} bytes to {target}", self.host()))?;
        ensure!(
            said.contains(" 0% packet loss"),
            "{}: {bytes} bytes to {target}: {said}",
            self.host()
        );
        Ok(())
    }

    /// The address that the web server at `server` saw when this container asked it.
    ///
    /// # Errors
    /// When there is no answer within 20 s, or it is no address.
    pub(crate) async fn seen_by(&self, server: SocketAddr) -> Result<IpAddr> {
        let url = format!("http://{server}{CLIENT_PAGE}");
        let said = self
            .run(&format!("curl -sSf --globoff --max-time 20 '{url}'"))
            .await?;
        let seen: IpAddr = said
            .trim()
            .trim_matches(['[', ']'])
            .parse()
            .with_context(|| format!("{}: answer of {url}: {said:?}", self.host()))?;
        // A server that listens for both families calls IPv4 clients by their mapped address.
        Ok(seen.to_canonical())
    }
}

fn interface(answer: &str) -> Result<Interface> {
    let answer: Value = serde_json::from_str(answer).context("not JSON")?;
    let eth0 = answer.get(0).context("no interface")?;
    let address = |family: &str| {
        let addresses = eth0["addr_info"].as_array()?;
        let info = addresses
            .iter()
            .find(|info| info["family"] == family && info["scope"] == "global")?;
        let prefix: u8 = info["prefixlen"].as_u64()?.try_into().ok()?;
        Some((info["local"].as_str()?, prefix))
    };
    Ok(Interface {
        v4: address("inet")
            .map(|(local, prefix)| {
                let local: Ipv4Addr = local.parse()?;
                anyhow::Ok(Ipv4Net::new(local, prefix)?)
            })
            .transpose()?,
        v6: address("inet6")
            .map(|(local, prefix)| {
                let local: Ipv6Addr = local.parse()?;
                anyhow::Ok(Ipv6Net::new(local, prefix)?)
            })
            .transpose()?,
        mtu: eth0["mtu"]
            .as_u64()
            .and_then(|mtu| mtu.try_into().ok())
            .context("no MTU")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_are_read() {
        let said = r#"[{},{"ifname":"eth0","mtu":1450}]"#;
        assert!(interface(said).is_err());
        let said = r#"[{"ifname":"eth0","mtu":1430,"addr_info":[
            {"family":"inet","local":"10.5.7.2","prefixlen":24,"scope":"global"},
            {"family":"inet6","local":"fe80::1","prefixlen":64,"scope":"link"},
            {"family":"inet6","local":"fd05:0:0:7::2","prefixlen":64,"scope":"global"}]}]"#;
        let interface = interface(said).unwrap();
        assert_eq!(interface.v4.unwrap().to_string(), "10.5.7.2/24");
        assert_eq!(interface.v6.unwrap().to_string(), "fd05:0:0:7::2/64");
        assert_eq!(interface.mtu, 1430);
    }
}
