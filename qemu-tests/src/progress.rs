//! What is running, how far it is, and for how long: a live line on a terminal, plain lines elsewhere.

use std::{
    cell::RefCell,
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

/// In a log file, a running step speaks up this often.
const PLAIN_INTERVAL: Duration = Duration::from_secs(15);

/// The display of one command. Every step replaces the one before.
#[derive(Debug)]
pub(crate) struct Progress {
    started: Instant,
    terminal: bool,
    columns: usize,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    step: String,
    step_started: Instant,
    /// The latest word on each part (a machine) of the step, in order of first appearance.
    parts: Vec<(String, String)>,
    spoken: Instant,
    live: bool,
}

impl Progress {
    /// A display on standard output.
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            started: now,
            terminal: std::io::stdout().is_terminal(),
            columns: std::env::var("COLUMNS")
                .ok()
                .and_then(|text| text.parse().ok())
                .unwrap_or(100),
            state: RefCell::new(State {
                step: String::new(),
                step_started: now,
                parts: Vec::new(),
                spoken: now,
                live: false,
            }),
        }
    }

    /// Begins a step, and prints its name.
    pub(crate) fn step(&self, name: impl Into<String>) {
        let name = name.into();
        self.line(&format!("==> [{}] {name}", clock(self.started.elapsed())));
        let now = Instant::now();
        *self.state.borrow_mut() = State {
            step: name,
            step_started: now,
            parts: Vec::new(),
            spoken: now,
            live: false,
        };
    }

    /// Tells how far `part` of the step is. Call it as often as you like.
    pub(crate) fn tell(&self, part: &str, what: &str) {
        let mut state = self.state.borrow_mut();
        match state.parts.iter_mut().find(|(name, _)| name == part) {
            Some((_, told)) => *told = what.to_owned(),
            None => state.parts.push((part.to_owned(), what.to_owned())),
        }
        if self.terminal {
            let line = live_line(&state, self.columns);
            print!("\r\x1b[K{line}");
            // Nobody reads a display that cannot be written.
            let _ = std::io::stdout().flush();
            state.live = true;
        } else if state.spoken.elapsed() >= PLAIN_INTERVAL {
            state.spoken = Instant::now();
            for (part, told) in &state.parts {
                println!("    {} {part}: {told}", clock(state.step_started.elapsed()));
            }
        }
    }

    /// Prints a line of its own.
    pub(crate) fn line(&self, line: &str) {
        let mut state = self.state.borrow_mut();
        if std::mem::take(&mut state.live) {
            print!("\r\x1b[K");
        }
        println!("{line}");
    }

    /// Time since the command began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

fn live_line(state: &State, columns: usize) -> String {
    let share = columns.saturating_sub(state.step.len().min(24) + 12) / state.parts.len().max(1);
    let mut line = format!("    {}", clock(state.step_started.elapsed()));
    for (part, told) in &state.parts {
        let room = share.saturating_sub(part.len() + 4);
        line.push_str(&format!("  {part}: {}", clip(told, room)));
    }
    clip(&line, columns.saturating_sub(1))
}

/// At most `room` characters of `text`.
pub(crate) fn clip(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let mut clipped: String = text.chars().take(room.saturating_sub(1)).collect();
    clipped.push('…');
    clipped
}

/// `7 s`, `1 min 07 s`.
pub(crate) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds / 60 {
        0 => format!("{seconds:>3} s"),
        minutes => format!("{minutes} min {:02} s", seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_at_a_glance() {
        assert_eq!(clock(Duration::from_millis(7_900)), "  7 s");
        assert_eq!(clock(Duration::from_secs(127)), "2 min 07 s");
    }

    #[test]
    fn clipping_counts_characters() {
        assert_eq!(clip("äöü", 3), "äöü");
        assert_eq!(clip("äöüß", 3), "äö…");
        assert_eq!(clip("abc", 0), "…");
    }

    #[test]
    fn a_live_line_fits_the_terminal() {
        let now = Instant::now();
        let parts = ["node1", "node2"]
            .map(|name| (name.to_owned(), "x".repeat(300)))
            .to_vec();
        let state = State {
            step: "boot".into(),
            step_started: now,
            parts,
            spoken: now,
            live: false,
        };
        let line = live_line(&state, 100);
        assert!(
            line.chars().count() < 100 && line.contains("node1") && line.contains("node2"),
            "{line}"
        );
    }
}
