use std::io::Write;
use std::process::{Command, Stdio};

use super::*;

fn read(text: &str) -> (Variables, Vec<usize>) {
    let mut variables = Variables::from([("OLD".to_owned(), "old".to_owned())]);
    let ignored = source(text, &mut variables).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    variables.remove("OLD");
    (variables, ignored)
}

/// What a real shell makes of a text: the values of A, B and C, each in a line of its own.
fn shell(text: &str) -> String {
    let script =
        r#". /dev/stdin 2>/dev/null; printf '%s\n' "[${A-none}]" "[${B-none}]" "[${C-none}]""#;
    let mut child = Command::new("/bin/sh")
        .args(["-c", script])
        .env_clear()
        .env("PATH", "/nonexistent")
        .env("OLD", "old")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn ours(text: &str) -> String {
    let (variables, _) = read(text);
    ["A", "B", "C"]
        .map(|name| format!("[{}]\n", variables.get(name).map_or("none", String::as_str)))
        .concat()
}

#[test]
fn values_are_those_that_a_shell_reads() {
    for text in [
        "",
        "A=1\nB=2\nC=3\n",
        "A=1",
        "A=\nB= \n",
        "  A=1\n\tB=2 \n",
        "# A=1\nB=2 # not a value\nC=a#b\n",
        "A='a b'\nB=\"c  d\"\nC=e\\ f\n",
        "A='it'\"'\"'s'\nB=\"a\\\"b\\\\c\\$d\\e\"\nC=x'y'\"z\"\n",
        "A='$OLD'\nB=\"$OLD\"\nC=${OLD}er\n",
        "A=$OLD.\nB=$MISSING\nC=a$\n",
        "A=1 B=$A\nC=$B\n",
        "A=1; B=2;C=3\n",
        "export A=1\nexport B\nexport C=3 B=2\n",
        "A=\"two\nlines\"\nB='two\nlines'\nC=one\\\nline\n",
        "A=1\nA=2\n",
        "KEY: value\nA=1\n",
        "A=1 nocommand\nB=$A\nC=x\n",
        "A+=1\n1B=2\nA-B=3\n",
        "\"A\"=1\nB=\"\"\nC=''\n",
        "A=--bip=10.5.72.1/24\nB=a=b=c\nC=a:b,c\n",
        "A=$OLD$OLD B=\"${OLD}\"'$OLD'\n",
        "A=\"# no comment\"\nB=x# C=y\n",
    ] {
        assert_eq!(ours(text), shell(text), "{text:?}");
    }
}

#[test]
fn lines_that_are_no_assignments_are_told() {
    assert_eq!(
        read("A=1\nKEY: value\n\nB=2 run\nexport C D-E\n").1,
        [2, 4, 5]
    );
    assert_eq!(read("A=1\n\n# B\nexport C D\n").1, Vec::<usize>::new());
}

#[test]
fn carriage_returns_are_no_part_of_a_value() {
    let (variables, ignored) = read("A=1\r\nB=\"2\"\r\n\r\n");
    assert_eq!(variables["A"], "1");
    assert_eq!(variables["B"], "2");
    assert_eq!(ignored, Vec::<usize>::new());
}

#[test]
fn what_needs_a_shell_is_refused_with_its_line() {
    for (text, message) in [
        (
            "A=1\nB=`id`",
            "line 2: ` needs a shell and is not supported",
        ),
        ("B=\"`id`\"", "line 1: ` needs a shell and is not supported"),
        ("B=$(id)", "line 1: $( needs a shell and is not supported"),
        (
            "B=${A:-1}",
            "line 1: ${A… needs a shell and is not supported",
        ),
        ("B=$1", "line 1: $1 needs a shell and is not supported"),
        ("B=1 | sh", "line 1: | needs a shell and is not supported"),
        ("B=1 > file", "line 1: > needs a shell and is not supported"),
        ("\nB='1\n\n", "line 2: unterminated quote '"),
        ("B=\"1\n\n", "line 1: unterminated quote \""),
    ] {
        let error = source(text, &mut Variables::new()).unwrap_err();
        assert_eq!(error.to_string(), message, "{text:?}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text: String, shellish in "[ABC=$'\"\\\\{}# \n;a-z]{0,60}") {
        for text in [text, shellish] {
            let _ = source(&text, &mut Variables::new());
        }
    }
}
