//! Option haggling with one peer, up to the choice of an export.
//!
//! - Every wait for the peer ends at one deadline; time that [`Exports`] takes is added to it.
//! - At most `option_bytes_max` of an option are ever held; longer ones are skipped as they arrive.
//! - When the server stops, options that come are answered `ERR_SHUTDOWN`, for a short while. An option that is being
//!   answered at that moment ends with its connection.
//! - Where TLS is demanded, nothing but `STARTTLS` and `ABORT` is answered before it; where it begins, another negotiation does.
//! - An option that is refused leaves the negotiation as it was, but for the selection that a `SET_META_CONTEXT` replaces also when it
//!   fails. Only lost framing, a flag that was never offered and a refused `EXPORT_NAME`, which has no error reply, end the connection.

mod meta;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;

use crate::codec::{
    ClientFlags, ExportFacts, ExportQuery, Greeting, OPTION_HEADER_BYTES, OptionHeader, ReplyStyle,
    parse_name, put_export_name_answer, put_option_reply, put_rep_server,
};
use crate::connection::{ConnectionEnd, ConnectionError};
use crate::export::{BlockDevice, ExportInfo, Exports, OpenError};
use crate::input::Input;
use crate::limits::Limits;
use crate::protocol::{option, reply};
use crate::requests::Terms;
use crate::tls::Tls;
use crate::transport::Transport;
use meta::Selection;

/// How a negotiation ended.
pub(crate) enum Negotiated {
    Transmission(Chosen),
    /// `NBD_OPT_STARTTLS` was acknowledged: what comes next is TLS.
    StartTls(Upgrade),
    Ended(ConnectionEnd),
}

/// The export that a client chose, and how it is served.
pub(crate) struct Chosen {
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) terms: Terms,
}

/// All that is kept of a negotiation when TLS begins. Whatever else was agreed before may have been the work of somebody on the
/// way, and is forgotten.
pub(crate) struct Upgrade {
    pub(crate) acceptor: TlsAcceptor,
    pub(crate) deadline: Instant,
    client: ClientFlags,
    options_left: u32,
}

/// What there is to say about TLS.
enum Security<'a> {
    Plain(&'a Tls),
    Established,
}

pub(crate) struct Negotiation<'a, S> {
    input: &'a mut Input<S>,
    exports: &'a dyn Exports,
    limits: &'a Limits,
    peer: SocketAddr,
    security: Security<'a>,
    deadline: Instant,
    options_left: u32,
    stopping: bool,
    client: ClientFlags,
    replies: ReplyStyle,
    selection: Option<Selection>,
    out: BytesMut,
}

impl<'a, S: Transport> Negotiation<'a, S> {
    pub(crate) fn new(
        input: &'a mut Input<S>,
        exports: &'a dyn Exports,
        limits: &'a Limits,
        peer: SocketAddr,
        tls: &'a Tls,
    ) -> Self {
        Self {
            input,
            exports,
            limits,
            peer,
            security: Security::Plain(tls),
            deadline: Instant::now() + limits.handshake_timeout,
            options_left: limits.options_max,
            stopping: false,
            client: ClientFlags::default(),
            replies: ReplyStyle::Simple,
            selection: None,
            out: BytesMut::new(),
        }
    }

    /// Goes on behind TLS.
    pub(crate) fn secured(
        input: &'a mut Input<S>,
        exports: &'a dyn Exports,
        limits: &'a Limits,
        peer: SocketAddr,
        upgrade: &Upgrade,
    ) -> Self {
        Self {
            security: Security::Established,
            deadline: upgrade.deadline,
            options_left: upgrade.options_left,
            client: upgrade.client,
            ..Self::new(input, exports, limits, peer, &Tls::Off)
        }
    }

    /// `stop` resolves when the server stops, and is not looked at again once it has.
    pub(crate) async fn run(
        mut self,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Negotiated, ConnectionError> {
        if let Security::Plain(tls) = self.security
            && let Some(end) = self.greet(tls, stop.as_mut()).await?
        {
            return Ok(Negotiated::Ended(end));
        }
        while self.options_left > 0 {
            self.options_left -= 1;
            let header = match self.next_option(stop.as_mut()).await {
                Ok(Some(header)) => header,
                Ok(None) => return Ok(Negotiated::Ended(ConnectionEnd::Closed)),
                Err(_) if self.stopping => return Ok(Negotiated::Ended(ConnectionEnd::Stopped)),
                Err(error) => return Err(error),
            };
            let negotiated = tokio::select! {
                biased;
                () = &mut stop, if !self.stopping => {
                    return Ok(Negotiated::Ended(ConnectionEnd::Stopped));
                }
                negotiated = self.answer(header) => negotiated?,
            };
            if let Some(negotiated) = negotiated {
                return Ok(negotiated);
            }
        }
        Err(ConnectionError::TooManyOptions)
    }

    async fn greet(
        &mut self,
        tls: &Tls,
        stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Option<ConnectionEnd>, ConnectionError> {
        self.out.extend_from_slice(&Greeting::ours().encode());
        self.send().await?;
        let flags = tokio::select! {
            biased;
            // Before its flags there is no option to answer.
            () = stop => return Ok(Some(ConnectionEnd::Stopped)),
            flags = self.by_deadline(|input| input.message()) => flags?,
        };
        let Some(flags) = flags else {
            return Ok(Some(ConnectionEnd::Closed));
        };
        self.client = ClientFlags::decode(flags)?;
        if matches!(tls, Tls::Required(_)) && !self.client.fixed_newstyle {
            return Err(ConnectionError::TlsImpossible);
        }
        Ok(None)
    }

    /// The next option, or `None` when the peer closed before it.
    async fn next_option(
        &mut self,
        stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Option<OptionHeader>, ConnectionError> {
        if !self.stopping {
            // Nothing is lost when this wait is cancelled: the bytes stay in the input.
            tokio::select! {
                biased;
                () = stop => self.stopping = true,
                header = self.by_deadline(|input| input.message()) => return decode(header?),
            }
            let farewell = Instant::now() + self.limits.farewell_timeout;
            self.deadline = self.deadline.min(farewell);
        }
        decode(self.by_deadline(|input| input.message()).await?)
    }

    async fn answer(
        &mut self,
        header: OptionHeader,
    ) -> Result<Option<Negotiated>, ConnectionError> {
        if header.option == option::SET_META_CONTEXT {
            // Whatever is answered: an option that is refused unread must not keep the selection before it, either.
            self.selection = None;
        }
        let negotiated = if self.must_be_secured(header.option) {
            self.refuse_unsecured(header).await?
        } else if self.stopping {
            self.refuse_stopping(header).await?
        } else {
            self.handle_option(header).await?
        };
        self.send().await?;
        Ok(negotiated)
    }

    fn must_be_secured(&self, option: u32) -> bool {
        matches!(self.security, Security::Plain(Tls::Required(_)))
            && !matches!(option, option::ABORT | option::STARTTLS)
    }

    /// Data of any length is not even held.
    async fn refuse_unsecured(
        &mut self,
        header: OptionHeader,
    ) -> Result<Option<Negotiated>, ConnectionError> {
        if header.option == option::EXPORT_NAME {
            return Ok(Some(Negotiated::Ended(ConnectionEnd::NoExport)));
        }
        let text = "this server demands TLS";
        self.reply(header.option, reply::ERR_TLS_REQD, text);
        self.send().await?;
        self.skip(header.length).await?;
        Ok(None)
    }

    async fn refuse_stopping(
        &mut self,
        header: OptionHeader,
    ) -> Result<Option<Negotiated>, ConnectionError> {
        match header.option {
            option::ABORT => return self.handle_option(header).await,
            // There is no reply to say it with.
            option::EXPORT_NAME => return Ok(Some(Negotiated::Ended(ConnectionEnd::Stopped))),
            option => self.reply(option, reply::ERR_SHUTDOWN, "the server is stopping"),
        }
        self.send().await?;
        self.skip(header.length).await?;
        Ok(None)
    }

    /// Answers one option into `out`.
    async fn handle_option(
        &mut self,
        header: OptionHeader,
    ) -> Result<Option<Negotiated>, ConnectionError> {
        let OptionHeader { option, length } = header;
        if option == option::ABORT {
            return self.abort(length).await.map(Some);
        }
        if length > self.limits.option_bytes_max {
            return self.refuse_oversized(header).await;
        }
        let length = length as usize;
        let data = timeout_at(self.deadline, self.input.payload(length))
            .await
            .map_err(|_| ConnectionError::HandshakeTimeout)??;
        match option {
            option::EXPORT_NAME => return self.export_name(&data).await.map(Some),
            option::STARTTLS => return self.start_tls(&data),
            option::LIST if data.is_empty() => self.list().await,
            option::STRUCTURED_REPLY if data.is_empty() => self.structured_reply(),
            option::EXTENDED_HEADERS if data.is_empty() => {
                self.replies = ReplyStyle::Extended;
                self.reply(option, reply::ACK, "");
            }
            option::LIST | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => {
                self.reply(option, reply::ERR_INVALID, "this option takes no data");
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(option, &data).await;
            }
            option::INFO | option::GO => match ExportQuery::decode(&data) {
                Ok(query) => return Ok(self.info_or_go(option, &query).await),
                Err(error) => self.reply(option, reply::ERR_INVALID, &error.to_string()),
            },
            _ => self.reply(option, reply::ERR_UNSUP, "unknown option"),
        }
        Ok(None)
    }

    /// Its data is ignored, however much there is. It is read all the same: a socket that is closed with bytes unread takes the
    /// answer back. A peer that closes before all of it was sent has ended, too.
    async fn abort(&mut self, length: u32) -> Result<Negotiated, ConnectionError> {
        self.reply(option::ABORT, reply::ACK, "");
        self.send().await?;
        let _ignored = self.skip(length).await;
        Ok(Negotiated::Ended(ConnectionEnd::Aborted))
    }

    /// Bytes that were read ahead came before TLS. Nothing may take them for what TLS protects, so the connection ends there;
    /// those that are still on their way are read as TLS, which they are not.
    fn start_tls(&mut self, data: &[u8]) -> Result<Option<Negotiated>, ConnectionError> {
        let refusal = match &self.security {
            Security::Established => (reply::ERR_INVALID, "TLS is in use already"),
            Security::Plain(Tls::Off) => (reply::ERR_POLICY, "TLS is not configured here"),
            Security::Plain(_) if !data.is_empty() => {
                (reply::ERR_INVALID, "this option takes no data")
            }
            Security::Plain(_) if !self.client.fixed_newstyle => {
                (reply::ERR_POLICY, "TLS needs the fixed newstyle handshake")
            }
            Security::Plain(_) if self.input.is_ahead() => {
                return Err(ConnectionError::PlaintextAfterStartTls);
            }
            Security::Plain(Tls::Optional(identity) | Tls::Required(identity)) => {
                let upgrade = Upgrade {
                    acceptor: identity.acceptor(),
                    deadline: self.deadline,
                    client: self.client,
                    options_left: self.options_left,
                };
                self.reply(option::STARTTLS, reply::ACK, "");
                return Ok(Some(Negotiated::StartTls(upgrade)));
            }
        };
        self.reply(option::STARTTLS, refusal.0, refusal.1);
        Ok(None)
    }

    /// The reply goes out before the data comes in: a peer that waits for it need not send 4 GiB first.
    async fn refuse_oversized(
        &mut self,
        header: OptionHeader,
    ) -> Result<Option<Negotiated>, ConnectionError> {
        if header.option == option::EXPORT_NAME {
            return Ok(Some(Negotiated::Ended(ConnectionEnd::NoExport)));
        }
        self.reply(header.option, reply::ERR_TOO_BIG, "option too large");
        self.send().await?;
        self.skip(header.length).await?;
        Ok(None)
    }

    async fn skip(&mut self, length: u32) -> Result<(), ConnectionError> {
        timeout_at(self.deadline, self.input.skip(u64::from(length)))
            .await
            .map_err(|_| ConnectionError::HandshakeTimeout)?
            .map_err(ConnectionError::Io)
    }

    async fn list(&mut self) {
        let names = self.exports.list();
        match self.ask(names).await.unwrap_or_else(too_slow) {
            Ok(names) => {
                for name in names {
                    put_rep_server(&mut self.out, option::LIST, &name);
                }
                self.reply(option::LIST, reply::ACK, "");
            }
            Err(error) => self.reply(option::LIST, refusal(&error), &error.to_string()),
        }
    }

    /// Extended headers take precedence, and there is no way back.
    fn structured_reply(&mut self) {
        let option = option::STRUCTURED_REPLY;
        if self.replies == ReplyStyle::Extended {
            let text = "extended headers are in use";
            return self.reply(option, reply::ERR_EXT_HEADER_REQD, text);
        }
        self.replies = ReplyStyle::Structured;
        self.reply(option, reply::ACK, "");
    }

    async fn export_name(&mut self, name: &[u8]) -> Result<Negotiated, ConnectionError> {
        if self.replies == ReplyStyle::Extended {
            // Not allowed to a client that negotiated them, and there is no reply to say so.
            return Ok(Negotiated::Ended(ConnectionEnd::NoExport));
        }
        let opened = match parse_name(name) {
            Ok(name) => self.open(name).await,
            Err(_) => Err(OpenError::Unknown),
        };
        Ok(match opened {
            Ok((device, terms)) => {
                let flags = terms.transmission_flags();
                put_export_name_answer(&mut self.out, terms.info.size_bytes, flags, self.client);
                Negotiated::Transmission(Chosen { device, terms })
            }
            Err(error) => {
                tracing::debug!(peer = %self.peer, %error, "export refused");
                Negotiated::Ended(ConnectionEnd::NoExport)
            }
        })
    }

    async fn info_or_go(&mut self, option: u32, query: &ExportQuery) -> Option<Negotiated> {
        let chosen = if option == option::GO {
            self.open(&query.name)
                .await
                .map(|(device, terms)| (Some(device), terms))
        } else {
            self.describe(&query.name).await.map(|terms| (None, terms))
        };
        match chosen {
            Ok((device, terms)) => {
                let info = &terms.info;
                ExportFacts {
                    size_bytes: info.size_bytes,
                    flags: terms.transmission_flags(),
                    blocks: [
                        info.block_bytes_min,
                        info.block_bytes_preferred,
                        info.block_bytes_max,
                    ],
                    name: &info.name,
                    description: &info.description,
                }
                .encode(&mut self.out, option, &query.infos);
                self.reply(option, reply::ACK, "");
                device.map(|device| Negotiated::Transmission(Chosen { device, terms }))
            }
            Err(error) => {
                let kind = refusal(&error);
                self.reply(option, kind, &error.to_string());
                None
            }
        }
    }

    async fn open(&mut self, name: &str) -> Result<(Arc<dyn BlockDevice>, Terms), OpenError> {
        let name = self.resolve(name).await?;
        let opening = self.exports.open(&name, self.peer);
        let device = self.ask(opening).await.unwrap_or_else(too_slow)?;
        let terms = self.terms(&name, device.info())?;
        Ok((device, terms))
    }

    async fn describe(&mut self, name: &str) -> Result<Terms, OpenError> {
        let name = self.resolve(name).await?;
        let info = self.describe_resolved(&name).await?;
        self.terms(&name, info)
    }

    async fn describe_resolved(&mut self, name: &str) -> Result<ExportInfo, OpenError> {
        let describing = self.exports.describe(name, self.peer);
        self.ask(describing).await.unwrap_or_else(too_slow)
    }

    /// The empty name stands for the only export, if there is exactly one.
    async fn resolve(&mut self, name: &str) -> Result<String, OpenError> {
        if !name.is_empty() {
            return Ok(name.to_owned());
        }
        let names = self.exports.list();
        match &self.ask(names).await.unwrap_or_else(too_slow)?[..] {
            [only] => Ok(only.clone()),
            _ => Err(OpenError::Unknown),
        }
    }

    fn terms(&self, name: &str, info: ExportInfo) -> Result<Terms, OpenError> {
        let info = info
            .bounded(self.limits.request_bytes_max)
            .map_err(|error| {
                tracing::error!(%error, "export cannot be advertised");
                OpenError::Unavailable {
                    reason: error.to_string(),
                }
            })?;
        Ok(Terms {
            info,
            replies: self.replies,
            contexts: self.contexts_of(name),
        })
    }

    /// Waits for our own side, whose time is not the peer's. `None` when it takes too long.
    async fn ask<T>(&mut self, question: impl Future<Output = T>) -> Option<T> {
        let asked = Instant::now();
        let answer = timeout(self.limits.open_timeout, question).await;
        self.deadline += asked.elapsed();
        answer.ok()
    }

    fn reply(&mut self, option: u32, kind: u32, text: &str) {
        put_option_reply(&mut self.out, option, kind, text.as_bytes());
    }

    async fn send(&mut self) -> Result<(), ConnectionError> {
        let sending = async {
            let writer = self.input.stream();
            writer.write_all_buf(&mut self.out).await?;
            writer.flush().await
        };
        timeout_at(self.deadline, sending)
            .await
            .map_err(|_| ConnectionError::HandshakeTimeout)?
            .map_err(ConnectionError::Io)
    }

    async fn by_deadline<'s, T, F>(
        &'s mut self,
        read: impl FnOnce(&'s mut Input<S>) -> F,
    ) -> Result<T, ConnectionError>
    where
        F: Future<Output = io::Result<T>> + 's,
        S: 's,
    {
        timeout_at(self.deadline, read(self.input))
            .await
            .map_err(|_| ConnectionError::HandshakeTimeout)?
            .map_err(ConnectionError::Io)
    }
}

fn decode(
    header: Option<[u8; OPTION_HEADER_BYTES]>,
) -> Result<Option<OptionHeader>, ConnectionError> {
    let header = header.map(|header| OptionHeader::decode(&header));
    Ok(header.transpose()?)
}

/// How an option is told why there is no such export for it.
fn refusal(error: &OpenError) -> u32 {
    match error {
        OpenError::Unknown => reply::ERR_UNKNOWN,
        OpenError::Refused { .. } | OpenError::Unavailable { .. } => reply::ERR_POLICY,
        OpenError::ShuttingDown => reply::ERR_SHUTDOWN,
    }
}

fn too_slow<T>() -> Result<T, OpenError> {
    Err(OpenError::Unavailable {
        reason: "it took too long".to_owned(),
    })
}
