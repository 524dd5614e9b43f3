//! Reads the repository: its Rust files without comments and strings, its documents, its members.

use std::path::{Path, PathBuf};

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the repository")
        .to_owned()
}

/// The folders of the workspace's members.
pub(crate) fn members() -> Vec<String> {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("it exists");
    let manifest: toml::Table = manifest.parse().expect("it is valid TOML");
    let members = manifest["workspace"]["members"]
        .as_array()
        .expect("members is a list");
    members
        .iter()
        .map(|member| member.as_str().expect("a member is a path").to_owned())
        .collect()
}

/// README.md and every page in docs/.
pub(crate) fn documents() -> Vec<String> {
    let mut names = vec!["README.md".to_owned()];
    let pages = std::fs::read_dir(root().join("docs")).expect("docs/ exists");
    for page in pages {
        let name = page.expect("docs/ can be read").file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".md") {
            names.push(format!("docs/{name}"));
        }
    }
    names.sort();
    names
}

/// A Rust file.
pub(crate) struct Source {
    /// From the root, with `/`.
    pub(crate) path: String,
    /// As it is.
    pub(crate) text: String,
    /// Comments, strings and characters blanked; every line where it was.
    code: String,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            code: blank(text),
        }
    }

    /// Whether it is the file `place`, lies in the folder `place`, or is the folder's own file.
    pub(crate) fn is_in(&self, place: &str) -> bool {
        let Some(rest) = self.path.strip_prefix(place) else {
            return false;
        };
        rest.is_empty() || rest.starts_with('/') || rest == ".rs"
    }

    /// Whether the whole file is a test.
    pub(crate) fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("/tests.rs")
    }

    /// `path:line` of every line whose code has `word`.
    pub(crate) fn lines_with(&self, word: &str) -> impl Iterator<Item = String> {
        places(&self.path, &self.code, word).into_iter()
    }

    /// The same, down to the file's test module.
    pub(crate) fn lines_with_before_tests(&self, word: &str) -> impl Iterator<Item = String> {
        let end = self.code.find("#[cfg(test)]").unwrap_or(self.code.len());
        places(&self.path, &self.code[..end], word).into_iter()
    }
}

fn places(path: &str, code: &str, word: &str) -> Vec<String> {
    code.lines()
        .enumerate()
        .filter(|(_, line)| has_word(line, word))
        .map(|(index, _)| format!("{path}:{}", index + 1))
        .collect()
}

/// Whether `line` has `word` as a word: `unsafe_code` is not `unsafe`.
fn has_word(line: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(part_of_word) && !after.is_some_and(part_of_word)
    })
}

/// Every Rust file of the workspace and of the fuzz targets.
pub(crate) fn repository() -> Vec<Source> {
    let mut sources = Vec::new();
    for member in members() {
        collect(&root().join(member), &mut sources);
    }
    assert!(
        sources.len() > 50,
        "the walk found only {} files",
        sources.len()
    );
    sources
}

fn collect(folder: &Path, sources: &mut Vec<Source>) {
    for entry in std::fs::read_dir(folder).expect("a folder can be read") {
        let path = entry.expect("a folder can be read").path();
        if path.is_dir() {
            if !path.ends_with("target") {
                collect(&path, sources);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs")
            // The rules and the violations planted for them.
            && !path.ends_with("drover/tests/architecture.rs")
        {
            let text = std::fs::read_to_string(&path).expect("a source file is UTF-8");
            let path = path
                .strip_prefix(root())
                .expect("it lies in the repository");
            sources.push(Source::new(&path.to_string_lossy(), &text));
        }
    }
}

/// Replaces comments and the insides of strings and characters by blanks.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match &bytes[at..] {
            [b'/', b'/', ..] => find(bytes, at, b"\n"),
            [b'/', b'*', ..] => end_of_comment(bytes, at),
            [b'"', ..] => end_of_string(bytes, at),
            [b'r', b'"' | b'#', ..] if !follows_word(bytes, at) => end_of_raw_string(bytes, at),
            [b'\'', b'\\', ..] => find(bytes, at + 3, b"'") + 1,
            // A character, not a lifetime.
            [b'\'', _, b'\'', ..] => at + 3,
            _ => {
                at += 1;
                continue;
            }
        };
        let end = end.clamp(at + 1, bytes.len());
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8_lossy(&code).into_owned()
}

fn find(bytes: &[u8], from: usize, what: &[u8]) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    rest.windows(what.len())
        .position(|window| window == what)
        .map_or(bytes.len(), |offset| from + offset)
}

fn end_of_comment(bytes: &[u8], from: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = from;
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

fn end_of_string(bytes: &[u8], from: usize) -> usize {
    let mut at = from + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// `r"…"` or `r#"…"#`; `r#name` is a name and ends at once.
fn end_of_raw_string(bytes: &[u8], from: usize) -> usize {
    let hashes = bytes[from + 1..]
        .iter()
        .take_while(|byte| **byte == b'#')
        .count();
    if bytes.get(from + 1 + hashes) != Some(&b'"') {
        return from + 1;
    }
    let mut end = vec![b'"'];
    end.extend(std::iter::repeat_n(b'#', hashes));
    find(bytes, from + 2 + hashes, &end) + end.len()
}

fn follows_word(bytes: &[u8], at: usize) -> bool {
    at > 0
        && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
        && !(bytes[at - 1] == b'b' && (at < 2 || !bytes[at - 2].is_ascii_alphanumeric()))
}

/// `(line, path)` of everything in backticks that reads like a path of the repository: its first
/// part is a folder at the root. Fenced blocks are pictures and examples and are left out.
pub(crate) fn named_paths(document: &str) -> Vec<(usize, String)> {
    let mut paths = Vec::new();
    let mut fenced = false;
    for (index, line) in document.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if fenced {
            continue;
        }
        for quoted in line.split('`').skip(1).step_by(2) {
            if looks_like_a_path(quoted) {
                let found = expand(without_place(quoted));
                paths.extend(found.into_iter().map(|path| (index + 1, path)));
            }
        }
    }
    paths
}

fn looks_like_a_path(text: &str) -> bool {
    const FOLDERS: [&str; 9] = [
        "agent",
        "bench-results",
        "control",
        "docs",
        "drover",
        "gateway",
        "loadtest",
        "protocol",
        ".ci",
    ];
    let Some((first, _)) = text.split_once('/') else {
        return false;
    };
    FOLDERS.contains(&first) && !text.contains(|c: char| c.is_whitespace() || "*<>…$=|".contains(c))
}

/// Without `:12` or `::name` behind the path.
fn without_place(text: &str) -> &str {
    text.split_once(':').map_or(text, |(path, _)| path)
}

/// `a/{b,c}.rs` names two files.
fn expand(text: &str) -> Vec<String> {
    let Some((before, rest)) = text.split_once('{') else {
        return vec![text.to_owned()];
    };
    let Some((choices, after)) = rest.split_once('}') else {
        return vec![text.to_owned()];
    };
    choices
        .split(',')
        .flat_map(|choice| expand(&format!("{before}{}{after}", choice.trim())))
        .collect()
}

#[test]
fn comments_strings_and_characters_are_blanked_and_lines_stay() {
    for (text, left) in [
        ("a // b\nc", "a c"),
        ("a /* b /* c */ d */ e", "a e"),
        ("f(\"b \\\" c\") d", "f( ) d"),
        ("f(r#\"b \" c\"#) d", "f( ) d"),
        ("f(b\"x\", 'y', '\\'') 'a: d", "f(b , , ) 'a: d"),
        ("let bar\" b", "let bar"),
        ("for r in x { r\"a\" }", "for r in x { }"),
    ] {
        let code = blank(text);
        assert_eq!(code.len(), text.len(), "{text}");
        assert_eq!(code.lines().count(), text.lines().count(), "{text}");
        assert_eq!(code.split_whitespace().collect::<Vec<_>>().join(" "), left);
    }
}

#[test]
fn a_word_is_a_whole_word() {
    assert!(has_word("unsafe {", "unsafe"));
    assert!(!has_word("unsafe_code", "unsafe"));
    assert!(has_word("x.await;", "await"));
    assert!(has_word("use tokio::sync;", "tokio"));
    assert!(has_word("#[ignore = 1]", "#[ignore"));
}
