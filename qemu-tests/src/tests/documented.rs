//! The image's table of platforms names the tests that show a platform: no name there is stale, and no test is missing.

use std::{collections::BTreeSet, fs, path::Path};

use super::{GROUPS, platforms};

const README: &str = include_str!("../../../image/README.md");

/// The head of the table, whose columns these are.
const HEAD: &str = "| platform | known by | config | metadata | network | upload | shown by |\n|---|---|---|---|---|---|---|\n";

/// The rows of the table, by their cells.
fn rows() -> Vec<Vec<&'static str>> {
    let (_, table) = README.split_once(HEAD).unwrap();
    table
        .lines()
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells = line
                .strip_prefix("| ")
                .and_then(|row| row.strip_suffix(" |"));
            cells.unwrap().split(" | ").collect()
        })
        .collect()
}

/// What stands in backticks.
fn code(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The sources of the agent and of its tests, in one text.
fn sources(dir: &Path, into: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_test_in_the_table_of_platforms_is_one() {
    let cases: BTreeSet<_> = GROUPS.iter().copied().flatten().copied().collect();
    let mut agent = String::new();
    for dir in ["src", "tests"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../agent")
            .join(dir);
        sources(&dir, &mut agent);
    }
    for row in rows() {
        assert_eq!(row.len(), 7, "{row:?}");
        let shown_by = row[6];
        for name in code(shown_by) {
            let is_group = || {
                let start = format!("{name}::");
                cases.iter().any(|case| case.starts_with(&start))
            };
            let is_of_the_agent = || agent.contains(&format!("fn {name}("));
            assert!(
                cases.contains(name) || is_group() || is_of_the_agent(),
                "{}: there is no test {name}",
                row[0]
            );
        }
        let names_something = code(shown_by).next().is_some()
            || shown_by.starts_with("documentation")
            || shown_by.starts_with("nearly every QEMU test");
        assert!(names_something, "{}: {shown_by}", row[0]);
    }
}

#[test]
fn the_table_of_platforms_names_every_test_of_platforms() {
    let rows = rows();
    let named: BTreeSet<_> = rows.iter().flat_map(|row| code(row[6])).collect();
    for case in platforms::CASES {
        assert!(named.contains(case), "{case}");
    }
}

#[test]
fn the_table_of_platforms_is_sorted_and_has_each_once() {
    let rows = rows();
    assert!(rows.len() > 20, "{}", rows.len());
    let names: Vec<_> = rows.iter().map(|row| row[0]).collect();
    assert!(names.is_sorted_by(|one, next| one < next), "{names:?}");
}
