//! The expression language: CEL's syntax, typed and compiled once (SEMANTICS §6).
//!
//! ```
//! use thalweg::expr::{Expr, Scope, Val};
//! use thalweg::model::{ScalarType, Type};
//!
//! let fields = [("amount".to_owned(), Type::Scalar(ScalarType::Float64))];
//! let scope = Scope::of_fields(&fields);
//! let expr = Expr::compile("amount * 2.0 > 10.0", &scope).expect("it type-checks");
//! assert!(matches!(expr.eval(&[Val::Float(6.0)]), Val::Bool(true)));
//! ```

mod check;
mod eval;
mod functions;
mod lexer;
mod parser;
mod pattern;
pub mod stats;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;

use crate::model::{ScalarType, Type, Value};

pub use check::Scope;

/// Longest expression, in bytes.
pub const LENGTH_MAX: usize = 4096;
/// Deepest nesting of an expression.
pub const DEPTH_MAX: usize = 64;

/// A value during evaluation, borrowed where it can be.
#[derive(Clone, Debug, Default)]
pub enum Val<'a> {
    /// No value.
    #[default]
    Null,
    /// Truth value.
    Bool(bool),
    /// Integer.
    Int(i64),
    /// Finite double.
    Float(f64),
    /// Milliseconds since the epoch.
    Timestamp(i64),
    /// Text.
    Str(Cow<'a, str>),
    /// List.
    List(Cow<'a, [Value]>),
    /// Map.
    Map(Cow<'a, [(Arc<str>, Value)]>),
}

impl<'a> Val<'a> {
    /// A view of this value.
    pub fn borrowed(&self) -> Val<'_> {
        match self {
            Self::Null => Val::Null,
            Self::Bool(b) => Val::Bool(*b),
            Self::Int(i) => Val::Int(*i),
            Self::Float(x) => Val::Float(*x),
            Self::Timestamp(t) => Val::Timestamp(*t),
            Self::Str(s) => Val::Str(Cow::Borrowed(s)),
            Self::List(items) => Val::List(Cow::Borrowed(items)),
            Self::Map(entries) => Val::Map(Cow::Borrowed(entries)),
        }
    }

    /// A view of a stored value.
    pub fn of(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(b) => Self::Bool(*b),
            Value::Int(i) => Self::Int(*i),
            Value::Float(x) => Self::Float(*x),
            Value::Timestamp(t) => Self::Timestamp(*t),
            Value::String(s) => Self::Str(Cow::Borrowed(s)),
            Value::List(items) => Self::List(Cow::Borrowed(items)),
            Value::Map(entries) => Self::Map(Cow::Borrowed(entries)),
        }
    }

    /// The value on its own.
    pub fn to_value(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(b) => Value::Bool(*b),
            Self::Int(i) => Value::Int(*i),
            Self::Float(x) => Value::Float(*x),
            Self::Timestamp(t) => Value::Timestamp(*t),
            Self::Str(s) => Value::String(s.as_ref().into()),
            Self::List(items) => Value::List(items.as_ref().into()),
            Self::Map(entries) => Value::Map(entries.as_ref().into()),
        }
    }

    /// Whether it is null.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// Whether it is `true`: what a `where` asks.
    pub fn is_true(&self) -> bool {
        matches!(self, Self::Bool(true))
    }
}

/// What is wrong with an expression, and where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExprError {
    /// Byte offset in the text.
    pub at: usize,
    /// One sentence.
    pub message: String,
    /// The name that is not known, if that is what is wrong.
    pub unknown: Option<String>,
}

/// A compiled expression.
#[derive(Clone, Debug)]
pub struct Expr {
    root: eval::Node,
    /// Type of its value; never [`Type::Null`].
    pub value_type: Type,
    /// Indices of the scope's variables that it reads, ascending.
    pub variables: Vec<usize>,
}

impl Expr {
    /// Parses, types and compiles `text`.
    ///
    /// # Errors
    /// The first mistake, with its place.
    pub fn compile(text: &str, scope: &Scope<'_>) -> Result<Self, ExprError> {
        if text.len() > LENGTH_MAX {
            let message = format!("the expression is over {LENGTH_MAX} bytes long");
            return Err(ExprError { at: 0, message, unknown: None });
        }
        let ast = parser::parse(text)?;
        check::compile(&ast, scope)
    }

    /// The value for `variables`, one per variable of the scope that it was compiled against.
    pub fn eval<'a>(&'a self, variables: &'a [Val<'a>]) -> Val<'a> {
        self.root.eval(variables)
    }

    /// The same expression with its int64 value as a float64.
    #[must_use]
    pub fn widened(mut self) -> Self {
        self.root = eval::Node::ToFloat(Box::new(self.root));
        self.value_type = Type::Scalar(ScalarType::Float64);
        self
    }

    /// Numbers the variables that it reads from 0, in their order, so that callers need only
    /// bring those.
    pub fn renumber(&mut self) {
        let variables = std::mem::take(&mut self.variables);
        self.root.visit_variables(&mut |index| {
            *index = variables.binary_search(index).expect("every variable is listed");
        });
        self.variables = (0..variables.len()).collect();
    }
}
