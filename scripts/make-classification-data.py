#!/usr/bin/env python3
"""Makes rows of a classifier: messages of customers, each with two labels that have nothing to do with each other.

`topic` is what a message is about (delivery, payment, account, product): words tell it, as in what an encoder of sentences
was trained for. `verdict` is whether the sender was helped in the end (yes, no): the last part of the message tells it, against its
beginning and often by a negation, so that single words do not. Names and wordings come from pools for training only, for held-out
rows only, and shared.

Standard library only; the same bytes on every run.

    make-classification-data.py FOLDER    writes FOLDER/{topic,verdict}-{train,eval}.jsonl
"""

import json
import sys
from pathlib import Path
from random import Random

SEED = 31
TRAIN_ROWS, EVAL_ROWS = 1600, 400

# Topic: what was the matter (training only, shared, held-out only).
MATTERS = {
    "delivery": (
        ["the parcel was left in the rain", "the driver rang at the wrong door", "half of the boxes came a week late"],
        ["my order never arrived", "the courier could not find the street", "the package came to my neighbour"],
        ["the van brought it to another town", "nobody told me when it would be dropped off", "the box was still in the depot"],
    ),
    "payment": (
        ["the card was charged twice", "the invoice had the wrong tax", "my refund was not on the statement"],
        ["I paid and the shop asked for money again", "the discount was missing from the bill", "the bank sent the transfer back"],
        ["the amount on the receipt was too high", "the instalment was taken a month early", "the voucher did not lower the price"],
    ),
    "account": (
        ["the password link had expired", "my profile showed another name", "I was signed out every minute"],
        ["I could not log in", "the page said that my address is unknown", "the code for signing in did not come"],
        ["the app asked me to register again", "my user name was taken", "the settings would not be saved"],
    ),
    "product": (
        ["the handle of the pan broke", "the colour faded after one wash", "the lamp flickers all evening"],
        ["the zip is stuck", "the battery lasts an hour", "one leg of the chair is too short"],
        ["the kettle leaks", "the fabric tears at the seam", "the screen has a dark spot"],
    ),
}
OPENINGS = (
    ["Good morning,", "I write because", "To whom it may concern:", "Last week"],
    ["Hello,", "On Monday", "As I said on the phone,"],
    ["Dear team,", "Two days ago", "Once more:"],
)
# What happened then, and whether it helped: the clause that comes last decides.
HELPED = (
    ["but in the end it was put right", "and I cannot complain about how it ended", "though nothing is left to be done now"],
    ["but that is settled now", "and it was not long until all was well", "but nobody could have solved it faster"],
    ["and by now I have no reason to be unhappy", "but the trouble did not last", "although today all is as it should be"],
)
NOT_HELPED = (
    ["and to this day it was not put right", "though all were friendly", "and the promise to settle it was not kept"],
    ["but nobody could solve it", "and all is far from well", "although they said that it is settled"],
    ["and I am still waiting for an end of the trouble", "but nothing is as it should be", "and how it ended is a reason to complain"],
)
MIDDLES = (
    ["I called three times", "a colleague of yours looked into it", "I sent photographs"],
    ["I wrote to you", "your help desk answered", "I waited at the counter"],
    ["somebody opened a ticket", "I asked in the shop", "an agent took it on"],
)


def choose(random, pool, held_out):
    """From the shared part and that of training, or of held-out rows."""
    parts = pool[1] + (pool[2] if held_out else pool[0])
    return parts[int(random.random() * len(parts))]


def make(random, held_out):
    topic = sorted(MATTERS)[int(random.random() * len(MATTERS))]
    helped = random.random() < 0.5
    opening, middle = choose(random, OPENINGS, held_out), choose(random, MIDDLES, held_out)
    end = choose(random, HELPED if helped else NOT_HELPED, held_out)
    parts = [f"{opening} {choose(random, MATTERS[topic], held_out)}.", f"{middle[0].upper()}{middle[1:]}, {end}."]
    return " ".join(parts), topic, "yes" if helped else "no"


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    random = Random(SEED)
    for part, count in (("train", TRAIN_ROWS), ("eval", EVAL_ROWS)):
        rows, seen = [], set()
        while len(rows) < count:
            row = make(random, part == "eval")
            if row[0] not in seen:
                seen.add(row[0])
                rows.append(row)
        for place, name in ((1, "topic"), (2, "verdict")):
            lines = [json.dumps({"text": row[0], "label": row[place]}) for row in rows]
            (folder / f"{name}-{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
