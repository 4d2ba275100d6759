// SPDX-License-Identifier: Apache-2.0
// C ABI of the Rust crate in text-bridge/: Hugging Face tokenizers, minijinja and llguidance. hearth/text is its only
// user.
//
// Status     Every function that can fail returns HTB_OK or another htb_status and then sets *error to a message
//            (UTF-8). Outputs are written only on HTB_OK. A Rust panic becomes HTB_INTERNAL; nothing unwinds
//            through this interface.
// Ownership  An htb_buffer or htb_ids that a function fills belongs to the caller, who gives it back with
//            htb_buffer_free or htb_ids_free exactly once; an untouched (zeroed) one may be freed too. Inputs
//            are read during the call only.
// Threads    A handle may be used by many threads at once, except in its *_free and in htb_tokenizer_add_tokens,
//            which need it alone; an htb_grammar_state belongs to one thread at a time. There is no global state
//            that a caller can see.
// Units      Sizes are bytes, ids are vocabulary rows, times are seconds or milliseconds as the names say.
// Text       Inputs called text or json must be UTF-8 (HTB_INVALID_ARGUMENT otherwise); none is NUL-terminated.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Raised whenever a signature or the meaning of a field changes.
#define HTB_ABI_VERSION 2
uint32_t htb_abi_version(void);

typedef enum htb_status {
  HTB_OK = 0,
  HTB_INVALID_ARGUMENT = 1,
  HTB_CORRUPT = 2,
  HTB_RESOURCE_EXHAUSTED = 3,
  HTB_DEADLINE_EXCEEDED = 4,
  HTB_INTERNAL = 5,
} htb_status;

typedef struct htb_buffer {
  uint8_t* data;
  uint64_t size;
  uint64_t capacity;
} htb_buffer;
void htb_buffer_free(htb_buffer buffer);

typedef struct htb_ids {
  uint32_t* data;
  uint64_t size;
  uint64_t capacity;
} htb_ids;
void htb_ids_free(htb_ids ids);

// ---- Tokenizer ------------------------------------------------------------------------------------------------

typedef struct htb_tokenizer htb_tokenizer;

// Parses the text of a tokenizer.json. Its truncation and padding are ignored. HTB_CORRUPT: not one.
htb_status htb_tokenizer_new(const uint8_t* json, uint64_t json_size, htb_tokenizer** out, htb_buffer* error);
void htb_tokenizer_free(htb_tokenizer* tokenizer);

// Adds tokens, or changes the properties of those that are there: a JSON array of objects with `content` and
// optionally `special`, `normalized`, `lstrip`, `rstrip`, `single_word`. Before the handle is shared.
htb_status htb_tokenizer_add_tokens(htb_tokenizer* tokenizer, const uint8_t* json, uint64_t json_size,
                                    htb_buffer* error);

// Ids of `text`. add_special_tokens: as the post-processor says. parse_special = 0: text that spells a special
// token is plain text.
htb_status htb_tokenizer_encode(const htb_tokenizer* tokenizer, const uint8_t* text, uint64_t text_size,
                                int32_t add_special_tokens, int32_t parse_special, htb_ids* out, htb_buffer* error);

// Text of `ids`; an id without a token adds nothing.
htb_status htb_tokenizer_decode(const htb_tokenizer* tokenizer, const uint32_t* ids, uint64_t count,
                                int32_t skip_special, htb_buffer* out, htb_buffer* error);

// *out = the id, or -1 if there is no such token.
htb_status htb_tokenizer_token_to_id(const htb_tokenizer* tokenizer, const uint8_t* token, uint64_t token_size,
                                     int64_t* out, htb_buffer* error);

// How the decoder of the tokenizer puts tokens together; says how to stream (hearth/text/detokenizer.cpp).
typedef enum htb_decoder_kind {
  HTB_DECODER_OTHER = 0,      // depends on neighbours: only htb_tokenizer_decode knows
  HTB_DECODER_BYTES = 1,      // the bytes of the tokens, one after the other
  HTB_DECODER_FALLBACK = 2,   // as BYTES, but a run of HTB_PIECE_BYTE tokens is UTF-8 as a whole or one U+FFFD each
  HTB_DECODER_METASPACE = 3,  // as BYTES, but the first token loses every U+2581 (strip_count = 1) or not (0)
  HTB_DECODER_SPACED = 4,     // the tokens with one space between
} htb_decoder_kind;

enum {
  HTB_PIECE_PRESENT = 1,  // the id has a token
  HTB_PIECE_SPECIAL = 2,  // skipped by skip_special
  HTB_PIECE_BYTE = 4,     // a byte fallback token; its bytes are that byte
};

// The whole vocabulary: token i's spelling is text[text_offsets[i] .. text_offsets[i+1]), the bytes that it adds to
// a decoded text are bytes[byte_offsets[i] .. byte_offsets[i+1]), its HTB_PIECE_* flags are flags[i].
typedef struct htb_vocabulary {
  uint64_t count;  // one more than the largest id
  htb_buffer text;
  htb_ids text_offsets;  // count + 1
  htb_buffer bytes;
  htb_ids byte_offsets;  // count + 1
  htb_buffer flags;      // count
  int32_t decoder_kind;  // htb_decoder_kind
  uint32_t strip_char;   // FALLBACK: up to strip_count of this code point go away at the start of the text
  uint32_t strip_count;
} htb_vocabulary;
htb_status htb_tokenizer_vocabulary(const htb_tokenizer* tokenizer, htb_vocabulary* out, htb_buffer* error);

// ---- Chat template --------------------------------------------------------------------------------------------

typedef struct htb_template htb_template;

// Every limit counts for one render.
typedef struct htb_template_limits {
  uint64_t max_output_bytes;
  uint64_t max_steps;       // instructions of the template engine
  uint64_t max_work_bytes;  // bytes that operations read or make
  uint64_t max_time_ms;
} htb_template_limits;

// HTB_INVALID_ARGUMENT: the source is no template.
htb_status htb_template_new(const uint8_t* source, uint64_t source_size, const htb_template_limits* limits,
                            htb_template** out, htb_buffer* error);
void htb_template_free(htb_template* chat_template);

// Renders with the members of the JSON object `variables`. HTB_INVALID_ARGUMENT: the template failed or raised an
// exception; HTB_RESOURCE_EXHAUSTED and HTB_DEADLINE_EXCEEDED: a limit, named in the message.
htb_status htb_template_render(const htb_template* chat_template, const uint8_t* variables, uint64_t variables_size,
                               int64_t local_time_s, htb_buffer* out, htb_buffer* error);

// ---- Grammar --------------------------------------------------------------------------------------------------

typedef struct htb_grammar_compiler htb_grammar_compiler;
typedef struct htb_grammar htb_grammar;
typedef struct htb_grammar_state htb_grammar_state;

// Rows of a model's logits: row i adds bytes[byte_offsets[i] .. byte_offsets[i+1]) to a text, none where it has no
// token; where special[i] is not 0 they are the spelling of a token that is no text. end_ids end a text.
typedef struct htb_token_table {
  uint64_t count;
  const uint8_t* bytes;
  const uint32_t* byte_offsets;  // count + 1
  const uint8_t* special;        // count
  const uint32_t* end_ids;       // each less than count
  uint64_t end_count;
} htb_token_table;
htb_status htb_grammar_compiler_new(const htb_token_table* tokens, htb_grammar_compiler** out, htb_buffer* error);
void htb_grammar_compiler_free(htb_grammar_compiler* compiler);

typedef enum htb_grammar_kind {
  HTB_GRAMMAR_JSON_OBJECT = 0,  // the source is not read
  HTB_GRAMMAR_JSON_SCHEMA = 1,
  HTB_GRAMMAR_REGEX = 2,
  HTB_GRAMMAR_LARK = 3,
} htb_grammar_kind;

typedef struct htb_grammar_limits {
  uint64_t max_depth;  // of objects and arrays in the text of a schema
  uint64_t max_compile_time_ms;
} htb_grammar_limits;

// HTB_INVALID_ARGUMENT: no such grammar, or something that is not supported; HTB_RESOURCE_EXHAUSTED and
// HTB_DEADLINE_EXCEEDED: a limit. Recurses with the source: call it with 64 MiB of stack for 64 KiB of source. The
// grammar does not need its compiler any longer.
htb_status htb_grammar_new(const htb_grammar_compiler* compiler, int32_t kind, const uint8_t* source,
                           uint64_t source_size, const htb_grammar_limits* limits, htb_grammar** out,
                           htb_buffer* error);
void htb_grammar_free(htb_grammar* grammar);

// At the start of a text. The state does not need its grammar any longer.
htb_status htb_grammar_state_new(const htb_grammar* grammar, htb_grammar_state** out, htb_buffer* error);
void htb_grammar_state_free(htb_grammar_state* state);

// Bit i % 32 of words[i / 32]: row i may come next. Words behind the last row become 0. HTB_RESOURCE_EXHAUSTED: what
// may come takes too many states to find out. After an error of this or the next function every call fails.
htb_status htb_grammar_state_fill(htb_grammar_state* state, uint32_t* words, uint64_t count, htb_buffer* error);
// HTB_INVALID_ARGUMENT: the token is not allowed.
htb_status htb_grammar_state_accept(htb_grammar_state* state, uint32_t token, htb_buffer* error);
// 1 where nothing but the end may follow, else 0.
int32_t htb_grammar_state_finished(const htb_grammar_state* state);

#ifdef __cplusplus
}
#endif
