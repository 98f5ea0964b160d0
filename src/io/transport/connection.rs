//! One connection, from its first byte: the greeting, the frames, and every way in which either can be wrong.
//!
//! A frame is a length (four bytes, big-endian) and that many bytes of MessagePack. The first one each way is a
//! [`Hello`], and until it has come no frame may be longer than a greeting needs to be. The caller speaks
//! first; who is called answers even a greeting that it refuses, so that both ends can log what differs.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::codec::{Encoder, FramedRead, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;

use crate::model::id::{Generation, NodeId};
use crate::model::wire::{Frame, Hello};

use super::TransportConfig;
use crate::io::faults::Faults;

/// The longest greeting. Its text fields are the cluster's name and an address.
const MAX_HELLO_BYTES: usize = 4 << 10;
/// After how long of silence the kernel asks whether the other machine is still there, and how often then.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);

type Reader = FramedRead<Box<dyn AsyncRead + Send + Unpin>, LengthDelimitedCodec>;
type Writer = Box<dyn AsyncWrite + Send + Sync + Unpin>;

/// Why a connection was not kept. Nothing has been changed by it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it belongs to cluster `{0}`, not to this one")]
    OtherCluster(String),
    #[error("it speaks wire version {0}, and this node another")]
    OtherVersion(u16),
    #[error("it is this node itself")]
    Ourselves,
    #[error("it says that it is {0}, as this node is: two live nodes have one id")]
    SameId(NodeId),
    #[error("node {found} answers there, not {expected}")]
    OtherNode { expected: NodeId, found: NodeId },
    #[error("generation {found:?} of a node whose generation {known:?} is known")]
    OlderGeneration { found: Generation, known: Generation },
    #[error("it listens at {found}, and a process with its id that listens at {known} is connected")]
    SecondProcess { found: SocketAddr, known: SocketAddr },
    #[error("what came was no greeting: {0}")]
    NotAHello(String),
    #[error("it said nothing in time")]
    Silent,
    #[error("it was closed before a greeting came")]
    ClosedEarly,
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Refusal {
    /// Whether the other machine itself said that nobody listens there.
    pub(super) fn is_by_the_machine(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// Whether somebody listened and was gone before the greeting: most likely a process that is just dying.
    pub(super) fn is_breaking_off(&self) -> bool {
        match self {
            Self::ClosedEarly => true,
            Self::Io(error) => matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe),
            Self::OtherCluster(_)
            | Self::OtherVersion(_)
            | Self::Ourselves
            | Self::SameId(_)
            | Self::OtherNode { .. }
            | Self::OlderGeneration { .. }
            | Self::SecondProcess { .. }
            | Self::NotAHello(_)
            | Self::Silent => false,
        }
    }
}

/// Why a frame cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum EncodeError {
    #[error("the frame cannot be encoded: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
    #[error("the frame is {0} bytes long, which is more than a frame may be")]
    TooLong(usize),
}

/// Writes `frame` as it travels, without its length.
pub(super) fn encode(frame: &Frame, max_bytes: usize) -> Result<Bytes, EncodeError> {
    let encoded = rmp_serde::to_vec_named(frame)?;
    if encoded.len() > max_bytes { Err(EncodeError::TooLong(encoded.len())) } else { Ok(encoded.into()) }
}

/// Appends an encoded frame to `buffer`, with its length.
pub(super) fn append(encoded: Bytes, buffer: &mut BytesMut) -> io::Result<()> {
    codec(encoded.len()).encode(encoded, buffer)
}

fn codec(max_bytes: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(max_bytes).new_codec()
}

/// A connection whose other end has said who it is, and is welcome.
pub(super) struct Greeted {
    pub(super) hello: Hello,
    reader: Reader,
    writer: Writer,
}

impl std::fmt::Debug for Greeted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Greeted").field("hello", &self.hello).finish_non_exhaustive()
    }
}

/// Greets, both ways round.
#[derive(Debug)]
pub(super) struct Greeter {
    hello: Hello,
    max_frame_bytes: usize,
    connect_within: Duration,
    hello_within: Duration,
    write_within: Duration,
    faults: Faults,
}

impl Greeter {
    pub(super) fn new(config: &TransportConfig) -> Self {
        Self {
            hello: config.hello.clone(),
            max_frame_bytes: config.max_frame_bytes,
            connect_within: config.connect_within,
            hello_within: config.hello_within,
            write_within: config.write_within,
            faults: config.faults.clone(),
        }
    }

    /// Calls `expected` at `addr`.
    pub(super) async fn call(&self, expected: NodeId, addr: SocketAddr) -> Result<Greeted, Refusal> {
        if self.faults.separates_from(addr) {
            // As with a cable that is cut: nothing says no.
            tokio::time::sleep(self.connect_within).await;
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        let connecting = timeout(self.connect_within, TcpStream::connect(addr));
        let stream = connecting.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let (mut reader, mut writer) = self.open(stream)?;
        let greeting = async {
            self.say_hello(&mut writer).await?;
            hear_hello(&mut reader).await
        };
        let hello = timeout(self.hello_within, greeting).await.map_err(|_| Refusal::Silent)??;
        self.judge(&hello)?;
        if hello.node != expected {
            return Err(Refusal::OtherNode { expected, found: hello.node });
        }
        Ok(self.greeted(hello, reader, writer))
    }

    /// Answers whoever is at the other end of `stream`.
    pub(super) async fn answer(&self, stream: TcpStream) -> Result<Greeted, Refusal> {
        let (mut reader, mut writer) = self.open(stream)?;
        let greeting = async {
            let hello = hear_hello(&mut reader).await?;
            if self.faults.separates_from(hello.cluster_addr) {
                return std::future::pending().await;
            }
            self.say_hello(&mut writer).await?;
            Ok::<_, Refusal>(hello)
        };
        let hello = timeout(self.hello_within, greeting).await.map_err(|_| Refusal::Silent)??;
        self.judge(&hello)?;
        Ok(self.greeted(hello, reader, writer))
    }

    /// From a socket to frames. The one place where bytes leave and enter the process: a layer that encrypts
    /// goes between the socket and what is returned.
    fn open(&self, stream: TcpStream) -> io::Result<(Reader, Writer)> {
        stream.set_nodelay(true)?;
        let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL);
        socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        // Keepalive is silent while sent bytes await their acknowledgement; this covers that case.
        #[cfg(target_os = "linux")]
        rustix::net::sockopt::set_tcp_user_timeout(
            &stream,
            u32::try_from(self.write_within.as_millis()).unwrap_or(u32::MAX),
        )?;
        let (reader, writer) = stream.into_split();
        Ok((FramedRead::new(Box::new(reader), codec(MAX_HELLO_BYTES)), Box::new(writer)))
    }

    async fn say_hello(&self, writer: &mut Writer) -> Result<(), Refusal> {
        let encoded = rmp_serde::to_vec_named(&self.hello).map_err(io::Error::other)?;
        let mut buffer = BytesMut::new();
        append(encoded.into(), &mut buffer)?;
        writer.write_all(&buffer).await?;
        Ok(writer.flush().await?)
    }

    /// Whether a node that says `hello` is one to talk to.
    fn judge(&self, hello: &Hello) -> Result<(), Refusal> {
        if hello.cluster != self.hello.cluster {
            return Err(Refusal::OtherCluster(hello.cluster.chars().filter(|c| !c.is_control()).take(64).collect()));
        }
        if hello.wire_version != self.hello.wire_version {
            return Err(Refusal::OtherVersion(hello.wire_version));
        }
        if hello.node != self.hello.node {
            return Ok(());
        }
        let itself = hello.generation == self.hello.generation && hello.cluster_addr == self.hello.cluster_addr;
        Err(if itself { Refusal::Ourselves } else { Refusal::SameId(hello.node) })
    }

    fn greeted(&self, hello: Hello, mut reader: Reader, writer: Writer) -> Greeted {
        reader.decoder_mut().set_max_frame_length(self.max_frame_bytes);
        Greeted { hello, reader, writer }
    }
}

async fn hear_hello(reader: &mut Reader) -> Result<Hello, Refusal> {
    let frame = reader.next().await.ok_or(Refusal::ClosedEarly)?;
    let frame = frame.map_err(|error| {
        // This is how the codec says that the length is none that a greeting has.
        let too_long = error.kind() == io::ErrorKind::InvalidData;
        if too_long { Refusal::NotAHello(error.to_string()) } else { Refusal::Io(error) }
    })?;
    rmp_serde::from_slice(&frame).map_err(|error| Refusal::NotAHello(error.to_string()))
}

/// The writing half of a connection in use. Its reading half is a task that ends with it.
pub(super) struct Connection {
    writer: Writer,
    end: End,
}

/// How the two halves of a connection tell each other that it is over, and why.
#[derive(Debug, Clone)]
struct End {
    ended: CancellationToken,
    reason: Arc<OnceLock<String>>,
}

impl End {
    fn because(&self, reason: impl Into<String>) {
        // Only the first reason counts; what follows is its consequence.
        self.reason.get_or_init(|| reason.into());
        self.ended.cancel();
    }
}

impl Greeted {
    /// Puts the connection to use: each frame that comes is given to `receive`, with its size in bytes, which may make the
    /// reading wait and ends it by returning false; `on_end` is called when the reading is over.
    pub(super) fn split<R: Future<Output = bool> + Send>(
        self,
        receive: impl Fn(Frame, usize) -> R + Send + Sync,
        on_end: impl FnOnce() + Send,
    ) -> (Connection, impl Future<Output = ()> + Send) {
        let Self { mut reader, writer, .. } = self;
        let end = End { ended: CancellationToken::new(), reason: Arc::default() };
        let connection = Connection { writer, end: end.clone() };
        let reading = async move {
            let frames = async {
                loop {
                    let encoded = match reader.next().await {
                        None => return "the peer closed it".to_owned(),
                        Some(Err(error)) => return error.to_string(),
                        Some(Ok(encoded)) => encoded,
                    };
                    let received = match rmp_serde::from_slice::<Frame>(&encoded) {
                        Ok(frame) => receive(frame, encoded.len()).await,
                        Err(error) => return format!("what came was no frame: {error}"),
                    };
                    if !received {
                        return "this node stops".to_owned();
                    }
                }
            };
            tokio::select! {
                () = end.ended.cancelled() => {}
                reason = frames => end.because(reason),
            }
            on_end();
        };
        (connection, reading)
    }
}

impl Connection {
    /// Why it is over, if it is.
    pub(super) fn ended(&self) -> Option<&str> {
        self.end.ended.is_cancelled().then(|| self.end.reason.get().map_or("closed", String::as_str))
    }

    /// Ends it for `reason`; its reading half ends with it.
    pub(super) fn end(&self, reason: impl Into<String>) {
        self.end.because(reason);
    }

    /// Writes all of `batch` and flushes once. Any progress renews the patience; the connection has ended if
    /// this returns false.
    pub(super) async fn write(&mut self, batch: &mut BytesMut, patience: Duration) -> bool {
        let ended = self.end.ended.clone();
        let writing = async {
            while batch.has_remaining() {
                match timeout(patience, self.writer.write_buf(batch)).await {
                    Ok(Ok(0)) => return Err("the peer takes no more".to_owned()),
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return Err(error.to_string()),
                    Err(_) => return Err(format!("the peer read nothing for {patience:?}")),
                }
            }
            match timeout(patience, self.writer.flush()).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("the peer read nothing for {patience:?}")),
            }
        };
        let written = tokio::select! {
            written = writing => written,
            () = ended.cancelled() => return false,
        };
        written.map_err(|reason| self.end.because(reason)).is_ok()
    }
}

/// A connection that nobody holds any more is over, its reading half too.
impl Drop for Connection {
    fn drop(&mut self) {
        self.end.ended.cancel();
    }
}
