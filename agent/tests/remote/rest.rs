//! The REST interface as an old flannel, a hostile client or a curious administrator meets it.

use std::time::{Duration, Instant};

use etcd_client::{CompactionOptions, PutOptions};

use crate::etcd::Server;
use crate::program::Program;
use crate::wait::PATIENCE;

pub(crate) const CONFIG: &str =
    r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.9.0"}"#;
pub(crate) const WIDE: &str = r#"{ "Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"} }"#;

pub(crate) async fn put(etcd: &Server, key: &str, value: &str) {
    let key = format!("/coreos.com/network/{key}");
    etcd.client().await.put(key, value, None).await.unwrap();
}

async fn value(etcd: &Server, key: &str) -> Option<String> {
    let key = format!("/coreos.com/network/{key}");
    let response = etcd.client().await.get(key, None).await.unwrap();
    let kv = response.kvs().first()?;
    Some(kv.value_str().unwrap().to_owned())
}

pub(crate) async fn serving(config: &str) -> (Server, Program) {
    let etcd = Server::start().await;
    put(&etcd, "config", config).await;
    let program = Program::start(&etcd, &[]);
    (etcd, program)
}

/// The cursor of a fresh watch.
pub(crate) fn cursor(program: &Program) -> String {
    let all = program.ask("GET", "/v1/_/leases", "").json();
    all["cursor"].as_str().unwrap().to_owned()
}

/// What flannel 0.5.5's client sends, and what it can read.
#[tokio::test]
async fn answers_to_a_flannel_of_2015_are_its_servers_to_the_byte() {
    let (etcd, program) = serving(CONFIG).await;
    let json = Some("application/json; charset=utf-8");

    let reply = program.ask("GET", "/v1/_/config", "");
    assert_eq!((reply.status, reply.header("content-type")), (200, json));
    assert_eq!(reply.body, format!("{CONFIG}\n"));

    let attrs = r#"{"PublicIP":"10.0.0.1","BackendType":"vxlan","BackendData":{"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
    let stored = r#"{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
    let reply = program.ask("POST", "/v1/_/leases", attrs);
    assert_eq!((reply.status, reply.header("content-type")), (200, json));
    let lease = reply.json();
    let (expiration, asof) = (&lease["Expiration"], &lease["Asof"]);
    assert_eq!(
        reply.body,
        format!(
            r#"{{"Subnet":"10.5.9.0/24","Attrs":{stored},"Expiration":{expiration},"Asof":{asof},"TTL":86400,"Created":{asof}}}"#
        ) + "\n"
    );
    assert_eq!(
        expiration.as_str().unwrap().len(),
        "2015-10-11T02:34:04Z".len()
    );
    // To etcd goes what a flannel there would write.
    assert_eq!(value(&etcd, "subnets/10.5.9.0-24").await.unwrap(), stored);

    // It asks again after a restart, and is given the same.
    let again = program.ask("POST", "/v1/_/leases", attrs).json();
    assert_eq!(again["Subnet"], "10.5.9.0/24");
    assert_eq!(&again["Asof"], asof);

    let renewal = format!(
        r#"{{"Subnet":"10.5.9.0/24","Attrs":{attrs},"Expiration":"2015-10-11T02:34:04.123456+02:00"}}"#
    );
    let reply = program.ask("PUT", "/v1/_/leases/10.5.9.0-24", &renewal);
    assert_eq!((reply.status, reply.header("content-type")), (200, json));
    assert_eq!(reply.json()["Subnet"], "10.5.9.0/24");
    assert_eq!(&reply.json()["Asof"], asof);

    program.wait_listed(1);
    let reply = program.ask("GET", "/v1/_/leases", "");
    let cursor = reply.json()["cursor"].as_str().unwrap().to_owned();
    let config = reply.json()["config"].clone();
    let listed = |created: &serde_json::Value| {
        format!(
            r#"{{"Subnet":"10.5.9.0/24","Attrs":{stored},"Expiration":"0001-01-01T00:00:00Z","Asof":0,"Created":{created}}}"#
        )
    };
    assert_eq!((reply.status, reply.header("content-type")), (200, json));
    assert_eq!(
        reply.body,
        format!(
            r#"{{"events":null,"snapshot":[{}],"cursor":"{cursor}","config":{config}}}"#,
            listed(asof)
        ) + "\n"
    );

    // A long poll ends with the first change.
    let key = "/coreos.com/network/subnets/10.5.9.0-24";
    let program = std::sync::Arc::new(program);
    let polling = std::sync::Arc::clone(&program);
    let path = format!("/v1/_/leases?next={cursor}");
    let poll = std::thread::spawn(move || polling.ask("GET", &path, ""));
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!poll.is_finished(), "there was no news yet");
    etcd.client().await.delete(key, None).await.unwrap();
    let deleted = Instant::now();
    let polled = poll.join().unwrap();
    assert!(deleted.elapsed() < PATIENCE / 3);
    let next = polled.json()["cursor"].as_str().unwrap().to_owned();
    assert_ne!(next, cursor);
    assert_eq!(
        polled.body,
        format!(
            r#"{{"events":[{{"type":"removed","lease":{}}}],"snapshot":null,"cursor":"{next}","config":{config}}}"#,
            listed(asof)
        ) + "\n"
    );
}

#[tokio::test]
async fn errors_are_400_for_json_and_500_with_a_text_for_the_rest() {
    let etcd = Server::start().await;
    let program = Program::start(&etcd, &[]);
    let attrs = r#"{"PublicIP":"10.0.0.1"}"#;
    let lease = |subnet: &str| format!(r#"{{"Subnet":"{subnet}","Attrs":{attrs}}}"#);

    let reply = program.ask("GET", "/v1/_/config", "");
    assert_eq!(reply.status, 500);
    assert_eq!(
        reply.body,
        "no network config at /coreos.com/network/config"
    );
    assert_eq!(reply.header("selvage-reason"), Some("no-network-config"));
    assert_eq!(
        reply.header("content-type"),
        Some("text/plain; charset=utf-8")
    );
    let reply = program.ask("POST", "/v1/_/leases", attrs);
    assert_eq!(
        (reply.status, reply.header("selvage-reason")),
        (500, Some("no-network-config"))
    );
    let reply = program.ask("GET", "/v1/nowhere/leases", "");
    assert_eq!(reply.status, 500);
    assert_eq!(
        reply.body,
        "no network config at /coreos.com/network/nowhere/config"
    );

    put(&etcd, "config", "{}").await;
    let reply = program.ask("GET", "/v1/_/config", "");
    assert_eq!(
        (reply.status, reply.header("selvage-reason")),
        (500, Some("refused"))
    );
    assert!(
        reply
            .body
            .starts_with("bad network config at /coreos.com/network/config: ")
    );

    put(&etcd, "config", CONFIG).await;
    for (method, path, body, status, text) in [
        ("POST", "/v1/_/leases", "", 400, "JSON decoding error: "),
        (
            "POST",
            "/v1/_/leases",
            "{",
            400,
            "JSON decoding error: not valid JSON: ",
        ),
        (
            "POST",
            "/v1/_/leases",
            "[1]",
            400,
            "JSON decoding error: [1] is not a JSON object",
        ),
        (
            "POST",
            "/v1/_/leases",
            "{}",
            400,
            "JSON decoding error: PublicIP is missing",
        ),
        (
            "PUT",
            "/v1/_/leases/10.5.9.0-24",
            "{",
            400,
            "JSON decoding error: ",
        ),
        (
            "POST",
            "/v1/_/leases",
            r#"{"PublicIP":"127.0.0.1"}"#,
            500,
            "PublicIP 127.0.0.1: ",
        ),
        (
            "POST",
            "/v1/_/leases",
            r#"{"PublicIP":"0.0.0.0"}"#,
            500,
            "PublicIP 0.0.0.0: ",
        ),
        (
            "POST",
            "/v1/_/leases",
            r#"{"PublicIP":"10.0.0.1","SelvageOwner":"a@b"}"#,
            400,
            "JSON decoding error: SelvageOwner: expected",
        ),
        (
            "PUT",
            "/v1/_/leases/junk",
            &lease("10.5.9.0/24"),
            500,
            "\"junk\" is not a lease key",
        ),
        (
            "PUT",
            "/v1/_/leases/10.5.8.0-24",
            &lease("10.5.9.0/24"),
            500,
            "the path names 10.5.8.0/24, but the body names 10.5.9.0/24",
        ),
        (
            "PUT",
            "/v1/_/leases/10.5.9.0-24",
            &lease("10.5.9.0/24"),
            500,
            "its key was deleted or has expired",
        ),
        (
            "GET",
            "/v1/_/leases/10.5.9.0-24",
            "",
            500,
            "there is no lease of 10.5.9.0/24",
        ),
        (
            "GET",
            "/v1/_/leases?wait=1h",
            "",
            400,
            "JSON decoding error: wait=\"1h\": expected 0 to 120",
        ),
        ("GET", "/v1/%2e%2e/config", "", 500, "no network config at "),
        (
            "GET",
            "/v1/subnets/leases",
            "",
            500,
            "no network config at ",
        ),
        ("GET", "/", "", 404, "404 page not found\n"),
        ("PATCH", "/v1/_/leases", "", 404, "404 page not found\n"),
        (
            "POST",
            "/v1/_/reservations",
            r#"{"Subnet":"10.5.9.0/24","PublicIP":"10.0.0.1"}"#,
            500,
            "a lease server makes no reservations",
        ),
    ] {
        let reply = program.ask(method, path, body);
        assert_eq!(reply.status, status, "{method} {path} {body}: {reply:?}");
        assert!(
            reply.body.starts_with(text),
            "{method} {path} {body}: {reply:?}"
        );
    }
    // The only subnet is somebody's.
    assert_eq!(program.ask("POST", "/v1/_/leases", attrs).status, 200);
    let reply = program.ask("POST", "/v1/_/leases", r#"{"PublicIP":"10.0.0.2"}"#);
    assert_eq!(reply.status, 500);
    assert!(reply.body.starts_with("out of subnets"), "{reply:?}");
    assert_eq!(program.stop(), Some(0));
}

#[tokio::test]
async fn networks_below_the_prefix_have_names_and_reservations_are_shown() {
    let (etcd, program) = serving(WIDE).await;
    put(&etcd, "blue/config", CONFIG).await;
    put(&etcd, "green/config", r#"{"Network":"10.6.0.0/16"}"#).await;
    put(&etcd, "grey/other", "x").await;
    put(&etcd, "subnets/10.5.3.0-24", r#"{"PublicIP":"10.0.0.3"}"#).await;
    let names = program.ask("GET", "/v1/", "").json();
    assert_eq!(names["snapshot"], serde_json::json!(["blue", "green"]));
    assert!(
        names["cursor"].is_string() && names["events"].is_null(),
        "{names}"
    );

    let lease = program.ask("POST", "/v1/blue/leases", r#"{"PublicIP":"10.0.0.1"}"#);
    assert_eq!(lease.json()["Subnet"], "10.5.9.0/24");
    assert!(value(&etcd, "blue/subnets/10.5.9.0-24").await.is_some());
    let green = program.ask("GET", "/v1/green/leases", "").json();
    assert_eq!(green["snapshot"], serde_json::json!([]));

    let reservations = program.ask("GET", "/v1/_/reservations", "");
    assert_eq!(
        reservations.body,
        "[{\"Subnet\":\"10.5.3.0/24\",\"PublicIP\":\"10.0.0.3\"}]\n"
    );
    // It is given to whom it is for, and does not end.
    let lease = program
        .ask("POST", "/v1/_/leases", r#"{"PublicIP":"10.0.0.3"}"#)
        .json();
    assert_eq!(lease["Subnet"], "10.5.3.0/24");
    assert_eq!(lease["Expiration"], "0001-01-01T00:00:00Z");
    assert!(lease["TTL"].is_null());
    let one = program.ask("GET", "/v1/_/leases/10.5.3.0-24", "").json();
    assert_eq!(one["snapshot"][0]["Expiration"], "0001-01-01T00:00:00Z");
    // And stays when it is given back.
    let body = r#"{"Subnet":"10.5.3.0/24","Attrs":{"PublicIP":"10.0.0.3"}}"#;
    let reply = program.ask("DELETE", "/v1/_/leases/10.5.3.0-24", body);
    assert_eq!((reply.status, reply.body.as_str()), (200, "reservation\n"));
    assert!(value(&etcd, "subnets/10.5.3.0-24").await.is_some());
}

#[tokio::test]
async fn nobody_renews_or_releases_a_lease_of_somebody_else() {
    let (etcd, program) = serving(WIDE).await;
    let attrs =
        |owner: &str, ip: &str| format!(r#"{{"PublicIP":"{ip}","SelvageOwner":"{owner}"}}"#);
    let lease = program
        .ask("POST", "/v1/_/leases", &attrs("m1", "10.0.0.1"))
        .json();
    let subnet = lease["Subnet"].as_str().unwrap().to_owned();
    let name = subnet.replace('/', "-");
    let key = format!("subnets/{name}");
    let before = value(&etcd, &key).await.unwrap();
    let path = format!("/v1/_/leases/{name}");
    let body = |attrs: &str| format!(r#"{{"Subnet":"{subnet}","Attrs":{attrs}}}"#);
    for other in [
        attrs("m2", "10.0.0.1"),
        attrs("m2", "10.0.0.2"),
        // The right machine's ID alone is not enough: cloned disks have the same.
        attrs("m1", "10.0.0.2"),
        r#"{"PublicIP":"10.0.0.1"}"#.to_owned(),
    ] {
        for method in ["PUT", "DELETE"] {
            let reply = program.ask(method, &path, &body(&other));
            assert_eq!(reply.status, 500, "{method} {other}: {reply:?}");
            assert_eq!(
                reply.header("selvage-reason"),
                Some("no-lease"),
                "{reply:?}"
            );
            assert_eq!(
                value(&etcd, &key).await.as_ref(),
                Some(&before),
                "{method} {other}"
            );
        }
    }
    let reply = program.ask("DELETE", &path, "");
    assert_eq!(
        (reply.status, reply.header("selvage-reason")),
        (500, Some("no-lease"))
    );
    // A lease that nobody can read is not up for grabs.
    put(&etcd, "subnets/10.5.177.0-24", "garbled").await;
    let of_nobody = format!(
        r#"{{"Subnet":"10.5.177.0/24","Attrs":{}}}"#,
        attrs("m2", "10.0.0.2")
    );
    for method in ["PUT", "DELETE"] {
        let reply = program.ask(method, "/v1/_/leases/10.5.177.0-24", &of_nobody);
        assert_eq!(
            reply.header("selvage-reason"),
            Some("no-lease"),
            "{reply:?}"
        );
    }
    assert_eq!(
        value(&etcd, "subnets/10.5.177.0-24").await.as_deref(),
        Some("garbled")
    );
    // With the address that it had before, its owner may move it.
    let moved = attrs("m1", "10.0.0.9");
    let reply = program.ask("PUT", &format!("{path}?former=10.0.0.1"), &body(&moved));
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(value(&etcd, &key).await.unwrap().contains("10.0.0.9"));
    let reply = program.ask("DELETE", &path, &body(&moved));
    assert_eq!((reply.status, reply.body.as_str()), (200, ""));
    assert_eq!(value(&etcd, &key).await, None);
}

#[tokio::test]
async fn polls_resume_where_they_were_and_begin_anew_where_that_is_not_known() {
    let (etcd, program) = serving(WIDE).await;
    let start = cursor(&program);
    let poll = |cursor: &str| {
        let path = format!("/v1/_/leases?next={cursor}&wait=20");
        program.ask("GET", &path, "").json()
    };
    for number in 1..=3 {
        let lease = format!(r#"{{"PublicIP":"10.0.0.{number}"}}"#);
        put(&etcd, &format!("subnets/10.5.{number}.0-24"), &lease).await;
    }
    // What happened between two polls is told at once, all of it, each lease once.
    let mut seen = std::collections::BTreeSet::new();
    let mut at = start.clone();
    while seen.len() < 3 {
        let news = poll(&at);
        assert!(news["snapshot"].is_null(), "{news}");
        for event in news["events"].as_array().unwrap() {
            assert_eq!(event["type"], "added");
            seen.insert(event["lease"]["Subnet"].as_str().unwrap().to_owned());
        }
        at = news["cursor"].as_str().unwrap().to_owned();
    }
    let all = poll(&start);
    assert_eq!(all["events"].as_array().map(Vec::len), Some(3), "{all}");
    // Without news the answer comes when it is wanted, and is no empty network.
    let begin = Instant::now();
    let none = program
        .ask("GET", &format!("/v1/_/leases?next={at}&wait=1"), "")
        .json();
    assert!(begin.elapsed() >= Duration::from_millis(900));
    assert!(
        none["events"].is_null() && none["snapshot"].is_null(),
        "{none}"
    );
    assert_eq!(none["cursor"], at.as_str());
    // A cursor of another server, as that of flannel's.
    let other = poll("12345");
    assert_eq!(
        other["snapshot"].as_array().map(Vec::len),
        Some(3),
        "{other}"
    );

    // A changed network config ends a poll of ours.
    let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
    put(&etcd, "config", config).await;
    let news = poll(&at);
    assert_ne!(news["config"], all["config"]);
    assert!(
        news["events"].is_null() && news["snapshot"].is_null(),
        "{news}"
    );
    let at = news["cursor"].as_str().unwrap().to_owned();

    // Compaction of what a disconnected server missed: its clients see just what changed.
    let mut etcd = etcd;
    etcd.freeze();
    etcd.thaw();
    etcd.down();
    etcd.up().await;
    put(&etcd, "subnets/10.5.4.0-24", r#"{"PublicIP":"10.0.0.4"}"#).await;
    let mut client = etcd.client().await;
    let key = "/coreos.com/network/subnets/10.5.1.0-24";
    client
        .put(key, r#"{"PublicIP":"10.0.0.11"}"#, None::<PutOptions>)
        .await
        .unwrap();
    let revision = client
        .get(key, None)
        .await
        .unwrap()
        .header()
        .unwrap()
        .revision();
    client
        .compact(revision, None::<CompactionOptions>)
        .await
        .unwrap();
    let mut seen = std::collections::BTreeSet::new();
    let mut at = at;
    let deadline = Instant::now() + PATIENCE;
    while seen.len() < 2 {
        assert!(Instant::now() < deadline, "{seen:?}");
        let news = poll(&at);
        assert!(news["snapshot"].is_null(), "{news}");
        for event in news["events"].as_array().into_iter().flatten() {
            seen.insert(event["lease"]["Subnet"].as_str().unwrap().to_owned());
        }
        at = news["cursor"].as_str().unwrap().to_owned();
    }
    assert!(
        seen.contains("10.5.4.0/24") && seen.contains("10.5.1.0/24"),
        "{seen:?}"
    );
}

/// flannel 0.6 and 0.7 watch their own lease by itself.
#[tokio::test]
async fn one_lease_is_watched_by_itself() {
    let (etcd, program) = serving(WIDE).await;
    let lease = program
        .ask("POST", "/v1/_/leases", r#"{"PublicIP":"10.0.0.1"}"#)
        .json();
    let name = lease["Subnet"].as_str().unwrap().replace('/', "-");
    let path = format!("/v1/_/leases/{name}");
    program.wait_listed(1);
    let first = program.ask("GET", &path, "").json();
    assert_eq!(first["snapshot"][0]["Subnet"], lease["Subnet"]);
    assert_ne!(first["snapshot"][0]["Expiration"], "0001-01-01T00:00:00Z");
    let cursor = first["cursor"].as_str().unwrap();
    // Others' changes are none of its business.
    put(
        &etcd,
        "subnets/10.5.200.0-24",
        r#"{"PublicIP":"10.0.0.200"}"#,
    )
    .await;
    let path = format!("{path}?next={cursor}");
    let quiet = program.ask("GET", &format!("{path}&wait=1"), "").json();
    assert!(
        quiet["events"].is_null() && quiet["snapshot"].is_null(),
        "{quiet}"
    );
    let key = format!("/coreos.com/network/subnets/{name}");
    etcd.client().await.delete(key, None).await.unwrap();
    let gone = program.ask("GET", &path, "").json();
    assert_eq!(gone["events"][0]["type"], "removed");
    assert_eq!(gone["events"][0]["lease"]["Subnet"], lease["Subnet"]);
}
