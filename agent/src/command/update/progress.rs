//! How far an update is: on the terminal, and in the service's status.

use std::io::{self, Write};

use crate::appliance::update::machine::Step;
use crate::base::service::Service;
use crate::command::update::report::megabytes;

/// Shows the steps of an update.
pub(in crate::command) struct Shown {
    service: Service,
    is_terminal: bool,
    last: String,
}

impl Shown {
    pub(in crate::command) fn new(service: Service, is_terminal: bool) -> Self {
        Self {
            service,
            is_terminal,
            last: String::new(),
        }
    }

    /// Shows one, if it differs from the last: once a percent.
    pub(in crate::command) fn step(&mut self, step: &Step<'_>) {
        let text = text(step);
        if text.is_empty() || text == self.last {
            return;
        }
        self.service.status(&text);
        if self.is_terminal {
            // Nowhere to say that the terminal is gone.
            let _ = write!(io::stderr(), "\r\x1b[K{text}");
        }
        self.last = text;
    }
}

/// The line of progress goes, so that what is printed next stands alone.
impl Drop for Shown {
    fn drop(&mut self) {
        if self.is_terminal && !self.last.is_empty() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn text(step: &Step<'_>) -> String {
    let percent = |done: u64, of: u64| done.saturating_mul(100) / of.max(1);
    match step {
        Step::Download { done, of } => {
            format!(
                "downloading: {} % of {}",
                percent(*done, *of),
                megabytes(*of)
            )
        }
        Step::Unpack { done, of } => {
            format!("unpacking: {} % of {}", percent(*done, *of), megabytes(*of))
        }
        Step::Install(line) => match line.strip_prefix("Imported ") {
            Some(rest) => format!("installing: {}", rest.trim_end_matches('.')),
            None if line.contains("Acquiring ") => "installing: the next part".to_owned(),
            None => String::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_percents() {
        for (step, expected) in [
            (
                Step::Download {
                    done: 0,
                    of: 96_100_000,
                },
                "downloading: 0 % of 96.1 MB",
            ),
            (
                Step::Download {
                    done: 48_060_000,
                    of: 96_100_000,
                },
                "downloading: 50 % of 96.1 MB",
            ),
            (
                Step::Unpack {
                    done: u64::MAX,
                    of: 0,
                },
                "unpacking: 18446744073709551615 % of 0.0 MB",
            ),
            (Step::Install("Imported 42%."), "installing: 42%"),
            (Step::Install("Exiting."), ""),
        ] {
            assert_eq!(text(&step), expected);
        }
    }
}
