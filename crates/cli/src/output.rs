//! Results: a table for people, JSON or YAML for programs.

use crate::Error;
use crate::stderr::errln;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{self, Write};

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
    /// For files
    Yaml,
}

/// Where results go, and in which format.
#[derive(Debug)]
pub struct Output {
    format: Format,
}

/// What a table shows of one kind of thing.
pub trait Row {
    /// The heads of the columns.
    const HEADS: &'static [&'static str];
    /// The cells, as many as there are heads.
    fn cells(&self) -> Vec<String>;
}

impl Output {
    /// Writes in this format to standard output.
    pub fn new(format: Format) -> Output {
        Output { format }
    }

    /// The format asked for.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Writes a list: a table with a row each, or the list itself.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn list<T: Row + Serialize>(&self, items: &[T]) -> Result<(), Error> {
        match self.format {
            Format::Table => print(&table(T::HEADS, items.iter().map(Row::cells))),
            _ => self.data(&items),
        }
    }

    /// Writes one thing: lines of name and value, or the thing itself. A value of several lines is
    /// continued below itself.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn item<T: Serialize>(&self, item: &T, lines: &[(&str, String)]) -> Result<(), Error> {
        match self.format {
            Format::Table => print(&name_values(lines)),
            _ => self.data(item),
        }
    }

    /// Writes a sentence for people. Programs that asked for JSON or YAML get nothing.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn say(&self, sentence: &str) -> Result<(), Error> {
        match self.format {
            Format::Table => print(&format!("{sentence}\n")),
            _ => Ok(()),
        }
    }

    /// Whether a person at a terminal reads what is written.
    pub fn is_at_terminal(&self) -> bool {
        self.format == Format::Table && io::IsTerminal::is_terminal(&io::stdout())
    }

    /// Says something beside the result to a person at a terminal.
    pub fn hint(&self, sentence: &str) {
        if self.format == Format::Table && io::IsTerminal::is_terminal(&io::stderr()) {
            errln!("{sentence}");
        }
    }

    /// Writes the thing as JSON or YAML; as YAML when the format is a table.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn data<T: Serialize + ?Sized>(&self, item: &T) -> Result<(), Error> {
        let text = match self.format {
            Format::Json => serde_json::to_string_pretty(item).map_err(unwritable)? + "\n",
            Format::Yaml | Format::Table => to_yaml(item)?,
        };
        print(&text)
    }
}

/// Writes a thing as YAML.
///
/// # Errors
/// When the thing has no form in YAML.
pub fn to_yaml<T: Serialize + ?Sized>(item: &T) -> Result<String, Error> {
    // By way of JSON, so that both formats say the same.
    let value = serde_json::to_value(item).map_err(unwritable)?;
    let mut text = serde_saphyr::to_string(&value).map_err(unwritable)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Writes to standard output. A reader that has gone, like `head`, is no failure.
///
/// # Errors
/// When standard output cannot be written.
pub fn print(text: &str) -> Result<(), Error> {
    print_bytes(text.as_bytes())
}

/// Writes to standard output what may not be text.
///
/// # Errors
/// When standard output cannot be written.
pub fn print_bytes(bytes: &[u8]) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(unwritable(e)),
        Ok(()) => Ok(()),
    }
}

fn unwritable(e: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::failed("the result cannot be written").with_source(e)
}

/// A table without lines: as easy to read as to cut.
pub fn table(heads: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(heads.iter().map(|head| head.to_uppercase()));
    for cells in rows {
        table.add_row(cells);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    lines_without_trailing_blanks(&table.to_string())
}

fn name_values(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in lines {
        let mut name = format!("{name}:");
        for line in value.lines().chain(value.is_empty().then_some("-")) {
            text.push_str(&format!("{name:<width$}  {line}\n", width = width + 1));
            name.clear();
        }
    }
    text
}

fn lines_without_trailing_blanks(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_plain() {
        let rows = [["web", "running"], ["database", "stopped"]];
        let text = table(&["name", "state"], rows.iter().map(|row| row.map(str::to_owned).to_vec()));
        assert_eq!(text, "NAME       STATE\nweb        running\ndatabase   stopped\n");
    }

    #[test]
    fn an_item_is_lines_of_name_and_value() {
        let lines = [("Name", "web".to_owned()), ("Disks", "a\nb".to_owned()), ("IP", String::new())];
        assert_eq!(name_values(&lines), "Name:   web\nDisks:  a\n        b\nIP:     -\n");
    }

    #[test]
    fn yaml_says_what_json_says() {
        let value = serde_json::json!({"name": "web", "sizes": [1, 2], "none": null, "text": "a: b\nc"});
        let text = to_yaml(&value).unwrap();
        assert_eq!(serde_saphyr::from_str::<serde_json::Value>(&text).unwrap(), value, "{text}");
    }
}
