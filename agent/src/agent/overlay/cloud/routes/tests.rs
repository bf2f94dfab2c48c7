//! What becomes of the ends of passes.

use std::net::Ipv4Addr;

use super::*;
use crate::cloud::pass::Seen;
use crate::cloud::plan::Wanted;
use crate::cloud::worker::Reach;
use crate::plan::backend::CloudConfig;

fn job(own: &[&str]) -> Job {
    Job {
        kind: "aws-vpc",
        config: CloudConfig::default(),
        address: Ipv4Addr::LOCALHOST,
        wanted: Wanted {
            own: own.iter().map(|net| net.parse().unwrap()).collect(),
            ..Wanted::default()
        },
        reach: Reach {
            // Nothing answers here: the tests say how each pass ended.
            api_url: Some("http://127.0.0.1:1".to_owned()),
            metadata_url: Some("http://127.0.0.1:1".to_owned()),
            credentials_file: None,
            resync: Duration::from_secs(300),
        },
    }
}

fn refused() -> Problem {
    Problem::Call {
        table: None,
        error: CloudError::Unfit("no EC2".to_owned()),
    }
}

fn pass(is_complete: bool, is_pending: bool) -> Pass {
    Pass {
        tables: vec![Seen {
            id: "rtb-1".to_owned(),
            routes: 1,
            is_complete,
        }],
        is_pending,
        ..Pass::default()
    }
}

fn end(cloud: &mut CloudRoutes, pass: Pass) {
    let outcome = cloud.worker.as_ref().unwrap().ended(pass);
    cloud.take(outcome);
}

fn failed() -> Pass {
    Pass {
        problems: vec![refused()],
        ..Pass::default()
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_never_made_need_not_be_removed() {
    let directory = tempfile::tempdir().unwrap();
    let mut cloud = CloudRoutes::new(directory.path());
    cloud.submit(job(&["10.5.1.0/24"]));
    end(&mut cloud, failed());
    assert_eq!(cloud.trouble(), Some(refused()));
    cloud.submit(job(&[]));
    assert!(cloud.worker.is_none() && cloud.job.is_none());
    assert_eq!(cloud.trouble(), None);
    // The backend changes before the first pass has ended.
    cloud.submit(job(&["10.5.1.0/24"]));
    cloud.submit(job(&[]));
    assert!(cloud.worker.is_some());
    end(&mut cloud, failed());
    assert!(cloud.worker.is_none());
    // A table was read, so it may have been changed.
    cloud.submit(job(&["10.5.1.0/24"]));
    end(&mut cloud, pass(false, true));
    cloud.submit(job(&[]));
    end(&mut cloud, failed());
    assert!(cloud.worker.is_some());
    end(&mut cloud, pass(true, false));
    assert!(cloud.worker.is_none() && cloud.memory.read().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_route_that_never_stays_is_trouble() {
    let directory = tempfile::tempdir().unwrap();
    let mut cloud = CloudRoutes::new(directory.path());
    cloud.submit(job(&["10.5.1.0/24"]));
    end(&mut cloud, pass(true, false));
    assert!(cloud.is_settled());
    // Something else removes it after each look.
    for _ in 0..6 {
        assert_eq!(cloud.trouble(), None);
        end(&mut cloud, pass(false, true));
        tokio::time::advance(Duration::from_secs(10)).await;
    }
    let told = cloud.trouble().unwrap().to_string();
    assert_eq!(told, "rtb-1: the route to the own subnet does not show yet");
    end(&mut cloud, pass(true, false));
    assert_eq!(cloud.trouble(), None);
    // A change that is not of a route.
    end(&mut cloud, pass(true, true));
    assert_eq!(cloud.trouble(), None);
    tokio::time::advance(OVERDUE).await;
    assert!(cloud.trouble().is_some());
}

#[tokio::test(start_paused = true)]
async fn earlier_subnets_are_known_until_they_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    let former = |cloud: &CloudRoutes| {
        let former = &cloud.job.as_ref().unwrap().wanted.former;
        former.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let mut cloud = CloudRoutes::new(directory.path());
    cloud.submit(job(&["10.4.1.0/24"]));
    end(&mut cloud, pass(true, false));
    // Another network, and a restart, twice before anything could be changed.
    for own in ["10.5.1.0/24", "10.6.1.0/24"] {
        cloud = CloudRoutes::new(directory.path());
        cloud.submit(job(&[own]));
        assert!(!cloud.is_settled(), "{own}");
        assert!(former(&cloud).contains(&"10.4.1.0/24".to_owned()), "{own}");
    }
    assert_eq!(former(&cloud), ["10.4.1.0/24", "10.5.1.0/24"]);
    end(&mut cloud, pass(true, false));
    cloud.submit(job(&["10.6.1.0/24"]));
    assert_eq!(former(&cloud), Vec::<String>::new());
    // Another backend, and a restart before the removal was done.
    cloud.submit(job(&[]));
    assert_eq!(former(&cloud), ["10.6.1.0/24"]);
    cloud = CloudRoutes::new(directory.path());
    let known = cloud.memory.read().unwrap();
    cloud.submit(known.removal(job(&[]).reach).unwrap());
    assert_eq!(former(&cloud), ["10.6.1.0/24"]);
    end(&mut cloud, failed());
    assert!(cloud.memory.read().is_some());
    end(&mut cloud, pass(true, false));
    assert!(cloud.memory.read().is_none() && cloud.job.is_none());
}
