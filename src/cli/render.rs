//! How answers look: tables for people, JSON for programs, ids for pipes.
//!
//! A terminal gets colour unless NO_COLOR is set; a pipe gets plain text. Text that came from elsewhere (a
//! job's name, a label, a reason) is shown with its control characters escaped, so that nobody can move
//! another person's cursor by naming a job cleverly.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use comfy_table::{ContentArrangement, Table, presets};
use flockwork::model::attempt::Phase;
use flockwork::model::record::JobState;
use flockwork::model::time::Timestamp;
use indicatif::{MultiProgress, ProgressBar};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OutputForm {
    /// For people
    #[default]
    Table,
    /// For people who want to know more, where there is more to know; else the same as table
    Wide,
    /// The node's answer, indented
    Json,
    /// One JSON value a line
    Jsonl,
    /// Ids only, one a line
    Id,
}

/// The program's standard output, and how to write on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    /// The form asked for.
    pub(crate) form: OutputForm,
    colour: bool,
}

/// A colour by its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Good,
    Busy,
    Bad,
    Faint,
    Strong,
}

impl Tone {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\x1b[32m",
            Self::Busy => "\x1b[33m",
            Self::Bad => "\x1b[31m",
            Self::Faint => "\x1b[2m",
            Self::Strong => "\x1b[1m",
        }
    }

    pub(crate) fn of_job(state: JobState) -> Self {
        match state {
            JobState::Pending => Self::Plain,
            JobState::Running => Self::Busy,
            JobState::Succeeded => Self::Good,
            JobState::Failed => Self::Bad,
            JobState::Cancelled => Self::Faint,
        }
    }

    pub(crate) fn of_phase(phase: Phase) -> Self {
        match phase {
            Phase::Claimed | Phase::Running => Self::Busy,
            Phase::Lost | Phase::Failed => Self::Bad,
            Phase::Returned | Phase::Stopped => Self::Faint,
            Phase::Succeeded => Self::Good,
        }
    }

    /// Of a node's state, as its peers write it.
    pub(crate) fn of_node(state: &str) -> Self {
        match state {
            "alive" => Self::Good,
            "suspect" | "draining" | "joining" | "returning" | "read_only" => Self::Busy,
            "down" => Self::Bad,
            _ => Self::Faint,
        }
    }
}

impl Printer {
    /// Colour only where a person looks, and wants it.
    pub(crate) fn new(form: OutputForm) -> Self {
        Self { form, colour: wants_colour(io::stdout().is_terminal()) }
    }

    /// Without colour, wherever it goes.
    #[cfg(test)]
    pub(crate) fn plain(form: OutputForm) -> Self {
        Self { form, colour: false }
    }

    /// `text` in a tone, if there is colour.
    pub(crate) fn paint(self, text: &str, tone: Tone) -> String {
        if self.colour && tone != Tone::Plain { format!("{}{text}\x1b[0m", tone.code()) } else { text.to_owned() }
    }

    /// Whether a person reads it.
    pub(crate) fn is_for_people(self) -> bool {
        match self.form {
            OutputForm::Table | OutputForm::Wide => true,
            OutputForm::Json | OutputForm::Jsonl | OutputForm::Id => false,
        }
    }

    /// One line.
    pub(crate) fn line(self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.write_all(b"\n")?;
        out.flush()
    }

    /// One JSON value, in the form asked for.
    pub(crate) fn json(self, value: &Value) -> io::Result<()> {
        match self.form {
            OutputForm::Jsonl => self.line(&value.to_string()),
            OutputForm::Table | OutputForm::Wide | OutputForm::Json | OutputForm::Id => {
                self.line(&format!("{value:#}"))
            }
        }
    }

    /// A table without lines: a header, and rows of cells that may be painted.
    pub(crate) fn table(self, header: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
        self.line(&self.drawn(header, rows))
    }

    /// The same as text.
    pub(crate) fn drawn(self, header: &[&str], rows: Vec<Vec<String>>) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        // A table that goes into a pipe is not folded to some screen's width.
        let arrangement =
            if io::stdout().is_terminal() { ContentArrangement::Dynamic } else { ContentArrangement::Disabled };
        table.set_content_arrangement(arrangement);
        if header.iter().any(|title| !title.is_empty()) {
            table.set_header(header.iter().map(|title| self.paint(title, Tone::Faint)));
        }
        for row in rows {
            table.add_row(row);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
    }
}

/// Whether to use colour on something that is, or is not, a terminal.
pub(crate) fn wants_colour(is_terminal: bool) -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    is_terminal && !unwanted && !dumb
}

/// Every bar and spinner on the terminal, so that they make room for a word.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Puts a bar on the terminal, where there is one.
pub(crate) fn shown(bar: ProgressBar) -> ProgressBar {
    BARS.add(bar)
}

/// A word to the person, on standard error. Nobody to hear it is no reason to stop.
pub(crate) fn note(text: &str) {
    let _ = BARS.suspend(|| writeln!(io::stderr(), "flockwork: {}", printable(text)));
}

/// `text` with what a terminal would obey instead of show written out.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect())
}

/// `text`, cut to `width` characters with a sign that something was cut.
pub(crate) fn shortened(text: &str, width: usize) -> String {
    let text = printable(text);
    if text.chars().count() <= width {
        return text.into_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// As many digits of an id as people need.
pub(crate) fn short_id(id: &str) -> String {
    id.chars().take(12).collect()
}

/// A duration as a person would say it: `0.4s`, `12s`, `3m05s`, `2h10m`, `4d`.
pub(crate) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1}s", duration.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..172_800 => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The time between two moments; nothing where one is missing.
pub(crate) fn span_between(from: Option<Timestamp>, to: Option<Timestamp>) -> String {
    match (from, to) {
        (Some(from), Some(to)) => span(to.since(from)),
        _ => String::new(),
    }
}

/// The wall clock.
pub(crate) fn now() -> Timestamp {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        assert_eq!(printable("\x1b[2Jhello"), "\\u{1b}[2Jhello");
        assert_eq!(printable("héllo"), "héllo");
        assert_eq!(shortened("a\nb-and-more", 6), "a\\nb-…");
    }

    #[test]
    fn spans_are_said_shortly() {
        assert_eq!(span(Duration::from_millis(420)), "0.4s");
        assert_eq!(span(Duration::from_secs(59)), "59s");
        assert_eq!(span(Duration::from_secs(185)), "3m05s");
        assert_eq!(span(Duration::from_secs(7_800)), "2h10m");
        assert_eq!(span(Duration::from_secs(864_000)), "10d");
    }

    #[test]
    fn a_table_lines_up_and_has_no_trailing_blanks() {
        let printer = Printer { form: OutputForm::Table, colour: false };
        let text = printer.drawn(&["A", "LONG"], vec![vec!["xyz".into(), "1".into()], vec!["x".into(), "22".into()]]);
        assert_eq!(text, "A    LONG\nxyz  1\nx    22");
    }
}
