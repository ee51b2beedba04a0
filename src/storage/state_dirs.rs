//! Which directory holds the state.
//!
//! RocksDB finds its files by path for as long as it is open, and readers keep
//! a replaced state open for a while, so no directory is ever moved from under
//! it: each state that is installed gets one of its own, and a marker says
//! which one counts.
//!
//! ```text
//! <data-dir>/state/          the first
//!            state-<n>/      the one that took the place of number n - 1
//!            state.current   the name of the directory that counts; while there
//!                            is no such file it is the first
//! ```
//!
//! Promised: the marker is replaced by a rename, after all that it names is
//! durable. A crash before it leaves the old state, a crash after it the new
//! one, and whatever the marker does not name is removed at the next open.

use super::OpenError;
use super::data_dir::{create_dir_durably, parent_of, sync_dir};
use fail::fail_point;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The number of the first directory, the one without a number in its name.
const FIRST: u64 = 1;

pub(super) struct StateDirs {
    /// The first directory; the others are named after it.
    first: PathBuf,
    current: u64,
}

impl StateDirs {
    /// Finds the directory that counts, creates it if it is to be the first,
    /// and removes the others.
    pub(super) fn open(first: &Path) -> Result<StateDirs, OpenError> {
        let mut dirs = StateDirs {
            first: first.to_path_buf(),
            current: FIRST,
        };
        let marker = dirs.marker();
        let io_error = |path: &Path| {
            let path = path.to_path_buf();
            move |source| OpenError::Io { path, source }
        };
        match fs::read_to_string(&marker) {
            Ok(text) => {
                let name = text.trim_end();
                let problem = match dirs.number_of(name) {
                    Some(number) if dirs.path(number).is_dir() => {
                        dirs.current = number;
                        None
                    }
                    Some(_) => Some(format!("names the directory {name}, which is missing")),
                    None => Some("is not one that stele writes".to_owned()),
                };
                if let Some(problem) = problem {
                    return Err(OpenError::Refused {
                        path: marker,
                        problem,
                    });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create_dir_durably(first).map_err(io_error(first))?;
            }
            Err(source) => return Err(io_error(&marker)(source)),
        }
        dirs.remove_others().map_err(io_error(first))?;
        Ok(dirs)
    }

    pub(super) fn current(&self) -> PathBuf {
        self.path(self.current)
    }

    /// Where the next state has to lie before [`StateDirs::switch`].
    pub(super) fn next(&self) -> PathBuf {
        self.path(self.current + 1)
    }

    /// Moves `dir`, whose files are durable, to where the next state has to
    /// lie. An attempt before it that failed may have left something there.
    pub(super) fn move_to_next(&self, dir: &Path) -> io::Result<PathBuf> {
        let next = self.next();
        remove_dir(&next)?;
        fs::rename(dir, &next)?;
        sync_dir(parent_of(&next))?;
        sync_dir(parent_of(dir))?;
        Ok(next)
    }

    /// Makes the next directory the one that counts. All that is in it is
    /// durable before.
    pub(super) fn switch(&mut self) -> io::Result<()> {
        let next = self.next();
        let name = next.file_name().expect("a directory of ours has a name");
        let marker = self.marker();
        let new = self.sibling(".current.new");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&new)?;
        writeln!(file, "{}", name.display())?;
        file.sync_all()?;
        fail_point!("install_before_switch", |_| std::process::abort());
        fs::rename(&new, &marker)?;
        sync_dir(parent_of(&marker))?;
        fail_point!("install_after_switch", |_| std::process::abort());
        self.current += 1;
        Ok(())
    }

    /// Removes every state but the current one. What cannot be removed now is
    /// left to a later open: within one process the last reader of a replaced
    /// state may just be closing it.
    fn remove_others(&self) -> io::Result<()> {
        for entry in fs::read_dir(parent_of(&self.first))? {
            let entry = entry?;
            let number = entry
                .file_name()
                .to_str()
                .and_then(|name| self.number_of(name));
            if number.is_some_and(|number| number != self.current) {
                let _ = remove_dir(&entry.path());
            }
        }
        Ok(())
    }

    fn marker(&self) -> PathBuf {
        self.sibling(".current")
    }

    fn path(&self, number: u64) -> PathBuf {
        match number {
            FIRST => self.first.clone(),
            _ => self.sibling(&format!("-{number}")),
        }
    }

    fn number_of(&self, name: &str) -> Option<u64> {
        let first = self.first.file_name()?.to_str()?;
        match name.strip_prefix(first)? {
            "" => Some(FIRST),
            rest => {
                let number = rest.strip_prefix('-')?.parse().ok()?;
                // One name for each number.
                (number > FIRST && rest == format!("-{number}")).then_some(number)
            }
        }
    }

    /// The path of the first directory with something appended to its name.
    fn sibling(&self, suffix: &str) -> PathBuf {
        let mut path = self.first.clone().into_os_string();
        path.push(suffix);
        path.into()
    }
}

/// Removes a directory that may not be there.
pub(super) fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn fill(dir: &Path, text: &str) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("file"), text).unwrap();
    }

    #[test]
    fn the_marker_decides_and_the_rest_goes() {
        let root = tempfile::tempdir().unwrap();
        let first = root.path().join("state");
        let mut dirs = StateDirs::open(&first).unwrap();
        assert_eq!(dirs.current(), first);
        for round in 2..5_u64 {
            let incoming = root.path().join("incoming").join("it");
            fill(&incoming, &round.to_string());
            // What a failed attempt has left.
            fill(&dirs.next(), "left over");
            let next = dirs.move_to_next(&incoming).unwrap();
            assert_eq!(StateDirs::open(&first).unwrap().current(), dirs.current());
            assert!(!next.exists(), "not switched to, so removed");
            fill(&next, &round.to_string());
            dirs.switch().unwrap();
            let dirs_now = StateDirs::open(&first).unwrap();
            assert_eq!(
                dirs_now.current(),
                root.path().join(format!("state-{round}"))
            );
            let text = fs::read_to_string(dirs_now.current().join("file")).unwrap();
            assert_eq!(text, round.to_string());
            assert_eq!(
                names(root.path()),
                ["incoming", &format!("state-{round}"), "state.current"]
            );
        }
    }

    #[test]
    fn a_marker_that_names_nothing_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let first = root.path().join("state");
        for (text, problem) in [
            ("state-2\n", "which is missing"),
            ("state-02\n", "not one that stele writes"),
            ("../state\n", "not one that stele writes"),
            ("", "not one that stele writes"),
        ] {
            fs::write(root.path().join("state.current"), text).unwrap();
            let error = StateDirs::open(&first).err().expect("must be refused");
            assert!(error.to_string().contains(problem), "{error}");
        }
        assert!(!first.exists(), "no empty state in place of a lost one");
    }

    #[test]
    fn names_that_only_look_alike_are_left_alone() {
        let root = tempfile::tempdir().unwrap();
        for name in ["state-", "state-01", "state-x", "statement", "mystate-2"] {
            fill(&root.path().join(name), "");
        }
        fill(&root.path().join("state-3"), "");
        StateDirs::open(&root.path().join("state")).unwrap();
        assert_eq!(
            names(root.path()),
            [
                "mystate-2",
                "state",
                "state-",
                "state-01",
                "state-x",
                "statement"
            ]
        );
    }
}
