// SPDX-License-Identifier: Apache-2.0
//! Puts a charge in front of every instruction of a compiled template whose cost is not constant.
//! The engine has no hook for that, but its instructions can be rewritten: a call of one of our filters takes the
//! operands from the stack, charges, and gives them back. Names of our filters cannot be written in a template.

use crate::meter::{charge, charge_stored, charge_value, is_scalar, own, NODE_BYTES};
use crate::python;
use minijinja::machinery::{Instruction, Instructions};
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error};

const ADD: &str = "guard:add";
const MULTIPLY: &str = "guard:multiply";
const CONCAT: &str = "guard:concat";
const COMPARE: &str = "guard:compare";
const CONTAINS: &str = "guard:contains";
const ITEM: &str = "guard:item";
const SLICE: &str = "guard:slice";
const STORE: &str = "guard:store";
const LOOP: &str = "guard:loop";
const BUILT: &str = "guard:built";
const OWN: &str = "guard:own";
// No slot of the engine's cache of filters.
const UNCACHED: u8 = !0;

pub fn instrument(source: &Instructions<'static>) -> Instructions<'static> {
    let mut out = Instructions::new(source.name(), source.source());
    let mut moved = Vec::new(); // old index -> new index
    let mut index = 0;
    while let Some(instruction) = source.get(index) {
        moved.push(out_length(&out));
        let span = source.get_span(index);
        let line = source.get_line(index);
        let mut add = |instruction: Instruction<'static>| {
            match (span, line) {
                (Some(span), _) => out.add_with_span(instruction, span),
                (None, Some(line)) => out.add_with_line(instruction, line as u16),
                (None, None) => out.add(instruction),
            };
        };
        let (before, after) = guards(instruction);
        if let Some((name, operands)) = before {
            add(Instruction::ApplyFilter(name, Some(operands), UNCACHED));
            if operands > 1 {
                add(Instruction::UnpackList(operands.into()));
            }
        }
        match instruction {
            // Text of the template goes the way of every other value, and is charged.
            Instruction::EmitRaw(text) => {
                add(Instruction::LoadConst(Value::from(*text)));
                add(Instruction::Emit);
            }
            other => add(other.clone()),
        }
        if let Some(name) = after {
            add(Instruction::ApplyFilter(name, Some(1), UNCACHED));
        }
        index += 1;
    }
    moved.push(out_length(&out));
    for index in 0..out_length(&out) {
        if let Some(
            Instruction::Jump(target)
            | Instruction::JumpIfFalse(target)
            | Instruction::JumpIfFalseOrPop(target)
            | Instruction::JumpIfTrueOrPop(target)
            | Instruction::Iterate(target)
            | Instruction::BuildMacro(_, target, _),
        ) = out.get_mut(index)
        {
            *target = moved[*target as usize];
        }
    }
    out
}

fn out_length(instructions: &Instructions<'static>) -> u32 {
    // The length is private; indices are dense.
    let mut high = 1;
    while instructions.get(high - 1).is_some() {
        high *= 2;
    }
    let mut low = 0;
    while low < high {
        let middle = low + (high - low) / 2;
        if instructions.get(middle).is_some() {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

type Before = Option<(&'static str, u16)>;

fn guards(instruction: &Instruction) -> (Before, Option<&'static str>) {
    use Instruction::*;
    match instruction {
        Add => (Some((ADD, 2)), Some(OWN)),
        Mul => (Some((MULTIPLY, 2)), Some(OWN)),
        StringConcat => (Some((CONCAT, 2)), None),
        Eq | Ne | Lt | Lte | Gt | Gte => (Some((COMPARE, 2)), None),
        In | CompareAndPreserve(_) => (Some((CONTAINS, 2)), None),
        GetItem => (Some((ITEM, 2)), None),
        Slice => (Some((SLICE, 4)), Some(OWN)),
        SetAttr(_) => (Some((STORE, 2)), None),
        PushLoop(_) => (Some((LOOP, 1)), None),
        BuildList(_) | BuildTuple(_) | BuildMap(_) => (None, Some(BUILT)),
        _ => (None, None),
    }
}

pub fn add_filters(env: &mut Environment<'static>) {
    env.add_filter(ADD, |a: Value, b: Value| {
        charge(flat_bytes(&a) + flat_bytes(&b))?;
        operands([a, b])
    });
    env.add_filter(MULTIPLY, |a: Value, b: Value| {
        let times = |v: &Value| v.as_usize().unwrap_or(0) as u64;
        charge(flat_bytes(&a).saturating_mul(times(&b)))?;
        charge(flat_bytes(&b).saturating_mul(times(&a)))?;
        operands([a, b])
    });
    env.add_filter(CONCAT, |a: Value, b: Value| {
        charge_value(&a)?;
        charge_value(&b)?;
        operands([text(a), text(b)])
    });
    env.add_filter(COMPARE, |a: Value, b: Value| {
        charge_comparison(&a, &b)?;
        operands([a, b])
    });
    env.add_filter(CONTAINS, |a: Value, b: Value| {
        charge_containment(&a, &b)?;
        operands([a, b])
    });
    env.add_filter(ITEM, |a: Value, b: Value| {
        if let Some(text) = a.as_str() {
            charge(text.len() as u64)?;
        }
        charge_value(&b)?;
        operands([a, b])
    });
    env.add_filter(SLICE, |a: Value, b: Value, c: Value, d: Value| {
        charge(flat_bytes(&a))?;
        operands([a, b, c, d])
    });
    env.add_filter(STORE, |a: Value, b: Value| {
        charge_stored(&a)?;
        operands([a, b])
    });
    env.add_filter(LOOP, |a: Value| -> Result<Value, Error> {
        if let Some(text) = a.as_str() {
            charge(text.len() as u64)?;
        }
        Ok(a)
    });
    env.add_filter(BUILT, |a: Value| -> Result<Value, Error> {
        charge_value(&a)?;
        Ok(a)
    });
    env.add_filter(OWN, own);
}

/// Charges a comparison of any kind.
pub fn charge_comparison(a: &Value, b: &Value) -> Result<(), Error> {
    match (a.as_str(), b.as_str()) {
        (Some(a), Some(b)) => charge(a.len().min(b.len()) as u64),
        _ if is_scalar(a) || is_scalar(b) => Ok(()),
        _ => {
            charge_value(a)?;
            charge_value(b)
        }
    }
}

/// Charges a search for one of the two in the other.
pub fn charge_containment(a: &Value, b: &Value) -> Result<(), Error> {
    charge_value(a)?;
    charge_value(b)?;
    if is_scalar(a) || is_scalar(b) || a.as_str().is_some() || b.as_str().is_some() {
        return Ok(());
    }
    // Each entry of one is compared with all of the other.
    for _ in 0..b.len().unwrap_or(0) {
        charge_value(a)?;
    }
    Ok(())
}

// What `UnpackList` takes apart again, in the order in which they were pushed.
fn operands<const N: usize>(mut values: [Value; N]) -> Result<Value, Error> {
    values.reverse();
    Ok(Value::from(values.to_vec()))
}

fn text(value: Value) -> Value {
    if value.kind() == ValueKind::String {
        value
    } else {
        Value::from(python::str(&value))
    }
}

// Bytes of a copy that shares the entries.
pub fn flat_bytes(value: &Value) -> u64 {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => text.len() as u64,
        (None, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) => {
            value.len().unwrap_or(0) as u64 * NODE_BYTES
        }
        _ => 0,
    }
}
