//! The manual pages and the shells' completions, made from the command line's own definition: `selvage man` and `selvage
//! completions`.
//!
//! The pages consist of the flags' help texts, and [`settings_page`] turns the table of settings into agent.toml(5).

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::aot;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};
use thiserror::Error;

use crate::command::cli::{Cli, Shell};

mod settings_page;

/// The command's name.
const NAME: &str = "selvage";

/// No date, so that builds are reproducible. Quoted, because the renderer omits an empty argument.
const NO_DATE: &str = "\"\"";

/// The footer of all pages.
const SOURCE: &str = concat!("selvage ", env!("CARGO_PKG_VERSION"));

/// The header of all pages.
const MANUAL: &str = "Selvage Manual";

/// The pages or the completions cannot be written.
#[derive(Debug, Error)]
pub enum Error {
    /// A page or its directory.
    #[error("failed to write the manual page {}", path.display())]
    Page {
        /// Which page.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Writing to stdout failed.
    #[error("failed to print the completions")]
    Output(#[from] io::Error),
}

/// A manual page in man(7)'s language.
struct Page {
    /// Such as `selvage-status`.
    name: String,
    /// The section of the manual, 1 to 8.
    section: u8,
    text: Vec<u8>,
}

/// Prints the completion script for `shell`.
///
/// # Errors
/// Writing to `output` failed.
pub fn completions(shell: Shell, output: &mut impl Write) -> Result<(), Error> {
    let shell = match shell {
        Shell::Bash => aot::Shell::Bash,
        Shell::Zsh => aot::Shell::Zsh,
        Shell::Fish => aot::Shell::Fish,
    };
    let mut command = without_hidden(&Cli::command());
    // Write to memory first: the generator panics on write errors.
    let mut text = Vec::new();
    aot::generate(shell, &mut command, NAME, &mut text);
    Ok(output.write_all(&text)?)
}

/// Writes all pages below `directory`, in `man1/` and `man5/`, creating them if needed.
///
/// # Errors
/// The page that could not be written; those before it were written.
pub fn write(directory: &Path) -> Result<(), Error> {
    for page in pages()? {
        let section = directory.join(format!("man{}", page.section));
        let path = section.join(format!("{}.{}", page.name, page.section));
        fs::create_dir_all(section)
            .and_then(|()| fs::write(&path, &page.text))
            .map_err(|source| Error::Page { path, source })?;
    }
    Ok(())
}

/// selvage(1), a page for each command below it that is not hidden, and agent.toml(5).
fn pages() -> io::Result<Vec<Page>> {
    let mut root = Cli::command();
    root.build();
    let mut pages = Vec::new();
    add_pages(&root, &mut pages)?;
    pages.push(settings_page::page()?);
    Ok(pages)
}

/// The command line without hidden commands, which only the initrd and the build use; clap's generators would include
/// them.
fn without_hidden(command: &Command) -> Command {
    let shown = command
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    // Subcommands cannot be removed; the command itself has no arguments but --version.
    Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .subcommands(shown.cloned())
}

/// The page of a command, and those of the commands below it.
fn add_pages(command: &Command, pages: &mut Vec<Page>) -> io::Result<()> {
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    let below: Vec<&Command> = command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .collect();

    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .date(NO_DATE)
        .source(SOURCE)
        .manual(MANUAL);
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if !below.is_empty() {
        man.render_subcommands_section(&mut text)?;
    }
    let mut rest = Roff::new();
    if let Some(help) = command
        .get_after_long_help()
        .or_else(|| command.get_after_help())
    {
        rest.control("SH", ["NOTES"]);
        prose(&mut rest, &help.to_string());
    }
    rest.control("SH", ["SEE ALSO"]);
    let others: &[(&str, &str)] = if name == NAME {
        &[("agent.toml", "(5)")]
    } else {
        &[(NAME, "(1), "), ("agent.toml", "(5)")]
    };
    rest.text(references(others));
    rest.to_writer(&mut text)?;

    pages.push(Page {
        name: name.to_owned(),
        section: 1,
        text,
    });
    below
        .into_iter()
        .try_for_each(|command| add_pages(command, pages))
}

/// References to pages, each with its separator.
fn references(pages: &[(&str, &str)]) -> Vec<Inline> {
    pages
        .iter()
        .flat_map(|(name, rest)| [bold(*name), roman(*rest)])
        .collect()
}

/// Text as `--help` shows it: indented lines are kept, the rest is filled.
fn prose(roff: &mut Roff, text: &str) {
    let mut kept = false;
    for line in text.lines() {
        let indented = line.starts_with(' ');
        if indented != kept && !line.is_empty() {
            roff.control(if indented { "nf" } else { "fi" }, []);
            kept = indented;
        }
        if line.is_empty() {
            roff.control("PP", []);
        } else {
            roff.text([roman(line)]);
        }
    }
    if kept {
        roff.control("fi", []);
    }
}

#[cfg(test)]
mod tests;
