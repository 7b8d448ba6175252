"""The parts of scripts/bench-data that are Python: making chats, what TRL does with them, and the table.

`chats MEBIBYTES` prints conversations as JSONL: words of a skewed distribution, one to four turns, from a seed.
`map MODEL FILE MAX_LENGTH` loads the file with datasets and maps it with two processes as TRL's trainer does: rendering with the
chat template and its marks, tokenising, the assistant's mask, packing; prints a JSON object.
`rows MODEL FILE MAX_LENGTH` reads the rows that `tokenise rows` prints and compares each with what transformers and TRL's mask make of it.
`table` reads the JSON objects of all rounds.
"""

import json
import resource
import statistics
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


def map_as_trl(model, file, max_length):
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer
    from trl import pack_dataset

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    tokenizer.chat_template = MARKED
    began = time.perf_counter()
    rows = load_dataset("json", data_files=file, split="train")
    rows = rows.map(tokenise, fn_kwargs={"tokenizer": tokenizer}, num_proc=2, remove_columns=rows.column_names)
    mapped = time.perf_counter()
    packs = pack_dataset(rows, max_length, "bfd", {"num_proc": 2})
    ended = time.perf_counter()
    columns = rows.with_format("numpy", columns=["assistant_masks"])
    supervised = sum(int(batch["assistant_masks"][i].sum()) for batch in columns.iter(1000) for i in range(len(batch["assistant_masks"])))
    own, child = (resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    told = {
        "side": "trl",
        "seconds": ended - began,
        "pack_seconds": ended - mapped,
        "rows": len(rows),
        "supervised": supervised,
        "packs": len(packs),
        "peak_bytes": own + 2 * child,
    }
    print(json.dumps(told))


def compare_rows(model, file, max_length, lines):
    """Ids and masks, row by row; the first token of a row is predicted by nothing, so its label does not matter."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    tokenizer.chat_template = MARKED
    rows = tokens = supervised = 0
    with open(file) as chats:
        for number, (chat, line) in enumerate(zip(chats, lines, strict=True), 1):
            theirs, ours = tokenise(json.loads(chat), tokenizer), json.loads(line)
            mask = [int(label != -100) for label in ours["labels"]]
            ids, expected = theirs["input_ids"][:max_length], theirs["assistant_masks"][:max_length]
            if ours["input_ids"] != ids or mask[1:] != expected[1:]:
                sys.exit(f"row {number} differs:\n{ours}\n{theirs}")
            rows, tokens, supervised = rows + 1, tokens + len(ids), supervised + sum(mask)
    print(f"{rows} rows, {tokens} tokens, {supervised} supervised: ids and masks are those of transformers and TRL")


def table(lines):
    """The median of each side, and what ours is to the others'."""
    sides = {}
    for line in map(json.loads, lines):
        sides.setdefault(line["side"], []).append(line)
    median = {side: statistics.median(line["seconds"] for line in all) for side, all in sides.items()}
    for side, all in sides.items():
        seconds = [line["seconds"] for line in all]
        peak = max((line.get("peak_bytes", 0) for line in all), default=0)
        counts = {key: all[0][key] for key in ("rows", "tokens", "supervised", "packs") if key in all[0]}
        memory = f", at most {peak / 2**20:.0f} MiB" if peak else ""
        print(f"{side:<11}{median[side]:8.2f} s (of {len(all)}: {min(seconds):.2f} to {max(seconds):.2f}){memory}  {counts}")
    if "trl" in median:
        print(f"as fast as datasets with TRL: {median['trl'] / median['zerofold']:.2f} times; the goal is 2")
    print(f"time of the bare tokenizers crate: {median['zerofold'] / median['tokenizers']:.2f} times; the goal is at most 1.3")


if __name__ == "__main__":
    if sys.argv[1] == "chats":
        chats(int(sys.argv[2]))
    elif sys.argv[1] == "table":
        table(sys.stdin)
    elif sys.argv[1] == "rows":
        compare_rows(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.stdin)
    else:
        map_as_trl(sys.argv[2], sys.argv[3], int(sys.argv[4]))
