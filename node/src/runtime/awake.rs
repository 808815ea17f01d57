//! Keeps idle processors from going to sleep while operations are under way.
//!
//! An append wakes a dozen threads in turn. To wake one on a processor that sleeps costs tens of microseconds, most of all in a
//! virtual machine, which gives such a processor back to its host; to wake one on a processor that waits in a loop costs next to none
//! (decision 020). Linux lets processes say how long waking may take: the smallest number that anybody holds counts, as
//! long as its file is open (`Documentation/power/pm_qos_interface.rst` of the kernel). So nothing is left of it when a process is killed.
//!
//! It changes no result, only when something happens.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mainstay_types::MonoTime;
use tokio::sync::Notify;

use super::clock;

/// The kernel's file for it.
const DEVICE: &str = "/dev/cpu_dma_latency";

/// Where the kernel tells how it puts processors to sleep.
const CPUIDLE: &str = "/sys/devices/system/cpu/cpuidle";

/// They may sleep again this long after the last operation. A client that waits for each answer is back well before; one
/// operation now and then keeps them awake for a small part of the time.
const LINGER: Duration = Duration::from_millis(10);

/// Any latency: the kernel's own default.
const ANY_US: i32 = 2_000_000_000;

/// How long waking a processor may take while operations are under way: the lightest sleep of real processors stays allowed.
const LIGHT_US: i32 = 2;

/// A guest's driver calls its only sleep, which is the host's business, as light as that: only none at all rules it out.
const NONE_US: i32 = 0;

/// What a node holds while operations are under way.
#[derive(Debug)]
pub struct Awake {
    device: Option<Device>,
    /// [`MonoTime`] of the last operation.
    last: AtomicU64,
    /// The device says so; changed under its lock alone.
    held: AtomicBool,
    began: Notify,
}

#[derive(Debug)]
struct Device {
    file: Mutex<File>,
    latency_us: i32,
}

impl Awake {
    /// One that holds nothing, ever.
    #[must_use]
    pub fn off() -> Self {
        Self::with(None)
    }

    /// The machine's, if it lets us; it is said if not.
    #[must_use]
    pub fn of_machine() -> Self {
        let device = match Device::open(Path::new(DEVICE), Path::new(CPUIDLE)) {
            Ok(device) => device,
            Err(error) => {
                tracing::info!(
                    %error,
                    "processors may sleep while operations are under way, which costs latency: let this process write {DEVICE} \
                     to keep them awake, or set node.keep_cpus_awake = false"
                );
                None
            }
        };
        Self::with(device)
    }

    fn with(device: Option<Device>) -> Self {
        Self {
            device,
            last: AtomicU64::new(0),
            held: AtomicBool::new(false),
            began: Notify::new(),
        }
    }

    /// An operation is under way at `now`. Costs a store to memory, and a system call after a pause.
    pub fn stir(&self, now: MonoTime) {
        let Some(device) = &self.device else { return };
        self.last.store(now.0, Ordering::Relaxed);
        if !self.held.load(Ordering::Relaxed) {
            device.set(&self.held, true);
            self.began.notify_one();
        }
    }

    /// Lets processors sleep when there was no operation for a while; runs until it is dropped.
    pub async fn watch(&self) {
        let Some(device) = &self.device else { return };
        loop {
            self.began.notified().await;
            loop {
                tokio::time::sleep(LINGER).await;
                let last = MonoTime(self.last.load(Ordering::Relaxed));
                if clock::mono().since(last) >= LINGER {
                    break;
                }
            }
            device.set(&self.held, false);
        }
    }
}

impl Device {
    /// None if processors do not sleep here, as far as the kernel knows.
    fn open(device: &Path, cpuidle: &Path) -> io::Result<Option<Self>> {
        let driver = match std::fs::read_to_string(cpuidle.join("current_driver")) {
            Ok(driver) => driver,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let latency_us = match driver.trim() {
            "none" => return Ok(None),
            "haltpoll" => NONE_US,
            _ => LIGHT_US,
        };
        let open = OpenOptions::new().write(true).open(device);
        let file = open.map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", device.display()))
        })?;
        // Opened, it asks for nothing.
        Ok(Some(Self {
            file: Mutex::new(file),
            latency_us,
        }))
    }

    /// Both at once: what the file says, and `held`.
    fn set(&self, held: &AtomicBool, hold: bool) {
        let file = self.file.lock().expect("no panic while the lock is held");
        if held.swap(hold, Ordering::Relaxed) == hold {
            return;
        }
        let latency_us = if hold { self.latency_us } else { ANY_US };
        let text = format!("{latency_us:#010x}");
        if let Err(error) = file.write_all_at(text.as_bytes(), 0) {
            tracing::debug!(%error, hold, "{DEVICE}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(driver: Option<&str>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("device"), b"").expect("a file");
        if let Some(driver) = driver {
            std::fs::write(dir.path().join("current_driver"), driver).expect("a file");
        }
        dir
    }

    fn device(dir: &tempfile::TempDir) -> Option<Device> {
        Device::open(&dir.path().join("device"), dir.path()).expect("it opens")
    }

    fn written(dir: &tempfile::TempDir) -> Option<i32> {
        let text = std::fs::read_to_string(dir.path().join("device")).expect("it reads");
        let digits = text.strip_prefix("0x")?;
        Some(i32::from_str_radix(digits, 16).expect("one number"))
    }

    #[test]
    fn what_is_asked_for_rules_out_the_sleep_that_the_machine_has() {
        let latency = |driver| device(&machine(driver)).map(|device| device.latency_us);
        assert_eq!(latency(Some("haltpoll\n")), Some(0));
        assert_eq!(latency(Some("intel_idle\n")), Some(2));
        assert_eq!(latency(Some("none\n")), None);
        assert_eq!(latency(None), None);
    }

    #[test]
    fn a_device_that_may_not_be_written_is_an_error_that_names_it() {
        let dir = machine(Some("haltpoll\n"));
        let error = Device::open(&dir.path().join("absent"), dir.path()).expect_err("no such file");
        assert!(error.to_string().contains("absent"), "{error}");
    }

    #[tokio::test]
    async fn held_from_the_first_operation_until_a_while_after_the_last() {
        let dir = machine(Some("haltpoll\n"));
        let awake = Awake::with(device(&dir));
        assert_eq!(written(&dir), None, "nothing is held before");
        let watching = awake.watch();
        let test = async {
            for _ in 0..2 {
                let until = std::time::Instant::now() + 3 * LINGER;
                while std::time::Instant::now() < until {
                    awake.stir(clock::mono());
                    assert_eq!(written(&dir), Some(NONE_US), "an operation is under way");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let give_up = std::time::Instant::now() + Duration::from_secs(10);
                while written(&dir) != Some(ANY_US) {
                    assert!(std::time::Instant::now() < give_up, "held for ever");
                    tokio::time::sleep(LINGER).await;
                }
            }
        };
        tokio::select! {
            () = watching => unreachable!("it does not end"),
            () = test => {}
        }
    }
}
