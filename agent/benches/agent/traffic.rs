//! Throughput of the udp backend between two hosts, beside the kernel's VXLAN and no overlay over the same cable.
//!
//! The two ends of a connection are this program again, each in its host's namespace: the sink measures, the source sends
//! until it is killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::Bench;
use crate::host::Host;
use crate::program;
use crate::table::{Beside, Row, Table, Target, Unit};
use crate::turns::{self, Figures, Metric};

/// The arguments that make this program an end of a connection.
pub(crate) const SINK: &str = "sink";
pub(crate) const SOURCE: &str = "source";
const STREAM: &str = "stream";
const PACKETS: &str = "packets";

const TURNS: usize = 5;
/// How long a connection is measured, after it has got up to speed.
const TURN: Duration = Duration::from_secs(1);
const WARM_UP: Duration = Duration::from_millis(300);
/// An end that has not come to an end by then gives up.
const LIMIT: Duration = Duration::from_secs(15);
/// How long the hosts may take to reach each other.
const JOIN_LIMIT: Duration = Duration::from_secs(20);
/// Payload of the small packets, in bytes.
const SMALL: usize = 64;
const PORT: u16 = 5201;

impl Bench {
    /// One TCP stream, and small packets as fast as one sender can.
    pub(crate) fn udp(&self, table: &mut Table) {
        self.set_backend("udp");
        let count = self.programs.len();
        let mut names = self.names();
        names.extend(["vxlan", "no overlay"]);
        let all = turns::take("udp traffic", TURNS, &names, |place, figures| {
            self.scrub();
            if place < count {
                self.over_program(place, figures)
            } else if place == count {
                self.over_vxlan(figures)
            } else {
                self.traffic(self.hosts[1].address, figures)
            }
        });
        self.scrub();
        let ways = [
            (Beside::Rival((count > 1).then(|| &all[1])), 3.0),
            (Beside::Other("vxlan", &all[count]), 0.0),
            (Beside::Other("no overlay", &all[count + 1]), 0.0),
        ];
        for (beside, times) in ways {
            for (what, unit, metric) in [
                (
                    "udp, one TCP stream".to_owned(),
                    Unit::GigabitsPerSecond,
                    Metric::Stream,
                ),
                (
                    format!("udp, packets of {SMALL} bytes"),
                    Unit::ThousandPacketsPerSecond,
                    Metric::Packets,
                ),
            ] {
                let target = [Target::TimesAtLeast(times)];
                table.add(&Row {
                    what,
                    unit,
                    metric,
                    own: &all[0],
                    beside: beside.clone(),
                    targets: if times > 0.0 { &target } else { &[] },
                });
            }
        }
        self.set_backend("vxlan");
    }

    /// Between two hosts on which the same program runs.
    fn over_program(&self, place: usize, figures: &mut Figures) -> Result<()> {
        let mut running = Vec::new();
        for host in &self.hosts {
            let mut one = self.programs[place].start(host)?;
            one.wait_subnet_env()?;
            running.push(one);
        }
        let subnet = program::subnet_of(&self.hosts[1]).context("no subnet in subnet.env")?;
        // The TUN device has the subnet's first address.
        self.traffic(subnet.network(), figures)
    }

    /// Between two hosts with a VXLAN device each, with flannel's MTU.
    fn over_vxlan(&self, figures: &mut Figures) -> Result<()> {
        let address = |number| Ipv4Addr::new(10, 128, number, 0);
        for (number, host, other) in [
            (1, &self.hosts[0], &self.hosts[1]),
            (2, &self.hosts[1], &self.hosts[0]),
        ] {
            for line in [
                format!(
                    "link add flannel.1 mtu 1450 type vxlan id 1 dev eth0 local {} remote {} dstport 8472 nolearning",
                    host.address, other.address
                ),
                format!("address add {}/9 dev flannel.1", address(number)),
                "link set flannel.1 up".to_owned(),
            ] {
                host.namespace.ip(&line);
            }
        }
        self.traffic(address(2), figures)
    }

    /// Measures both ways of traffic from the first host to an address of the second.
    fn traffic(&self, to: Ipv4Addr, figures: &mut Figures) -> Result<()> {
        let [from, far] = &self.hosts;
        let begin = Instant::now();
        let ping = format!("ping -c 1 -W 1 -q {to}");
        while !from.namespace.try_run(&ping).status.success() {
            ensure!(
                begin.elapsed() < JOIN_LIMIT,
                "{to} did not answer within {JOIN_LIMIT:?}"
            );
        }
        for (metric, what) in [(Metric::Stream, STREAM), (Metric::Packets, PACKETS)] {
            figures.add(metric, run(from, far, what, to)?);
        }
        Ok(())
    }
}

/// Runs a sink on the far host and a source on the other, and returns what the sink measured.
fn run(from: &Host, far: &Host, what: &str, to: Ipv4Addr) -> Result<f64> {
    let mut sink = end(far, SINK, what, to)?.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(sink.stdout.take().context("no pipe")?).lines();
    let mut next = || lines.next().context("the sink ended early");
    let outcome = next().and_then(|_| {
        let mut source = end(from, SOURCE, what, to)?.stdout(Stdio::null()).spawn()?;
        let figure = next();
        stop(&mut source);
        figure??.parse().context("the sink's figure")
    });
    stop(&mut sink);
    outcome
}

fn end(host: &Host, end: &str, what: &str, to: Ipv4Addr) -> Result<Command> {
    let own = std::env::current_exe().context("this program's path")?;
    let mut command = host
        .namespace
        .command(own.to_str().context("a path that is not UTF-8")?);
    command.args([end, what, &to.to_string()]);
    Ok(command)
}

fn stop(end: &mut Child) {
    let _ = end.kill();
    let _ = end.wait();
}

/// The receiving end: prints a line when it listens, and then the figure.
pub(crate) fn sink(what: &str, address: &str) -> Result<()> {
    // Neither accept(2) nor a read of a stream that stands still would ever end.
    std::thread::spawn(|| {
        std::thread::sleep(LIMIT);
        eprintln!("nothing came within {LIMIT:?}");
        std::process::exit(1);
    });
    let address = SocketAddr::new(address.parse::<IpAddr>()?, PORT);
    match what {
        STREAM => {
            let listener = TcpListener::bind(address)?;
            println!("listening");
            let (mut stream, _) = listener.accept()?;
            let mut buffer = vec![0; 256 << 10];
            let bytes = per_second(|| Ok(stream.read(&mut buffer)?))?;
            println!("{}", bytes * 8.0 / 1e9);
        }
        PACKETS => {
            let socket = UdpSocket::bind(address)?;
            println!("listening");
            let mut buffer = [0; 2 * SMALL];
            let packets = per_second(|| {
                socket.recv(&mut buffer)?;
                Ok(1)
            })?;
            println!("{}", packets / 1e3);
        }
        _ => bail!("unknown kind of traffic {what:?}"),
    }
    Ok(())
}

/// The sending end, until it is killed.
pub(crate) fn source(what: &str, address: &str) -> Result<()> {
    let address = SocketAddr::new(address.parse::<IpAddr>()?, PORT);
    match what {
        STREAM => {
            let mut stream = TcpStream::connect(address)?;
            let data = vec![0x5a; 128 << 10];
            // The sink hangs up when it has seen enough.
            while stream.write_all(&data).is_ok() {}
        }
        PACKETS => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(address)?;
            let begin = Instant::now();
            while begin.elapsed() < LIMIT {
                for _ in 0..64 {
                    // A full queue is what is looked for.
                    let _ = socket.send(&[0x5a; SMALL]);
                }
            }
        }
        _ => bail!("unknown kind of traffic {what:?}"),
    }
    Ok(())
}

/// Sums up what comes in a turn, after the time to get up to speed, for each second.
fn per_second(mut receive: impl FnMut() -> Result<usize>) -> Result<f64> {
    let mut during = |time: Duration| {
        let begin = Instant::now();
        let mut sum = 0;
        while begin.elapsed() < time {
            sum += receive()?;
        }
        // Exact up to 2^53.
        anyhow::Ok(sum as f64 / begin.elapsed().as_secs_f64())
    };
    during(WARM_UP)?;
    during(TURN)
}
