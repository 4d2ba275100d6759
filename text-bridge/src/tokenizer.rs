// SPDX-License-Identifier: Apache-2.0
//! One tokenizer.json: encode, decode, and the vocabulary as flat tables.
//! Immutable once shared; encode and decode take `&self` from any number of threads.

use crate::{Failure, Status};
use serde::Deserialize;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::tokenizer::{
    AddedVocabulary, Decoder, Model, OffsetType, PostProcessor, PreTokenizer,
};

pub const PIECE_PRESENT: u8 = 1;
pub const PIECE_SPECIAL: u8 = 2;
pub const PIECE_BYTE: u8 = 4;

#[derive(Clone, Copy, PartialEq)]
#[repr(i32)]
pub enum DecoderKind {
    Other = 0,
    Bytes = 1,
    Fallback = 2,
    Metaspace = 3,
    Spaced = 4,
}

pub struct Vocabulary {
    pub text: Vec<u8>,
    pub text_offsets: Vec<u32>,
    pub bytes: Vec<u8>,
    pub byte_offsets: Vec<u32>,
    pub flags: Vec<u8>,
    pub kind: DecoderKind,
    pub strip_char: u32,
    pub strip_count: u32,
}

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    // The added tokens with special ones switched off, for text from outside. The library has one switch for the
    // whole tokenizer; a second added vocabulary costs little, a second model would cost all of it again.
    plain: AddedVocabulary,
}

#[derive(Deserialize)]
struct NewToken {
    content: String,
    #[serde(default)]
    special: bool,
    normalized: Option<bool>,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
}

fn library_error(status: Status) -> impl Fn(tokenizers::Error) -> Failure {
    move |error| Failure::new(status, error.to_string())
}

impl Tokenizer {
    pub fn new(json: &str) -> Result<Self, Failure> {
        let mut inner: tokenizers::Tokenizer =
            json.parse().map_err(library_error(Status::Corrupt))?;
        inner
            .with_truncation(None)
            .map_err(library_error(Status::Corrupt))?;
        inner.with_padding(None);
        Ok(Self::from_inner(inner))
    }

    fn from_inner(mut inner: tokenizers::Tokenizer) -> Self {
        inner.set_encode_special_tokens(false);
        let mut plain = inner.get_added_vocabulary().clone();
        plain.set_encode_special_tokens(true);
        Self { inner, plain }
    }

    pub fn add_tokens(&mut self, json: &str) -> Result<(), Failure> {
        let tokens: Vec<NewToken> = serde_json::from_str(json)
            .map_err(|error| Failure::new(Status::InvalidArgument, error.to_string()))?;
        let tokens: Vec<_> = tokens
            .into_iter()
            .map(|t| {
                tokenizers::AddedToken::from(t.content, t.special)
                    .normalized(t.normalized.unwrap_or(!t.special))
                    .lstrip(t.lstrip)
                    .rstrip(t.rstrip)
                    .single_word(t.single_word)
            })
            .collect();
        self.inner
            .add_tokens(tokens)
            .map_err(library_error(Status::Corrupt))?;
        self.plain = self.inner.get_added_vocabulary().clone();
        self.plain.set_encode_special_tokens(true);
        Ok(())
    }

    pub fn encode(
        &self,
        text: &str,
        add_special_tokens: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, Failure> {
        let added = if parse_special {
            self.inner.get_added_vocabulary()
        } else {
            &self.plain
        };
        // The library's own encode in its four steps, with the choice of added vocabulary in front.
        let steps = || -> tokenizers::Result<Vec<u32>> {
            let mut pieces = added.extract_and_normalize(self.inner.get_normalizer(), text);
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            self.inner
                .get_model()
                .tokenize_in_pretokenized(&mut pieces, None)?;
            let encoding = pieces.into_encoding(None, 0, OffsetType::None)?;
            let encoding = match self.inner.get_post_processor() {
                Some(processor) => processor.process(encoding, None, add_special_tokens)?,
                None => encoding,
            };
            Ok(encoding.get_ids().to_vec())
        };
        steps().map_err(library_error(Status::InvalidArgument))
    }

    // A special token stands for its own spelling. Others keep the form that the library gives to its decoder.
    fn piece(&self, id: u32) -> Option<(String, bool)> {
        let added = self.inner.get_added_vocabulary();
        match added.get_added_tokens_decoder().get(&id) {
            Some(token) if added.is_special_token(&token.content) => {
                Some((token.content.clone(), true))
            }
            _ => added
                .simple_id_to_token(id)
                .or_else(|| self.inner.get_model().id_to_token(id))
                .map(|piece| (piece, false)),
        }
    }

    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, Failure> {
        // Special tokens are skipped by id: the library compares spellings, and misses a special token whose
        // normalized spelling differs (Llama-2's "<s>").
        let tokens: Vec<String> = ids
            .iter()
            .filter_map(|id| self.piece(*id))
            .filter(|(_, special)| !(skip_special && *special))
            .map(|(piece, _)| piece)
            .collect();
        match self.inner.get_decoder() {
            Some(decoder) => decoder
                .decode(tokens)
                .map_err(library_error(Status::InvalidArgument)),
            None => Ok(tokens.join(" ")),
        }
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    pub fn vocabulary(&self) -> Result<Vocabulary, Failure> {
        let largest = self.inner.get_vocab(true).into_values().max();
        let count = largest.map_or(0, |id| id as usize + 1);
        if count > 1 << 26 {
            return Err(Failure::new(
                Status::Corrupt,
                format!("largest token id is {}, wanted less than 2^26", count - 1),
            ));
        }
        let joiner = Joiner::of(self.inner.get_decoder());
        let mut v = Vocabulary {
            text: Vec::new(),
            text_offsets: vec![0],
            bytes: Vec::new(),
            byte_offsets: vec![0],
            flags: Vec::with_capacity(count),
            kind: joiner.kind,
            strip_char: joiner.strip_char,
            strip_count: joiner.strip_count,
        };
        for id in 0..count as u32 {
            let mut flags = 0;
            if let Some((piece, special)) = self.piece(id) {
                flags = PIECE_PRESENT | if special { PIECE_SPECIAL } else { 0 };
                v.text.extend_from_slice(piece.as_bytes());
                flags |= joiner.append(&piece, &mut v.bytes);
            }
            v.flags.push(flags);
            if v.text.len().max(v.bytes.len()) > u32::MAX as usize {
                return Err(Failure::new(
                    Status::Corrupt,
                    "vocabulary of more than 4 GiB".into(),
                ));
            }
            v.text_offsets.push(v.text.len() as u32);
            v.byte_offsets.push(v.bytes.len() as u32);
        }
        Ok(v)
    }
}

/// What a decoder does to one token, and how the results are put together.
struct Joiner<'a> {
    kind: DecoderKind,
    strip_char: u32,
    strip_count: u32,
    replace: Vec<&'a DecoderWrapper>,
    byte_fallback: bool,
    byte_of_char: std::collections::HashMap<char, u8>,
}

impl<'a> Joiner<'a> {
    fn new(kind: DecoderKind) -> Self {
        Joiner {
            kind,
            strip_char: 0,
            strip_count: 0,
            replace: Vec::new(),
            byte_fallback: false,
            byte_of_char: Default::default(),
        }
    }

    fn of(decoder: Option<&'a DecoderWrapper>) -> Self {
        let Some(decoder) = decoder else {
            return Self::new(DecoderKind::Spaced);
        };
        let chain: &[DecoderWrapper] = match decoder {
            DecoderWrapper::Sequence(sequence) => sequence.get_decoders(),
            single => std::slice::from_ref(single),
        };
        if let [single] = chain {
            match single {
                DecoderWrapper::ByteLevel(_) => {
                    return Joiner {
                        byte_of_char: byte_of_char(),
                        ..Self::new(DecoderKind::Bytes)
                    }
                }
                DecoderWrapper::Metaspace(metaspace) => {
                    use tokenizers::pre_tokenizers::metaspace::PrependScheme;
                    if metaspace.get_replacement() == '\u{2581}' {
                        return Joiner {
                            strip_count: (metaspace.prepend_scheme != PrependScheme::Never).into(),
                            ..Self::new(DecoderKind::Metaspace)
                        };
                    }
                }
                _ => {}
            }
        }
        Self::fallback(chain).unwrap_or_else(|| Self::new(DecoderKind::Other))
    }

    // Replace*, ByteFallback?, Fuse?, Strip at the left: the shape of converted sentencepiece models.
    fn fallback(chain: &'a [DecoderWrapper]) -> Option<Self> {
        let mut joiner = Self::new(DecoderKind::Fallback);
        let mut fused = false;
        for decoder in chain {
            match decoder {
                DecoderWrapper::Replace(_) if !joiner.byte_fallback && !fused => {
                    joiner.replace.push(decoder)
                }
                DecoderWrapper::ByteFallback(_) if !joiner.byte_fallback && !fused => {
                    joiner.byte_fallback = true
                }
                DecoderWrapper::Fuse(_) if !fused => fused = true,
                DecoderWrapper::Strip(strip)
                    if fused && strip.stop == 0 && joiner.strip_count == 0 =>
                {
                    joiner.strip_char = strip.content as u32;
                    joiner.strip_count = strip.start as u32;
                }
                _ => return None,
            }
        }
        Some(joiner)
    }

    /// Appends what `piece` adds to a text; returns PIECE_BYTE for a byte token, else 0.
    fn append(&self, piece: &str, out: &mut Vec<u8>) -> u8 {
        match self.kind {
            DecoderKind::Bytes => {
                let start = out.len();
                for c in piece.chars() {
                    match self.byte_of_char.get(&c) {
                        Some(byte) => out.push(*byte),
                        None => {
                            // One letter outside the byte alphabet, and the token stands for itself.
                            out.truncate(start);
                            out.extend_from_slice(piece.as_bytes());
                            break;
                        }
                    }
                }
                0
            }
            DecoderKind::Fallback => {
                let mut text = piece.to_string();
                for decoder in &self.replace {
                    if let Ok(replaced) = decoder.decode_chain(vec![text.clone()]) {
                        text = replaced.concat();
                    }
                }
                if self.byte_fallback {
                    if let Some(byte) = fallback_byte(&text) {
                        out.push(byte);
                        return PIECE_BYTE;
                    }
                }
                out.extend_from_slice(text.as_bytes());
                0
            }
            DecoderKind::Metaspace => {
                out.extend_from_slice(piece.replace('\u{2581}', " ").as_bytes());
                0
            }
            DecoderKind::Spaced | DecoderKind::Other => {
                out.extend_from_slice(piece.as_bytes());
                0
            }
        }
    }
}

fn fallback_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    // from_str_radix alone would also take a sign; the library does, so "<0x+5>" is a byte here too.
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The alphabet of byte-level BPE (GPT-2): printable Latin-1 bytes are themselves, the others follow from U+0100 on.
fn byte_of_char() -> std::collections::HashMap<char, u8> {
    let mut next = 0x100;
    (0..=255u8)
        .map(|byte| {
            let itself = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
            let code = if itself {
                byte as u32
            } else {
                next += 1;
                next - 1
            };
            (char::from_u32(code).unwrap_or('\u{fffd}'), byte)
        })
        .collect()
}
