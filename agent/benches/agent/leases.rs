//! The leases of peers that exist in etcd alone, and the program that writes them fast.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use etcd_client::{Client, PutOptions, Txn, TxnOp};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::cluster::ETCD;
use crate::host::Host;

/// The argument that makes this program the writer.
pub(crate) const WRITER: &str = "write-leases";
/// Peers by their numbers. The subnets below the first one's are for the programs that are measured, which take one of the
/// first that are free.
pub(crate) const FIRST: u16 = 500;
/// The prefix length of subnets.
pub(crate) const LEN: u8 = 25;
/// What the keys of leases begin with.
pub(crate) const PREFIX: &str = "/coreos.com/network/subnets/";
/// etcd's default limit for one transaction is 128.
const BULK: usize = 100;
/// Transactions under way at a time.
const IN_FLIGHT: usize = 32;
/// As long as flannel's.
const TTL: Duration = Duration::from_secs(86_400);

/// The network config: room for 65,536 subnets.
pub(crate) fn network(backend: &str) -> String {
    format!(r#"{{"Network":"10.128.0.0/9","SubnetLen":{LEN},"Backend":{{"Type":"{backend}"}}}}"#)
}

/// The first address of a peer's subnet, which is also its VTEP's.
pub(crate) fn subnet(peer: u16) -> Ipv4Addr {
    let network = Ipv4Addr::new(10, 128, 0, 0);
    Ipv4Addr::from_bits(network.to_bits() + (u32::from(peer) << (32 - LEN)))
}

/// The subnets of some peers.
pub(crate) fn subnets(peers: Range<u16>) -> HashSet<Ipv4Addr> {
    peers.map(subnet).collect()
}

/// A peer's underlay address, of the block for benchmarks (RFC 2544).
pub(crate) fn public_ip(peer: u16) -> Ipv4Addr {
    let [high, low] = peer.to_be_bytes();
    Ipv4Addr::new(198, 18, high, low)
}

/// A peer's VTEP.
pub(crate) fn mac(peer: u16) -> String {
    let [high, low] = peer.to_be_bytes();
    format!("02:00:00:00:{high:02x}:{low:02x}")
}

/// The key of a peer's lease.
pub(crate) fn key(peer: u16) -> String {
    format!("{PREFIX}{}-{LEN}", subnet(peer))
}

/// What a peer publishes.
pub(crate) fn value(peer: u16) -> String {
    format!(
        r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{}"}}}}"#,
        public_ip(peer),
        mac(peer)
    )
}

/// How keys are written.
#[derive(Clone, Copy)]
pub(crate) enum Pace {
    /// Many in one transaction: to be done soon.
    Bulk,
    /// Each by itself, as nodes do that know nothing of each other.
    Single,
}

impl Pace {
    fn batch(self) -> usize {
        match self {
            Self::Bulk => BULK,
            Self::Single => 1,
        }
    }
}

/// Deletes the leases of some peers and writes those of others.
pub(crate) fn change(host: &Host, pace: Pace, del: Range<u16>, put: Range<u16>) -> Result<()> {
    finish(start_change(host, pace, del, put)?)
}

/// The same, without waiting for the end.
pub(crate) fn start_change(
    host: &Host,
    pace: Pace,
    del: Range<u16>,
    put: Range<u16>,
) -> Result<Child> {
    let own = std::env::current_exe().context("this program's path")?;
    let mut command = host
        .namespace
        .command(own.to_str().context("a path that is not UTF-8")?);
    let numbers = [del.start, del.end, put.start, put.end];
    command
        .arg(WRITER)
        .arg(pace.batch().to_string())
        .args(numbers.map(|number| number.to_string()))
        .stdout(Stdio::null());
    command.spawn().context("the writer of leases")
}

/// Waits for the end of [`start_change`].
pub(crate) fn finish(mut writer: Child) -> Result<()> {
    let status = writer.wait().context("the writer of leases")?;
    ensure!(status.success(), "the writer of leases ended with {status}");
    Ok(())
}

/// The writer, in a host's namespace: `BATCH DEL-FROM DEL-TO PUT-FROM PUT-TO`.
pub(crate) fn write(words: &[&str]) -> Result<()> {
    let numbers: Vec<u16> = words
        .iter()
        .map(|word| word.parse().with_context(|| format!("{word:?}")))
        .collect::<Result<_>>()?;
    let [batch, del_from, del_to, put_from, put_to] = numbers[..] else {
        bail!("five numbers are needed, not {words:?}");
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(write_changes(
            usize::from(batch),
            del_from..del_to,
            put_from..put_to,
        ))
}

async fn write_changes(batch: usize, del: Range<u16>, put: Range<u16>) -> Result<()> {
    let mut client = Client::connect([ETCD], None).await?;
    let ttl = i64::try_from(TTL.as_secs())?;
    let lease = client.lease_grant(ttl, None).await?.id();
    let options = PutOptions::new().with_lease(lease);
    let mut changes: Vec<_> = del.map(|peer| TxnOp::delete(key(peer), None)).collect();
    changes.extend(put.map(|peer| TxnOp::put(key(peer), value(peer), Some(options.clone()))));
    stream::iter(changes.chunks(batch))
        .map(|changes| {
            let mut client = client.clone();
            async move { client.txn(Txn::new().and_then(changes)).await }
        })
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|_| std::future::ready(Ok(())))
        .await?;
    Ok(())
}
