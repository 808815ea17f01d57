//! Serves devices made of memory: `cargo run -p mainstay-nbd --example memory -- 127.0.0.1:10809 64`.
//!
//! Then, elsewhere: `nbdinfo nbd://127.0.0.1`, or `qemu-img create`, or `nbdcopy`. Control-C stops it after the
//! requests in flight.

use std::error::Error;
use std::sync::Arc;

use mainstay_nbd::memory::{FixedExports, MemoryDevice};
use mainstay_nbd::{Limits, Server};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments
        .next()
        .unwrap_or_else(|| "127.0.0.1:10809".to_owned());
    let mebibytes: usize = arguments.next().map_or(Ok(64), |text| text.parse())?;
    let exports = FixedExports::new().with(MemoryDevice::new("memory", mebibytes << 20));

    let listener = TcpListener::bind(&address).await?;
    println!("{mebibytes} MiB at nbd://{}/memory", listener.local_addr()?);
    let stop = async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            eprintln!("control-C cannot be awaited: {error}");
        }
    };
    Server::new(Arc::new(exports), Limits::default())
        .serve(listener, stop)
        .await;
    Ok(())
}
