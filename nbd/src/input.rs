//! Reading from one peer: headers through a small buffer, payloads straight into their own.
//!
//! The buffer takes several pipelined requests in one read. It is small until the peer writes, so that connections that are idle
//! or only read cost next to nothing; then it takes a few small writes whole. What it holds of a payload has to be copied, the
//! rest of a long payload arrives where it stays.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// What is read at once from a peer that has written nothing yet.
const BUFFER_BYTES: usize = 1024;
/// And from one that writes: three writes of 4 KiB with their headers. Copying so much costs less than a call to the kernel.
const WRITER_BUFFER_BYTES: usize = 16 << 10;

pub(crate) struct Input<R> {
    reader: R,
    buffer: BytesMut,
    fill_bytes: usize,
}

impl<R: AsyncRead + Unpin> Input<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self {
            reader,
            buffer: BytesMut::with_capacity(BUFFER_BYTES),
            fill_bytes: BUFFER_BYTES,
        }
    }

    /// Bytes that came and that nobody has asked for yet.
    pub(crate) fn is_ahead(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The stream itself, to write to.
    pub(crate) fn stream(&mut self) -> &mut R {
        &mut self.reader
    }

    /// Reads and drops whatever comes until the peer closes or is gone, holding no more than the buffer.
    pub(crate) async fn drop_rest(&mut self) {
        // As much never comes: what ends this is the end of the input.
        let _ended = self.skip(u64::MAX).await;
    }

    /// The stream itself, without what was read ahead of it.
    pub(crate) fn into_stream(self) -> R {
        self.reader
    }

    /// The next `N` bytes, or `None` when the peer closed before the first of them. Loses nothing when cancelled.
    pub(crate) async fn message<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        loop {
            if let Some(message) = self.buffer.first_chunk::<N>().copied() {
                self.buffer.advance(N);
                return Ok(Some(message));
            }
            if self.fill().await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    /// Waits for the first byte of a payload, holding no more than the buffer.
    pub(crate) async fn payload_begins(&mut self) -> io::Result<()> {
        self.fill_bytes = WRITER_BUFFER_BYTES;
        if self.buffer.is_empty() && self.fill().await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// The next `len` bytes, in a buffer of exactly that size with no other handle on it.
    ///
    /// The caller has bounded `len`.
    pub(crate) async fn payload(&mut self, len: usize) -> io::Result<Bytes> {
        self.fill_bytes = WRITER_BUFFER_BYTES;
        Ok(self.extend(BytesMut::new(), len).await?.freeze())
    }

    /// `payload` with what follows it, `len` bytes together, in a buffer as [`payload`](Self::payload) gives.
    pub(crate) async fn extend(&mut self, payload: BytesMut, len: usize) -> io::Result<BytesMut> {
        let mut whole = BytesMut::with_capacity(len);
        whole.extend_from_slice(&payload);
        drop(payload);
        let buffered = self.buffer.len().min(len - whole.len());
        whole.extend_from_slice(&self.buffer[..buffered]);
        self.buffer.advance(buffered);
        while whole.len() < len {
            let missing = len - whole.len();
            let mut rest = (&mut whole).limit(missing);
            if self.reader.read_buf(&mut rest).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(whole)
    }

    /// Reads and drops the next `len` bytes, holding no more than the buffer.
    pub(crate) async fn skip(&mut self, mut len: u64) -> io::Result<()> {
        loop {
            let buffered = usize::try_from(len)
                .unwrap_or(usize::MAX)
                .min(self.buffer.len());
            self.buffer.advance(buffered);
            len -= buffered as u64;
            if len == 0 {
                return Ok(());
            }
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Replaces the reader by a part of it.
    pub(crate) fn map<Part, Other>(
        self,
        divide: impl FnOnce(R) -> (Part, Other),
    ) -> (Input<Part>, Other) {
        let (reader, other) = divide(self.reader);
        let input = Input {
            reader,
            buffer: self.buffer,
            fill_bytes: self.fill_bytes,
        };
        (input, other)
    }

    async fn fill(&mut self) -> io::Result<usize> {
        if self.buffer.is_empty() {
            self.buffer.clear();
        }
        self.buffer.reserve(self.fill_bytes);
        self.reader.read_buf(&mut self.buffer).await
    }
}
