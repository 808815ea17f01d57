//! Small state files for people and other processes: replaced as a whole, never seen half written.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Replaces `path` by `value` as JSON. A reader sees the old content or the new one.
///
/// The content does not survive the loss of power for sure: nothing that these files say is true after it.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    let mut scratch = path.as_os_str().to_owned();
    scratch.push(".new");
    let written = fs::write(&scratch, text).and_then(|()| fs::rename(&scratch, path));
    if written.is_err() {
        // Half a file is of no use, and may hold the last room there is.
        let _gone = fs::remove_file(&scratch);
    }
    written
}

/// The same, durable on return: a crash leaves the old file or the new one.
pub(crate) fn write_json_durably<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    let aside = path.with_extension("new");
    let mut file = fs::File::create(&aside)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    fs::File::open(dir)?.sync_all()
}

/// Reads what [`write_json`] wrote; `None` if there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
