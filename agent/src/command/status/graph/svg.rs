//! SVG as text: everything is escaped.

use std::fmt::{self, Write as _};

/// A text that is safe between the tags and inside the quotes of XML 1.0.
///
/// Control characters, which no XML may hold, and bidirectional controls, with which a peer could make its name look
/// like another's, become U+FFFD.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            match char {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    f.write_char(char::REPLACEMENT_CHARACTER)?;
                }
                '\u{fffe}' | '\u{ffff}' => f.write_char(char::REPLACEMENT_CHARACTER)?,
                char if char.is_control() => f.write_char(char::REPLACEMENT_CHARACTER)?,
                char => f.write_char(char)?,
            }
        }
        Ok(())
    }
}

/// The start of `text`, clipped to `columns` of a fixed-width font, with a "…" if anything is cut off. Non-ASCII
/// characters count as two columns.
pub(super) fn clip(text: &str, columns: usize) -> String {
    if text.chars().map(width).sum::<usize>() <= columns {
        return text.to_owned();
    }
    let mut left = columns.saturating_sub(1);
    let fits = |char: &char| {
        let fits = width(*char) <= left;
        left = left.saturating_sub(width(*char));
        fits
    };
    let mut clipped: String = text.chars().take_while(fits).collect();
    clipped.push('…');
    clipped
}

/// `text` in lines of no more than `columns`, broken at spaces if possible; a "…" in the last one marks text beyond
/// `lines`.
pub(super) fn wrap(text: &str, columns: usize, lines: usize) -> Vec<String> {
    let mut wrapped: Vec<String> = Vec::new();
    let mut line = String::new();
    let mut used = 0;
    for word in text.split_whitespace() {
        let length: usize = word.chars().map(width).sum();
        if used > 0 && used + 1 + length > columns {
            wrapped.push(std::mem::take(&mut line));
            used = 0;
        }
        // One line more than is shown; it is cut off below.
        if wrapped.len() > lines {
            break;
        }
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        line.push_str(word);
        used += length;
    }
    if !line.is_empty() {
        wrapped.push(line);
    }
    if wrapped.len() > lines {
        wrapped.truncate(lines);
        if let Some(last) = wrapped.last_mut() {
            last.push_str(" …");
        }
    }
    wrapped.iter().map(|line| clip(line, columns)).collect()
}

fn width(char: char) -> usize {
    if char.is_ascii() { 1 } else { 2 }
}

/// Elements, one after the other. Lengths are in the picture's own units, which are pixels unless it is scaled.
#[derive(Default)]
pub(super) struct Svg(String);

impl Svg {
    /// Text that begins at `x`, its base line at `y`.
    pub(super) fn text(&mut self, (x, y): Point, class: &str, text: &str) {
        let text = Escaped(text);
        self.put(format_args!(
            r#"<text x="{x:.0}" y="{y:.0}" class="{class}">{text}</text>"#
        ));
    }

    /// A rectangle with round corners, by its upper left corner.
    pub(super) fn rect(&mut self, (x, y): Point, (width, height): Size, class: &str) {
        self.put(format_args!(
            r#"<rect x="{x:.0}" y="{y:.0}" width="{width:.0}" height="{height:.0}" rx="7" class="{class}"/>"#
        ));
    }

    /// A path, by its data.
    pub(super) fn path(&mut self, data: &str, class: &str) {
        self.put(format_args!(r#"<path d="{data}" class="{class}"/>"#));
    }

    /// A group of elements with a tooltip.
    pub(super) fn group(&mut self, tooltip: &str, draw: impl FnOnce(&mut Self)) {
        self.put(format_args!("<g><title>{}</title>", Escaped(tooltip)));
        draw(self);
        self.put(format_args!("</g>"));
    }

    /// Another drawing, moved.
    pub(super) fn moved(&mut self, (x, y): Point, drawing: &Self) {
        self.put(format_args!(r#"<g transform="translate({x:.0} {y:.0})">"#));
        self.0.push_str(&drawing.0);
        self.put(format_args!("</g>"));
    }

    /// Adds one element or tag as it is.
    pub(super) fn put(&mut self, element: fmt::Arguments<'_>) {
        // Writing to a `String` cannot fail.
        let _ = self.0.write_fmt(element);
        self.0.push('\n');
    }

    /// All of it.
    pub(super) fn into_text(self) -> String {
        self.0
    }
}

/// A point: right of and below the origin.
pub(super) type Point = (f64, f64);
/// Width and height.
pub(super) type Size = (f64, f64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_markup_is_made_of_is_escaped() {
        let text = "<b a=\"x\" b='y'>&\u{0}\n\u{202e}\u{ffff}é";
        assert_eq!(
            Escaped(text).to_string(),
            "&lt;b a=&quot;x&quot; b=&#39;y&#39;&gt;&amp;\u{fffd}\u{fffd}\u{fffd}\u{fffd}é"
        );
    }

    #[test]
    fn long_text_is_cut_to_the_width_that_it_is_given() {
        assert_eq!(clip("10.5.1.0/24", 11), "10.5.1.0/24");
        assert_eq!(clip("10.5.1.0/24", 10), "10.5.1.0/…");
        assert_eq!(clip("節点節点", 6), "節点…");
        assert_eq!(
            wrap("one two three four", 8, 5),
            ["one two", "three", "four"]
        );
        assert_eq!(wrap("one two three four", 8, 2), ["one two", "three …"]);
        assert_eq!(wrap("unbreakable", 5, 2), ["unbr…"]);
        assert!(wrap("", 5, 2).is_empty());
    }
}
