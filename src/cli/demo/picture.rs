//! What the demo shows while it goes on: a line for each node and one for all jobs, redrawn in place on a
//! terminal; a plain line now and then anywhere else.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use flockwork::model::record::JobState;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::super::answers::Job;
use super::super::render::{Printer, Tone};

/// How often a plain line is printed where nothing can be redrawn.
const PLAIN_EVERY: Duration = Duration::from_secs(2);

/// All jobs at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Scene {
    pub(super) pending: usize,
    pub(super) running: usize,
    pub(super) succeeded: usize,
    /// Failed or cancelled: not expected here.
    pub(super) bad: usize,
    /// By node name: how many it runs, how many it has done.
    pub(super) nodes: BTreeMap<String, (usize, usize)>,
}

impl Scene {
    pub(super) fn of<'a>(jobs: impl Iterator<Item = &'a Job>) -> Self {
        let mut scene = Self::default();
        for job in jobs {
            match job.state {
                JobState::Pending => scene.pending += 1,
                JobState::Running => scene.running += 1,
                JobState::Succeeded => scene.succeeded += 1,
                JobState::Failed | JobState::Cancelled => scene.bad += 1,
            }
            if let Some(attempt) = job.telling() {
                let (running, done) = scene.nodes.entry(attempt.place().to_owned()).or_default();
                match job.state {
                    JobState::Running => *running += 1,
                    JobState::Succeeded => *done += 1,
                    JobState::Pending | JobState::Failed | JobState::Cancelled => {}
                }
            }
        }
        scene
    }
}

/// The picture.
#[derive(Debug)]
pub(super) struct Picture {
    printer: Printer,
    /// On a terminal only.
    multi: Option<MultiProgress>,
    nodes: Vec<(String, ProgressBar)>,
    total: ProgressBar,
    begun: Instant,
    last_plain: Option<Instant>,
}

impl Picture {
    pub(super) fn new(printer: Printer, names: &[String], jobs: usize) -> Self {
        let multi = (printer.is_for_people() && io::stdout().is_terminal())
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stdout()));
        let line = |template: &str, length: u64| {
            let style = ProgressStyle::with_template(template).expect("the template is a constant, and right");
            let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::hidden()).with_style(style);
            match &multi {
                Some(multi) => multi.add(bar),
                None => bar,
            }
        };
        let nodes = names.iter().map(|name| (name.clone(), line("  {prefix:8} {msg}", 1))).collect();
        let total = line("  all jobs {bar:40} {pos}/{len} {msg}", jobs as u64);
        Self { printer, multi, nodes, total, begun: Instant::now(), last_plain: None }
    }

    /// A line that stays, with the time since the demo began. On standard error where standard output is for a
    /// program.
    pub(super) fn say(&self, text: &str) -> io::Result<()> {
        let time = self.printer.paint(&format!("{:5.1}s", self.begun.elapsed().as_secs_f64()), Tone::Faint);
        let line = format!("{time}  {text}");
        match &self.multi {
            Some(multi) => multi.println(line),
            None if self.printer.is_for_people() => self.printer.line(&line),
            None => writeln!(io::stderr(), "{line}"),
        }
    }

    /// Shows the jobs as they are, and each node's state as `state_of` has it.
    pub(super) fn show(&mut self, scene: &Scene, state_of: &BTreeMap<String, String>) -> io::Result<()> {
        let counts = format!("{} wait, {} run, {} done", scene.pending, scene.running, scene.succeeded);
        if self.multi.is_none() {
            if self.last_plain.is_some_and(|at| at.elapsed() < PLAIN_EVERY) {
                return Ok(());
            }
            self.last_plain = Some(Instant::now());
            let busy = self
                .nodes
                .iter()
                .map(|(name, _)| format!("{name} runs {}", scene.nodes.get(name).copied().unwrap_or_default().0));
            return self.say(&format!("{counts} ({})", busy.collect::<Vec<_>>().join(", ")));
        }
        for (name, line) in &self.nodes {
            let (running, done) = scene.nodes.get(name).copied().unwrap_or_default();
            let state = state_of.get(name).map_or("unknown", String::as_str);
            let state = self.printer.paint(&format!("{state:8}"), Tone::of_node(state));
            line.set_prefix(name.clone());
            line.set_message(format!("{state} runs {running:2} {:16} done {done}", "▪".repeat(running.min(16))));
            line.tick();
        }
        self.total.set_position(scene.succeeded as u64);
        self.total.set_message(counts);
        Ok(())
    }

    /// Leaves the last picture on the screen.
    pub(super) fn finish(&self) {
        for (_, line) in &self.nodes {
            line.abandon();
        }
        self.total.abandon();
    }
}
