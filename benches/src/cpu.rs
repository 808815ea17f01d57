//! What processes use, as `/proc` counts it: the time of processors, and memory.
//!
//! On a machine whose processors are shared, time on them per record says more than records a second: it does not
//! depend on who else runs.

use std::io;
use std::time::Duration;

/// Ticks a second in `/proc/PID/stat`: the same on every Linux.
const TICKS: u64 = 100;

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// User and system time since it started, in steps of 10 ms.
    pub cpu: Duration,
    /// Memory that it holds.
    pub resident_bytes: u64,
}

impl Usage {
    /// Of process `pid` now.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = Stat::of(pid)?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        Ok(Self {
            cpu: stat.cpu,
            resident_bytes: kib.unwrap_or(0) * 1024,
        })
    }
}

/// Time of processors that this process and everything started under it have used, as far as it still runs.
pub fn family() -> io::Result<Duration> {
    let mut stats: Vec<Stat> = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        // A process may end while the list is read.
        stats.extend(pid.and_then(|pid| Stat::of(pid).ok()));
    }
    let mut family = vec![std::process::id()];
    let mut at = 0;
    while let Some(parent) = family.get(at).copied() {
        family.extend(
            stats
                .iter()
                .filter(|stat| stat.parent == parent)
                .map(|stat| stat.pid),
        );
        at += 1;
    }
    Ok(stats
        .iter()
        .filter(|stat| family.contains(&stat.pid))
        .map(|stat| stat.cpu)
        .sum())
}

#[derive(Debug, Clone, Copy)]
struct Stat {
    pid: u32,
    parent: u32,
    cpu: Duration,
}

impl Stat {
    fn of(pid: u32) -> io::Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        parse(pid, &text).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat: {text}")))
    }
}

/// Field 2 is the name in brackets and may hold anything; parent is field 4, the times are 14 and 15.
fn parse(pid: u32, text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Stat {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        cpu: Duration::from_millis(ticks * 1000 / TICKS),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_moves_no_field() {
        let text = "7 (a) b (c) S 3 7 7 0 -1 4194304 1 2 3 4 150 50 0 0 20 0 9 0 100 200 300";
        let stat = parse(7, text).expect("well formed");
        assert_eq!((stat.parent, stat.cpu), (3, Duration::from_secs(2)));
        assert!(parse(7, "7 (a) S 3").is_none());
    }

    #[test]
    fn this_process_is_of_its_own_family_and_holds_memory() {
        let own = Usage::of(std::process::id()).expect("there");
        assert!(own.resident_bytes > 0);
        assert!(family().expect("there") >= own.cpu);
    }
}
