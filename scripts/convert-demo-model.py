"""Turns the GGUF file of a small Llama model into a Hugging Face folder: convert-demo-model.py MODEL.gguf FOLDER

Knows what SmolLM2's file holds (F32, Q8_0 and Q4_1 tensors, a byte-level BPE vocabulary, a tied head) and refuses
anything else. Weights are written as bfloat16, under the names of transformers' LlamaForCausalLM.
"""

import json
import mmap
import os
import pathlib
import struct
import sys

import numpy

# GGUF's numbers for the types of metadata values, as struct formats; 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# GGML's numbers for tensor types: (name, values in a block, bytes of a block).
TENSOR_TYPES = {0: ("F32", 1, 4), 3: ("Q4_1", 32, 20), 8: ("Q8_0", 32, 34)}
CONTROL_TOKEN = 3

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Gguf:
    """A GGUF file of version 3: `metadata` by key, `tensors` as name -> (rows-first shape, type, position)."""

    def __init__(self, path: pathlib.Path):
        with open(path, "rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.position = 0
        magic, version, tensor_count, key_count = self.take("<4sIQQ")
        if magic != b"GGUF" or version != 3:
            sys.exit(f"error: {path} is not a GGUF file of version 3 (it begins with {magic!r}, version {version})")
        self.metadata = {}
        for _ in range(key_count):
            key = self.string()
            self.metadata[key] = self.value(self.take("<I")[0])
        listed = []
        for _ in range(tensor_count):
            name = self.string()
            dimensions = self.take("<I")[0]
            shape = self.take(f"<{dimensions}Q")[::-1]
            listed.append((name, shape, *self.take("<IQ")))
        alignment = self.metadata.get("general.alignment", 32)
        start = -(-self.position // alignment) * alignment
        self.tensors = {name: (shape, kind, start + offset) for name, shape, kind, offset in listed}

    def take(self, form: str) -> tuple:
        values = struct.unpack_from(form, self.data, self.position)
        self.position += struct.calcsize(form)
        return values

    def string(self) -> str:
        length = self.take("<Q")[0]
        self.position += length
        return self.data[self.position - length : self.position].decode("utf-8")

    def value(self, kind: int):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            item_kind, count = self.take("<IQ")
            if item_kind in SCALARS:
                return list(self.take(f"<{count}{SCALARS[item_kind]}"))
            return [self.value(item_kind) for _ in range(count)]
        return self.take("<" + SCALARS[kind])[0]

    def read(self, name: str) -> numpy.ndarray:
        """The tensor as float32 of its full shape."""
        shape, kind, position = self.tensors[name]
        if kind not in TENSOR_TYPES:
            sys.exit(f"error: tensor {name} is of GGML type {kind}; F32, Q4_1 and Q8_0 are known")
        type_name, values, width = TENSOR_TYPES[kind]
        blocks = int(numpy.prod(shape)) // values
        if type_name == "F32":
            return numpy.frombuffer(self.data, "<f4", blocks, position).reshape(shape)
        raw = numpy.frombuffer(self.data, numpy.uint8, blocks * width, position).reshape(blocks, width)
        scale = raw[:, 0:2].copy().view("<f2").astype(numpy.float32)
        if type_name == "Q8_0":
            return (scale * raw[:, 2:].view(numpy.int8)).astype(numpy.float32).reshape(shape)
        # Q4_1: value = scale * nibble + minimum; the low nibbles are a block's first half.
        minimum = raw[:, 2:4].copy().view("<f2").astype(numpy.float32)
        nibbles = numpy.concatenate([raw[:, 4:] & 15, raw[:, 4:] >> 4], axis=1)
        return (scale * nibbles + minimum).astype(numpy.float32).reshape(shape)


def unpermute(weight: numpy.ndarray, heads: int) -> numpy.ndarray:
    """GGUF interleaves the two halves of each head that RoPE turns together; Hugging Face keeps them one after the other."""
    rows = weight.shape[0]
    return weight.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def bfloat16(values: numpy.ndarray) -> numpy.ndarray:
    """Rounded to nearest, ties to even; as the upper halves of float32."""
    bits = numpy.ascontiguousarray(values, "<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def huggingface_name(name: str) -> str:
    whole = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in whole:
        return whole[name]
    parts = name.split(".")
    if len(parts) != 4 or parts[0] != "blk" or parts[2] not in LAYER_NAMES or parts[3] != "weight":
        sys.exit(f"error: tensor {name} has no place in a Llama model with a tied head")
    return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.weight"


def write_weights(gguf: Gguf, path: pathlib.Path, heads: int, key_value_heads: int) -> int:
    """Writes model.safetensors, tensors in the order of the header; returns the number of parameters."""
    order = sorted(gguf.tensors, key=huggingface_name)
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in order:
        shape = list(gguf.tensors[name][0])
        begin, end = end, end + 2 * int(numpy.prod(shape))
        header[huggingface_name(name)] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            weight = gguf.read(name)
            if name.endswith("attn_q.weight"):
                weight = unpermute(weight, heads)
            elif name.endswith("attn_k.weight"):
                weight = unpermute(weight, key_value_heads)
            file.write(bfloat16(weight).tobytes())
        file.flush()
        os.fsync(file.fileno())
    return end // 2


def tokenizer(metadata: dict) -> dict:
    """tokenizer.json: byte-level BPE, each digit a piece of its own."""
    if (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        sys.exit("error: the file's tokenizer is not SmolLM's byte-level BPE")
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": token} | flags
            for number, (token, kind) in enumerate(zip(tokens, kinds))
            if kind == CONTROL_TOKEN
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        },
    }


def main() -> None:
    source, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    gguf = Gguf(source)
    metadata = gguf.metadata
    if metadata["general.architecture"] != "llama" or "output.weight" in gguf.tensors:
        sys.exit(f"error: {source} is not a Llama model with a tied head")
    heads, key_value_heads = metadata["llama.attention.head_count"], metadata["llama.attention.head_count_kv"]
    tokens = metadata["tokenizer.ggml.tokens"]
    special = {name: metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "unknown", "padding")}
    ids = {"bos_token_id": special["bos"], "eos_token_id": special["eos"], "pad_token_id": special["padding"]}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        **ids,
        "head_dim": metadata["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "hidden_size": metadata["llama.embedding_length"],
        "initializer_range": 0.02,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "max_position_embeddings": metadata["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": metadata["llama.block_count"],
        "num_key_value_heads": key_value_heads,
        # The file keeps it in float32: 9.99999975e-06 is 1e-05.
        "rms_norm_eps": float(f"{metadata['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_scaling": None,
        "rope_theta": metadata["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": metadata["llama.vocab_size"],
    }
    tokenizer_config = {
        "add_prefix_space": False,
        "bos_token": tokens[special["bos"]],
        "chat_template": metadata["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens[special["eos"]],
        "model_max_length": metadata["llama.context_length"],
        "pad_token": tokens[special["padding"]],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": tokens[special["unknown"]],
    }

    folder.mkdir(parents=True)
    parameters = write_weights(gguf, folder / "model.safetensors", heads, key_value_heads)
    for name, content in {
        "config.json": config,
        "generation_config.json": ids,
        "tokenizer.json": tokenizer(metadata),
        "tokenizer_config.json": tokenizer_config,
    }.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    print(f"      {parameters:,} parameters, {len(tokens):,} tokens", file=sys.stderr)


if __name__ == "__main__":
    main()
