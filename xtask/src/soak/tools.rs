//! Other people's programs on a cluster of three, where the tests of `nbd/` and `node/` have one server: a proxy in front, a
//! format of its own on top, connections to all nodes at a time.

use anyhow::{Context, ensure};
use mainstay_node::demo::cluster::DISK;

use super::programs::{LATER, SOON, run as run_program};
use super::rig::{GATEWAY, Going, Plan, Rig, VICTIMS};
use super::tree::Tree;
use crate::tools::Tool;

pub(crate) const NEEDS: [Tool; 5] = [
    Tool {
        package: "libnbd-bin",
        proof: "nbdcopy",
    },
    Tool {
        package: "python3-libnbd",
        proof: "/usr/lib/python3/dist-packages/nbd.py",
    },
    Tool {
        package: "qemu-utils",
        proof: "qemu-img",
    },
    Tool {
        package: "nbdkit",
        proof: "nbdkit",
    },
    Tool {
        package: "e2fsprogs",
        proof: "mke2fs",
    },
];

const DISK_BYTES: u64 = 128 << 20;
/// Less than the volume: qcow2 has its own tables beside it.
const IMAGE_BYTES: u64 = 96 << 20;
/// Of each of the two parts.
const KILLS: u32 = 2;
/// Of the primary, under a script with connections to all nodes.
const MOVES: u32 = 6;

pub(crate) async fn run(plan: &Plan) -> anyhow::Result<String> {
    let rig = Rig::start(plan, DISK_BYTES).await?;
    let tree = Tree::pack(&plan.root, rig.scratch()).await?;
    let image = rig.scratch().join("image").display().to_string();
    std::fs::File::create(&image)?.set_len(IMAGE_BYTES)?;
    let original = tree.original.display().to_string();
    let arguments = ["-q", "-t", "ext4", "-d", &original, &image];
    run_program("mke2fs", &arguments, LATER).await?;
    let seen = [
        chained(&rig, &image).await.context("nbdkit in front")?,
        qcow2(&rig, &image).await.context("qcow2 on the volume")?,
        everywhere(&rig).await.context("nbdsh on all nodes")?,
    ];
    rig.stop().await;
    Ok(seen.join("; "))
}

/// nbdkit's nbd plugin is a client with habits of its own, and the programs behind it see what it makes of us.
async fn chained(rig: &Rig, image: &str) -> anyhow::Result<String> {
    let back = rig.scratch().join("back").display().to_string();
    let uri = format!("uri={}", rig.uri(GATEWAY)?);
    let script = format!("nbdcopy --flush '{image}' \"$uri\" && nbdcopy \"$uri\" '{back}'");
    let load = async |going: &Going| {
        let mut rounds = 0;
        while going.on() {
            let arguments = ["--unix", "-", "nbd", &uri, "--run", &script];
            run_program("nbdkit", &arguments, LATER).await?;
            let bytes = IMAGE_BYTES.to_string();
            run_program("cmp", &["--bytes", &bytes, image, &back], SOON).await?;
            rounds += 1;
        }
        Ok(rounds)
    };
    let (kills, rounds) = rig.under_kills(KILLS, load).await?;
    Ok(format!(
        "{kills}, {rounds} copies in and out through nbdkit equal"
    ))
}

async fn qcow2(rig: &Rig, image: &str) -> anyhow::Result<String> {
    let uri = rig.uri(GATEWAY)?;
    let size = IMAGE_BYTES.to_string();
    let load = async |going: &Going| {
        let mut rounds = 0_u32;
        while going.on() {
            let qemu_img =
                async |arguments: &[&str]| run_program("qemu-img", arguments, LATER).await;
            qemu_img(&["create", "-q", "-f", "qcow2", &uri, &size]).await?;
            qemu_img(&["convert", "-n", "-f", "raw", "-O", "qcow2", image, &uri]).await?;
            qemu_img(&["check", "-q", "-f", "qcow2", &uri]).await?;
            qemu_img(&["compare", "-q", "-f", "raw", "-F", "qcow2", image, &uri]).await?;
            overwrite(&uri, rounds).await?;
            rounds += 1;
        }
        Ok(rounds)
    };
    let (kills, rounds) = rig.under_kills(KILLS, load).await?;
    let elsewhere = rig.uri(VICTIMS[0])?;
    run_program("qemu-img", &["check", "-f", "qcow2", &elsewhere], SOON).await?;
    Ok(format!(
        "{kills}, {rounds} qcow2 images checked and compared"
    ))
}

/// Patterns inside the qcow2, written and read in one process and read again in another.
async fn overwrite(uri: &str, round: u32) -> anyhow::Result<()> {
    let byte = 1 + round % 250;
    let write = format!("write -P {byte} 4k 3M");
    let read = format!("read -P {byte} 4k 3M");
    let zeroes = "write -z -u 40M 8M";
    let all = [
        "-f", "qcow2", "-c", &write, "-c", zeroes, "-c", "flush", "-c", &read, uri,
    ];
    let again = ["-f", "qcow2", "-c", &read, "-c", "read -P 0 40M 8M", uri];
    for arguments in [&all[..], &again[..]] {
        let said = run_program("qemu-io", arguments, LATER).await?;
        ensure!(!said.contains("failed"), "qemu-io: {said}");
    }
    run_program("qemu-img", &["check", "-q", "-f", "qcow2", uri], LATER).await?;
    Ok(())
}

/// Three connections, one to each node: what one was answered, the others read. Ends when a file says so.
const SCRIPT: &str = r#"
import os, random

handles = []
for uri in URIS:
    one = nbd.NBD()
    one.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    one.connect_uri(uri)
    assert one.can_multi_conn()
    handles.append(one)
assert len({one.get_size() for one in handles}) == 1
size = handles[0].get_size()
chance = random.Random(1)
rounds = 0
while rounds < 50 or not os.path.exists(STOP):
    rounds += 1
    writer, reader, flusher = chance.sample(handles, 3)
    at = chance.randrange(size // 4096 - 32) * 4096
    length = 512 * chance.randrange(1, 64)
    data = bytes([rounds % 255 + 1]) * length
    writer.pwrite(data, at)
    assert reader.pread(length, at) == data, (rounds, at, length)
    flusher.flush()
    if rounds % 5 == 0:
        reader.zero(length, at)
        assert writer.pread(length, at) == bytes(length), (rounds, at, length)
    if rounds % 7 == 0:
        start = at // 4096 * 4096
        flusher.trim(32768, start)
        told = []
        reader.block_status(32768, start, lambda context, offset, entries, error: told.extend(entries))
        assert told[0] >= 32768 and told[1] == 3, told
for one in handles:
    one.shutdown()
print(rounds)
"#;

async fn everywhere(rig: &Rig) -> anyhow::Result<String> {
    let nodes = rig.stage.data_nodes();
    let mut uris = Vec::new();
    for node in &nodes {
        uris.push(rig.uri(*node)?);
    }
    let stop = rig.scratch().join("stop");
    let script = SCRIPT.replace("URIS", &format!("{uris:?}"));
    let script = script.replace("STOP", &format!("{:?}", stop.display().to_string()));
    let moves = async {
        for number in 0..MOVES {
            let to = nodes[number as usize % nodes.len()];
            rig.stage.move_primary(DISK, to).await?;
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        }
        std::fs::write(&stop, "")?;
        anyhow::Ok(())
    };
    let arguments = ["-c", &script];
    let ((), printed) = tokio::try_join!(moves, run_program("nbdsh", &arguments, LATER))?;
    Ok(format!(
        "{} rounds of nbdsh over all nodes with {MOVES} moves",
        printed.trim()
    ))
}
