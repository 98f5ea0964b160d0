//! `flockwork demo`: what flockwork promises, shown with real processes in under a minute.
//!
//! Three nodes are started, real jobs are handed to each of them in turn, and in the middle of it one node is
//! killed as a power failure would. What it ran is run elsewhere; what it had done stays done. At the end every
//! output is compared with what it must be, and a ledger that the jobs wrote themselves, past flockwork, is
//! compared with what flockwork says. The exit code is 0 only if nothing was lost and every output is right.
//!
//! Nothing here is staged: the demo only does what a person at a shell could do with the same commands.

mod picture;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::Args;
use flockwork::model::attempt::Phase;
use flockwork::model::record::JobState;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use self::picture::{Picture, Scene};
use self::work::Work;
use super::Session;
use super::answers::{Job, JobsPage, Submitted};
use super::client::{Client, Repeat, Request, random_key};
use super::failure::{Failure, Kind, Outcome, exit};
use super::folder::Folder;
use super::local_cluster::{start_cluster, stop_all};
use super::nodes::{Convergence, convergence_request, members};
use super::process::{Launch, NodeProcess};
use super::render::{OutputForm, Printer, Tone, note, span};
use super::signals::Interrupts;

const NODES: usize = 3;

/// How many jobs each node runs side by side: enough to be quick, few enough to see some wait.
const SLOTS: u32 = 4;

/// How often the demo looks.
const LOOK_EVERY: Duration = Duration::from_millis(150);

/// How long the nodes may take to agree, at the start and after the killed one is back.
const AGREE_WITHIN: Duration = Duration::from_secs(30);

/// How much longer than the work itself the jobs may take, deaths included.
const PATIENCE: Duration = Duration::from_secs(45);

/// `flockwork demo`.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct DemoArgs {
    /// How many jobs
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u16).range(12..=1000))]
    jobs: u16,
}

/// Everything that must be cleaned up, whatever happens.
#[derive(Debug)]
struct Stage {
    nodes: Vec<NodeProcess>,
    folder: Folder,
}

pub(crate) async fn demo(session: &Session, args: &DemoArgs) -> Outcome {
    let mut interrupts = Interrupts::listen()?;
    let mut stage = Stage { nodes: Vec::new(), folder: Folder::temporary("demo")? };
    let told = tokio::select! {
        told = Story::tell(session.printer, &mut stage, args) => told.map(Some),
        () = interrupts.next() => {
            note("interrupted; everything that the demo started is being stopped");
            Ok(None)
        }
    };
    tokio::select! {
        () = stop_all(&mut stage.nodes) => {}
        () = interrupts.next() => {
            for node in &mut stage.nodes {
                if let Err(error) = node.kill().await {
                    note(&format!("{} could not be killed: {error}", node.name()));
                }
            }
        }
    }
    let Some(report) = told? else {
        return Ok(exit::CANCELLED);
    };
    match session.printer.form {
        OutputForm::Table | OutputForm::Wide => report.print(session.printer)?,
        OutputForm::Json | OutputForm::Jsonl => session.printer.json(&report.as_json())?,
        OutputForm::Id => {}
    }
    Ok(if report.is_good() { exit::SUCCESS } else { exit::FAILED })
}

/// What the demo found out.
#[derive(Debug)]
struct Report {
    acknowledged: usize,
    succeeded: usize,
    lost: usize,
    right: usize,
    interrupted: usize,
    completed_twice: usize,
    noticed_after: Duration,
    agreed_again_after: Duration,
    took: Duration,
    victim: String,
}

impl Report {
    fn is_good(&self) -> bool {
        self.lost == 0 && self.succeeded == self.acknowledged && self.right == self.acknowledged
    }

    fn as_json(&self) -> Value {
        json!({
            "acknowledged": self.acknowledged,
            "succeeded": self.succeeded,
            "lost": self.lost,
            "outputs_right": self.right,
            "interrupted": self.interrupted,
            "completed_twice": self.completed_twice,
            "killed": self.victim,
            "noticed_after_seconds": self.noticed_after.as_secs_f64(),
            "agreed_again_after_seconds": self.agreed_again_after.as_secs_f64(),
            "took_seconds": self.took.as_secs_f64(),
            "good": self.is_good(),
        })
    }

    fn print(&self, printer: Printer) -> Result<(), Failure> {
        let all = self.acknowledged;
        let good = |is: bool, text: String| printer.paint(&text, if is { Tone::Good } else { Tone::Bad });
        let rows = vec![
            ("jobs acknowledged", all.to_string()),
            ("succeeded", good(self.succeeded == all, self.succeeded.to_string())),
            ("outputs checked and right", good(self.right == all, self.right.to_string())),
            ("lost", good(self.lost == 0, self.lost.to_string())),
            ("interrupted, and run again elsewhere", self.interrupted.to_string()),
            ("ran to the end twice", self.completed_twice.to_string()),
            ("time until the others knew", span(self.noticed_after)),
            ("time until all agreed again, after its return", span(self.agreed_again_after)),
            ("whole demo", span(self.took)),
        ];
        let rows = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
        printer.line("")?;
        printer.table(&["", ""], rows)?;
        let statement = if self.is_good() {
            format!(
                "\nShown: {all} jobs were acknowledged by three nodes, {} was killed in the middle with kill -9,\n\
                 and not one of them was lost. No node is special: whichever dies, the others take over its jobs.\n\
                 A job that was interrupted runs again, so it may run twice: jobs should bear that.",
                self.victim
            )
        } else {
            "\nThe promise was not kept. Please report this, with the output of `flockwork demo -o json`.".to_owned()
        };
        Ok(printer.line(&statement)?)
    }
}

/// The demo while it goes on.
struct Story<'a> {
    stage: &'a mut Stage,
    /// Knows all nodes, and asks another when one is gone.
    anybody: Client,
    picture: Picture,
    names: Vec<String>,
    /// Every acknowledged job.
    works: BTreeMap<String, Work>,
    begun: Instant,
}

impl<'a> Story<'a> {
    async fn tell(printer: Printer, stage: &'a mut Stage, args: &DemoArgs) -> Result<Report, Failure> {
        let begun = Instant::now();
        let launches = (1..=NODES).map(|number| Launch {
            name: format!("node-{number}"),
            dir: stage.folder.path().join(format!("node-{number}")),
            listen: None,
            http: None,
            seed: None,
            slots: Some(SLOTS),
            pretends_faults: false,
        });
        let folder = stage.folder.path().display().to_string();
        stage.nodes = start_cluster(launches.collect()).await?;
        let names: Vec<String> = stage.nodes.iter().map(|node| node.name().to_owned()).collect();
        let addresses: Vec<String> = stage.nodes.iter().map(|node| node.announcement.http_addr.clone()).collect();
        let picture = Picture::new(printer, &names, usize::from(args.jobs));
        let anybody = Client::new(&addresses)?.persistent();
        let mut story = Self { stage, anybody, picture, names, works: BTreeMap::new(), begun };
        story.say(&format!("{NODES} nodes run as processes, with their data in {folder}"))?;
        story.wait_until_all_agree().await?;
        story.say("they know each other, and agree who looks after what")?;
        story.submit(usize::from(args.jobs)).await?;
        let (at, interrupted) = story.kill_one().await?;
        let victim = story.names.get(at).cloned().unwrap_or_default();
        let noticed_after = story.notice(at, &victim).await?;
        let jobs = story.finish_all().await?;
        let agreed_again_after = story.bring_back(at, &victim).await?;
        let report = story.check(&jobs, interrupted.len(), victim, noticed_after, agreed_again_after).await?;
        story.picture.finish();
        Ok(report)
    }

    fn say(&self, text: &str) -> Result<(), Failure> {
        Ok(self.picture.say(text)?)
    }

    /// Until every node says that it has converged, and sees all of them alive.
    async fn wait_until_all_agree(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + AGREE_WITHIN;
        for node in &self.stage.nodes {
            let client = Client::new(std::slice::from_ref(&node.announcement.http_addr))?;
            loop {
                let seen: Convergence = client.read(&convergence_request()).await?;
                let alive = seen.members.values().filter(|member| member.state == "alive").count();
                if seen.converged && alive == NODES {
                    break;
                }
                if Instant::now() >= deadline {
                    let agrees = if seen.converged { "agrees with them" } else { "does not agree with them" };
                    let message = format!("in time, {} sees {alive} of {NODES} alive and {agrees}", node.name());
                    return Err(Failure::new(Kind::Failed, message));
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }

    /// Hands the jobs to the nodes in turn, each to one node only.
    async fn submit(&mut self, count: usize) -> Result<(), Failure> {
        let ledgers = self.stage.folder.path().join("ledger");
        std::fs::create_dir(&ledgers)
            .map_err(|error| Failure::internal(format!("cannot make {}: {error}", ledgers.display())))?;
        let mut doors = Vec::new();
        for node in &self.stage.nodes {
            doors.push(Client::new(std::slice::from_ref(&node.announcement.http_addr))?);
        }
        let mut copies = 0;
        for (number, door) in (1..=count).zip(doors.iter().cycle()) {
            let work = Work::new(number, &ledgers);
            let mut spec = serde_json::to_value(work.spec())?;
            spec["key"] = Value::String(random_key());
            let request = Request::post("/v1/jobs", Repeat::Freely).json(&spec);
            let submitted: Submitted = door.read(&request).await?;
            let id = submitted.id.ok_or_else(|| Failure::internal("a submit was answered without an id"))?;
            copies += submitted.receipt.map_or(0, |receipt| receipt.stored);
            self.works.insert(id, work);
        }
        let mean = f64::from(copies) / count as f64;
        self.say(&format!("{count} jobs submitted, to each node in turn; each is on {mean:.1} disks on average"))
    }

    /// All of the demo's jobs, as whichever node answers knows them.
    async fn jobs(&self) -> Result<Vec<Job>, Failure> {
        let mut jobs = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let mut request = Request::get("/v1/jobs").query("limit", 500);
            if let Some(cursor) = cursor.take() {
                request = request.query("cursor", cursor);
            }
            let page: JobsPage = self.anybody.read(&request).await?;
            for raw in page.jobs {
                let job: Job = serde_json::from_value(raw)?;
                if self.works.contains_key(&job.id) {
                    jobs.push(job);
                }
            }
            match page.next_cursor {
                Some(next) => cursor = Some(next),
                None => return Ok(jobs),
            }
        }
    }

    async fn look(&mut self) -> Result<Vec<Job>, Failure> {
        let jobs = self.jobs().await?;
        let states: BTreeMap<String, String> =
            members(&self.anybody).await?.into_iter().map(|node| (node.name, node.state)).collect();
        self.picture.show(&Scene::of(jobs.iter()), &states)?;
        Ok(jobs)
    }

    /// Waits until a quarter is done, and kills the node that runs the most. Gives its place, and the jobs that
    /// it was running.
    async fn kill_one(&mut self) -> Result<(usize, BTreeSet<String>), Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let jobs = self.look().await?;
            let scene = Scene::of(jobs.iter());
            let busiest = self
                .names
                .iter()
                .enumerate()
                .max_by_key(|(_, name)| scene.nodes.get(*name).map_or(0, |(running, _)| *running));
            let enough = scene.succeeded * 4 >= self.works.len();
            if let Some((at, name)) = busiest
                && enough
                && scene.nodes.get(name).is_some_and(|(running, _)| *running > 0)
            {
                let on_it = |job: &&Job| {
                    job.state == JobState::Running && job.telling().is_some_and(|attempt| attempt.place() == name)
                };
                let interrupted: BTreeSet<String> = jobs.iter().filter(on_it).map(|job| job.id.clone()).collect();
                let titles: Vec<String> = jobs.iter().filter(on_it).map(Job::title).collect();
                let Some(node) = self.stage.nodes.get_mut(at) else { continue };
                let pid = node.announcement.pid;
                node.kill().await.map_err(|error| Failure::internal(format!("cannot kill {name}: {error}")))?;
                self.say(&format!("kill -9 {pid}: {name} is dead; it was running {}", titles.join(", ")))?;
                return Ok((at, interrupted));
            }
            if Instant::now() >= deadline {
                return Err(Failure::new(Kind::Failed, "the jobs make no progress"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Until every other node knows that the victim is down.
    async fn notice(&mut self, victim: usize, name: &str) -> Result<Duration, Failure> {
        let killed = Instant::now();
        let mut others = Vec::new();
        for (at, node) in self.stage.nodes.iter().enumerate() {
            if at != victim {
                others.push(Client::new(std::slice::from_ref(&node.announcement.http_addr))?);
            }
        }
        let mut know = 0;
        while know < others.len() {
            know = 0;
            for other in &others {
                let sees_it_down = |node: &super::nodes::Node| node.name == name && node.state == "down";
                know += usize::from(members(other).await?.iter().any(sees_it_down));
            }
            if killed.elapsed() > AGREE_WITHIN {
                return Err(Failure::new(Kind::Failed, format!("nobody noticed that {name} is dead")));
            }
            self.look().await?;
        }
        let noticed_after = killed.elapsed();
        self.say(&format!("both other nodes know that {name} is down, {} after its death", span(noticed_after)))?;
        Ok(noticed_after)
    }

    /// Until every job has ended.
    async fn finish_all(&mut self) -> Result<Vec<Job>, Failure> {
        let deadline = Instant::now() + PATIENCE;
        let mut told = BTreeSet::new();
        loop {
            let jobs = self.look().await?;
            for job in &jobs {
                let was_lost = job.attempts.iter().any(|attempt| attempt.phase == Phase::Lost);
                if let Some(again) = job.telling().filter(|attempt| was_lost && attempt.phase != Phase::Lost)
                    && told.insert(job.id.clone())
                {
                    self.say(&format!("{} runs again on {}, attempt {}", job.title(), again.place(), again.number))?;
                }
            }
            let ended = jobs.iter().filter(|job| job.state.is_terminal()).count();
            if ended == self.works.len() || Instant::now() >= deadline {
                self.say(&format!("{ended} of {} jobs have ended", self.works.len()))?;
                return Ok(jobs);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Starts the killed node again, in its old place, and waits until all agree.
    async fn bring_back(&mut self, victim: usize, name: &str) -> Result<Duration, Failure> {
        let begun = Instant::now();
        let seed = self.stage.nodes.iter().enumerate().find(|(at, _)| *at != victim);
        let seed = seed.map(|(_, node)| node.announcement.cluster_addr.clone());
        let Some(place) = self.stage.nodes.get_mut(victim) else {
            return Err(Failure::internal("the killed node has no place"));
        };
        let launch = place.relaunch(seed.as_deref());
        *place = NodeProcess::start(launch).await?;
        self.wait_until_all_agree().await?;
        self.look().await?;
        let took = begun.elapsed();
        self.say(&format!("{name} is back with its disk, and all agree again after {}", span(took)))?;
        Ok(took)
    }

    /// Compares every output with what it must be, and the ledger with what flockwork says.
    async fn check(
        &mut self,
        jobs: &[Job],
        interrupted: usize,
        victim: String,
        noticed_after: Duration,
        agreed_again_after: Duration,
    ) -> Result<Report, Failure> {
        let known: BTreeMap<&str, &Job> = jobs.iter().map(|job| (job.id.as_str(), job)).collect();
        let (mut succeeded, mut lost, mut right, mut completed_twice) = (0, 0, 0, 0);
        for (id, work) in &self.works {
            let Some(job) = known.get(id.as_str()) else {
                lost += 1;
                continue;
            };
            succeeded += usize::from(job.state == JobState::Succeeded);
            lost += usize::from(!job.state.is_terminal());
            let witnessed = work
                .witnessed()
                .map_err(|error| Failure::internal(format!("the ledger of {} cannot be read: {error}", job.title())))?;
            completed_twice += usize::from(witnessed.done > 1);
            let output = self.output_of(job).await;
            let is_right = output.as_deref().is_ok_and(|output| output == work.expected_output());
            right += usize::from(is_right && witnessed.done > 0 && witnessed.begun >= witnessed.done);
            if !is_right {
                let what = output.unwrap_or_else(|failure| failure.message);
                self.say(&format!("the output of {} is not right: {what:?}", job.title()))?;
            }
        }
        let acknowledged = self.works.len();
        self.say(&format!("{right} of {acknowledged} outputs were read back, and are right"))?;
        let took = self.begun.elapsed();
        Ok(Report {
            acknowledged,
            succeeded,
            lost,
            right,
            interrupted,
            completed_twice,
            noticed_after,
            agreed_again_after,
            took,
            victim,
        })
    }

    /// What the successful attempt wrote to its standard output.
    async fn output_of(&self, job: &Job) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct Piece {
            #[serde(default)]
            text: String,
        }
        let number = job.telling().map_or(1, |attempt| attempt.number);
        let request = Request::get(format!("/v1/jobs/{}/logs", job.id))
            .accept("application/x-ndjson")
            .query("stream", "stdout")
            .query("attempt", number);
        let mut stream = self.anybody.open(&request).await?;
        let mut lines = Vec::new();
        while let Some(bytes) = stream.next().await.map_err(Failure::internal)? {
            lines.extend_from_slice(&bytes);
        }
        let mut text = String::new();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
            text.push_str(&serde_json::from_slice::<Piece>(line)?.text);
        }
        Ok(text)
    }
}
