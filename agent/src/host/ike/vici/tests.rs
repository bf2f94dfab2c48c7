use proptest::prelude::*;

use super::*;

/// strongSwan's README.md of the vici plugin, "Encoding example".
const EXAMPLE: &[u8] = &[
    3, 4, b'k', b'e', b'y', b'1', 0, 6, b'v', b'a', b'l', b'u', b'e', b'1', 1, 8, b's', b'e', b'c',
    b't', b'i', b'o', b'n', b'1', 1, 11, b's', b'u', b'b', b'-', b's', b'e', b'c', b't', b'i',
    b'o', b'n', 3, 4, b'k', b'e', b'y', b'2', 0, 6, b'v', b'a', b'l', b'u', b'e', b'2', 2, 4, 5,
    b'l', b'i', b's', b't', b'1', 5, 0, 5, b'i', b't', b'e', b'm', b'1', 5, 0, 5, b'i', b't', b'e',
    b'm', b'2', 6, 2,
];

/// A packet of a type, with what follows.
fn packet(kind: u8, rest: &[u8]) -> Vec<u8> {
    [&[kind], rest].concat()
}

#[test]
fn strongswans_example_is_read_and_written() {
    let section =
        Section::default().with_section("sub-section", Section::default().with("key2", "value2"));
    let mut list = section;
    let items = [b"item1", b"item2"].map(|item| item.to_vec()).into();
    list.0.push(("list1".to_owned(), Element::List(items)));
    let message = Section::default()
        .with("key1", "value1")
        .with_section("section1", list);
    let response = Packet::Response(message);
    assert_eq!(response.write().unwrap(), packet(1, EXAMPLE));
    assert_eq!(Packet::read(&packet(1, EXAMPLE)), Ok(response.clone()));
    let Packet::Response(message) = response else {
        unreachable!()
    };
    assert_eq!(message.text("key1"), Some("value1"));
    let section = message.section("section1").unwrap();
    assert_eq!(
        section.texts("list1").collect::<Vec<_>>(),
        ["item1", "item2"]
    );
    let sub = section.section("sub-section").unwrap();
    assert_eq!(sub.text("key2"), Some("value2"));
    assert_eq!((sub.text("key1"), message.text("section1")), (None, None));
}

/// `test_get_bool_pos` and the like of strongSwan's `tests/suites/test_message.c` have these forms; `echo_*` of
/// `test_socket.c` the packets without a message.
#[test]
fn every_type_of_packet_has_its_form() {
    for (bytes, expected) in [
        (
            packet(0, b"\x07version"),
            Packet::Request("version".to_owned(), Section::default()),
        ),
        (packet(1, b""), Packet::Response(Section::default())),
        (packet(2, b""), Packet::UnknownCommand),
        (
            packet(3, b"\x07list-sa"),
            Packet::Register("list-sa".to_owned()),
        ),
        (
            packet(4, b"\x07list-sa"),
            Packet::Unregister("list-sa".to_owned()),
        ),
        (packet(5, b""), Packet::Confirm),
        (packet(6, b""), Packet::UnknownEvent),
        (
            packet(7, b"\x03log\x03\x05group\x00\x03IKE"),
            Packet::Event("log".to_owned(), Section::default().with("group", "IKE")),
        ),
    ] {
        assert_eq!(Packet::read(&bytes).as_ref(), Ok(&expected));
        assert_eq!(expected.write().unwrap(), bytes);
    }
}

/// The orders that `test_builder` of strongSwan's `test_message.c` refuses to build, and bytes cut short.
#[test]
fn what_is_no_message_is_refused_with_the_reason() {
    for (bytes, why) in [
        (&b""[..], PacketError::Short),
        (b"\x08", PacketError::Type(8)),
        (b"\x00\x07vers", PacketError::Short),
        (b"\x00\x01\xff", PacketError::Name),
        (b"\x05x", PacketError::Long),
        (b"\x03\x01ax", PacketError::Long),
        (b"\x01\x00", PacketError::Element(0)),
        (b"\x01\x07", PacketError::Element(7)),
        // A section that is not closed, and one that was not opened.
        (b"\x01\x01\x01a", PacketError::Unbalanced),
        (b"\x01\x02", PacketError::Unbalanced),
        (b"\x01\x01\x01a\x02\x02", PacketError::Unbalanced),
        // The same for lists.
        (b"\x01\x04\x01a", PacketError::Unbalanced),
        (b"\x01\x06", PacketError::Place(6)),
        (b"\x01\x05\x00\x01x", PacketError::Place(5)),
        // A list in a list, a key in a list, a section in a list.
        (b"\x01\x04\x01a\x04\x01b\x06\x06", PacketError::Place(4)),
        (b"\x01\x04\x01a\x03\x01b\x00\x00\x06", PacketError::Place(3)),
        (b"\x01\x04\x01a\x01\x01b\x02\x06", PacketError::Place(1)),
        // Lengths that go beyond the end.
        (b"\x01\x03\x01a\x00", PacketError::Short),
        (b"\x01\x03\x01a\x00\x02x", PacketError::Short),
        (b"\x01\x03\x05a", PacketError::Short),
        (b"\x01\x04\x01a\x05\xff\xffx", PacketError::Short),
    ] {
        assert_eq!(Packet::read(bytes), Err(why), "{bytes:?}");
    }
    let nested = packet(1, &b"\x01\x00".repeat(MAX_DEPTH + 1));
    assert_eq!(Packet::read(&nested), Err(PacketError::Deep));
    let long = packet(1, &b"\x03\x00\x00\x00".repeat(MAX_PACKET / 4));
    assert_eq!(Packet::read(&long), Err(PacketError::Size));
}

#[test]
fn what_does_not_fit_is_not_sent() {
    let name = "n".repeat(256);
    let named = Packet::Register(name);
    assert_eq!(named.write(), Err(PacketError::Size));
    let value = vec![0; 1 << 16];
    let large = Packet::Response(Section::default().with("data", &value));
    assert_eq!(large.write(), Err(PacketError::Size));
    let value = &value[1..];
    let some = |count| {
        let all = (0..count).fold(Section::default(), |all, _| all.with("data", value));
        Packet::Response(all).write()
    };
    assert!(some(7).is_ok());
    assert_eq!(some(8), Err(PacketError::Size));
}

#[test]
fn no_value_shows_in_debug() {
    let message = Section::default()
        .with("data", "swordfish")
        .with_list("owners", "swordfish");
    let text = format!("{:?}", Packet::Request("load-shared".to_owned(), message));
    assert!(
        !text.contains("sword") && text.contains("9 bytes"),
        "{text}"
    );
}

fn section() -> impl Strategy<Value = Section> {
    let name = "[ -~é]{0,20}";
    let value = || proptest::collection::vec(any::<u8>(), 0..40);
    let leaf = prop_oneof![
        value().prop_map(Element::Value),
        proptest::collection::vec(value(), 0..4).prop_map(Element::List),
    ];
    let element = leaf.prop_recursive(5, 40, 6, move |inner| {
        proptest::collection::vec((name, inner), 0..6)
            .prop_map(|elements| Element::Section(Section(elements)))
    });
    proptest::collection::vec((name, element), 0..6).prop_map(Section)
}

proptest! {
    #[test]
    fn packets_read_back(message in section(), name in "[a-z-]{0,30}", kind in 0..3) {
        let packet = match kind {
            0 => Packet::Request(name, message),
            1 => Packet::Response(message),
            _ => Packet::Event(name, message),
        };
        let bytes = packet.write().unwrap();
        prop_assert_eq!(Packet::read(&bytes), Ok(packet));
    }

    #[test]
    fn what_is_read_is_written_the_same(bytes in proptest::collection::vec(0u8..8, 0..40)) {
        if let Ok(packet) = Packet::read(&bytes) {
            prop_assert_eq!(packet.write(), Ok(bytes));
        }
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
        let _ = Packet::read(&bytes);
    }

    #[test]
    fn a_cut_packet_never_reads_as_another_kind(message in section(), at: prop::sample::Index) {
        let bytes = Packet::Response(message).write().unwrap();
        let cut = &bytes[..at.index(bytes.len())];
        if let Ok(read) = Packet::read(cut) {
            prop_assert!(matches!(read, Packet::Response(_)));
        }
    }
}
