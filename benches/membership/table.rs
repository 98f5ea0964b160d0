//! The figures side by side.

use std::time::Duration;

/// One system's figures, row by row.
pub struct Column {
    name: &'static str,
    rows: Vec<(&'static str, String)>,
}

impl Column {
    pub fn new(name: &'static str) -> Self {
        Self { name, rows: Vec::new() }
    }

    pub fn say(&mut self, row: &'static str, value: String) {
        println!("{}: {row}: {value}", self.name);
        self.rows.push((row, value));
    }

    /// Times as the smallest, the median and the largest; those that never came are counted.
    pub fn add(&mut self, row: &'static str, times: Vec<Option<Duration>>) {
        let mut known: Vec<Duration> = times.iter().copied().flatten().collect();
        known.sort();
        let s = |time: &Duration| format!("{:.2}", time.as_secs_f64());
        let mut value = match known.as_slice() {
            [] => "-".to_owned(),
            [only] => format!("{} s", s(only)),
            [first, .., last] => format!("{} / {} / {} s", s(first), s(&known[known.len() / 2]), s(last)),
        };
        let never = times.len() - known.len();
        if never > 0 {
            value.push_str(&format!(", and {never} never"));
        }
        if times.len() > 1 {
            value.push_str(&format!(" ({})", times.len()));
        }
        self.say(row, value);
    }
}

/// A table of all columns, in Markdown.
pub fn drawn(nodes: usize, columns: &[Column]) -> String {
    let mut text = format!("| {nodes} nodes; min / median / max until the last node knows (rounds) |");
    for column in columns {
        text.push_str(&format!(" {} |", column.name));
    }
    text.push_str(&format!("\n|{}", "---|".repeat(columns.len() + 1)));
    let Some(first) = columns.first() else { return text };
    for (row, _) in &first.rows {
        text.push_str(&format!("\n| {row} |"));
        for column in columns {
            let value = column.rows.iter().find(|(name, _)| name == row).map_or("-", |(_, value)| value.as_str());
            text.push_str(&format!(" {value} |"));
        }
    }
    text
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
