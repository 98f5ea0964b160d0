//! Processes by `xargs`, which keeps nothing.

use std::fmt::Write as _;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};

use super::spawn;

/// Processes that do nothing, a second, two at a time.
pub fn xargs(count: usize) -> anyhow::Result<f64> {
    let mut lines = String::new();
    for at in 0..count {
        writeln!(lines, "{at}")?;
    }
    let begun = Instant::now();
    // GNU's true ignores its argument.
    let mut command = Command::new("xargs");
    let mut process = spawn(command.args(["-P2", "-n1", "/bin/true"]).stdin(Stdio::piped()))?;
    let written = process.stdin.take().context("it is piped")?.write_all(lines.as_bytes());
    let status = process.wait()?;
    written?;
    ensure!(status.success(), "xargs ended with {status}");
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}
