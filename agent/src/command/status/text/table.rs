//! Tables with aligned columns that fit a width.
//!
//! A cell may have several parts, such as the subnets of both IP versions. If they fit, they are on one line, and a row
//! is one line. If not, the parts are stacked, the row's note gets its own line, and optional columns are dropped.
//! Nothing else is shortened: in an even narrower terminal, lines wrap.

use std::fmt::Write;

use unicode_width::UnicodeWidthStr;

use super::wrap;
use crate::base::terminal::{Style, Tone};

/// Spaces between columns.
const GAP: usize = 2;

/// Indentation of a note below its row.
const INDENT: usize = 4;

/// Separator of a cell's parts on one line.
const SEPARATOR: &str = ",";

/// A column.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) title: &'static str,
    /// Whether its cells are right-aligned, like numbers.
    pub(crate) right: bool,
    /// Higher values are dropped earlier; 0 is never dropped.
    pub(crate) lightness: u8,
}

/// A cell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    parts: Vec<String>,
    tone: Tone,
}

impl Cell {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self::of_parts([text.into()])
    }

    pub(crate) fn of_parts(parts: impl IntoIterator<Item = String>) -> Self {
        Self {
            parts: parts.into_iter().filter(|part| !part.is_empty()).collect(),
            tone: Tone::Plain,
        }
    }

    pub(crate) fn toned(mut self, tone: Tone) -> Self {
        self.tone = tone;
        self
    }

    /// Its widths with the parts on one line, and stacked.
    fn widths(&self) -> [usize; 2] {
        let widths = || self.parts.iter().map(|part| part.width());
        let separators = self.parts.len().saturating_sub(1) * SEPARATOR.len();
        [
            widths().sum::<usize>() + separators,
            widths().max().unwrap_or(0),
        ]
    }
}

/// A line of a table.
#[derive(Debug)]
struct Row {
    cells: Vec<Cell>,
    note: Option<String>,
}

/// A table.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    /// The heading of the notes.
    notes: &'static str,
    rows: Vec<Row>,
    /// Each column's width in both arrangements.
    widths: Vec<[usize; 2]>,
    /// The width of the longest note.
    note: usize,
}

/// A layout of the table.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// Columns lighter than this are dropped.
    lightest: u8,
    stacked: bool,
    notes_below: bool,
}

impl Table {
    /// An empty one. Each row has a cell for each of `columns`, and perhaps a note.
    pub(crate) fn new(columns: &[Column], notes: &'static str) -> Self {
        Self {
            columns: columns.to_vec(),
            notes,
            rows: Vec::new(),
            widths: vec![[0; 2]; columns.len()],
            note: 0,
        }
    }

    pub(crate) fn push(&mut self, cells: Vec<Cell>, note: Option<String>) {
        for (known, cell) in self.widths.iter_mut().zip(&cells) {
            let widths = cell.widths();
            *known = [known[0].max(widths[0]), known[1].max(widths[1])];
        }
        let note_width = note.as_ref().map_or(0, |note| note.width());
        self.note = self.note.max(note_width);
        self.rows.push(Row { cells, note });
    }

    /// Appends the table to a text. A column without any content is left out.
    pub(crate) fn render(&self, width: Option<usize>, style: Style, text: &mut String) {
        let layout = self.layout(width.unwrap_or(usize::MAX));
        let shown = self.shown(layout);
        let mut title = String::new();
        for &(at, width) in &shown {
            self.cell(&mut title, at, width, self.columns[at].title, None);
        }
        if self.note > 0 && !layout.notes_below {
            title.push_str(self.notes);
        }
        let _ = writeln!(text, "{}", style.tone(Tone::Bold, title.trim_end()));
        for row in &self.rows {
            self.row(row, layout, &shown, (width, style), text);
        }
    }

    /// The widest layout that fits.
    fn layout(&self, width: usize) -> Layout {
        let lightest = self.columns.iter().map(|column| column.lightness).max();
        let lightest = lightest.unwrap_or(0);
        let ways = [(false, false), (false, true), (true, true)];
        // Dropping the lightest columns is better than a second line per row.
        let dropped = (0..=lightest)
            .rev()
            .map(|lightest| (lightest, false, false));
        let dropped: Vec<_> = dropped.take(2).collect();
        let rest = (0..lightest).rev().flat_map(|lightest| {
            ways.into_iter()
                .map(move |(stacked, below)| (lightest, stacked, below))
        });
        let layouts = dropped.into_iter().chain(rest);
        let layouts = layouts.map(|(lightest, stacked, notes_below)| Layout {
            lightest,
            stacked,
            notes_below,
        });
        let narrowest = Layout {
            lightest: 0,
            stacked: true,
            notes_below: true,
        };
        let mut fitting = layouts.filter(|layout| self.width(*layout) <= width);
        fitting.next().unwrap_or(narrowest)
    }

    fn width(&self, layout: Layout) -> usize {
        let cells = self.shown(layout);
        let cells: usize = cells.iter().map(|(_, width)| width + GAP).sum();
        if self.note > 0 && !layout.notes_below {
            cells + self.note
        } else {
            cells.saturating_sub(GAP)
        }
    }

    /// The visible columns, with their widths.
    fn shown(&self, layout: Layout) -> Vec<(usize, usize)> {
        let columns = self.columns.iter().zip(&self.widths).enumerate();
        columns
            .filter(|(_, (column, widths))| widths[0] > 0 && column.lightness <= layout.lightest)
            .map(|(at, (column, widths))| {
                let content = widths[usize::from(layout.stacked)];
                (at, content.max(column.title.width()))
            })
            .collect()
    }

    fn row(
        &self,
        row: &Row,
        layout: Layout,
        shown: &[(usize, usize)],
        (width, style): (Option<usize>, Style),
        text: &mut String,
    ) {
        let parts = |at: usize| row.cells.get(at).map_or(&[][..], |cell| &cell.parts);
        let lines = match layout.stacked {
            true => shown.iter().map(|(at, _)| parts(*at).len()).max(),
            false => None,
        };
        for line in 0..lines.unwrap_or(1).max(1) {
            let start = text.len();
            for &(at, width) in shown {
                let joined;
                let part = match layout.stacked {
                    true => parts(at).get(line).map_or("", String::as_str),
                    false => {
                        joined = parts(at).join(SEPARATOR);
                        &joined
                    }
                };
                let tone = row.cells.get(at).map(|cell| (style, cell.tone));
                self.cell(text, at, width, part, tone);
            }
            if let Some(note) = row.note.as_ref().filter(|_| !layout.notes_below) {
                text.push_str(note);
            }
            let end = text.trim_end().len().max(start);
            text.truncate(end);
            text.push('\n');
        }
        if let Some(note) = row.note.as_ref().filter(|_| layout.notes_below) {
            let room = width.map(|width| width.saturating_sub(INDENT));
            for line in wrap(note, room) {
                let _ = writeln!(text, "{:INDENT$}{line}", "");
            }
        }
    }

    /// Appends a cell and the gap after it.
    fn cell(
        &self,
        text: &mut String,
        at: usize,
        width: usize,
        content: &str,
        tone: Option<(Style, Tone)>,
    ) {
        let fill = width.saturating_sub(content.width());
        let (before, behind) = if self.columns[at].right {
            (fill, GAP)
        } else {
            (0, fill + GAP)
        };
        // Escape sequences around spaces would keep them from being trimmed at the end of a line.
        let _ = match tone {
            Some((style, tone)) if !content.is_empty() => {
                write!(
                    text,
                    "{:before$}{}{:behind$}",
                    "",
                    style.tone(tone, content),
                    ""
                )
            }
            _ => write!(text, "{:before$}{content}{:behind$}", "", ""),
        };
    }
}
