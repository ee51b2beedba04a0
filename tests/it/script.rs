//! The file format of scripts: paragraphs separated by blank lines.
//!
//! ```text
//! # DEL-2. A delete that removes nothing is no revision.      a comment
//!
//! server --max-txn-ops=10                                     flags, if any
//!
//! logs raised an alarm                                        a warning to come
//!
//! etcd-crashes                                                not for the reference
//!
//! put a 1                                                     commands ...
//! del b
//! ---
//! rev=2                                                       ... and what they print
//! rev=2 deleted=0
//! ```
//!
//! A paragraph of commands runs from its first line to `---`; what it printed
//! on real etcd stands below. A paragraph without `---` has not been recorded
//! yet. Our own server may log no warning and no error in a script but those
//! announced by `logs`. The rare script that etcd itself does not survive says so; its output is
//! what a server should answer. Commands may have lines of their own, indented below them (the
//! operations of a txn, the body of a loop); a line that begins with `#` inside
//! a paragraph is a comment. This file knows nothing of what commands mean,
//! except for `for`, which repeats lines.

use std::fmt::Write as _;

/// Something wrong with a script itself (never with the server's answer).
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Mistake {
    pub(crate) text: String,
}

impl Mistake {
    pub(crate) fn new(text: impl Into<String>) -> Mistake {
        Mistake { text: text.into() }
    }
}

pub(crate) struct Script {
    pub(crate) paragraphs: Vec<Paragraph>,
}

const ETCD_CRASHES: &str = "etcd-crashes";

pub(crate) enum Paragraph {
    Comment(Vec<String>),
    Server(String),
    Logs(String),
    EtcdCrashes,
    Commands(Block),
}

pub(crate) struct Block {
    /// Line of the file the paragraph begins at, counted from 1.
    pub(crate) line: usize,
    pub(crate) commands: Vec<String>,
    pub(crate) expected: Option<Vec<String>>,
}

impl Script {
    pub(crate) fn parse(text: &str) -> Script {
        let lines: Vec<(usize, &str)> = text.lines().enumerate().collect();
        let paragraphs = lines
            .split(|(_, line)| line.trim().is_empty())
            .filter(|paragraph| !paragraph.is_empty())
            .map(parse_paragraph)
            .collect();
        Script { paragraphs }
    }

    /// The flags the server must be started with.
    pub(crate) fn server_flags(&self) -> Vec<String> {
        let lines = self
            .paragraphs
            .iter()
            .filter_map(|paragraph| match paragraph {
                Paragraph::Server(line) => Some(line),
                _ => None,
            });
        lines
            .flat_map(|line| line.split_whitespace().skip(1).map(str::to_owned))
            .collect()
    }

    /// What warnings and errors in our own log must contain to be expected.
    pub(crate) fn expected_logs(&self) -> Vec<&str> {
        let lines = self
            .paragraphs
            .iter()
            .filter_map(|paragraph| match paragraph {
                Paragraph::Logs(line) => line.strip_prefix("logs "),
                _ => None,
            });
        lines.collect()
    }

    pub(crate) fn crashes_etcd(&self) -> bool {
        self.paragraphs
            .iter()
            .any(|paragraph| matches!(paragraph, Paragraph::EtcdCrashes))
    }

    pub(crate) fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.paragraphs
            .iter()
            .filter_map(|paragraph| match paragraph {
                Paragraph::Commands(block) => Some(block),
                _ => None,
            })
    }

    /// The script's text with `outputs` in place of the expected ones.
    pub(crate) fn recorded(&self, outputs: &[Vec<String>]) -> String {
        let mut outputs = outputs.iter();
        let paragraphs: Vec<String> = self
            .paragraphs
            .iter()
            .map(|paragraph| match paragraph {
                Paragraph::Comment(lines) => lines.join("\n"),
                Paragraph::Server(line) | Paragraph::Logs(line) => line.clone(),
                Paragraph::EtcdCrashes => ETCD_CRASHES.to_owned(),
                Paragraph::Commands(block) => {
                    let mut text = block.commands.join("\n");
                    text.push_str("\n---");
                    for line in outputs.next().expect("one output for each block") {
                        write!(text, "\n{line}").expect("a String takes any text");
                    }
                    text
                }
            })
            .collect();
        paragraphs.join("\n\n") + "\n"
    }
}

fn parse_paragraph(lines: &[(usize, &str)]) -> Paragraph {
    let texts: Vec<String> = lines
        .iter()
        .map(|(_, text)| text.trim_end().to_owned())
        .collect();
    if texts.iter().all(|text| text.starts_with('#')) {
        return Paragraph::Comment(texts);
    }
    if texts.len() == 1 && texts[0].starts_with("server ") {
        return Paragraph::Server(texts[0].clone());
    }
    if texts.len() == 1 && texts[0].starts_with("logs ") {
        return Paragraph::Logs(texts[0].clone());
    }
    if texts == [ETCD_CRASHES] {
        return Paragraph::EtcdCrashes;
    }
    let line = lines[0].0 + 1;
    match texts.iter().position(|text| text == "---") {
        None => Paragraph::Commands(Block {
            line,
            commands: texts,
            expected: None,
        }),
        Some(at) => Paragraph::Commands(Block {
            line,
            commands: texts[..at].to_vec(),
            expected: Some(texts[at + 1..].to_vec()),
        }),
    }
}

/// A command with the lines indented below it.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) text: String,
    pub(crate) children: Vec<Line>,
}

impl Line {
    /// The commands of a paragraph as a tree by indentation, comments left out.
    pub(crate) fn tree(lines: &[String]) -> Result<Vec<Line>, Mistake> {
        let lines: Vec<&String> = lines
            .iter()
            .filter(|line| !line.trim_start().starts_with('#'))
            .collect();
        let (tree, rest) = Line::siblings(&lines)?;
        if !rest.is_empty() {
            return Err(Mistake::new(format!("odd indentation: {}", rest[0])));
        }
        Ok(tree)
    }

    fn siblings<'a>(mut lines: &'a [&'a String]) -> Result<(Vec<Line>, &'a [&'a String]), Mistake> {
        let mut tree = Vec::new();
        let Some(first) = lines.first() else {
            return Ok((tree, lines));
        };
        let level = indentation(first);
        while let Some((line, rest)) = lines.split_first() {
            if indentation(line) < level {
                break;
            }
            if indentation(line) > level {
                return Err(Mistake::new(format!("odd indentation: {line}")));
            }
            lines = rest;
            let mut children = Vec::new();
            if lines.first().is_some_and(|next| indentation(next) > level) {
                (children, lines) = Line::siblings(lines)?;
            }
            tree.push(Line {
                text: line.trim().to_owned(),
                children,
            });
        }
        Ok((tree, lines))
    }

    /// `for NAME FROM TO` with its lines: the lines once for each number from
    /// FROM up to and without TO, `$NAME` and `${NAME:03}` replaced by it.
    pub(crate) fn unrolled(&self) -> Result<Option<Vec<Line>>, Mistake> {
        let words: Vec<&str> = self.text.split_whitespace().collect();
        let ["for", name, from, to] = words[..] else {
            return Ok(None);
        };
        let bound = |text: &str| crate::words::number(text);
        let mut lines = Vec::new();
        for number in bound(from)?..bound(to)? {
            lines.extend(self.children.iter().map(|child| child.with(name, number)));
        }
        Ok(Some(lines))
    }

    fn with(&self, name: &str, number: i64) -> Line {
        self.replaced(&|text| {
            let mut text = text.to_owned();
            // `${n:03}`: padded with zeroes to a width of one digit's number.
            while let Some(start) = text.find(&format!("${{{name}:0")) {
                let digit_at = start + name.len() + 4;
                let digit = text[digit_at..].chars().next();
                let width = digit.and_then(|c| c.to_digit(10)).unwrap_or(0) as usize;
                text.replace_range(start..digit_at + 2, &format!("{number:0width$}"));
            }
            text = text.replace(&format!("${{{name}}}"), &number.to_string());
            text.replace(&format!("${name}"), &number.to_string())
        })
    }

    /// The line and all below it, with every text replaced.
    pub(crate) fn replaced(&self, replace: &dyn Fn(&str) -> String) -> Line {
        Line {
            text: replace(&self.text),
            children: self
                .children
                .iter()
                .map(|child| child.replaced(replace))
                .collect(),
        }
    }
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_recorded_in_place() {
        let text = "# why\n\nserver --a=b --c\n\nput a 1\nget a\n---\nold\n\nget b\n";
        let script = Script::parse(text);
        assert_eq!(script.server_flags(), ["--a=b", "--c"]);
        let lines: Vec<usize> = script.blocks().map(|block| block.line).collect();
        assert_eq!(lines, [5, 10]);
        let outputs = [vec!["new".to_owned()], vec![]];
        assert_eq!(
            script.recorded(&outputs),
            "# why\n\nserver --a=b --c\n\nput a 1\nget a\n---\nnew\n\nget b\n---\n"
        );
    }

    #[test]
    fn loops_repeat_the_lines_below_them() {
        let lines = [
            "for i 9 11",
            "  put k${i:03} $i",
            "  txn",
            "    if mod k$i = ${i}0",
        ];
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        let tree = Line::tree(&lines).expect("well indented");
        let rounds = tree[0].unrolled().expect("numbers").expect("a loop");
        let texts: Vec<&str> = rounds.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["put k009 9", "txn", "put k010 10", "txn"]);
        assert_eq!(rounds[3].children[0].text, "if mod k10 = 100");
    }

    #[test]
    fn odd_indentation_is_a_mistake() {
        let lines = ["txn", "    then", "  else"].map(str::to_owned);
        assert!(Line::tree(&lines).is_err());
    }
}
