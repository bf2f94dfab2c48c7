use std::net::Ipv4Addr;
use std::time::UNIX_EPOCH;

use super::*;

fn lease() -> Lease {
    Lease {
        key: SubnetKey::parse_name("10.5.34.0-24").unwrap(),
        attrs: LeaseAttrs {
            public_ip: Some(Ipv4Addr::new(10, 0, 0, 1)),
            public_ipv6: None,
            backend_type: "vxlan".to_owned(),
            backend_data: Some(
                RawValue::from_string(r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#.to_owned())
                    .unwrap(),
            ),
            backend_v6_data: None,
            owner: Some("m1".to_owned()),
        },
        created: 12,
    }
}

const ATTRS: &str = r#"{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"SelvageOwner":"m1"}"#;

#[test]
fn leases_are_flannels_with_what_it_skips_at_the_end() {
    let now = UNIX_EPOCH + Duration::from_secs(1_444_444_444);
    let body = LeaseBody::new(&lease()).lasting(Some(Duration::from_secs(86_400)), 15, now);
    assert_eq!(
        encode(&body).unwrap(),
        format!(
            r#"{{"Subnet":"10.5.34.0/24","Attrs":{ATTRS},"Expiration":"2015-10-11T02:34:04Z","Asof":15,"TTL":86400,"Created":12}}"#
        ) + "\n"
    );
    let reservation = LeaseBody::new(&lease()).lasting(None, 15, now);
    assert_eq!(
        encode(&reservation).unwrap(),
        format!(
            r#"{{"Subnet":"10.5.34.0/24","Attrs":{ATTRS},"Expiration":"0001-01-01T00:00:00Z","Asof":15,"Created":12}}"#
        ) + "\n"
    );
}

#[test]
fn watch_results_are_flannels() {
    let lease = LeaseBody::new(&lease());
    let text = r#"{"Subnet":"10.5.34.0/24","Attrs":ATTRS,"Expiration":"0001-01-01T00:00:00Z","Asof":0,"Created":12}"#
        .replace("ATTRS", ATTRS);
    let result = WatchResult::<Event, _> {
        events: None,
        snapshot: Some(std::slice::from_ref(&lease)),
        cursor: "7-1-0",
        unreadable: Vec::new(),
        config: None,
    };
    assert_eq!(
        encode(&result).unwrap(),
        format!("{{\"events\":null,\"snapshot\":[{text}],\"cursor\":\"7-1-0\"}}\n")
    );
    let events = [EventType::Added, EventType::Removed].map(|event| Event {
        event,
        lease: lease.clone(),
    });
    let result = WatchResult::<_, LeaseBody> {
        events: Some(&events),
        snapshot: None,
        cursor: "7-2-0",
        unreadable: vec!["10.5.9.0-24".to_owned()],
        config: Some("7-0"),
    };
    assert_eq!(
        encode(&result).unwrap(),
        format!(
            "{{\"events\":[{{\"type\":\"added\",\"lease\":{text}}},{{\"type\":\"removed\",\"lease\":{text}}}],\
             \"snapshot\":null,\"cursor\":\"7-2-0\",\"unreadable\":[\"10.5.9.0-24\"],\"config\":\"7-0\"}}\n"
        )
    );
}

#[test]
fn what_is_sent_is_read_back() {
    for name in [
        "10.5.34.0-24",
        "10.5.34.0-24&fd00:10:5:22::-64",
        "fd00:10:5:22::-64",
    ] {
        let lease = Lease {
            key: SubnetKey::parse_name(name).unwrap(),
            ..lease()
        };
        let ttl = Some(Duration::from_secs(600));
        let body = LeaseBody::new(&lease).lasting(ttl, 15, UNIX_EPOCH);
        let received = Received::parse(&encode(&body).unwrap()).unwrap();
        assert_eq!(received.ttl, ttl);
        assert_eq!(received.into_lease(), Some(lease));
    }
}

/// As written by flannel 0.5.5 and 0.7.
#[test]
fn leases_of_old_servers_are_read() {
    let old = r#"{"Subnet":"10.5.34.0/24","Attrs":{"PublicIP":"10.0.0.1"},"Expiration":"2015-10-11T02:34:04.5+02:00"}"#;
    let received = Received::parse(old).unwrap();
    assert_eq!((received.ttl, received.created), (None, 0));
    assert_eq!(received.key.name(), "10.5.34.0-24");
    assert!(received.attrs.is_some());
    let bare = r#"{"subnet":"10.5.34.0/24","Attrs":null,"Expiration":"0001-01-01T00:00:00Z"}"#;
    assert!(Received::parse(bare).unwrap().attrs.is_none());
}

#[test]
fn bad_leases_are_errors_that_say_what_is_wrong() {
    for (text, message) in [
        ("", "not valid JSON"),
        ("[]", "[] is not a JSON object"),
        ("{}", "Subnet: null is not a subnet"),
        (
            r#"{"Subnet":"10.5.34.1/24"}"#,
            "Subnet: \"10.5.34.1/24\" is not a subnet",
        ),
        (
            r#"{"Subnet":"10.5.34.0"}"#,
            "Subnet: \"10.5.34.0\" is not a subnet",
        ),
        (r#"{"Subnet":"0.0.0.0/0"}"#, "Subnet: \"0.0.0.0/0\" is not"),
        (
            r#"{"Subnet":"10.5.34.0/24","Attrs":3}"#,
            "Attrs: 3 is not a JSON object",
        ),
        (
            r#"{"Subnet":"10.5.34.0/24","Attrs":{}}"#,
            "Attrs: PublicIP is missing",
        ),
        (
            r#"{"Subnet":"10.5.34.0/24","TTL":-1}"#,
            "TTL: -1 is not a number of seconds",
        ),
    ] {
        let error = Received::parse(text).unwrap_err().to_string();
        assert!(error.starts_with(message), "{text}: {error}");
    }
}

#[test]
fn watches_are_read() {
    let event = |kind: &str, lease: &str| format!(r#"{{"type":"{kind}","lease":{lease}}}"#);
    let good = encode(&LeaseBody::new(&lease())).unwrap();
    let garbled = r#"{"Subnet":"10.5.3.0/24","Attrs":{"PublicIP":5}}"#;
    let result = |events: &str, snapshot: &str| {
        format!(r#"{{"events":{events},"snapshot":{snapshot},"cursor":"7-1"}}"#)
    };

    let text = result("null", &format!("[{good},{garbled},{{}}]"));
    let Watched { update, cursor, .. } = Watched::parse(&text, true).unwrap();
    assert_eq!(cursor, "7-1");
    match update {
        WatchUpdate::Snapshot { leases, unreadable } => {
            assert_eq!(leases, [lease()]);
            assert_eq!(unreadable, [SubnetKey::parse_name("10.5.3.0-24").unwrap()]);
        }
        other => panic!("{other:?}"),
    }

    let events = [
        event("added", &good),
        event("added", garbled),
        event("removed", garbled),
    ];
    let text = result(&format!("[{}]", events.join(",")), "null");
    match Watched::parse(&text, true).unwrap().update {
        WatchUpdate::Changes(changes) => assert_eq!(
            changes,
            [
                (lease().key, Some(lease())),
                (SubnetKey::parse_name("10.5.3.0-24").unwrap(), None)
            ]
        ),
        other => panic!("{other:?}"),
    }

    // An empty answer means no update after a wait, and an empty network otherwise.
    let nothing = result("null", "null");
    let waited = Watched::parse(&nothing, true).unwrap().update;
    assert!(matches!(waited, WatchUpdate::Changes(changes) if changes.is_empty()));
    let first = Watched::parse(&nothing, false).unwrap().update;
    assert!(matches!(first, WatchUpdate::Snapshot { leases, .. } if leases.is_empty()));
    let emptied = Watched::parse(&result("[]", "[]"), true).unwrap().update;
    assert!(matches!(emptied, WatchUpdate::Snapshot { leases, .. } if leases.is_empty()));
}

#[test]
fn bad_watches_are_errors() {
    for text in [
        "",
        "{}",
        r#"{"events":3,"snapshot":null,"cursor":"1"}"#,
        r#"{"events":[{"type":"moved","lease":{}}],"cursor":"1"}"#,
        r#"{"events":null,"snapshot":{},"cursor":"1"}"#,
        r#"{"events":null,"snapshot":[],"cursor":7}"#,
        r#"{"events":null,"snapshot":[],"cursor":"a b"}"#,
        r#"{"events":null,"snapshot":[],"cursor":"1&x=/"}"#,
    ] {
        assert!(Watched::parse(text, true).is_err(), "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_reading_panic(text: String, tail in "[-0-9a-zA-Z{}\\[\\]\":,./ ]{0,80}") {
        for text in [text, tail] {
            let _ = Received::parse(&text);
            let _ = Watched::parse(&text, true);
        }
    }
}
