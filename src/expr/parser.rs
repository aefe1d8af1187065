//! Tokens to a syntax tree, by recursive descent with CEL's precedences.

use super::lexer::{Spanned, Token, tokens};
use super::{DEPTH_MAX, ExprError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    And,
    Or,
    In,
}

#[derive(Clone, Debug)]
pub(super) enum Ast {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    /// A name, or names joined by dots.
    Name(Vec<String>),
    List(Vec<Node>),
    Not(Box<Node>),
    Neg(Box<Node>),
    Binary(Binary, Box<Node>, Box<Node>),
    If(Box<Node>, Box<Node>, Box<Node>),
    Call(String, Vec<Node>),
    Index(Box<Node>, Box<Node>),
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub ast: Ast,
    pub at: usize,
}

pub(super) fn parse(text: &str) -> Result<Node, ExprError> {
    let mut parser = Parser { tokens: tokens(text)?, next: 0, depth: 0 };
    let node = parser.ternary()?;
    match parser.peek() {
        Token::End => Ok(node),
        other => Err(parser.wrong(format!("expected an operator, found {}", shown(other)))),
    }
}

fn shown(token: &Token) -> String {
    match token {
        Token::Int(n) => n.to_string(),
        Token::Float(x) => x.to_string(),
        Token::Str(s) => format!("the string {s:?}"),
        Token::Name(name) => format!("`{name}`"),
        Token::Symbol(symbol) => format!("`{symbol}`"),
        Token::End => "the end".to_owned(),
    }
}

struct Parser {
    tokens: Vec<Spanned>,
    next: usize,
    depth: usize,
}

/// Binary operators from loose to tight; all associate to the left.
const LEVELS: [&[(&str, Binary)]; 5] = [
    &[("||", Binary::Or)],
    &[("&&", Binary::And)],
    &[
        ("==", Binary::Eq),
        ("!=", Binary::Ne),
        ("<=", Binary::Le),
        (">=", Binary::Ge),
        ("<", Binary::Lt),
        (">", Binary::Gt),
        ("in", Binary::In),
    ],
    &[("+", Binary::Add), ("-", Binary::Sub)],
    &[("*", Binary::Mul), ("/", Binary::Div), ("%", Binary::Rem)],
];

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.next].token
    }

    fn at(&self) -> usize {
        self.tokens[self.next].at
    }

    fn wrong(&self, message: String) -> ExprError {
        ExprError { at: self.at(), message }
    }

    fn accept(&mut self, symbol: &str) -> bool {
        let found = match self.peek() {
            Token::Symbol(s) => *s == symbol,
            Token::Name(name) => symbol == "in" && name == "in",
            _ => false,
        };
        if found {
            self.next += 1;
        }
        found
    }

    fn expect(&mut self, symbol: &str) -> Result<(), ExprError> {
        if self.accept(symbol) {
            return Ok(());
        }
        Err(self.wrong(format!("expected `{symbol}`, found {}", shown(self.peek()))))
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, ExprError>) -> Result<T, ExprError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.wrong(format!("nested deeper than {DEPTH_MAX} levels")));
        }
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn ternary(&mut self) -> Result<Node, ExprError> {
        self.deeper(|p| {
            let at = p.at();
            let condition = p.binary(0)?;
            if !p.accept("?") {
                return Ok(condition);
            }
            let then = p.ternary()?;
            p.expect(":")?;
            let otherwise = p.ternary()?;
            let ast = Ast::If(Box::new(condition), Box::new(then), Box::new(otherwise));
            Ok(Node { ast, at })
        })
    }

    fn binary(&mut self, level: usize) -> Result<Node, ExprError> {
        let Some(operators) = LEVELS.get(level) else {
            return self.unary();
        };
        let mut left = self.binary(level + 1)?;
        // A long chain is a deep tree, although it needs no deep recursion here.
        let mut links = 0;
        loop {
            let at = self.at();
            let Some((_, operator)) = operators.iter().find(|(symbol, _)| self.accept(symbol)) else {
                return Ok(left);
            };
            links += 1;
            if self.depth + links > DEPTH_MAX {
                return Err(self.wrong(format!("nested deeper than {DEPTH_MAX} levels")));
            }
            let right = self.binary(level + 1)?;
            left = Node { ast: Ast::Binary(*operator, Box::new(left), Box::new(right)), at };
        }
    }

    fn unary(&mut self) -> Result<Node, ExprError> {
        let at = self.at();
        if self.accept("!") {
            let operand = self.deeper(Self::unary)?;
            return Ok(Node { ast: Ast::Not(Box::new(operand)), at });
        }
        if self.accept("-") {
            if let Token::Int(n) = *self.peek() {
                self.next += 1;
                return Ok(Node { ast: Ast::Int(n.wrapping_neg()), at });
            }
            let operand = self.deeper(Self::unary)?;
            return Ok(Node { ast: Ast::Neg(Box::new(operand)), at });
        }
        self.member()
    }

    fn member(&mut self) -> Result<Node, ExprError> {
        let mut node = self.primary()?;
        let mut links = 0;
        loop {
            let at = self.at();
            if self.accept(".") {
                let Token::Name(name) = self.peek().clone() else {
                    return Err(self.wrong("expected a name after `.`".to_owned()));
                };
                self.next += 1;
                if self.accept("(") {
                    let mut arguments = vec![node];
                    arguments.extend(self.arguments(")")?);
                    node = Node { ast: Ast::Call(name, arguments), at };
                } else if let Ast::Name(names) = &mut node.ast {
                    names.push(name);
                } else {
                    return Err(ExprError { at, message: format!("nothing here has a member `{name}`") });
                }
            } else if self.accept("[") {
                let index = self.ternary()?;
                self.expect("]")?;
                node = Node { ast: Ast::Index(Box::new(node), Box::new(index)), at };
            } else {
                return Ok(node);
            }
            links += 1;
            if self.depth + links > DEPTH_MAX {
                return Err(self.wrong(format!("nested deeper than {DEPTH_MAX} levels")));
            }
        }
    }

    fn arguments(&mut self, close: &str) -> Result<Vec<Node>, ExprError> {
        let mut arguments = Vec::new();
        if self.accept(close) {
            return Ok(arguments);
        }
        loop {
            arguments.push(self.ternary()?);
            if self.accept(close) {
                return Ok(arguments);
            }
            self.expect(",")?;
        }
    }

    fn primary(&mut self) -> Result<Node, ExprError> {
        let at = self.at();
        let token = self.peek().clone();
        let ast = match token {
            Token::Int(i64::MIN) => {
                return Err(self.wrong("the number is too large for int64".to_owned()));
            }
            Token::Int(n) => Ast::Int(n),
            Token::Float(x) => Ast::Float(x),
            Token::Str(s) => Ast::Str(s),
            Token::Name(name) => {
                self.next += 1;
                let ast = match name.as_str() {
                    "true" => Ast::Bool(true),
                    "false" => Ast::Bool(false),
                    "null" => Ast::Null,
                    "in" => return Err(ExprError { at, message: "unexpected `in`".to_owned() }),
                    _ if self.accept("(") => Ast::Call(name, self.arguments(")")?),
                    _ => Ast::Name(vec![name]),
                };
                return Ok(Node { ast, at });
            }
            Token::Symbol("(") => {
                self.next += 1;
                let inner = self.ternary()?;
                self.expect(")")?;
                return Ok(inner);
            }
            Token::Symbol("[") => {
                self.next += 1;
                return Ok(Node { ast: Ast::List(self.arguments("]")?), at });
            }
            other => return Err(self.wrong(format!("expected a value, found {}", shown(&other)))),
        };
        self.next += 1;
        Ok(Node { ast, at })
    }
}
