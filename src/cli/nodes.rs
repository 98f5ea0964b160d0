//! Looking at the cluster itself: `nodes`, `impact`, `drain`, `undrain`, `forget`, `debug`.
//!
//! Every node has its own view, and the views differ for a moment after every change. `nodes` shows that of
//! whichever node answers; `debug` shows how far that node is from agreement with the others.

mod impact;
mod membership;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use flockwork::model::resources::Memory;
use flockwork::model::time::{Timestamp, duration};
use serde::Deserialize;
use serde_json::Value;

use super::Session;
use super::client::{Client, Repeat, Request};
use super::failure::{Failure, Kind, Outcome, exit};
use super::render::{OutputForm, Tone, note, now, printable, shortened, span};

/// `flockwork nodes`.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct NodesArgs {}

/// A command about one node.
#[derive(Debug, Clone, Args)]
pub(crate) struct OneNode {
    /// The node, by id or name
    #[arg(value_name = "NODE")]
    node: String,
}

/// `flockwork drain`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    node: OneNode,
    /// How long to wait at the most
    #[arg(long, value_name = "TIME", value_parser = duration::parse, conflicts_with = "no_wait")]
    deadline: Option<Duration>,
    /// Do not wait until it has drained
    #[arg(long)]
    no_wait: bool,
}

/// How often a draining node is asked how far it is.
const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(300);

/// `flockwork debug`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DebugArgs {
    /// Look again and again, until Ctrl-C
    #[arg(short, long)]
    watch: bool,
    /// How often
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "1s", requires = "watch")]
    interval: Duration,
}

/// A node, as its peers see it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Node {
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) addresses: Addresses,
    #[serde(default)]
    status: String,
    #[serde(default)]
    slots: Slots,
    #[serde(default)]
    backlog: u32,
    #[serde(default)]
    load: Load,
    #[serde(default)]
    capacity: Resources,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    version: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Addresses {
    #[serde(default)]
    pub(crate) cluster: String,
    #[serde(default)]
    pub(crate) http: String,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct Slots {
    total: u32,
    used: u32,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct Load {
    cpu: f64,
    used: Resources,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct Resources {
    cpus: f64,
    memory: Memory,
}

#[derive(Debug, Deserialize)]
struct NodeList {
    nodes: Vec<Value>,
}

/// All members as one node sees them, each with the node's own words.
async fn list(client: &Client) -> Result<Vec<(Node, Value)>, Failure> {
    let list: NodeList = client.read(&Request::get("/v1/nodes")).await?;
    let read = |raw: Value| Ok((serde_json::from_value(raw.clone())?, raw));
    list.nodes.into_iter().map(read).collect()
}

/// All members as one node sees them.
pub(crate) async fn members(client: &Client) -> Result<Vec<Node>, Failure> {
    Ok(list(client).await?.into_iter().map(|(node, _)| node).collect())
}

pub(crate) async fn nodes(session: &Session, _: &NodesArgs) -> Outcome {
    let client = session.client()?;
    let nodes = list(&client).await?;
    let printer = session.printer;
    match printer.form {
        OutputForm::Json => printer.json(&Value::Array(nodes.into_iter().map(|(_, raw)| raw).collect()))?,
        OutputForm::Jsonl => {
            for (_, raw) in &nodes {
                printer.json(raw)?;
            }
        }
        OutputForm::Id => {
            for (node, _) in &nodes {
                printer.line(&node.id)?;
            }
        }
        OutputForm::Table => {
            let rows = nodes.iter().map(|(node, _)| {
                let labels: Vec<String> = node.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
                vec![
                    printable(&node.name).into_owned(),
                    node.id.clone(),
                    printer.paint(&node.state, Tone::of_node(&node.state)),
                    node.status.clone(),
                    format!("{}/{}", node.slots.used, node.slots.total),
                    format!("{}/{}", node.load.used.cpus, node.capacity.cpus),
                    format!("{}/{}", node.load.used.memory.rounded(), node.capacity.memory.rounded()),
                    node.backlog.to_string(),
                    format!("{:.0}%", node.load.cpu * 100.0),
                    node.addresses.http.clone(),
                    shortened(&labels.join(","), 40),
                    printable(&node.version).into_owned(),
                ]
            });
            let header = [
                "NAME", "ID", "STATE", "STATUS", "SLOTS", "CPUS", "MEMORY", "BACKLOG", "LOAD", "HTTP", "LABELS",
                "VERSION",
            ];
            printer.table(&header, rows.collect())?;
        }
        OutputForm::Wide => {
            let told: membership::Told = client.read(&Request::get("/debug/members")).await?;
            printer.line(&membership::drawn(printer, &told, now()))?;
        }
    }
    Ok(exit::SUCCESS)
}

/// How far a node has drained, in its own words.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Drained {
    done: bool,
    running: u64,
    to_hand_over: u64,
    partitions: u64,
}

impl Drained {
    fn in_words(&self) -> String {
        let mut left = Vec::new();
        if self.running > 0 {
            left.push(format!("{} still running", self.running));
        }
        if self.to_hand_over > 0 {
            left.push(format!("{} records to hand over", self.to_hand_over));
        }
        if self.partitions > 0 {
            left.push(format!("no other node takes {} of its partitions", self.partitions));
        }
        if left.is_empty() { "nothing is left".to_owned() } else { left.join(", ") }
    }
}

/// Lets a node drain, and waits until it says that all is handed over.
pub(crate) async fn drain(session: &Session, args: &DrainArgs) -> Outcome {
    let (node, itself) = find(session, &args.node.node).await?;
    let path = format!("/v1/nodes/{}/drain", node.id);
    let answer = itself.ask(&Request::post(path.clone(), Repeat::Freely)).await?;
    let name = printable(&node.name);
    if !args.no_wait {
        let until = args.deadline.map(|deadline| tokio::time::Instant::now() + deadline);
        let mut told = Drained::default();
        loop {
            let now: Drained = itself.read(&Request::get(path.clone())).await?;
            if now.done {
                break;
            }
            if now != told {
                note(&format!("{name} drains: {}", now.in_words()));
            }
            if until.is_some_and(|until| until <= tokio::time::Instant::now()) {
                return Err(Failure::new(Kind::Failed, format!("{name} has not drained in time: {}", now.in_words()))
                    .with_hint("it goes on draining; `flockwork undrain` ends that"));
            }
            told = now;
            tokio::time::sleep(DRAIN_LOOK_EVERY).await;
        }
    }
    match session.printer.form {
        OutputForm::Table | OutputForm::Wide if args.no_wait => {
            session.printer.line(&format!("{name} drains: it finishes what it runs, and takes nothing new"))?;
        }
        OutputForm::Table | OutputForm::Wide => {
            session
                .printer
                .line(&format!("{name} is drained: nothing runs there, and others have all that it kept"))?;
        }
        OutputForm::Json | OutputForm::Jsonl => session.printer.json(&answer.body)?,
        OutputForm::Id => session.printer.line(&node.id)?,
    }
    Ok(exit::SUCCESS)
}

pub(crate) async fn undrain(session: &Session, args: &OneNode) -> Outcome {
    let (node, itself) = find(session, &args.node).await?;
    let answer = itself.ask(&Request::delete(format!("/v1/nodes/{}/drain", node.id), Repeat::Freely)).await?;
    match session.printer.form {
        OutputForm::Table | OutputForm::Wide => {
            session.printer.line(&format!("{} serves again", printable(&node.name)))?;
        }
        OutputForm::Json | OutputForm::Jsonl => session.printer.json(&answer.body)?,
        OutputForm::Id => session.printer.line(&node.id)?,
    }
    Ok(exit::SUCCESS)
}

/// What would happen if the node went now.
pub(crate) async fn impact(session: &Session, args: &OneNode) -> Outcome {
    let client = session.client()?;
    let node = named(&client, &args.node).await?;
    let answer = client.ask(&Request::get(format!("/v1/nodes/{}/impact", node.id))).await?;
    match session.printer.form {
        OutputForm::Table | OutputForm::Wide => impact::draw(session.printer, &answer.read()?)?,
        OutputForm::Json | OutputForm::Jsonl => session.printer.json(&answer.body)?,
        OutputForm::Id => session.printer.line(&node.id)?,
    }
    Ok(exit::SUCCESS)
}

/// Has a node forgotten that is down for good.
pub(crate) async fn forget(session: &Session, args: &OneNode) -> Outcome {
    let client = session.client()?;
    let node = named(&client, &args.node).await?;
    let answer = client.ask(&Request::delete(format!("/v1/nodes/{}", node.id), Repeat::OnlyIfUnsent)).await?;
    match session.printer.form {
        OutputForm::Table | OutputForm::Wide => {
            let name = printable(&node.name);
            session.printer.line(&format!("{name} is forgotten: what it kept belongs to others now"))?;
        }
        OutputForm::Json | OutputForm::Jsonl => session.printer.json(&answer.body)?,
        OutputForm::Id => session.printer.line(&node.id)?,
    }
    Ok(exit::SUCCESS)
}

/// The node that `text` names, and a client of it alone: a node drains only when it is asked itself.
async fn find(session: &Session, text: &str) -> Result<(Node, Client), Failure> {
    let node = named(&session.client()?, text).await?;
    let itself = Client::new(std::slice::from_ref(&node.addresses.http))?;
    Ok((node, itself))
}

/// The node that `text` names.
async fn named(client: &Client, text: &str) -> Result<Node, Failure> {
    among(&members(client).await?, text).cloned()
}

/// The one of the nodes that `text` names.
pub(crate) fn among<'a>(nodes: &'a [Node], text: &str) -> Result<&'a Node, Failure> {
    let mut named = nodes.iter().filter(|node| node.id == text || node.name == text);
    let Some(node) = named.next() else {
        return Err(Failure::new(Kind::NotFound, format!("no node has the id or name `{text}`"))
            .with_hint("`flockwork nodes` lists them"));
    };
    let others: Vec<&str> = named.map(|node| node.id.as_str()).collect();
    if !others.is_empty() {
        return Err(Failure::usage(format!("several nodes are called {text}: {}, {}", node.id, others.join(", ")))
            .with_hint("name one by its id"));
    }
    Ok(node)
}

/// How far a node is from agreement with the others.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Convergence {
    pub(crate) converged: bool,
    #[serde(default)]
    since: Option<Timestamp>,
    #[serde(default)]
    node: String,
    #[serde(default)]
    pub(crate) members: BTreeMap<String, MemberView>,
    #[serde(default)]
    ring: Ring,
    #[serde(default)]
    partitions: Partitions,
    #[serde(default)]
    strays: u32,
    #[serde(default)]
    moving: Option<Moving>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Moving {
    since: Option<Timestamp>,
    records_left: u64,
    records: u64,
    records_per_second: f64,
    partitions_left: u32,
    partitions: u32,
}

impl Moving {
    fn in_words(&self) -> String {
        let Self { records_left, records, records_per_second, partitions_left, partitions, .. } = self;
        let pace = if *records > 0 { format!(", {records_per_second:.0} a second") } else { String::new() };
        let since = self.since.map(|at| format!(", for {}", span(now().since(at)))).unwrap_or_default();
        format!("{records_left} of {records} records left{pace}; {partitions_left} of {partitions} partitions{since}")
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct MemberView {
    name: String,
    pub(crate) state: String,
    status: String,
    since: Option<Timestamp>,
    generation: u64,
    incarnation: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Ring {
    agree: bool,
    own: String,
    fingerprints: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Partitions {
    total: u32,
    in_sync: u32,
    behind: Vec<u32>,
}

/// Where convergence is read.
pub(crate) fn convergence_request() -> Request {
    Request::get("/debug/convergence")
}

pub(crate) async fn debug(session: &Session, args: &DebugArgs) -> Outcome {
    let mut client = session.client()?;
    if args.watch {
        client = client.persistent();
    }
    let on_screen = args.watch && std::io::stdout().is_terminal();
    loop {
        let answer = client.ask(&convergence_request()).await?;
        let convergence: Convergence = answer.read()?;
        match session.printer.form {
            OutputForm::Table | OutputForm::Wide => {
                let picture = draw(session, &convergence);
                // Clear the screen, and begin at its top.
                let clear = if on_screen { "\x1b[2J\x1b[H" } else { "" };
                session.printer.line(&format!("{clear}{picture}"))?;
                if args.watch && !on_screen {
                    session.printer.line("")?;
                }
            }
            OutputForm::Json | OutputForm::Jsonl => session.printer.json(&answer.body)?,
            OutputForm::Id => session.printer.line(&convergence.node)?,
        }
        if !args.watch {
            return Ok(if convergence.converged { exit::SUCCESS } else { exit::FAILED });
        }
        tokio::time::sleep(args.interval.max(Duration::from_millis(100))).await;
    }
}

fn draw(session: &Session, seen: &Convergence) -> String {
    let printer = session.printer;
    let ago = |at: Option<Timestamp>| at.map(|at| span(now().since(at))).unwrap_or_default();
    let judged = |good: bool, yes: &str, no: &str| {
        if good { printer.paint(yes, Tone::Good) } else { printer.paint(no, Tone::Bad) }
    };
    let seer = seen.members.get(&seen.node).map_or(seen.node.as_str(), |member| member.name.as_str());
    let behind: Vec<String> = seen.partitions.behind.iter().take(16).map(u32::to_string).collect();
    let more = if seen.partitions.behind.len() > behind.len() { ", …" } else { "" };
    let lines = [
        format!("converged   {} for {}", judged(seen.converged, "yes", "no"), ago(seen.since)),
        format!("seen by     {} ({})", printable(seer), seen.node),
        format!("ring        {} {}", judged(seen.ring.agree, "all agree on", "not all agree with"), seen.ring.own),
        format!("partitions  {} of {} in sync", seen.partitions.in_sync, seen.partitions.total),
        format!("behind      {}{more}", if behind.is_empty() { "none".to_owned() } else { behind.join(", ") }),
        format!("strays      {}", seen.strays),
        format!("moving      {}", seen.moving.as_ref().map_or_else(|| "nothing".to_owned(), Moving::in_words)),
    ];
    let rows = seen.members.iter().map(|(id, member)| {
        let ring = match seen.ring.fingerprints.get(id) {
            Some(theirs) if *theirs == seen.ring.own => "same".to_owned(),
            Some(theirs) => printer.paint(theirs, Tone::Bad),
            None => String::new(),
        };
        vec![
            printable(&member.name).into_owned(),
            id.clone(),
            printer.paint(&member.state, Tone::of_node(&member.state)),
            member.status.clone(),
            ago(member.since),
            member.generation.to_string(),
            member.incarnation.to_string(),
            ring,
        ]
    });
    let header = ["MEMBER", "ID", "STATE", "STATUS", "FOR", "GENERATION", "INCARNATION", "RING"];
    format!("{}\n\n{}", lines.join("\n"), printer.drawn(&header, rows.collect()))
}
