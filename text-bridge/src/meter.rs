// SPDX-License-Identifier: Apache-2.0
//! What one render may spend. The engine counts its instructions itself; everything whose cost is not constant is
//! charged here before it happens, so that bytes bound both memory and time.
//! The meter of the render that runs on this thread lies in a thread local, because the engine's callbacks have no
//! place for it. Renders do not nest.

use crate::{Failure, Status};
use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};
use std::cell::RefCell;
use std::time::{Duration, Instant};

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Limits {
    pub max_output_bytes: u64,
    pub max_steps: u64,
    pub max_work_bytes: u64,
    pub max_time_ms: u64,
}

struct Meter {
    limits: Limits,
    deadline: Instant,
    work_left: u64,
    calls: u32,
    local_time_s: i64,
    failure: Option<Failure>,
}

thread_local! {
    static METER: RefCell<Option<Meter>> = const { RefCell::new(None) };
}

/// What a list or map entry costs beside its contents.
pub const NODE_BYTES: u64 = 32;
/// Values nest no deeper: they are dropped and printed recursively, on the stack of the caller's thread.
const MAX_DEPTH: u32 = 64;

/// Runs `render` under a fresh meter; an exceeded limit or a raised exception is the error, whatever the engine
/// made of it.
pub fn metered(
    limits: Limits,
    local_time_s: i64,
    render: impl FnOnce() -> Result<String, Failure>,
) -> Result<String, Failure> {
    struct Clear;
    impl Drop for Clear {
        fn drop(&mut self) {
            METER.with_borrow_mut(|meter| *meter = None);
        }
    }
    let _clear = Clear; // also after a panic
    METER.with_borrow_mut(|meter| {
        *meter = Some(Meter {
            limits,
            deadline: Instant::now() + Duration::from_millis(limits.max_time_ms),
            work_left: limits.max_work_bytes,
            calls: 0,
            local_time_s,
            failure: None,
        })
    });
    let result = render();
    let failure = METER.with_borrow_mut(|meter| meter.as_mut().and_then(|m| m.failure.take()));
    match failure {
        Some(failure) => Err(failure),
        None => result,
    }
}

/// Ends the render with `failure`. The engine's error only unwinds its stack.
pub fn fail(failure: Failure) -> Error {
    METER.with_borrow_mut(|meter| {
        if let Some(meter) = meter {
            meter.failure.get_or_insert(failure);
        }
    });
    Error::new(ErrorKind::InvalidOperation, "render ended")
}

pub fn local_time_s() -> i64 {
    METER.with_borrow(|meter| meter.as_ref().map_or(0, |m| m.local_time_s))
}

/// Charges `bytes` of work. Outside of a render (constant folding while compiling) nothing is charged.
pub fn charge(bytes: u64) -> Result<(), Error> {
    let failure = METER.with_borrow_mut(|meter| {
        let meter = meter.as_mut()?;
        if bytes > meter.work_left {
            return Some(Failure::new(
                Status::ResourceExhausted,
                format!(
                    "the template's operations take more than {} bytes of work",
                    meter.limits.max_work_bytes
                ),
            ));
        }
        meter.work_left -= bytes;
        meter.calls = meter.calls.wrapping_add(1);
        if meter.calls % 64 == 0 && Instant::now() > meter.deadline {
            return Some(Failure::new(
                Status::DeadlineExceeded,
                format!(
                    "the template ran longer than {} ms",
                    meter.limits.max_time_ms
                ),
            ));
        }
        None
    });
    match failure {
        Some(failure) => Err(fail(failure)),
        None => Ok(()),
    }
}

pub fn is_scalar(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Undefined | ValueKind::None | ValueKind::Bool | ValueKind::Number
    )
}

/// Charges what it costs to read all of `value` once, shared parts as often as they occur.
pub fn charge_value(value: &Value) -> Result<(), Error> {
    walk(value, 0, false)
}

/// As charge_value, for a value that a namespace will hold: a namespace inside could hold itself, and would never
/// be freed.
pub fn charge_stored(value: &Value) -> Result<(), Error> {
    walk(value, 0, true)
}

fn is_namespace(value: &Value) -> bool {
    value
        .as_object()
        .is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

fn walk(value: &Value, depth: u32, stored: bool) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        return charge(text.len() as u64);
    }
    if is_scalar(value) {
        return Ok(());
    }
    if depth > MAX_DEPTH {
        return Err(fail(Failure::new(
            Status::ResourceExhausted,
            format!("the template nests values deeper than {MAX_DEPTH}"),
        )));
    }
    if stored && is_namespace(value) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "a namespace cannot hold a namespace",
        ));
    }
    match value.kind() {
        ValueKind::Map => {
            let Some(pairs) = value.as_object().and_then(|o| o.try_iter_pairs()) else {
                return charge(NODE_BYTES);
            };
            for (key, member) in pairs {
                charge(2 * NODE_BYTES)?;
                walk(&key, depth + 1, stored)?;
                walk(&member, depth + 1, stored)?;
            }
            Ok(())
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let Some(items) = value.as_object().and_then(|o| o.try_iter()) else {
                return charge(NODE_BYTES);
            };
            for item in items {
                charge(NODE_BYTES)?;
                walk(&item, depth + 1, stored)?;
            }
            Ok(())
        }
        ValueKind::Bytes => charge(value.as_bytes().map_or(0, <[u8]>::len) as u64),
        _ => charge(NODE_BYTES),
    }
}

/// A list in place of something that is evaluated anew by whoever iterates it.
pub fn own(value: Value) -> Result<Value, Error> {
    if value.kind() != ValueKind::Iterable {
        return Ok(value);
    }
    let mut items = Vec::new();
    for item in value.try_iter()? {
        charge(NODE_BYTES)?;
        items.push(item);
    }
    Ok(Value::from(items))
}
