//! Nodes of this package, of the build that belongs to the benchmark, with the default profile.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::cluster::{Sight, System};

/// The longest that an answer is waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

pub(crate) struct Flockwork {
    dir: TempDir,
    /// Where each node listens: for peers, and for clients.
    addrs: Vec<(SocketAddr, SocketAddr)>,
}

impl Flockwork {
    pub(crate) fn new(nodes: usize) -> Self {
        // All at once, so that no port is given twice.
        let bound: Vec<TcpListener> = (0..nodes * 2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let free: Vec<SocketAddr> = bound.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let addrs = free.chunks(2).map(|pair| (pair[0], pair[1])).collect();
        Self { dir: TempDir::new().unwrap(), addrs }
    }

    fn ask(&self, place: usize, request: &str) -> std::io::Result<String> {
        let addr = self.addrs[place].1;
        let mut stream = TcpStream::connect_timeout(&addr, ANSWER_WITHIN)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        write!(stream, "{request} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl System for Flockwork {
    fn name(&self) -> &'static str {
        "flockwork"
    }

    fn command(&self, place: usize) -> Command {
        let (cluster, http) = self.addrs[place];
        let mut command = Command::new(env!("CARGO_BIN_EXE_flockwork"));
        command
            .args(["node", "--config", "/dev/null", "--log-format", "json", "--slots", "1", "--cluster", "bench"])
            .args(["--name", &Sight::name_of(place), "--listen", &cluster.to_string(), "--http", &http.to_string()])
            .arg("--data-dir")
            .arg(self.dir.path().join(Sight::name_of(place)));
        if place != 0 {
            command.args(["--seed", &self.addrs[0].0.to_string()]);
        } else {
            // Where the first is started again, somebody must lead it back to the others.
            command.args(["--seed", &self.addrs[1].0.to_string()]);
        }
        command
    }

    fn reader(&self) -> fn(&str) -> Option<Sight> {
        |line| {
            let told: Value = serde_json::from_str(line).ok()?;
            let place = Sight::place_of(told["name"].as_str()?)?;
            match told["message"].as_str()? {
                "member is alive" if told["status"] == "Draining" => Some(Sight::Changed(place)),
                "member is alive" => Some(Sight::Alive(place)),
                "member is suspected" => Some(Sight::Suspected(place)),
                "member is down" => Some(Sight::Down(place)),
                "member left" => Some(Sight::Left(place)),
                _ => None,
            }
        }
    }

    fn change(&self, place: usize, _number: usize) {
        let path = format!("POST /v1/nodes/{}/drain", Sight::name_of(place));
        let answer = self.ask(place, &path).expect("the node answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    fn change_back(&self, place: usize) -> bool {
        let path = format!("DELETE /v1/nodes/{}/drain", Sight::name_of(place));
        let answer = self.ask(place, &path).expect("the node answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        true
    }

    fn leave_signal(&self) -> Signal {
        Signal::TERM
    }

    fn sent_bytes(&self, place: usize) -> Option<f64> {
        let metrics = self.ask(place, "GET /metrics").ok()?;
        let value = |name: &str| -> Option<f64> {
            metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
        };
        Some(value("flockwork_datagram_bytes_sent_total")? + value("flockwork_gossip_link_bytes_sent_total")?)
    }
}
