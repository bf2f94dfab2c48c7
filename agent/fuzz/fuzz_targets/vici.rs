//! What charon's VICI socket says, or whoever has taken its place: never a panic, and what is read is written the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use selvage::host::ike::vici::Packet;

fuzz_target!(|input: &[u8]| {
    if let Ok(packet) = Packet::read(input) {
        assert_eq!(packet.write().as_deref(), Ok(input));
    }
});
