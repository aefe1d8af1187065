//! Text to tokens.

use std::str::Chars;

use super::ExprError;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Int(i64),
    Float(f64),
    Str(String),
    Name(String),
    Symbol(&'static str),
    End,
}

#[derive(Clone, Debug)]
pub(super) struct Spanned {
    pub token: Token,
    pub at: usize,
}

const SYMBOLS: [&str; 24] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", "(", ")", "[", "]",
    ",", ".", "{", "}",
];

pub(super) fn tokens(text: &str) -> Result<Vec<Spanned>, ExprError> {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut i = 0;
    while i < bytes.len() {
        let at = i;
        let byte = bytes[i];
        let token = if byte.is_ascii_whitespace() {
            i += 1;
            continue;
        } else if text[i..].starts_with("//") {
            i += text[i..].find('\n').unwrap_or(text.len() - i);
            continue;
        } else if byte.is_ascii_digit() || (byte == b'.' && is_digit(bytes.get(i + 1))) {
            let (token, end) = number(text, i)?;
            i = end;
            token
        } else if is_quote(byte)
            || (matches!(byte, b'r' | b'R') && bytes.get(i + 1).copied().is_some_and(is_quote))
        {
            let (token, end) = string(text, i)?;
            i = end;
            token
        } else if byte.is_ascii_alphabetic() || byte == b'_' {
            while i < bytes.len() && (bytes[i].is_ascii_alphanumeric() || bytes[i] == b'_') {
                i += 1;
            }
            Token::Name(text[at..i].to_owned())
        } else if let Some(symbol) = SYMBOLS.iter().find(|s| text[i..].starts_with(**s)) {
            i += symbol.len();
            Token::Symbol(symbol)
        } else {
            let c = text[i..].chars().next().unwrap_or(' ');
            return Err(ExprError { unknown: None, at, message: format!("unexpected character {c:?}") });
        };
        out.push(Spanned { token, at });
    }
    out.push(Spanned { token: Token::End, at: text.len() });
    Ok(out)
}

fn is_quote(byte: u8) -> bool {
    matches!(byte, b'\'' | b'"')
}

fn is_digit(byte: Option<&u8>) -> bool {
    byte.is_some_and(u8::is_ascii_digit)
}

fn number(text: &str, start: usize) -> Result<(Token, usize), ExprError> {
    let bytes = text.as_bytes();
    let digits = |mut i: usize| {
        while i < bytes.len() && bytes[i].is_ascii_digit() {
            i += 1;
        }
        i
    };
    let wrong = |message: &str| ExprError { unknown: None, at: start, message: message.to_owned() };
    if text[start..].starts_with("0x") || text[start..].starts_with("0X") {
        let end = (start + 2..bytes.len()).find(|i| !bytes[*i].is_ascii_hexdigit()).unwrap_or(bytes.len());
        let n =
            i64::from_str_radix(&text[start + 2..end], 16).map_err(|_| wrong("not a hexadecimal int64"))?;
        return Ok((Token::Int(n), end));
    }
    let mut end = digits(start);
    let mut is_float = false;
    if bytes.get(end) == Some(&b'.') && is_digit(bytes.get(end + 1)) {
        is_float = true;
        end = digits(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let exponent = digits(end + 1 + sign);
        if exponent > end + 1 + sign {
            is_float = true;
            end = exponent;
        }
    }
    if bytes.get(end).is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_') {
        return Err(wrong("a number runs into a name"));
    }
    let text = &text[start..end];
    let token = if is_float {
        let x: f64 = text.parse().map_err(|_| wrong("not a number"))?;
        if !x.is_finite() {
            return Err(wrong("the number is too large for float64"));
        }
        Token::Float(x)
    } else if text == "9223372036854775808" {
        // Only legal as the operand of a unary minus; the parser checks.
        Token::Int(i64::MIN)
    } else {
        Token::Int(text.parse().map_err(|_| wrong("the number is too large for int64"))?)
    };
    Ok((token, end))
}

/// A string in one or three quotes, raw behind an `r`.
fn string(text: &str, start: usize) -> Result<(Token, usize), ExprError> {
    let is_raw = !is_quote(text.as_bytes()[start]);
    let open = start + usize::from(is_raw);
    let quote = &text[open..=open];
    let triple = quote.repeat(3);
    let fence = if text[open..].starts_with(&triple) { triple.as_str() } else { quote };
    let mut out = String::new();
    let mut at = open + fence.len();
    loop {
        if text[at..].starts_with(fence) {
            return Ok((Token::Str(out), at + fence.len()));
        }
        let mut rest = text[at..].chars();
        match rest.next() {
            Some('\n') if fence.len() == 1 => break,
            Some('\\') if is_raw => {
                // A quote behind it does not end the string; both stand for themselves.
                out.push('\\');
                out.extend(rest.next());
            }
            Some('\\') => {
                let unknown =
                    || ExprError { unknown: None, at, message: "unknown escape in a string".to_owned() };
                out.push(escape(&mut rest).ok_or_else(unknown)?);
            }
            Some(c) => out.push(c),
            None => break,
        }
        at = text.len() - rest.as_str().len();
    }
    Err(ExprError { unknown: None, at: start, message: "the string has no end".to_owned() })
}

/// The character that is written behind a backslash.
fn escape(rest: &mut Chars<'_>) -> Option<char> {
    Some(match rest.next()? {
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        c @ ('\\' | '\'' | '"' | '`' | '?') => c,
        'x' | 'X' => code(rest, 2, 16, 0)?,
        'u' => code(rest, 4, 16, 0)?,
        'U' => code(rest, 8, 16, 0)?,
        c @ '0'..='3' => code(rest, 2, 8, c.to_digit(8)?)?,
        _ => return None,
    })
}

/// The character of a code of `digits` digits more, behind `first`.
fn code(rest: &mut Chars<'_>, digits: u32, radix: u32, first: u32) -> Option<char> {
    let mut code = first;
    for _ in 0..digits {
        code = code.checked_mul(radix)? + rest.next()?.to_digit(radix)?;
    }
    char::from_u32(code)
}
