//! A JSON scanner that checks a whole document and picks out declared paths, without building it.
//!
//! It accepts exactly what RFC 8259 calls an object text, in valid UTF-8, with at most 64 nested
//! containers. Of a repeated key the last counts, as do the paths below it.

use std::borrow::Cow;

/// Most nested containers, the root object included.
const DEPTH_MAX: usize = 64;

/// What a document holds at a declared path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Raw<'a> {
    /// Nothing.
    #[default]
    Missing,
    /// `null`.
    Null,
    /// A truth value.
    Bool(bool),
    /// The text of a number.
    Number(&'a str),
    /// The text between the quotes, and whether it holds escapes.
    Text(&'a str, bool),
    /// An object or an array.
    Container,
}

/// Declared paths as a tree of keys.
#[derive(Debug, Default)]
pub struct Paths {
    nodes: Vec<PathNode>,
    slots: usize,
}

#[derive(Debug, Default)]
struct PathNode {
    children: Vec<(Box<str>, usize)>,
    /// Slots that take the value at this path.
    here: Vec<usize>,
    /// Slots at and below this path.
    below: Vec<usize>,
}

impl Paths {
    /// No paths.
    pub fn new() -> Self {
        Self { nodes: vec![PathNode::default()], slots: 0 }
    }

    /// Adds a path and returns its slot.
    pub fn add(&mut self, path: &[String]) -> usize {
        let slot = self.slots;
        self.slots += 1;
        let mut at = 0;
        for key in path {
            let known = self.nodes[at].children.iter().find(|(k, _)| **k == **key).map(|(_, n)| *n);
            at = known.unwrap_or_else(|| {
                let next = self.nodes.len();
                self.nodes.push(PathNode::default());
                self.nodes[at].children.push((key.as_str().into(), next));
                next
            });
            self.nodes[at].below.push(slot);
        }
        self.nodes[at].here.push(slot);
        slot
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Checks `payload` and fills `out`, one entry per slot.
    ///
    /// # Errors
    /// What makes it not one JSON object.
    pub fn scan<'a>(&self, payload: &'a [u8], out: &mut Vec<Raw<'a>>) -> Result<(), &'static str> {
        out.clear();
        out.resize(self.slots, Raw::Missing);
        let text = std::str::from_utf8(payload).map_err(|_| "not valid UTF-8")?;
        let mut scanner = Scanner { text, bytes: payload, at: 0, paths: self, out };
        scanner.skip_space();
        if scanner.peek() != Some(b'{') {
            return Err("not a JSON object");
        }
        scanner.object(Some(0), 1)?;
        scanner.skip_space();
        if scanner.at < payload.len() { Err("something follows the JSON object") } else { Ok(()) }
    }
}

struct Scanner<'a, 'p> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    paths: &'p Paths,
    out: &'p mut Vec<Raw<'a>>,
}

type Scanned<T = ()> = Result<T, &'static str>;

const SYNTAX: &str = "not well-formed JSON";
const CUT: &str = "the JSON object ends too early";

impl<'a> Scanner<'a, '_> {
    #[inline(always)]
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline(always)]
    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    #[inline(always)]
    fn expect(&mut self, byte: u8) -> Scanned {
        match self.peek() {
            Some(b) if b == byte => {
                self.at += 1;
                Ok(())
            }
            Some(_) => Err(SYNTAX),
            None => Err(CUT),
        }
    }

    /// An object whose declared members are those of node `at`, if any.
    fn object(&mut self, node: Option<usize>, depth: usize) -> Scanned {
        if depth > DEPTH_MAX {
            return Err("nested deeper than 64 levels");
        }
        self.expect(b'{')?;
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.skip_space();
            let (key, has_escape) = self.string()?;
            let child = node.and_then(|n| self.child(n, key, has_escape));
            self.skip_space();
            self.expect(b':')?;
            self.skip_space();
            self.value(child, depth)?;
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(_) => return Err(SYNTAX),
                None => return Err(CUT),
            }
        }
    }

    fn child(&mut self, node: usize, key: &str, has_escape: bool) -> Option<usize> {
        let children = &self.paths.nodes[node].children;
        if children.is_empty() {
            return None;
        }
        let key: Cow<'_, str> = if has_escape { Cow::Owned(unescape(key)?) } else { Cow::Borrowed(key) };
        let child = children.iter().find(|(k, _)| **k == *key).map(|(_, n)| *n)?;
        for slot in &self.paths.nodes[child].below {
            self.out[*slot] = Raw::Missing;
        }
        Some(child)
    }

    fn array(&mut self, depth: usize) -> Scanned {
        if depth > DEPTH_MAX {
            return Err("nested deeper than 64 levels");
        }
        self.expect(b'[')?;
        self.skip_space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.skip_space();
            self.value(None, depth)?;
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(_) => return Err(SYNTAX),
                None => return Err(CUT),
            }
        }
    }

    fn value(&mut self, node: Option<usize>, depth: usize) -> Scanned {
        let raw = match self.peek() {
            Some(b'"') => {
                let (text, has_escape) = self.string()?;
                Raw::Text(text, has_escape)
            }
            Some(b'{') => {
                self.object(node, depth + 1)?;
                Raw::Container
            }
            Some(b'[') => {
                self.array(depth + 1)?;
                Raw::Container
            }
            Some(b'-' | b'0'..=b'9') => Raw::Number(self.number()?),
            Some(b't') => self.word("true", Raw::Bool(true))?,
            Some(b'f') => self.word("false", Raw::Bool(false))?,
            Some(b'n') => self.word("null", Raw::Null)?,
            Some(_) => return Err(SYNTAX),
            None => return Err(CUT),
        };
        if let Some(node) = node {
            for slot in &self.paths.nodes[node].here {
                self.out[*slot] = raw;
            }
        }
        Ok(())
    }

    fn word(&mut self, word: &str, raw: Raw<'a>) -> Scanned<Raw<'a>> {
        if self.bytes[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            return Ok(raw);
        }
        Err(SYNTAX)
    }

    fn number(&mut self) -> Scanned<&'a str> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            Some(_) => return Err(SYNTAX),
            None => return Err(CUT),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.some_digits()?;
        }
        Ok(&self.text[start..self.at])
    }

    fn digits(&mut self) {
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
    }

    fn some_digits(&mut self) -> Scanned {
        let start = self.at;
        self.digits();
        match (self.at > start, self.peek()) {
            (true, _) => Ok(()),
            (false, Some(_)) => Err(SYNTAX),
            (false, None) => Err(CUT),
        }
    }

    fn string(&mut self) -> Scanned<(&'a str, bool)> {
        self.expect(b'"')?;
        let start = self.at;
        let mut has_escape = false;
        loop {
            self.skip_plain();
            match self.peek() {
                Some(b'"') => {
                    let text = &self.text[start..self.at];
                    self.at += 1;
                    return Ok((text, has_escape));
                }
                Some(b'\\') => {
                    has_escape = true;
                    self.escape()?;
                }
                Some(_) => return Err(SYNTAX),
                None => return Err(CUT),
            }
        }
    }

    /// Moves to the next quote, backslash or control character, eight bytes at a time (the
    /// has-less-than and has-value tricks of Anderson's *Bit Twiddling Hacks*).
    #[inline(always)]
    fn skip_plain(&mut self) {
        const ONES: u64 = 0x0101_0101_0101_0101;
        const HIGH: u64 = 0x8080_8080_8080_8080;
        let has_zero = |x: u64| x.wrapping_sub(ONES) & !x & HIGH;
        while let Some(chunk) = self.bytes[self.at..].first_chunk::<8>() {
            let x = u64::from_le_bytes(*chunk);
            let control = x.wrapping_sub(ONES * 0x20) & !x & HIGH;
            let special =
                has_zero(x ^ (ONES * u64::from(b'"'))) | has_zero(x ^ (ONES * u64::from(b'\\'))) | control;
            if special != 0 {
                self.at += (special.trailing_zeros() / 8) as usize;
                return;
            }
            self.at += 8;
        }
        while let Some(b) = self.peek() {
            if b == b'"' || b == b'\\' || b < 0x20 {
                return;
            }
            self.at += 1;
        }
    }

    fn escape(&mut self) -> Scanned {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                let digits = self.bytes.get(self.at + 1..self.at + 5).ok_or(CUT)?;
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return Err(SYNTAX);
                }
                self.at += 5;
            }
            Some(_) => return Err(SYNTAX),
            None => return Err(CUT),
        }
        Ok(())
    }
}

/// The text of a string with well-formed escapes; `None` when a surrogate stands alone.
pub fn unescape(raw: &str) -> Option<String> {
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let escape = rest.as_bytes()[at + 1];
        rest = &rest[at + 2..];
        out.push(match escape {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let high = u32::from_str_radix(&rest[..4], 16).ok()?;
                rest = &rest[4..];
                if (0xd800..0xdc00).contains(&high) {
                    let low = rest.strip_prefix("\\u").and_then(|r| r.get(..4))?;
                    let low = u32::from_str_radix(low, 16).ok()?;
                    if !(0xdc00..0xe000).contains(&low) {
                        return None;
                    }
                    rest = &rest[6..];
                    char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00))?
                } else {
                    char::from_u32(high)?
                }
            }
            other => char::from(other),
        });
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn paths(list: &[&str]) -> Paths {
        let mut paths = Paths::new();
        for path in list {
            paths.add(&path.split('.').map(str::to_owned).collect::<Vec<_>>());
        }
        paths
    }

    #[test]
    fn picks_paths_and_lets_the_last_of_repeated_keys_count() {
        let paths = paths(&["a.b", "a", "c", "a.d"]);
        let mut out = Vec::new();
        for (text, want) in [
            (
                r#"{"a":{"b":1},"c":"x"}"#,
                [Raw::Number("1"), Raw::Container, Raw::Text("x", false), Raw::Missing],
            ),
            (r#"{"a":{"b":1},"a":{"d":null}}"#, [Raw::Missing, Raw::Container, Raw::Missing, Raw::Null]),
            (r#"{"a":{"b":1},"a":2}"#, [Raw::Missing, Raw::Number("2"), Raw::Missing, Raw::Missing]),
            (r#"{"\u0061":{"b":true}}"#, [Raw::Bool(true), Raw::Container, Raw::Missing, Raw::Missing]),
            (r#"{"a":[{"b":1}]}"#, [Raw::Missing, Raw::Container, Raw::Missing, Raw::Missing]),
        ] {
            paths.scan(text.as_bytes(), &mut out).expect(text);
            assert_eq!(out, want, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_not_one_object() {
        let paths = paths(&["a"]);
        let deep = |n| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert!(paths.scan(deep(63).as_bytes(), &mut Vec::new()).is_ok());
        let too_deep = deep(64);
        for text in [
            "",
            "[]",
            "1",
            "{",
            "{}x",
            "\u{feff}{}",
            "{\"a\":01}",
            "{\"a\":1.}",
            "{\"a\":.5}",
            "{\"a\":+1}",
            "{\"a\":NaN}",
            "{\"a\":\"\n\"}",
            "{\"a\":\"\\x\"}",
            "{\"a\" 1}",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\":tru}",
            "{\"a\":\"\\u12\"}",
            "{}{}",
            &too_deep,
        ] {
            assert!(paths.scan(text.as_bytes(), &mut Vec::new()).is_err(), "{text}");
        }
        assert!(paths.scan(b"{\"a\":\"\xff\"}", &mut Vec::new()).is_err());
    }

    #[test]
    fn unescapes_and_refuses_lone_surrogates() {
        assert_eq!(unescape(r#"a\n\"\u00e9\ud83d\ude00\/"#).as_deref(), Some("a\n\"é😀/"));
        for lone in [r"\ud800", r"\udc00", r"\ud800x", r"\ud800\n", r"\ud800\u0041"] {
            assert_eq!(unescape(lone), None, "{lone}");
        }
    }

    proptest! {
        /// The same texts are accepted as by serde_json, mutations of good ones included.
        #[test]
        fn agrees_with_serde_json(
            mut bytes in prop::collection::vec(prop::sample::select(&b"{}[]\",:01.eE+-truefalsn\\u \"a"[..]), 0..24),
            edit in 0_usize..200,
            byte in any::<u8>(),
        ) {
            let good = br#"{"a":{"b":[1,-2.5e3,"x\u0041\n",true,null,{}]},"c":"\ud83d\ude00","d":0}"#;
            let mut mutated = good.to_vec();
            if edit < mutated.len() {
                mutated[edit] = byte;
            }
            bytes.splice(0..0, *b"{\"a\":");
            bytes.push(b'}');
            let paths = paths(&["a.b", "c"]);
            for text in [&mutated, &bytes] {
                let ours = paths.scan(text, &mut Vec::new()).is_ok();
                // IgnoredAny checks the grammar but not what escapes mean, as we do for what
                // nobody declared.
                let theirs = std::str::from_utf8(text).is_ok_and(|t| t.trim_start_matches([' ']).starts_with('{'))
                    && serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok();
                prop_assert_eq!(ours, theirs, "{:?}", String::from_utf8_lossy(text));
            }
        }
    }
}
