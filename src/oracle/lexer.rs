//! This file turns the text of an expression into tokens.

/// A token of an expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A whole number without its sign.
    Integer(u64),
    /// A number with a fraction or an exponent, without its sign.
    Float(f64),
    /// A text, without quotes and escapes.
    Text(String),
    /// A name or a keyword.
    Name(String),
    /// An operator or a bracket.
    Symbol(&'static str),
    /// The end of the expression.
    End,
}

/// Longer symbols come first, because the first one that fits is taken.
const SYMBOLS: &[&str] = &[
    "==", "!=", "<=", ">=", "&&", "||", "-", "+", "*", "/", "%", "!", "<", ">", "?", ":", ",", ".", "(", ")",
    "[", "]",
];

/// Splits `source` into tokens; the last one is [`Token::End`].
pub(super) fn tokens(source: &str) -> Result<Vec<Token>, String> {
    let characters: Vec<char> = source.chars().collect();
    let mut found = Vec::new();
    let mut at = 0;
    while at < characters.len() {
        let rest = &characters[at..];
        let blank = blank_length(rest);
        if blank > 0 {
            at += blank;
            continue;
        }
        let (token, length) = token(rest)?;
        found.push(token);
        at += length;
    }
    found.push(Token::End);
    Ok(found)
}

/// Length of one blank character or of a comment at the start of `rest`, which is not empty.
fn blank_length(rest: &[char]) -> usize {
    if matches!(rest[0], ' ' | '\t' | '\r' | '\n' | '\u{c}') {
        1
    } else if starts_with(rest, "//") {
        rest.iter().take_while(|character| **character != '\n').count()
    } else {
        0
    }
}

fn starts_with(rest: &[char], symbol: &str) -> bool {
    symbol.chars().enumerate().all(|(index, character)| rest.get(index) == Some(&character))
}

fn is_quote(character: char) -> bool {
    character == '"' || character == '\''
}

/// The token at the start of `rest`, which is not empty, and its length in characters.
fn token(rest: &[char]) -> Result<(Token, usize), String> {
    let first = rest[0];
    let second = rest.get(1).copied();
    if first.is_ascii_digit() || (first == '.' && second.is_some_and(|character| character.is_ascii_digit()))
    {
        return number(rest);
    }
    if is_quote(first) || (matches!(first, 'r' | 'R') && second.is_some_and(is_quote)) {
        return text(rest);
    }
    if first.is_ascii_alphabetic() || first == '_' {
        let name: String = rest
            .iter()
            .take_while(|character| character.is_ascii_alphanumeric() || **character == '_')
            .collect();
        let length = name.len();
        return Ok((Token::Name(name), length));
    }
    for symbol in SYMBOLS.iter().copied() {
        if starts_with(rest, symbol) {
            return Ok((Token::Symbol(symbol), symbol.len()));
        }
    }
    Err(format!("unexpected {first:?}"))
}

fn number(rest: &[char]) -> Result<(Token, usize), String> {
    if rest[0] == '0' && matches!(rest.get(1), Some('x' | 'X')) {
        let digits: String =
            rest.iter().skip(2).take_while(|character| character.is_ascii_hexdigit()).collect();
        if !digits.is_empty() {
            let number =
                u64::from_str_radix(&digits, 16).map_err(|_| format!("0x{digits} is outside int64"))?;
            return Ok((Token::Integer(number), digits.len() + 2));
        }
    }
    let digits_from =
        |from: usize| rest.iter().skip(from).take_while(|character| character.is_ascii_digit()).count();
    let mut end = digits_from(0);
    let mut is_float = false;
    if rest.get(end) == Some(&'.') && digits_from(end + 1) > 0 {
        is_float = true;
        end = end + 1 + digits_from(end + 1);
    }
    if matches!(rest.get(end), Some('e' | 'E')) {
        let sign = usize::from(matches!(rest.get(end + 1), Some('+' | '-')));
        let digits = digits_from(end + 1 + sign);
        if digits > 0 {
            is_float = true;
            end += 1 + sign + digits;
        }
    }
    let written: String = rest[..end].iter().collect();
    if !is_float {
        let number: u64 = written.parse().map_err(|_| format!("{written} is outside int64"))?;
        return Ok((Token::Integer(number), end));
    }
    match written.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok((Token::Float(number), end)),
        _ => Err(format!("{written} is not finite")),
    }
}

fn text(rest: &[char]) -> Result<(Token, usize), String> {
    let is_raw = matches!(rest[0], 'r' | 'R');
    let start = usize::from(is_raw);
    let quoted = &rest[start..];
    let (body, length) = if let Some(body) = triple_quoted(quoted) {
        (body, start + body.len() + 6)
    } else {
        let body = single_quoted(quoted).ok_or("a text lacks its closing quote")?;
        (body, start + body.len() + 2)
    };
    let text: String = if is_raw { body.iter().collect() } else { unescape(body)? };
    Ok((Token::Text(text), length))
}

/// What stands between three quotes and the next three.
fn triple_quoted(rest: &[char]) -> Option<&[char]> {
    let quote = rest[0];
    if !rest.get(..3)?.iter().all(|character| *character == quote) {
        return None;
    }
    let behind = &rest[3..];
    let length = behind.windows(3).position(|three| three.iter().all(|character| *character == quote))?;
    Some(&behind[..length])
}

/// What stands between one quote and the next that no backslash escapes, on one line.
fn single_quoted(rest: &[char]) -> Option<&[char]> {
    let quote = rest[0];
    let mut at = 1;
    loop {
        let character = *rest.get(at)?;
        if character == quote {
            return Some(&rest[1..at]);
        }
        if character == '\n' {
            return None;
        }
        if character == '\\' {
            if *rest.get(at + 1)? == '\n' {
                return None;
            }
            at += 1;
        }
        at += 1;
    }
}

fn unescape(body: &[char]) -> Result<String, String> {
    let mut text = String::new();
    let mut at = 0;
    while at < body.len() {
        if body[at] != '\\' {
            text.push(body[at]);
            at += 1;
            continue;
        }
        let escape = *body.get(at + 1).ok_or("a text ends with a backslash")?;
        let (character, length) = match escape {
            'n' => ('\n', 2),
            't' => ('\t', 2),
            'r' => ('\r', 2),
            'a' => ('\u{7}', 2),
            'b' => ('\u{8}', 2),
            'f' => ('\u{c}', 2),
            'v' => ('\u{b}', 2),
            '\\' | '\'' | '"' | '`' | '?' => (escape, 2),
            'x' | 'X' => (code_point(body, at + 2, 2, 16)?, 4),
            'u' => (code_point(body, at + 2, 4, 16)?, 6),
            'U' => (code_point(body, at + 2, 8, 16)?, 10),
            '0'..='3' => (code_point(body, at + 1, 3, 8)?, 4),
            other => return Err(format!("unknown escape \\{other}")),
        };
        text.push(character);
        at += length;
    }
    Ok(text)
}

fn code_point(body: &[char], from: usize, length: usize, radix: u32) -> Result<char, String> {
    let digits: String = body.iter().skip(from).take(length).collect();
    if digits.len() != length {
        return Err("an escape is too short".to_owned());
    }
    u32::from_str_radix(&digits, radix)
        .ok()
        .and_then(char::from_u32)
        .ok_or_else(|| format!("{digits} is no character"))
}
