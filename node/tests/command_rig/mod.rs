//! What the tests of the user's commands share: volumes that are made and moved by command, and output that can be looked at
//! meanwhile.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_node::commands::{promote, volume};
use mainstay_types::{NodeId, VolumeKind};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::support::{Cluster, PATIENCE};

/// What nobody can ask.
pub(crate) const NOBODY: Option<fn(&str) -> io::Result<String>> = None;

pub(crate) async fn create(cluster: &Cluster, name: &str, kind: VolumeKind) {
    let mut out = Vec::new();
    let args = volume::Create::new(name, kind);
    volume::create(&args, cluster.endpoints(), &mut out)
        .await
        .expect("created");
    let text = String::from_utf8(out).expect("text");
    assert!(text.starts_with("created"), "{text}");
    assert!(!text.contains("have joined so far"), "{text}");
}

pub(crate) fn json(out: &[u8]) -> Value {
    serde_json::from_slice(out).expect("JSON")
}

/// A place to print to that can be looked at meanwhile.
#[derive(Clone, Default)]
pub(crate) struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("not poisoned").clone()
    }

    pub(crate) async fn wait_for(&self, what: &str, done: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !done(&self.bytes()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let in_time = waited.await.is_ok();
        let bytes = self.bytes();
        assert!(in_time, "{what}: {} bytes", bytes.len());
        bytes
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("not poisoned").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Moves the primary to another node, again and again, until told to stop. Returns how often.
pub(crate) async fn promote_until(
    endpoints: Vec<String>,
    name: &str,
    mut stop: oneshot::Receiver<()>,
) -> u32 {
    let (mut moved, mut to, mut epoch) = (0, 0, 0);
    while stop.try_recv().is_err() {
        let args = promote::Args {
            volume: name.to_owned(),
            to: Some(NodeId(to % 3 + 1)),
            force: None,
            reason: "test".to_owned(),
            json: true,
        };
        let mut out = Vec::new();
        to += 1;
        match promote::run(&args, endpoints.clone(), &mut out).await {
            Ok(()) => {
                let now = json(&out)["epoch"].as_u64().expect("an epoch");
                moved += u32::from(epoch != 0 && now > epoch);
                epoch = epoch.max(now);
            }
            Err(error) => eprintln!("{error:#}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    moved
}
