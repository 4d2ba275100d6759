// SPDX-License-Identifier: Apache-2.0
//! How Python writes values: str, repr, json.dumps, strftime, and the methods of str that the engine's compatibility
//! layer lacks. Pure functions; the caller has charged for their input.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};
use std::fmt::Write;

/// repr(float): the shortest digits that read back the same, with an exponent below 1e-4 and from 1e16 on.
fn float(x: f64) -> String {
    if !x.is_finite() {
        let name = if x.is_nan() { "nan" } else { "inf" };
        return format!("{}{name}", if x < 0.0 { "-" } else { "" });
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return format!("{x:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn as_float(value: &Value) -> Option<f64> {
    (value.kind() == ValueKind::Number && !value.is_integer())
        .then(|| f64::try_from(value.clone()).ok())
        .flatten()
}

pub fn str(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_string(),
        None if value.is_undefined() => String::new(),
        None => repr(value),
    }
}

pub fn repr(value: &Value) -> String {
    let mut out = String::new();
    write_repr(value, &mut out);
    out
}

fn write_repr(value: &Value, out: &mut String) {
    if let Some(text) = value.as_str() {
        return write_repr_str(text, out);
    }
    if let Some(x) = as_float(value) {
        return out.push_str(&float(x));
    }
    let plain = |out: &mut String| {
        let _ = write!(out, "{value}");
    };
    match value.kind() {
        ValueKind::Map => {
            let Some(pairs) = value.as_object().and_then(|o| o.try_iter_pairs()) else {
                return plain(out);
            };
            out.push('{');
            for (i, (key, member)) in pairs.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_repr(&key, out);
                out.push_str(": ");
                write_repr(&member, out);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let Ok(items) = value.try_iter() else {
                return plain(out);
            };
            let tuple = value.is_tuple();
            out.push(if tuple { '(' } else { '[' });
            let mut count = 0;
            for item in items {
                out.push_str(if count > 0 { ", " } else { "" });
                write_repr(&item, out);
                count += 1;
            }
            out.push_str(if tuple && count == 1 { "," } else { "" });
            out.push(if tuple { ')' } else { ']' });
        }
        _ => plain(out),
    }
}

// Characters that str.isprintable() refuses, the unassigned ones aside.
fn is_printable(c: char) -> bool {
    !matches!(c,
        '\0'..='\x1f' | '\x7f'..='\u{a0}' | '\u{ad}' | '\u{1680}' | '\u{2000}'..='\u{200f}' | '\u{2028}'..='\u{202f}'
        | '\u{205f}'..='\u{206f}' | '\u{3000}' | '\u{e000}'..='\u{f8ff}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}' | '\u{f0000}'..)
}

fn write_repr_str(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            _ if c == quote => {
                out.push('\\');
                out.push(c);
            }
            _ if is_printable(c) => out.push(c),
            _ => {
                let code = c as u32;
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// json.dumps with the arguments that transformers' tojson passes on.
pub struct JsonStyle {
    pub ascii: bool,
    pub sorted: bool,
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
}

pub fn to_json(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut out = String::new();
    write_json(value, style, 0, &mut out)?;
    Ok(out)
}

fn new_line(style: &JsonStyle, depth: usize, out: &mut String) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        for _ in 0..depth {
            out.push_str(indent);
        }
    }
}

fn write_json(
    value: &Value,
    style: &JsonStyle,
    depth: usize,
    out: &mut String,
) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        write_json_str(text, style.ascii, out);
        return Ok(());
    }
    if let Some(x) = as_float(value) {
        let text = float(x);
        out.push_str(match text.as_str() {
            "nan" => "NaN",
            "inf" => "Infinity",
            "-inf" => "-Infinity",
            other => other,
        });
        return Ok(());
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => {
            let _ = write!(out, "{value}");
        }
        ValueKind::Map => {
            let Some(pairs) = value.as_object().and_then(|o| o.try_iter_pairs()) else {
                return Err(not_serializable(value));
            };
            let mut members = Vec::new();
            for (key, member) in pairs {
                members.push((json_key(&key)?, member));
            }
            if style.sorted {
                members.sort_by(|a, b| a.0.cmp(&b.0));
            }
            let empty = members.is_empty();
            out.push('{');
            for (i, (key, member)) in members.iter().enumerate() {
                out.push_str(if i > 0 { &style.item_separator } else { "" });
                new_line(style, depth + 1, out);
                write_json_str(key, style.ascii, out);
                out.push_str(&style.key_separator);
                write_json(member, style, depth + 1, out)?;
            }
            if !empty {
                new_line(style, depth, out);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let mut empty = true;
            out.push('[');
            for item in value.try_iter()? {
                out.push_str(if empty { "" } else { &style.item_separator });
                new_line(style, depth + 1, out);
                write_json(&item, style, depth + 1, out)?;
                empty = false;
            }
            if !empty {
                new_line(style, depth, out);
            }
            out.push(']');
        }
        _ => return Err(not_serializable(value)),
    }
    Ok(())
}

fn json_key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(str(key)),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number => Ok(repr(key)),
        _ => Err(not_serializable(key)),
    }
}

fn not_serializable(value: &Value) -> Error {
    Error::new(
        ErrorKind::BadSerialization,
        format!("{} is not JSON serializable", value.kind()),
    )
}

fn write_json_str(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\0'..='\x1f' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            // Everything outside ASCII, and DEL with it.
            _ if ascii && c > '~' && c != '\x7f' => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            _ => out.push(c),
        }
    }
    out.push('"');
}

const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// strftime in the C locale. `time_s` counts seconds of local civil time from 1970-01-01. Directives that need a time
/// zone are empty; unknown ones stay as they are, as glibc does.
pub fn strftime(format: &str, time_s: i64) -> String {
    let days = time_s.div_euclid(86400);
    let second = time_s.rem_euclid(86400);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    // Civil date from days, in years that begin in March (the day of a leap year then comes last).
    let shifted = days + 719468;
    let era = shifted.div_euclid(146097);
    let of_era = shifted.rem_euclid(146097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let ends = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let day_of_year = ends[month as usize - 1] + day + i64::from(leap && month > 2);
    let weekday = (days.rem_euclid(7) + 4) % 7; // 0 is Sunday
    let day_name = DAYS[days.rem_euclid(7) as usize];
    let month_name = MONTHS[month as usize - 1];
    let half_hour = if hour % 12 == 0 { 12 } else { hour % 12 };

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        // "%-d" is glibc's way to leave out the zeros, "%e" pads with spaces.
        let unpadded = directive == Some('-');
        if unpadded {
            directive = chars.next();
        }
        let mut number = |value: i64, width: usize| {
            let width = if unpadded { 0 } else { width };
            let _ = write!(out, "{value:0width$}");
        };
        match directive {
            Some('Y') => number(year, 4),
            Some('C') => number(year.div_euclid(100), 2),
            Some('y') => number(year.rem_euclid(100), 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('H') => number(hour, 2),
            Some('I') => number(half_hour, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second % 60, 2),
            Some('f') => number(0, 6),
            Some('j') => number(day_of_year, 3),
            Some('w') => number(weekday, 1),
            Some('u') => number(if weekday == 0 { 7 } else { weekday }, 1),
            Some('U') => number((day_of_year + 6 - weekday) / 7, 2),
            Some('W') => number((day_of_year + 6 - (weekday + 6) % 7) / 7, 2),
            Some('s') => number(time_s, 1),
            Some('e') if unpadded => number(day, 1),
            Some('e') => {
                let _ = write!(out, "{day:2}");
            }
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => out.push_str(&strftime("%Y-%m-%d", time_s)),
            Some('T' | 'X') => out.push_str(&strftime("%H:%M:%S", time_s)),
            Some('R') => out.push_str(&strftime("%H:%M", time_s)),
            Some('D' | 'x') => out.push_str(&strftime("%m/%d/%y", time_s)),
            Some('c') => out.push_str(&strftime("%a %b %e %H:%M:%S %Y", time_s)),
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('z' | 'Z') => {}
            Some('%') => out.push('%'),
            other => {
                out.push('%');
                out.push_str(if unpadded { "-" } else { "" });
                out.extend(other);
            }
        }
    }
    out
}

/// Methods of str; None: not one of them.
pub fn str_method(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let argument = |i: usize| args.get(i).and_then(|a| a.as_str());
    let wrong = || {
        Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("wrong arguments for str.{method}"),
        ))
    };
    let parts = |found: Option<(&str, &str)>, separator: &str, before: bool| {
        let (head, separator, tail) = match found {
            Some((head, tail)) => (head, separator, tail),
            None if before => (text, "", ""),
            None => ("", "", text),
        };
        Ok(Value::from(minijinja::value::Tuple::from(vec![
            Value::from(head),
            Value::from(separator),
            Value::from(tail),
        ])))
    };
    Some(match (method, argument(0)) {
        ("removeprefix", Some(p)) => Ok(Value::from(text.strip_prefix(p).unwrap_or(text))),
        ("removesuffix", Some(s)) => Ok(Value::from(text.strip_suffix(s).unwrap_or(text))),
        ("partition", Some(s)) if !s.is_empty() => parts(text.split_once(s), s, true),
        ("rpartition", Some(s)) if !s.is_empty() => parts(text.rsplit_once(s), s, false),
        ("rsplit", Some(s)) if !s.is_empty() => {
            let most = match args.get(1) {
                None => usize::MAX,
                Some(n) => n.as_i64().map_or(usize::MAX, |n| {
                    usize::try_from(n).map_or(usize::MAX, |n| n.saturating_add(1))
                }),
            };
            let mut pieces: Vec<Value> = text.rsplitn(most, s).map(Value::from).collect();
            pieces.reverse();
            Ok(Value::from(pieces))
        }
        ("index", Some(s)) => match text.find(s) {
            Some(at) => Ok(Value::from(text[..at].chars().count())),
            None => Err(Error::new(
                ErrorKind::InvalidOperation,
                "substring not found",
            )),
        },
        ("casefold", None) if args.is_empty() => Ok(Value::from(text.to_lowercase())),
        ("removeprefix" | "removesuffix" | "partition" | "rpartition" | "rsplit" | "index", _) => {
            wrong()
        }
        _ => return None,
    })
}
