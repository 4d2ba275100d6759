#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a synthetic checkpoint of a bench configuration, to time how fast real files load:

  python3 bench/make_checkpoint.py bench/configs/llama-3-8b.json /data/llama-3-8b --tokenizer models/fable-13m

config.json, model-*.safetensors of at most --shard-bytes each and model.safetensors.index.json, with seeded values
that are numbers: BF16 of either sign between 2^-10 and 2^-5, norms 1, E4M3 codes without NaN. What is quantized follows
quantization_config, of compressed-tensors' FP8 (per channel) and INT4 (per group) as published models have it. Python's
standard library alone; one process a core, each of which writes whole pieces of the files.
"""
import argparse
import json
import multiprocessing
import os
import random
import shutil
import struct
import sys
import time

PIECE = 32 << 20
# The upper byte of a BF16: a sign, and the exponents of 2^-10 to 2^-5. The lower byte is the rest.
UPPER = bytes([(0x80 if i & 1 else 0) | 0x3A + (i >> 1) % 3 for i in range(256)])
E4M3 = bytes([i if i & 0x7F != 0x7F else i - 1 for i in range(256)])
ONE_BF16 = b"\x80\x3f"
SCALE_BF16 = {"E4M3": b"\x80\x38", "I4": b"\x80\x3b"}  # 2^-14 and 2^-8


def projections(config):
    """(name, rows, columns) of a layer's linears."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    dim = config.get("head_dim") or hidden // heads
    return [("self_attn.q_proj", heads * dim, hidden), ("self_attn.k_proj", kv_heads * dim, hidden),
            ("self_attn.v_proj", kv_heads * dim, hidden), ("self_attn.o_proj", hidden, heads * dim),
            ("mlp.gate_proj", ffn, hidden), ("mlp.up_proj", ffn, hidden), ("mlp.down_proj", hidden, ffn)]


def scheme_of(config):
    """None, ("E4M3", 0) or ("I4", group)."""
    quantization = config.get("quantization_config")
    if not quantization:
        return None
    groups = list(quantization.get("config_groups", {}).values())
    if quantization.get("quant_method") != "compressed-tensors" or len(groups) != 1:
        sys.exit("make_checkpoint: quantization_config; wanted compressed-tensors with one config group")
    weights = groups[0]["weights"]
    what = weights["type"], weights["num_bits"], weights["strategy"]
    if what == ("float", 8, "channel"):
        return "E4M3", 0
    if what == ("int", 4, "group") and weights.get("symmetric", True):
        return "I4", weights["group_size"]
    sys.exit(f"make_checkpoint: weights {what}; wanted ('float', 8, 'channel') or symmetric ('int', 4, 'group')")


def tensors_of(config):
    """All tensors in the order in which a model reads them: (name, dtype, shape, kind)."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    family = config["architectures"][0]
    dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    scheme = scheme_of(config)
    tensors = [("model.embed_tokens.weight", "BF16", [vocab, hidden], "values")]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors.append((f"{prefix}{norm}.weight", "BF16", [hidden], "ones"))
        if family == "Qwen3ForCausalLM":
            for norm in ("q_norm", "k_norm"):
                tensors.append((f"{prefix}self_attn.{norm}.weight", "BF16", [dim], "ones"))
        for module, n, k in projections(config):
            name = prefix + module
            if scheme is None:
                tensors.append((name + ".weight", "BF16", [n, k], "values"))
            elif scheme[0] == "E4M3":
                tensors.append((name + ".weight", "F8_E4M3", [n, k], "codes"))
                tensors.append((name + ".weight_scale", "BF16", [n, 1], "scales"))
            else:
                tensors.append((name + ".weight_packed", "I32", [n, k // 8], "words"))
                tensors.append((name + ".weight_shape", "I64", [2], (n, k)))
                tensors.append((name + ".weight_scale", "BF16", [n, k // scheme[1]], "scales"))
            if family == "Qwen2ForCausalLM" and module[10:] in ("q_proj", "k_proj", "v_proj"):
                tensors.append((name + ".bias", "BF16", [n], "values"))
    tensors.append(("model.norm.weight", "BF16", [hidden], "ones"))
    if not config.get("tie_word_embeddings", False):
        tensors.append(("lm_head.weight", "BF16", [vocab, hidden], "values"))
    return tensors


WIDTHS = {"BF16": 2, "F8_E4M3": 1, "I32": 4, "I64": 8}


def size_of(tensor):
    size = WIDTHS[tensor[1]]
    for dim in tensor[2]:
        size *= dim
    return size


def content(kind, seed, size, scale):
    if isinstance(kind, tuple):
        return struct.pack("<2q", *kind)
    if kind == "ones":
        return ONE_BF16 * (size // 2)
    if kind == "scales":
        return scale * (size // 2)
    data = random.Random(seed).randbytes(size)
    if kind == "codes":
        return data.translate(E4M3)
    if kind == "values":
        values = bytearray(data)
        values[1::2] = data[1::2].translate(UPPER)
        return values
    return data


def write_piece(work):
    path, offset, kind, seed, size, scale = work
    with open(path, "r+b", buffering=0) as file:
        file.seek(offset)
        data = memoryview(content(kind, seed, size, scale))
        while data:
            data = data[file.write(data):]
    return size


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("config")
    parser.add_argument("folder")
    parser.add_argument("--tokenizer", metavar="DIR", help="copies the tokenizer of this model")
    parser.add_argument("--shard-bytes", type=int, default=5_000_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    begin = time.monotonic()
    with open(args.config, encoding="utf-8") as file:
        config = json.load(file)
    os.makedirs(args.folder, exist_ok=True)
    shutil.copy(args.config, os.path.join(args.folder, "config.json"))
    for name in ("tokenizer.json", "tokenizer_config.json") if args.tokenizer else ():
        source = os.path.join(args.tokenizer, name)
        if os.path.exists(source):
            shutil.copy(source, args.folder)

    shards = [[]]
    filled = 0
    for tensor in tensors_of(config):
        size = size_of(tensor)
        if shards[-1] and filled + size > args.shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    scheme = scheme_of(config)
    scale = SCALE_BF16[scheme[0]] if scheme else b""
    work, places, total = [], {}, 0
    for index, shard in enumerate(shards):
        name = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        path = os.path.join(args.folder, name)
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for tensor in shard:
            header[tensor[0]] = {"dtype": tensor[1], "shape": tensor[2], "data_offsets": [at, at + size_of(tensor)]}
            places[tensor[0]] = name
            at += size_of(tensor)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + at)
        for tensor in shard:
            offset = 8 + len(text) + header[tensor[0]]["data_offsets"][0]
            size = size_of(tensor)
            for part in range(0, size, PIECE):
                seed = f"{args.seed} {tensor[0]} {part}"
                work.append((path, offset + part, tensor[3], seed, min(PIECE, size - part), scale))
        total += at
    with open(os.path.join(args.folder, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
        json.dump({"metadata": {"total_size": total}, "weight_map": places}, file)
    with multiprocessing.Pool(args.jobs) as pool:
        done = sum(pool.imap_unordered(write_piece, work))
    seconds = time.monotonic() - begin
    print(f"{args.folder}: {done / 1e9:.2f} GB in {len(shards)} files, {seconds:.1f} s ({done / 1e9 / seconds:.1f} GB/s)")


if __name__ == "__main__":
    main()
