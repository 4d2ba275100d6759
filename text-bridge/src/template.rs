// SPDX-License-Identifier: Apache-2.0
//! A chat template as transformers renders it: the environment, its functions and filters, compile and render.
//! Immutable after `new`; render takes `&self` from any number of threads.

use crate::filters;
use crate::guard;
use crate::meter::{charge, charge_value, fail, local_time_s, metered, own};
use crate::source;
use crate::{python, Failure, Status};
use minijinja::machinery::{self, CompiledTemplate, Instructions};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use std::collections::BTreeMap;
use std::sync::Arc;

pub use crate::meter::Limits;

const NAME: &str = "chat template";

pub struct Template {
    // These borrow from `source`, and so go first.
    instructions: Instructions<'static>,
    blocks: BTreeMap<&'static str, Instructions<'static>>,
    env: Box<Environment<'static>>,
    _source: Source,
    limits: Limits,
}

// A source at a fixed address, freed with the template.
struct Source(*mut str);
impl Drop for Source {
    fn drop(&mut self) {
        // Safety: from Box::into_raw in Template::new, freed only here.
        drop(unsafe { Box::from_raw(self.0) });
    }
}
// Safety: the text is never written after it was made.
unsafe impl Send for Source {}
unsafe impl Sync for Source {}

fn failure_of(error: &Error) -> Failure {
    match error.kind() {
        ErrorKind::OutOfFuel => Failure::new(Status::ResourceExhausted, String::new()),
        _ => Failure::new(Status::InvalidArgument, error.to_string()),
    }
}

impl Template {
    pub fn new(text: &str, limits: Limits) -> Result<Self, Failure> {
        let source = Source(Box::into_raw(source::rewrite(text).into_boxed_str()));
        // Safety: the text lives until `source` is dropped, after everything that borrows from it.
        let text: &'static str = unsafe { &*source.0 };
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|error| failure_of(&error))?;
        source::check_nesting(text, &syntax)
            .map_err(|message| Failure::new(Status::InvalidArgument, message))?;
        let config = machinery::TemplateConfig {
            syntax_config: syntax,
            default_auto_escape: Arc::new(|_| AutoEscape::None),
        };
        let compiled =
            CompiledTemplate::new(NAME, text, &config).map_err(|error| failure_of(&error))?;
        Ok(Template {
            instructions: guard::instrument(&compiled.instructions),
            blocks: (compiled.blocks.iter())
                .map(|(name, block)| (*name, guard::instrument(block)))
                .collect(),
            env: Box::new(environment(limits.max_steps)),
            _source: source,
            limits,
        })
    }

    pub fn render(&self, variables: &str, local_time_s: i64) -> Result<String, Failure> {
        let variables: serde_json::Map<String, serde_json::Value> = serde_json::from_str(variables)
            .map_err(|error| Failure::new(Status::InvalidArgument, error.to_string()))?;
        metered(self.limits, local_time_s, || {
            let root = Value::from(Serde(variables));
            let mut text = String::new();
            // Safety: self outlives the call, and nothing of the state is kept.
            let this: &'static Template = unsafe { &*(self as *const _) };
            machinery::eval(
                &this.env,
                &this.instructions,
                root,
                &this.blocks,
                &mut machinery::make_string_output(&mut text),
                AutoEscape::None,
            )
            .map_err(|error| self.runtime_failure(&error))?;
            if text.len() as u64 > self.limits.max_output_bytes {
                return Err(Failure::new(
                    Status::ResourceExhausted,
                    format!(
                        "the template wrote {} bytes, wanted at most {}",
                        text.len(),
                        self.limits.max_output_bytes
                    ),
                ));
            }
            Ok(text)
        })
    }

    fn runtime_failure(&self, error: &Error) -> Failure {
        match error.kind() {
            ErrorKind::OutOfFuel => Failure::new(
                Status::ResourceExhausted,
                format!(
                    "the template took more than {} steps",
                    self.limits.max_steps
                ),
            ),
            _ => failure_of(error),
        }
    }
}

fn environment(max_steps: u64) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_fuel(Some(max_steps));
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_formatter(|out, _, value| {
        charge_value(value)?;
        match value.as_str() {
            Some(text) => out.write_str(text),
            None => {
                let text = python::str(value);
                charge(text.len() as u64)?;
                out.write_str(&text)
            }
        }
        .map_err(Error::from)
    });
    env.set_unknown_method_callback(method);
    guard::add_filters(&mut env);
    filters::add(&mut env);

    env.remove_global("debug");
    env.add_global(source::ONE, 1);
    env.add_function(
        "raise_exception",
        |message: Value| -> Result<Value, Error> {
            charge_value(&message)?;
            Err(fail(Failure::new(
                Status::InvalidArgument,
                python::str(&message),
            )))
        },
    );
    env.add_function("strftime_now", |format: &str| -> Result<String, Error> {
        charge(format.len() as u64 * 32)?;
        Ok(python::strftime(format, local_time_s()))
    });
    // The engine's own, after a look at what they are to hold.
    env.add_function("namespace", |args: filters::Args| -> Result<Value, Error> {
        let args = filters::values(args);
        args.iter().try_for_each(crate::meter::charge_stored)?;
        call_default("namespace", &args)
    });
    env.add_function("dict", |args: filters::Args| -> Result<Value, Error> {
        let args = filters::values(args);
        args.iter().try_for_each(charge_value)?;
        call_default("dict", &args)
    });
    env
}

fn call_default(name: &str, args: &[Value]) -> Result<Value, Error> {
    let env = filters::default_environment();
    match env.globals().find(|(global, _)| *global == name) {
        Some((_, function)) => function.call(&mut env.empty_state(), args),
        None => Err(Error::new(ErrorKind::UnknownFunction, name.to_string())),
    }
}

/// Methods that values do not have themselves: Python's.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let call = |state: &mut State| {
        minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
    };
    if value.kind() == ValueKind::Map {
        return call(state); // get, keys, values, items: none reads the map
    }
    charge_value(value)?;
    args.iter().try_for_each(charge_value)?;
    let Some(text) = value.as_str() else {
        return call(state);
    };
    match name {
        "replace" => filters::charge_replace(text, args.first(), args.get(1))?,
        "join" => {
            let [items] = args else {
                return call(state);
            };
            return filters::join(items, text);
        }
        "format" => filters::check_format(text)?,
        // Many small pieces.
        "split" | "rsplit" | "splitlines" => charge(text.len() as u64 * 16)?,
        _ => {}
    }
    match python::str_method(text, name, args) {
        Some(result) => result,
        None => own(call(state)?),
    }
}
