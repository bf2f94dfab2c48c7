//! The two ends of a connection: this program again, each in its host's namespace.
//!
//! The sink measures. The source sends until it is killed, or the sink hangs up.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::namespace::Namespace;
use crate::turns::{Figures, Metric};

/// The arguments that make this program an end of a connection.
pub(crate) const SINK: &str = "sink";
pub(crate) const SOURCE: &str = "source";
/// TCP streams; their number follows, as in `stream8`.
const STREAM: &str = "stream";
const PACKETS: &str = "packets";

/// How long a connection is measured, after it has got up to speed.
const TURN: Duration = Duration::from_millis(700);
const WARM_UP: Duration = Duration::from_millis(300);
/// An end that has not come to an end by then gives up.
const LIMIT: Duration = Duration::from_secs(15);
/// How long the hosts may take to reach each other.
const JOIN_LIMIT: Duration = Duration::from_secs(20);
/// Payload of the small packets, in bytes.
pub(crate) const SMALL: usize = 64;
/// Streams at once.
pub(crate) const MANY: usize = 8;
/// Pings beside a stream, so many milliseconds apart.
const PINGS: usize = 300;
const PING_INTERVAL_MS: usize = 2;
const PORT: u16 = 5201;

/// Where packets come from, where they go to, and the address there.
pub(crate) struct Path<'a> {
    pub(crate) from: &'a Namespace,
    pub(crate) far: &'a Namespace,
    pub(crate) to: Ipv4Addr,
}

impl Path<'_> {
    /// Waits until the far end answers.
    pub(crate) fn wait(&self) -> Result<()> {
        let begin = Instant::now();
        let ping = format!("ping -c 1 -W 1 -q {}", self.to);
        while !self.from.try_run(&ping).status.success() {
            ensure!(
                begin.elapsed() < JOIN_LIMIT,
                "{} did not answer within {JOIN_LIMIT:?}",
                self.to
            );
        }
        Ok(())
    }

    /// One TCP stream, and small packets as fast as one sender can.
    pub(crate) fn measure(&self, figures: &mut Figures) -> Result<()> {
        figures.add(Metric::Stream, self.run(&format!("{STREAM}1"))?);
        figures.add(Metric::Packets, self.run(PACKETS)?);
        Ok(())
    }

    /// Several TCP streams at once.
    pub(crate) fn measure_many(&self, figures: &mut Figures) -> Result<()> {
        figures.add(Metric::Streams, self.run(&format!("{STREAM}{MANY}"))?);
        Ok(())
    }

    /// Pings beside a TCP stream. Those that are lost are not counted, unless most are.
    pub(crate) fn measure_pings(&self, figures: &mut Figures) -> Result<()> {
        let what = format!("{STREAM}1");
        let (_sink, mut lines) = self.sink(&what)?;
        next(&mut lines)?;
        let _source = self.source(&what)?;
        thread::sleep(WARM_UP);
        let line = format!(
            "ping -n -c {PINGS} -i 0.{PING_INTERVAL_MS:03} -W 1 {}",
            self.to
        );
        let output = self.from.try_run(&line).stdout;
        let text = String::from_utf8_lossy(&output);
        let mut times: Vec<f64> = text
            .lines()
            .filter_map(|line| line.split_once("time=")?.1.split_once(' ')?.0.parse().ok())
            .collect();
        ensure!(
            times.len() > PINGS / 2,
            "only {} of {PINGS} pings were answered beside a stream",
            times.len()
        );
        times.sort_by(f64::total_cmp);
        // Milliseconds to microseconds.
        let rank = |percent: usize| times[(times.len() - 1) * percent / 100] * 1e3;
        figures.add(Metric::PingMedian, rank(50));
        figures.add(Metric::PingP99, rank(99));
        Ok(())
    }

    /// Runs a sink and a source, and returns what the sink measured.
    fn run(&self, what: &str) -> Result<f64> {
        let (_sink, mut lines) = self.sink(what)?;
        next(&mut lines)?;
        let _source = self.source(what)?;
        next(&mut lines)?.parse().context("the sink's figure")
    }

    fn sink(&self, what: &str) -> Result<(Running, Lines)> {
        let mut sink = end(self.far, SINK, what, self.to)?
            .stdout(Stdio::piped())
            .spawn()?;
        let out = sink.stdout.take().context("no pipe")?;
        Ok((Running(sink), BufReader::new(out).lines()))
    }

    fn source(&self, what: &str) -> Result<Running> {
        let mut source = end(self.from, SOURCE, what, self.to)?;
        Ok(Running(source.stdout(Stdio::null()).spawn()?))
    }
}

type Lines = std::io::Lines<BufReader<std::process::ChildStdout>>;

fn next(lines: &mut Lines) -> Result<String> {
    Ok(lines.next().context("the sink ended early")??)
}

/// An end that is killed when this goes.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn end(namespace: &Namespace, end: &str, what: &str, to: Ipv4Addr) -> Result<Command> {
    let own = std::env::current_exe().context("this program's path")?;
    let mut command = namespace.command(own.to_str().context("a path that is not UTF-8")?);
    command.args([end, what, &to.to_string()]);
    Ok(command)
}

/// The number of streams, if that is what is asked for.
fn streams(what: &str) -> Option<usize> {
    what.strip_prefix(STREAM)?.parse().ok()
}

/// The receiving end: prints a line when it listens, and then the figure.
pub(crate) fn sink(what: &str, address: &str) -> Result<()> {
    // Neither accept(2) nor a read of a stream that stands still would ever end.
    thread::spawn(|| {
        thread::sleep(LIMIT);
        eprintln!("nothing came within {LIMIT:?}");
        std::process::exit(1);
    });
    let address = SocketAddr::new(address.parse::<IpAddr>()?, PORT);
    let sum = Arc::new(AtomicUsize::new(0));
    if let Some(count) = streams(what) {
        let listener = TcpListener::bind(address)?;
        println!("listening");
        for _ in 0..count {
            let (mut stream, _) = listener.accept()?;
            let sum = Arc::clone(&sum);
            thread::spawn(move || {
                let mut buffer = vec![0; 256 << 10];
                while let Ok(len @ 1..) = stream.read(&mut buffer) {
                    sum.fetch_add(len, Ordering::Relaxed);
                }
            });
        }
        println!("{}", per_second(&sum) * 8.0 / 1e9);
    } else if what == PACKETS {
        let socket = UdpSocket::bind(address)?;
        println!("listening");
        let mut buffer = [0; 2 * SMALL];
        socket.recv(&mut buffer)?;
        let counted = Arc::clone(&sum);
        thread::spawn(move || {
            while socket.recv(&mut buffer).is_ok() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        println!("{}", per_second(&sum) / 1e3);
    } else {
        bail!("unknown kind of traffic {what:?}");
    }
    Ok(())
}

/// The sending end.
pub(crate) fn source(what: &str, address: &str) -> Result<()> {
    let address = SocketAddr::new(address.parse::<IpAddr>()?, PORT);
    if let Some(count) = streams(what) {
        let threads: Vec<_> = (0..count)
            .map(|_| {
                let mut stream = TcpStream::connect(address)?;
                anyhow::Ok(thread::spawn(move || {
                    let data = vec![0x5a; 128 << 10];
                    // The sink hangs up when it has seen enough.
                    while stream.write_all(&data).is_ok() {}
                }))
            })
            .collect::<Result<_>>()?;
        for thread in threads {
            let _ = thread.join();
        }
    } else if what == PACKETS {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(address)?;
        let begin = Instant::now();
        while begin.elapsed() < LIMIT {
            for _ in 0..64 {
                // A full queue is what is looked for.
                let _ = socket.send(&[0x5a; SMALL]);
            }
        }
    } else {
        bail!("unknown kind of traffic {what:?}");
    }
    Ok(())
}

/// By how much a sum grows in a second, after the time to get up to speed.
fn per_second(sum: &AtomicUsize) -> f64 {
    thread::sleep(WARM_UP);
    let (begin, before) = (Instant::now(), sum.load(Ordering::Relaxed));
    thread::sleep(TURN);
    let (time, after) = (begin.elapsed(), sum.load(Ordering::Relaxed));
    // Exact up to 2^53.
    (after - before) as f64 / time.as_secs_f64()
}
