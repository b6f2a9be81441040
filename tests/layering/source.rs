//! Source files without comments, literals and test code, and the names they import from the root of the crate.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// One file below `src`.
pub struct Source {
    /// Path below `src`, with `/`.
    pub path: String,
    /// Module path: `["ops", "gelu"]` of `ops/gelu/mod.rs`, nothing of `lib.rs`.
    pub module: Vec<String>,
    /// Text in which comments, literals and what stands behind `#[cfg(test)]` are blank.
    pub code: String,
    /// Whether all of it is test code.
    pub is_test: bool,
}

/// All `.rs` files below a folder.
pub fn read(src: &Path) -> Vec<Source> {
    fn walk(folder: &Path, src: &Path, files: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, src, files);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let parts: Vec<_> = path.strip_prefix(src).unwrap().iter().map(|p| p.to_str().unwrap()).collect();
                files.push((parts.join("/"), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut files = Vec::new();
    walk(src, src, &mut files);
    files.sort();
    parse(files)
}

/// Files given as path and text.
pub fn parse(files: impl IntoIterator<Item = (String, String)>) -> Vec<Source> {
    let mut tests = BTreeSet::new();
    let mut all: Vec<Source> = files
        .into_iter()
        .map(|(path, text)| {
            let module = module_of(&path);
            let (code, declared) = without_tests(&blank_literals(&text));
            tests.extend(declared.into_iter().map(|name| [&module[..], &[name]].concat()));
            Source { path, module, code, is_test: false }
        })
        .collect();
    for file in &mut all {
        let named = file.module.last().is_some_and(|m| m == "tests") || file.module.iter().any(|m| m == "tests");
        file.is_test = named || tests.iter().any(|test| file.module.starts_with(test));
    }
    all
}

fn module_of(path: &str) -> Vec<String> {
    let stem = path.trim_end_matches(".rs");
    let stem = stem.strip_suffix("/mod").unwrap_or(stem);
    if stem == "lib" { vec![] } else { stem.split('/').map(String::from).collect() }
}

/// The text with comments and the contents of literals blanked; line ends stay.
fn blank_literals(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = chars.clone();
    let mut blank = |from: usize, to: usize| {
        out[from..to].iter_mut().filter(|c| **c != '\n').for_each(|c| *c = ' ');
    };
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut i = 0;
    while i < chars.len() {
        let start = i;
        match (at(i), at(i + 1)) {
            ('/', '/') => {
                while i < chars.len() && chars[i] != '\n' {
                    i += 1;
                }
            }
            ('/', '*') => {
                i += 2;
                while i < chars.len() && (at(i), at(i + 1)) != ('*', '/') {
                    i += 1;
                }
                i = (i + 2).min(chars.len());
            }
            ('r', '"' | '#') if !is_word(at(i.wrapping_sub(1))) && raw_hashes(&chars, i + 1).is_some() => {
                let hashes = raw_hashes(&chars, i + 1).unwrap_or(0);
                i += 2 + hashes;
                while i < chars.len() && !(chars[i] == '"' && (0..hashes).all(|h| at(i + 1 + h) == '#')) {
                    i += 1;
                }
                i = (i + 1 + hashes).min(chars.len());
            }
            ('"', _) => {
                i += 1;
                while i < chars.len() && chars[i] != '"' {
                    i += if chars[i] == '\\' { 2 } else { 1 };
                }
                i = (i + 1).min(chars.len());
            }
            // A character, not a lifetime: 'x' or an escape.
            ('\'', '\\') => {
                i += 3;
                while i < chars.len() && chars[i] != '\'' {
                    i += 1;
                }
                i = (i + 1).min(chars.len());
            }
            ('\'', _) if at(i + 2) == '\'' => i += 3,
            _ => {
                i += 1;
                continue;
            }
        }
        blank(start, i);
    }
    out.into_iter().collect()
}

/// Number of `#` of a raw string whose `r` is just before `at`.
fn raw_hashes(chars: &[char], at: usize) -> Option<usize> {
    let hashes = chars[at..].iter().take_while(|c| **c == '#').count();
    (chars.get(at + hashes) == Some(&'"')).then_some(hashes)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The code with every item behind `#[cfg(test)]` blanked, and the names of modules that were only declared.
fn without_tests(code: &str) -> (String, Vec<String>) {
    const MARK: &str = "#[cfg(test)]";
    let (mut code, mut declared) = (code.to_string(), Vec::new());
    while let Some(start) = code.find(MARK) {
        let body = &code[start + MARK.len()..];
        let open = body.find(['{', ';']).unwrap_or(body.len());
        let words: Vec<&str> = body[..open].split_whitespace().collect();
        let mut end = (open + 1).min(body.len());
        if body[open..].starts_with('{') {
            let mut depth = 0;
            for (i, c) in body[open..].char_indices() {
                depth += i32::from(c == '{') - i32::from(c == '}');
                if depth == 0 {
                    end = open + i + 1;
                    break;
                }
            }
        } else if let [.., "mod", name] = words[..] {
            declared.push(name.to_string());
        }
        let end = start + MARK.len() + end;
        let blank: String = code[start..end].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
        code.replace_range(start..end, &blank);
    }
    (code, declared)
}

/// Words, `::`, and single other characters, with their lines.
fn tokens(code: &str) -> Vec<(usize, String)> {
    let mut all = Vec::new();
    let (mut line, mut rest) = (1, code);
    while let Some(c) = rest.chars().next() {
        let length = match c {
            _ if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            ':' if rest.starts_with("::") => 2,
            _ => c.len_utf8(),
        };
        if !c.is_whitespace() {
            all.push((line, rest[..length].to_string()));
        }
        line += usize::from(c == '\n');
        rest = &rest[length..];
    }
    all
}

/// Names taken from the root of the crate, through `crate::` or enough `super::`, with their lines. The last field is
/// false where an inline module may have been meant instead of the root.
pub fn imports(file: &Source) -> Vec<(usize, String, bool)> {
    let tokens = tokens(&file.code);
    let word = |i: usize| tokens.get(i).map_or("", |(_, t)| t.as_str());
    let mut found = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        let begins = word(i.wrapping_sub(1)) != "::" && word(i + 1) == "::";
        if begins && word(i) == "crate" {
            found.extend(first_names(&tokens[i + 2..]).into_iter().map(|(line, name)| (line, name, true)));
        } else if begins && matches!(word(i), "super" | "self") {
            let mut levels = 0;
            while matches!(word(i), "super" | "self") && word(i + 1) == "::" {
                levels += usize::from(word(i) == "super");
                i += 2;
            }
            if levels >= file.module.len() {
                found.extend(first_names(&tokens[i..]).into_iter().map(|(line, name)| (line, name, false)));
            }
            continue;
        }
        i += 1;
    }
    found
}

/// `a` of `a::b`, `a` and `c` of `{a::b, c::{d, e}}`.
fn first_names(tokens: &[(usize, String)]) -> Vec<(usize, String)> {
    let Some((line, first)) = tokens.first() else { return vec![] };
    if first != "{" {
        return vec![(*line, first.clone())];
    }
    let (mut depth, mut expected, mut names) = (0, true, Vec::new());
    for (line, token) in tokens {
        match token.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 1 => expected = true,
            name if depth == 1 && expected => {
                names.push((*line, name.to_string()));
                expected = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

/// Module of every name that `lib.rs` re-exports and of every exported macro.
pub fn exports(files: &[Source]) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    for file in files {
        let tokens = tokens(&file.code);
        let word = |i: usize| tokens.get(i).map_or("", |(_, t)| t.as_str());
        for i in 0..tokens.len() {
            if file.module.is_empty() && word(i) == "use" && word(i + 2) == "::" {
                for (_, name) in first_names(&tokens[i + 3..]) {
                    map.insert(name, word(i + 1).to_string());
                }
            }
            if !file.module.is_empty() && word(i) == "macro_rules" && file.code.contains("#[macro_export]") {
                map.insert(word(i + 2).to_string(), file.module[0].clone());
            }
        }
    }
    map
}

/// Lines with the keyword `unsafe`, or that switch the lint against it off.
pub fn unsafe_lines(file: &Source) -> impl Iterator<Item = usize> {
    let tokens = tokens(&file.code);
    let lines: Vec<usize> = (0..tokens.len())
        .filter(|&i| match tokens[i].1.as_str() {
            "unsafe" => true,
            "unsafe_code" => i >= 2 && matches!(tokens[i - 2].1.as_str(), "allow" | "warn" | "expect"),
            _ => false,
        })
        .map(|i| tokens[i].0)
        .collect();
    lines.into_iter()
}
