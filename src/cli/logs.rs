//! A job's output, as it comes: `flockwork logs`, and the part of `run` that shows.
//!
//! A node tells output in pieces, each with the attempt and stream it belongs to and its offset there. The
//! reader keeps a bookmark for each stream of each attempt. When the node that told it is gone, another is
//! asked, tells the story from the beginning, and everything before the bookmarks is passed over: nothing is
//! shown twice, nothing is left out; where the node itself has let go of something, the offsets show it, and that is said.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::{Args, ValueEnum};
use flockwork::model::time::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;

use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::Session;
use super::answers::{Job, RefusedJob};
use super::client::{Client, Request};
use super::failure::{Failure, Kind, Outcome, exit};
use super::jobs::wait_once;
use super::render::{OutputForm, note};

/// The longest line of the log stream; a piece of output is far smaller.
const MAX_LINE_BYTES: usize = 16 << 20;

/// How long the job's end is waited for before its output is asked for again.
const PAUSE: Duration = Duration::from_millis(250);

/// How often the rest of the output of a job that has ended is asked for.
const MOST_TRIES_AFTER_END: u32 = 4;

/// `flockwork logs`.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogsArgs {
    /// The job: its id, the beginning of it, or `last`
    #[arg(value_name = "ID")]
    job: String,
    /// Go on until the job has ended
    #[arg(short, long)]
    follow: bool,
    /// Only this attempt, by its number, or `all` from the first [default: the one that tells how the job
    /// stands and, when following, those after it]
    #[arg(long, value_name = "N|all", value_parser = attempt)]
    attempt: Option<String>,
    /// Only this stream
    #[arg(long, value_enum)]
    stream: Option<StreamName>,
}

/// One of a job's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StreamName {
    Stdout,
    Stderr,
}

impl StreamName {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

pub(crate) async fn logs(session: &Session, args: &LogsArgs) -> Outcome {
    let client = session.client()?.persistent();
    let id = session.resolve(&client, &args.job).await?;
    let mut reader = LogReader::new(&client, id.clone(), session.printer.form);
    reader.stream = args.stream;
    reader.attempts.clone_from(&args.attempt);
    let mut is_complete = true;
    match session.printer.form {
        OutputForm::Id => session.printer.line(&id)?,
        OutputForm::Table | OutputForm::Wide | OutputForm::Json | OutputForm::Jsonl if args.follow => {
            let job = reader.follow().await?;
            // What a lost attempt wrote last is passed over; what the telling one wrote is what was asked for.
            is_complete = !job.telling().is_some_and(|attempt| reader.lacks(attempt.number));
        }
        OutputForm::Table | OutputForm::Wide | OutputForm::Json | OutputForm::Jsonl => {
            let mut tries = 1;
            while let Told::Broken(why) = reader.read(false).await? {
                if tries == MOST_TRIES_AFTER_END {
                    return Err(Failure::new(Kind::Unreachable, why));
                }
                tries += 1;
            }
            is_complete = reader.missing.is_empty();
        }
    }
    Ok(if is_complete { exit::SUCCESS } else { exit::UNREACHABLE })
}

fn attempt(text: &str) -> Result<String, String> {
    match text.parse::<u32>() {
        Ok(number) => Ok(number.to_string()),
        Err(_) if text == "all" => Ok(text.to_owned()),
        Err(_) => Err("write an attempt's number, or all".to_owned()),
    }
}

/// A line of the log stream.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Missing(Missing),
    Piece(Piece),
    /// Everything was told.
    End {
        #[serde(rename = "end")]
        _end: bool,
    },
    /// Not everything was told, and this node will not go on.
    Error {
        error: RefusedJob,
    },
    /// A remark of a node that knows more kinds of them.
    Other(IgnoredAny),
}

/// A piece of output.
#[derive(Debug, Deserialize)]
struct Piece {
    stream: StreamName,
    attempt: u32,
    offset: u64,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    base64: Option<String>,
}

/// Output, or the rest of it, that is out of reach.
#[derive(Debug, Deserialize)]
struct Missing {
    stream: StreamName,
    attempt: u32,
    node_name: String,
    missing: String,
    /// The last part of it comes nevertheless.
    #[serde(default)]
    tail: bool,
    /// That part is of then, and more may have been written after it.
    #[serde(default)]
    as_of: Option<Timestamp>,
}

impl Piece {
    fn bytes(&self) -> Result<Vec<u8>, Failure> {
        match (&self.text, &self.base64) {
            (Some(text), _) => Ok(text.as_bytes().to_vec()),
            (None, Some(base64)) => data_encoding::BASE64
                .decode(base64.as_bytes())
                .map_err(|error| Failure::internal(format!("the log holds what is not base64: {error}"))),
            (None, None) => Ok(Vec::new()),
        }
    }
}

/// How the telling of a log came to its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Properly: there is nothing more now, or, when following, nothing more to come.
    ToTheEnd,
    /// The node was gone in the middle; the next reading goes on with another.
    Broken(String),
}

/// Reads one job's output, and shows it.
#[derive(Debug)]
pub(crate) struct LogReader<'a> {
    client: &'a Client,
    job: String,
    form: OutputForm,
    /// Only this one.
    pub(crate) stream: Option<StreamName>,
    /// Up to where each stream of each attempt has been shown.
    bookmarks: BTreeMap<(u32, StreamName), u64>,
    /// Which attempts, as a node is asked for them: a number or `all`.
    pub(crate) attempts: Option<String>,
    /// What was said to be out of reach.
    missing: BTreeSet<(u32, StreamName)>,
    /// The first of which something was shown.
    first_attempt: Option<u32>,
    /// The newest of which something was shown.
    newest_attempt: Option<u32>,
    /// Out of sight from the first output on, until it is a bar.
    pub(crate) spinner: Option<indicatif::ProgressBar>,
}

impl<'a> LogReader<'a> {
    pub(crate) fn new(client: &'a Client, job: String, form: OutputForm) -> Self {
        Self {
            client,
            job,
            form,
            stream: None,
            bookmarks: BTreeMap::new(),
            attempts: None,
            missing: BTreeSet::new(),
            first_attempt: None,
            newest_attempt: None,
            spinner: None,
        }
    }

    /// Shows everything until the job has ended, and tells how it ended.
    pub(crate) async fn follow(&mut self) -> Result<Job, Failure> {
        let mut tries_after_end = 0;
        loop {
            let trouble = match self.read(true).await {
                Ok(Told::ToTheEnd) => None,
                Ok(Told::Broken(why)) => Some(why),
                Err(failure) if failure.kind == Kind::OutputClosed => return Err(failure),
                // The output may be out of reach where the job is not: another attempt may be on its way.
                Err(failure) => Some(failure.message),
            };
            let (job, _) = wait_once(self.client, &self.job, Some(PAUSE)).await?;
            if !job.state.is_terminal() {
                continue;
            }
            if let Some(why) = trouble {
                tries_after_end += 1;
                if tries_after_end < MOST_TRIES_AFTER_END {
                    continue;
                }
                note(&format!("the output cannot be shown in full: {why}"));
            }
            self.clear_spinner();
            return Ok(job);
        }
    }

    /// Shows what has not been shown yet; with `follow`, until the job has ended.
    pub(crate) async fn read(&mut self, follow: bool) -> Result<Told, Failure> {
        let mut request = Request::get(format!("/v1/jobs/{}/logs", self.job)).accept("application/x-ndjson");
        if follow {
            request = request.query("follow", true);
        }
        if let Some(stream) = self.stream {
            request = request.query("stream", stream.as_str());
        }
        // Somebody else takes up the story where it broke off, although another attempt may be the telling one
        // by now: everything from the first attempt that was shown.
        match (&self.attempts, self.first_attempt) {
            (Some(attempts), _) => request = request.query("attempt", attempts),
            (None, Some(_)) => request = request.query("attempt", "all"),
            (None, None) => {}
        }
        let client = self.client;
        let mut told = client.open(&request).await?;
        let mut pending = Vec::new();
        loop {
            let bytes = match told.next().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return Ok(Told::Broken(told.give_up("the output broke off"))),
                Err(why) => return Ok(Told::Broken(told.give_up(&why))),
            };
            pending.extend_from_slice(&bytes);
            if let Some(end) = pending.iter().rposition(|byte| *byte == b'\n') {
                let rest = pending.split_off(end + 1);
                let complete = std::mem::replace(&mut pending, rest);
                for line in complete.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
                    match serde_json::from_slice::<Line>(line)? {
                        Line::Piece(piece) => self.show(&piece, line).await?,
                        Line::Missing(missing) => self.tell_missing(&missing),
                        Line::End { .. } => return Ok(Told::ToTheEnd),
                        Line::Error { error } => return Ok(Told::Broken(told.give_up(&error.message))),
                        Line::Other(_) => {}
                    }
                }
            }
            if pending.len() > MAX_LINE_BYTES {
                return Err(Failure::internal("a line of the log stream does not end"));
            }
        }
    }

    async fn show(&mut self, piece: &Piece, line: &[u8]) -> Result<(), Failure> {
        if self.first_attempt.is_some_and(|first| piece.attempt < first) {
            return Ok(());
        }
        let bytes = piece.bytes()?;
        let bookmark = self.bookmarks.entry((piece.attempt, piece.stream)).or_insert(0);
        let seen = usize::try_from(bookmark.saturating_sub(piece.offset)).unwrap_or(usize::MAX);
        if seen >= bytes.len() {
            return Ok(());
        }
        let gap = piece.offset.saturating_sub(*bookmark);
        *bookmark = piece.offset.saturating_add(bytes.len() as u64);
        // Of what is missing before a tail, it was said why.
        let is_told = self.missing.remove(&(piece.attempt, piece.stream));
        self.announce(piece.attempt);
        if gap > 0 && !is_told {
            self.tell_gap(piece.attempt, piece.stream, gap);
        }
        if matches!(self.form, OutputForm::Table | OutputForm::Wide) {
            let fresh = &bytes[seen..];
            if let Some(bar) = &self.spinner {
                // The bar makes room for a moment. It cannot share a line, so half a line is the end of it.
                let written = bar.suspend(|| write_now(piece.stream, fresh));
                if !fresh.ends_with(b"\n") {
                    // With a length it counts as a bar that has been, and does not come back.
                    bar.set_length(1);
                    self.clear_spinner();
                }
                return Ok(written?);
            }
            match piece.stream {
                StreamName::Stdout => write_all(tokio::io::stdout(), fresh).await,
                StreamName::Stderr => write_all(tokio::io::stderr(), fresh).await,
            }
        } else {
            let mut line = line.to_vec();
            line.push(b'\n');
            write_all(tokio::io::stdout(), &line).await
        }
    }

    /// Whether some output of this attempt is out of reach.
    fn lacks(&self, attempt: u32) -> bool {
        self.missing.iter().any(|(number, _)| *number == attempt)
    }

    /// Says once what cannot be shown.
    fn tell_missing(&mut self, missing: &Missing) {
        if self.missing.insert((missing.attempt, missing.stream)) {
            let Missing { stream, attempt, node_name, missing, tail, as_of } = missing;
            if *tail {
                let stream = stream.as_str();
                let as_of = as_of.map(|at| format!(", as it was at {at}")).unwrap_or_default();
                return note(&format!(
                    "of {stream} of attempt {attempt} on {node_name} only the end is left{as_of}: {missing}"
                ));
            }
            let rest = if self.bookmarks.contains_key(&(*attempt, *stream)) { "the rest of " } else { "" };
            let stream = stream.as_str();
            note(&format!("{rest}{stream} of attempt {attempt} on {node_name} cannot be shown: {missing}"));
        }
    }

    /// Says that these bytes were written and are not there.
    fn tell_gap(&self, attempt: u32, stream: StreamName, bytes: u64) {
        let bytes = if bytes == 1 { "1 byte".to_owned() } else { format!("{bytes} bytes") };
        let stream = stream.as_str();
        note(&format!(
            "missing here: {bytes} of {stream} of attempt {attempt}; a node keeps only the newest of each log (--log-limit)"
        ));
    }

    /// Makes room for output, and says where another attempt begins: it may repeat what the last one said.
    fn announce(&mut self, attempt: u32) {
        // A spinner has done its part when there is something to see; a bar, of a job that says how far it is, stays.
        // It is kept, unseen, since a job may say only later how far it is.
        if let Some(spinner) = self.spinner.as_ref().filter(|bar| bar.length().is_none() && !bar.is_finished()) {
            spinner.finish_and_clear();
        }
        if self.newest_attempt.is_some_and(|newest| attempt > newest) {
            note(&format!("attempt {attempt} of {} begins", self.job));
        }
        self.newest_attempt = self.newest_attempt.max(Some(attempt));
        self.first_attempt = self.first_attempt.or(Some(attempt));
    }

    fn clear_spinner(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }
}

/// Writes to a terminal without letting anything else happen meanwhile.
fn write_now(stream: StreamName, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    match stream {
        StreamName::Stdout => {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes).and_then(|()| out.flush())
        }
        StreamName::Stderr => std::io::stderr().lock().write_all(bytes),
    }
}

async fn write_all(mut out: impl AsyncWrite + Unpin, bytes: &[u8]) -> Result<(), Failure> {
    out.write_all(bytes).await?;
    out.flush().await?;
    Ok(())
}
