use std::time::Duration;

use super::*;
use crate::appliance::update::index::Index;
use crate::appliance::update::samples::server::{Fault, TestServer};
use crate::appliance::update::samples::{self, Site};
use crate::appliance::update::server::Patience;
use crate::settings::{self, Environment, SettingsFlags, Sources};

/// A release server with version 1.1, and a directory to download into.
struct World {
    server: TestServer,
    index: Index,
    root: tempfile::TempDir,
    directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        Self::with("").await
    }

    async fn with(more: &str) -> Self {
        let mut site = Site::new();
        let release = samples::release("1.1", &mut site);
        samples::publish(&mut site, 1, &[release]);
        let index = Index::parse(&site["stable.json"], "stable", 0).unwrap();
        let server = TestServer::start(site).await;
        let settings = format!("server = \"http://{}/releases/\"\n{more}", server.address);
        Self {
            root: samples::machine("1.0", &settings),
            directory: tempfile::tempdir().unwrap(),
            server,
            index,
        }
    }

    /// The largest file.
    fn usr(&self) -> &index::File {
        &self.index.releases[0].files[0]
    }

    fn content(&self) -> Vec<u8> {
        self.server.shared().site[&self.usr().path].clone()
    }

    fn part(&self) -> PathBuf {
        part_path(self.directory.path(), self.usr())
    }

    async fn fetch(&self) -> Result<(), DownloadError> {
        let patience = Patience {
            answer: Duration::from_secs(10),
            bytes: Duration::from_millis(200),
        };
        let settings = settings::update::load(Sources {
            root: self.root.path(),
            config: None,
            environment: &Environment::default(),
            flags: &SettingsFlags::default(),
        });
        let server = Server::new(&settings.unwrap())
            .unwrap()
            .with_patience(patience);
        let pause = Duration::from_millis(1);
        let mut download = Download {
            server: &server,
            directory: self.directory.path(),
            pace: Pace::new(None, Instant::now()),
            backoff: Backoff::new(pause, pause, 0.0, 1).unwrap(),
        };
        let mut last = 0;
        let result = download.run(self.usr(), &mut |bytes| last = bytes).await;
        if result.is_ok() {
            assert_eq!(last, self.usr().size);
            let got = fs::read(self.directory.path().join(self.usr().name())).unwrap();
            assert!(got == self.content(), "the file differs");
            let left = fs::read_dir(self.directory.path()).unwrap().count();
            assert_eq!(left, 1, "something was left behind");
        }
        result
    }

    fn requests(&self) -> Vec<String> {
        self.server.requests(".usr.raw.zst")
    }

    fn ranges(&self) -> Vec<Option<u64>> {
        let start = |head: &String| {
            let line = head
                .lines()
                .find_map(|line| line.strip_prefix("range: bytes="));
            line.map(|range| range.trim_end_matches('-').parse().unwrap())
        };
        self.requests().iter().map(start).collect()
    }
}

#[tokio::test]
async fn a_file_comes_whole_and_only_once() {
    let world = World::new().await;
    world.fetch().await.unwrap();
    world.fetch().await.unwrap();
    assert_eq!(world.ranges(), [None]);
    let head = &world.requests()[0];
    assert!(
        head.starts_with("GET /releases/selvage_1.1/selvage_1.1_"),
        "{head}"
    );
    assert!(
        head.contains(&format!("host: {}\r\n", world.server.address)),
        "{head}"
    );
    assert!(head.contains("accept-encoding: identity\r\n"), "{head}");
}

#[tokio::test]
async fn a_download_goes_on_wherever_the_connection_breaks() {
    let mut seed = 7;
    for _ in 0..12 {
        let world = World::new().await;
        let size = usize::try_from(world.usr().size).unwrap();
        let mut cuts: Vec<usize> = (0..6)
            .map(|_| {
                let random = crate::base::retry::next_random(&mut seed);
                usize::try_from(random).unwrap() % (size / 6)
            })
            .collect();
        // Also right before the first byte, and before the last.
        cuts.extend([0, size / 8]);
        world
            .server
            .fail(cuts.iter().enumerate().map(|(i, cut)| match i % 2 {
                0 => Fault::Cut(*cut),
                _ => Fault::EndlessCut(*cut),
            }));
        world.fetch().await.unwrap();
        let ranges: Vec<u64> = world
            .ranges()
            .into_iter()
            .map(|start| start.unwrap_or(0))
            .collect();
        assert!(ranges.is_sorted(), "{ranges:?}");
        assert_eq!(
            world.server.shared().sent,
            size,
            "bytes came twice: {ranges:?}"
        );
        assert!(
            world.requests()[2].contains("if-range: \""),
            "no version was asked for"
        );
    }
}

#[tokio::test]
async fn a_later_run_goes_on_where_an_earlier_one_gave_up() {
    let world = World::new().await;
    world
        .server
        .fail(std::iter::once(Fault::Cut(1000)).chain(vec![Fault::Status(503, ""); 8]));
    let error = world.fetch().await.unwrap_err();
    assert!(error.to_string().ends_with(": HTTP status 503"), "{error}");
    assert_eq!(fs::metadata(world.part()).unwrap().len(), 1000);
    world.fetch().await.unwrap();
    assert_eq!(world.ranges().last(), Some(&Some(1000)));
}

#[tokio::test]
async fn a_server_that_is_silent_is_left() {
    let world = World::new().await;
    world.server.fail([Fault::Stall(5000), Fault::Stall(0)]);
    world.fetch().await.unwrap();
    assert_eq!(world.ranges(), [None, Some(5000), Some(5000)]);
}

#[tokio::test]
async fn a_server_without_ranges_starts_again() {
    let world = World::new().await;
    world.server.shared().no_ranges = true;
    world.server.fail([Fault::Cut(9000)]);
    world.fetch().await.unwrap();
    assert_eq!(world.ranges(), [None, Some(9000)]);
    // Even one that never comes further than before is given up.
    let world = World::new().await;
    world.server.shared().no_ranges = true;
    world.server.fail(vec![Fault::Cut(9000); 100]);
    world.fetch().await.unwrap_err();
    assert!(world.requests().len() <= 10, "{}", world.requests().len());
}

#[tokio::test]
async fn a_wrong_range_is_not_taken() {
    let world = World::new().await;
    world.server.fail([Fault::Cut(8000), Fault::WrongRange]);
    world.fetch().await.unwrap();
    assert_eq!(world.ranges(), [None, Some(8000), None]);
    let world = World::new().await;
    world
        .server
        .fail(std::iter::repeat_n([Fault::Cut(8000), Fault::WrongRange], 20).flatten());
    let error = world.fetch().await.unwrap_err().to_string();
    assert!(
        error.contains("instead of the one from byte 8000"),
        "{error}"
    );
}

#[tokio::test]
async fn a_file_that_changed_meanwhile_comes_from_its_beginning() {
    for no_tags in [false, true] {
        let world = World::new().await;
        let right = world.content();
        let mut wrong = right.clone();
        wrong[0] ^= 1;
        world.server.shared().no_tags = no_tags;
        world
            .server
            .shared()
            .site
            .insert(world.usr().path.clone(), wrong);
        world
            .server
            .fail(std::iter::once(Fault::Cut(1000)).chain(vec![Fault::Status(500, ""); 8]));
        world.fetch().await.unwrap_err();
        world
            .server
            .shared()
            .site
            .insert(world.usr().path.clone(), right);
        world.fetch().await.unwrap();
        let ranges = world.ranges();
        // With a tag the server itself starts again; without one the hash shows the mixture.
        let expected: &[Option<u64>] = if no_tags {
            &[Some(1000), None]
        } else {
            &[Some(1000)]
        };
        assert!(ranges.ends_with(expected), "{ranges:?}");
    }
}

#[tokio::test]
async fn a_file_that_is_not_what_was_signed_is_refused_and_not_kept() {
    let world = World::new().await;
    let mut wrong = world.content();
    wrong[100] ^= 1;
    world
        .server
        .shared()
        .site
        .insert(world.usr().path.clone(), wrong.clone());
    let error = world.fetch().await.unwrap_err().to_string();
    assert!(error.contains("the signed index says"), "{error}");
    assert_eq!(world.requests().len(), 1, "nobody's fault but the server's");
    assert_eq!(present(world.directory.path(), world.usr()), 0);

    for length in [wrong.len() - 1, wrong.len() + 1] {
        let world = World::new().await;
        wrong.resize(length, 0);
        world
            .server
            .shared()
            .site
            .insert(world.usr().path.clone(), wrong.clone());
        let error = world.fetch().await.unwrap_err().to_string();
        assert!(
            error.contains(&format!("the server's file has {length} bytes")),
            "{error}"
        );
        // Without a length in the head it shows later.
        world.server.fail([Fault::EndlessCut(usize::MAX)]);
        let error = world.fetch().await.unwrap_err().to_string();
        assert!(
            error.contains(&format!("the server's file has {length} bytes")),
            "{error}"
        );
        let left = present(world.directory.path(), world.usr());
        assert_eq!(left, 0, "it cannot be gone on from");
    }
}

#[tokio::test]
async fn a_file_that_went_bad_on_this_disk_comes_again() {
    let world = World::new().await;
    world.fetch().await.unwrap();
    let path = world.directory.path().join(world.usr().name());
    let mut bytes = fs::read(&path).unwrap();
    bytes[7] ^= 0x80;
    fs::write(&path, bytes).unwrap();
    world.fetch().await.unwrap();
    assert_eq!(world.ranges(), [None, None]);
    // A part that is too long, of whatever, ends up right as well.
    fs::remove_file(&path).unwrap();
    fs::write(world.part(), vec![1; 500_000]).unwrap();
    world.fetch().await.unwrap();
}

#[tokio::test]
async fn statuses_are_retried_where_that_helps() {
    for (status, retried) in [
        (404, false),
        (403, false),
        (410, false),
        (503, true),
        (429, true),
        (500, true),
    ] {
        let world = World::new().await;
        world.server.fail([Fault::Status(status, "")]);
        let result = world.fetch().await;
        assert_eq!(result.is_ok(), retried, "{status}");
        if let Err(error) = result {
            assert!(
                error
                    .to_string()
                    .ends_with(&format!("HTTP status {status}")),
                "{error}"
            );
        }
    }
    // A server may say when to come back.
    let world = World::new().await;
    world
        .server
        .fail([Fault::Status(503, "Retry-After: 0\r\n")]);
    world.fetch().await.unwrap();
}

#[tokio::test]
async fn redirects_are_followed_but_not_in_circles() {
    let world = World::new().await;
    let path = world.usr().path.clone();
    let content = world.content();
    world
        .server
        .shared()
        .site
        .insert("mirror/a.zst".to_owned(), content);
    world.server.fail([Fault::Status(
        302,
        "Location: ../mirror/../mirror/a.zst\r\n",
    )]);
    // Dots are for the server to resolve: this one does not.
    let error = world.fetch().await.unwrap_err().to_string();
    assert!(error.ends_with("HTTP status 404"), "{error}");
    world
        .server
        .fail([Fault::Status(307, "Location: /releases/mirror/a.zst\r\n")]);
    world.fetch().await.unwrap();

    let world = World::new().await;
    world
        .server
        .fail(vec![Fault::Status(301, "Location: selvage.zst\r\n"); 10]);
    let error = world.fetch().await.unwrap_err().to_string();
    assert!(error.contains("redirects more than 5 times"), "{error}");
    let world = World::new().await;
    world.server.fail([Fault::Status(301, "")]);
    let error = world.fetch().await.unwrap_err().to_string();
    assert!(
        error.contains(&path) && error.contains("without saying where"),
        "{error}"
    );
}

#[tokio::test]
async fn a_proxy_is_told_the_whole_address_and_the_password() {
    let proxy = TestServer::start(Site::new()).await;
    let more = format!("proxy = \"http://me:se:cret@{}\"", proxy.address);
    let world = World::with(&more).await;
    *proxy.shared() = std::mem::take(&mut *world.server.shared());
    let content = proxy.shared().site[&world.usr().path].clone();
    world
        .server
        .shared()
        .site
        .insert(world.usr().path.clone(), content);
    world.fetch().await.unwrap();
    assert!(world.requests().is_empty());
    let head = &proxy.requests(".usr.raw.zst")[0];
    let start = format!("GET http://{}/releases/selvage_1.1/", world.server.address);
    assert!(head.starts_with(&start), "{head}");
    // me:se:cret
    assert!(
        head.contains("proxy-authorization: Basic bWU6c2U6Y3JldA==\r\n"),
        "{head}"
    );
}

#[test]
fn a_rate_is_kept_and_no_silence_made_up_for() {
    let start = Instant::now();
    let at = |millis| start + Duration::from_millis(millis);
    let mut none = Pace::new(None, start);
    assert_eq!(none.pause(u64::MAX, start), Duration::ZERO);
    let mut pace = Pace::new(Some(1000), start);
    for (bytes, now, pause) in [
        (100, 0, 100),
        (100, 100, 100),
        (500, 500, 200),
        (100, 1600, 0),
        // After ten seconds of nothing no ten thousand bytes come at once.
        (500, 11_600, 500),
        (500, 11_600, 1000),
    ] {
        assert_eq!(
            pace.pause(bytes, at(now)),
            Duration::from_millis(pause),
            "at {now}"
        );
    }
    assert!(Pace::new(Some(0), start).pause(1, start) > Duration::ZERO);
}

#[tokio::test]
async fn a_tag_of_any_bytes_becomes_a_header_or_nothing() {
    let world = World::new().await;
    let tag = world
        .directory
        .path()
        .join(format!("{}.tag", world.usr().name()));
    for (bytes, expected) in [
        (&b"\"abc\""[..], Some("\"abc\"")),
        (b"", None),
        (b"a\r\nb: c", None),
        (b"\xff\xfe", None),
        ("é".as_bytes(), None),
        (b"a\0b", None),
    ] {
        fs::write(&tag, bytes).unwrap();
        let part = Part::open(world.directory.path(), world.usr()).unwrap();
        assert_eq!(part.tag().as_deref(), expected);
    }
}
