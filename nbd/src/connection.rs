//! One NBD connection from greeting to goodbye, in one task.
//!
//! - Requests are read, judged and called strictly in arrival order; what the calls answer is left to
//!   [`Replies`], which runs beside the reading.
//! - Reading stops where a budget is used up, and goes on when replies have been taken.
//! - A goodbye, an end of input between two requests and a stop of the server let requests in flight finish and
//!   send their replies. Lost framing does not: nothing the peer sent afterwards can be trusted. See [`Ending`].

use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::{BoxFuture, try_join_all};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::{Instant, timeout, timeout_at};

use crate::budget::{Claim, ConnectionBudget, ServerBudget};
use crate::codec::{CodecError, ReplyStyle, ReplyTo, Request};
use crate::ending::Ending;
use crate::export::{BlockDevice, BlockError, Ended, Exports, Extent};
use crate::extents::{EXTENT_BYTES, flagged};
use crate::handshake::{Chosen, Negotiated, Negotiation, Upgrade};
use crate::input::Input;
use crate::limits::Limits;
use crate::meta::MetaContext;
use crate::replies::{Call, Patience, Replies, Work};
use crate::requests::{Operation, Refusal, Speed, StatusQuery, Terms};
use crate::tls::Tls;
use crate::transport::Transport;

/// How a connection ended when nothing went wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectionEnd {
    /// The client said goodbye (`NBD_CMD_DISC`), and every request before it was answered.
    Disconnected,
    /// The client ended the negotiation (`NBD_OPT_ABORT`).
    Aborted,
    /// The client closed between two messages. Requests in flight were finished.
    Closed,
    /// The client asked with `NBD_OPT_EXPORT_NAME` for an export that it cannot have.
    NoExport,
    /// The server was told to stop. Requests in flight were finished.
    Stopped,
    /// The device ended ([`Ended::Finished`]). Requests in flight were finished.
    DeviceEnded,
}

/// Why a connection was cut.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The client broke the protocol in a way that leaves no common ground.
    #[error("client broke the protocol")]
    Misbehaved(#[from] CodecError),
    /// TLS is demanded, and the client is too old to negotiate it.
    #[error("TLS is required, and this client cannot negotiate it")]
    TlsImpossible,
    /// What the client sent behind `NBD_OPT_STARTTLS` was not protected, and would be taken for what is.
    #[error("unprotected bytes after STARTTLS")]
    PlaintextAfterStartTls,
    /// The TLS handshake failed, for a certificate that is not accepted among other reasons.
    #[error("TLS handshake failed")]
    Tls(#[source] io::Error),
    /// The client took too long to choose an export.
    #[error("handshake took too long")]
    HandshakeTimeout,
    /// The client sent more options than allowed.
    #[error("too many options in one handshake")]
    TooManyOptions,
    /// The client announced a payload and did not send it in time.
    #[error("payload of {bytes} bytes did not arrive in time")]
    PayloadTimeout {
        /// Its announced length.
        bytes: usize,
    },
    /// With extended headers: a payload beyond every limit, which the specification has us refuse by leaving.
    #[error("payload of {bytes} bytes is larger than any allowed")]
    PayloadTooLarge {
        /// Its announced length.
        bytes: u64,
    },
    /// The client took too little of its replies while others waited for the memory they used.
    #[error("replies were taken too slowly while others waited for memory")]
    Stalled,
    /// Requests in flight did not finish, or their replies were not taken, before the time to drain was over or, behind a goodbye,
    /// for so long that nothing advanced.
    #[error("requests in flight did not finish in time")]
    DrainTimeout,
    /// The device ended, and nothing was to be answered ([`Ended::Cut`]).
    #[error("the device ended")]
    DeviceEnded,
    /// The server has no room for the connection.
    #[error("too many connections")]
    TooMany,
    /// The transport failed, or ended inside a message.
    #[error("connection failed")]
    Io(#[from] io::Error),
}

/// What a connection needs of its server.
pub(crate) struct Context {
    pub(crate) exports: Arc<dyn Exports>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) budget: Arc<ServerBudget>,
}

impl Context {
    /// Serves one peer. `ready` is called when the handshake is over; `stop` resolves when the server stops.
    pub(crate) async fn run<S>(
        &self,
        stream: S,
        tls: &Tls,
        peer: SocketAddr,
        ready: impl FnOnce(),
        stop: impl Future<Output = ()>,
    ) -> Result<ConnectionEnd, ConnectionError>
    where
        S: Transport,
    {
        tokio::pin!(stop);
        let mut input = Input::new(stream);
        let negotiation = Negotiation::new(&mut input, &*self.exports, &self.limits, peer, tls);
        match negotiation.run(stop.as_mut()).await? {
            // Boxed, so that connections without TLS are none the larger for it.
            Negotiated::StartTls(upgrade) => {
                Box::pin(self.run_secured(input.into_stream(), upgrade, peer, ready, stop)).await
            }
            Negotiated::Transmission(chosen) => {
                ready();
                self.transmit(input, chosen, peer, stop).await
            }
            Negotiated::Ended(end) => {
                let (input, writer) = input.map(S::divide);
                Ok(self.close(end, input, writer).await)
            }
        }
    }

    /// Negotiates all over again, but for what [`Upgrade`] keeps, where nobody listens in.
    async fn run_secured<S: Transport>(
        &self,
        stream: S,
        upgrade: Upgrade,
        peer: SocketAddr,
        ready: impl FnOnce(),
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<ConnectionEnd, ConnectionError> {
        let accepting = timeout_at(upgrade.deadline, upgrade.acceptor.accept(stream));
        let stream = tokio::select! {
            biased;
            () = stop.as_mut() => return Ok(ConnectionEnd::Stopped),
            accepted = accepting => accepted
                .map_err(|_| ConnectionError::HandshakeTimeout)?
                .map_err(ConnectionError::Tls)?,
        };
        let mut input = Input::new(stream);
        let negotiation =
            Negotiation::secured(&mut input, &*self.exports, &self.limits, peer, &upgrade);
        match negotiation.run(stop.as_mut()).await? {
            Negotiated::Transmission(chosen) => {
                ready();
                self.transmit(input, chosen, peer, stop).await
            }
            Negotiated::Ended(end) => {
                let (input, writer) = input.map(Transport::divide);
                Ok(self.close(end, input, writer).await)
            }
            Negotiated::StartTls(_) => unreachable!("a secured negotiation has no acceptor"),
        }
    }

    /// Everything is written; a peer that is gone already does not make this a failure.
    ///
    /// What the peer still sends is read for a while: a TCP socket that is closed with bytes unread, or that more come to afterwards,
    /// drops the replies that it has not sent yet.
    async fn close(
        &self,
        end: ConnectionEnd,
        mut input: Input<impl AsyncRead + Unpin>,
        mut writer: impl AsyncWrite + Unpin,
    ) -> ConnectionEnd {
        let _ = timeout(self.limits.drain_timeout, writer.shutdown()).await;
        let _ = timeout(self.limits.linger_timeout, input.drop_rest()).await;
        end
    }

    async fn transmit<S: Transport>(
        &self,
        input: Input<S>,
        chosen: Chosen,
        peer: SocketAddr,
        stop: impl Future<Output = ()>,
    ) -> Result<ConnectionEnd, ConnectionError> {
        let Chosen { device, terms } = chosen;
        tracing::debug!(%peer, export = %terms.info.name, "transmission begins");
        let (input, writer) = input.map(S::divide);
        let (calls, received) = unbounded_channel();
        let patience = Patience::new(&self.limits);
        let budget = Arc::new(ConnectionBudget::new(
            &self.limits,
            Arc::clone(&self.budget),
        ));
        let mut replies = Replies::new(writer, received, patience, Arc::clone(&budget));
        let mut requests = Requests {
            input,
            device: Arc::clone(&device),
            terms,
            budget,
            limits: Arc::clone(&self.limits),
            calls,
        };
        tokio::pin!(stop);
        // Not biased: a task may do so much at a time, and a peer that always has another request would leave
        // nothing of it to the replies.
        let end = tokio::select! {
            () = stop.as_mut() => Ok(ConnectionEnd::Stopped),
            ended = device.ended() => match ended {
                Ended::Finished => Ok(ConnectionEnd::DeviceEnded),
                Ended::Cut => return Err(ConnectionError::DeviceEnded),
            },
            end = requests.read() => end,
            // Replies only end by themselves when no call can come, and `requests` still lives.
            ended = replies.run() => ended.map(|()| ConnectionEnd::Closed),
        };
        let ending = Ending {
            device,
            input: Some(requests.into_input()),
            replies,
            limits: &self.limits,
        };
        // Boxed, so that idle connections are none the larger for it.
        let (end, input, writer) = Box::pin(ending.run(end, stop)).await?;
        Ok(self.close(end, input, writer).await)
    }
}

/// The reading half of the transmission phase.
struct Requests<R> {
    input: Input<R>,
    device: Arc<dyn BlockDevice>,
    terms: Terms,
    budget: Arc<ConnectionBudget>,
    limits: Arc<Limits>,
    /// Unbounded, and bounded by the claims that every call carries.
    calls: UnboundedSender<Call>,
}

impl<R: AsyncRead + Unpin> Requests<R> {
    /// Reads until the peer leaves. Dropping this future inside a request means that it was never called.
    async fn read(&mut self) -> Result<ConnectionEnd, ConnectionError> {
        while let Some(request) = self.next().await? {
            let mut claim = self.budget.request().await;
            let work = match self.terms.judge(&request) {
                Ok(Operation::Disconnect) => return Ok(ConnectionEnd::Disconnected),
                Ok(operation) => self.call(&request, operation, &mut claim).await?,
                Err(refusal) => self.refuse(&request, refusal).await?,
            };
            let to = ReplyTo {
                style: self.terms.replies,
                cookie: request.cookie,
                offset: request.offset,
            };
            if self.calls.send(Call { to, work, claim }).is_err() {
                break;
            }
        }
        Ok(ConnectionEnd::Closed)
    }

    /// The input, wherever the reading stopped. No call can come any more.
    fn into_input(self) -> Input<R> {
        self.input
    }

    async fn next(&mut self) -> Result<Option<Request>, ConnectionError> {
        let request = match self.terms.replies {
            ReplyStyle::Simple | ReplyStyle::Structured => {
                let header = self.input.message().await?;
                header.map(|header| Request::decode(&header))
            }
            ReplyStyle::Extended => {
                let header = self.input.message().await?;
                header.map(|header| Request::decode_extended(&header))
            }
        };
        Ok(request.transpose()?)
    }

    async fn call(
        &mut self,
        request: &Request,
        operation: Operation,
        claim: &mut Claim,
    ) -> Result<Work, ConnectionError> {
        Ok(match operation {
            Operation::Read {
                offset,
                len,
                fragments,
            } => {
                self.budget.add_bytes(claim, len).await;
                Work::Read {
                    offset,
                    len,
                    fragments,
                    answer: self.device.read(offset, len),
                }
            }
            Operation::Write { offset, len } => {
                let data = self.claimed_payload(claim, len).await?;
                Work::Change(self.device.write(offset, data))
            }
            Operation::Trim { offset, len } => Work::Change(self.device.trim(offset, len)),
            Operation::WriteZeroes {
                offset,
                len,
                holes,
                speed,
            } => match speed {
                Speed::Fast if !self.device.zeroes_are_fast(offset, len, holes) => {
                    Work::refused(request, Refusal::SLOW_ZEROES)
                }
                _ => Work::Change(self.device.write_zeroes(offset, len, holes)),
            },
            Operation::Cache => Work::Change(Box::pin(ready(Ok(())))),
            Operation::BlockStatus(query) => self.block_status(query, claim).await,
            Operation::FilteredStatus { payload_bytes } => {
                let payload = self.payload(payload_bytes).await?;
                match self.terms.judge_filter(request, &payload) {
                    Ok(query) => self.block_status(query, claim).await,
                    Err(refusal) => Work::refused(request, refusal),
                }
            }
            Operation::Flush | Operation::Disconnect => Work::Change(self.device.flush()),
        })
    }

    async fn block_status(&self, mut query: StatusQuery, claim: &mut Claim) -> Work {
        if query.contexts.is_empty() {
            return Work::Change(Box::pin(ready(Ok(()))));
        }
        // A claim is at most one request of the largest size.
        let each = EXTENT_BYTES * u32::try_from(query.contexts.len()).unwrap_or(u32::MAX);
        let affordable = (self.limits.request_bytes_max / each).max(1);
        query.extents_max = query.extents_max.min(affordable);
        let bytes = (query.extents_max * each).min(self.limits.request_bytes_max);
        self.budget.add_bytes(claim, bytes).await;
        let asked = query
            .contexts
            .iter()
            .map(|selected| self.ask_status(&query, selected.context));
        Work::Status {
            answer: Box::pin(try_join_all(asked)),
            unit: self.terms.info.block_bytes_min,
            query,
        }
    }

    fn ask_status(
        &self,
        query: &StatusQuery,
        context: MetaContext,
    ) -> BoxFuture<'static, Result<Vec<Extent<u32>>, BlockError>> {
        let StatusQuery { offset, len, .. } = *query;
        let most = query.extents_max as usize;
        match context {
            MetaContext::Allocation => {
                let told = self.device.allocation(offset, len, most);
                Box::pin(async move { Ok(flagged(told.await?)) })
            }
            MetaContext::ChangedSince(point) => {
                let told = self.device.changed_since(point, offset, len, most);
                Box::pin(async move { Ok(flagged(told.await?)) })
            }
        }
    }

    /// A payload that is short whatever it is for.
    async fn payload(&mut self, len: usize) -> Result<Bytes, ConnectionError> {
        let mut patience = self.limits.transfer_timeout;
        patiently(&mut patience, len, self.input.payload(len)).await
    }

    /// Takes memory for a payload as it arrives. The waits for memory are not the peer's.
    async fn claimed_payload(
        &mut self,
        claim: &mut Claim,
        len: u32,
    ) -> Result<Bytes, ConnectionError> {
        let mut patience = self.limits.transfer_timeout;
        let whole = len as usize;
        patiently(&mut patience, whole, self.input.payload_begins()).await?;
        let mut arrived = self.budget.payload_step(0, len);
        self.budget.add_bytes(claim, arrived).await;
        let reading = self.input.extend(BytesMut::new(), arrived as usize);
        let mut payload = patiently(&mut patience, whole, reading).await?;
        while arrived < len {
            let next = self.budget.payload_step(arrived, len);
            self.budget.grow(claim, next - arrived).await;
            let reading = self.input.extend(payload, next as usize);
            payload = patiently(&mut patience, whole, reading).await?;
            arrived = next;
        }
        Ok(payload.freeze())
    }

    /// The payload of a refused request is read and dropped, so that the next request is found.
    async fn refuse(
        &mut self,
        request: &Request,
        refusal: Refusal,
    ) -> Result<Work, ConnectionError> {
        let bytes = self.terms.payload_bytes(request);
        let extended = self.terms.replies == ReplyStyle::Extended;
        let most = PAYLOAD_TAKEN_MIN.max(u64::from(self.terms.info.block_bytes_max));
        if extended && bytes > most {
            return Err(ConnectionError::PayloadTooLarge { bytes });
        }
        self.input.skip(bytes).await?;
        Ok(Work::refused(request, refusal))
    }
}

/// Waits for a part of a payload of `bytes`, and takes the time from `patience`.
async fn patiently<T>(
    patience: &mut Duration,
    bytes: usize,
    reading: impl Future<Output = io::Result<T>>,
) -> Result<T, ConnectionError> {
    let begun = Instant::now();
    let read = timeout(*patience, reading)
        .await
        .map_err(|_| ConnectionError::PayloadTimeout { bytes })??;
    *patience = patience.saturating_sub(begun.elapsed());
    Ok(read)
}

/// Up to here a payload is no attack, whatever the export advertises: so says the specification.
const PAYLOAD_TAKEN_MIN: u64 = 1 << 25;
