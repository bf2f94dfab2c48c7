//! Parses the text of units and drop-ins as systemd does (systemd.syntax(7)).

/// One assignment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Assignment {
    pub(super) section: String,
    pub(super) key: String,
    /// With continued lines joined.
    pub(super) value: String,
    /// The line where it starts, from 1.
    pub(super) line: usize,
}

impl Assignment {
    /// Whether it is one of these keys of a section.
    pub(super) fn is(&self, section: &str, keys: &[&str]) -> bool {
        self.section == section && keys.contains(&&*self.key)
    }
}

/// All assignments; lines that are not sections, comments or assignments are skipped.
pub(super) fn assignments(text: &str) -> Vec<Assignment> {
    let mut found: Vec<Assignment> = Vec::new();
    let mut section = String::new();
    let mut is_continued = false;
    for (line, raw) in (1..).zip(text.lines()) {
        let trimmed = raw.trim();
        if trimmed.starts_with(['#', ';']) {
            continue;
        }
        let (body, continues) = match trimmed.strip_suffix('\\') {
            Some(body) => (body.trim(), true),
            None => (trimmed, false),
        };
        if is_continued {
            if let Some(last) = found.last_mut() {
                last.value = format!("{} {body}", last.value).trim().to_owned();
            }
            is_continued = continues;
        } else if let Some(name) = trimmed
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            section = name.to_owned();
        } else if let Some((key, value)) = body.split_once('=') {
            found.push(Assignment {
                section: section.clone(),
                key: key.trim().to_owned(),
                value: value.trim().to_owned(),
                line,
            });
            is_continued = continues;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_comments_and_continued_lines_are_read() {
        let text = "a=outside\n[Unit]\n# no\nAfter = x.service \\\n# inside\n  y.service\n\n[Service]\nExecStart=\nExecStart=/bin/a \\\n  -b\nnothing\n";
        let read: Vec<_> = assignments(text)
            .into_iter()
            .map(|a| (a.section, a.key, a.value, a.line))
            .collect();
        let expect = |section: &str, key: &str, value: &str, line| {
            (section.to_owned(), key.to_owned(), value.to_owned(), line)
        };
        assert_eq!(
            read,
            [
                expect("", "a", "outside", 1),
                expect("Unit", "After", "x.service y.service", 4),
                expect("Service", "ExecStart", "", 9),
                expect("Service", "ExecStart", "/bin/a -b", 10),
            ]
        );
    }
}
