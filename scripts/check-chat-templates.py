"""What scripts/check-chat-templates does once everything is there: see there."""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "fixtures"))
from template_rows import ROWS, for_template  # noqa: E402

HASHES = Path(__file__).resolve().parent / "chat-templates.json"
FOLDER = "trl/chat_templates/"
# Templates of models that see images, whose contents are lists of parts.
IMAGES = re.compile(r"_vl|idefics|llava|smolvlm")
SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
# What looks like a special token in a template.
MARKERS = re.compile(r"<\|[^|<>'\s]+\|>|<｜[^｜<>']+｜>|<(?:start|end)_of_turn>|<turn\|>|<\|turn>|\[/?INST\]|</s>")
# What was rendered at another day would differ.
DAY = re.compile(r"\d\d \w+ 20\d\d|20\d\d-\d\d-\d\d")


def digest(text):
    return hashlib.sha256(DAY.sub("DAY", text).encode()).hexdigest()


def templates(package):
    with zipfile.ZipFile(package) as wheel:
        names = [name for name in wheel.namelist() if name.startswith(FOLDER) and name.endswith(".jinja")]
        return {
            Path(name).stem: wheel.read(name).decode()
            for name in sorted(names)
            if not IMAGES.search(Path(name).stem)
        }


def by_transformers(template, row, marked=False, prompt=False):
    """The text and the marked spans, or none where it is an error."""
    from transformers.utils.chat_template_utils import render_jinja_template

    messages, tools, variables = for_template(row)
    try:
        texts, spans = render_jinja_template(
            [messages],
            tools=tools,
            chat_template=template,
            return_assistant_tokens_mask=marked,
            add_generation_prompt=prompt,
            **SPECIAL,
            **variables,
        )
    except Exception:  # A template may fail in any way that Python has.
        return None
    return texts[0], [list(span) for span in spans[0]] if marked else []


def ours(renderer, template, rows):
    """For each row: text and spans, an error, and whether the row was refused because something would go unread."""
    markers = sorted(set(MARKERS.findall(template)) | set(SPECIAL.values()))
    lines = [json.dumps({"template": template, "special": SPECIAL, "markers": markers})] + [json.dumps(row) for row in rows]
    done = subprocess.run([renderer], input="\n".join(lines), text=True, capture_output=True, check=True)
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def make(package):
    hashes = {}
    for name, template in templates(package).items():
        hashes[name] = {
            "sha256": hashlib.sha256(template.encode()).hexdigest(),
            "renderings": {
                f"{title}{suffix}": digest(found[0]) if (found := by_transformers(template, row, prompt=prompt)) else "error"
                for title, row in ROWS.items()
                for suffix, prompt in (("", False), (" +", True))
            },
        }
    import jinja2
    import transformers

    about = "SHA-256 of transformers' renderings, dates as DAY; made by scripts/check-chat-templates --make"
    versions = {"transformers": transformers.__version__, "jinja2": jinja2.__version__, "package": Path(package).name}
    HASHES.write_text(json.dumps({"about": about, "versions": versions, "templates": hashes}, indent=1) + "\n")
    print(f"{HASHES}: {len(hashes)} templates")


def check(package, renderer):
    expected = json.loads(HASHES.read_text())["templates"]
    texts = templates(package)
    counts = {"equal": 0, "both refuse": 0, "unread, refused": 0, "DIFFERENT": 0}
    for name, entry in expected.items():
        template = texts[name]
        if hashlib.sha256(template.encode()).hexdigest() != entry["sha256"]:
            sys.exit(f"error: {name} is not the template that the hashes are of\nhint: scripts/check-chat-templates --make")
        results = ours(renderer, template, ROWS.values())
        for title, result in zip(ROWS, results, strict=True):
            for suffix, key in (("", "whole"), (" +", "prompt")):
                wanted, found = entry["renderings"][title + suffix], result[key]
                if "error" in found:
                    unread = "does not read" in found["error"] or "knows no role" in found["error"]
                    verdict = "both refuse" if wanted == "error" else "unread, refused" if unread else "DIFFERENT"
                else:
                    verdict = "equal" if digest(found["text"]) == wanted else "DIFFERENT"
                counts[verdict] += 1
                if verdict == "DIFFERENT":
                    print(f"{name} / {title}{suffix}: {found.get('error', 'another text')}")
    print(f"{len(expected)} templates x {len(ROWS)} conversations, whole and with a prompt: {counts}")
    sys.exit(counts["DIFFERENT"] > 0)


def joined(spans, text):
    """Spans that touch as one, without the white space at their ends: whether a line's end after a turn is learned is a
    matter of taste."""
    merged = []
    for begin, end in spans:
        if merged and merged[-1][1] >= begin:
            merged[-1][1] = end
        elif begin < end:
            merged.append([begin, end])
    strip = [(begin + len(text[begin:end]) - len(text[begin:end].lstrip()), begin + len(text[begin:end].rstrip())) for begin, end in merged]
    return [(begin, end) for begin, end in strip if begin < end]


def spans(package, renderer):
    """Masks of a template without marks, against those that its training template marks."""
    texts = templates(package)
    counts = {"equal": 0, "different": 0, "refused": 0, "other text": 0}
    for name, template in texts.items():
        training = texts.get(f"{name}_training")
        if training is None:
            continue
        for title, result in zip(ROWS, ours(renderer, template, ROWS.values()), strict=True):
            marked = by_transformers(training, ROWS[title], marked=True)
            if marked is None or "error" in result["whole"] or not marked[1]:
                continue
            if marked[0] != result["whole"]["text"]:
                verdict = "other text"
            elif "error" in result["spans"]:
                verdict = "refused"
            else:
                verdict = "equal" if joined(result["spans"]["spans"], marked[0]) == joined(marked[1], marked[0]) else "different"
            counts[verdict] += 1
            if verdict in ("different", "refused"):
                text = marked[0]
                shown = [text[a:b] for a, b in result["spans"].get("spans", [])]
                print(f"{name} / {title}: {verdict}: {result['spans'].get('error') or shown}; marked {[text[a:b] for a, b in marked[1]]}")
    print(f"spans without marks: {counts}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--package", required=True)
    parser.add_argument("--renderer", required=True)
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--spans", action="store_true")
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.package)
    if arguments.spans:
        spans(arguments.package, arguments.renderer)
    check(arguments.package, arguments.renderer)


if __name__ == "__main__":
    main()
