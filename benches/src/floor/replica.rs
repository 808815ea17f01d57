//! A replica: read a batch, check it, make it durable, answer. One thread.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;

use super::{FILE_BYTES, FrameHeader};
use crate::disk::{AlignedBuf, LogFile, Method};

/// Prints the port it listens on and serves one primary until that goes away.
pub fn serve(path: &Path, method: Method) -> io::Result<()> {
    let file = LogFile::create(path, FILE_BYTES, method)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("{}", listener.local_addr()?.port());
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    follow(stream, file)
}

fn follow(mut stream: TcpStream, mut file: LogFile) -> io::Result<()> {
    let mut payload = Vec::new();
    let mut buffer = AlignedBuf::default();
    let mut bytes = [0; FrameHeader::BYTES];
    loop {
        match stream.read_exact(&mut bytes) {
            // The primary is done.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let header = FrameHeader::decode(bytes);
        payload.resize(header.len as usize, 0);
        stream.read_exact(&mut payload)?;
        if crc32fast::hash(&payload) != header.crc {
            return Err(io::Error::other("a batch arrived damaged"));
        }
        buffer.fill(&[&bytes, &payload]);
        file.append(buffer.padded())?;
        stream.write_all(&header.batch.to_le_bytes())?;
    }
}
