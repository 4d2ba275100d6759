#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How far transformers in BF16 is from a model's golden.json, which holds float32's values.

  bench/peers/golden_bf16_torch.py MODEL_DIR

Prints the largest difference of a log probability on stdout, and mean, largest and count on stderr: the measure by
which scripts/gpu_check.sh judges our BF16. Runs on the GPU where there is one. Needs torch and transformers.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def main():
    folder = Path(sys.argv[1])
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
    print(f"transformers in BF16 on {device}: log probabilities differ by {sum(differences) / len(differences):.5f} in "
          f"the mean, {largest:.5f} at most, over {len(differences)}", file=sys.stderr)
    print(largest)


if __name__ == "__main__":
    main()
