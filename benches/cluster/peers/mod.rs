//! What other systems make of the same work on the same machine, where they are installed.
//!
//! Each is started for the measurement, listens on loopback only, and ends when its value is dropped. It is spoken to
//! in its own protocol, by as little code as will do, so that the client costs little. What is missing is an error like
//! any other that keeps a system from being measured: [`Table::unless_skipped`] says so by name, once, and goes on.
//!
//! [`Table::unless_skipped`]: crate::table::Table::unless_skipped

mod beanstalkd;
mod dask;
mod nats;
mod xargs;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{anyhow, ensure};

use crate::nodes::eventually;

pub use beanstalkd::Beanstalkd;
pub use dask::Dask;
pub use nats::Nats;
pub use xargs::xargs;

/// What a job is to them: as long as the command it would be.
const JOB: &[u8] = b"/bin/true";

/// A running server.
struct Server(Child);

impl Server {
    /// Returns when it listens there.
    fn start(command: &mut Command, addr: SocketAddr) -> anyhow::Result<Self> {
        let mut server = Self(spawn(command)?);
        eventually("the server listens", || {
            let ended = server.0.try_wait()?;
            ensure!(ended.is_none(), "{} ended before it listened", command.get_program().display());
            Ok(TcpStream::connect(addr).ok())
        })?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a process, or says by name which program is missing.
fn spawn(command: &mut Command) -> anyhow::Result<Child> {
    command.spawn().map_err(|error| {
        let program = command.get_program().display();
        if error.kind() == ErrorKind::NotFound { anyhow!("the program {program} is not found") } else { error.into() }
    })
}

/// An address on loopback that is free now.
fn free_addr() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// How often a second so many connections do something that each of them waits for.
fn rate<C>(
    connections: usize,
    seconds: f64,
    connect: impl Fn() -> anyhow::Result<C> + Sync,
    act: impl Fn(&mut C) -> anyhow::Result<f64> + Sync,
) -> anyhow::Result<f64> {
    let (acts, begun) = (AtomicUsize::new(0), Instant::now());
    thread::scope(|scope| {
        let client = || {
            let mut connection = connect()?;
            while begun.elapsed().as_secs_f64() < seconds {
                act(&mut connection)?;
                acts.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        };
        let clients: Vec<_> = (0..connections).map(|_| scope.spawn(client)).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("it does not panic"))
    })?;
    Ok(acts.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64())
}
