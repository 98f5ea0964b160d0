//! A node's life as a process: open, serve, say so, leave when asked.
//!
//! The HTTP listener is bound first, so that the node can tell its peers where clients find it, and answers
//! (503) while the node is still looking for the others. The first SIGTERM or Ctrl-C is a request to leave
//! properly; the second means at once.

use std::time::Duration;

use flockwork::api::{self, ApiConfig};
use flockwork::io::executor::{GuardProgram, Handlers};
use flockwork::io::faults::Faults;
use flockwork::io::machine::Machine;
use flockwork::io::telemetry;
use flockwork::node::Node;
use flockwork::node::handle::Handle;
use flockwork::node::options::NodeOptions;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Session;
use super::failure::{Failure, Kind, Outcome, exit};
use super::node::{NodeArgs, NodePlan};
use super::process::Announcement;
use super::render::{OutputForm, note};
use super::signals::Interrupts;

/// How long the HTTP side may take to finish after the node has left.
const LAST_ANSWERS_WITHIN: Duration = Duration::from_secs(6);

pub(crate) async fn serve(session: &Session, plan: &NodePlan, args: &NodeArgs) -> Outcome {
    telemetry::init(args.log_format).map_err(|error| Failure::usage(error.to_string()))?;
    let mut asked_to_leave = Farewell::listen(args.until_stdin_closes)?;
    std::fs::create_dir_all(&plan.data_dir.value)
        .map_err(|error| failed(format!("cannot make {}: {error}", plan.data_dir.value.display())))?;
    let listener = TcpListener::bind(plan.http.value)
        .await
        .map_err(|error| failed(format!("cannot listen for clients on {}: {error}", plan.http.value)))?;
    let bound = listener.local_addr().map_err(|error| failed(format!("the listener has no address: {error}")))?;
    let machine = Machine::new(&plan.data_dir.value);
    let faults = if args.enable_fault_injection { Faults::armed() } else { Faults::disarmed() };
    let options = NodeOptions { faults: faults.clone(), ..plan.options(machine.capacity(), bound)? };
    let data_dir = options.data_dir.clone();
    let started = Node::start(options, Handlers::new(), GuardProgram::ThisProgram).await;
    let node = started.map_err(|error| failed(format!("the node cannot start: {error}")))?;
    let handle = node.handle();
    let stop = CancellationToken::new();
    let config = ApiConfig { allowed_hosts: plan.allow_hosts.value.clone(), faults, ..ApiConfig::default() };
    let mut serving = tokio::spawn(api::serve(listener, handle.clone(), config, stop.clone()));
    let ended = tokio::select! {
        ended = live(session, &handle, &data_dir) => ended,
        why = node.stopped() => Err(failed(format!("the node stopped: {why}"))),
        ended = &mut serving => Err(failed(format!("the HTTP side stopped: {ended:?}"))),
        () = asked_to_leave.heard() => Ok(()),
    };
    if ended.is_ok() {
        note("leaving; Ctrl-C again ends it at once");
        tokio::select! {
            _ = node.shut_down() => {}
            () = asked_to_leave.heard() => return Ok(exit::CANCELLED),
        }
    }
    stop.cancel();
    // What still hangs on a connection after this is cut off with the process.
    let _ = tokio::time::timeout(LAST_ANSWERS_WITHIN, serving).await;
    ended.map(|()| exit::SUCCESS)
}

fn failed(message: String) -> Failure {
    Failure::new(Kind::Failed, message)
}

/// Announces the node as soon as it serves, and then never ends.
async fn live(session: &Session, handle: &Handle, data_dir: &std::path::Path) -> Result<(), Failure> {
    let mut snapshots = handle.snapshots();
    let ready = snapshots.wait_for(|snapshot| snapshot.not_ready.is_none()).await;
    let Some(facts) = ready.ok().map(|snapshot| snapshot.facts.clone()) else {
        // The driver is gone; its own end says why.
        return std::future::pending().await;
    };
    let announcement = Announcement {
        node: facts.node.to_string(),
        name: facts.name,
        cluster_addr: facts.cluster_addr.to_string(),
        http_addr: facts.http_addr.to_string(),
        pid: std::process::id(),
    };
    match session.printer.form {
        OutputForm::Json | OutputForm::Jsonl => session.printer.line(&serde_json::to_string(&announcement)?)?,
        OutputForm::Id => session.printer.line(&announcement.node)?,
        OutputForm::Table | OutputForm::Wide => session.printer.line(&format!(
            "node     {} ({})\ncluster  {}\nhttp     http://{}\npid      {}\ndata     {}\nready",
            announcement.name,
            announcement.node,
            announcement.cluster_addr,
            announcement.http_addr,
            announcement.pid,
            data_dir.display(),
        ))?,
    }
    std::future::pending().await
}

/// Everything that asks a node to leave.
struct Farewell {
    interrupts: Interrupts,
    stdin_closed: Option<tokio::sync::oneshot::Receiver<()>>,
}

impl Farewell {
    fn listen(until_stdin_closes: bool) -> Result<Self, Failure> {
        Ok(Self { interrupts: Interrupts::listen()?, stdin_closed: until_stdin_closes.then(stdin_closed) })
    }

    /// Once for each request to leave.
    async fn heard(&mut self) {
        let closed = async {
            match &mut self.stdin_closed {
                Some(closed) => drop(closed.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.interrupts.next() => return,
            () = closed => {}
        }
        self.stdin_closed = None;
    }
}

/// Tells when standard input comes to its end. A thread of its own, for such a read cannot be called off.
fn stdin_closed() -> tokio::sync::oneshot::Receiver<()> {
    let (closed, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        // Nobody may be left to tell.
        let _ = closed.send(());
    });
    told
}
