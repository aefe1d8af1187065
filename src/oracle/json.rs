//! This file reads a payload: one JSON object in UTF-8, nested at most 64 levels deep.

use super::number::json_number_length;

/// Deepest nesting of objects and lists; the payload itself is the first level.
const DEPTH_MAX: usize = 64;

/// A JSON value; what no rule looks at is not kept.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, by its text.
    Number(String),
    /// A text. Where it has lone surrogates, replacement characters stand for them.
    Text {
        /// The text.
        text: String,
        /// Whether it has lone surrogates.
        has_lone_surrogate: bool,
    },
    /// A list, whose items cannot be named by any path.
    List,
    /// An object, with repeated keys as often as they stand there.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// The value at `path`; none when it is missing or null.
    pub(super) fn at(&self, path: &[String]) -> Option<&Json> {
        let mut value = self;
        for name in path {
            let Json::Object(entries) = value else {
                return None;
            };
            // Of a repeated key the last counts.
            value = entries.iter().rev().find(|(known, _)| known == name).map(|(_, inner)| inner)?;
        }
        (*value != Json::Null).then_some(value)
    }

    /// Whether it is a text with lone surrogates.
    pub(super) fn has_lone_surrogate(&self) -> bool {
        matches!(self, Json::Text { has_lone_surrogate: true, .. })
    }
}

/// Reads a payload; none when it is malformed.
pub(super) fn parse_object(bytes: &[u8]) -> Option<Json> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(0)?;
    reader.skip_space();
    let is_at_end = reader.at == text.len();
    (is_at_end && matches!(value, Json::Object(_))).then_some(value)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        let trimmed = self.rest().trim_start_matches([' ', '\t', '\r', '\n']);
        self.at = self.text.len() - trimmed.len();
    }

    fn take(&mut self, word: &str) -> bool {
        let is_there = self.rest().starts_with(word);
        if is_there {
            self.at += word.len();
        }
        is_there
    }

    /// A value inside of `depth` objects and lists.
    fn value(&mut self, depth: usize) -> Option<Json> {
        self.skip_space();
        match self.rest().bytes().next()? {
            b'{' | b'[' if depth == DEPTH_MAX => None,
            b'{' => self.object(depth + 1),
            b'[' => self.list(depth + 1),
            b'"' => {
                let (text, has_lone_surrogate) = self.string()?;
                Some(Json::Text { text, has_lone_surrogate })
            }
            b't' => self.take("true").then_some(Json::Bool(true)),
            b'f' => self.take("false").then_some(Json::Bool(false)),
            b'n' => self.take("null").then_some(Json::Null),
            _ => {
                let length = json_number_length(self.rest().as_bytes())?;
                let text = self.rest()[..length].to_owned();
                self.at += length;
                Some(Json::Number(text))
            }
        }
    }

    fn object(&mut self, depth: usize) -> Option<Json> {
        let mut entries = Vec::new();
        self.at += 1;
        self.skip_space();
        if self.take("}") {
            return Some(Json::Object(entries));
        }
        loop {
            self.skip_space();
            let (name, has_lone_surrogate) = self.string()?;
            self.skip_space();
            if !self.take(":") {
                return None;
            }
            let value = self.value(depth)?;
            // No path can name a key with a lone surrogate.
            if !has_lone_surrogate {
                entries.push((name, value));
            }
            self.skip_space();
            if !self.take(",") {
                return self.take("}").then_some(Json::Object(entries));
            }
        }
    }

    fn list(&mut self, depth: usize) -> Option<Json> {
        self.at += 1;
        self.skip_space();
        if self.take("]") {
            return Some(Json::List);
        }
        loop {
            self.value(depth)?;
            self.skip_space();
            if !self.take(",") {
                return self.take("]").then_some(Json::List);
            }
        }
    }

    /// A string with its quotes, and whether it has lone surrogates.
    fn string(&mut self) -> Option<(String, bool)> {
        if !self.take("\"") {
            return None;
        }
        // Escapes name UTF-16 units, so that pairs of surrogates find each other in those.
        let mut units = Vec::new();
        loop {
            let character = self.rest().chars().next()?;
            self.at += character.len_utf8();
            match character {
                '"' => break,
                '\\' => units.push(self.escape()?),
                '\0'..='\u{1f}' => return None,
                _ => units.extend_from_slice(character.encode_utf16(&mut [0; 2])),
            }
        }
        match String::from_utf16(&units) {
            Ok(text) => Some((text, false)),
            Err(_) => Some((String::from_utf16_lossy(&units), true)),
        }
    }

    /// What stands behind a backslash.
    fn escape(&mut self) -> Option<u16> {
        let escaped = self.rest().bytes().next()?;
        self.at += 1;
        let byte = match escaped {
            b'"' | b'\\' | b'/' => escaped,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let digits = self.rest().get(..4)?;
                if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return None;
                }
                self.at += 4;
                return u16::from_str_radix(digits, 16).ok();
            }
            _ => return None,
        };
        Some(u16::from(byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(levels: usize) -> Vec<u8> {
        let lists = levels - 1;
        format!("{{\"a\":{}{}}}", "[".repeat(lists), "]".repeat(lists)).into_bytes()
    }

    #[test]
    fn payloads_are_one_object_and_nothing_else() {
        for text in ["{}", " {\"a\":1} \n", r#"{"a":"\ud800"}"#, r#"{"a":1e999,"b":[1,{}]}"#] {
            assert!(parse_object(text.as_bytes()).is_some(), "{text}");
        }
        for text in [
            "",
            "null",
            "[]",
            "{\"a\":1}x",
            "\u{feff}{}",
            "{\"a\":NaN}",
            "{\"a\":01}",
            "{\"a\":1.}",
            "{\"a\":\"\n\"}",
            "{\"a\":1,}",
            "{\"a\":+1}",
            "{} {}",
            "{\"a\":-}",
            "{\"a\":\"\\x\"}",
            "{\"a\":.5}",
            "\u{a0}{}",
            "{,}",
            "{\"a\":[1,]}",
        ] {
            assert!(parse_object(text.as_bytes()).is_none(), "{text:?}");
        }
        assert!(parse_object(b"{\"a\":\"\xff\"}").is_none());
        assert!(parse_object(&nested(64)).is_some());
        assert!(parse_object(&nested(65)).is_none());
    }

    #[test]
    fn of_a_repeated_key_the_last_counts() {
        let object = parse_object(br#"{"a":{"b":1},"a":{"b":2,"b":null,"c":"\ud83d\ude00"}}"#);
        let object = object.expect("it is an object");
        let path = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<String>>();
        assert_eq!(object.at(&path("a.b")), None);
        let smile = Json::Text { text: "\u{1f600}".to_owned(), has_lone_surrogate: false };
        assert_eq!(object.at(&path("a.c")), Some(&smile));
        assert_eq!(object.at(&path("a.c.d")), None);
    }
}
