"""The two parts of scripts/bench-data that are Python: making chats, and what TRL does with them.

`chats MEBIBYTES` prints conversations as JSONL: words of a skewed distribution, one to four turns, from a seed.
`map MODEL FILE` loads the file with datasets and maps it with two processes as TRL's trainer does: rendering with the chat
template and its marks, tokenising, the assistant's mask; prints the seconds.
"""

import json
import sys
import time
from random import Random

LETTERS = "eeeeetttaaooiinnsshhrrddlluccmmffwwyygppbbvkjxqz"


def chats(mebibytes):
    random = Random(8)
    lengths = [1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 6, 7, 8, 9, 11]
    words = ["".join(random.choice(LETTERS) for _ in range(random.choice(lengths))) for _ in range(20_000)]

    def sentence():
        # The square makes the first words the most frequent ones, as in texts.
        chosen = [words[int(random.random() ** 3 * len(words))] for _ in range(random.randint(4, 18))]
        return " ".join(chosen).capitalize() + random.choice(".....?!:")

    def text(most):
        parts = [sentence() for _ in range(random.randint(1, most))]
        return random.choice([" ", " ", "\n"]).join(parts)

    left = mebibytes << 20
    while left > 0:
        messages = [{"role": "system", "content": text(2)}] if random.random() < 0.3 else []
        for _ in range(random.randint(1, 4)):
            messages.append({"role": "user", "content": text(4)})
            messages.append({"role": "assistant", "content": text(10)})
        line = json.dumps({"messages": messages}) + "\n"
        left -= len(line)
        sys.stdout.write(line)


# The template of the demo model with marks, without which transformers knows no mask.
MARKED = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
)


def tokenise(row, tokenizer):
    encoded = tokenizer.apply_chat_template(
        row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return {"input_ids": encoded["input_ids"], "assistant_masks": encoded["assistant_masks"]}


def map_as_trl(model, file):
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    tokenizer.chat_template = MARKED
    began = time.perf_counter()
    rows = load_dataset("json", data_files=file, split="train")
    loaded = time.perf_counter()
    rows = rows.map(tokenise, fn_kwargs={"tokenizer": tokenizer}, num_proc=2, remove_columns=rows.column_names)
    ended = time.perf_counter()
    supervised = sum(sum(mask) for mask in rows["assistant_masks"])
    print(json.dumps({"load_seconds": loaded - began, "map_seconds": ended - loaded, "rows": len(rows), "supervised": supervised}))


if __name__ == "__main__":
    if sys.argv[1] == "chats":
        chats(int(sys.argv[2]))
    else:
        map_as_trl(sys.argv[2], sys.argv[3])
