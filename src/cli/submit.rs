//! `flockwork run` and `flockwork submit`: handing in work, one job or very many.
//!
//! Every job is sent with an idempotency key; where the user gave none, a random one is made up here, once per
//! job and before the first try. A submit whose answer was lost can therefore be sent again, to another node
//! even, and still makes one job. (The key is visible in the job's spec.)

use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::time::Duration;

use clap::Args;
use flockwork::model::id::JobId;
use flockwork::model::record::JobState;
use flockwork::model::spec::Spec;
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Session;
use super::answers::{Explained, Job, Receipt, RefusedJob, Submitted};
use super::client::{Client, Repeat, Request, random_key};
use super::failure::{Failure, Kind, Outcome, exit};
use super::job_options::{JobOptions, check};
use super::jobs::{cancel_request, wait_for_all, wait_once};
use super::logs::LogReader;
use super::render::{OutputForm, note, printable, short_id, shown};

/// How many jobs one request carries. Enough to make the requests' own cost disappear.
const JOBS_PER_REQUEST: usize = 1_000;

/// How many bytes of specs one request carries, where they are large; far below what a node reads.
const BYTES_PER_REQUEST: usize = 4 << 20;

/// How often `run` asks how far the job has come. Nodes pass it on once a second.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const PROGRESS_PARTS: u64 = 1_000;

/// How long `run` waits for a second Ctrl-C before it takes the first one at its word.
const SECOND_THOUGHTS: Duration = Duration::from_secs(1);

/// `flockwork run`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    options: JobOptions,
    /// Print the spec and submit nothing
    #[arg(long)]
    dry_run: bool,
    /// The program and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

/// `flockwork submit`.
#[derive(Debug, Clone, Args)]
pub(crate) struct SubmitArgs {
    #[command(flatten)]
    options: JobOptions,
    /// Submit the specs in this file (- for standard input): one JSON object, an array, or one a line. Job
    /// options given beside it hold where a spec does not say otherwise
    #[arg(short = 'f', long, value_name = "FILE|-", conflicts_with_all = ["command", "arg_file"])]
    file: Option<String>,
    /// One job for each line of this file (- for standard input): {} in the command, --name, --env and --stdin
    /// stands for the line, {#} for its number; without any {} the line becomes the last argument
    #[arg(short = 'a', long, value_name = "FILE|-", requires = "command")]
    arg_file: Option<String>,
    /// Wait until the jobs have ended; the exit code is the job's own, or 1 if any of several failed
    #[arg(long)]
    wait: bool,
    /// Print the specs and submit nothing
    #[arg(long)]
    dry_run: bool,
    /// The program and its arguments
    #[arg(value_name = "CMD", required_unless_present = "file", trailing_var_arg = true)]
    command: Vec<String>,
}

pub(crate) async fn run(session: &Session, args: &RunArgs) -> Outcome {
    let spec = args.options.spec(args.command.clone())?;
    check(&spec)?;
    let spec = serde_json::to_value(&spec)?;
    if args.dry_run {
        return dry_run(session, &[spec]);
    }
    let client = session.client()?.persistent();
    // From here on: the job may run before the answer to the submit is here.
    let mut ctrl_c = CtrlC::listen()?;
    let Some(outcomes) = ctrl_c.defer(submit_all(session, &client, vec![spec], |_| Ok(()))).await else {
        return Ok(exit::CANCELLED);
    };
    let outcomes = outcomes?;
    let [outcome] = outcomes.as_slice() else {
        return Err(Failure::internal("one job was sent, and not one was answered"));
    };
    let id = accepted(&outcome.answer)?;
    if outcome.is_below_durability {
        note(&outcome.durability());
    }
    if !session.printer.is_for_people() {
        let (job, raw) = tokio::select! {
            ended = wait_once(&client, &id, None) => ended?,
            () = ctrl_c.cancels(&client, &id) => return Ok(exit::CANCELLED),
        };
        match session.printer.form {
            OutputForm::Id => session.printer.line(&id)?,
            OutputForm::Table | OutputForm::Wide | OutputForm::Json | OutputForm::Jsonl => {
                session.printer.json(&raw)?;
            }
        }
        return Ok(job.exit_code_for_shell());
    }
    let mut reader = LogReader::new(&client, id.clone(), OutputForm::Table);
    reader.attempts = Some("all".to_owned());
    if std::io::stderr().is_terminal() {
        let spinner = shown(indicatif::ProgressBar::new_spinner().with_message(under_way(&id)));
        spinner.enable_steady_tick(Duration::from_millis(120));
        reader.spinner = Some(spinner);
    }
    let bar = reader.spinner.clone();
    tokio::select! {
        never = accompany(&client, &id, bar.as_ref()) => match never {},
        ended = reader.follow() => match ended {
            Ok(job) => Ok(tell_end(&job)),
            Err(failure) if failure.kind == Kind::OutputClosed => {
                note(&format!("the output is closed; {id} goes on"));
                Err(failure)
            }
            Err(failure) if failure.kind == Kind::Unreachable => {
                Err(failure.with_hint(format!("the job goes on without us: `flockwork logs -f {id}`")))
            }
            Err(failure) => Err(failure),
        },
        () = ctrl_c.cancels(&client, &id) => Ok(exit::CANCELLED),
    }
}

/// Says why the job does not run yet, and lets the bar say how far it has come, for jobs that tell. Where that cannot be
/// learned, all stays as it is: it is not what the command is for.
async fn accompany(client: &Client, id: &str, bar: Option<&indicatif::ProgressBar>) -> std::convert::Infallible {
    let mut style = indicatif::ProgressStyle::with_template("{wide_bar} {percent}% {msg}, {elapsed}").ok();
    let mut told = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Ok(job) = client.read::<Job>(&Request::get(format!("/v1/jobs/{id}"))).await else { continue };
        if job.state == JobState::Pending {
            let asked = client.read::<Explained>(&Request::get(format!("/v1/jobs/{id}/explain"))).await;
            if let Ok(explained) = asked
                && told.as_ref() != Some(&explained.reason)
            {
                let id = short_id(id);
                let text = format!("{id} is pending: {} (more: `flockwork explain {id}`)", explained.reason);
                match bar.filter(|bar| !bar.is_finished() && bar.length().is_none()) {
                    Some(spinner) => spinner.set_message(text),
                    // Where nobody looks on, what passes by itself is not worth a line.
                    None if explained.is_stuck() => note(&text),
                    None => {}
                }
                told = Some(explained.reason);
            }
            continue;
        }
        // Where nobody looks on there is nothing more to say.
        let Some(bar) = bar else { return std::future::pending().await };
        if told.take().is_some() && bar.length().is_none() {
            bar.set_message(under_way(id));
        }
        if let Some(progress) = job.progress
            && (!bar.is_finished() || bar.length().is_none())
        {
            if bar.is_finished() {
                // The first output took the spinner's place; a bar stands below what is written.
                bar.reset();
            }
            if let Some(style) = style.take() {
                bar.set_length(PROGRESS_PARTS);
                bar.set_style(style);
            }
            bar.set_position((progress.fraction * PROGRESS_PARTS as f64) as u64);
            bar.set_message(printable(&progress.message).into_owned());
        }
    }
}

fn under_way(id: &str) -> String {
    format!("{} is under way", short_id(id))
}

/// Ends like the job, and says why where the exit code alone would not.
fn tell_end(job: &Job) -> u8 {
    let code = job.exit_code_for_shell();
    if code != exit::SUCCESS {
        let (state, reason) = (job.state.as_str(), job.reason.as_deref().unwrap_or_default());
        note(&match reason {
            "" => format!("{} {state}: no reason was given", job.id),
            _ if reason.starts_with(state) => format!("{} {reason}", job.id),
            _ => format!("{} {state}: {reason}", job.id),
        });
    } else if let Some(remark) = job.telling().and_then(|attempt| attempt.remark.as_deref()) {
        note(&format!("{} {}, but {remark}", job.id, job.state.as_str()));
    }
    code
}

/// Ctrl-C, from when this was made; until then it ends the program at once.
struct CtrlC {
    signals: Signal,
    /// It was pressed, and nothing was done about it yet.
    is_pressed: bool,
}

impl CtrlC {
    fn listen() -> Result<Self, Failure> {
        let signals = signal(SignalKind::interrupt());
        let signals = signals.map_err(|error| Failure::internal(format!("cannot hear Ctrl-C: {error}")))?;
        Ok(Self { signals, is_pressed: false })
    }

    /// Lets what has begun come to its end, and remembers whether Ctrl-C was pressed; nothing if it was pressed twice.
    async fn defer<T>(&mut self, begun: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(begun);
        loop {
            tokio::select! {
                done = &mut begun => return Some(done),
                _ = self.signals.recv() => {}
            }
            if self.is_pressed {
                note("not waiting for the answer; the job may have been accepted");
                return None;
            }
            self.is_pressed = true;
            note("Ctrl-C: waiting for the answer, to cancel the job (Ctrl-C stops the waiting)");
        }
    }

    /// Waits for Ctrl-C: once cancels the job and goes on waiting for its end, twice leaves it and returns.
    async fn cancels(mut self, client: &Client, id: &str) {
        if !self.is_pressed {
            self.signals.recv().await;
        }
        note("Ctrl-C: cancelling the job; press it again now to leave it running instead");
        let second_thoughts = tokio::time::timeout(SECOND_THOUGHTS, self.signals.recv()).await;
        if second_thoughts.is_ok() {
            note(&format!("left running: {id}"));
            return;
        }
        let cancel = cancel_request(id, Some("Ctrl-C in flockwork run"));
        tokio::select! {
            cancelled = client.ask(&cancel) => match cancelled {
                Ok(_) => note("cancelled; waiting for its end (Ctrl-C stops the waiting)"),
                Err(failure) => note(&format!("it could not be cancelled: {failure}")),
            },
            _ = self.signals.recv() => {
                note(&format!("not waiting for the end of {id}; whether it was cancelled is not known"));
                return;
            }
        }
        self.signals.recv().await;
        note(&format!("not waiting for the end of {id}"));
    }
}

pub(crate) async fn submit(session: &Session, args: &SubmitArgs) -> Outcome {
    let specs = match (&args.file, &args.arg_file) {
        (Some(file), _) => specs_of_file(args, file)?,
        (None, Some(arg_file)) => specs_of_lines(args, arg_file)?,
        (None, None) => {
            let spec = args.options.spec(args.command.clone())?;
            check(&spec)?;
            vec![serde_json::to_value(&spec)?]
        }
    };
    if specs.is_empty() {
        note("nothing to submit");
        return Ok(exit::SUCCESS);
    }
    if args.dry_run {
        return dry_run(session, &specs);
    }
    let is_single = specs.len() == 1;
    let mut client = session.client()?;
    if args.wait {
        client = client.persistent();
    }
    let outcomes = submit_all(session, &client, specs, |outcome| print_submitted(session, is_single, outcome)).await?;
    let mut ids = Vec::new();
    let mut code = exit::SUCCESS;
    for outcome in &outcomes {
        match accepted(&outcome.answer) {
            Ok(id) => ids.push(id),
            Err(failure) if is_single => return Err(failure),
            Err(failure) => {
                super::tell(&failure);
                code = failure.exit_code();
            }
        }
        if outcome.is_below_durability {
            code = if code == exit::SUCCESS { exit::LESS_DURABLE } else { code };
        }
    }
    if !args.wait {
        return Ok(code);
    }
    match ids.as_slice() {
        [] => Ok(code),
        [id] if is_single => Ok(wait_once(&client, id, None).await?.0.exit_code_for_shell()),
        _ => {
            let jobs = wait_for_all(&client, &ids, None).await?;
            let failed = jobs.iter().filter(|(job, _)| job.exit_code_for_shell() != exit::SUCCESS).count();
            note(&format!("{} of {} succeeded", jobs.len() - failed, outcomes.len()));
            Ok(if failed > 0 { exit::FAILED } else { code })
        }
    }
}

/// Prints what would be sent: one spec as a document, several one a line.
fn dry_run(session: &Session, specs: &[Value]) -> Outcome {
    for spec in specs {
        if specs.len() == 1 {
            session.printer.json(spec)?;
        } else {
            session.printer.line(&spec.to_string())?;
        }
    }
    Ok(exit::SUCCESS)
}

/// One job's outcome.
#[derive(Debug)]
struct Handed {
    raw: Value,
    answer: Submitted,
    is_below_durability: bool,
}

impl Handed {
    /// What durability was reached, in a sentence.
    fn durability(&self) -> String {
        let sign = if self.is_below_durability { "accepted below the asked durability: " } else { "" };
        let id = short_id(self.answer.id.as_deref().unwrap_or_default());
        match &self.answer.receipt {
            Some(Receipt { stored, wanted, replicas }) => {
                let nodes = if *stored == 1 { "node" } else { "nodes" };
                format!("{sign}{id} is stored on {stored} {nodes} ({}), and {wanted} were wanted", replicas.join(", "))
            }
            None => format!("{sign}{id} is stored"),
        }
    }
}

/// Sends the specs, in as few requests as is sensible, and shows each answer as soon as it is there.
async fn submit_all(
    session: &Session,
    client: &Client,
    mut specs: Vec<Value>,
    show: impl Fn(&Handed) -> Result<(), Failure>,
) -> Result<Vec<Handed>, Failure> {
    for spec in &mut specs {
        give_key(spec);
    }
    let bar = super::jobs::bar(specs.len(), "submitted");
    let is_single = specs.len() == 1;
    let mut outcomes: Vec<Handed> = Vec::with_capacity(specs.len());
    for batch in batches(specs) {
        let body = match batch.as_slice() {
            [only] if is_single => only.clone(),
            _ => Value::Array(batch),
        };
        let request = Request::post("/v1/jobs", Repeat::Freely).json(&body).answer_within(Duration::from_secs(60));
        let sent = client.ask(&request).await.map_err(|failure| match outcomes.len() {
            0 => failure,
            count => {
                let message = format!("after {count} jobs were submitted: {}", failure.message);
                Failure { message, ..failure }
            }
        })?;
        let answers = match sent.body.get("jobs") {
            Some(Value::Array(answers)) => answers.clone(),
            _ => vec![sent.body],
        };
        for raw in answers {
            let answer: Submitted = serde_json::from_value(raw.clone())?;
            // A single submit says it by its status as well; of many, each says it by its receipt.
            let is_below_durability = answer.receipt.as_ref().is_some_and(|r| r.stored < r.wanted)
                || (is_single && sent.status == reqwest::StatusCode::ACCEPTED);
            let outcome = Handed { raw, answer, is_below_durability };
            show(&outcome)?;
            outcomes.push(outcome);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    if let Some(newest) = outcomes.iter().rev().find_map(|outcome| accepted(&outcome.answer).ok())
        && let Err(error) = session.state.remember_last(&newest)
    {
        note(&format!("`last` will not know this job: {error}"));
    }
    Ok(outcomes)
}

/// The id on standard output, the receipt on standard error.
fn print_submitted(session: &Session, is_single: bool, outcome: &Handed) -> Result<(), Failure> {
    let Some(id) = &outcome.answer.id else { return Ok(()) };
    match session.printer.form {
        OutputForm::Json | OutputForm::Jsonl if is_single => session.printer.json(&outcome.raw)?,
        OutputForm::Json | OutputForm::Jsonl => session.printer.line(&outcome.raw.to_string())?,
        OutputForm::Table | OutputForm::Wide | OutputForm::Id => session.printer.line(id)?,
    }
    if outcome.is_below_durability || (is_single && session.printer.is_for_people()) {
        note(&outcome.durability());
    }
    Ok(())
}

/// The job's id, or why there is none.
fn accepted(answer: &Submitted) -> Result<String, Failure> {
    match (&answer.id, &answer.error) {
        (Some(id), _) if id.parse::<JobId>().is_ok() => Ok(id.clone()),
        (_, Some(RefusedJob { message, hint })) => {
            Err(Failure { kind: Kind::Refused, message: message.clone(), hint: hint.clone() })
        }
        (Some(id), None) => Err(Failure::internal(format!("`{id}` is no job id"))),
        (None, None) => Err(Failure::internal("the answer names no job")),
    }
}

/// Gives a spec that has no key a random one.
fn give_key(spec: &mut Value) {
    if let Some(fields) = spec.as_object_mut()
        && fields.get("key").is_none_or(Value::is_null)
    {
        fields.insert("key".to_owned(), Value::String(random_key()));
    }
}

fn batches(specs: Vec<Value>) -> Vec<Vec<Value>> {
    let mut batches = vec![Vec::new()];
    let mut bytes = 0;
    for spec in specs {
        let size = spec.to_string().len();
        let full =
            batches.last().is_some_and(|batch| batch.len() >= JOBS_PER_REQUEST || bytes + size > BYTES_PER_REQUEST);
        if full {
            batches.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(batch) = batches.last_mut() {
            batch.push(spec);
        }
    }
    batches.retain(|batch| !batch.is_empty());
    batches
}

/// The specs of a JSON file, each on top of what the options say.
fn specs_of_file(args: &SubmitArgs, file: &str) -> Result<Vec<Value>, Failure> {
    let wrong = |place: &str, why: &dyn std::fmt::Display| Failure::usage(format!("{file}{place}: {why}"));
    let mut text = String::new();
    open(file)?.read_to_string(&mut text).map_err(|error| wrong("", &error))?;
    let documents: Vec<Value> = match serde_json::from_str::<Value>(&text) {
        Ok(Value::Array(specs)) => specs,
        Ok(spec) => vec![spec],
        Err(_) => {
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            let parse = |(at, line)| serde_json::from_str(line).map_err(|e| wrong(&format!(", line {}", at + 1), &e));
            lines.map(parse).collect::<Result<_, _>>()?
        }
    };
    let base = serde_json::to_value(args.options.spec(Vec::new())?)?;
    let mut specs = Vec::with_capacity(documents.len());
    for (at, document) in documents.into_iter().enumerate() {
        let place = format!(", spec {}", at + 1);
        let Value::Object(fields) = document else {
            return Err(wrong(&place, &"not an object such as {\"command\": [\"echo\", \"hi\"]}"));
        };
        let own_key = fields.contains_key("key");
        let mut spec = base.clone();
        if let Some(all) = spec.as_object_mut() {
            all.extend(fields);
            if let (Some(key), false) = (&args.options.key, own_key) {
                all.insert("key".to_owned(), Value::String(format!("{key}/{}", at + 1)));
            }
        }
        let read: Spec = serde_json::from_value(spec.clone()).map_err(|error| wrong(&place, &error))?;
        read.validate().map_err(|invalid| wrong(&place, &invalid))?;
        specs.push(spec);
    }
    Ok(specs)
}

/// One spec for each line of a file.
fn specs_of_lines(args: &SubmitArgs, arg_file: &str) -> Result<Vec<Value>, Failure> {
    let template = args.options.spec(args.command.clone())?;
    let mut specs = Vec::new();
    for line in BufReader::new(open(arg_file)?).lines() {
        let line = line.map_err(|error| Failure::usage(format!("{arg_file}, line {}: {error}", specs.len() + 1)))?;
        let spec = filled_in(&template, &line, specs.len() + 1);
        check(&spec)?;
        specs.push(serde_json::to_value(&spec)?);
    }
    Ok(specs)
}

/// `template` with `{}` replaced by the line, and `{#}` by its number.
fn filled_in(template: &Spec, line: &str, number: usize) -> Spec {
    let fill = |text: &String| fill_text(text, line, number);
    let mut spec = template.clone();
    spec.command = template.command.iter().map(fill).collect();
    spec.name = template.name.as_ref().map(fill);
    spec.env = template.env.iter().map(|(name, value)| (name.clone(), fill(value))).collect();
    let stdin_text = template.stdin.as_ref().and_then(|stdin| std::str::from_utf8(&stdin.0).ok());
    let stdin_takes_it = stdin_text.is_some_and(|text| text.contains("{}"));
    if let Some(text) = stdin_text {
        spec.stdin = Some(flockwork::model::spec::Stdin(fill_text(text, line, number).into_bytes()));
    }
    let takes_it = |text: &String| text.contains("{}");
    let somebody_takes_it = template.command.iter().any(takes_it) || template.env.values().any(takes_it);
    if !somebody_takes_it && !stdin_takes_it {
        spec.command.push(line.to_owned());
    }
    spec.key = template.key.as_ref().map(|key| format!("{key}/{number}"));
    spec
}

/// In one pass, so that a line which itself holds `{#}` stays as it is.
fn fill_text(text: &str, line: &str, number: usize) -> String {
    let mut filled = String::with_capacity(text.len() + line.len());
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        filled.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{}") {
            filled.push_str(line);
            rest = after;
        } else if let Some(after) = rest.strip_prefix("{#}") {
            filled.push_str(&number.to_string());
            rest = after;
        } else {
            filled.push('{');
            rest = &rest[1..];
        }
    }
    filled + rest
}

fn open(file: &str) -> Result<Box<dyn Read>, Failure> {
    if file == "-" {
        return Ok(Box::new(std::io::stdin()));
    }
    let opened = std::fs::File::open(file).map_err(|error| Failure::usage(format!("cannot read {file}: {error}")))?;
    Ok(Box::new(opened))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(command: &[&str]) -> Spec {
        Spec { command: command.iter().map(|word| (*word).to_owned()).collect(), ..Spec::default() }
    }

    #[test]
    fn a_line_takes_its_place_in_the_command() {
        let spec = filled_in(&template(&["gzip", "-k", "in/{}", "{#}.gz"]), "a {#} b", 7);
        assert_eq!(spec.command, ["gzip", "-k", "in/a {#} b", "7.gz"]);
        let spec = filled_in(&template(&["gzip", "{name}"]), "a", 1);
        assert_eq!(spec.command, ["gzip", "{name}", "a"], "nobody took it, so it comes last");
        let keyed = Spec { key: Some("nightly".into()), ..template(&["x"]) };
        assert_eq!(filled_in(&keyed, "a", 2).key.as_deref(), Some("nightly/2"));
    }

    #[test]
    fn large_specs_travel_in_smaller_company() {
        let small = vec![serde_json::json!({"command": ["true"]}); 2_500];
        assert_eq!(batches(small).iter().map(Vec::len).collect::<Vec<_>>(), [1_000, 1_000, 500]);
        let large = vec![serde_json::json!({"stdin": "x".repeat(1 << 20)}); 7];
        assert_eq!(batches(large).iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1]);
        assert!(batches(Vec::new()).is_empty());
    }

    #[test]
    fn a_key_is_made_up_once_and_never_replaced() {
        let mut mine = serde_json::json!({"key": "mine"});
        give_key(&mut mine);
        assert_eq!(mine["key"], "mine");
        let (mut one, mut other) = (serde_json::json!({}), serde_json::json!({"key": null}));
        give_key(&mut one);
        give_key(&mut other);
        assert_ne!(one["key"], other["key"]);
    }
}
