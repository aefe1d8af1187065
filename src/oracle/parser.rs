//! This file turns the tokens of an expression into a tree, by recursive descent.

use crate::model::Value;

use super::lexer::{Token, tokens};

/// An expression as it was written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Syntax {
    /// A literal.
    Literal(Value),
    /// A name.
    Name(String),
    /// A name behind a dot.
    Member(Box<Syntax>, String),
    /// Something in square brackets behind something.
    Index(Box<Syntax>, Box<Syntax>),
    /// A call; of a method, its object is the first argument.
    Call(String, Vec<Syntax>),
    /// `!` or `-` before something.
    Unary(char, Box<Syntax>),
    /// An operator between two.
    Binary(&'static str, Box<Syntax>, Box<Syntax>),
    /// `a ? b : c`.
    Condition(Box<Syntax>, Box<Syntax>, Box<Syntax>),
    /// A list.
    List(Vec<Syntax>),
}

/// Parses all of `source`.
pub(super) fn parse(source: &str) -> Result<Syntax, String> {
    let mut parser = Parser { tokens: tokens(source)?, at: 0 };
    let syntax = parser.expression()?;
    match parser.peek() {
        Token::End => Ok(syntax),
        token => Err(format!("unexpected {token:?}")),
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at]
    }

    /// Takes the next token. The end is never passed, so that there always is a next one.
    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        if token != Token::End {
            self.at += 1;
        }
        token
    }

    fn is_at(&self, symbol: &str) -> bool {
        matches!(self.peek(), Token::Symbol(found) if *found == symbol)
    }

    fn take(&mut self, symbol: &str) -> bool {
        let is_there = self.is_at(symbol);
        if is_there {
            self.at += 1;
        }
        is_there
    }

    fn expect(&mut self, symbol: &str) -> Result<(), String> {
        if self.take(symbol) {
            return Ok(());
        }
        Err(format!("expected `{symbol}`, found {:?}", self.peek()))
    }

    fn expression(&mut self) -> Result<Syntax, String> {
        let condition = self.or()?;
        if !self.take("?") {
            return Ok(condition);
        }
        let then = self.or()?;
        self.expect(":")?;
        let otherwise = self.expression()?;
        Ok(Syntax::Condition(Box::new(condition), Box::new(then), Box::new(otherwise)))
    }

    /// Operands with left-associative operators of one rank between them.
    fn chain(
        &mut self,
        operators: &[&'static str],
        operand: fn(&mut Self) -> Result<Syntax, String>,
    ) -> Result<Syntax, String> {
        let mut left = operand(self)?;
        loop {
            let written = match self.peek() {
                Token::Symbol(symbol) => *symbol,
                Token::Name(name) if name == "in" => "in",
                _ => return Ok(left),
            };
            if !operators.contains(&written) {
                return Ok(left);
            }
            self.at += 1;
            let right = operand(self)?;
            left = Syntax::Binary(written, Box::new(left), Box::new(right));
        }
    }

    fn or(&mut self) -> Result<Syntax, String> {
        self.chain(&["||"], Self::and)
    }

    fn and(&mut self) -> Result<Syntax, String> {
        self.chain(&["&&"], Self::relation)
    }

    fn relation(&mut self) -> Result<Syntax, String> {
        self.chain(&["==", "!=", "<", "<=", ">", ">=", "in"], Self::sum)
    }

    fn sum(&mut self) -> Result<Syntax, String> {
        self.chain(&["+", "-"], Self::product)
    }

    fn product(&mut self) -> Result<Syntax, String> {
        self.chain(&["*", "/", "%"], Self::unary)
    }

    fn unary(&mut self) -> Result<Syntax, String> {
        if self.take("!") {
            return Ok(Syntax::Unary('!', Box::new(self.unary()?)));
        }
        if !self.take("-") {
            let primary = self.primary()?;
            return self.postfix(primary);
        }
        // A sign belongs to its literal, so that -9223372036854775808 can be written.
        let is_number = matches!(self.peek(), Token::Integer(_) | Token::Float(_));
        if is_number {
            let token = self.next();
            let literal = Self::number(&token, true)?;
            return self.postfix(literal);
        }
        Ok(Syntax::Unary('-', Box::new(self.unary()?)))
    }

    fn number(token: &Token, is_negative: bool) -> Result<Syntax, String> {
        let value = match token {
            Token::Integer(number) => {
                let magnitude = i128::from(*number);
                let signed = if is_negative { -magnitude } else { magnitude };
                let integer = i64::try_from(signed).map_err(|_| format!("{signed} is outside int64"))?;
                Value::Int(integer)
            }
            Token::Float(number) => {
                let signed = if is_negative { -number } else { *number };
                Value::Float(signed + 0.0)
            }
            other => return Err(format!("expected a number, found {other:?}")),
        };
        Ok(Syntax::Literal(value))
    }

    fn primary(&mut self) -> Result<Syntax, String> {
        let token = self.next();
        match token {
            Token::Integer(_) | Token::Float(_) => Self::number(&token, false),
            Token::Text(text) => Ok(Syntax::Literal(Value::from(text.as_str()))),
            Token::Name(name) => match name.as_str() {
                "true" => Ok(Syntax::Literal(Value::Bool(true))),
                "false" => Ok(Syntax::Literal(Value::Bool(false))),
                "null" => Ok(Syntax::Literal(Value::Null)),
                "in" => Err("unexpected `in`".to_owned()),
                _ if self.take("(") => Ok(Syntax::Call(name, self.items(")")?)),
                _ => Ok(Syntax::Name(name)),
            },
            Token::Symbol("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Symbol("[") => Ok(Syntax::List(self.items("]")?)),
            other => Err(format!("unexpected {other:?}")),
        }
    }

    /// Expressions between commas up to `close`, which is taken; a last comma is allowed.
    fn items(&mut self, close: &str) -> Result<Vec<Syntax>, String> {
        let mut items = Vec::new();
        while !self.is_at(close) {
            items.push(self.expression()?);
            if !self.take(",") {
                break;
            }
        }
        self.expect(close)?;
        Ok(items)
    }

    fn postfix(&mut self, start: Syntax) -> Result<Syntax, String> {
        let mut syntax = start;
        loop {
            if self.take("[") {
                let index = self.expression()?;
                self.expect("]")?;
                syntax = Syntax::Index(Box::new(syntax), Box::new(index));
                continue;
            }
            if !self.take(".") {
                return Ok(syntax);
            }
            let Token::Name(name) = self.next() else {
                return Err("expected a name behind the dot".to_owned());
            };
            if self.take("(") {
                let mut arguments = vec![syntax];
                arguments.extend(self.items(")")?);
                syntax = Syntax::Call(name, arguments);
            } else {
                syntax = Syntax::Member(Box::new(syntax), name);
            }
        }
    }
}
