#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How far transformers in BF16 is from models' golden.json, which holds float32's values.

  bench/peers/golden_bf16_torch.py MODEL_DIR...

Prints NAME=LARGEST for each model on one line of stdout, the largest difference of a log probability, and mean, largest
and count on stderr: the measure by which golden_cuda_test judges our BF16 (HEARTH_BF16_LARGEST). Runs on the GPU where
there is one. Needs torch and transformers.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def largest_of(folder):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True).to(device).eval()
    differences = []
    with torch.no_grad():
        for prompt in json.loads((folder / "golden.json").read_text())["prompts"]:
            ids = torch.tensor([prompt["ids"]], device=device)
            logprobs = torch.log_softmax(model(ids).logits[0].float(), dim=-1)
            for i, wanted in enumerate(prompt["token_logprobs"]):
                if wanted is not None and i > 0:
                    differences.append(abs(float(logprobs[i - 1, prompt["ids"][i]]) - wanted))
    largest = max(differences)
    print(f"{folder.name}: transformers in BF16 on {device}: log probabilities differ by "
          f"{sum(differences) / len(differences):.5f} in the mean, {largest:.5f} at most, over {len(differences)}",
          file=sys.stderr)
    return largest


def main():
    folders = [Path(argument) for argument in sys.argv[1:]]
    print(" ".join(f"{folder.name}={largest_of(folder)}" for folder in folders))


if __name__ == "__main__":
    main()
