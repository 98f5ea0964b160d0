//! `flockwork merges`: what a partition left behind, on one page.

use std::time::Duration;

use clap::Args;
use flockwork::model::record::JobState;
use flockwork::model::time::Timestamp;
use serde::Deserialize;

use super::Session;
use super::client::Request;
use super::failure::{Outcome, exit};
use super::render::{OutputForm, Printer, Tone, now, printable, shortened, span};

/// `flockwork merges`.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct MergesArgs {}

#[derive(Debug, Deserialize)]
struct Report {
    node: Name,
    #[serde(default)]
    absences: Vec<Absence>,
    #[serde(default)]
    jobs: Vec<Job>,
    #[serde(default)]
    certain: usize,
    #[serde(default)]
    possible: usize,
    #[serde(default)]
    more: bool,
    #[serde(default)]
    missing: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Name {
    #[serde(default)]
    name: String,
}

#[derive(Debug, Deserialize)]
struct Absence {
    #[serde(default)]
    name: String,
    from: Timestamp,
    #[serde(default)]
    until: Option<Timestamp>,
    #[serde(default)]
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Job {
    id: String,
    #[serde(default)]
    title: String,
    state: JobState,
    #[serde(default)]
    overlaps: Vec<Pair>,
}

#[derive(Debug, Deserialize)]
struct Pair {
    certain: bool,
    first: Run,
    second: Run,
    #[serde(default)]
    from: Option<Timestamp>,
    #[serde(default)]
    seconds: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Run {
    number: u32,
    #[serde(default)]
    name: String,
    phase: String,
}

pub(crate) async fn merges(session: &Session, _: MergesArgs) -> Outcome {
    let answer = session.client()?.ask(&Request::get("/debug/merges")).await?;
    let report: Report = answer.read()?;
    let printer = session.printer;
    match printer.form {
        OutputForm::Json | OutputForm::Jsonl => printer.json(&answer.body)?,
        OutputForm::Id => {
            for job in &report.jobs {
                printer.line(&job.id)?;
            }
        }
        OutputForm::Table | OutputForm::Wide => printer.line(&drawn(printer, &report, now()))?,
    }
    Ok(exit::SUCCESS)
}

fn drawn(printer: Printer, report: &Report, now: Timestamp) -> String {
    let mut text = format!("as {} sees it\n\n", printable(&report.node.name));
    if report.absences.is_empty() {
        text.push_str("no member was away, as far back as it remembers");
    } else {
        let rows = report.absences.iter().map(|absence| {
            let (length, is_back) = match absence.until {
                Some(until) => (span(until.since(absence.from)), printer.paint("is back", Tone::Good)),
                None => (span(now.since(absence.from)), printer.paint("is away", Tone::Bad)),
            };
            vec![
                printable(&absence.name).into_owned(),
                format!("{} ago", span(now.since(absence.from))),
                length,
                is_back,
                shortened(&absence.reason, 60),
            ]
        });
        text.push_str(&printer.drawn(&["AWAY", "SINCE", "FOR", "NOW", "WHY"], rows.collect()));
    }
    let pairs = report.jobs.iter().flat_map(|job| job.overlaps.iter().map(move |pair| (job, pair)));
    let rows: Vec<Vec<String>> = pairs.map(|(job, pair)| row(printer, job, pair, now)).collect();
    text.push_str("\n\n");
    if rows.is_empty() {
        text.push_str("no job ran twice at once");
    } else {
        let header = ["JOB", "NAME", "STATE", "ONE ATTEMPT", "AND ANOTHER", "AT ONCE", "SINCE"];
        text.push_str(&printer.drawn(&header, rows));
        text.push_str(&format!(
            "\n\n{} ran twice at once for certain, and {} more may have; each has one record and one state",
            counted(report.certain, "pair of attempts", "pairs of attempts"),
            report.possible
        ));
    }
    if report.more {
        text.push_str("\nonly the newest are shown");
    }
    if !report.missing.is_empty() {
        text.push_str(&format!(
            "\nthese nodes could not be asked, and may know of more: {}",
            report.missing.join(", ")
        ));
    }
    text
}

fn row(printer: Printer, job: &Job, pair: &Pair, now: Timestamp) -> Vec<String> {
    let run = |run: &Run| format!("{} on {}: {}", run.number, printable(&run.name), run.phase);
    let at_once = match (pair.seconds, pair.certain) {
        (Some(0.0), false) => "not by their clocks".to_owned(),
        (Some(seconds), true) => in_words(seconds),
        (Some(seconds), false) => format!("perhaps, up to {}", in_words(seconds)),
        (None, true) => "still".to_owned(),
        (None, false) => "perhaps".to_owned(),
    };
    vec![
        job.id.chars().take(8).collect(),
        shortened(&job.title, 30),
        printer.paint(job.state.as_str(), Tone::of_job(job.state)),
        run(&pair.first),
        run(&pair.second),
        at_once,
        pair.from.map(|from| format!("{} ago", span(now.since(from)))).unwrap_or_default(),
    ]
}

fn in_words(seconds: f64) -> String {
    span(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
