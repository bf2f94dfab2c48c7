//! The sockets of the switch: one Unix stream per port, spoken to by QEMU's `-netdev stream`.
//!
//! QEMU puts a 32-bit big-endian length before each frame (net/stream.c, since 7.2). A stream, and not `-netdev dgram`,
//! because a full datagram queue (10 by default) makes QEMU spin, while a stream pushes back. The switch never pushes
//! back on the sender: a guest that stops reading (paused, rebooting) loses frames and nobody waits for it.
//!
//! The switch has its own thread and runtime, so that nothing the harness does delays the guests' packets. Dropping
//! [`Switch`] ends the thread and removes the sockets.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, unix},
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{Counters, FRAME_MAX_BYTES, FRAME_MIN_BYTES, Forwarding};

/// Frames waiting for one guest; at 1,500 bytes about 1.5 MB, ten times what a slow guest's ring holds.
const QUEUE_FRAMES: usize = 1024;

/// Frames kept of a capture: some seconds of a test's traffic, at most 270 MB, in practice 100 times less.
const CAPTURE_FRAMES: usize = 4096;

/// A frame and the moment it is due.
type Delivery = (Instant, Bytes);

#[derive(Debug)]
struct Shared {
    forwarding: Forwarding,
    delay: Duration,
    /// The queue to the guest on each port, while one is connected.
    queues: Vec<Option<mpsc::Sender<Delivery>>>,
    /// All frames that came in, while somebody wants them.
    capture: Option<Vec<Bytes>>,
}

/// A running switch.
#[derive(Debug)]
pub(crate) struct Switch {
    shared: Arc<Mutex<Shared>>,
    sockets: Vec<PathBuf>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Starts a switch with one listening socket per path; port numbers follow the order of `sockets`.
    ///
    /// # Errors
    /// When a path is taken or too long for a Unix socket (107 bytes).
    pub(crate) fn start(sockets: Vec<PathBuf>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("failed to start the runtime of the switch")?;
        let shared = Arc::new(Mutex::new(Shared {
            forwarding: Forwarding::new(sockets.len()),
            delay: Duration::ZERO,
            queues: sockets.iter().map(|_| None).collect(),
            capture: None,
        }));
        let entered = runtime.enter();
        let listeners = sockets
            .iter()
            .map(|path| listen(path))
            .collect::<Result<Vec<_>>>()?;
        drop(entered);
        let (stop, stopped) = oneshot::channel();
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("switch".into())
            .spawn(move || {
                runtime.block_on(async {
                    for (port, listener) in listeners.into_iter().enumerate() {
                        tokio::spawn(serve_port(port, listener, Arc::clone(&for_thread)));
                    }
                    // Either the sender fires or it is dropped: both mean stop.
                    let _ = stopped.await;
                });
            })
            .context("failed to start the thread of the switch")?;
        Ok(Self {
            shared,
            sockets,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// See [`Forwarding::set_loss`].
    pub(crate) fn set_loss(&self, probability: f64, seed: u64) {
        lock(&self.shared).forwarding.set_loss(probability, seed);
    }

    /// Delivers every frame `delay` later from now on.
    pub(crate) fn set_delay(&self, delay: Duration) {
        lock(&self.shared).delay = delay;
    }

    /// See [`Forwarding::partition`].
    pub(crate) fn partition(&self, groups: &[u32]) {
        lock(&self.shared).forwarding.partition(groups);
    }

    /// Keeps the frames that come in from now on, the first 4096 of them.
    pub(crate) fn start_capture(&self) {
        lock(&self.shared).capture = Some(Vec::new());
    }

    /// Ends a capture and gives its frames.
    pub(crate) fn end_capture(&self) -> Vec<Bytes> {
        lock(&self.shared).capture.take().unwrap_or_default()
    }

    /// See [`Forwarding::counters`].
    pub(crate) fn counters(&self) -> Vec<Counters> {
        lock(&self.shared).forwarding.counters()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the panic hook; there is nothing to add while dropping.
            let _ = thread.join();
        }
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}

fn listen(path: &Path) -> Result<UnixListener> {
    UnixListener::bind(path).with_context(|| format!("failed to listen on {}", path.display()))
}

/// A poisoned lock means that a task panicked; the counters and tables are still whole.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves one guest after the other on a port: QEMU connects anew when a machine is started again.
async fn serve_port(port: usize, listener: UnixListener, shared: Arc<Mutex<Shared>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (read, write) = stream.into_split();
        let (queue, deliveries) = mpsc::channel(QUEUE_FRAMES);
        lock(&shared).queues[port] = Some(queue);
        let writer = tokio::spawn(write_frames(write, deliveries));
        // Any error means that this guest is gone or that its framing is lost; the next one starts afresh.
        let _ = read_frames(port, BufReader::with_capacity(1 << 17, read), &shared).await;
        lock(&shared).queues[port] = None;
        writer.abort();
    }
}

async fn read_frames(
    port: usize,
    mut stream: BufReader<unix::OwnedReadHalf>,
    shared: &Mutex<Shared>,
) -> io::Result<()> {
    loop {
        let length = stream.read_u32().await? as usize;
        if length > FRAME_MAX_BYTES {
            lock(shared).forwarding.malformed(port);
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("frame of {length} bytes"),
            ));
        }
        let mut frame = vec![0; length];
        stream.read_exact(&mut frame).await?;
        dispatch(port, Bytes::from(frame), &mut lock(shared));
    }
}

fn dispatch(port: usize, frame: Bytes, shared: &mut Shared) {
    let due = Instant::now() + shared.delay;
    if let Some(capture) = &mut shared.capture
        && capture.len() < CAPTURE_FRAMES
    {
        capture.push(frame.clone());
    }
    for to in shared.forwarding.forward(port, &frame) {
        let taken = shared.queues[to]
            .as_ref()
            .is_some_and(|queue| queue.try_send((due, frame.clone())).is_ok());
        if !taken {
            shared.forwarding.overrun(to);
        }
    }
}

async fn write_frames(mut stream: unix::OwnedWriteHalf, mut deliveries: mpsc::Receiver<Delivery>) {
    while let Some((due, frame)) = deliveries.recv().await {
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        }
        if write_frame(&mut stream, &frame).await.is_err() {
            return;
        }
    }
}

/// Writes one frame as QEMU reads it.
async fn write_frame(
    stream: &mut (impl tokio::io::AsyncWrite + Unpin),
    frame: &[u8],
) -> io::Result<()> {
    debug_assert!(frame.len() >= FRAME_MIN_BYTES);
    let length =
        u32::try_from(frame.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut message = Vec::with_capacity(4 + frame.len());
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(frame);
    stream.write_all(&message).await
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    struct Guest(UnixStream);

    impl Guest {
        async fn connect(switch: &Switch, port: usize) -> Self {
            let guest = Self(UnixStream::connect(&switch.sockets[port]).await.unwrap());
            while lock(&switch.shared).queues[port].is_none() {
                tokio::task::yield_now().await;
            }
            guest
        }

        async fn send(&mut self, frame: &[u8]) {
            write_frame(&mut self.0, frame).await.unwrap();
        }

        async fn receive(&mut self) -> Option<Vec<u8>> {
            tokio::time::timeout(Duration::from_secs(5), async {
                let length = self.0.read_u32().await.ok()?;
                let mut frame = vec![0; length as usize];
                self.0.read_exact(&mut frame).await.ok()?;
                Some(frame)
            })
            .await
            .unwrap_or_default()
        }
    }

    fn switch(ports: usize) -> (tempfile::TempDir, Switch) {
        let dir = tempfile::tempdir().unwrap();
        let sockets = (0..ports)
            .map(|port| dir.path().join(format!("port{port}")))
            .collect();
        (dir, Switch::start(sockets).unwrap())
    }

    fn frame(tag: u8) -> Vec<u8> {
        [&[0xff; 6][..], &[2, 0, 0, 0, 0, tag], &[8, 0], &[tag; 1486]].concat()
    }

    #[tokio::test]
    async fn frames_cross_in_order() {
        let (_dir, switch) = switch(2);
        let (mut a, mut b) = (
            Guest::connect(&switch, 0).await,
            Guest::connect(&switch, 1).await,
        );
        for tag in 1..=50 {
            a.send(&frame(tag)).await;
        }
        for tag in 1..=50 {
            assert_eq!(b.receive().await.unwrap(), frame(tag));
        }
        assert_eq!(switch.counters()[1].sent, 50);
    }

    #[tokio::test]
    async fn a_machine_that_restarts_reconnects() {
        let (_dir, switch) = switch(2);
        let mut a = Guest::connect(&switch, 0).await;
        drop(Guest::connect(&switch, 1).await);
        while lock(&switch.shared).queues[1].is_some() {
            tokio::task::yield_now().await;
        }
        let mut b = Guest::connect(&switch, 1).await;
        a.send(&frame(1)).await;
        assert_eq!(b.receive().await.unwrap(), frame(1));
    }

    #[tokio::test]
    async fn lost_framing_ends_only_that_guest() {
        let (_dir, switch) = switch(3);
        let (mut bad, mut a, mut b) = (
            Guest::connect(&switch, 0).await,
            Guest::connect(&switch, 1).await,
            Guest::connect(&switch, 2).await,
        );
        bad.0.write_all(&[0xff; 64]).await.unwrap();
        assert_eq!(bad.receive().await, None);
        a.send(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14])
            .await;
        assert!(b.receive().await.is_some());
        assert_eq!(switch.counters()[0].malformed, 1);
    }

    #[tokio::test]
    async fn a_runt_is_skipped_and_framing_kept() {
        let (_dir, switch) = switch(2);
        let (mut a, mut b) = (
            Guest::connect(&switch, 0).await,
            Guest::connect(&switch, 1).await,
        );
        a.0.write_all(&[0, 0, 0, 3, 1, 2, 3, 0, 0, 0, 0])
            .await
            .unwrap();
        a.send(&frame(9)).await;
        assert_eq!(b.receive().await.unwrap(), frame(9));
        assert_eq!(switch.counters()[0].malformed, 2);
    }

    #[tokio::test]
    async fn a_guest_that_does_not_read_delays_nobody() {
        let (_dir, switch) = switch(3);
        let (mut a, _deaf, mut c) = (
            Guest::connect(&switch, 0).await,
            Guest::connect(&switch, 1).await,
            Guest::connect(&switch, 2).await,
        );
        for round in 0..2000_u32 {
            a.send(&frame((round % 251) as u8)).await;
            assert!(c.receive().await.is_some(), "round {round}");
        }
        let counters = switch.counters();
        assert!(counters[1].overrun > 0);
        assert_eq!(counters[1].sent + counters[1].overrun, 2000);
    }

    #[tokio::test]
    async fn a_capture_holds_what_came_meanwhile() {
        let (_dir, switch) = switch(2);
        let (mut a, mut b) = (
            Guest::connect(&switch, 0).await,
            Guest::connect(&switch, 1).await,
        );
        for tag in 1..=3 {
            if tag == 2 {
                switch.start_capture();
            }
            a.send(&frame(tag)).await;
            assert!(b.receive().await.is_some());
            if tag == 2 {
                assert_eq!(switch.end_capture(), [frame(2)]);
            }
        }
        assert!(switch.end_capture().is_empty());
    }

    #[tokio::test]
    async fn delay_is_kept() {
        let (_dir, switch) = switch(2);
        let (mut a, mut b) = (
            Guest::connect(&switch, 0).await,
            Guest::connect(&switch, 1).await,
        );
        switch.set_delay(Duration::from_millis(80));
        let sent = Instant::now();
        a.send(&frame(1)).await;
        assert!(b.receive().await.is_some());
        assert!(sent.elapsed() >= Duration::from_millis(80));
    }
}
