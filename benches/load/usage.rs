//! What a server's processes have used, by the kernel's account of them: CPU time
//! from `/proc/<pid>/stat`, memory from `status`, bytes sent to the disk from
//! `io`. Panics when an account cannot be read: a missing number must not show
//! as a zero.

use std::fs;
use std::ops::{Add, Sub};

/// `USER_HZ`, the unit of times in `/proc`: 100 on every architecture that
/// this project builds for.
const TICK_US: u64 = 10_000;

/// The processes of a server, one for each member; what is said of them is
/// the sum.
#[derive(Clone, Debug)]
pub struct Processes {
    all: Vec<Process>,
}

impl Processes {
    pub fn new(ids: impl Iterator<Item = u32>) -> Processes {
        Processes {
            all: ids.map(|id| Process { id }).collect(),
        }
    }

    pub fn usage(&self) -> Usage {
        let usages = self.all.iter().map(|process| process.usage());
        usages.fold(Usage::default(), Usage::add)
    }

    pub fn rss_bytes(&self) -> u64 {
        self.all.iter().map(|process| process.rss_bytes()).sum()
    }

    /// The most memory each has had resident since it began, or since
    /// [`Processes::reset_peak`].
    pub fn peak_rss_bytes(&self) -> u64 {
        let peaks = self.all.iter().map(|process| process.peak_rss_bytes());
        peaks.sum()
    }

    pub fn reset_peak(&self) {
        self.all.iter().for_each(|process| process.reset_peak());
    }
}

#[derive(Clone, Copy, Debug)]
struct Process {
    id: u32,
}

/// Sums since the process began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time of all threads.
    pub cpu_us: u64,
    /// Bytes that were, or will be, written to the disk because of it. Linux
    /// counts them when a folio of the page cache becomes dirty, and counts all
    /// of it: where a log file is used again, folios are large, and a put of
    /// 256 B shows as 40 kB although the disk writes 3 kB.
    pub write_bytes: u64,
}

impl Add for Usage {
    type Output = Usage;

    fn add(self, other: Usage) -> Usage {
        Usage {
            cpu_us: self.cpu_us + other.cpu_us,
            write_bytes: self.write_bytes + other.write_bytes,
        }
    }
}

impl Sub for Usage {
    type Output = Usage;

    fn sub(self, earlier: Usage) -> Usage {
        Usage {
            cpu_us: self.cpu_us - earlier.cpu_us,
            write_bytes: self.write_bytes - earlier.write_bytes,
        }
    }
}

impl Process {
    fn usage(self) -> Usage {
        let stat = self.read("stat");
        // The second field is the program's name, which may hold anything;
        // what follows its closing parenthesis begins with the third field.
        let (_, after_name) = stat.rsplit_once(')').expect("stat holds the name");
        let field = |number: usize| -> u64 {
            let text = after_name.split_ascii_whitespace().nth(number - 3);
            text.and_then(|text| text.parse().ok())
                .unwrap_or_else(|| panic!("field {number} of stat is no number: {stat}"))
        };
        Usage {
            cpu_us: (field(14) + field(15)) * TICK_US,
            write_bytes: labelled(&self.read("io"), "write_bytes:"),
        }
    }

    fn peak_rss_bytes(self) -> u64 {
        labelled(&self.read("status"), "VmHWM:") * 1024
    }

    fn rss_bytes(self) -> u64 {
        labelled(&self.read("status"), "VmRSS:") * 1024
    }

    fn reset_peak(self) {
        let path = self.path("clear_refs");
        fs::write(&path, "5").unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
    }

    fn path(self, file: &str) -> String {
        format!("/proc/{}/{file}", self.id)
    }

    fn read(self, file: &str) -> String {
        let path = self.path(file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
    }
}

/// The number after `label` in a file of lines `label number unit`.
fn labelled(text: &str, label: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(label))
        .and_then(|rest| rest.split_ascii_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no {label} in {text}"))
}
