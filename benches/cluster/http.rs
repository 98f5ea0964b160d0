//! A client that costs little: one connection that is kept, one question at a time, and threads instead of a runtime,
//! because it shares the processors with the nodes that it measures.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::nodes::PATIENCE;

/// A connection to a node.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    addr: SocketAddr,
}

impl Connection {
    pub fn open(addr: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream), addr })
    }

    pub fn get(&mut self, path: &str) -> anyhow::Result<(u16, Value)> {
        let (status, body) = self.ask(&format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.addr).into_bytes())?;
        Ok((status, serde_json::from_slice(&body)?))
    }

    /// Submits one spec or an array of them.
    pub fn submit(&mut self, specs: &Value) -> anyhow::Result<(u16, Value)> {
        let (status, body) = self.ask(&submission(specs))?;
        Ok((status, serde_json::from_slice(&body)?))
    }

    /// The value of one of the node's metrics.
    pub fn metric(&mut self, name: &str) -> anyhow::Result<f64> {
        let (_, body) = self.ask(&format!("GET /metrics HTTP/1.1\r\nhost: {}\r\n\r\n", self.addr).into_bytes())?;
        let text = String::from_utf8(body)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("there is no metric {name}"))?.parse()?)
    }

    /// Sends a whole request and reads the whole answer.
    pub fn ask(&mut self, request: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
        self.stream.get_mut().write_all(request)?;
        let (mut head, mut line) = (Head::default(), String::new());
        while !head.is_whole() {
            line.clear();
            self.stream.read_line(&mut line)?;
            head.take(&line)?;
        }
        let (status, length) = head.parts()?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((status, body))
    }

    /// Sends a request whose answer is read as it comes, behind its head.
    pub fn follow(mut self, path: &str) -> anyhow::Result<impl BufRead + use<>> {
        write!(self.stream.get_mut(), "GET {path} HTTP/1.0\r\nhost: {}\r\n\r\n", self.addr)?;
        let mut line = String::new();
        while self.stream.read_line(&mut line)? > 2 {
            line.clear();
        }
        Ok(self.stream)
    }
}

/// The head of an answer, of which a line is taken at a time.
#[derive(Debug, Default)]
pub struct Head {
    status: Option<u16>,
    length: Option<usize>,
    is_whole: bool,
}

impl Head {
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    pub fn take(&mut self, line: &str) -> anyhow::Result<()> {
        let text = line.trim_end();
        if line.is_empty() {
            bail!("the connection ended within an answer");
        } else if self.status.is_none() {
            let status = text.split(' ').nth(1).with_context(|| format!("no status in {line:?}"))?;
            self.status = Some(status.parse()?);
        } else if let Some((name, value)) = text.split_once(':') {
            if name.eq_ignore_ascii_case("content-length") {
                self.length = Some(value.trim().parse()?);
            }
        } else {
            self.is_whole = true;
        }
        Ok(())
    }

    /// Its status, and how many bytes follow.
    pub fn parts(&self) -> anyhow::Result<(u16, usize)> {
        Ok((self.status.context("no status")?, self.length.context("an answer without a length")?))
    }
}

/// A request that submits.
pub fn submission(specs: &Value) -> Vec<u8> {
    let body = specs.to_string();
    format!(
        "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
