use super::*;

const A: Mac = [0x52, 0x54, 0, 0, 0, 0xa];
const B: Mac = [0x52, 0x54, 0, 0, 0, 0xb];
const C: Mac = [0x52, 0x54, 0, 0, 0, 0xc];
const BROADCAST: Mac = [0xff; 6];

fn frame(destination: Mac, source: Mac) -> Vec<u8> {
    [&destination[..], &source[..], &[0x08, 0x00], b"payload"].concat()
}

#[test]
fn unknown_destination_is_flooded_but_not_back() {
    let mut switch = Forwarding::new(3);
    assert_eq!(switch.forward(1, &frame(B, A)), [0, 2]);
}

#[test]
fn learned_destination_goes_to_one_port() {
    let mut switch = Forwarding::new(3);
    switch.forward(0, &frame(BROADCAST, A));
    assert_eq!(switch.forward(2, &frame(A, C)), [0]);
}

#[test]
fn a_station_that_moves_is_learned_again() {
    let mut switch = Forwarding::new(3);
    switch.forward(0, &frame(BROADCAST, A));
    switch.forward(1, &frame(BROADCAST, A));
    assert_eq!(switch.forward(2, &frame(A, C)), [1]);
}

#[test]
fn a_frame_for_its_own_port_goes_nowhere() {
    let mut switch = Forwarding::new(2);
    switch.forward(0, &frame(BROADCAST, A));
    assert!(switch.forward(0, &frame(A, B)).is_empty());
}

#[test]
fn group_addresses_are_never_learned() {
    let mut switch = Forwarding::new(3);
    switch.forward(0, &frame(A, BROADCAST));
    assert_eq!(switch.forward(1, &frame(BROADCAST, B)), [0, 2]);
}

#[test]
fn partition_separates_groups_and_heals() {
    let mut switch = Forwarding::new(3);
    switch.partition(&[1, 1, 2]);
    assert_eq!(switch.forward(0, &frame(BROADCAST, A)), [1]);
    assert!(switch.forward(2, &frame(A, C)).is_empty());
    assert_eq!(switch.counters()[0].cut, 1);
    switch.partition(&[]);
    assert_eq!(switch.forward(2, &frame(A, C)), [0]);
}

#[test]
fn loss_follows_probability_and_seed() {
    let run = |seed| {
        let mut switch = Forwarding::new(2);
        switch.set_loss(0.25, seed);
        (0..10_000)
            .map(|_| switch.forward(0, &frame(BROADCAST, A)).len())
            .collect::<Vec<_>>()
    };
    let passed: usize = run(7).iter().sum();
    assert!((7_300..7_700).contains(&passed), "{passed}");
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn total_loss_and_nonsense_loss_are_defined() {
    let mut switch = Forwarding::new(2);
    switch.set_loss(7.0, 1);
    assert!(switch.forward(0, &frame(BROADCAST, A)).is_empty());
    assert_eq!(switch.counters()[1].lost, 1);
    switch.set_loss(f64::NAN, 1);
    assert_eq!(switch.forward(0, &frame(BROADCAST, A)), [1]);
}

#[test]
fn impossible_lengths_are_counted_and_dropped() {
    let mut switch = Forwarding::new(2);
    for length in [0, 1, FRAME_MIN_BYTES - 1, FRAME_MAX_BYTES + 1] {
        assert!(switch.forward(0, &vec![0; length]).is_empty());
    }
    assert_eq!(switch.forward(0, &vec![0xff; FRAME_MAX_BYTES]), [1]);
    assert_eq!(switch.counters()[0].malformed, 4);
}

#[test]
fn unknown_ports_are_ignored() {
    let mut switch = Forwarding::new(1);
    assert!(switch.forward(9, &frame(BROADCAST, A)).is_empty());
    switch.malformed(9);
    switch.overrun(9);
}

#[test]
fn a_flood_of_addresses_does_not_grow_the_table() {
    let mut switch = Forwarding::new(2);
    switch.forward(0, &frame(BROADCAST, A));
    for i in 0..2 * MAC_TABLE_MAX as u64 {
        let [.., c, d, e, f] = i.to_be_bytes();
        switch.forward(1, &frame(BROADCAST, [2, 0, c, d, e, f]));
    }
    assert_eq!(switch.macs.len(), MAC_TABLE_MAX);
    assert!(switch.forward(1, &frame(A, B)).contains(&0));
}
