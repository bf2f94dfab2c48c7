use super::*;
use crate::demo::spark::record::tests::sample;
use crate::page::tests::{browse, complaints};

fn page(record: &Record) -> String {
    SparkPage {
        record,
        took: Duration::from_secs(131),
    }
    .html()
}

#[test]
fn the_time_line_has_curve_outages_and_rounds() {
    let page = page(&sample());
    let count = |class: &str| page.matches(&format!("<rect class=\"{class}\"")).count();
    // One of each in the key.
    assert_eq!(
        (count("unjudged"), count("answered"), count("lost")),
        (3, 6, 1)
    );
    for words in [
        "All is as it should be.",
        "5 rounds of a join of two tables of 500000 rows, in 1:50 min; 2:11 min",
        "Tasks fetched 800.0 MB from other hosts, and 0 of 180 failed; 0 of 3 executors were lost.",
        "etcd is gone for 30.0 s",
        "round 5: right, 19.0 s",
        "8 MB/s",
        "<td>10.5.3.0/24</td><td>10.5.3.2</td><td>300.0 MB</td>",
    ] {
        assert!(page.contains(words), "{words} is missing in\n{page}");
    }
    for outside in ["<script", "src=", "@import", "url(", "href=\"http"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn a_rate_is_what_came_between_two_samples() {
    let mut record = sample();
    record.samples.truncate(3);
    record.samples[1].at += 1.0;
    // Two at the same moment say nothing.
    assert_eq!(rates(&record), [(1000.0, 1002.0, 4.0)]);
}

#[test]
fn a_wrong_result_spoils_the_page() {
    let mut record = sample();
    record.rounds[2].is_right = false;
    let page = page(&record);
    assert!(
        page.contains("Something is wrong: round 3 of 5 has a wrong result."),
        "{page}"
    );
    assert!(page.contains("round 3: wrong, 19.0 s"), "{page}");
}

#[test]
fn a_run_without_anything_is_drawn_as_well() {
    let mut record = sample();
    record.samples.clear();
    record.rounds.clear();
    record.outages.clear();
    let page = page(&record);
    assert!(
        page.contains("0 rounds are less than 3") && !page.contains("NaN"),
        "{page}"
    );
}

#[test]
fn a_real_browser_opens_the_page_without_a_complaint() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("spark.html");
    std::fs::write(&path, page(&sample())).unwrap();
    let (page, said) = browse(&path, &directory.path().join("profile"), "1280");
    assert_eq!(complaints(&said), Vec::<&str>::new(), "{said}");
    assert!(page.contains("</svg>"), "{page}");
}
