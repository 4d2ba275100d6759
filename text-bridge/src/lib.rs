// SPDX-License-Identifier: Apache-2.0
//! The C ABI of include/hearth_text_bridge.h, where ownership, threads and errors are described.
//! Every function goes through `guard`, which turns a panic into an error: nothing unwinds into C++.

mod filters;
mod grammar;
mod guard;
mod meter;
mod python;
mod schema_cost;
mod source;
mod template;
mod tokenizer;

use std::cell::Cell;
use std::panic::{catch_unwind, set_hook, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    // Where the last panic of this thread was, for its message.
    static PANIC_AT: Cell<Option<String>> = const { Cell::new(None) };
}

#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(i32)]
pub enum Status {
    Ok = 0,
    InvalidArgument = 1,
    Corrupt = 2,
    ResourceExhausted = 3,
    DeadlineExceeded = 4,
    Internal = 5,
}

#[derive(Debug)]
pub struct Failure {
    pub status: Status,
    pub message: String,
}

impl Failure {
    pub fn new(status: Status, message: String) -> Self {
        Failure { status, message }
    }
}

#[repr(C)]
pub struct Buffer {
    data: *mut u8,
    size: u64,
    capacity: u64,
}

#[repr(C)]
pub struct Ids {
    data: *mut u32,
    size: u64,
    capacity: u64,
}

impl From<Vec<u8>> for Buffer {
    fn from(v: Vec<u8>) -> Self {
        let mut v = std::mem::ManuallyDrop::new(v);
        Buffer {
            data: v.as_mut_ptr(),
            size: v.len() as u64,
            capacity: v.capacity() as u64,
        }
    }
}

impl From<Vec<u32>> for Ids {
    fn from(v: Vec<u32>) -> Self {
        let mut v = std::mem::ManuallyDrop::new(v);
        Ids {
            data: v.as_mut_ptr(),
            size: v.len() as u64,
            capacity: v.capacity() as u64,
        }
    }
}

/// Runs `body`; writes its value to `out`, or a message to `error`.
/// Safety: `out` and `error` are valid for one write.
unsafe fn guard<T>(
    out: *mut T,
    error: *mut Buffer,
    body: impl FnOnce() -> Result<T, Failure>,
) -> Status {
    // The default hook would print what the caller gets as an error.
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        set_hook(Box::new(|info| {
            PANIC_AT.set(info.location().map(|at| at.to_string()));
        }))
    });
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => {
            out.write(value);
            return Status::Ok;
        }
        Ok(Err(failure)) => failure,
        Err(payload) => {
            let what = payload
                .downcast_ref::<&str>()
                .map(|s| s.to_string())
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "unknown cause".to_string());
            let at = PANIC_AT.take().unwrap_or_default();
            // Dropping a payload may panic again; what that panics with is forgotten.
            if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                std::mem::forget(again);
            }
            Failure::new(
                Status::Internal,
                format!("panic in the text library at {at}: {what}"),
            )
        }
    };
    error.write(failure.message.into_bytes().into());
    failure.status
}

unsafe fn slice<'a, T>(data: *const T, size: u64) -> &'a [T] {
    if size == 0 {
        &[]
    } else {
        std::slice::from_raw_parts(data, size as usize)
    }
}

unsafe fn text<'a>(data: *const u8, size: u64, what: &str) -> Result<&'a str, Failure> {
    std::str::from_utf8(slice(data, size)).map_err(|error| {
        Failure::new(
            Status::InvalidArgument,
            format!(
                "{what} is not UTF-8: bad byte at offset {}",
                error.valid_up_to()
            ),
        )
    })
}

#[no_mangle]
pub extern "C" fn htb_abi_version() -> u32 {
    2
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_buffer_free(buffer: Buffer) {
    if !buffer.data.is_null() {
        drop(Vec::from_raw_parts(
            buffer.data,
            buffer.size as usize,
            buffer.capacity as usize,
        ));
    }
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_ids_free(ids: Ids) {
    if !ids.data.is_null() {
        drop(Vec::from_raw_parts(
            ids.data,
            ids.size as usize,
            ids.capacity as usize,
        ));
    }
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_tokenizer_new(
    json: *const u8,
    json_size: u64,
    out: *mut *mut tokenizer::Tokenizer,
    error: *mut Buffer,
) -> Status {
    guard(out, error, || {
        let json = text(json, json_size, "tokenizer.json")?;
        let tokenizer = tokenizer::Tokenizer::new(json)?;
        Ok(Box::into_raw(Box::new(tokenizer)))
    })
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_tokenizer_free(tokenizer: *mut tokenizer::Tokenizer) {
    if !tokenizer.is_null() {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(tokenizer))));
    }
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_tokenizer_add_tokens(
    tokenizer: *mut tokenizer::Tokenizer,
    json: *const u8,
    json_size: u64,
    error: *mut Buffer,
) -> Status {
    guard(&mut (), error, || {
        (*tokenizer).add_tokens(text(json, json_size, "list of tokens")?)
    })
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_tokenizer_encode(
    tokenizer: *const tokenizer::Tokenizer,
    data: *const u8,
    size: u64,
    add_special_tokens: i32,
    parse_special: i32,
    out: *mut Ids,
    error: *mut Buffer,
) -> Status {
    guard(out, error, || {
        let text = text(data, size, "text")?;
        (*tokenizer)
            .encode(text, add_special_tokens != 0, parse_special != 0)
            .map(Ids::from)
    })
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_tokenizer_decode(
    tokenizer: *const tokenizer::Tokenizer,
    ids: *const u32,
    count: u64,
    skip_special: i32,
    out: *mut Buffer,
    error: *mut Buffer,
) -> Status {
    guard(out, error, || {
        let text = (*tokenizer).decode(slice(ids, count), skip_special != 0)?;
        Ok(text.into_bytes().into())
    })
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_tokenizer_token_to_id(
    tokenizer: *const tokenizer::Tokenizer,
    token: *const u8,
    token_size: u64,
    out: *mut i64,
    error: *mut Buffer,
) -> Status {
    guard(out, error, || {
        let token = text(token, token_size, "token")?;
        Ok((*tokenizer).token_to_id(token).map_or(-1, i64::from))
    })
}

#[repr(C)]
pub struct VocabularyTables {
    count: u64,
    text: Buffer,
    text_offsets: Ids,
    bytes: Buffer,
    byte_offsets: Ids,
    flags: Buffer,
    decoder_kind: i32,
    strip_char: u32,
    strip_count: u32,
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_tokenizer_vocabulary(
    tokenizer: *const tokenizer::Tokenizer,
    out: *mut VocabularyTables,
    error: *mut Buffer,
) -> Status {
    guard(out, error, || {
        let v = (*tokenizer).vocabulary()?;
        Ok(VocabularyTables {
            count: v.flags.len() as u64,
            text: v.text.into(),
            text_offsets: v.text_offsets.into(),
            bytes: v.bytes.into(),
            byte_offsets: v.byte_offsets.into(),
            flags: v.flags.into(),
            decoder_kind: v.kind as i32,
            strip_char: v.strip_char,
            strip_count: v.strip_count,
        })
    })
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_template_new(
    source: *const u8,
    source_size: u64,
    limits: *const template::Limits,
    out: *mut *mut template::Template,
    error: *mut Buffer,
) -> Status {
    guard(out, error, || {
        let source = text(source, source_size, "chat template")?;
        let template = template::Template::new(source, *limits)?;
        Ok(Box::into_raw(Box::new(template)))
    })
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_template_free(template: *mut template::Template) {
    if !template.is_null() {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(template))));
    }
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_template_render(
    template: *const template::Template,
    variables: *const u8,
    variables_size: u64,
    local_time_s: i64,
    out: *mut Buffer,
    error: *mut Buffer,
) -> Status {
    guard(out, error, || {
        let variables = text(variables, variables_size, "variables of the chat template")?;
        let rendered = (*template).render(variables, local_time_s)?;
        Ok(rendered.into_bytes().into())
    })
}

#[repr(C)]
pub struct TokenTable {
    count: u64,
    bytes: *const u8,
    byte_offsets: *const u32,
    special: *const u8,
    end_ids: *const u32,
    end_count: u64,
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_grammar_compiler_new(
    tokens: *const TokenTable,
    out: *mut *mut grammar::Compiler,
    error: *mut Buffer,
) -> Status {
    guard(out, error, || {
        let table = &*tokens;
        let offsets = slice(table.byte_offsets, table.count + 1);
        let compiler = grammar::Compiler::new(&grammar::Tokens {
            bytes: slice(table.bytes, u64::from(offsets[table.count as usize])),
            offsets,
            special: slice(table.special, table.count),
            end_ids: slice(table.end_ids, table.end_count),
        })?;
        Ok(Box::into_raw(Box::new(compiler)))
    })
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_grammar_compiler_free(compiler: *mut grammar::Compiler) {
    if !compiler.is_null() {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(compiler))));
    }
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_grammar_new(
    compiler: *const grammar::Compiler,
    kind: i32,
    source: *const u8,
    source_size: u64,
    limits: *const grammar::Limits,
    out: *mut *mut grammar::Grammar,
    error: *mut Buffer,
) -> Status {
    guard(out, error, || {
        let kind = match kind {
            0 => grammar::Kind::JsonObject,
            1 => grammar::Kind::JsonSchema,
            2 => grammar::Kind::Regex,
            3 => grammar::Kind::Lark,
            _ => {
                return Err(Failure::new(
                    Status::InvalidArgument,
                    format!("no kind of grammar {kind}"),
                ))
            }
        };
        let source = text(source, source_size, "grammar")?;
        let grammar = (*compiler).compile(kind, source, &*limits)?;
        Ok(Box::into_raw(Box::new(grammar)))
    })
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_grammar_free(grammar: *mut grammar::Grammar) {
    if !grammar.is_null() {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(grammar))));
    }
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_grammar_state_new(
    grammar: *const grammar::Grammar,
    out: *mut *mut grammar::State,
    error: *mut Buffer,
) -> Status {
    guard(out, error, || {
        Ok(Box::into_raw(Box::new((*grammar).start())))
    })
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_grammar_state_free(state: *mut grammar::State) {
    if !state.is_null() {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(state))));
    }
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_grammar_state_fill(
    state: *mut grammar::State,
    words: *mut u32,
    count: u64,
    error: *mut Buffer,
) -> Status {
    guard(&mut (), error, || {
        let words = match count {
            0 => &mut [][..],
            _ => std::slice::from_raw_parts_mut(words, count as usize),
        };
        (*state).fill(words)
    })
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_grammar_state_accept(
    state: *mut grammar::State,
    token: u32,
    error: *mut Buffer,
) -> Status {
    guard(&mut (), error, || (*state).accept(token))
}

/// # Safety
/// As the header says.
#[no_mangle]
pub unsafe extern "C" fn htb_grammar_state_finished(state: *const grammar::State) -> i32 {
    (*state).finished().into()
}
