//! Reads and writes of blocks. A block is a register: a write fills it with one number, so that a read that mixes two writes shows.

use std::sync::Arc;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use mainstay_client::{AttachOptions, BlockVolume, Client};
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::history::Ended;
use super::{AGAIN_AFTER, Args, Process, patiently, read_ended, write_ended};

/// Of one register.
pub(super) const BLOCK_BYTES: u64 = 4096;
const BLOCK: u32 = 4096;

/// All registers hold nothing before the first operation.
pub(super) async fn prepare(args: &Args, client: &Client) -> anyhow::Result<Value> {
    let opened = client
        .block(&args.volume)
        .attach(AttachOptions::named("workload"));
    let disk = opened
        .open()
        .await
        .context("open the volume; it must be a shared block volume")?;
    let bytes = u64::from(args.keys) * BLOCK_BYTES;
    anyhow::ensure!(
        disk.info().size_bytes >= bytes,
        "volume `{}` is too small for {} registers of {BLOCK_BYTES} bytes: use fewer --keys or another volume",
        args.volume,
        args.keys
    );
    disk.write_zeroes(0, bytes, false)
        .await
        .context("clear the registers")?;
    disk.close().await.context("detach")?;
    Ok(json!({ "registers": args.keys }))
}

pub(super) async fn process(mut process: Process) {
    let Some(mut disk) = open(&process).await else {
        return;
    };
    while process.may_begin().await {
        let register = process.random.random_range(0..process.shared.args.keys);
        let over = if process.random.random_bool(0.5) {
            read(&mut process, &disk, register).await.1
        } else {
            write(&mut process, &disk, register).await
        };
        if over {
            match open(&process).await {
                Some(opened) => disk = opened,
                None => return,
            }
        }
    }
}

/// Reads every register once more, when nobody writes any more, and marks the end: a history that was cut before it lacks the mark.
pub(super) async fn end(mut process: Process) -> anyhow::Result<()> {
    let client = process.shared.client.clone();
    let volume = process.shared.args.volume.clone();
    let disk = patiently("open the volume at the end", || {
        client.block(&volume).open()
    })
    .await?;
    for register in 0..process.shared.args.keys {
        let give_up = Instant::now() + super::SERVED_WITHIN;
        while let (Ended::Fail(why), _) = read(&mut process, &disk, register).await {
            anyhow::ensure!(
                Instant::now() < give_up,
                "read register {register} at the end: {why}"
            );
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }
    let mark = async { Ended::Ok(Value::Null) };
    process.perform("end", Value::Null, mark).await;
    Ok(())
}

async fn open(process: &Process) -> Option<BlockVolume> {
    let shared = Arc::clone(&process.shared);
    loop {
        let name = format!("workload-{}", process.number);
        let opened = shared
            .client
            .block(&shared.args.volume)
            .attach(AttachOptions::named(name));
        if let Ok(disk) = opened.deadline(shared.args.deadline).open().await {
            return Some(disk);
        }
        if Instant::now() >= shared.give_up {
            return None;
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

async fn read(process: &mut Process, disk: &BlockVolume, register: u32) -> (Ended, bool) {
    let mut over = false;
    let operation = async {
        match disk.read(u64::from(register) * BLOCK_BYTES, BLOCK).await {
            Ok(block) => Ended::Ok(json!([register, value_of(&block)])),
            Err(error) => read_ended(&error, &mut over),
        }
    };
    let ended = process
        .perform("read", json!([register, null]), operation)
        .await;
    (ended, over)
}

async fn write(process: &mut Process, disk: &BlockVolume, register: u32) -> bool {
    let value = process.fresh_value();
    let asked = json!([register, value]);
    let mut over = false;
    let operation = async {
        match disk
            .write(u64::from(register) * BLOCK_BYTES, block_of(value))
            .await
        {
            Ok(_) => Ended::Ok(json!([register, value])),
            Err(error) => write_ended(&error, &mut over),
        }
    };
    process.perform("write", asked, operation).await;
    over
}

fn block_of(value: u64) -> Bytes {
    let mut block = BytesMut::with_capacity(BLOCK as usize);
    while block.len() < BLOCK as usize {
        block.extend_from_slice(&value.to_le_bytes());
    }
    block.freeze()
}

/// The number in a block: null if it is empty, a text if it is of no one write.
fn value_of(block: &[u8]) -> Value {
    let words = block.chunks_exact(8).map(|word| {
        let word = word.try_into().expect("chunks of eight");
        u64::from_le_bytes(word)
    });
    let mut words = words;
    let first = words.next().unwrap_or(0);
    match words.find(|word| *word != first) {
        Some(other) => json!(format!("torn: {first} and {other}")),
        None if first == 0 => Value::Null,
        None => json!(first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_tells_its_number_and_a_mixed_one_that_it_is_mixed() {
        assert_eq!(value_of(&block_of(77)), json!(77));
        assert_eq!(value_of(&[0; 4096]), Value::Null);
        let mut mixed = block_of(77).to_vec();
        mixed[4088..].copy_from_slice(&78_u64.to_le_bytes());
        assert_eq!(value_of(&mixed), json!("torn: 77 and 78"));
    }
}
