"""Lets the Python package huggingface_hub and `launch` talk to the hub of the tests, and use each other's caches.

It shows that the hub of the tests speaks as the real one does to the client that everybody uses, that both clients lay out one
cache, and that each downloads what the other uploaded; of data that each uses what the other downloaded. The real hub is never
asked. Exits 1 when something differs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
target = Path(os.environ.get("CARGO_TARGET_DIR", root / "target"))
model = root / "tests/fixtures/models/tiny-llama"
rows = root / "tests/fixtures/data/rows.jsonl"
TOKEN = "hf_writer"


def hashes(folder):
    files = (path for path in Path(folder).iterdir() if path.is_file() and path.name != ".gitattributes")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check(what, agrees):
    print(f"{'ok' if agrees else 'DIFFERS'}  {what}")
    if not agrees:
        sys.exit(1)


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    build = ["cargo", "build", "--release", "-q", "-p", "zerofold-tests", "--example", "hub_server"]
    subprocess.run(build, cwd=root, check=True)
    server = subprocess.Popen(
        [target / "release/examples/hub_server", model, rows], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with server, tempfile.TemporaryDirectory() as scene:
        endpoint = server.stdout.readline().strip()
        try:
            compare(endpoint, Path(scene))
        finally:
            server.stdin.close()


def compare(endpoint, scene):
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    plain |= {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*", "HF_HOME": str(scene / "home")}

    def launch(*words, **more):
        done = subprocess.run([target / "release/launch", *words], env=plain | more, cwd=scene, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"launch {' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
        return done.stdout

    def client(code, **more):
        done = subprocess.run(
            [sys.executable, "-c", f"import huggingface_hub as hub\n{code}"], env=plain | more, cwd=scene, capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            sys.exit(f"{code}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    print(f"huggingface_hub {client('print(hub.__version__)')} at a hub of the tests")
    source = hashes(model)
    theirs, ours = str(scene / "theirs"), str(scene / "ours")
    folder = client("print(hub.snapshot_download('owner/model'))", HF_HUB_CACHE=theirs)
    check("huggingface_hub downloads the model", hashes(folder) == source)
    prompt = ("--prompt", "a", "--max_new_tokens", "4")
    local = launch("generate", "--model", model, *prompt)
    offline = launch("generate", "--model", "owner/model", *prompt, HF_HUB_CACHE=theirs, HF_HUB_OFFLINE="1")
    check("launch uses what huggingface_hub downloaded, offline", offline == local)
    online = launch("generate", "--model", "owner/model", *prompt, HF_HUB_CACHE=ours)
    check("launch downloads the model", online == local)
    folder = client("print(hub.snapshot_download('owner/model', local_files_only=True))", HF_HUB_CACHE=ours)
    check("huggingface_hub uses what launch downloaded, offline", hashes(folder) == source)
    again = client("print(hub.snapshot_download('owner/model'))", HF_HUB_CACHE=ours)
    check("and, online, the same folder", again == folder)
    warnings = client("print(len(hub.scan_cache_dir().warnings))", HF_HUB_CACHE=ours)
    check("and finds nothing wrong in the cache", warnings == "0")

    upload = f"api = hub.HfApi()\napi.create_repo('me/theirs')\nprint(api.upload_folder(repo_id='me/theirs', folder_path='{model}'))"
    check("huggingface_hub uploads the model", endpoint in client(upload))
    pushed = launch("generate", "--model", "me/theirs", *prompt, HF_HUB_CACHE=ours)
    check("launch uses what huggingface_hub uploaded", pushed == local)
    check("launch sees that it is there already", "/tree/main" in launch("push", model, "--repo", "me/theirs"))
    check("launch pushes the model", "/commit/" in launch("push", model, "--repo", "me/ours"))
    folder = client("print(hub.snapshot_download('me/ours'))", HF_HUB_CACHE=theirs)
    check("huggingface_hub downloads what launch pushed", hashes(folder) == source)

    # data/train-… has all rows but the last ten, data/test-… those.
    theirs, ours = str(scene / "their-data"), str(scene / "our-data")
    counts = {"train": len(rows.read_text().splitlines()) - 10, "test": 10}
    file = "'owner/data', 'data/{}-00000-of-00001.jsonl', repo_type='dataset', local_files_only=True"

    def lines(split, cache):
        path = client(f"print(hub.hf_hub_download({file.format(split)}))", HF_HUB_CACHE=cache)
        return len(Path(path).read_text().splitlines())

    def checked(split, **more):
        words = ("data", "check", "--data", "owner/data", "--dataset_train_split", split, "--json")
        return json.loads(launch(*words, **more))["training"]["rows"]

    client("hub.snapshot_download('owner/data', repo_type='dataset')", HF_HUB_CACHE=theirs)
    for split, count in counts.items():
        check(f"huggingface_hub downloads the rows of {split}", lines(split, theirs) == count)
        there = checked(split, HF_HUB_CACHE=theirs, HF_HUB_OFFLINE="1")
        check(f"launch uses what huggingface_hub downloaded of {split}, offline", there == count)
        check(f"launch downloads the rows of {split}", checked(split, HF_HUB_CACHE=ours) == count)
        check("huggingface_hub uses what launch downloaded, offline", lines(split, ours) == count)
    folder = client("print(hub.snapshot_download('owner/data', repo_type='dataset'))", HF_HUB_CACHE=ours)
    check("and, online, the same folder", (Path(folder) / "data/test-00000-of-00001.jsonl").is_file())
    warnings = client("print(len(hub.scan_cache_dir().warnings))", HF_HUB_CACHE=ours)
    check("and finds nothing wrong in the cache", warnings == "0")


main()
