//! `flockwork pod`: what a job says of itself, for jobs that are scripts.
//!
//! A job's node tells it where to report and by which token, in its environment; nothing else is needed, and nothing
//! else is read, no settings file and no address of a node. Outside a job there is nobody to report to.

use std::io::Read;
use std::time::Duration;

use clap::Subcommand;
use flockwork::model::blob::{MAX_CHECKPOINT_BYTES, MAX_RESULT_BYTES};
use serde::Deserialize;
use serde_json::json;

use super::failure::{Failure, Kind, Outcome, exit};
use super::render::note;

/// How long the node may take. It answers a checkpoint when enough nodes have it, or when the time for that is over.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);

/// `flockwork pod`.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum PodCommand {
    /// Say that the job is alive, for jobs with --heartbeat-timeout
    Heartbeat,
    /// Say how far the job has come
    Progress {
        /// From 0 to 1
        #[arg(value_name = "FRACTION", allow_negative_numbers = true, value_parser = fraction)]
        fraction: f64,
        /// A few words
        #[arg(value_name = "MSG", default_value = "")]
        message: String,
    },
    /// Save work; the next attempt, on whatever node, finds it in the file $FLOCKWORK_CHECKPOINT_FILE
    Checkpoint {
        /// The work, up to 16 MiB; - for standard input
        #[arg(value_name = "FILE|-")]
        file: String,
    },
    /// Say what the job comes to, so far or in the end; the last one counts, and is saved on other nodes too when this
    /// returns. What is in $FLOCKWORK_RESULT_FILE at the end does the same, and counts more
    Result {
        /// The result, up to 64 KiB; - for standard input
        #[arg(value_name = "FILE|-")]
        file: String,
    },
}

/// Where the job's node is told, and by which right.
struct Node {
    url: String,
    token: String,
}

impl Node {
    fn of_this_job() -> Result<Self, Failure> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        match (variable("FLOCKWORK_POD_URL"), variable("FLOCKWORK_POD_TOKEN")) {
            (Some(url), Some(token)) => Ok(Self { url, token }),
            _ => Err(Failure::usage(
                "this is not running inside a job: FLOCKWORK_POD_URL and FLOCKWORK_POD_TOKEN are not set",
            )
            .with_hint("it is for programs that flockwork runs; try `flockwork run -- flockwork pod heartbeat`")),
        }
    }
}

/// What the node answers, as far as it is looked into.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    stored: Option<u32>,
    wanted: Option<u32>,
    error: Option<Refusal>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    message: String,
    #[serde(default)]
    hint: Option<String>,
}

/// Carries out a command of `flockwork pod`.
pub(crate) fn pod(command: PodCommand) -> Outcome {
    let node = Node::of_this_job()?;
    let (kind, body) = match command {
        PodCommand::Heartbeat => ("heartbeat", Vec::new()),
        PodCommand::Progress { fraction, message } => {
            ("progress", json!({"fraction": fraction, "message": message}).to_string().into_bytes())
        }
        PodCommand::Checkpoint { file } => ("checkpoint", read(&file, MAX_CHECKPOINT_BYTES)?),
        PodCommand::Result { file } => ("result", read(&file, MAX_RESULT_BYTES)?),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::internal(format!("cannot start the runtime: {error}")))?;
    runtime.block_on(post(&node, kind, body))
}

/// Reads a part of the whole.
fn fraction(text: &str) -> Result<f64, String> {
    let fraction = text.parse().ok().filter(|fraction| (0.0..=1.0).contains(fraction));
    fraction.ok_or_else(|| format!("`{text}` is no part of the whole, which is a number from 0 to 1"))
}

/// Reads a file, but never more than could be handed in.
fn read(file: &str, limit_bytes: u64) -> Result<Vec<u8>, Failure> {
    let unreadable = |error: std::io::Error| Failure::usage(format!("cannot read {file}: {error}"));
    let mut content = Vec::new();
    let read = if file == "-" {
        std::io::stdin().lock().take(limit_bytes + 1).read_to_end(&mut content)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(limit_bytes + 1).read_to_end(&mut content))
    };
    read.map_err(unreadable)?;
    if content.len() as u64 > limit_bytes {
        return Err(Failure::new(Kind::Refused, format!("{file} has more than the {limit_bytes} bytes that are kept"))
            .with_hint("put large things where every node can reach them, and save the place"));
    }
    Ok(content)
}

async fn post(node: &Node, kind: &str, body: Vec<u8>) -> Outcome {
    let unreachable = |error: reqwest::Error| {
        Failure::new(Kind::Unreachable, format!("the node that runs this job does not answer: {error}"))
    };
    // The node is on this machine: no proxy that the environment may name is asked.
    let client = reqwest::Client::builder().no_proxy().timeout(ANSWER_WITHIN).build().map_err(unreachable)?;
    let request = client.post(format!("{}?kind={kind}", node.url)).bearer_auth(&node.token).body(body);
    let response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    let text = response.text().await.map_err(unreachable)?;
    let answer: Answer = serde_json::from_str(&text).unwrap_or_default();
    if !status.is_success() {
        let kind = match status.as_u16() {
            503 | 507 => Kind::Unreachable,
            500 => Kind::Internal,
            _ => Kind::Refused,
        };
        let (message, hint) = match answer.error {
            Some(Refusal { message, hint }) => (message, hint),
            None => (format!("the node answered {status}"), None),
        };
        return Err(Failure { hint, ..Failure::new(kind, message) });
    }
    if let (Some(stored), Some(wanted)) = (answer.stored, answer.wanted)
        && stored < wanted
    {
        note(&format!("saved on {stored} of {wanted} nodes: the others did not answer in time"));
        return Ok(exit::LESS_DURABLE);
    }
    Ok(exit::SUCCESS)
}
