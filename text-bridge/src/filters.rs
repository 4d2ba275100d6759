// SPDX-License-Identifier: Apache-2.0
//! The engine's filters and tests with a charge in front of each, and those that must write as Python does.
//! A filter that can make much of little (replace, join, indent, format, tojson) is charged for its result as well.
//! Pure functions over the meter of the calling thread.

use crate::guard::{charge_comparison, charge_containment, flat_bytes};
use crate::meter::{charge, charge_value, fail, own, NODE_BYTES};
use crate::python::{self, JsonStyle};
use crate::{Failure, Status};
use minijinja::value::{Kwargs, Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{filters as engine, Environment, Error, ErrorKind, State};
use std::sync::OnceLock;

/// The engine as it comes, for the filters that ours call.
pub fn default_environment() -> &'static Environment<'static> {
    static ENV: OnceLock<Environment<'static>> = OnceLock::new();
    ENV.get_or_init(Environment::new)
}

// They look at the first level of their arguments only.
const FLAT_FILTERS: [&str; 20] = [
    "safe", "length", "count", "items", "reverse", "default", "d", "round", "abs", "int", "float",
    "attr", "first", "last", "list", "bool", "chain", "zip", "split", "lines",
];
// Cost at most proportional to all that they read.
const DEEP_FILTERS: [&str; 15] = [
    "escape",
    "e",
    "lower",
    "upper",
    "title",
    "capitalize",
    "dictsort",
    "trim",
    "min",
    "max",
    "sort",
    "sum",
    "groupby",
    "unique",
    "pprint",
];

pub fn add(env: &mut Environment<'static>) {
    for name in FLAT_FILTERS {
        env.add_filter(name, move |args: Args| -> Result<Value, Error> {
            let args = values(args);
            charge_flat(&args)?;
            default_filter(name, &args)
        });
    }
    for name in DEEP_FILTERS {
        env.add_filter(name, move |args: Args| -> Result<Value, Error> {
            let args = values(args);
            charge_args(&args)?;
            default_filter(name, &args)
        });
    }
    for name in ["indent", "batch", "slice"] {
        env.add_filter(name, move |args: Args| -> Result<Value, Error> {
            let args = values(args);
            charge_flat(&args)?;
            charge_padding(&args)?;
            default_filter(name, &args)
        });
    }
    env.add_filter("replace", |args: Args| -> Result<Value, Error> {
        let args = values(args);
        charge_args(&args)?;
        if let Some(value) = args.first() {
            charge_replace(&python::str(value), args.get(1), args.get(2))?;
        }
        default_filter("replace", &args)
    });
    env.add_filter("format", |args: Args| -> Result<Value, Error> {
        let args = values(args);
        charge_args(&args)?;
        if let Some(text) = args.first().and_then(|a| a.as_str()) {
            check_format(text)?;
        }
        default_filter("format", &args)
    });
    env.add_filter("string", |value: Value| -> Result<Value, Error> {
        charge_value(&value)?;
        Ok(Value::from(python::str(&value)))
    });
    env.add_filter("join", join_filter);
    env.add_filter("tojson", tojson);
    // They apply other filters and tests by name, and so run in the state of the render.
    for (name, function) in [
        ("select", Value::from_function(engine::select)),
        ("reject", Value::from_function(engine::reject)),
        ("selectattr", Value::from_function(engine::selectattr)),
        ("rejectattr", Value::from_function(engine::rejectattr)),
        ("map", Value::from_function(engine::map)),
    ] {
        env.add_filter(
            name,
            move |state: &mut State, args: Args| -> Result<Value, Error> {
                let args = values(args);
                charge_flat(&args)?;
                own(function.call(state, &args)?)
            },
        );
    }
    add_tests(env);
}

fn add_tests(env: &mut Environment<'static>) {
    for name in [
        "eq",
        "equalto",
        "==",
        "ne",
        "!=",
        "lt",
        "lessthan",
        "<",
        "le",
        "<=",
        "gt",
        "greaterthan",
        ">",
        "ge",
        ">=",
    ] {
        env.add_test(name, move |a: Value, b: Value| -> Result<bool, Error> {
            charge_comparison(&a, &b)?;
            default_environment()
                .empty_state()
                .perform_test(name, &[a, b])
        });
    }
    env.add_test("in", |a: Value, b: Value| -> Result<bool, Error> {
        charge_containment(&a, &b)?;
        default_environment()
            .empty_state()
            .perform_test("in", &[a, b])
    });
    for name in ["lower", "upper"] {
        env.add_test(name, move |a: Value| -> Result<bool, Error> {
            charge_value(&a)?;
            default_environment().empty_state().perform_test(name, &[a])
        });
    }
}

/// Arguments of any kind, named ones in a map at the end.
pub type Args = Rest<ValueOrKwargs>;
pub fn values(args: Args) -> Vec<Value> {
    args.0.into_iter().map(ValueOrKwargs::into_value).collect()
}

// A string may be split into one value for each of its characters.
fn charge_flat(args: &[Value]) -> Result<(), Error> {
    args.iter()
        .try_for_each(|arg| charge(flat_bytes(arg) + NODE_BYTES))
}

fn charge_args(args: &[Value]) -> Result<(), Error> {
    args.iter().try_for_each(charge_value)
}

fn default_filter(name: &str, args: &[Value]) -> Result<Value, Error> {
    own(default_environment()
        .empty_state()
        .apply_filter(name, args)?)
}

fn missing(what: &str) -> Error {
    Error::new(ErrorKind::MissingArgument, what.to_string())
}

/// Charges text.replace(from, to).
pub fn charge_replace(text: &str, from: Option<&Value>, to: Option<&Value>) -> Result<(), Error> {
    let length = |v: Option<&Value>| v.map_or(0, |v| python::str(v).len());
    let (from, to) = (length(from), length(to));
    // An empty `from` is found between all characters.
    let found = text.len() / from.max(1) + 1;
    charge(text.len() as u64)?;
    charge((found as u64).saturating_mul(to as u64))
}

// Numbers among the arguments are widths or counts, of every line or group.
fn charge_padding(args: &[Value]) -> Result<(), Error> {
    let lines = match args.first() {
        Some(value) => match value.as_str() {
            Some(text) => text.matches('\n').count() + 1,
            None => 1,
        },
        None => return Err(missing("a value")),
    };
    for arg in &args[1..] {
        let mut width = arg.as_usize().unwrap_or(0);
        if arg.is_kwargs() {
            for member in arg
                .as_object()
                .and_then(|o| o.try_iter_pairs())
                .into_iter()
                .flatten()
            {
                width = width.max(member.1.as_usize().unwrap_or(0));
            }
        }
        charge(
            (width as u64)
                .saturating_mul(lines as u64)
                .saturating_mul(NODE_BYTES),
        )?;
    }
    Ok(())
}

/// Refuses format strings with widths of more than four digits, or from an argument.
pub fn check_format(format: &str) -> Result<(), Error> {
    let mut digits = 0;
    for c in format.chars() {
        digits = if c.is_ascii_digit() { digits + 1 } else { 0 };
        if digits > 4 || (c == '*' && format.contains('%')) {
            return Err(fail(Failure::new(
                Status::ResourceExhausted,
                "a format string with a width that is not a number of at most 4 digits".into(),
            )));
        }
    }
    charge(format.len() as u64)?;
    // Each replacement may pad to its width.
    charge(format.matches(['%', '{']).count() as u64 * 10_000)
}

fn join_filter(value: Value, separator: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let attribute: Option<Value> = kwargs.get("attribute")?;
    let separator = match (separator, kwargs.get::<Option<Value>>("d")?) {
        (Some(given), _) | (None, Some(given)) => python::str(&given),
        (None, None) => String::new(),
    };
    kwargs.assert_all_used()?;
    let value = match attribute {
        Some(name) => {
            charge_value(&value)?;
            let items: Result<Vec<Value>, Error> =
                value.try_iter()?.map(|item| item.get_item(&name)).collect();
            Value::from(items?)
        }
        None => value,
    };
    join(&value, &separator)
}

pub fn join(value: &Value, separator: &str) -> Result<Value, Error> {
    let mut out = String::new();
    for (i, item) in value.try_iter()?.enumerate() {
        charge(NODE_BYTES)?;
        charge_value(&item)?;
        if i > 0 {
            charge(separator.len() as u64)?;
            out.push_str(separator);
        }
        match item.as_str() {
            Some(text) => out.push_str(text),
            None => out.push_str(&python::str(&item)),
        }
    }
    Ok(Value::from(out))
}

/// transformers' tojson: json.dumps with ensure_ascii off, and no escapes for HTML.
fn tojson(value: Value, indent: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => kwargs.get::<Option<Value>>("indent")?,
    };
    let indent = match indent.filter(|v| v.kind() != ValueKind::None) {
        None => None,
        Some(text) if text.as_str().is_some() => Some(python::str(&text)),
        Some(number) => {
            let width = number.as_i64().unwrap_or(0).max(0) as u64;
            charge(width)?;
            Some(" ".repeat(width as usize))
        }
    };
    let (mut item_separator, mut key_separator) = (
        if indent.is_some() { "," } else { ", " }.to_string(),
        ": ".to_string(),
    );
    if let Some(pair) = kwargs
        .get::<Option<Value>>("separators")?
        .filter(|v| v.kind() != ValueKind::None)
    {
        item_separator = python::str(&pair.get_item_by_index(0)?);
        key_separator = python::str(&pair.get_item_by_index(1)?);
    }
    let style = JsonStyle {
        ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        item_separator,
        key_separator,
    };
    kwargs.assert_all_used()?;
    charge_json(&value, &style, 0)?;
    python::to_json(&value, &style).map(Value::from)
}

// The value, and what the style adds to each of its entries.
fn charge_json(value: &Value, style: &JsonStyle, depth: u64) -> Result<(), Error> {
    if depth == 0 {
        charge_value(value)?; // ends for values that hold themselves, too
    }
    let indent = style.indent.as_ref().map_or(0, String::len) as u64;
    let extra =
        indent * (depth + 1) + (style.item_separator.len() + style.key_separator.len()) as u64;
    let Some(object) = value.as_object().filter(|_| value.as_str().is_none()) else {
        return Ok(());
    };
    if let Some(pairs) = object
        .try_iter_pairs()
        .filter(|_| value.kind() == ValueKind::Map)
    {
        for (_, member) in pairs {
            charge(extra)?;
            charge_json(&member, style, depth + 1)?;
        }
    } else if let Some(items) = object.try_iter() {
        for item in items {
            charge(extra)?;
            charge_json(&item, style, depth + 1)?;
        }
    }
    Ok(())
}
