//! Whether a node answers: `GET /healthz`, by hand, as nothing else of HTTP is needed here.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Whether `address` answers `/healthz` with 200 now.
pub(super) async fn is_healthy(address: &str) -> bool {
    timeout(ANSWER_WITHIN, ask(address)).await.unwrap_or(false)
}

async fn ask(address: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(address).await else {
        return false;
    };
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    if stream.write_all(request.as_bytes()).await.is_err() {
        return false;
    }
    let mut status = [0_u8; 12];
    stream.read_exact(&mut status).await.is_ok() && status.ends_with(b" 200")
}

const ANSWER_WITHIN: Duration = Duration::from_millis(500);
