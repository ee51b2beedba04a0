//! A source file as the rules see it: its text, and the code in it with
//! comments, strings and unit tests blanked out (same length, same lines).
//!
//! This is no parser of Rust. It knows enough to follow a `use` tree and to
//! tell code from prose, and errs on the side of finding too much.

use std::fs;
use std::path::Path;

pub(crate) struct Source {
    /// Where the file lies: `src` or `benches`.
    pub(crate) root: &'static str,
    /// Below that, with slashes.
    pub(crate) path: String,
    pub(crate) text: String,
    /// `text` without comments, strings and unit tests.
    code: String,
    /// How many lines of the file belong to unit tests.
    test_lines: usize,
}

/// A path that starts with `crate::`, without that.
pub(crate) struct Import {
    pub(crate) path: String,
    pub(crate) line: usize,
}

/// Every file of the crate, by path.
pub(crate) fn read_sources() -> Vec<Source> {
    read_below("src")
}

/// And every file of the benchmarks, which keep to the rules of form.
pub(crate) fn read_all_sources() -> Vec<Source> {
    let mut sources = read_below("src");
    sources.extend(read_below("benches"));
    sources
}

fn read_below(name: &'static str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let mut sources = Vec::new();
    collect(name, &root, &root, &mut sources);
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(
        sources.len() > 10,
        "there are no sources below {}",
        root.display()
    );
    sources
}

fn collect(name: &'static str, root: &Path, folder: &Path, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).expect("a folder of sources can be listed") {
        let path = entry.expect("a folder of sources can be listed").path();
        if path.is_dir() {
            collect(name, root, &path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file is UTF-8");
            let below = path.strip_prefix(root).expect("found below the root");
            sources.push(Source::new(
                name,
                below.to_string_lossy().replace('\\', "/"),
                text,
            ));
        }
    }
}

impl Source {
    fn new(root: &'static str, path: String, text: String) -> Source {
        let is_tests = path.ends_with("tests.rs") || path.contains("/tests/");
        let (code, test_lines) = if is_tests {
            (String::new(), text.lines().count())
        } else {
            without_tests(&without_prose(&text))
        };
        Source {
            root,
            path,
            text,
            code,
            test_lines,
        }
    }

    pub(crate) fn lines_without_tests(&self) -> usize {
        self.text.lines().count() - self.test_lines
    }

    /// The module at the top of the crate that the file belongs to.
    pub(crate) fn module(&self) -> &str {
        self.path
            .split('/')
            .next()
            .unwrap_or_default()
            .trim_end_matches(".rs")
    }

    /// Whether the file is `place` or lies in the folder `place`; a folder's
    /// own `<place>.rs` counts as part of it.
    pub(crate) fn is_in(&self, place: &str) -> bool {
        self.path
            .strip_prefix(place)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || rest == ".rs")
    }

    /// Lines of code with their numbers from 1.
    pub(crate) fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line))
    }

    /// Every path into the crate, with groups spelled out: `use
    /// crate::a::{b, c::d}` gives `a::b` and `a::c::d`. The binary reaches the
    /// library by its name.
    pub(crate) fn crate_paths(&self) -> Vec<Import> {
        let root = if self.path == "main.rs" {
            "stele"
        } else {
            "crate"
        };
        let mut imports = Vec::new();
        for at in words(&self.code, root) {
            let rest = &self.code[at + root.len()..];
            if let Some(tree) = rest.strip_prefix("::") {
                let mut paths = Vec::new();
                expand(tree, "", &mut paths);
                let line = self.line_of(at);
                imports.extend(paths.into_iter().map(|path| Import { path, line }));
            }
        }
        imports
    }

    /// Lines in which a path begins with this crate's name, or that import it.
    pub(crate) fn lines_naming_crate(&self, name: &str) -> Vec<usize> {
        words(&self.code, name)
            .filter(|&at| {
                let before = self.code[..at].trim_end();
                let after = self.code[at + name.len()..].trim_start();
                let is_first = !before.ends_with("::") && !before.ends_with('.');
                let is_path = after.starts_with("::");
                let is_import =
                    before.ends_with("use") && (after.starts_with(';') || after.starts_with("as "));
                is_first && (is_path || is_import)
            })
            .map(|at| self.line_of(at))
            .collect()
    }

    /// Lines in which the word is a segment of a path (`std::time::Instant`,
    /// `Instant::now`, a member of a `use` group), not just a variable.
    pub(crate) fn lines_with_path_segment(&self, word: &str) -> Vec<usize> {
        words(&self.code, word)
            .filter(|&at| {
                let before = self.code[..at].trim_end();
                let after = self.code[at + word.len()..].trim_start();
                let in_use = before
                    .rsplit(';')
                    .next()
                    .is_some_and(|statement| has_word(statement, "use"));
                after.starts_with("::")
                    || before.ends_with("::")
                    || (in_use && before.ends_with(['{', ',']))
            })
            .map(|at| self.line_of(at))
            .collect()
    }

    /// Names that this file gives to types, traits, functions, constants and modules.
    pub(crate) fn declared_names(&self) -> Vec<(usize, &str)> {
        let mut names = Vec::new();
        for keyword in [
            "struct", "enum", "trait", "type", "fn", "mod", "const", "static",
        ] {
            for at in words(&self.code, keyword) {
                let rest = self.code[at + keyword.len()..].trim_start();
                let end = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
                if end > 0 {
                    names.push((self.line_of(at), &rest[..end]));
                }
            }
        }
        names
    }

    fn line_of(&self, at: usize) -> usize {
        self.code[..at].matches('\n').count() + 1
    }
}

/// Spells out a `use` tree (or the beginning of an expression's path) below
/// `prefix`; returns how much of `tree` it took.
fn expand(tree: &str, prefix: &str, paths: &mut Vec<String>) -> usize {
    let mut taken = 0;
    let mut path = prefix.to_owned();
    loop {
        taken += leading_space(&tree[taken..]);
        let rest = &tree[taken..];
        if rest.starts_with('{') {
            taken += 1;
            loop {
                taken += leading_space(&tree[taken..]);
                match tree[taken..].chars().next() {
                    None => return taken,
                    Some('}') => return taken + 1,
                    Some(',') => taken += 1,
                    Some(_) => {
                        let part = expand(&tree[taken..], &path, paths);
                        if part == 0 {
                            return taken;
                        }
                        taken += part;
                    }
                }
            }
        }
        let end = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
        let segment = &rest[..end];
        if !segment.is_empty() && segment != "self" {
            if !path.is_empty() {
                path.push_str("::");
            }
            path.push_str(segment);
        }
        taken += end + usize::from(segment.is_empty() && rest.starts_with('*'));
        if tree[taken..].starts_with("::") {
            taken += 2;
            continue;
        }
        paths.push(path);
        let alias = &tree[taken..];
        if let Some(name) = alias.trim_start().strip_prefix("as ") {
            let name_end = name.find(|c: char| !is_word(c)).unwrap_or(name.len());
            taken += alias.len() - name.len() + name_end;
        }
        return taken;
    }
}

fn leading_space(text: &str) -> usize {
    text.len() - text.trim_start().len()
}

/// Blanks comments and the insides of strings and character literals.
fn without_prose(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = prose_length(rest, code.chars().next_back());
        if length == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            let (prose, after) = rest.split_at(length);
            code.extend(prose.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = after;
        }
    }
    code
}

/// How many bytes of comment, string or character literal `text` begins with.
fn prose_length(text: &str, previous: Option<char>) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return text.find("*/").map_or(text.len(), |at| at + 2);
    }
    if text.starts_with('"') {
        return quoted_length(text, '"');
    }
    if text.starts_with('r') && !previous.is_some_and(|c| is_word(c) && c != 'b') {
        let hashes = text[1..].chars().take_while(|c| *c == '#').count();
        if text[1 + hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let body = 2 + hashes;
            return text[body..]
                .find(&close)
                .map_or(text.len(), |at| body + at + close.len());
        }
    }
    // A character literal, not a lifetime: 'a' or '\n', but not 'a in &'a str.
    if let Some(inside) = text.strip_prefix('\'') {
        let mut characters = inside.chars();
        let is_literal = inside.starts_with('\\')
            || (characters.next().is_some_and(|c| c != '\'') && characters.next() == Some('\''));
        if is_literal {
            return quoted_length(text, '\'');
        }
    }
    0
}

fn quoted_length(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Blanks what is compiled for tests only; also says how many lines that was.
fn without_tests(code: &str) -> (String, usize) {
    let mut kept = String::with_capacity(code.len());
    let mut lines = 0;
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        let item = &rest[at..];
        let end = item_end(item);
        kept.push_str(&rest[..at]);
        kept.extend(
            item[..end]
                .chars()
                .map(|c| if c == '\n' { '\n' } else { ' ' }),
        );
        lines += item[..end].lines().count();
        rest = &item[end..];
    }
    kept.push_str(rest);
    (kept, lines)
}

/// Where an item ends: at its `;`, or at the brace that closes its first one.
fn item_end(item: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in item.char_indices() {
        match c {
            ';' if depth == 0 => return at + 1,
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    item.len()
}

/// Where `word` stands as a whole word.
fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |&at| {
            !text[..at].ends_with(is_word) && !text[at + word.len()..].starts_with(is_word)
        })
}

pub(crate) fn has_word(text: &str, word: &str) -> bool {
    words(text, word).next().is_some()
}

/// Whether `word` is one of the words of a name in camel case: `Helper` is in
/// `ReadHelper`, `Impl` is not in `Implied`.
pub(crate) fn has_camel_word(name: &str, word: &str) -> bool {
    name.match_indices(word)
        .any(|(at, _)| !name[at + word.len()..].starts_with(|c: char| c.is_lowercase()))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new("src", "mvcc/example.rs".to_owned(), text.to_owned())
    }

    fn paths(text: &str) -> Vec<String> {
        source(text)
            .crate_paths()
            .into_iter()
            .map(|import| import.path)
            .collect()
    }

    #[test]
    fn use_trees_are_spelled_out() {
        assert_eq!(
            paths("use crate::{a::b, c::{self, d as e, f::*}, g};\nuse crate::h;"),
            ["a::b", "c", "c::d", "c::f", "g", "h"]
        );
    }

    #[test]
    fn paths_in_expressions_count_and_prose_does_not() {
        assert_eq!(
            paths("let a = crate::b::c::<D>(); // crate::e\nlet f = \"crate::g\";"),
            ["b::c"]
        );
        assert_eq!(
            paths(
                "let a = ['\"', 'b']; crate::c(); /* crate::d */ let e: &'a str = r#\"crate::f\"#;"
            ),
            ["c"]
        );
    }

    #[test]
    fn unit_tests_do_not_count() {
        assert_eq!(
            paths("#[cfg(test)]\nmod tests { fn a() { crate::b::c(); } }\nuse crate::d;"),
            ["d"]
        );
    }

    #[test]
    fn crates_are_told_from_modules_and_fields() {
        let source = source(
            "use raft::Node;\nuse crate::raft::Node;\nlet a = self.raft;\nuse raft;\nraft::run()",
        );
        assert_eq!(source.lines_naming_crate("raft"), [1, 4, 5]);
    }

    #[test]
    fn segments_are_told_from_variables() {
        let source =
            source("use std::{thread, time::Instant};\nlet thread = rand;\nInstant::now();");
        assert_eq!(source.lines_with_path_segment("thread"), [1]);
        assert_eq!(source.lines_with_path_segment("Instant"), [1, 3]);
        assert!(source.lines_with_path_segment("rand").is_empty());
    }

    #[test]
    fn words_of_a_name() {
        assert!(has_camel_word("ReadHelper", "Helper"));
        assert!(!has_camel_word("Implied", "Impl"));
    }
}
