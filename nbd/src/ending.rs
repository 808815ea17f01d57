//! The end of a connection: what its device still works at is waited for, whether anybody hears of it or not.
//!
//! - Behind a goodbye, requests in flight and their replies have the time they need, as long as something advances: the specification
//!   has them handled. A stop of the server cuts that short.
//! - A peer that is gone without a goodbye may send the same to another server: its device is told, and need not begin anything.
//! - Payloads that the device holds count until it answers, also when the peer was cut. Peers that come back again and again
//!   would else leave more memory behind each time.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep, timeout};

use crate::connection::{ConnectionEnd, ConnectionError};
use crate::export::{BlockDevice, Ended};
use crate::input::Input;
use crate::limits::Limits;
use crate::replies::Replies;

/// A connection on which no more requests are read.
pub(crate) struct Ending<'a, R, W> {
    pub(crate) device: Arc<dyn BlockDevice>,
    /// `None` once the peer is let go.
    pub(crate) input: Option<Input<R>>,
    pub(crate) replies: Replies<W>,
    pub(crate) limits: &'a Limits,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Ending<'_, R, W> {
    /// Answers with both halves of the connection when every reply is written. `stop` is not looked at if it was what ended the reading.
    pub(crate) async fn run(
        mut self,
        end: Result<ConnectionEnd, ConnectionError>,
        stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(ConnectionEnd, Input<R>, W), ConnectionError> {
        let stopped = matches!(end, Ok(ConnectionEnd::Stopped));
        let time = self.limits.drain_timeout;
        let device = Arc::clone(&self.device);
        let end = tokio::select! {
            biased;
            end = self.wait(end) => end?,
            () = cut(&*device) => return Err(ConnectionError::DeviceEnded),
            () = time_up(stop, stopped, time) => {
                // Its peer sees the end of the connection, and may go to another server at once.
                device.peer_gone();
                return Err(ConnectionError::DrainTimeout);
            }
        };
        // The device lives until its last reply is out: closing it may end a session.
        let halves = self.input.zip(self.replies.into_writer());
        halves
            .map(|(input, writer)| (end, input, writer))
            .ok_or(ConnectionError::DrainTimeout)
    }

    async fn wait(
        &mut self,
        end: Result<ConnectionEnd, ConnectionError>,
    ) -> Result<ConnectionEnd, ConnectionError> {
        if matches!(end, Ok(ConnectionEnd::Closed) | Err(_)) {
            self.device.peer_gone();
        }
        let said_goodbye = matches!(end, Ok(ConnectionEnd::Disconnected));
        let error = match end {
            Ok(end) => match self.drain().await {
                Ok(()) => return Ok(end),
                Err(error) => error,
            },
            Err(error) => error,
        };
        self.input = None;
        self.replies.mute();
        if said_goodbye {
            // Most clients close behind it without waiting. What they sent before is done all the same.
            if !matches!(error, ConnectionError::DrainTimeout) {
                let _unheard = self.drain().await;
            }
        } else {
            self.device.peer_gone();
        }
        self.replies.forget_all_but_payloads();
        let _unheard = self.replies.run().await;
        Err(error)
    }

    /// Until all is answered, or nothing advances.
    async fn drain(&mut self) -> Result<(), ConnectionError> {
        loop {
            let before = self.progress();
            let run = timeout(self.limits.goodbye_timeout, self.replies.run()).await;
            match run {
                Ok(done) => return done,
                Err(_) if before != self.progress() => {}
                Err(_) => return Err(ConnectionError::DrainTimeout),
            }
        }
    }

    /// Changes whenever the device is done with something, or the peer takes something: a slow line may need minutes for what was
    /// answered long ago.
    fn progress(&self) -> (usize, u64, u64) {
        let device = self.device.progress();
        (self.replies.in_flight(), device, self.replies.taken())
    }
}

/// Resolves when the device ends so that nothing is to be answered.
async fn cut(device: &dyn BlockDevice) {
    if device.ended().await == Ended::Finished {
        std::future::pending().await
    }
}

/// Resolves when requests in flight have had their time since the server was told to stop.
async fn time_up(stop: Pin<&mut impl Future<Output = ()>>, stopped: bool, time: Duration) {
    if !stopped {
        stop.await;
    }
    sleep(time).await;
}
