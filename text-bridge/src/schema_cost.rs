// SPDX-License-Identifier: Apache-2.0
//! What a JSON Schema would cost its compiler, found before the compiler sees it. The compiler copies schemas where it
//! intersects them, recurses over `$ref`, and loops to `maxItems`; its own limits are checked after the memory is gone.
//! The estimates are upper bounds: a product for every intersection, squares where it compares options or patterns.
//! Pure functions; recursion is bounded by the nesting of the text times the number of references, so the caller's
//! stack must be large (grammar.cpp).

use crate::{Failure, Status};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Nodes of the schema after references and intersections are written out: 300 bytes each at most.
const MAX_NODES: u64 = 200_000;
/// About 10 ns each.
const MAX_WORK: u64 = 200_000_000;
/// An automaton may take 10000 states before the compiler gives up on it.
const AUTOMATON_WORK: u64 = 50_000;
const MAX_ITEMS: u64 = 10_000;
/// As max_items_in_row of the compiler, which counts them only while text is made.
const MAX_CHOICES: u64 = 2_000;
/// For each property that may be left out; measured.
const CHOICES_OF_OPTIONAL: u64 = 4;
const MAX_REF_BYTES: usize = 1000;

/// Greatest nesting of objects and arrays in the text of a JSON document, without parsing it.
pub fn depth(json: &str) -> u64 {
    let (mut depth, mut greatest) = (0u64, 0u64);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                greatest = greatest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    greatest
}

fn exhausted(message: String) -> Failure {
    Failure::new(Status::ResourceExhausted, message)
}

// What may be empty is compared with all that may be empty beside it: 50 units, measured.
fn quantifier_work(expression: &str) -> u64 {
    let quantifiers = |c: &char| matches!(c, '?' | '*' | '{');
    let count = expression.chars().filter(quantifiers).count() as u64;
    count * count * 100
}

/// ResourceExhausted where an expression, or a grammar of expressions, could take too much time.
pub fn check_expression(source: &str) -> Result<(), Failure> {
    if quantifier_work(source) > MAX_WORK {
        return Err(exhausted(
            "the grammar is too complex: it has more than 1414 times one of ? * {".into(),
        ));
    }
    Ok(())
}

/// ResourceExhausted where compiling `schema` could take too much memory or time.
pub fn check(schema: &Value) -> Result<(), Failure> {
    let mut estimate = Estimate {
        root: schema,
        targets: HashMap::new(),
        inlined: 0,
        work: 0,
    };
    estimate.schema(schema)?;
    // A recursive part is unrolled as far as the other part goes, and any definition may be inlined there.
    estimate.inlined = estimate
        .targets
        .values()
        .flatten()
        .map(|cost| cost.nodes)
        .max()
        .unwrap_or(0);
    estimate.targets.clear();
    estimate.work = 0;
    let cost = estimate.schema(schema)?;
    estimate.spend(cost.automata.saturating_mul(AUTOMATON_WORK))
}

#[derive(Clone, Copy, Default)]
struct Cost {
    nodes: u64,
    patterns: u64, // entries of patternProperties
    automata: u64, // expressions that the compiler tests for emptiness
    options: u64,  // that exclude each other at the root
    choices: u64,  // that the parser has open at once
    recursive: bool,
}

impl Cost {
    fn one() -> Self {
        Cost {
            nodes: 1,
            options: 1,
            ..Default::default()
        }
    }

    /// Another part of the same value: choices do not meet.
    fn add(&mut self, other: Cost) {
        self.nodes = self.nodes.saturating_add(other.nodes);
        self.patterns = self.patterns.saturating_add(other.patterns);
        self.automata = self.automata.saturating_add(other.automata);
        self.choices = self.choices.max(other.choices);
        self.recursive |= other.recursive;
    }

    /// Another option for the same value.
    fn or(&mut self, other: Cost) {
        let choices = self.choices.saturating_add(other.choices);
        self.add(other);
        self.options = self.options.saturating_add(other.options);
        self.choices = choices;
    }

    /// Of the intersection: each node may meet each node of the other.
    fn times(&mut self, other: Cost) {
        let cross = |a: u64, b: u64| {
            let one = a.saturating_mul(other.nodes);
            one.saturating_add(b.saturating_mul(self.nodes))
        };
        let (patterns, automata) = (
            cross(self.patterns, other.patterns),
            cross(self.automata, other.automata),
        );
        self.choices = self
            .choices
            .saturating_mul(other.options)
            .saturating_add(other.choices.saturating_mul(self.options));
        self.options = self.options.saturating_mul(other.options);
        self.nodes = self.nodes.saturating_mul(other.nodes);
        self.patterns = patterns;
        self.automata = automata;
        self.recursive |= other.recursive;
    }
}

struct Estimate<'a> {
    root: &'a Value,
    // None: being looked at, so a reference to it closes a circle.
    targets: HashMap<&'a str, Option<Cost>>,
    inlined: u64,
    work: u64,
}

impl<'a> Estimate<'a> {
    fn spend(&mut self, work: u64) -> Result<(), Failure> {
        self.work = self.work.saturating_add(work);
        if self.work > MAX_WORK {
            return Err(exhausted(
                "the schema is too complex: its options, intersections or patterns multiply".into(),
            ));
        }
        Ok(())
    }

    fn schema(&mut self, value: &'a Value) -> Result<Cost, Failure> {
        let Value::Object(members) = value else {
            return Ok(Cost::one()); // true, false, or an error that the compiler reports
        };
        let mut parts = Vec::new();
        let mut base = Cost::one();
        for (name, member) in members {
            match name.as_str() {
                "const" => parts.push(literal(member)),
                "enum" => parts.push(literals(member)),
                "$ref" => parts.push(self.reference(member)?),
                "allOf" => {
                    for option in member.as_array().into_iter().flatten() {
                        parts.push(self.schema(option)?);
                    }
                }
                "anyOf" | "oneOf" => {
                    let mut options = Cost::default();
                    for option in member.as_array().into_iter().flatten() {
                        options.or(self.schema(option)?);
                    }
                    options.nodes += 1;
                    if name == "oneOf" {
                        self.spend(options.nodes.saturating_mul(options.nodes))?;
                    }
                    parts.push(options);
                }
                "properties" | "patternProperties" => {
                    for child in member.as_object().into_iter().flat_map(Map::values) {
                        base.add(self.schema(child)?);
                    }
                    if name == "patternProperties" {
                        let count = member.as_object().map_or(0, Map::len) as u64;
                        base.patterns += count;
                        base.automata += count;
                        self.spend(count * count * AUTOMATON_WORK)?;
                        for pattern in member.as_object().into_iter().flat_map(Map::keys) {
                            self.spend(quantifier_work(pattern))?;
                        }
                    }
                }
                "items" | "prefixItems" | "additionalItems" | "additionalProperties" => {
                    match member {
                        Value::Array(items) => {
                            for item in items {
                                base.add(self.schema(item)?);
                            }
                        }
                        item => base.add(self.schema(item)?),
                    }
                }
                "pattern" | "format" => {
                    base.automata += 1;
                    self.spend(quantifier_work(member.as_str().unwrap_or_default()))?;
                }
                "minItems" | "maxItems" | "minProperties" | "maxProperties" => {
                    let count = member.as_u64().unwrap_or(0);
                    if count > MAX_ITEMS {
                        return Err(exhausted(format!(
                            "{name} is {count}, wanted at most {MAX_ITEMS}"
                        )));
                    }
                    base.nodes += count;
                }
                "required" | "type" => {
                    base.nodes += member.as_array().map_or(0, Vec::len) as u64;
                }
                _ => {}
            }
        }
        if base.nodes + base.automata > 1 || may_nest(members.get("type")) {
            base.choices = base.choices.max(1);
        }
        base.choices = base.choices.max(self.optional(members, &mut base.nodes));
        // Without a type there is one option for each of the six.
        if base.nodes > 1 && !members.contains_key("type") {
            base.nodes += 6;
        }
        let count = parts.len() as u64;
        if parts.iter().filter(|part| part.recursive).count() + usize::from(base.recursive) > 1 {
            return Err(exhausted(
                "the schema intersects two recursive schemas".into(),
            ));
        }
        let alone = count == 0 || (count == 1 && base.nodes == 1 && base.automata == 0);
        let mut cost = base;
        for mut part in parts {
            if part.recursive && !alone {
                part.nodes = part.nodes.max(self.inlined);
            }
            cost.times(part);
        }
        if cost.choices > MAX_CHOICES {
            return Err(exhausted(format!(
                "the schema has {} optional properties or options at one place, wanted at most {MAX_CHOICES}",
                cost.choices
            )));
        }
        if cost.nodes > MAX_NODES {
            return Err(exhausted(format!(
                "the schema written out has more than {MAX_NODES} nodes"
            )));
        }
        if count > 1 || !alone {
            // The options are normalized after each part; those of oneOf are compared with each other.
            let step = match members.contains_key("oneOf") {
                true => cost.nodes.saturating_mul(cost.nodes),
                false => cost.nodes,
            };
            let patterns = cost.patterns.saturating_mul(cost.patterns);
            self.spend(count.saturating_mul(step))?;
            self.spend(
                count
                    .saturating_mul(patterns)
                    .saturating_mul(AUTOMATON_WORK),
            )?;
        }
        self.spend(1)?;
        Ok(cost)
    }

    /// Choices among the properties of one object; adds what counting them costs.
    fn optional(&self, members: &Map<String, Value>, nodes: &mut u64) -> u64 {
        let length = |name: &str| match members.get(name) {
            Some(Value::Object(members)) => members.len() as u64,
            Some(Value::Array(items)) => items.len() as u64,
            _ => 0,
        };
        let optional = length("properties").saturating_sub(length("required"));
        if members.contains_key("minProperties") || members.contains_key("maxProperties") {
            // One grammar for each property that may be the one.
            *nodes += 8 * optional * (optional + length("required"));
        }
        CHOICES_OF_OPTIONAL * optional
    }

    fn reference(&mut self, reference: &'a Value) -> Result<Cost, Failure> {
        let Some(name) = reference.as_str() else {
            return Ok(Cost::one()); // the compiler says so
        };
        if name.len() > MAX_REF_BYTES {
            return Err(exhausted(format!(
                "$ref of {} bytes, wanted at most {MAX_REF_BYTES}",
                name.len()
            )));
        }
        match self.targets.get(name) {
            Some(Some(cost)) => return Ok(*cost),
            Some(None) => {
                return Ok(Cost {
                    recursive: true,
                    ..Cost::one()
                })
            }
            None => {}
        }
        let Some(target) = self.find(name) else {
            return Ok(Cost::one()); // the compiler says so
        };
        self.targets.insert(name, None);
        let cost = self.schema(target)?;
        self.targets.insert(name, Some(cost));
        Ok(cost)
    }

    // As the compiler does it: no escapes.
    fn find(&self, name: &str) -> Option<&'a Value> {
        if name == "#" || name == "#/" {
            return Some(self.root);
        }
        let mut value = self.root;
        for segment in name.strip_prefix("#/")?.split('/') {
            value = match value {
                Value::Array(items) => items.get(segment.parse::<usize>().ok()?)?,
                other => other.get(segment)?,
            };
        }
        Some(value)
    }
}

fn may_nest(kind: Option<&Value>) -> bool {
    let nests = |kind: &Value| matches!(kind.as_str(), Some("object" | "array"));
    kind.is_some_and(|kind| nests(kind) || kind.as_array().is_some_and(|k| k.iter().any(nests)))
}

fn literal(value: &Value) -> Cost {
    fn nodes(value: &Value) -> u64 {
        match value {
            Value::Array(items) => 1 + items.iter().map(nodes).sum::<u64>(),
            Value::Object(members) => 1 + members.values().map(|v| 1 + nodes(v)).sum::<u64>(),
            _ => 1,
        }
    }
    Cost {
        nodes: nodes(value),
        ..Cost::one()
    }
}

fn literals(values: &Value) -> Cost {
    let mut cost = Cost::one();
    for value in values.as_array().into_iter().flatten() {
        let mut one = literal(value);
        // All scalars are one expression.
        one.choices = u64::from(value.is_object() || value.is_array());
        cost.or(one);
    }
    cost
}
