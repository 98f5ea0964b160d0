//! A client's connection, with patience that ends.
//!
//! Two things a plain socket does not do. A peer that takes nothing for too long is given up, so that a stuck
//! reader cannot hold a connection for ever. And closing lingers: a client that still sends a body which was
//! already refused would be answered with a reset, and a reset may destroy the refusal on its way. So the
//! write side is closed first, and what still comes in is thrown away, so much of it, for a bounded while.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// How long a client may take nothing of what it is sent.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);

/// How long a client may take to notice that it was answered for good, and how much of what it goes on sending is read.
/// What is more stays in the kernel's buffers, so that the client stalls, and finds its answer.
const LINGER_FOR: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 4 << 20;

/// A socket with both.
#[derive(Debug)]
pub(super) struct PatientStream {
    socket: TcpStream,
    stalled: Option<Pin<Box<Sleep>>>,
    linger: Option<Linger>,
}

#[derive(Debug)]
struct Linger {
    deadline: Pin<Box<Sleep>>,
    bytes_left: usize,
}

impl PatientStream {
    pub(super) fn new(socket: TcpStream) -> Self {
        Self { socket, stalled: None, linger: None }
    }

    /// Watches that writes which cannot go on do so before the patience ends.
    fn checked<T>(&mut self, cx: &mut Context<'_>, wrote: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if wrote.is_ready() {
            self.stalled = None;
            return wrote;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(WRITE_PATIENCE)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl AsyncRead for PatientStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PatientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.checked(cx, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        self.checked(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.socket).poll_shutdown(cx))?;
        }
        let linger = this
            .linger
            .get_or_insert_with(|| Linger { deadline: Box::pin(sleep(LINGER_FOR)), bytes_left: LINGER_BYTES });
        let mut scratch = [0_u8; 16 << 10];
        loop {
            if linger.deadline.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            if linger.bytes_left == 0 {
                return Poll::Pending;
            }
            let mut buffer = ReadBuf::new(&mut scratch);
            // An error ends it as well: there is nobody left to be polite to.
            match ready!(Pin::new(&mut this.socket).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    linger.bytes_left = linger.bytes_left.saturating_sub(buffer.filled().len());
                }
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_client_that_sends_more_than_is_read_still_gets_its_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut stream = PatientStream::new(socket);
            stream.write_all(b"too large").await.unwrap();
            stream.shutdown().await.unwrap();
        });
        client.write_all(&vec![0; LINGER_BYTES + (256 << 10)]).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "too large");
    }
}
