//! Looking at jobs and steering them: `ps`, `job`, `wait`, `cancel`, `retry`, `where`, `explain`.
//!
//! Any node answers for the whole cluster, so none of these needs to know where a job lives.

use std::io::IsTerminal;
use std::time::Duration;

use clap::{Args, ValueEnum};
use flockwork::model::record::JobState;
use flockwork::model::time::duration;
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio::time::Instant;

use super::Session;
use super::answers::{Attempt, Job, JobsPage};
use super::client::{Client, Repeat, Request};
use super::facts;
use super::failure::{Failure, Kind, Outcome, exit};
use super::render::{OutputForm, Tone, note, now, printable, short_id, shortened, shown, span, span_between};

/// How long one `/wait` may wait before it is asked again.
const LONG_POLL: Duration = Duration::from_secs(30);

/// How much longer than asked a long poll's answer may take.
const LONG_POLL_GRACE: Duration = Duration::from_secs(10);

/// How many jobs are waited for at once, when there are many.
const WAITS_AT_ONCE: usize = 16;

/// How many jobs one page of a list holds.
const PAGE: u32 = 500;

/// `flockwork ps`.
#[derive(Debug, Clone, Args)]
pub(crate) struct PsArgs {
    /// Only jobs in this state
    #[arg(long, value_enum)]
    state: Option<StateName>,
    /// Only jobs with exactly this name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Only jobs whose last attempt is on this node, by id or name
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// How many, newest first
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50, conflicts_with = "all")]
    limit: usize,
    /// All of them
    #[arg(long)]
    all: bool,
}

/// A job's state, as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StateName {
    Pending,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl StateName {
    fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A command about one job.
#[derive(Debug, Clone, Args)]
pub(crate) struct OneJob {
    /// The job: its id, the beginning of it, or `last`
    #[arg(value_name = "ID")]
    job: String,
}

/// `flockwork wait`.
#[derive(Debug, Clone, Args)]
pub(crate) struct WaitArgs {
    /// The jobs: ids, beginnings of them, or `last`
    #[arg(value_name = "ID", required = true)]
    jobs: Vec<String>,
    /// Give up after this time, with exit code 124; the jobs go on
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    timeout: Option<Duration>,
}

/// `flockwork cancel`.
#[derive(Debug, Clone, Args)]
pub(crate) struct CancelArgs {
    /// The jobs: ids, beginnings of them, or `last`
    #[arg(value_name = "ID", required = true)]
    jobs: Vec<String>,
    /// Why, for people
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

pub(crate) async fn ps(session: &Session, args: &PsArgs) -> Outcome {
    let client = session.client()?;
    let wanted = if args.all { usize::MAX } else { args.limit };
    let mut jobs: Vec<Value> = Vec::new();
    let mut cursor: Option<String> = None;
    let mut missing = Vec::new();
    let mut partial = false;
    while jobs.len() < wanted {
        let page_size = usize::min(wanted - jobs.len(), PAGE as usize);
        let mut request = Request::get("/v1/jobs").query("limit", page_size);
        for (name, value) in [
            ("state", args.state.map(|state| state.as_str().to_owned())),
            ("name", args.name.clone()),
            ("node", args.node.clone()),
            ("cursor", cursor.take()),
        ] {
            if let Some(value) = value {
                request = request.query(name, value);
            }
        }
        let page: JobsPage = client.read(&request).await?;
        partial |= page.partial;
        missing.extend(page.missing);
        jobs.extend(page.jobs);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    print_jobs(session, &jobs)?;
    if partial {
        missing.sort();
        missing.dedup();
        note(&format!("the list is not complete: nobody could answer for {}", missing.join(", ")));
    }
    Ok(exit::SUCCESS)
}

fn print_jobs(session: &Session, jobs: &[Value]) -> Result<(), Failure> {
    let printer = session.printer;
    match printer.form {
        OutputForm::Json => return Ok(printer.json(&Value::Array(jobs.to_vec()))?),
        OutputForm::Jsonl | OutputForm::Id | OutputForm::Table | OutputForm::Wide => {}
    }
    let mut rows = Vec::new();
    for raw in jobs {
        if printer.form == OutputForm::Jsonl {
            printer.json(raw)?;
            continue;
        }
        let job: Job = serde_json::from_value(raw.clone())?;
        if printer.form == OutputForm::Id {
            printer.line(&job.id)?;
            continue;
        }
        let telling = job.telling();
        let ran_until = job.ended_at.or_else(|| (job.state == JobState::Running).then(now));
        rows.push(vec![
            short_id(&job.id),
            printer.paint(job.state.as_str(), Tone::of_job(job.state)),
            telling.map(|attempt| printable(attempt.place()).into_owned()).unwrap_or_default(),
            telling.map(|attempt| attempt.number.to_string()).unwrap_or_default(),
            job.submitted_at.map(|at| span(now().since(at))).unwrap_or_default(),
            span_between(job.started_at, ran_until),
            shortened(&job.title(), 48),
        ]);
    }
    if printer.is_for_people() {
        printer.table(&["ID", "STATE", "NODE", "ATTEMPT", "AGE", "TIME", "JOB"], rows)?;
    }
    Ok(())
}

pub(crate) async fn job(session: &Session, args: &OneJob) -> Outcome {
    let client = session.client()?;
    let id = session.name_in_path(&args.job)?;
    let answer = client.ask(&Request::get(format!("/v1/jobs/{id}"))).await?;
    let job: Job = answer.read()?;
    match session.printer.form {
        OutputForm::Table | OutputForm::Wide => print_job(session, &job, &answer.body)?,
        OutputForm::Json | OutputForm::Jsonl => session.printer.json(&answer.body)?,
        OutputForm::Id => session.printer.line(&job.id)?,
    }
    Ok(exit::SUCCESS)
}

/// How much of a result a table shows, in characters.
const RESULT_SHOWN: usize = 200;

fn print_job(session: &Session, job: &Job, raw: &Value) -> Result<(), Failure> {
    let printer = session.printer;
    let time = |at: Option<flockwork::model::time::Timestamp>| at.map(|at| at.to_string()).unwrap_or_default();
    let mut state = printer.paint(job.state.as_str(), Tone::of_job(job.state));
    if job.is_final {
        state.push_str(", final");
    }
    let ended = match (job.exit_code, job.signal) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => String::new(),
    };
    let replicas = job.replicas.map(|r| format!("{} of {} agree", r.agree, r.of)).unwrap_or_default();
    let progress = job.progress.as_ref().map(|progress| progress.text()).unwrap_or_default();
    let checkpoint = job
        .checkpoint
        .as_ref()
        .map(|saved| format!("{} bytes, saved by attempt {} at {}", saved.size, saved.attempt, time(saved.saved_at)));
    let result = match (&job.result, job.result_bytes) {
        (Some(Value::String(text)), _) => shortened(text.trim_end(), RESULT_SHOWN),
        (Some(_), Some(bytes)) => format!("{bytes} bytes; -o json shows them"),
        (None, Some(bytes)) => format!("{bytes} bytes, on no node that can be reached now"),
        (_, None) => String::new(),
    };
    // Said only where it is not the one that anybody would think of.
    let telling = job.telling().map(|attempt| attempt.number);
    let result_of = job.result_attempt.filter(|number| Some(*number) != telling);
    let pairs = [
        ("id", job.id.clone()),
        ("job", printable(&job.title()).into_owned()),
        ("state", state),
        ("reason", printable(job.reason.as_deref().unwrap_or_default()).into_owned()),
        ("retry of", job.retry_of.clone().unwrap_or_default()),
        ("submitted", time(job.submitted_at)),
        ("started", time(job.started_at)),
        ("ended", time(job.ended_at)),
        ("ended with", ended),
        ("progress", printable(&progress).into_owned()),
        ("checkpoint", checkpoint.unwrap_or_default()),
        ("result", printable(&result).into_owned()),
        ("result of", result_of.map(|number| format!("attempt {number}")).unwrap_or_default()),
        ("replicas", replicas),
    ];
    let mut text = String::new();
    for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        text.push_str(&format!("{}  {value}\n", printer.paint(&format!("{name:<10}"), Tone::Faint)));
    }
    if let Some(spec) = raw.get("spec") {
        text.push_str(&format!("{}  {}\n", printer.paint("spec      ", Tone::Faint), printable(&spec.to_string())));
    }
    printer.line(text.trim_end())?;
    if job.attempts.is_empty() {
        return Ok(());
    }
    for (attempt, usage) in job.attempts.iter().filter_map(|attempt| Some((attempt, attempt.usage.as_ref()?))) {
        let name = printer.paint("used      ", Tone::Faint);
        printer.line(&format!("{name}  {} by attempt {}", usage.text(), attempt.number))?;
    }
    let rows = job.attempts.iter().map(|attempt| {
        let until = attempt.ended_at.or_else(|| attempt.phase.is_live().then(now));
        let mut overlaps: Vec<(u32, String)> = attempt
            .overlaps
            .iter()
            .map(|with| {
                let other = job.attempts.iter().find(|other| (other.number, &other.node) == (with.number, &with.node));
                let place = printable(other.map_or(with.node.as_str(), Attempt::place));
                (with.number, format!("{} on {place}{}", with.number, if with.certain { "" } else { " (possibly)" }))
            })
            .collect();
        overlaps.sort();
        let overlaps: Vec<String> = overlaps.into_iter().map(|(_, text)| text).collect();
        vec![
            attempt.number.to_string(),
            printable(attempt.place()).into_owned(),
            printer.paint(&facts::lower_snake(&format!("{:?}", attempt.phase)), Tone::of_phase(attempt.phase)),
            span_between(attempt.started_at, until),
            attempt.exit_text(),
            overlaps.join(", "),
            printable(attempt.reason.as_deref().unwrap_or_default()).into_owned(),
        ]
    });
    printer.line("")?;
    printer.table(&["ATTEMPT", "NODE", "PHASE", "TIME", "EXIT", "OVERLAPS", "REASON"], rows.collect())?;
    Ok(())
}

pub(crate) async fn wait(session: &Session, args: &WaitArgs) -> Outcome {
    let client = session.client()?.persistent();
    let mut ids = Vec::new();
    for text in &args.jobs {
        ids.push(session.resolve(&client, text).await?);
    }
    let jobs = wait_for_all(&client, &ids, args.timeout).await?;
    let unfinished = jobs.iter().filter(|(job, _)| !job.state.is_terminal()).count();
    for (job, raw) in &jobs {
        match session.printer.form {
            OutputForm::Table | OutputForm::Wide => {
                let state = session.printer.paint(job.state.as_str(), Tone::of_job(job.state));
                let reason = printable(job.reason.as_deref().unwrap_or_default()).into_owned();
                session.printer.line(format!("{}  {state}  {reason}", job.id).trim_end())?;
            }
            OutputForm::Json | OutputForm::Jsonl => session.printer.json(raw)?,
            OutputForm::Id => session.printer.line(&job.id)?,
        }
    }
    if unfinished > 0 {
        note(&format!("{unfinished} of {} had not ended in time", jobs.len()));
        return Ok(exit::TIMED_OUT);
    }
    match jobs.as_slice() {
        [(job, _)] => Ok(job.exit_code_for_shell()),
        several => {
            let all_well = several.iter().all(|(job, _)| job.state == JobState::Succeeded);
            Ok(if all_well { exit::SUCCESS } else { exit::FAILED })
        }
    }
}

/// The job as soon as it has ended, or as it is after `patience`.
pub(crate) async fn wait_once(client: &Client, id: &str, patience: Option<Duration>) -> Result<(Job, Value), Failure> {
    let begun = Instant::now();
    loop {
        let left = patience.map(|patience| patience.saturating_sub(begun.elapsed()));
        let poll = left.unwrap_or(LONG_POLL).min(LONG_POLL);
        let request = Request::get(format!("/v1/jobs/{id}/wait"))
            .query("timeout", poll.as_secs_f64())
            .answer_within(poll + LONG_POLL_GRACE);
        let answer = client.ask(&request).await?;
        let job: Job = answer.read()?;
        let out_of_time = patience.is_some_and(|patience| begun.elapsed() >= patience);
        if job.state.is_terminal() || out_of_time {
            return Ok((job, answer.body));
        }
    }
}

/// All of the jobs as they ended, or as they are after `patience`, in the order of `ids`.
pub(crate) async fn wait_for_all(
    client: &Client,
    ids: &[String],
    patience: Option<Duration>,
) -> Result<Vec<(Job, Value)>, Failure> {
    let bar = bar(ids.len(), "ended");
    let end = patience.map(|patience| Instant::now() + patience);
    let waits = ids.iter().map(|id| {
        let bar = &bar;
        async move {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let waited = wait_once(client, id, left).await;
            bar.inc(1);
            waited
        }
    });
    let jobs = stream::iter(waits).buffered(WAITS_AT_ONCE).try_collect().await;
    bar.finish_and_clear();
    jobs
}

/// A bar for many, a spinner for one, nothing where nobody looks.
pub(crate) fn bar(length: usize, what: &'static str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    if length == 1 {
        let spinner = shown(ProgressBar::new_spinner());
        spinner.enable_steady_tick(Duration::from_millis(120));
        return spinner;
    }
    let style = ProgressStyle::with_template("{wide_bar} {pos} of {len} {msg}, {elapsed}")
        .expect("the template is a constant, and right");
    shown(ProgressBar::new(length as u64).with_style(style).with_message(what))
}

/// Asks that a job end. Asking twice is asking once.
pub(crate) fn cancel_request(id: &str, reason: Option<&str>) -> Request {
    let request = Request::delete(format!("/v1/jobs/{id}"), Repeat::Freely);
    match reason {
        Some(reason) => request.query("reason", reason),
        None => request,
    }
}

pub(crate) async fn cancel(session: &Session, args: &CancelArgs) -> Outcome {
    let client = session.client()?;
    let mut code = exit::SUCCESS;
    for text in &args.jobs {
        let id = session.name_in_path(text)?;
        match client.ask(&cancel_request(&id, args.reason.as_deref())).await {
            Ok(answer) => {
                let job: Job = answer.read()?;
                match session.printer.form {
                    OutputForm::Table | OutputForm::Wide if job.state.is_terminal() => {
                        session.printer.line(&format!("{}  {}", job.id, job.state.as_str()))?;
                    }
                    OutputForm::Table | OutputForm::Wide => {
                        session.printer.line(&format!("{}  is being cancelled", job.id))?;
                    }
                    OutputForm::Json | OutputForm::Jsonl => session.printer.json(&answer.body)?,
                    OutputForm::Id => session.printer.line(&job.id)?,
                }
            }
            Err(failure) if args.jobs.len() == 1 || failure.kind == Kind::Unreachable => return Err(failure),
            Err(failure) => {
                super::tell(&failure);
                code = failure.exit_code();
            }
        }
    }
    Ok(code)
}

pub(crate) async fn retry(session: &Session, args: &OneJob) -> Outcome {
    let client = session.client()?;
    let id = session.name_in_path(&args.job)?;
    let answer =
        client.ask(&Request::post(format!("/v1/jobs/{id}/retry"), Repeat::OnlyIfUnsent).with_random_key()).await?;
    let new = answer.body.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    match session.printer.form {
        OutputForm::Table | OutputForm::Wide | OutputForm::Id => session.printer.line(&new)?,
        OutputForm::Json | OutputForm::Jsonl => session.printer.json(&answer.body)?,
    }
    if let Err(error) = session.state.remember_last(&new) {
        note(&format!("`last` will not know this job: {error}"));
    }
    Ok(exit::SUCCESS)
}

pub(crate) async fn locate(session: &Session, args: &OneJob) -> Outcome {
    look_at(session, &args.job, "where").await
}

pub(crate) async fn explain(session: &Session, args: &OneJob) -> Outcome {
    look_at(session, &args.job, "explain").await
}

async fn look_at(session: &Session, job: &str, what: &str) -> Outcome {
    let client = session.client()?;
    let id = session.name_in_path(job)?;
    let answer = client.ask(&Request::get(format!("/v1/jobs/{id}/{what}"))).await?;
    match session.printer.form {
        OutputForm::Table | OutputForm::Wide => session.printer.line(&facts::drawn(session.printer, &answer.body))?,
        OutputForm::Json | OutputForm::Jsonl => session.printer.json(&answer.body)?,
        OutputForm::Id => {
            let id = answer.body.get("id").and_then(Value::as_str).unwrap_or(&id);
            session.printer.line(id)?;
        }
    }
    Ok(exit::SUCCESS)
}
