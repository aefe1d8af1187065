//! This file reads patterns of RE2 with the `regex` crate: where the same text means something
//! else there, it is rewritten.

use regex::Regex;

/// Compiles a pattern in the syntax of RE2.
pub(super) fn compile(pattern: &str) -> Result<Regex, String> {
    Regex::new(&rewritten(pattern)).map_err(|error| format!("`{pattern}` is no pattern: {error}"))
}

/// RE2's `\d \w \s \b` know ASCII only, and its classes know neither nesting nor set operators.
fn rewritten(pattern: &str) -> String {
    let characters: Vec<char> = pattern.chars().collect();
    let mut text = String::new();
    // Inside a class: where its first member stands.
    let mut class: Option<usize> = None;
    let mut at = 0;
    while at < characters.len() {
        let character = characters[at];
        let next = characters.get(at + 1).copied();
        match (character, class) {
            ('\\', _) => {
                text.push_str(&rewritten_escape(next, class.is_some()));
                at += 1;
            }
            ('[', None) => {
                text.push('[');
                if next == Some('^') {
                    text.push('^');
                    at += 1;
                }
                class = Some(at + 1);
            }
            ('[', Some(_)) => match named_class(&characters[at..]) {
                Some(name) => {
                    at += name.chars().count() - 1;
                    text.push_str(&name);
                }
                None => text.push_str("\\["),
            },
            (']', Some(start)) if at > start => {
                text.push(']');
                class = None;
            }
            ('&' | '~', Some(_)) => {
                text.push('\\');
                text.push(character);
            }
            _ => text.push(character),
        }
        at += 1;
    }
    text
}

/// A class such as `[:alpha:]` at the start of `rest`.
fn named_class(rest: &[char]) -> Option<String> {
    if rest.get(1) != Some(&':') {
        return None;
    }
    let inner = rest.get(2..)?.windows(2).position(|pair| pair == [':', ']'])?;
    Some(rest[..inner + 4].iter().collect())
}

fn rewritten_escape(escaped: Option<char>, is_in_class: bool) -> String {
    let members = match escaped {
        Some('d' | 'D') => "0-9",
        Some('w' | 'W') => "0-9A-Za-z_",
        Some('s' | 'S') => r"\t\n\f\r ",
        Some('b' | 'B') if !is_in_class => return format!(r"(?-u:\{})", text_of(escaped)),
        _ => return format!(r"\{}", text_of(escaped)),
    };
    match escaped {
        Some('D' | 'W' | 'S') => format!("[^{members}]"),
        _ if is_in_class => members.to_owned(),
        _ => format!("[{members}]"),
    }
}

fn text_of(character: Option<char>) -> String {
    character.map(String::from).unwrap_or_default()
}
