//! The figures in one table, each next to what it is measured against.

use std::fmt;

/// The figures of all measurements.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
    /// Other systems that could not be measured, and why.
    skipped: Vec<String>,
}

#[derive(Debug)]
struct Row {
    what: String,
    figure: String,
    beside: String,
}

impl Table {
    /// Says a figure at once, and keeps it for the table.
    pub fn say(&mut self, what: &str, figure: impl Into<String>, beside: impl Into<String>) {
        let row = Row { what: what.to_owned(), figure: figure.into(), beside: beside.into() };
        println!("  {}: {} ({})", row.what, row.figure, row.beside);
        self.rows.push(row);
    }

    /// Rates a second, and each as a share of the limit measured next to it.
    pub fn rates(&mut self, what: &str, rates: &[f64], limit: &str, limits: &[f64]) {
        let shares: Vec<f64> = rates.iter().zip(limits).map(|(rate, limit)| rate / limit).collect();
        let beside = format!("{} of {limit}, {}", Spread::of(&shares, 2), Spread::of(limits, 0));
        self.say(what, format!("{} /s", Spread::of(rates, 0)), beside);
    }

    /// [`Self::rates`] of another system, unless it was skipped in any round.
    pub fn rates_of_peer(&mut self, what: &str, rates: &[f64], limit: &str, limits: &[f64]) {
        if rates.len() == limits.len() {
            self.rates(what, rates, limit, limits);
        }
    }

    /// What another system was found to do. Where it could not be measured it is skipped by its name, which is said
    /// once and stands below the table, so that nobody takes its absence for an oversight.
    pub fn unless_skipped<T>(&mut self, system: &str, result: anyhow::Result<T>) -> Option<T> {
        let skipped = match result {
            Ok(found) => return Some(found),
            Err(error) => format!("skipped: {system} ({error:#})"),
        };
        if !self.skipped.contains(&skipped) {
            println!("  {skipped}");
            self.skipped.push(skipped);
        }
        None
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| what | median (smallest to largest) | beside |\n|---|---|---|")?;
        for row in &self.rows {
            writeln!(f, "| {} | {} | {} |", row.what, row.figure, row.beside)?;
        }
        self.skipped.iter().try_for_each(|skipped| writeln!(f, "\n{skipped}"))
    }
}

/// A median with the smallest and the largest of what it is the median of.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub median: f64,
    smallest: f64,
    largest: f64,
    digits: usize,
}

impl Spread {
    /// Of at least one figure, to be shown with so many digits behind the point.
    pub fn of(figures: &[f64], digits: usize) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self { median: percentile(&sorted, 0.5), smallest: sorted[0], largest: sorted[sorted.len() - 1], digits }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |figure: f64| with_commas(figure, self.digits);
        write!(f, "{}", shown(self.median))?;
        if self.smallest < self.largest {
            write!(f, " ({} to {})", shown(self.smallest), shown(self.largest))?;
        }
        Ok(())
    }
}

/// The figure below which the share `part` of the sorted figures lies.
pub fn percentile(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() as f64 * part) as usize).min(sorted.len() - 1)]
}

/// 50th and 99th percentile of times in seconds, in milliseconds.
pub fn p50_p99_ms(times: &[f64]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    format!("{:.2} / {:.2} ms ({})", percentile(&sorted, 0.5) * 1e3, percentile(&sorted, 0.99) * 1e3, sorted.len())
}

fn with_commas(figure: f64, digits: usize) -> String {
    let text = format!("{figure:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

/// What this machine is, and how busy it is now.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let load = read("/proc/loadavg");
    format!("{count} processors ({}), load average {}", model.unwrap_or("unknown"), load.trim())
}
