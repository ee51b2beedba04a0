//! A member's wall clock, which a test can set while the member runs.
//!
//! `clock.c` is compiled with the C compiler that building needs anyway and
//! loaded before the member; a file beside its data holds the seconds that its
//! clock is ahead of the machine's. That the member really sees a jump is read
//! from its log: members ping each other, and warn of clocks that differ.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// The library to load before a member.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/robustness/clock.c");
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clock.so");
        // Another run may use it at this moment.
        let unfinished = library.with_extension(std::process::id().to_string());
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let result = Command::new(&compiler)
            .args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"])
            .args([unfinished.as_path(), Path::new(source)])
            .output();
        let output = result.unwrap_or_else(|error| {
            panic!("jumps of clocks need a C compiler, and {compiler:?} cannot be run: {error}")
        });
        assert!(
            output.status.success(),
            "{compiler:?} cannot compile {source}:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        std::fs::rename(&unfinished, &library).expect("a file of ours can be renamed");
        library
    })
}

/// The clock of one member, over all its starts.
pub struct WallClock {
    offset: File,
    path: PathBuf,
    log: PathBuf,
}

impl WallClock {
    /// Of a member that is not running yet and has this log.
    pub fn create(log: PathBuf) -> io::Result<WallClock> {
        let path = log.with_file_name("clock");
        let offset = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .open(&path)?;
        let clock = WallClock { offset, path, log };
        clock.set(0)?;
        Ok(clock)
    }

    /// What a member is to be started with.
    pub fn environment(&self) -> [(String, String); 2] {
        let text = |path: &Path| path.to_str().expect("a path of our own making").to_owned();
        [
            ("LD_PRELOAD".to_owned(), text(library())),
            ("STELE_TEST_CLOCK".to_owned(), text(&self.path)),
        ]
    }

    /// So many seconds ahead of the machine's. In place: the file is mapped.
    pub fn set(&self, seconds: i64) -> io::Result<()> {
        self.offset.write_all_at(&seconds.to_ne_bytes(), 0)
    }

    /// Where the member's log ends.
    pub fn log_end(&self) -> io::Result<u64> {
        Ok(std::fs::metadata(&self.log)?.len())
    }

    /// Whether the member has written a line after that place whose time is
    /// the one it should see, give or take `tolerance_seconds`.
    pub fn is_seen(&self, place: u64, seconds: i64, tolerance_seconds: u64) -> io::Result<bool> {
        let mut log = File::open(&self.log)?;
        log.seek(SeekFrom::Start(place))?;
        let mut text = Vec::new();
        log.read_to_end(&mut text)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.expect("the machine's clock is right").as_secs();
        let shown = now.checked_add_signed(seconds);
        let shown = shown.expect("jumps end after 1970");
        Ok(String::from_utf8_lossy(&text)
            .lines()
            .filter_map(time_of)
            .any(|time| time.abs_diff(shown) <= tolerance_seconds))
    }
}

/// When a line of a log was written, in seconds since 1970.
fn time_of(line: &str) -> Option<u64> {
    let (_, time) = line.split_once(r#""ts":""#)?;
    let number = |from: usize, to: usize| time.get(from..to)?.parse::<u64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    // Years begin in March here, so that a leap day is the last of its year.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    const FROM_YEAR_0_TO_1970: u64 = 719_468;
    let leap_days = year / 4 - year / 100 + year / 400;
    let days = year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - FROM_YEAR_0_TO_1970;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[test]
fn times_of_lines() {
    let time = |time: &str| time_of(&format!(r#"{{"level":"warn","ts":"{time}","msg":""}}"#));
    assert_eq!(time("1970-01-01T00:00:07.000000Z"), Some(7));
    assert_eq!(time("2024-02-29T23:59:59.123456Z"), Some(1_709_251_199));
    assert_eq!(time("2026-11-21T00:11:39.999999Z"), Some(1_795_219_899));
    assert_eq!(time_of("panicked"), None);
}
