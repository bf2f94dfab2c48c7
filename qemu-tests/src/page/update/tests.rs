use super::*;
use crate::fleet::rollout::tests::{sample, sample_with_a_loss};
use crate::page::tests::{browse, complaints};

fn page(rollout: &Rollout) -> String {
    UpdatePage {
        rollout,
        accelerator: "TCG",
        took: Duration::from_secs(1174),
    }
    .html()
}

fn count(page: &str, class: &str) -> usize {
    page.matches(&format!("<rect class=\"{class}\"")).count()
}

#[test]
fn the_time_line_has_each_machines_phases_its_lock_and_its_pings() {
    let page = page(&sample());
    // One of each in the key.
    for (class, drawn) in [
        ("old", 3),
        ("drain", 3),
        ("reboot", 3),
        ("trial", 3),
        ("new", 3),
        ("lock", 3),
        ("answered", 3),
        ("unjudged", 6),
        ("lost", 0),
    ] {
        assert_eq!(count(&page, class), drawn + 1, "{class} in\n{page}");
    }
    for words in [
        "3 hosts update themselves in turn",
        "All is as it should be.",
        "1, slot a",
        "2, slot b",
        "<td>1 → 2</td><td>a → b</td><td>0:10 min</td><td>0:12 min</td><td>0:30 min</td><td>1:41 min</td>",
        "node3 → node1",
    ] {
        assert!(page.contains(words), "{words} is missing in\n{page}");
    }
    for outside in ["<script", "src=", "@import", "url(", "href=\"http"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn bars_lie_where_their_times_are() {
    let chart = Chart {
        from: 1000.0,
        length: 100.0,
    };
    let width = CHART - NAMES - 10.0;
    assert_eq!(chart.bar(1000.0, 1050.0), (NAMES, width / 2.0));
    // What lies outside is cut off, and what is short can still be seen.
    assert_eq!(chart.bar(900.0, 1100.5).1, width);
    assert_eq!(chart.bar(1050.0, 1050.0).1, 1.5);
}

#[test]
fn a_lost_ping_is_seen_and_spoils_the_page() {
    let page = page(&sample_with_a_loss());
    assert_eq!(count(&page, "lost"), 2);
    assert!(page.contains("Something is wrong: 1 of "), "{page}");
    assert!(page.contains("lost 0:50 min after the start"), "{page}");
    assert!(page.contains("<td class=\"bad\">1</td>"), "{page}");
}

#[test]
fn names_from_elsewhere_stay_texts() {
    let mut rollout = sample();
    rollout.next = "<b>2</b>".into();
    let page = page(&rollout);
    assert!(page.contains("&lt;b&gt;2&lt;/b&gt;") && !page.contains("<b>"));
}

#[test]
fn a_roll_out_without_anything_is_drawn_as_well() {
    let mut rollout = sample();
    rollout.changes.clear();
    rollout.floods.clear();
    rollout.until = rollout.from;
    assert!(page(&rollout).contains("had 0 turns"));
}

#[test]
fn a_real_browser_opens_the_page_without_a_complaint() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("update.html");
    std::fs::write(&path, page(&sample_with_a_loss())).unwrap();
    let (page, said) = browse(&path, &directory.path().join("profile"), "1280");
    assert_eq!(complaints(&said), Vec::<&str>::new(), "{said}");
    assert!(page.contains("</svg>"), "{page}");
}
