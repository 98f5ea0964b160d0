//! `flockwork cut` and `flockwork heal`: a network that is cut in two, without touching one.
//!
//! Every node is told to drop what it would send to the other side, and what it has from there. So it looks to them as
//! it would with the cable out, while people still reach all of them. Nodes refuse unless they were started with
//! `--enable-fault-injection`; then nothing is changed anywhere.
//!
//! Whoever is asked may itself have been cut off from the others, and take them for dead. So everybody that it has not seen
//! leave is asked, and only the dead are allowed to keep silent.

use std::collections::BTreeSet;

use clap::Args;
use futures_util::future::{join_all, try_join_all};
use serde_json::{Value, json};

use super::Session;
use super::client::{Client, Repeat, Request};
use super::failure::{Failure, Kind, Outcome, exit};
use super::nodes::{Node, among, members};
use super::render::{OutputForm, printable};

const FAULTS: &str = "/debug/faults";

/// `flockwork cut`.
#[derive(Debug, Clone, Args)]
pub(crate) struct CutArgs {
    /// The nodes of one side, by id or name; all others are the other side
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
}

/// `flockwork heal`.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct HealArgs {}

pub(crate) async fn cut(session: &Session, args: &CutArgs) -> Outcome {
    let pretenders = pretenders(session).await?;
    let nodes: Vec<Node> = pretenders.iter().map(|pretender| pretender.node.clone()).collect();
    let named: BTreeSet<&str> =
        args.nodes.iter().map(|text| Ok(among(&nodes, text)?.id.as_str())).collect::<Result<_, Failure>>()?;
    let (here, there): (Vec<&Node>, Vec<&Node>) = nodes.iter().partition(|node| named.contains(node.id.as_str()));
    if there.is_empty() {
        return Err(Failure::usage("these are all nodes: there is nobody to cut them off from")
            .with_hint("name the nodes of one side; all others are the other"));
    }
    let told = pretenders.iter().map(|pretender| {
        let is_here = named.contains(pretender.node.id.as_str());
        pretender.drop_all_of(if is_here { &there } else { &here })
    });
    try_join_all(told).await.map_err(half_done)?;
    let printer = session.printer;
    match printer.form {
        OutputForm::Table | OutputForm::Wide => printer.line(&format!(
            "cut in two: {}\n       and: {}\n\n\
             To talk to one side:    --addr {}\n\
             To talk to the other:   --addr {}\n\
             To join them again:     flockwork heal",
            names(&here),
            names(&there),
            addresses(&here),
            addresses(&there),
        ))?,
        OutputForm::Json | OutputForm::Jsonl => printer.json(&json!({"sides": [brief(&here), brief(&there)]}))?,
        OutputForm::Id => here.iter().try_for_each(|node| printer.line(&node.id))?,
    }
    Ok(exit::SUCCESS)
}

pub(crate) async fn heal(session: &Session, _: HealArgs) -> Outcome {
    let pretenders = pretenders(session).await?;
    try_join_all(pretenders.iter().map(|pretender| pretender.drop_all_of(&[]))).await.map_err(half_done)?;
    let printer = session.printer;
    let nodes: Vec<&Node> = pretenders.iter().map(|pretender| &pretender.node).collect();
    match printer.form {
        OutputForm::Table | OutputForm::Wide => printer.line(&format!(
            "nothing is cut any more between {}\n\n\
             Do they agree?                   flockwork debug --watch\n\
             What became of it, on one page:  flockwork merges",
            names(&nodes)
        ))?,
        OutputForm::Json | OutputForm::Jsonl => printer.json(&json!({"healed": brief(&nodes)}))?,
        OutputForm::Id => nodes.iter().try_for_each(|node| printer.line(&node.id))?,
    }
    Ok(exit::SUCCESS)
}

/// A node that pretends faults when it is told to.
#[derive(Debug)]
struct Pretender {
    node: Node,
    /// A client of it alone.
    itself: Client,
    /// What it pretends now, in its own words.
    plan: Value,
}

impl Pretender {
    /// Nothing if it is dead, as was said.
    async fn find(node: Node) -> Result<Option<Self>, Failure> {
        let itself = Client::new(std::slice::from_ref(&node.addresses.http))?;
        match itself.ask(&Request::get(FAULTS)).await {
            Ok(answer) => Ok(Some(Self { node, itself, plan: answer.body })),
            Err(failure) if failure.kind == Kind::Unreachable && node.state == "down" => Ok(None),
            Err(failure) => {
                Err(Failure { message: format!("{}: {}", printable(&node.name), failure.message), ..failure })
            }
        }
    }

    /// Drops what passes between it and these, and between it and nobody else; whatever else it pretends stays.
    async fn drop_all_of(&self, others: &[&Node]) -> Result<(), Failure> {
        let others: Vec<&str> = others.iter().map(|node| node.addresses.cluster.as_str()).collect();
        let mut plan = self.plan.clone();
        plan["drop_to"] = json!(others);
        plan["drop_from"] = json!(others);
        self.itself.ask(&Request::post(FAULTS, Repeat::Freely).json(&plan)).await.map(drop)
    }
}

/// All nodes that are there, by name, as long as each of them can be told to pretend faults.
async fn pretenders(session: &Session) -> Result<Vec<Pretender>, Failure> {
    let mut nodes = members(&session.client()?).await?;
    nodes.retain(|node| node.state != "left");
    nodes.sort_by(|one, other| one.name.cmp(&other.name));
    let found = join_all(nodes.into_iter().map(Pretender::find)).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(found.into_iter().flatten().collect())
}

fn half_done(failure: Failure) -> Failure {
    failure.with_hint("some nodes may have been told: `flockwork heal` makes an end of it")
}

fn names(nodes: &[&Node]) -> String {
    nodes.iter().map(|node| printable(&node.name)).collect::<Vec<_>>().join(", ")
}

fn addresses(nodes: &[&Node]) -> String {
    nodes.iter().map(|node| node.addresses.http.as_str()).collect::<Vec<_>>().join(",")
}

fn brief(nodes: &[&Node]) -> Value {
    let one = |node: &&Node| json!({"id": node.id, "name": node.name, "http": node.addresses.http});
    nodes.iter().map(one).collect()
}
