//! Patterns of `matches`: the syntax of RE2, told to the `regex` crate, where some of it means something
//! else: `\d \w \s \b` know more than ASCII there, classes may be nested and combined, and braces that
//! are no repetition are an error.

use std::iter::Peekable;
use std::str::Chars;

use regex::{Regex, RegexBuilder};

/// Most bytes of a compiled pattern.
const SIZE_MAX: usize = 1 << 20;
/// Most repetitions that RE2 takes.
const REPEAT_MAX: u32 = 1000;

/// Compiles a pattern in the syntax of RE2.
///
/// # Errors
/// What is wrong with it.
pub(super) fn compile(pattern: &str) -> Result<Regex, String> {
    let mut reader = Reader { rest: pattern.chars().peekable(), out: String::with_capacity(pattern.len()) };
    reader.read()?;
    RegexBuilder::new(&reader.out)
        .size_limit(SIZE_MAX)
        .build()
        .map_err(|error| error.to_string().lines().last().unwrap_or_default().trim().to_owned())
}

struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
    out: String,
}

impl Reader<'_> {
    fn read(&mut self) -> Result<(), String> {
        while let Some(c) = self.rest.next() {
            match c {
                '\\' => self.escape(false)?,
                '[' => self.class()?,
                '{' => self.brace()?,
                '(' => self.group()?,
                // A repetition is read by its opening brace.
                '}' => self.out.push_str("\\}"),
                _ => self.out.push(c),
            }
        }
        Ok(())
    }

    fn literal(&mut self, c: char) {
        self.out.push_str(&format!("\\x{{{:X}}}", u32::from(c)));
    }

    fn escape(&mut self, is_in_class: bool) -> Result<(), String> {
        let c = self.rest.next().ok_or("it ends with a backslash")?;
        let set = match c {
            'd' | 'D' => "0-9",
            'w' | 'W' => "0-9A-Za-z_",
            's' | 'S' => "\\t\\n\\f\\r ",
            'b' if !is_in_class => {
                self.out.push_str("(?-u:\\b)");
                return Ok(());
            }
            'B' if !is_in_class => {
                self.out.push_str("(?-u:\\B)");
                return Ok(());
            }
            'Q' if !is_in_class => return self.quoted(),
            '0'..='7' => return self.octal(c),
            _ => {
                self.out.extend(['\\', c]);
                return Ok(());
            }
        };
        let not = if c.is_ascii_uppercase() { "^" } else { "" };
        self.out.push_str(&format!("[{not}{set}]"));
        Ok(())
    }

    /// Up to `\E`, or the end, everything is meant as it is.
    fn quoted(&mut self) -> Result<(), String> {
        while let Some(c) = self.rest.next() {
            if c == '\\' && self.rest.next_if_eq(&'E').is_some() {
                break;
            }
            self.literal(c);
        }
        Ok(())
    }

    /// `\1` to `\7` alone would refer back, which RE2 does not know.
    fn octal(&mut self, first: char) -> Result<(), String> {
        let mut code = first.to_digit(8).unwrap_or(0);
        let mut digits = 1;
        while digits < 3
            && let Some(digit) = self.rest.peek().and_then(|c| c.to_digit(8))
        {
            self.rest.next();
            code = code * 8 + digit;
            digits += 1;
        }
        if digits == 1 && first != '0' {
            return Err(format!("invalid escape sequence: \\{first}"));
        }
        self.literal(char::from_u32(code).unwrap_or('\0'));
        Ok(())
    }

    /// Members one by one, so that nothing in it means more than itself.
    fn class(&mut self) -> Result<(), String> {
        self.out.push('[');
        if self.rest.next_if_eq(&'^').is_some() {
            self.out.push('^');
        }
        let mut is_first = true;
        loop {
            let c = self.rest.next().ok_or("missing closing ]")?;
            match c {
                ']' if !is_first => {
                    self.out.push(']');
                    return Ok(());
                }
                '[' if self.rest.peek() == Some(&':') => self.named_class(),
                // Between two members it makes a range; one that is a member stands first or last.
                '-' if !is_first && !matches!(self.rest.peek(), Some(']') | None) => self.out.push('-'),
                '\\' => self.escape(true)?,
                _ => self.literal(c),
            }
            is_first = false;
        }
    }

    /// `[:alpha:]`, or a bracket that is a member.
    fn named_class(&mut self) {
        let name: String =
            self.rest.clone().skip(1).take_while(|c| c.is_ascii_lowercase() || *c == '^').collect();
        let end: String = self.rest.clone().skip(1 + name.len()).take(2).collect();
        if end != ":]" {
            self.literal('[');
            return;
        }
        self.rest.by_ref().take(name.len() + 3).for_each(drop);
        self.out.push_str(&format!("[:{name}:]"));
    }

    /// `{n}`, `{n,}` and `{n,m}` repeat; any other brace is itself.
    fn brace(&mut self) -> Result<(), String> {
        let text: String = self.rest.clone().take_while(|c| *c != '}').collect();
        let is_closed = self.rest.clone().nth(text.chars().count()) == Some('}');
        let mut bounds = text.splitn(2, ',');
        let is_number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        let is_repeat = is_closed
            && bounds.next().is_some_and(is_number)
            && bounds.next().is_none_or(|most| most.is_empty() || is_number(most));
        if !is_repeat {
            self.out.push_str("\\{");
            return Ok(());
        }
        let is_over = |s: &str| !s.is_empty() && s.parse::<u32>().map_or(true, |n| n > REPEAT_MAX);
        if text.split(',').any(is_over) {
            return Err(format!("{{{text}}} repeats more than {REPEAT_MAX} times"));
        }
        self.rest.by_ref().take(text.len() + 1).for_each(drop);
        self.out.push_str(&format!("{{{text}}}"));
        Ok(())
    }

    /// Flags that RE2 does not have are refused.
    fn group(&mut self) -> Result<(), String> {
        self.out.push('(');
        let mut rest = self.rest.clone();
        if rest.next() != Some('?') {
            return Ok(());
        }
        let flags: String = rest.take_while(|c| c.is_ascii_alphabetic() || *c == '-').collect();
        if !flags.starts_with('P')
            && let Some(flag) = flags.chars().find(|c| !"imsU-".contains(*c))
        {
            return Err(format!("unknown flag `{flag}`"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_to_re2() {
        for (pattern, text, is_match) in [
            ("^\\d+$", "\u{663}", false),
            ("^\\d+$", "7", true),
            ("^\\w+$", "\u{e9}", false),
            ("^\\W+$", "\u{e9}", true),
            ("^[\\W\\d]+$", "\u{e9}1", true),
            ("^[\\w-]+$", "a-b", true),
            ("\\bx\\b", "\u{e9}x", true),
            ("\\Bx", "ax", true),
            ("^\\s$", "\u{b}", false),
            ("^[a&&b]+$", "a&b", true),
            ("^[[a]+$", "[a", true),
            ("^[]a]+$", "]a", true),
            ("^[^]a]+$", "b", true),
            ("^[a-c]$", "b", true),
            ("^[-a]$", "-", true),
            ("^[a-]$", "-", true),
            ("^[[:alpha:]]$", "b", true),
            ("^[[:^alpha:]]$", "1", true),
            ("^[[:alpha]+$", "[:alph", true),
            ("^[~a]$", "~", true),
            ("a{,2}", "a{,2}", true),
            ("^a{2}$", "aa", true),
            ("^{$", "{", true),
            ("^a}$", "a}", true),
            ("^\\Qa.b\\E$", "a.b", true),
            ("^\\Qa.b\\E$", "axb", false),
            ("^\\101$", "A", true),
            ("(?i)^\u{e9}$", "\u{c9}", true),
            ("(?P<x>a)", "a", true),
            ("(?<x>a)", "a", true),
            ("^\\pL$", "\u{e9}", true),
            ("^.$", "\u{e9}", true),
        ] {
            let regex = compile(pattern).unwrap_or_else(|e| panic!("{pattern}: {e}"));
            assert_eq!(regex.is_match(text), is_match, "{pattern} in {text:?}");
        }
        for pattern in ["(?x)a", "a{1001}", "a{2,1001}", "(a)\\1", "[a", "a\\", "(", "(?u)a", "[b-a]"] {
            assert!(compile(pattern).is_err(), "{pattern}");
        }
    }
}
