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
    /// Levels of the tree from here down.
    depth: usize,
}

impl Node {
    /// # Errors
    /// The tree is too deep.
    fn new(ast: Ast, at: usize) -> Result<Self, ExprError> {
        let below = match &ast {
            Ast::List(nodes) | Ast::Call(_, nodes) => nodes.iter().map(|n| n.depth).max().unwrap_or(0),
            Ast::Not(a) | Ast::Neg(a) => a.depth,
            Ast::Binary(_, a, b) | Ast::Index(a, b) => a.depth.max(b.depth),
            Ast::If(a, b, c) => a.depth.max(b.depth).max(c.depth),
            _ => 0,
        };
        if below >= DEPTH_MAX {
            return Err(ExprError { unknown: None, at, message: too_deep() });
        }
        Ok(Self { ast, at, depth: below + 1 })
    }
}

fn too_deep() -> String {
    format!("nested deeper than {DEPTH_MAX} levels")
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
        ExprError { unknown: None, at: self.at(), message }
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
            return Err(self.wrong(too_deep()));
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
            Node::new(ast, at)
        })
    }

    fn binary(&mut self, level: usize) -> Result<Node, ExprError> {
        let Some(operators) = LEVELS.get(level) else {
            return self.unary();
        };
        let mut left = self.binary(level + 1)?;
        if let [(symbol, operator @ (Binary::And | Binary::Or))] = operators {
            let (mut nodes, mut ats) = (vec![left], vec![self.at()]);
            while self.accept(symbol) {
                nodes.push(self.binary(level + 1)?);
                ats.push(self.at());
            }
            return balanced(*operator, nodes, &ats[..ats.len() - 1]);
        }
        loop {
            let at = self.at();
            let Some((_, operator)) = operators.iter().find(|(symbol, _)| self.accept(symbol)) else {
                return Ok(left);
            };
            let right = self.binary(level + 1)?;
            left = Node::new(Ast::Binary(*operator, Box::new(left), Box::new(right)), at)?;
        }
    }

    fn unary(&mut self) -> Result<Node, ExprError> {
        let at = self.at();
        if self.accept("!") {
            let operand = self.deeper(Self::unary)?;
            return Node::new(Ast::Not(Box::new(operand)), at);
        }
        if self.accept("-") {
            if let Token::Int(n) = *self.peek() {
                self.next += 1;
                return Node::new(Ast::Int(n.wrapping_neg()), at);
            }
            let operand = self.deeper(Self::unary)?;
            return Node::new(Ast::Neg(Box::new(operand)), at);
        }
        self.member()
    }

    fn member(&mut self) -> Result<Node, ExprError> {
        let mut node = self.primary()?;
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
                    node = Node::new(Ast::Call(name, arguments), at)?;
                } else if let Ast::Name(names) = &mut node.ast {
                    names.push(name);
                } else {
                    return Err(ExprError {
                        unknown: None,
                        at,
                        message: format!("nothing here has a member `{name}`"),
                    });
                }
            } else if self.accept("[") {
                let index = self.ternary()?;
                self.expect("]")?;
                node = Node::new(Ast::Index(Box::new(node), Box::new(index)), at)?;
            } else {
                return Ok(node);
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
                    "in" => {
                        return Err(ExprError { unknown: None, at, message: "unexpected `in`".to_owned() });
                    }
                    _ if self.accept("(") => Ast::Call(name, self.arguments(")")?),
                    _ => Ast::Name(vec![name]),
                };
                return Node::new(ast, at);
            }
            Token::Symbol("(") => {
                self.next += 1;
                let inner = self.ternary()?;
                self.expect(")")?;
                return Ok(inner);
            }
            Token::Symbol("[") => {
                self.next += 1;
                let items = self.arguments("]")?;
                return Node::new(Ast::List(items), at);
            }
            other => return Err(self.wrong(format!("expected a value, found {}", shown(&other)))),
        };
        self.next += 1;
        Node::new(ast, at)
    }
}

/// A chain of `&&` or of `||` as a tree of least depth: they associate, so a long one need not be deep.
/// `ats`: where the operators stand.
fn balanced(operator: Binary, mut nodes: Vec<Node>, ats: &[usize]) -> Result<Node, ExprError> {
    let right = nodes.split_off(nodes.len().div_ceil(2));
    let Some((at, right_ats)) = ats[nodes.len() - 1..].split_first() else {
        return Ok(nodes.remove(0));
    };
    let left = balanced(operator, nodes, &ats[..ats.len() - right_ats.len() - 1])?;
    let right = balanced(operator, right, right_ats)?;
    Node::new(Ast::Binary(operator, Box::new(left), Box::new(right)), *at)
}
