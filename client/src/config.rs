//! How patient a client is, and how much it keeps in flight.

use std::time::Duration;

/// Settings of a [`crate::Client`]. The defaults fit a cluster in one region.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// `host:port` of some nodes of the cluster; one that lives is enough, the others are learned from it.
    pub endpoints: Vec<String>,
    /// How long `connect` and `open` wait for a node and for a primary. Default 10 s.
    pub open_deadline: Duration,
    /// How long a request to a log volume waits for its answer before it is `Unknown`. Default 30 s.
    pub log_deadline: Duration,
    /// The same for block volumes. Default 60 s.
    pub block_deadline: Duration,
    /// How long an operator's request waits. Default 15 s.
    pub admin_deadline: Duration,
    /// Mutations and reads of one handle without an answer. Default 4096.
    pub in_flight_requests_max: usize,
    /// Their payload. Default 64 MiB. A greater single payload passes alone.
    pub in_flight_bytes_max: usize,
    /// A request older than this makes the client ask the other nodes for a newer primary. Default 150 ms.
    pub stall_check: Duration,
    /// How long a node may take to say who is primary, a question it answers from memory. Default 300 ms.
    pub ask_timeout: Duration,
    /// First pause between two searches for a primary; it doubles. Default 2 ms.
    pub retry_first: Duration,
    /// Longest such pause. Default 20 ms.
    pub retry_last: Duration,
}

impl ClientConfig {
    /// The defaults, for a cluster with a node at each of `endpoints`.
    ///
    /// # Example
    /// ```
    /// use mainstay_client::ClientConfig;
    /// use std::time::Duration;
    ///
    /// let mut config = ClientConfig::new(["10.0.0.1:7400", "10.0.0.2:7400"]);
    /// config.log_deadline = Duration::from_secs(5);
    /// assert_eq!(config.endpoints.len(), 2);
    /// ```
    pub fn new<T: Into<String>>(endpoints: impl IntoIterator<Item = T>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            open_deadline: Duration::from_secs(10),
            log_deadline: Duration::from_secs(30),
            block_deadline: Duration::from_secs(60),
            admin_deadline: Duration::from_secs(15),
            in_flight_requests_max: 4096,
            in_flight_bytes_max: 64 << 20,
            stall_check: Duration::from_millis(150),
            ask_timeout: Duration::from_millis(300),
            retry_first: Duration::from_millis(2),
            retry_last: Duration::from_millis(20),
        }
    }
}
