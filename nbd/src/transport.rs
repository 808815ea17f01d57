//! Streams that a negotiation reads and writes as one, and a transmission as two.

use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::server::TlsStream;

pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin {
    type Reader: AsyncRead + Unpin;
    type Writer: AsyncWrite + Unpin;

    fn divide(self) -> (Self::Reader, Self::Writer);
}

/// Without a lock between the halves.
impl Transport for TcpStream {
    type Reader = OwnedReadHalf;
    type Writer = OwnedWriteHalf;

    fn divide(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        self.into_split()
    }
}

impl<S: AsyncRead + AsyncWrite> Transport for Pin<Box<S>> {
    type Reader = ReadHalf<Self>;
    type Writer = WriteHalf<Self>;

    fn divide(self) -> (ReadHalf<Self>, WriteHalf<Self>) {
        tokio::io::split(self)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Transport for TlsStream<S> {
    type Reader = ReadHalf<Self>;
    type Writer = WriteHalf<Self>;

    fn divide(self) -> (ReadHalf<Self>, WriteHalf<Self>) {
        tokio::io::split(self)
    }
}
