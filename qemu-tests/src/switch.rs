//! A virtual Ethernet switch in user space, so that guests share an underlay without root, bridges or tap devices.
//!
//! This file decides, [`wire`] moves bytes. [`Forwarding`] is a learning switch as a pure state machine: a frame and the
//! port it came in by give the ports it leaves by. It can lose frames (with a seed, so that a run can be repeated) and
//! be cut into groups of ports that do not hear each other. Guests are untrusted: nothing they send makes it panic, and
//! the MAC table is bounded.

pub(crate) mod capture;
pub(crate) mod wire;

use std::collections::HashMap;

/// Shortest frame with a whole Ethernet header: two addresses and a type (IEEE 802.3 §3.1.1).
pub(crate) const FRAME_MIN_BYTES: usize = 14;
/// Longest frame that QEMU moves between a NIC and its backend: `NET_BUFSIZE` in QEMU's include/net/net.h.
pub(crate) const FRAME_MAX_BYTES: usize = 4096 + 65536;
/// Addresses kept; a guest that invents more of them only causes flooding.
const MAC_TABLE_MAX: usize = 4096;

/// An Ethernet address as it stands in a frame.
pub(crate) type Mac = [u8; 6];

/// What one port has seen, in frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Frames the guest sent that had a valid length.
    pub received: u64,
    /// Frames forwarded to the guest.
    pub sent: u64,
    /// Frames to the guest thrown away by the configured loss.
    pub lost: u64,
    /// Frames to the guest stopped by a partition.
    pub cut: u64,
    /// Frames to the guest thrown away because it does not read fast enough, or is not connected.
    pub overrun: u64,
    /// Frames from the guest shorter than a header or longer than [`FRAME_MAX_BYTES`].
    pub malformed: u64,
}

#[derive(Debug, Default)]
struct Port {
    group: u32,
    counters: Counters,
}

/// The forwarding state of a switch with a fixed number of ports.
#[derive(Debug)]
pub(crate) struct Forwarding {
    ports: Vec<Port>,
    macs: HashMap<Mac, usize>,
    loss: f64,
    random: SplitMix64,
}

impl Forwarding {
    /// A switch with `ports` ports in one group, without loss.
    pub(crate) fn new(ports: usize) -> Self {
        Self {
            ports: std::iter::repeat_with(Port::default).take(ports).collect(),
            macs: HashMap::new(),
            loss: 0.0,
            random: SplitMix64(0),
        }
    }

    /// Loses each copy of a frame with `probability` (0 to 1, values outside are clamped) from now on.
    pub(crate) fn set_loss(&mut self, probability: f64, seed: u64) {
        self.loss = if probability.is_nan() {
            0.0
        } else {
            probability.clamp(0.0, 1.0)
        };
        self.random = SplitMix64(seed);
    }

    /// Puts each port in a group; frames pass only inside a group. Ports not named go to group 0.
    pub(crate) fn partition(&mut self, groups: &[u32]) {
        for (index, port) in self.ports.iter_mut().enumerate() {
            port.group = groups.get(index).copied().unwrap_or(0);
        }
    }

    /// The counters of each port, in port order.
    pub(crate) fn counters(&self) -> Vec<Counters> {
        self.ports.iter().map(|port| port.counters).collect()
    }

    /// Counts a frame of impossible length from `port`.
    pub(crate) fn malformed(&mut self, port: usize) {
        if let Some(port) = self.ports.get_mut(port) {
            port.counters.malformed += 1;
        }
    }

    /// Counts a frame that `port` could not take.
    pub(crate) fn overrun(&mut self, port: usize) {
        if let Some(port) = self.ports.get_mut(port) {
            port.counters.sent = port.counters.sent.saturating_sub(1);
            port.counters.overrun += 1;
        }
    }

    /// Learns from a frame that came in by `from`, and says by which ports it leaves.
    pub(crate) fn forward(&mut self, from: usize, frame: &[u8]) -> Vec<usize> {
        let (Some((destination, source)), true) = (addresses(frame), from < self.ports.len())
        else {
            self.malformed(from);
            return Vec::new();
        };
        self.ports[from].counters.received += 1;
        self.learn(source, from);
        let known = self
            .macs
            .get(&destination)
            .copied()
            .filter(|_| !is_group(destination));
        match known {
            Some(port) if port == from => Vec::new(),
            Some(port) => [port]
                .into_iter()
                .filter(|&to| self.passes(from, to))
                .collect(),
            None => (0..self.ports.len())
                .filter(|&to| to != from)
                .filter(|&to| self.passes(from, to))
                .collect(),
        }
    }

    fn learn(&mut self, source: Mac, port: usize) {
        if !is_group(source) && (self.macs.len() < MAC_TABLE_MAX || self.macs.contains_key(&source))
        {
            self.macs.insert(source, port);
        }
    }

    /// Decides the fate of one copy, and counts it.
    fn passes(&mut self, from: usize, to: usize) -> bool {
        let cut = self.ports[from].group != self.ports[to].group;
        let lost = !cut && self.loss > 0.0 && self.random.unit() < self.loss;
        let counters = &mut self.ports[to].counters;
        match (cut, lost) {
            (true, _) => counters.cut += 1,
            (_, true) => counters.lost += 1,
            _ => counters.sent += 1,
        }
        !cut && !lost
    }
}

/// Destination and source, if the frame has a length that Ethernet and QEMU allow.
fn addresses(frame: &[u8]) -> Option<(Mac, Mac)> {
    if !(FRAME_MIN_BYTES..=FRAME_MAX_BYTES).contains(&frame.len()) {
        return None;
    }
    let destination = frame.get(0..6)?.try_into().ok()?;
    let source = frame.get(6..12)?.try_into().ok()?;
    Some((destination, source))
}

/// Whether the address is multicast or broadcast (the I/G bit, IEEE 802 §8.2).
fn is_group(mac: Mac) -> bool {
    mac[0] & 1 == 1
}

/// Steele, Lea and Flood's SplitMix64: small, seedable, and good enough to lose frames by.
#[derive(Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    /// The next value, uniform in 0 (inclusive) to 1 (exclusive).
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // 53 bits: what a double holds exactly.
        (z >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests;
