// SPDX-License-Identifier: Apache-2.0
//! Rewrites of a template's source. Every line end becomes a newline, as in Jinja; and outside of strings, comments and
//! raw blocks
//! `{% generation %}` becomes `{% with %}` (its text is kept and its variables stay inside, as transformers has it), and
//! `a * b` becomes `a * ONE * b` with a variable that is 1, because the engine multiplies constants while it compiles,
//! before any limit holds ("x" * 100000000 a thousand times is a short template).
//! Line numbers stay as they are.

use minijinja::machinery::{tokenize, Token};
use minijinja::syntax::SyntaxConfig;

pub const ONE: &str = "__one";

// The engine's compiler recurses over the operators of an expression and over `elif`, without a limit of its own. With
// 8 MiB of stack (x86-64, rustc 1.95, release) a tag of 150,000 operators killed it and one of 16,000 did not; 8,000
// `elif` did and 4,000 did not.
const MAX_TAG_TOKENS: usize = 2000;
const MAX_ELIF: usize = 1000;

/// Refuses what would overflow the compiler's stack. Syntax errors are left to the compiler.
pub fn check_nesting(source: &str, syntax: &SyntaxConfig) -> Result<(), String> {
    let (mut tokens, mut elifs) = (0, 0);
    for token in tokenize(source, false, syntax.clone()) {
        match token {
            Ok((Token::BlockStart | Token::VariableStart, _)) => tokens = 0,
            Ok((token, span)) => {
                tokens += 1;
                elifs += usize::from(matches!(token, Token::Ident("elif")));
                if tokens > MAX_TAG_TOKENS {
                    return Err(format!(
                        "line {}: a tag of more than {MAX_TAG_TOKENS} tokens",
                        span.start_line
                    ));
                }
                if elifs > MAX_ELIF {
                    return Err(format!("more than {MAX_ELIF} elif"));
                }
            }
            Err(_) => break,
        }
    }
    Ok(())
}

pub fn rewrite(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len() + 64);
    let mut rest = source.as_str();
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if rest.starts_with("{#") {
            rest = copy(
                rest,
                rest.find("#}").map_or(rest.len(), |end| end + 2),
                &mut out,
            );
        } else if rest.starts_with("{{") {
            rest = copy_code(rest, "}}", &mut out);
        } else if rest.starts_with("{%") {
            rest = copy_tag(rest, &mut out);
        } else {
            rest = copy(rest, 1, &mut out);
        }
    }
    out.push_str(rest);
    out
}

fn copy<'a>(text: &'a str, length: usize, out: &mut String) -> &'a str {
    out.push_str(&text[..length]);
    &text[length..]
}

fn copy_tag<'a>(tag: &'a str, out: &mut String) -> &'a str {
    let start = tag.len() - tag[2..].trim_start_matches(['-', '+']).trim_start().len();
    let name_length = tag[start..]
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(tag.len() - start);
    let replacement = match &tag[start..start + name_length] {
        "generation" => "with",
        "endgeneration" => "endwith",
        "raw" => return copy(tag, raw_length(tag), out),
        _ => return copy_code(tag, "%}", out),
    };
    out.push_str(&tag[..start]);
    out.push_str(replacement);
    copy_code(&tag[start + name_length..], "%}", out)
}

// Up to and with the opening of the `{% endraw`; what follows is a tag without a body.
fn raw_length(tag: &str) -> usize {
    let mut at = 2;
    while let Some(next) = tag[at..].find("{%") {
        at += next + 2;
        if tag[at..]
            .trim_start_matches(['-', '+'])
            .trim_start()
            .starts_with("endraw")
        {
            return at;
        }
    }
    tag.len()
}

// Code up to and with `end`, with the multiplications rewritten.
fn copy_code<'a>(code: &'a str, end: &str, out: &mut String) -> &'a str {
    let mut previous = '\0'; // the last character that is no space
    let mut chars = code.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' | '\'' => {
                let mut escaped = false;
                out.push(c);
                for (_, inner) in chars.by_ref() {
                    out.push(inner);
                    if !escaped && inner == c {
                        break;
                    }
                    escaped = !escaped && inner == '\\';
                }
            }
            _ if code[at..].starts_with(end) && at > 0 => {
                return copy(&code[at..], end.len(), out);
            }
            '*' => {
                out.push('*');
                let power = chars.peek().is_some_and(|(_, next)| *next == '*');
                if power {
                    chars.next();
                    out.push('*');
                } else if previous != '(' && previous != ',' {
                    out.push_str(ONE);
                    out.push('*');
                }
            }
            _ => out.push(c),
        }
        if !c.is_whitespace() {
            previous = c;
        }
    }
    ""
}
