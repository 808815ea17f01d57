//! The network between nodes as a userspace proxy, so that it can break where nobody may make network namespaces.
//!
//! Every node reaches every other through a listener of its own here. A direction that is cut carries nothing and refuses nothing, as a
//! network does that drops packets: connections stay, new ones wait, and what was on its way comes late when it is healed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;

use mainstay_node::devcluster::Layout;
use mainstay_types::NodeId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// From whom to whom.
type Way = (NodeId, NodeId);
type Cuts = watch::Receiver<BTreeSet<Way>>;

/// Carried at once in one direction of one connection; the rest waits with whoever sends.
const CARRIED_BYTES: usize = 64 << 10;

/// All of it. Connections end when it is dropped.
#[derive(Debug)]
pub(crate) struct Network {
    nodes: Vec<NodeId>,
    cut: watch::Sender<BTreeSet<Way>>,
    /// Where a node finds another.
    pub(crate) routes: BTreeMap<Way, SocketAddr>,
    _listeners: JoinSet<()>,
}

impl Network {
    /// Between all nodes of a plan.
    pub(crate) async fn between(layout: &Layout) -> io::Result<Self> {
        let host = |node: &mainstay_node::devcluster::LayoutNode| node.host.unwrap_or(layout.host);
        let nodes = layout.nodes.iter();
        let nodes = nodes.map(|node| (node.id, SocketAddr::from((host(node), node.grpc_port))));
        Self::of(nodes.collect()).await
    }

    async fn of(nodes: Vec<(NodeId, SocketAddr)>) -> io::Result<Self> {
        let cut = watch::Sender::default();
        let mut routes = BTreeMap::new();
        let mut listeners = JoinSet::new();
        for (from, _) in &nodes {
            for (to, target) in nodes.iter().filter(|(to, _)| to != from) {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                let way = (*from, *to);
                routes.insert(way, listener.local_addr()?);
                listeners.spawn(listen(listener, way, *target, cut.subscribe()));
            }
        }
        Ok(Self {
            nodes: nodes.into_iter().map(|(node, _)| node).collect(),
            cut,
            routes,
            _listeners: listeners,
        })
    }

    /// Nothing of what `node` says reaches another.
    pub(crate) fn silence(&self, node: NodeId) {
        let others = self.nodes.iter().filter(|other| **other != node);
        self.cut
            .send_modify(|cut| cut.extend(others.map(|other| (node, *other))));
    }

    /// `node` hears nothing of what another says.
    pub(crate) fn deafen(&self, node: NodeId) {
        let others = self.nodes.iter().filter(|other| **other != node);
        self.cut
            .send_modify(|cut| cut.extend(others.map(|other| (*other, node))));
    }

    /// Everything that waited goes on.
    pub(crate) fn heal(&self) {
        self.cut.send_modify(BTreeSet::clear);
    }
}

async fn listen(listener: TcpListener, way: Way, target: SocketAddr, cut: Cuts) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((near, _)) = accepted {
                connections.spawn(connection(near, way, target, cut.clone()));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Ends, for both sides, when one of them does.
async fn connection(near: TcpStream, way: Way, target: SocketAddr, mut cut: Cuts) {
    let back = (way.1, way.0);
    // A handshake takes both directions.
    open(&mut cut, |cut| !cut.contains(&way) && !cut.contains(&back)).await;
    let Ok(far) = TcpStream::connect(target).await else {
        return;
    };
    for side in [&near, &far] {
        let _slower = side.set_nodelay(true);
    }
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let _broken = tokio::try_join!(
        carry(near_read, far_write, way, cut.clone()),
        carry(far_read, near_write, back, cut)
    );
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Way,
    mut cut: Cuts,
) -> io::Result<()> {
    let mut bytes = vec![0; CARRIED_BYTES];
    loop {
        let read = from.read(&mut bytes).await;
        // The news that a connection broke travels on it, too.
        open(&mut cut, |cut| !cut.contains(&way)).await;
        match read? {
            0 => return to.shutdown().await,
            count => to.write_all(&bytes[..count]).await?,
        }
    }
}

async fn open(cut: &mut Cuts, is_open: impl Fn(&BTreeSet<Way>) -> bool) {
    // An error says that the network is gone: then so is this task, any moment.
    let _gone = cut.wait_for(is_open).await.map(|_| ());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOTHING_FOR: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn a_cut_direction_delays_and_loses_nothing_and_the_other_goes_on() {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = server.local_addr().expect("bound");
        let (one, two) = (NodeId(1), NodeId(2));
        let network = Network::of(vec![(one, address), (two, address)]).await;
        let network = network.expect("listeners");
        let dialled = TcpStream::connect(network.routes[&(one, two)]).await;
        let mut dialled = dialled.expect("connected");
        let (mut accepted, _) = server.accept().await.expect("accepted");
        dialled.write_all(b"before").await.expect("written");
        let mut bytes = [0; 6];
        accepted.read_exact(&mut bytes).await.expect("carried");
        assert_eq!(&bytes, b"before");

        network.silence(one);
        dialled.write_all(b"during").await.expect("written");
        let arrived = tokio::time::timeout(NOTHING_FOR, accepted.read_exact(&mut bytes)).await;
        assert!(arrived.is_err(), "a cut direction carries nothing");
        accepted.write_all(b"return").await.expect("written");
        dialled
            .read_exact(&mut bytes)
            .await
            .expect("the way back is open");
        assert_eq!(&bytes, b"return");
        let mut late = TcpStream::connect(network.routes[&(one, two)])
            .await
            .expect("accepted");
        late.write_all(b"newer!").await.expect("written");
        let connected = tokio::time::timeout(NOTHING_FOR, server.accept()).await;
        assert!(connected.is_err(), "no handshake in one direction");

        network.heal();
        accepted.read_exact(&mut bytes).await.expect("late");
        assert_eq!(&bytes, b"during");
        let (mut second, _) = server.accept().await.expect("late");
        second.read_exact(&mut bytes).await.expect("late");
        assert_eq!(&bytes, b"newer!");
        drop(dialled);
        assert_eq!(accepted.read(&mut bytes).await.expect("closed"), 0);
    }
}
