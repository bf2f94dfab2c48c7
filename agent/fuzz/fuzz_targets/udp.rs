//! What the udp backend receives, from anybody who can send to its port: never a panic, and nothing reaches the TUN that is
//! longer than a GSO packet may be.
//!
//! The input is a byte of options, then datagrams: each two bytes of length, big endian, and that many bytes.

#![no_main]

use std::io::IoSlice;

use libfuzzer_sys::fuzz_target;
use selvage::host::udp::{Coalescer, Sink, deliver};

/// `virtio_net_hdr` and the longest IPv4 packet.
const LONGEST: usize = 12 + 65_535;

struct Tun;

impl Sink for Tun {
    fn write(&mut self, _flow: u32, parts: &[IoSlice<'_>]) {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        assert!((20..=LONGEST).contains(&total), "{total} bytes");
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((options, mut rest)) = input.split_first() else {
        return;
    };
    let mut payloads: Vec<Vec<u8>> = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length)).min(after.len());
        let (payload, after) = after.split_at(length);
        payloads.push(payload.to_vec());
        rest = after;
    }
    let mtu = if options & 2 == 0 { 1472 } else { 576 };
    let mut tun = Tun;
    let mut coalescer = Coalescer::new(options & 1 != 0);
    for payload in &mut payloads {
        let _ = deliver(payload, mtu, &mut coalescer, &mut tun);
    }
    coalescer.flush(&mut tun);
});
