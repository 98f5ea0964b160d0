//! Serf agents with their default profile, which is meant for a local network.

use std::process::Command;

use rustix::process::Signal;

use super::cluster::{Sight, System};

pub struct Serf {
    _nodes: usize,
}

impl Serf {
    /// Serf, if it is installed.
    pub fn find(nodes: usize) -> Option<Self> {
        let answer = Command::new("serf").arg("version").output().ok()?;
        let version = String::from_utf8_lossy(&answer.stdout).lines().next().unwrap_or_default().to_owned();
        println!("serf {version}");
        Some(Self { _nodes: nodes })
    }

    fn addr(place: usize) -> String {
        format!("127.0.1.{}:7946", place + 1)
    }

    fn rpc_addr(place: usize) -> String {
        format!("127.0.0.1:{}", 17_400 + place)
    }
}

impl System for Serf {
    fn name(&self) -> &'static str {
        "serf"
    }

    fn command(&self, place: usize) -> Command {
        let mut command = Command::new("serf");
        command
            .arg("agent")
            .arg(format!("-node={}", Sight::name_of(place)))
            .arg(format!("-bind={}", Self::addr(place)))
            .arg(format!("-rpc-addr={}", Self::rpc_addr(place)))
            .args(["-log-level=info", "-tag=role=worker", "-tag=cpus=8"])
            // Else the first would be alone when it is started again.
            .arg(format!("-retry-join={}", Self::addr(usize::from(place == 0))))
            .arg("-retry-interval=1s");
        command
    }

    fn reader(&self) -> fn(&str) -> Option<Sight> {
        |line| {
            let after = |what: &str| line.split_once(what).map(|(_, rest)| rest);
            let place = |rest: &str| Sight::place_of(rest.split_whitespace().next()?);
            if let Some(rest) = after("EventMemberJoin: ") {
                return place(rest).map(Sight::Alive);
            }
            if let Some(rest) = after("EventMemberFailed: ") {
                return place(rest).map(Sight::Down);
            }
            if let Some(rest) = after("EventMemberLeave: ") {
                return place(rest).map(Sight::Left);
            }
            if let Some(rest) = after("Suspect ") {
                return place(rest).map(Sight::Suspected);
            }
            // Events are named after their speakers: `by-n3-17`.
            let event = line
                .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
                .find_map(|word| word.strip_prefix("by-"))?;
            Sight::place_of(event.split('-').next()?).map(Sight::Changed)
        }
    }

    fn change(&self, place: usize, number: usize) {
        let status = Command::new("serf")
            .args(["event", "-coalesce=false"])
            .arg(format!("-rpc-addr={}", Self::rpc_addr(place)))
            .args([format!("by-{}-{number}", Sight::name_of(place)), "payload".to_owned()])
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.is_ok_and(|status| status.success()), "serf takes the event");
    }

    fn change_back(&self, _place: usize) -> bool {
        false
    }

    fn leave_signal(&self) -> Signal {
        Signal::INT
    }

    fn sent_bytes(&self, _place: usize) -> Option<f64> {
        None
    }
}
