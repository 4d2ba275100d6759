#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the golden values of tokenizers and chat templates in tests/fixtures/text.

    python3 tests/golden/make_text_golden.py --out tests/fixtures/text [--tokenizers FOLDER]

Needs tokenizers, transformers and jinja2 (tests/golden/requirements.txt). FOLDER holds llama2/, phi-3/ and
falcon-tokenizer/ with a tokenizer.json each; they are not part of the repository, so without it
other_tokenizers_golden.json is left as it is. tests/fixtures/text/README.md describes the files.
"""

import argparse
import datetime
import hashlib
import json
import pathlib
import sys

import jinja2
import tokenizers
import transformers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

import chat_cases

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO_MODEL = ROOT / "models" / "fable-13m"
NOW = datetime.datetime(2024, 7, 6, 9, 5, 3)  # UTC; day and hour below 10 show the padding of strftime

# The copy of Llama-2's tokenizer.json at hand has lost its no-break spaces, and three of its merges with them, so
# that no reader takes it. These replacements, each found exactly once, restore it; they stand in the golden file too.
EDITS = {
    "llama2": [
        ['"  ": 8655', '"\u00a0\u00a0": 8655'],
        ['"    ": 17891', '"\u00a0\u00a0\u00a0\u00a0": 17891'],
        ['"\u2581 ": 20246', '"\u2581\u00a0": 20246'],
        ['" ": 30081', '"\u00a0": 30081'],
        ['"   ",', '"\u00a0 \u00a0",'],
        ['"     ",', '"\u00a0\u00a0 \u00a0\u00a0",'],
        ['"\u2581  ",', '"\u2581 \u00a0",'],
    ]
}

STRINGS = [
    "",
    " ",
    "a",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    " leading space",
    "trailing space ",
    "two  spaces   three    four",
    "I'm sure they've said we'll go, she'd know it isn't Bob's.",
    "I'M SURE THEY'VE SAID WE'LL GO, SHE'D KNOW",
    "don\u2019t \u201cquote\u201d \u2014 dash\u2026",
    "1 12 123 1234 12345 1234567890 3.14159 1,000,000 1e-5 0x7f",
    "x=1;y[2]+=f(3)//2 # comment",
    "def f(x):\n    if x:\n        return x\n\treturn None\n",
    "line\nline\n\nline\n\n\nend\n",
    "line\r\nline\r\n\r\nend\r\n",
    "\r\r\n\n\r",
    "\n",
    "\n\n\n\n",
    " \n \n ",
    "\t\ttabs\tand\t spaces \t",
    "    \n    \t\n  x",
    "a\u00a0b\u2003c\u3000d\u200be\ufefff\u2028g\u2029h\u0085i",
    "\u0000",
    "a\u0000b\u0000\u0000c",
    "\u0001\u0002\u001b[31mred\u001b[0m\u007f\u0080\u009f",
    "caf\u00e9 na\u00efve \u00dcber stra\u00dfe \u0130stanbul \u0131",
    "cafe\u0301 n\u0303 a\u0308\u0323 \u1e69 s\u0323\u0307 s\u0307\u0323",
    "Z\u0351\u036b\u0343a\u0369\u034cl\u0348\u0337g\u0322o\u031b",
    "\ufb01 \u210c \u2460 \u00bd \uff21\uff22\uff23 \u3392",
    "\U0001f600 \U0001f642\U0001f642 \U0001f44d\U0001f3fd",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1e9\U0001f1ea \u2764\ufe0f 1\ufe0f\u20e3",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u8fd9\u662f\u4e00\u4e2a\u6d4b\u8bd5\u3002",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3068\u30ab\u30bf\u30ab\u30ca\u30fc\u3002\uff76\uff9e",
    "\ud55c\uad6d\uc5b4 \ud14d\uc2a4\ud2b8 \u1112\u1161\u11ab",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u0661\u0662\u0663 \u200f\u202babc\u202c",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05b9\u05dc\u05b8\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e \u0967\u0968\u0969",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u03b1\u03b2\u03b3 \u0391\u0392\u0393",
    "\U00020000\U0002a6d6 \U0001d54f\U0001d7d8 \U00010348 \U000e0041",
    "\ufffd\ufffe\uffff \ufdd0 \U0010ffff \ue000",
    "mixed \u4e2d\u6587 and English \u0438 \u0440\u0443\u0441\u0441\u043a\u0438\u0439 123\u4e2d",
    "supercalifragilisticexpialidocious",
    "a" * 200,
    "ab" * 100,
    "0" * 50,
    "!" * 64 + "?" * 33,
    " " * 100,
    "Donaudampfschifffahrtselektrizit\u00e4tenhauptbetriebswerkbauunterbeamtengesellschaft",
    "https://example.org/a/b?c=d&e=%20f#g user.name+tag@example.org",
    "C:\\path\\to\\file.txt /usr/bin/env ../..",
    '{"key": [1, 2.5, null, true], "text": "a\\nb"}',
    "<html><body class='x'>&amp;</body></html>",
    "_snake_case camelCase PascalCase kebab-case SCREAMING_CASE",
    "\u2581word \u2581\u2581two",
    "<0x0A> <0xE4>",
    "<s> </s> <unk> a<s>b</s>c",
    "<|begin_of_text|>Hi<|end_of_text|>",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    " <|im_end|> x<|im_end|>y <|im_end <|im_start|><|im_start|>",
    "<|user|>\nHello<|end|>\n<|assistant|> hi <|endoftext|>",
    ">>QUESTION<< <|pad|> >>TITLE<<",
    "It was a dark and stormy night; the rain fell in torrents\u2014except at occasional intervals.",
]


def decode(tokenizer, ids, skip):
    """Text of ids. Special tokens are skipped by id: tokenizers 0.23 looks a special token up by its normalized form and
    so keeps a "normalized" one (Llama-2's <s>), which 0.22 skipped. Kept ones are not fixed (None) where the two differ."""
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    if skip:
        ids = [i for i in ids if i not in special]
    elif any(tokenizer.id_to_token(i) != tokenizer.get_added_tokens_decoder()[i].content for i in special & set(ids)):
        return None
    return tokenizer.decode(ids, skip_special_tokens=False)


def encodings(tokenizer, text):
    """Ids with and without the post-processor's tokens, ids with special tokens read as text, and what they decode to."""
    tokenizer.encode_special_tokens = False
    bare = tokenizer.encode(text, add_special_tokens=False).ids
    full = tokenizer.encode(text, add_special_tokens=True).ids
    tokenizer.encode_special_tokens = True
    plain = tokenizer.encode(text, add_special_tokens=False).ids
    tokenizer.encode_special_tokens = False
    out = {"text": text, "ids": bare, "ids_special": full}
    if plain != bare:
        out["ids_as_text"] = plain
    for key, skip in (("decoded", True), ("decoded_special", False)):
        decoded = decode(tokenizer, full, skip)
        if decoded != text:
            out[key] = decoded
    return out


def decodings(tokenizer, vocab_size):
    """Id sequences that no text encodes to: cut characters, single ids, ids in a wrong order."""
    emoji = tokenizer.encode("\U0001f468\u200d\U0001f469", add_special_tokens=False).ids
    cjk = tokenizer.encode("\u9f98\u9f98", add_special_tokens=False).ids
    cases = [[], emoji[:1], emoji[:-1], emoji[1:], emoji[::-1], cjk[:-1], cjk[1:] + emoji, [0], [1, 2, 3], [vocab_size - 1]]
    cases += [[i] for i in range(5, 405, 40)] + [list(range(60, 200, 7))]
    return [
        {
            "ids": ids,
            "decoded": decode(tokenizer, ids, True),
            "decoded_special": decode(tokenizer, ids, False),
        }
        for ids in cases
    ]


def tokenizer_golden(path, edits=()):
    """The golden values of one tokenizer.json; a file that needs edits must fail to load without them."""
    text = path.read_text(encoding="utf-8")
    damage = {}
    if edits:
        try:
            tokenizers.Tokenizer.from_str(text)
            raise SystemExit(f"{path}: loads as it is, so it needs no edits")
        except Exception as error:  # tokenizers raises plain Exception
            damage = {"edits": edits, "load_error": str(error)}
    for old, new in edits:
        if text.count(old) != 1:
            raise SystemExit(f"{path}: {old!r} occurs {text.count(old)} times, wanted once")
        text = text.replace(old, new)
    tokenizer = tokenizers.Tokenizer.from_str(text)
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    return damage | {
        "reference": f"tokenizers {tokenizers.__version__}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "vocab_size": size,
        "strings": [encodings(tokenizer, text) for text in STRINGS],
        "decodings": decodings(tokenizer, size),
    }


def check_transformers(folder, golden):
    """transformers must give the same ids and text through its own loading of the folder."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    for entry in golden["strings"]:
        for key, special in (("ids", False), ("ids_special", True)):
            found = tokenizer(entry["text"], add_special_tokens=special)["input_ids"]
            if found != entry[key]:
                raise SystemExit(f"{folder}: {entry['text']!r}: transformers gives {found}, tokenizers {entry[key]}")
        found = tokenizer.decode(entry["ids_special"], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if found != entry.get("decoded", entry["text"]):
            raise SystemExit(f"{folder}: {entry['text']!r}: transformers decodes {found!r}")


def write_lines(path, golden, lists):
    """Compact JSON with one entry of each list per line."""
    head = {key: value for key, value in golden.items() if key not in lists}
    text = json.dumps(head, ensure_ascii=True)[:-1]
    for name in lists:
        rows = ",\n".join(json.dumps(row, ensure_ascii=True, separators=(",", ":")) for row in golden[name])
        text += f', "{name}": [\n{rows}\n]'
    path.write_text(text + "}\n", encoding="ascii")


class FrozenDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def outcome(render):
    """The rendered text, or the kind and the message of the template's error."""
    try:
        return {"text": render()}
    except jinja2.exceptions.TemplateSyntaxError as error:
        return {"error": "syntax", "message": str(error)}
    except jinja2.exceptions.UndefinedError as error:
        return {"error": "undefined", "message": str(error)}
    except jinja2.exceptions.SecurityError as error:
        return {"error": "security", "message": str(error)}
    except jinja2.exceptions.TemplateError as error:
        return {"error": "raised", "message": str(error)}
    except (TypeError, ZeroDivisionError) as error:
        return {"error": "type", "message": str(error)}


def chat_golden():
    chat_template_utils.datetime = FrozenDatetime
    templates = []
    for name, (template, special, cases) in chat_cases.TEMPLATES.items():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(DEMO_MODEL, local_files_only=True)
        # Only the template's own special tokens are variables: what is not set is undefined, not empty.
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **special)
        tokenizer.chat_template = template
        entries = []
        for case, messages, options in cases:
            result = outcome(lambda: tokenizer.apply_chat_template(messages, tokenize=False, **options))
            entries.append({"name": case, "messages": messages, "options": options} | result)
        templates.append({"name": name, "template": template, "special_tokens": special, "cases": entries})
    probes = []
    for name, template in chat_cases.PROBES.items():
        compile_template = chat_template_utils._compile_jinja_template
        result = outcome(lambda: compile_template(template).render(**chat_cases.DATA))
        probes.append({"name": name, "template": template} | result)
    return {
        "reference": f"transformers {transformers.__version__}, jinja2 {jinja2.__version__}",
        "now_utc": NOW.isoformat(),
        "now_unix_s": int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp()),
        "probe_variables": chat_cases.DATA,
        "templates": templates,
        "probes": probes,
    }


def write_chat(path, golden):
    """One case or probe per line."""
    head = {key: value for key, value in golden.items() if key not in ("templates", "probes")}
    text = json.dumps(head)[:-1] + ', "templates": [\n'
    blocks = []
    for template in golden["templates"]:
        start = json.dumps({key: value for key, value in template.items() if key != "cases"})[:-1]
        blocks.append(start + ', "cases": [\n' + ",\n".join(json.dumps(c) for c in template["cases"]) + "\n]}")
    text += ",\n".join(blocks) + '\n], "probes": [\n' + ",\n".join(json.dumps(p) for p in golden["probes"]) + "\n]}\n"
    json.loads(text)
    path.write_text(text, encoding="ascii")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the golden files")
    parser.add_argument("--tokenizers", type=pathlib.Path, help="folder with llama2/, phi-3/ and falcon-tokenizer/")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    args.out.mkdir(parents=True, exist_ok=True)

    golden = tokenizer_golden(DEMO_MODEL / "tokenizer.json")
    check_transformers(DEMO_MODEL, golden)
    write_lines(args.out / "tokenizer_golden.json", {"tokenizer": "fable-13m"} | golden, ("strings", "decodings"))
    write_chat(args.out / "chat_golden.json", chat_golden())
    if args.tokenizers is None:
        print("other_tokenizers_golden.json left as it is: no --tokenizers")
        return
    blocks = []
    for name in ("llama2", "phi-3", "falcon-tokenizer"):
        golden = tokenizer_golden(args.tokenizers / name / "tokenizer.json", EDITS.get(name, ()))
        write_lines(args.out / "part.json", {"tokenizer": name} | golden, ("strings", "decodings"))
        blocks.append((args.out / "part.json").read_text().rstrip("\n"))
        (args.out / "part.json").unlink()
    text = '{"tokenizers": [\n' + ",\n".join(blocks) + "\n]}\n"
    json.loads(text)
    (args.out / "other_tokenizers_golden.json").write_text(text, encoding="ascii")


if __name__ == "__main__":
    sys.exit(main())
