//! `flockwork up`: a cluster of real node processes on this machine, for as long as it runs.
//!
//! What one would do by hand in three terminals, with the ports chosen and the addresses passed on. Nothing is
//! restarted by itself: a node that dies is reported with the command that brings it back, because watching a
//! cluster lose a node is what people start one here for.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use futures_util::FutureExt;
use futures_util::future::{join_all, select_all};
use serde_json::json;

use super::Session;
use super::failure::{Failure, Kind, Outcome, exit};
use super::folder::Folder;
use super::process::{Launch, NodeProcess, shell_command};
use super::render::{OutputForm, note};
use super::signals::Interrupts;
use super::state::LocalCluster;

/// How long a node may take to leave before it is killed.
const LEAVE_WITHIN: Duration = Duration::from_secs(15);

/// `flockwork up`.
#[derive(Debug, Clone, Args)]
pub(crate) struct UpArgs {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    nodes: u16,
    /// Keep the cluster's data here, and go on with what is there [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How many jobs each node runs side by side [default: what the machine has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    slots: Option<u32>,
    /// Let the nodes be told to pretend faults: see `flockwork cut`
    #[arg(long)]
    enable_fault_injection: bool,
}

pub(crate) async fn up(session: &Session, args: &UpArgs) -> Outcome {
    let mut interrupts = Interrupts::listen()?;
    let folder = match &args.dir {
        Some(dir) => Folder::kept(dir)?,
        None => Folder::temporary("up")?,
    };
    let launches = (1..=args.nodes).map(|number| Launch {
        name: format!("node-{number}"),
        dir: folder.path().join(format!("node-{number}")),
        listen: None,
        http: None,
        seed: None,
        slots: args.slots,
        pretends_faults: args.enable_fault_injection,
    });
    let mut nodes = tokio::select! {
        started = start_cluster(launches.collect()) => started?,
        () = interrupts.next() => return Ok(exit::CANCELLED),
    };
    let pid = i32::try_from(std::process::id()).map_err(|_| Failure::internal("this process has no usable id"))?;
    let addresses: Vec<String> = nodes.iter().map(|node| node.announcement.http_addr.clone()).collect();
    let note_for_others = LocalCluster { pid, addresses, dir: folder.path().to_owned() };
    if let Err(error) = session.state.write_local_cluster(&note_for_others) {
        note(&format!("other commands will not find this cluster by themselves: {error}"));
    }
    let shown = introduce(session, &nodes, &folder, args.enable_fault_injection);
    let outcome = match shown {
        Ok(()) => watch_over(&mut nodes, &mut interrupts).await,
        Err(failure) => Err(failure),
    };
    session.state.forget_local_cluster(pid);
    note("stopping the nodes; Ctrl-C again ends them at once");
    tokio::select! {
        () = stop_all(&mut nodes) => {}
        () = interrupts.next() => {
            for node in &mut nodes {
                // Whatever is left of it ends with this process.
                let _ = node.kill().await;
            }
        }
    }
    outcome
}

/// Starts the nodes: the first founds the cluster, the others are given its address.
pub(crate) async fn start_cluster(launches: Vec<Launch>) -> Result<Vec<NodeProcess>, Failure> {
    let mut launches = launches.into_iter();
    let Some(first) = launches.next() else { return Ok(Vec::new()) };
    let first = NodeProcess::start(first).await?;
    let seed = first.announcement.cluster_addr.clone();
    let others = launches.map(|launch| NodeProcess::start(Launch { seed: Some(seed.clone()), ..launch }));
    let mut nodes = vec![first];
    for started in join_all(others).await {
        nodes.push(started?);
    }
    Ok(nodes)
}

/// Lets all nodes leave at the same time.
pub(crate) async fn stop_all(nodes: &mut [NodeProcess]) {
    let stops = nodes.iter_mut().map(async |node| {
        if let Err(error) = node.stop(LEAVE_WITHIN).await {
            note(&format!("{} could not be stopped: {error}", node.name()));
        }
    });
    join_all(stops).await;
}

fn introduce(session: &Session, nodes: &[NodeProcess], folder: &Folder, pretends_faults: bool) -> Result<(), Failure> {
    let printer = session.printer;
    let addresses: Vec<&str> = nodes.iter().map(|node| node.announcement.http_addr.as_str()).collect();
    match printer.form {
        OutputForm::Json | OutputForm::Jsonl => {
            let announcements: Vec<_> = nodes.iter().map(|node| &node.announcement).collect();
            return Ok(printer.line(&json!({"nodes": announcements, "dir": folder.path()}).to_string())?);
        }
        OutputForm::Id => {
            for node in nodes {
                printer.line(&node.announcement.node)?;
            }
            return Ok(());
        }
        OutputForm::Table | OutputForm::Wide => {}
    }
    let rows = nodes.iter().map(|node| {
        let told = &node.announcement;
        vec![
            told.name.clone(),
            told.node.clone(),
            format!("http://{}", told.http_addr),
            told.cluster_addr.clone(),
            told.pid.to_string(),
            node.log().display().to_string(),
        ]
    });
    printer.table(&["NODE", "ID", "HTTP", "CLUSTER", "PID", "LOG"], rows.collect())?;
    let kept = if folder.is_kept() { "kept" } else { "removed at the end; --dir keeps it" };
    printer.line(&format!(
        "\nData in {} ({kept})\n\n\
         Open one of the addresses in a browser, or in another terminal:\n\n  \
         export FLOCKWORK_ADDR={}\n  \
         flockwork run -- echo hello        # submit, follow, exit as the job did\n  \
         flockwork submit -- sleep 30       # print the id and go on\n  \
         flockwork ps                       # all jobs, from any node\n  \
         flockwork debug --watch            # do the nodes agree?\n  \
         {:<35}# lose a node, and see its jobs go on elsewhere\n{}\n\
         Ctrl-C stops all nodes.",
        folder.path().display(),
        addresses.join(","),
        nodes.last().map(|node| format!("kill -9 {}", node.announcement.pid)).unwrap_or_default(),
        if pretends_faults {
            "  flockwork cut node-1               # from the others; `flockwork heal` ends it\n"
        } else {
            ""
        },
    ))?;
    Ok(())
}

/// Reports every node that ends, until somebody asks to stop or no node is left.
async fn watch_over(nodes: &mut [NodeProcess], interrupts: &mut Interrupts) -> Outcome {
    let mut alive: Vec<usize> = (0..nodes.len()).collect();
    loop {
        let seed = alive.last().and_then(|at| nodes.get(*at)).map(|node| node.announcement.cluster_addr.clone());
        let ends: Vec<_> = nodes
            .iter_mut()
            .enumerate()
            .filter(|(at, _)| alive.contains(at))
            .map(|(at, node)| async move { (at, node.ended().await) }.boxed())
            .collect();
        if ends.is_empty() {
            return Err(Failure::new(Kind::Failed, "no node is left"));
        }
        let (at, end) = tokio::select! {
            ((at, end), _, _) = select_all(ends) => (at, end),
            () = interrupts.next() => return Ok(exit::SUCCESS),
        };
        alive.retain(|known| *known != at);
        let Some(node) = nodes.get(at) else { continue };
        let how = match end {
            Ok(status) => status.to_string(),
            Err(error) => format!("how is not known: {error}"),
        };
        note(&format!("{} ended ({how}); its log: {}", node.name(), node.log().display()));
        let seed = seed.filter(|seed| *seed != node.announcement.cluster_addr);
        note(&format!("to bring it back: {}", shell_command(&node.relaunch(seed.as_deref()))));
    }
}
