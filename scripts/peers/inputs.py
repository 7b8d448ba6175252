"""Makes what both sides train on: T's weights, and rows of token ids. Run by compare_peers.py in a process of its own, so
that the process that measures does not hold PyTorch.

    inputs.py FOLDER DEMO_MODEL DEMO_DATA TOKENIZER LENGTH ROWS
"""

import json
import shutil
import sys
from pathlib import Path

import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM

T = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_model(folder, tokenizer):
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**T))
    with torch.no_grad():
        for parameter in model.parameters():
            # DeepSpeed's bf16 makes its masters of rounded weights, so all sides start from what bfloat16 can hold.
            parameter.copy_(parameter.bfloat16())
    model.save_pretrained(folder)
    shutil.copy(tokenizer, folder / "tokenizer.json")


def make_rows(folder, demo_model, demo_data, length, count):
    """Rows of real text end to end, without padding; for T the same ids folded into its vocabulary."""
    tokenizer = tokenizers.Tokenizer.from_file(str(demo_model / "tokenizer.json"))
    ids = []
    for line in demo_data.read_text(encoding="utf-8").splitlines():
        text = "\n".join(message["content"] for message in json.loads(line)["messages"])
        ids += tokenizer.encode(text, add_special_tokens=False).ids
    rows = [ids[begin : begin + length] for begin in range(0, len(ids) - length, length)]
    rows = [rows[index % len(rows)] for index in range(count)]
    for name, vocabulary in (("S", None), ("T", T["vocab_size"])):
        with open(folder / f"rows-{name}.jsonl", "w", encoding="utf-8") as file:
            for row in rows:
                row = [token % vocabulary for token in row] if vocabulary else row
                file.write(json.dumps({"input_ids": row, "labels": row}) + "\n")


def main():
    folder, demo_model, demo_data, tokenizer = map(Path, sys.argv[1:5])
    length, count = map(int, sys.argv[5:7])
    folder.mkdir(parents=True, exist_ok=True)
    make_model(folder / "T", tokenizer)
    make_rows(folder, demo_model, demo_data, length, count)


if __name__ == "__main__":
    main()
