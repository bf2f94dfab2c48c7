//! All places of a platform are asked side by side, again and again, and the first that answers counts.
//!
//! OpenStack has a drive or a service, and a machine cannot know which: a drive may appear late, and a service that is
//! not there says nothing for seconds. Of two answers at the same time that of the place that stands first in the table
//! counts.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::time::Duration;

use futures_util::future::select_all;
use tokio::time::Instant;
use tracing::info;

use super::http::Trouble;
use super::providers::{Place, Provider};
use super::{Error, Site, list};
use crate::base::retry::Backoff;
use crate::base::words;

/// Pauses between tries: services that start with the machine answer within seconds, broken ones are not flooded.
const BACKOFF: Backoff = Backoff::constant(Duration::from_millis(200), Duration::from_secs(5), 0.2);

/// How often to say that an answer is still awaited.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// How long a service may refuse before another try is in vain: one that starts may do so for some seconds.
const REFUSED_PATIENCE: Duration = Duration::from_secs(180);

/// What the first place of the platform gives that answers, and its name.
///
/// # Errors
/// When each place has failed, and one of them for good, or the site's patience is over.
pub(super) async fn first<T>(
    provider: &Provider,
    site: &Site,
    attempt: impl AsyncFn(&'static Place) -> Result<(String, T), Vec<Trouble>>,
) -> Result<(String, T), Error> {
    let race = Race {
        platform: provider.platform,
        patience: site.patience,
        started: Instant::now(),
        reported: Cell::new(Instant::now()),
        refused: RefCell::default(),
        lost: RefCell::new(provider.places.iter().map(|_| None).collect()),
    };
    // Every platform of the table has a place.
    let places = provider.places.iter().enumerate();
    let runs = places.map(|(at, place)| Box::pin(race.run(at, place, &attempt)));
    select_all(runs).await.0
}

/// What the places' loops know of each other.
struct Race {
    platform: &'static str,
    patience: Duration,
    started: Instant,
    reported: Cell<Instant>,
    refused: RefCell<Refused>,
    /// What was wrong with each place at its last try; `None` until it has failed once.
    lost: RefCell<Vec<Option<Vec<Trouble>>>>,
}

impl Race {
    /// Tries one place until it answers, or this ends for all.
    async fn run<T>(
        &self,
        at: usize,
        place: &'static Place,
        attempt: &impl AsyncFn(&'static Place) -> Result<(String, T), Vec<Trouble>>,
    ) -> Result<(String, T), Error> {
        let mut backoff = BACKOFF.seeded(u64::from(std::process::id()));
        loop {
            let troubles = match attempt(place).await {
                Ok(answer) => return Ok(answer),
                Err(troubles) => troubles,
            };
            let is_final = troubles.iter().any(Trouble::is_final);
            if let Some(lost) = self.lost.borrow_mut().get_mut(at) {
                *lost = Some(troubles);
            }
            if let Some(error) = self.end() {
                return Err(error);
            }
            if is_final {
                // Another place may still answer, and ends this otherwise.
                return pending().await;
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// Why it is over, if no place can win any more.
    fn end(&self) -> Option<Error> {
        let mut lost = self.lost.borrow_mut();
        if lost.iter().any(Option::is_none) {
            return None;
        }
        let all = || lost.iter().flatten().flatten();
        let waited = self.started.elapsed();
        let is_over =
            waited >= self.patience || self.refused.borrow_mut().is_final(all(), Instant::now());
        let is_final = all().any(Trouble::is_final);
        if !is_over && !is_final {
            self.report(waited, all());
            return None;
        }
        let platform = self.platform.to_owned();
        let mut troubles: Vec<_> = lost.iter_mut().flat_map(Option::take).flatten().collect();
        Some(match troubles.iter().position(Trouble::is_final) {
            Some(at) => Error::Answer {
                platform,
                trouble: troubles.swap_remove(at),
            },
            None => Error::NoAnswer {
                platform,
                waited,
                troubles,
            },
        })
    }

    fn report<'t>(&self, waited: Duration, troubles: impl Iterator<Item = &'t Trouble>) {
        if self.reported.get().elapsed() < REPORT_EVERY {
            return;
        }
        self.reported.set(Instant::now());
        let (platform, waited) = (self.platform, words::duration(waited.as_secs()));
        info!(
            "platform {platform} gives no answer after {waited}, trying on: {}",
            list(troubles)
        );
    }
}

/// Since when a service has refused at each try.
#[derive(Default)]
struct Refused(Option<Instant>);

impl Refused {
    /// Takes down a try, and says whether another is in vain.
    fn is_final<'t>(
        &mut self,
        mut troubles: impl Iterator<Item = &'t Trouble>,
        now: Instant,
    ) -> bool {
        if !troubles.any(Trouble::is_refusal) {
            self.0 = None;
            return false;
        }
        now - *self.0.get_or_insert(now) >= REFUSED_PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use tokio::net::TcpListener;

    use super::*;
    use crate::appliance::metadata::fetch;
    use crate::appliance::metadata::tests::{Server, site};

    #[test]
    fn a_service_that_refuses_for_minutes_is_not_asked_for_ever() {
        let status = |status| Trouble::Status {
            url: String::new(),
            status,
        };
        let start = Instant::now();
        let mut refused = Refused::default();
        let mut is_final = |statuses: &[u16], secs| {
            let troubles: Vec<_> = statuses.iter().map(|is| status(*is)).collect();
            refused.is_final(troubles.iter(), start + Duration::from_secs(secs))
        };
        assert!(!is_final(&[403], 0));
        assert!(!is_final(&[401], 179));
        assert!(is_final(&[403], 180));
        // One that is not ready, or has enough of questions, is asked on.
        for again in [503, 429] {
            assert!(!is_final(&[again], 1000), "{again}");
            assert!(!is_final(&[403], 1001), "{again}");
        }
        assert!(!is_final(&[], 2000));
    }

    const DRIVE: &str = "dev/disk/by-label/config-2/openstack/latest/meta_data.json";

    /// OpenStack's documentation of the config drive, shortened.
    const DOCUMENT: &str = r#"{"availability_zone": "nova", "hostname": "test.novalocal", "launch_index": 0,
        "name": "test", "uuid": "83679162-1378-4288-a2d4-70e13ec132aa"}"#;

    fn attach(root: &Path, text: &str) {
        let path = root.join(DRIVE);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A service that takes connections and says nothing.
    async fn silent() -> (TcpListener, String) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        (listener, url)
    }

    #[tokio::test]
    async fn a_drive_that_comes_late_does_not_wait_for_a_service_that_is_silent() {
        let root = tempfile::tempdir().unwrap();
        let (_listener, url) = silent().await;
        let mut site = site(vec![url]);
        root.path().clone_into(&mut site.root);
        let attached = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            attach(root.path(), DOCUMENT);
        };
        let started = Instant::now();
        let (metadata, ()) = tokio::join!(fetch("openstack", &site), attached);
        let metadata = metadata.unwrap();
        assert_eq!(
            metadata.source.as_deref(),
            Some("the disk labelled config-2")
        );
        // The service alone has ten seconds.
        assert!(started.elapsed() < Duration::from_secs(8));
    }

    #[tokio::test]
    async fn a_service_does_not_wait_for_a_drive_and_both_are_the_drive() {
        let root = tempfile::tempdir().unwrap();
        let server = Server::start(&[("/openstack/2012-08-10/meta_data.json", DOCUMENT)]).await;
        let mut site = site(vec![server.url()]);
        root.path().clone_into(&mut site.root);
        let metadata = fetch("openstack", &site).await.unwrap();
        assert_eq!(metadata.source, Some(server.url()));
        assert_eq!(metadata.common("ZONE"), Some("nova"));
        attach(root.path(), DOCUMENT);
        let metadata = fetch("openstack", &site).await.unwrap();
        assert_eq!(
            metadata.source.as_deref(),
            Some("the disk labelled config-2")
        );
    }

    #[tokio::test]
    async fn a_broken_drive_is_named_once_the_service_has_had_its_turn() {
        let root = tempfile::tempdir().unwrap();
        attach(root.path(), "{\"uuid\":");
        let server = Server::start(&[("/openstack/2012-08-10/meta_data.json", DOCUMENT)]).await;
        let mut site = site(vec![server.url()]);
        root.path().clone_into(&mut site.root);
        let metadata = fetch("openstack", &site).await.unwrap();
        assert_eq!(metadata.source, Some(server.url()));
        site.servers = Some(vec!["http://127.0.0.1:1".to_owned()]);
        let error = fetch("openstack", &site).await.unwrap_err();
        let text = crate::base::logging::chain(&error);
        assert!(
            text.contains("meta_data.json on the disk labelled config-2: bad JSON"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn without_an_answer_each_place_is_named_when_the_patience_is_over() {
        let root = tempfile::tempdir().unwrap();
        let mut site = site(vec!["http://127.0.0.1:1".to_owned()]);
        root.path().clone_into(&mut site.root);
        site.patience = Duration::from_millis(600);
        let started = Instant::now();
        let error = fetch("openstack", &site).await.unwrap_err().to_string();
        assert!(started.elapsed() < Duration::from_secs(8), "{error}");
        for part in [
            "no disk has the label config-2 or CONFIG-2; http://127.0.0.1:1",
            "failed to connect: Connection refused",
        ] {
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    }
}
