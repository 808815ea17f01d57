//! Accepting connections and running each in a task of its own.
//!
//! - A connection is admitted before anything is spent on it, and closed at once when there is no room.
//! - A stop reaches every connection; [`Server::serve`] returns when all of them have drained.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::admission::{Admission, Admitted};
use crate::budget::ServerBudget;
use crate::connection::{ConnectionEnd, ConnectionError, Context};
use crate::export::Exports;
use crate::limits::Limits;
use crate::tls::Tls;

/// An NBD server over any number of listeners and streams, without TLS unless [`Server::with_tls`] says otherwise. Clones share
/// everything.
#[derive(Clone)]
pub struct Server {
    context: Arc<Context>,
    admission: Arc<Admission>,
    tls: Tls,
}

/// What the server holds at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerStats {
    /// Connections, in whatever phase.
    pub connections: usize,
    /// Connections that have not chosen an export yet.
    pub handshakes: usize,
    /// Connections closed at once since the start, for want of room.
    pub refused: u64,
    /// Payload bytes held, not counting the small reserves of the connections.
    pub bytes_held: usize,
}

impl Server {
    /// A server of `exports` within `limits`.
    #[must_use]
    pub fn new(exports: Arc<dyn Exports>, limits: Limits) -> Self {
        let budget = Arc::new(ServerBudget::new(&limits));
        Self {
            context: Arc::new(Context {
                exports,
                limits: Arc::new(limits),
                budget,
            }),
            admission: Arc::new(Admission::default()),
            tls: Tls::Off,
        }
    }

    /// The same server, with the same limits and counts, for listeners that do this about TLS.
    #[must_use]
    pub fn with_tls(&self, tls: Tls) -> Self {
        Self {
            tls,
            ..self.clone()
        }
    }

    /// Accepts and serves until `shutdown` resolves, then closes the listener, lets requests in flight finish
    /// (within `drain_timeout`) and returns.
    ///
    /// Dropping the future instead cuts every connection.
    pub async fn serve(&self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        let (stop, stopped) = watch::channel(());
        let mut connections = JoinSet::new();
        let (mut refusals, mut failures) = (SeldomLog::default(), SeldomLog::default());
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => match self.admission.admit(peer.ip(), &self.context.limits) {
                        Some(place) => {
                            let server = self.clone();
                            let stopped = stopped.clone();
                            connections.spawn(async move {
                                server.serve_tcp(stream, peer, place, stopped).await;
                            });
                        }
                        None => {
                            if let Some(count) = refusals.note() {
                                tracing::warn!(%peer, count, "no room for another connection");
                            }
                        }
                    },
                    Err(error) => {
                        // Out of descriptors, mostly: accepting again at once would only burn a core.
                        if let Some(count) = failures.note() {
                            tracing::warn!(%error, count, "accept");
                        }
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(ended) = connections.join_next() => report_panic(ended),
            }
        }
        drop(listener);
        drop(stop);
        while let Some(ended) = connections.join_next().await {
            report_panic(ended);
        }
    }

    /// Serves one stream of any kind, such as a pipe, until it ends or `shutdown` resolves.
    ///
    /// # Errors
    ///
    /// Why the connection was cut. There is nobody left to tell but a log.
    pub async fn serve_stream<S>(
        &self,
        stream: S,
        peer: SocketAddr,
        shutdown: impl Future<Output = ()>,
    ) -> Result<ConnectionEnd, ConnectionError>
    where
        S: AsyncRead + AsyncWrite,
    {
        let mut place = self
            .admission
            .admit(peer.ip(), &self.context.limits)
            .ok_or(ConnectionError::TooMany)?;
        let ready = || place.handshake_done();
        self.context
            .run(Box::pin(stream), &self.tls, peer, ready, shutdown)
            .await
    }

    /// What the server holds now.
    #[must_use]
    pub fn stats(&self) -> ServerStats {
        let counts = self.admission.counts();
        ServerStats {
            connections: counts.connections,
            handshakes: counts.handshakes,
            refused: counts.refused,
            bytes_held: self.context.budget.bytes_held(),
        }
    }

    async fn serve_tcp(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        mut place: Admitted,
        mut stopped: watch::Receiver<()>,
    ) {
        // Without its options, what comes late could not be told from what is new.
        if let Err(error) = prepare(&stream) {
            tracing::warn!(%peer, %error, "connection refused: socket options");
            return;
        }
        let stop = async move {
            // Nothing is ever sent: the channel ends when the server stops.
            while stopped.changed().await.is_ok() {}
        };
        let ready = || place.handshake_done();
        let ended = self.context.run(stream, &self.tls, peer, ready, stop).await;
        match ended {
            Ok(end) => tracing::debug!(%peer, ?end, "connection ended"),
            Err(error) => tracing::info!(%peer, %error, cause = ?error, "connection cut"),
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Silence after which the kernel asks whether the peer still exists, how often it asks again, and how many questions without an
/// answer end the connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_RETRIES: u32 = 3;
/// How long the kernel sends a reply again, or waits for a peer to open its window, before it ends the connection: while there is a
/// reply on its way, it asks no questions. On Linux also the least silence behind questions.
const USER_TIMEOUT: Duration = Duration::from_secs(10);
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Replies leave at once, and a connection whose path was cut ends within about 22 s: 11 s of silence, and as long again if a reply was
/// sent into it at its end. What its client still sends again when the path is back finds nobody.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "connection task");
    }
}

/// Has something said once a second at most, however often it happens.
#[derive(Default)]
struct SeldomLog {
    last: Option<Instant>,
    unsaid: u64,
}

impl SeldomLog {
    /// It happened once more. How often since it was said last, if it is to be said now.
    fn note(&mut self) -> Option<u64> {
        self.unsaid += 1;
        let due = self.last.is_none_or(|last| last.elapsed() >= LOG_INTERVAL);
        due.then(|| {
            self.last = Some(Instant::now());
            std::mem::take(&mut self.unsaid)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A listener without descriptors said so ten times a second.
    #[tokio::test(start_paused = true)]
    async fn what_happens_often_is_said_seldom() {
        let mut log = SeldomLog::default();
        let mut said = Vec::new();
        for _ in 0..25 {
            said.extend(log.note());
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        assert_eq!(said, [1, 10, 10]);
    }

    #[tokio::test]
    async fn a_cut_path_ends_an_accepted_connection_soon() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let _peer = TcpStream::connect(address).await.expect("connect");
        let (accepted, _) = listener.accept().await.expect("accept");
        prepare(&accepted).expect("options");
        let socket = SockRef::from(&accepted);
        assert!(socket.keepalive().expect("keepalive"));
        let idle = socket.tcp_keepalive_time().expect("idle");
        let interval = socket.tcp_keepalive_interval().expect("interval");
        let retries = socket.tcp_keepalive_retries().expect("retries");
        assert_eq!(idle + interval * retries, Duration::from_secs(11));
        let unacknowledged = socket.tcp_user_timeout().expect("user timeout");
        assert_eq!(unacknowledged, Some(Duration::from_secs(10)));
    }
}
