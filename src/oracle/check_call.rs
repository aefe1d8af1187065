//! This file types the calls of functions. Null is allowed wherever a value is.

use crate::model::Value;

use super::check::{Form, Shape, Typed, unify};
use super::pattern;
use super::time;

/// Types a call of the function `name`.
pub(super) fn check_call(name: &str, arguments: Vec<Typed>) -> Result<Typed, String> {
    match name {
        "has" => {
            expect_count(name, &arguments, 1, 1)?;
            Ok(call(Shape::Bool, name, arguments))
        }
        "coalesce" => check_common(name, arguments),
        "min" | "max" => check_extreme(name, arguments),
        "size" => {
            expect_count(name, &arguments, 1, 1)?;
            let shape = arguments[0].shape.clone();
            if !matches!(shape, Shape::String | Shape::List(_) | Shape::Map(_) | Shape::Null) {
                return Err(format!("`size` of {shape:?}"));
            }
            Ok(call(Shape::Int, name, arguments))
        }
        "lower" | "upper" => {
            expect_count(name, &arguments, 1, 1)?;
            expect_shape(name, &arguments, &[Shape::String])?;
            Ok(call(Shape::String, name, arguments))
        }
        "contains" => check_contains(arguments),
        "startsWith" | "endsWith" => {
            expect_count(name, &arguments, 2, 2)?;
            expect_shape(name, &arguments, &[Shape::String])?;
            Ok(call(Shape::Bool, name, arguments))
        }
        "matches" => check_matches(arguments),
        "abs" => {
            expect_count(name, &arguments, 1, 1)?;
            expect_shape(name, &arguments, &[Shape::Int, Shape::Float])?;
            Ok(call(arguments[0].shape.clone(), name, arguments))
        }
        "floor" | "ceil" | "round" | "sqrt" | "log" | "exp" | "pow" => {
            let count = if name == "pow" { 2 } else { 1 };
            expect_count(name, &arguments, count, count)?;
            expect_shape(name, &arguments, &[Shape::Int, Shape::Float])?;
            let widened = arguments.into_iter().map(|argument| argument.widened(&Shape::Float)).collect();
            Ok(call(Shape::Float, name, widened))
        }
        "int" | "double" | "string" => check_conversion(name, arguments),
        "hour" | "weekday" | "day" | "month" => check_calendar(name, arguments),
        _ => Err(format!("`{name}` is an unknown function")),
    }
}

fn call(shape: Shape, name: &str, arguments: Vec<Typed>) -> Typed {
    Typed { shape, form: Form::Call(name.to_owned(), arguments) }
}

fn expect_count(name: &str, arguments: &[Typed], least: usize, most: usize) -> Result<(), String> {
    if (least..=most).contains(&arguments.len()) {
        return Ok(());
    }
    Err(format!("`{name}` with {} arguments", arguments.len()))
}

/// Every argument is null or of one of the `allowed` shapes.
fn expect_shape(name: &str, arguments: &[Typed], allowed: &[Shape]) -> Result<(), String> {
    for argument in arguments {
        if argument.shape != Shape::Null && !allowed.contains(&argument.shape) {
            return Err(format!("`{name}` of {:?}", argument.shape));
        }
    }
    Ok(())
}

/// A call whose arguments and result have one shape.
fn check_common(name: &str, arguments: Vec<Typed>) -> Result<Typed, String> {
    expect_count(name, &arguments, 1, usize::MAX)?;
    let mut shape = Shape::Null;
    for argument in &arguments {
        shape = unify(&shape, &argument.shape)?;
    }
    let widened = arguments.into_iter().map(|argument| argument.widened(&shape)).collect();
    Ok(call(shape, name, widened))
}

fn check_extreme(name: &str, arguments: Vec<Typed>) -> Result<Typed, String> {
    if let [Typed { shape: Shape::List(item), .. }] = arguments.as_slice() {
        let shape = (**item).clone();
        return Ok(call(shape, name, arguments));
    }
    let typed = check_common(name, arguments)?;
    match typed.shape {
        Shape::Int | Shape::Float | Shape::Timestamp | Shape::String | Shape::Null => Ok(typed),
        other => Err(format!("`{name}` of {other:?}")),
    }
}

fn check_contains(arguments: Vec<Typed>) -> Result<Typed, String> {
    let name = "contains";
    expect_count(name, &arguments, 2, 2)?;
    let Shape::List(item) = &arguments[0].shape else {
        if arguments[0].shape != Shape::Null {
            expect_shape(name, &arguments, &[Shape::String])?;
        }
        return Ok(call(Shape::Bool, name, arguments));
    };
    let shape = unify(item, &arguments[1].shape)?;
    let shapes = [Shape::List(Box::new(shape.clone())), shape];
    let widened =
        arguments.into_iter().zip(&shapes).map(|(argument, shape)| argument.widened(shape)).collect();
    Ok(call(Shape::Bool, name, widened))
}

fn check_matches(arguments: Vec<Typed>) -> Result<Typed, String> {
    expect_count("matches", &arguments, 2, 2)?;
    expect_shape("matches", &arguments, &[Shape::String])?;
    let mut arguments = arguments.into_iter();
    let (Some(text), Some(written)) = (arguments.next(), arguments.next()) else {
        return Err("`matches` needs a text and a pattern".to_owned());
    };
    let compiled = match &written.form {
        Form::Literal(Value::String(text)) => Some(pattern::compile(text)?),
        _ => None,
    };
    let form = Form::Matches(Box::new(text), Box::new(written), compiled);
    Ok(Typed { shape: Shape::Bool, form })
}

fn check_conversion(name: &str, arguments: Vec<Typed>) -> Result<Typed, String> {
    expect_count(name, &arguments, 1, 1)?;
    let mut allowed = vec![Shape::Bool, Shape::Int, Shape::Float, Shape::String];
    if name != "double" {
        allowed.push(Shape::Timestamp);
    }
    expect_shape(name, &arguments, &allowed)?;
    let shape = match name {
        "int" => Shape::Int,
        "double" => Shape::Float,
        _ => Shape::String,
    };
    Ok(call(shape, name, arguments))
}

fn check_calendar(name: &str, arguments: Vec<Typed>) -> Result<Typed, String> {
    expect_count(name, &arguments, 1, 2)?;
    expect_shape(name, &arguments[..1], &[Shape::Timestamp])?;
    expect_shape(name, &arguments[1..], &[Shape::String])?;
    if let Some(Form::Literal(Value::String(zone))) = arguments.get(1).map(|zone| &zone.form) {
        time::zone(zone)?;
    }
    Ok(call(Shape::Int, name, arguments))
}
