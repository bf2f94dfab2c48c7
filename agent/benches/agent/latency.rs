//! From a peer's lease in etcd to its route in the kernel.
//!
//! The limit is what every watcher of etcd has to wait for: the same put until it comes out of a watch of our own.

use std::net::Ipv4Addr;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use etcd_client::{Client, WatchOptions, WatchStream};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use crate::Bench;
use crate::cluster::ETCD;
use crate::leases::{self, FIRST, LEN};
use crate::scale::{REST, milliseconds};
use crate::table::{Beside, Row, Table, Target, Unit};
use crate::turns::{self, Figures, Metric};

/// The argument that makes this program the observer.
pub(crate) const OBSERVER: &str = "observe-leases";
const TURNS: usize = 3;
const PUTS: u16 = 200;
/// So that one lease is not waited for while another is handled.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a route may take.
const LIMIT: Duration = Duration::from_secs(5);

impl Bench {
    /// Leases that come one by one: until the route is there, and until etcd's own watch tells.
    pub(crate) fn latency(&self, table: &mut Table) {
        let what = "a peer's lease in etcd to its route in the kernel";
        let all = turns::take(what, TURNS, &self.names(), |place, figures| {
            self.scrub();
            let mut running = self.programs[place].start(&self.hosts[0])?;
            running.wait_subnet_env()?;
            std::thread::sleep(REST);
            self.observe(figures)
        });
        self.scrub();
        // The same puts as the watch saw them, to stand beside the routes.
        let mut watched = Figures::default();
        for (from, to) in [
            (Metric::Watch, Metric::Route),
            (Metric::WatchTail, Metric::RouteTail),
        ] {
            for value in all[0].values(from) {
                watched.add(to, *value);
            }
        }
        let rival = || Beside::Rival(all.get(1));
        let limit = || Beside::Other("etcd's put and watch alone", &watched);
        for (what, metric, beside, most) in [
            (format!("{what}, median"), Metric::Route, rival(), Some(1.5)),
            (format!("{what}, median"), Metric::Route, limit(), None),
            (
                format!("{what}, 99th percentile"),
                Metric::RouteTail,
                rival(),
                Some(4.0),
            ),
            (
                format!("{what}, 99th percentile"),
                Metric::RouteTail,
                limit(),
                None,
            ),
        ] {
            let targets: Vec<_> = most.map(Target::AtMost).into_iter().collect();
            table.add(&Row {
                what,
                unit: Unit::Milliseconds,
                metric,
                own: &all[0],
                beside,
                targets: &targets,
            });
        }
    }

    /// Lets the observer put leases, and takes in its figures.
    fn observe(&self, figures: &mut Figures) -> Result<()> {
        let own = std::env::current_exe().context("this program's path")?;
        let own = own.to_str().context("a path that is not UTF-8")?;
        let output = self.hosts[0]
            .namespace
            .command(own)
            .arg(OBSERVER)
            .output()?;
        ensure!(
            output.status.success(),
            "the observer ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let (mut routes, mut watches) = (Vec::new(), Vec::new());
        for line in String::from_utf8(output.stdout)?.lines() {
            let (route, watch) = line.split_once(' ').context("two numbers")?;
            routes.push(milliseconds(Duration::from_micros(route.parse()?)));
            watches.push(milliseconds(Duration::from_micros(watch.parse()?)));
        }
        ensure!(routes.len() == usize::from(PUTS), "{} puts", routes.len());
        for (times, median, tail) in [
            (&mut routes, Metric::Route, Metric::RouteTail),
            (&mut watches, Metric::Watch, Metric::WatchTail),
        ] {
            times.sort_by(f64::total_cmp);
            figures.add(median, times[times.len() / 2]);
            figures.add(tail, times[times.len() * 99 / 100]);
        }
        Ok(())
    }
}

/// The observer, in a host's namespace: puts leases one by one, and prints for each after how many microseconds its route
/// was there, and the watch's event.
pub(crate) fn observe() -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(put_all())
}

async fn put_all() -> Result<()> {
    let mut routes = TokioSocket::new(NETLINK_ROUTE)?;
    routes.socket_mut().bind(&SocketAddr::new(0, 0))?;
    let group = MulticastGroup::Ipv4Route as u32;
    routes.socket_mut().add_membership(group)?;
    let mut client = Client::connect([ETCD], None).await?;
    let options = WatchOptions::new().with_prefix();
    let mut watch = client.watch(leases::PREFIX, Some(options)).await?;
    let mut measured = Ok(());
    for peer in FIRST..FIRST + PUTS {
        measured = measure(peer, &client, &mut watch, &mut routes).await;
        if measured.is_err() {
            break;
        }
    }
    // In every case: the next program would have these routes from the start.
    for peer in FIRST..FIRST + PUTS {
        client.delete(leases::key(peer), None).await?;
    }
    measured
}

/// Puts a peer's lease, and prints how long it took until the route was there, and the event.
async fn measure(
    peer: u16,
    client: &Client,
    watch: &mut WatchStream,
    routes: &mut TokioSocket,
) -> Result<()> {
    let timeout = tokio::time::timeout(LIMIT, put(peer, client, watch, routes));
    let (route, event) = timeout.await.with_context(|| format!("peer {peer}"))??;
    println!("{} {}", route.as_micros(), event.as_micros());
    tokio::time::sleep(PAUSE).await;
    Ok(())
}

/// Puts a peer's lease; returns how long it took until the route was there, and the event.
async fn put(
    peer: u16,
    client: &Client,
    watch: &mut WatchStream,
    routes: &mut TokioSocket,
) -> Result<(Duration, Duration)> {
    let mut client = client.kv_client();
    let wanted = leases::subnet(peer);
    let mut datagram = Vec::with_capacity(64 << 10);
    let start = Instant::now();
    let mut put = pin!(client.put(leases::key(peer), leases::value(peer), None));
    let (mut is_put, mut route, mut event) = (false, None, None);
    loop {
        if let (true, Some(route), Some(event)) = (is_put, route, event) {
            return Ok((route, event));
        }
        tokio::select! {
            reply = &mut put, if !is_put => {
                reply?;
                is_put = true;
            }
            message = watch.message(), if event.is_none() => {
                let message = message?.context("the watch ended")?;
                let key = leases::key(peer).into_bytes();
                let mut events = message.events().iter().filter_map(|event| event.kv());
                if events.any(|kv| kv.key() == key) {
                    event = Some(start.elapsed());
                }
            }
            received = routes.recv(&mut datagram), if route.is_none() => {
                received?;
                if is_route_to(&datagram, wanted) {
                    route = Some(start.elapsed());
                }
                datagram.clear();
            }
        }
    }
}

/// Whether a datagram tells of a new route to a peer's subnet: `RTM_NEWROUTE`, 24, with `struct rtmsg` and `RTA_DST`, 1
/// (linux/rtnetlink.h).
fn is_route_to(datagram: &[u8], wanted: Ipv4Addr) -> bool {
    let Some((header, mut attributes)) = datagram.split_at_checked(28) else {
        return false;
    };
    if header[4..6] != 24_u16.to_ne_bytes() || header[17] != LEN {
        return false;
    }
    while let [low, high, kind, 0, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([low, high]));
        if kind == 1 {
            return attributes.get(4..8) == Some(&wanted.octets());
        }
        match attributes.get(length.next_multiple_of(4).max(4)..) {
            Some(rest) => attributes = rest,
            None => return false,
        }
    }
    false
}
