"""A Hugging Face folder of the Qwen2 form in BF16 as one GGUF file, for llama.cpp. Called with MODEL FILE [bf16|f16].

Standard library only. Matrices keep their bytes (bf16) or are converted (f16); norms and biases become F32, as llama.cpp wants them.
The vocabulary is the folder's tokenizer.json, filled up to the rows of the embedding with unused tokens.
"""
import array
import json
import pathlib
import struct
import sys

ALIGNMENT = 32
F32, F16, BF16 = 0, 1, 30  # ggml's tensor types
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's token types
FILE_TYPES = {"bf16": 32, "f16": 1}
BLOCK_NAMES = {
    "input_layernorm.weight": "attn_norm.weight", "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight", "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.weight": "attn_k.weight", "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.weight": "attn_v.weight", "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.weight": "attn_output.weight", "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight", "mlp.down_proj.weight": "ffn_down.weight",
}
NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
         "lm_head.weight": "output.weight"}


def read_tensors(folder):
    """[name, dimensions, bytes] of all tensors, which must be BF16."""
    for path in sorted(folder.glob("*.safetensors")):
        if not path.name.startswith("model"):
            continue  # plan.safetensors, say
        data = path.read_bytes()
        size = struct.unpack_from("<Q", data)[0]
        for name, entry in json.loads(data[8:8 + size]).items():
            if name == "__metadata__":
                continue
            if entry["dtype"] != "BF16":
                sys.exit(f"write_gguf.py: {path}, {name}: {entry['dtype']}, expected BF16")
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            yield name, entry["shape"], data[begin:end]


def widened(bf16):
    """The floats of BF16 bytes."""
    wide = bytearray(2 * len(bf16))
    wide[2::4], wide[3::4] = bf16[0::2], bf16[1::2]
    floats = array.array("f", bytes(wide))
    if sys.byteorder == "big":
        floats.byteswap()
    return floats


def converted(dims, bf16, kind):
    """ggml's type and the bytes of a tensor."""
    if len(dims) == 1:
        return F32, struct.pack(f"<{dims[0]}f", *widened(bf16))
    if kind == "bf16":
        return BF16, bf16
    return F16, struct.pack(f"<{len(bf16) // 2}e", *widened(bf16))


def gguf_name(name):
    if name in NAMES:
        return NAMES[name]
    _, _, block, rest = name.split(".", 3)
    return f"blk.{block}.{BLOCK_NAMES[rest]}"


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key, value):
    """A key and its value: a float, a string, a bool, a whole number (u32), or a list of strings or whole numbers (i32)."""
    if isinstance(value, list):
        body = b"".join(string(x) if isinstance(x, str) else struct.pack("<i", x) for x in value)
        return string(key) + struct.pack("<IIQ", 9, 8 if isinstance(value[0], str) else 5, len(value)) + body
    if isinstance(value, str):
        return string(key) + struct.pack("<I", 8) + string(value)
    if isinstance(value, bool):
        return string(key) + struct.pack("<I?", 7, value)
    if isinstance(value, float):
        return string(key) + struct.pack("<If", 6, value)
    return string(key) + struct.pack("<II", 4, value)


def vocabulary(folder, size):
    """Tokens, their types, and merges."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokens, types = [f"[UNUSED{i}]" for i in range(size)], [UNUSED] * size
    for token, i in tokenizer["model"]["vocab"].items():
        tokens[i], types[i] = token, NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], CONTROL if added["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    return tokens, types, merges


def pairs(folder, kind):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "qwen2" or config.get("rope_scaling") or config["use_sliding_window"]:
        sys.exit(f"write_gguf.py: {folder}/config.json: expected model_type qwen2 without rope_scaling and sliding window")
    tokens, types, merges = vocabulary(folder, config["vocab_size"])
    template = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    return [
        pair("general.architecture", "qwen2"), pair("general.name", folder.name), pair("general.file_type", FILE_TYPES[kind]),
        pair("general.alignment", ALIGNMENT),
        pair("qwen2.block_count", config["num_hidden_layers"]), pair("qwen2.context_length", config["max_position_embeddings"]),
        pair("qwen2.embedding_length", config["hidden_size"]), pair("qwen2.feed_forward_length", config["intermediate_size"]),
        pair("qwen2.attention.head_count", config["num_attention_heads"]),
        pair("qwen2.attention.head_count_kv", config["num_key_value_heads"]),
        pair("qwen2.attention.key_length", config["head_dim"]), pair("qwen2.attention.value_length", config["head_dim"]),
        pair("qwen2.attention.layer_norm_rms_epsilon", config["rms_norm_eps"]),
        pair("qwen2.rope.freq_base", float(config["rope_theta"])),
        pair("tokenizer.ggml.model", "gpt2"), pair("tokenizer.ggml.pre", "qwen2"), pair("tokenizer.ggml.tokens", tokens),
        pair("tokenizer.ggml.token_type", types), pair("tokenizer.ggml.merges", merges),
        pair("tokenizer.ggml.eos_token_id", config["eos_token_id"]), pair("tokenizer.ggml.padding_token_id", config["pad_token_id"]),
        pair("tokenizer.ggml.add_bos_token", False), pair("tokenizer.chat_template", template),
    ]


def aligned(size):
    return -(-size // ALIGNMENT) * ALIGNMENT


def write(folder, file, kind="bf16"):
    """Writes `file`; it is complete or not there."""
    folder, file = pathlib.Path(folder), pathlib.Path(file)
    described, tensors, offset = [], [], 0
    for name, dims, data in read_tensors(folder):
        of_type, data = converted(dims, data, kind)
        described.append(string(gguf_name(name)) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *reversed(dims), of_type, offset))
        tensors.append(data)
        offset += aligned(len(data))
    keys = pairs(folder, kind)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + b"".join(described)
    part = file.with_name(file.name + ".part")
    with open(part, "wb") as out:
        for data in [head, *tensors]:
            out.write(data + bytes(aligned(len(data)) - len(data)))
    part.rename(file)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or sys.argv[3:] not in ([], ["bf16"], ["f16"]):
        sys.exit("usage: write_gguf.py MODEL FILE [bf16|f16]")
    write(*sys.argv[1:])
