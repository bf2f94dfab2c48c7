//! Prometheus' text format 0.0.4: families of series, each with its help and its type.

use std::fmt::{Display, Write};

/// The type of a family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only goes up, from the start of the process.
    Counter,
}

/// The text being written.
#[derive(Debug, Default)]
pub(crate) struct Text(String);

/// A family whose series are being written.
pub(crate) struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
    kind: Kind,
    help: &'static str,
    begun: bool,
}

impl Text {
    /// Starts a family. It is left out if it gets no series.
    pub(crate) fn family(
        &mut self,
        name: &'static str,
        kind: Kind,
        help: &'static str,
    ) -> Family<'_> {
        Family {
            text: &mut self.0,
            name,
            kind,
            help,
            begun: false,
        }
    }

    /// A gauge without labels.
    pub(crate) fn gauge(&mut self, name: &'static str, help: &'static str, value: impl Display) {
        self.family(name, Kind::Gauge, help).with(&[], value);
    }

    /// A counter without labels.
    pub(crate) fn counter(&mut self, name: &'static str, help: &'static str, value: impl Display) {
        self.family(name, Kind::Counter, help).with(&[], value);
    }

    /// A summary without quantiles: a count and a sum.
    pub(crate) fn summary(
        &mut self,
        name: &'static str,
        help: &'static str,
        sum: impl Display,
        count: u64,
    ) {
        // Writing into a `String` never fails, here and below.
        let _ = write!(
            self.0,
            "# HELP {name} {help}\n# TYPE {name} summary\n{name}_sum {sum}\n{name}_count {count}\n"
        );
    }

    pub(crate) fn into_string(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// Adds a series.
    pub(crate) fn with(&mut self, labels: &[(&str, &str)], value: impl Display) {
        let (name, help) = (self.name, self.help);
        if !self.begun {
            let kind = match self.kind {
                Kind::Gauge => "gauge",
                Kind::Counter => "counter",
            };
            let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            self.begun = true;
        }
        self.text.push_str(name);
        let mut open = '{';
        for (label, text) in labels {
            let _ = write!(self.text, "{open}{label}=\"{}\"", escape(text));
            open = ',';
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

/// Escapes a label value.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_without_series_are_left_out_and_labels_are_escaped() {
        let mut text = Text::default();
        text.family("empty", Kind::Gauge, "Nothing.");
        let mut family = text.family("full_total", Kind::Counter, "Something.");
        family.with(&[("a", "x"), ("b", "\"\\\n")], 1);
        family.with(&[("a", "y"), ("b", "")], 2);
        text.summary("took_seconds", "How long.", 0.5, 3);
        let expected = "\
# HELP full_total Something.
# TYPE full_total counter
full_total{a=\"x\",b=\"\\\"\\\\\\n\"} 1
full_total{a=\"y\",b=\"\"} 2
# HELP took_seconds How long.
# TYPE took_seconds summary
took_seconds_sum 0.5
took_seconds_count 3
";
        assert_eq!(text.into_string(), expected);
    }
}
