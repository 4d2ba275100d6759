// SPDX-License-Identifier: Apache-2.0
//! Constrained output over llguidance: a Compiler for one vocabulary, its Grammars, and the State of one sequence.
//! Compiler and Grammar are used through `&self` by any thread; a State belongs to one at a time and shares nothing
//! that changes with its Grammar.
//! Model ids are the trie's ids; one more id behind them is the trie's end of text, which stands for every end id.

use crate::{schema_cost, Failure, Status};
use llguidance::api::{GrammarInit, ParserLimits, StopReason, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{
    InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv,
};
use llguidance::{JsonCompileOptions, Logger, ParserFactory, TokenParser};
use serde_json::{json, Value};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Limits {
    pub max_depth: u64,
    pub max_compile_time_ms: u64,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    JsonObject,
    JsonSchema,
    Regex,
    Lark,
}

/// The vocabulary's bytes; `special` tokens are not text.
pub struct Tokens<'a> {
    pub bytes: &'a [u8],
    pub offsets: &'a [u32], // one more than there are tokens
    pub special: &'a [u8],
    pub end_ids: &'a [u32],
}

/// The trie keeps lengths up to its node's 10 bits.
const MAX_TOKEN_BYTES: usize = 1000;
/// The trie's node has 24 bits for an id, of which one means none.
const MAX_VOCABULARY: usize = (1 << 24) - 2;
/// White space between two tokens of JSON: a line break and 32 levels of two spaces. A model that got stuck there
/// would write nothing else until its budget ends.
const MAX_JSON_SPACE: usize = 65;
const MAX_LARK_BRACKETS: usize = 4000;
const MAX_LARK_RULES: usize = 2000;

struct Vocabulary {
    trie: TokTrie,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }
    fn tokenize_bytes(&self, s: &[u8]) -> Vec<TokenId> {
        self.trie.greedy_tokenize(s)
    }
    // Nothing is forced: the model chooses how to spell what must come.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

struct Shared {
    vocab_size: usize,
    end_ids: Vec<u32>,
    // Tokens that any grammar may allow.
    usable: SimpleVob,
    // Those that begin with white space; None where the vocabulary cannot spell ASCII without them.
    spaces: Option<SimpleVob>,
}

pub struct Compiler {
    factory: ParserFactory,
    shared: Arc<Shared>,
}

pub struct Grammar {
    parser: TokenParser,
    json: bool,
    shared: Arc<Shared>,
}

pub struct State {
    parser: TokenParser,
    shared: Arc<Shared>,
    space: Option<JsonSpace>,
    accepting: bool,
    stopped: bool,
    ended: bool,
    failed: bool,
}

fn invalid(message: String) -> Failure {
    Failure::new(Status::InvalidArgument, message)
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

impl Compiler {
    pub fn new(tokens: &Tokens) -> Result<Self, Failure> {
        let count = tokens.special.len();
        if count == 0 || count > MAX_VOCABULARY {
            return Err(invalid(format!(
                "grammar vocabulary of {count} tokens, wanted 1 to {MAX_VOCABULARY}"
            )));
        }
        let mut usable = SimpleVob::alloc(count + 1);
        let mut spaces = SimpleVob::alloc(count + 1);
        let mut single = [false; 256];
        let mut words = Vec::with_capacity(count + 1);
        for (id, span) in tokens.offsets.windows(2).enumerate() {
            let bytes = &tokens.bytes[span[0] as usize..span[1] as usize];
            let special = tokens.special[id] != 0;
            // 0xFF marks a special token in the trie; no text has that byte.
            let skipped = bytes.is_empty()
                || bytes.len() > MAX_TOKEN_BYTES
                || (!special && bytes[0] == TokTrie::SPECIAL_TOKEN_MARKER)
                || tokens.end_ids.contains(&(id as u32));
            if skipped {
                words.push(Vec::new());
                continue;
            }
            usable.allow_token(id as u32);
            if special {
                let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
                word.extend_from_slice(bytes);
                words.push(word);
                continue;
            }
            if bytes.len() == 1 {
                single[bytes[0] as usize] = true;
            }
            if is_space(bytes[0]) {
                spaces.allow_token(id as u32);
            }
            words.push(bytes.to_vec());
        }
        words.push(Vec::new()); // the end of text, which no bytes spell
        let spells_ascii = (0x21..0x7f).all(|byte: usize| single[byte]);
        let info = TokRxInfo::new(count as u32 + 1, count as u32);
        let env: TokEnv = Arc::new(Vocabulary {
            trie: TokTrie::from(&info, &words),
        });
        let mut factory = ParserFactory::new(
            &env,
            InferenceCapabilities::default(),
            &SlicedBiasComputer::general_slices(),
        )
        .map_err(|error| Failure::new(Status::Internal, format!("grammar tries: {error}")))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_items_in_row: 2000,
            initial_lexer_fuel: 1_000_000,
            step_lexer_fuel: 200_000,
            step_max_items: 50_000,
            max_lexer_states: 20_000, // 1 to 2 KB each, of one sequence
            max_grammar_size: 200_000,
            precompute_large_lexemes: false,
            verbose_errors: false,
        };
        Ok(Compiler {
            factory,
            shared: Arc::new(Shared {
                vocab_size: count,
                end_ids: tokens.end_ids.to_vec(),
                usable,
                spaces: spells_ascii.then_some(spaces),
            }),
        })
    }

    pub fn compile(&self, kind: Kind, source: &str, limits: &Limits) -> Result<Grammar, Failure> {
        let deadline = Instant::now() + Duration::from_millis(limits.max_compile_time_ms);
        let check_time = || match Instant::now() > deadline {
            true => Err(Failure::new(
                Status::DeadlineExceeded,
                format!(
                    "compiling took longer than {} ms",
                    limits.max_compile_time_ms
                ),
            )),
            false => Ok(()),
        };
        let grammar = match kind {
            Kind::JsonObject => json_grammar(json!({"type": "object"}))?,
            Kind::JsonSchema => json_grammar(parse_schema(source, limits)?)?,
            Kind::Regex => {
                schema_cost::check_expression(source)?;
                TopLevelGrammar::from_regex(source)
            }
            Kind::Lark => {
                check_lark(source, limits)?;
                TopLevelGrammar::from_lark(source.to_string())
            }
        };
        check_time()?;
        let parser_limits = self.factory.limits().clone();
        // In two steps, for the sake of the clock.
        let env = self.factory.tok_env().clone();
        let (grammar, lexer) = library(|| {
            GrammarInit::Serialized(grammar).to_internal(Some(env), parser_limits.clone())
        })?;
        check_time()?;
        let mut parser = library(|| {
            self.factory.create_parser_from_init_ext(
                GrammarInit::Internal(grammar, lexer),
                Logger::new(0, 0),
                InferenceCapabilities::default(),
                parser_limits.clone(),
            )
        })?;
        parser.start_without_prompt();
        check_time()?;
        Ok(Grammar {
            parser,
            json: matches!(kind, Kind::JsonObject | Kind::JsonSchema),
            shared: self.shared.clone(),
        })
    }
}

fn parse_json(source: &str, limits: &Limits) -> Result<Value, Failure> {
    let depth = schema_cost::depth(source);
    if depth > limits.max_depth {
        return Err(Failure::new(
            Status::ResourceExhausted,
            format!(
                "JSON Schema nests {depth} deep, wanted at most {}",
                limits.max_depth
            ),
        ));
    }
    serde_json::from_str(source)
        .map_err(|error| invalid(format!("JSON Schema is not valid JSON: {error}")))
}

fn parse_schema(source: &str, limits: &Limits) -> Result<Value, Failure> {
    let schema = parse_json(source, limits)?;
    check_schema(&schema)?;
    Ok(schema)
}

// The compiler takes its own options from a member of the schema, so a request must not have it.
const OPTIONS: &str = "x-guidance";

fn check_schema(schema: &Value) -> Result<(), Failure> {
    if schema.get(OPTIONS).is_some() {
        return Err(invalid(format!(
            "JSON Schema has an unsupported keyword: {OPTIONS}"
        )));
    }
    schema_cost::check(schema)
}

fn json_grammar(schema: Value) -> Result<TopLevelGrammar, Failure> {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        Value::Bool(false) => return Err(invalid("JSON Schema false allows nothing".into())),
        object @ Value::Object(_) => object,
        _ => return Err(invalid("JSON Schema is neither an object nor true".into())),
    };
    JsonCompileOptions::default().apply_to(&mut schema);
    Ok(TopLevelGrammar::from_json_schema(schema))
}

/// The parser and the compiler of Lark recurse over brackets and names, and schemas may stand inside.
fn check_lark(source: &str, limits: &Limits) -> Result<(), Failure> {
    schema_cost::check_expression(source)?;
    let count = |set: &str| source.chars().filter(|c| set.contains(*c)).count();
    for (what, found, wanted) in [
        ("brackets", count("([{~"), MAX_LARK_BRACKETS),
        ("rules", count(":"), MAX_LARK_RULES),
    ] {
        if found > wanted {
            return Err(Failure::new(
                Status::ResourceExhausted,
                format!("Lark grammar has {found} {what}, wanted at most {wanted}"),
            ));
        }
    }
    for (at, keyword) in source.match_indices("%json") {
        let rest = &source[at + keyword.len()..];
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        let Some(Ok(schema)) = values.next() else {
            return Err(invalid(format!(
                "Lark grammar: no JSON Schema after %json at offset {at}"
            )));
        };
        let text = &rest[..values.byte_offset()];
        if schema_cost::depth(text) > limits.max_depth {
            return Err(Failure::new(
                Status::ResourceExhausted,
                format!(
                    "JSON Schema nests {} deep, wanted at most {}",
                    schema_cost::depth(text),
                    limits.max_depth
                ),
            ));
        }
        check_schema(&schema)?;
    }
    Ok(())
}

/// Runs a part of the library's compiler. Its errors are texts; those that speak of a limit are told by their words.
fn library<T>(body: impl FnOnce() -> Result<T, anyhow::Error>) -> Result<T, Failure> {
    let error = match llguidance::panic_utils::catch_unwind(std::panic::AssertUnwindSafe(body)) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    let text = format!("{error:#}");
    // A panic's text goes on with a stack trace, which is nobody's business outside.
    let text = text.split("\n<").next().unwrap_or_default().trim();
    if let Some(what) = text.strip_prefix("panic: ") {
        // What it did not foresee in a grammar is one that it does not take.
        return Err(invalid(shortened(format!("the compiler failed ({what})"))));
    }
    const LIMITS: [&str; 9] = [
        "too big",
        "too large",
        "too many",
        "too complex",
        "fuel",
        "limit",
        "exceeded",
        "Unable to determine",
        "can't determine",
    ];
    let status = match LIMITS.iter().any(|words| text.contains(words)) {
        true => Status::ResourceExhausted,
        false => Status::InvalidArgument,
    };
    let text = text.replace("Unimplemented keys:", "unsupported keywords:");
    Err(Failure::new(status, shortened(text)))
}

// Errors may repeat the whole grammar.
fn shortened(mut text: String) -> String {
    const MOST: usize = 400;
    if text.len() > MOST {
        let end = (0..=MOST).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push_str("...");
    }
    text
}

impl Grammar {
    pub fn start(&self) -> State {
        let mut state = State {
            parser: self.parser.deep_clone(),
            shared: self.shared.clone(),
            space: (self.json && self.shared.spaces.is_some()).then(JsonSpace::default),
            accepting: false,
            stopped: false,
            ended: false,
            failed: false,
        };
        state.look();
        state
    }
}

impl State {
    // Whether the text may end here, and whether it must.
    fn look(&mut self) {
        self.accepting = self.parser.is_accepting();
        if !self.stopped {
            self.stopped = self.parser.check_stop().unwrap_or(true) && self.accepting;
        }
    }

    /// Nothing but the end may follow.
    pub fn finished(&self) -> bool {
        self.ended || self.stopped
    }

    fn usable(&self) -> Result<(), Failure> {
        match self.failed {
            true => Err(invalid("grammar: the state has failed before".into())),
            false => Ok(()),
        }
    }

    fn limit(&self, error: anyhow::Error) -> Failure {
        match self.parser.stop_reason() {
            StopReason::LexerTooComplex | StopReason::ParserTooComplex => Failure::new(
                Status::ResourceExhausted,
                format!("grammar too complex: {error}"),
            ),
            StopReason::NoExtensionBias => {
                invalid("grammar: no token of the vocabulary can follow".into())
            }
            _ => Failure::new(Status::Internal, format!("grammar: {error}")),
        }
    }

    pub fn fill(&mut self, words: &mut [u32]) -> Result<(), Failure> {
        self.usable()?;
        let needed = self.shared.vocab_size.div_ceil(32);
        if words.len() < needed {
            return Err(invalid(format!(
                "grammar: room for {} tokens, wanted {}",
                words.len() * 32,
                self.shared.vocab_size
            )));
        }
        words.fill(0);
        if !self.finished() {
            self.failed = true; // until it went well: a panic leaves the parser in pieces
            let mut mask = match self.parser.compute_mask() {
                Ok(mask) => mask,
                Err(error) => return Err(self.limit(error)),
            };
            mask.and(&self.shared.usable);
            if self.space.as_ref().is_some_and(JsonSpace::full) {
                if let Some(spaces) = &self.shared.spaces {
                    mask.sub(spaces);
                }
            }
            words[..needed].copy_from_slice(&mask.as_slice()[..needed]);
            if !self.accepting && words.iter().all(|word| *word == 0) {
                return Err(invalid(
                    "grammar: no token of the vocabulary can follow".into(),
                ));
            }
            self.failed = false;
        }
        if self.accepting || self.ended {
            for id in &self.shared.end_ids {
                words[*id as usize / 32] |= 1 << (id % 32);
            }
        }
        Ok(())
    }

    pub fn accept(&mut self, token: u32) -> Result<(), Failure> {
        self.usable()?;
        self.failed = true;
        let refused = || invalid(format!("grammar: token {token} is not allowed here"));
        if self.shared.end_ids.contains(&token) {
            if !self.accepting && !self.ended {
                return Err(refused());
            }
            self.ended = true;
            self.failed = false;
            return Ok(());
        }
        let known =
            (token as usize) < self.shared.vocab_size && self.shared.usable.is_allowed(token);
        if self.finished() || !known {
            return Err(refused());
        }
        let spaces = self.shared.spaces.as_ref();
        if self.space.as_ref().is_some_and(JsonSpace::full)
            && spaces.is_some_and(|spaces| spaces.is_allowed(token))
        {
            return Err(refused());
        }
        match self.parser.validate_token(token) {
            Ok(true) => {}
            Ok(false) => return Err(refused()),
            Err(error) => return Err(self.limit(error)),
        }
        match self.parser.consume_token(token) {
            Ok(_) => {}
            Err(error) => return Err(self.limit(error)),
        }
        if let Some(space) = &mut self.space {
            space.advance(self.parser.token_env.tok_trie().token(token));
        }
        self.look();
        self.failed = false;
        Ok(())
    }
}

/// How long the white space at the end of a JSON text is, outside of strings.
#[derive(Clone, Default)]
struct JsonSpace {
    in_string: bool,
    escaped: bool,
    run: usize,
}

impl JsonSpace {
    fn advance(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.escaped {
                self.escaped = false;
            } else if self.in_string && byte == b'\\' {
                self.escaped = true;
            } else if byte == b'"' {
                self.in_string = !self.in_string;
            }
            self.run = match !self.in_string && is_space(byte) {
                true => self.run + 1,
                false => 0,
            };
        }
    }

    fn full(&self) -> bool {
        self.run >= MAX_JSON_SPACE
    }
}

// The bridge's contract says so of its handles.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    fn owned<T: Send>() {}
    shared::<Compiler>();
    shared::<Grammar>();
    owned::<State>();
};
