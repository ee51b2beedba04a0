//! The help text, out of the table of flags.

use std::fmt::Write as _;

use super::flags::{FLAGS, Group};

/// Where help texts begin, unless a flag's name reaches further.
const HELP_COLUMN: usize = 42;

/// Where help texts are wrapped.
const WIDTH: usize = 110;

/// What is shown after a command line that could not be read.
pub fn usage() -> String {
    "Usage: stele [serve] [flags]\n\nAll flags: stele --help\n".to_owned()
}

/// All flags in groups, and what they share.
pub fn help() -> String {
    let mut text = String::from(
        "stele: a drop-in replacement for etcd, over RocksDB.\n\n\
         Usage:\n  \
         stele [serve] [flags]     start a server\n  \
         stele --version           print the version\n  \
         stele --help              print this text\n\n\
         A flag is written with one dash or two, its value after a blank or an equals sign\n\
         (booleans: only after an equals sign). Each flag has an environment variable:\n\
         ETCD_ and its name in upper case, - as _. With --config-file, all options come from\n\
         that file.\n",
    );
    for (group, heading) in Group::SHOWN {
        text += &format!("\n{heading}:\n");
        for flag in FLAGS
            .iter()
            .filter(|flag| flag.group == group && !flag.help.is_empty())
        {
            let default = if flag.default.is_empty() {
                "''"
            } else {
                flag.default
            };
            let name = if flag.kind.is_switch() && default == "false" {
                format!("  --{}", flag.name)
            } else {
                format!("  --{} {default}", flag.name)
            };
            write_entry(&mut text, &name, flag.help);
        }
    }
    text
}

fn write_entry(text: &mut String, name: &str, help: &str) {
    let mut line = format!("{name:HELP_COLUMN$}");
    if line.len() > HELP_COLUMN {
        text.push_str(&line);
        text.push('\n');
        line = " ".repeat(HELP_COLUMN);
    }
    for word in help.split(' ') {
        if line.len() + 1 + word.len() > WIDTH {
            text.push_str(line.trim_end());
            text.push('\n');
            line = " ".repeat(HELP_COLUMN);
        }
        // Writing to a String cannot fail.
        let _ = write!(line, " {word}");
    }
    text.push_str(&line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_text_names_every_flag_that_works() {
        let text = help();
        for name in [
            "data-dir",
            "listen-client-urls",
            "auto-compaction-retention",
        ] {
            assert!(text.contains(&format!("  --{name} ")), "{name}");
        }
        assert!(text.contains("\nOnly in stele:\n  --stele-cache-bytes 134217728 "));
        assert!(!text.contains("experimental-"));
        assert!(text.lines().all(|line| line.len() <= WIDTH + 80));
    }
}
