//! Text to tokens.

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
        } else if byte.is_ascii_digit() {
            let (token, end) = number(text, i)?;
            i = end;
            token
        } else if byte == b'\'' || byte == b'"' {
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
            return Err(ExprError { at, message: format!("unexpected character {c:?}") });
        };
        out.push(Spanned { token, at });
    }
    out.push(Spanned { token: Token::End, at: text.len() });
    Ok(out)
}

fn number(text: &str, start: usize) -> Result<(Token, usize), ExprError> {
    let bytes = text.as_bytes();
    let digits = |mut i: usize| {
        while i < bytes.len() && bytes[i].is_ascii_digit() {
            i += 1;
        }
        i
    };
    let wrong = |message: &str| ExprError { at: start, message: message.to_owned() };
    if text[start..].starts_with("0x") {
        let end = (start + 2..bytes.len()).find(|i| !bytes[*i].is_ascii_hexdigit()).unwrap_or(bytes.len());
        let n =
            i64::from_str_radix(&text[start + 2..end], 16).map_err(|_| wrong("not a hexadecimal int64"))?;
        return Ok((Token::Int(n), end));
    }
    let mut end = digits(start);
    let mut is_float = false;
    if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
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

fn string(text: &str, start: usize) -> Result<(Token, usize), ExprError> {
    let quote = text.as_bytes()[start];
    let mut out = String::new();
    let mut chars = text[start + 1..].char_indices();
    while let Some((i, c)) = chars.next() {
        let at = start + 1 + i;
        match c {
            c if c as u32 == u32::from(quote) => return Ok((Token::Str(out), at + 1)),
            '\\' => {
                let wrong = || ExprError { at, message: "unknown escape in a string".to_owned() };
                let (_, escape) = chars.next().ok_or_else(wrong)?;
                match escape {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    'r' => out.push('\r'),
                    '\\' | '\'' | '"' | '`' | '?' => out.push(escape),
                    'x' | 'u' | 'U' => {
                        let len = match escape {
                            'x' => 2,
                            'u' => 4,
                            _ => 8,
                        };
                        let mut code = 0_u32;
                        for _ in 0..len {
                            let digit = chars.next().and_then(|(_, c)| c.to_digit(16));
                            code = (code << 4) | digit.ok_or_else(wrong)?;
                        }
                        out.push(char::from_u32(code).ok_or_else(wrong)?);
                    }
                    _ => return Err(wrong()),
                }
            }
            c => out.push(c),
        }
    }
    Err(ExprError { at: start, message: "the string has no end".to_owned() })
}
