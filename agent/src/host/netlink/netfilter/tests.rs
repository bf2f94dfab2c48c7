use proptest::prelude::*;

use super::*;

fn bytes(message: &NetfilterMessage) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// As `nft --debug=mnl` shows them for `delete table inet selvage`, with the generation that it read.
#[test]
fn a_batch_has_the_bytes_of_nfts_own() {
    let mut generation = Attributes::default();
    generation.put_number(NFNL_BATCH_GENID, 7);
    let begin = NetfilterMessage::frame(BATCH_BEGIN, generation);
    assert_eq!(begin.message_type(), 0x10);
    assert_eq!(bytes(&begin), [0, 0, 0, 10, 8, 0, 1, 0, 0, 0, 0, 7]);
    let Change(delete) = Change::delete_table(TableFamily::Inet, "selvage");
    assert_eq!(delete.message.message_type(), 0xa02);
    assert_eq!(bytes(&delete.message), b"\x01\0\0\0\x0c\0\x01\0selvage\0");
    let end = NetfilterMessage::frame(BATCH_END, Attributes::default());
    assert_eq!((end.message_type(), bytes(&end)), (0x11, vec![0, 0, 0, 10]));
}

#[test]
fn families_of_tables_that_see_no_packets_of_ours_are_none() {
    let of = TableFamily::of_number;
    assert_eq!(
        [1, 2, 10].map(of).map(Option::unwrap),
        [TableFamily::Inet, TableFamily::Ip, TableFamily::Ip6]
    );
    // arp, netdev, bridge.
    assert_eq!([0, 3, 5, 7, 255].map(of), [None; 5]);
}

#[test]
fn only_a_kernel_without_netfilters_netlink_counts_as_one_without_nftables() {
    let open = |errno: Errno| KernelError::Open(io::Error::from_raw_os_error(errno as i32));
    assert!(lacks_protocol(&open(Errno::EPROTONOSUPPORT)));
    assert!(!lacks_protocol(&open(Errno::EMFILE)));
    assert!(!lacks_protocol(&KernelError::Deadline));
}

proptest! {
    #[test]
    fn no_message_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let header = NetlinkHeader::default();
        if let Ok(message) = NetfilterMessage::deserialize(&header, &bytes) {
            prop_assert_eq!(message.family, bytes[0]);
            prop_assert!(message.attributes.iter().count() <= bytes.len());
            let _ = message.attributes.has_text(TABLE_NAME, "selvage");
        }
    }
}
