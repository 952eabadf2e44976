// Writes a GGUF file of the Qwen2-7B shape, cut to a few blocks, with synthetic F16 weights.
//
// Layout (GGUF version 3, little endian): header, key-value pairs, tensor descriptions, then the
// tensors, each at a multiple of 32 bytes. The file is written in pieces of a few MiB, so memory
// stays small. The same arguments give the same bytes.

import fs from "node:fs";
import path from "node:path";
import {parseArgs} from "node:util";

const ALIGNMENT = 32;
const CONTEXT_TOKENS = 131072;
const TYPE_F32 = 0; // ggml's tensor types
const TYPE_F16 = 1;
const KEY_U32 = 4; // GGUF's types of values
const KEY_I32 = 5;
const KEY_F32 = 6;
const KEY_STRING = 8;
const KEY_ARRAY = 9;

// The shape of Qwen2-7B; the vocabulary is cut, so that the output layer costs next to nothing.
export const SHAPE = {
    embedding: 3584, heads: 28, kvHeads: 4, headDim: 128, feedForward: 18944, vocabulary: 1024,
    ropeBase: 1e6, rmsEpsilon: 1e-6
};

/** Half-precision bits of a float32; |x| < 65504, to nearest, ties to even. */
export function halfBits(x) {
    const view = new DataView(new ArrayBuffer(4));
    view.setFloat32(0, x);
    const bits = view.getUint32(0);
    const sign = (bits >>> 16) & 0x8000;
    const magnitude = Math.abs(view.getFloat32(0));
    if (magnitude < 2 ** -14) { // Subnormal: a multiple of 2^-24.
        const scaled = magnitude * 2 ** 24;
        const floor = Math.floor(scaled);
        const rest = scaled - floor;
        return sign | (floor + (rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? 1 : 0));
    }
    const rounded = (bits & 0x7fffffff) + 0xfff + ((bits >>> 13) & 1);
    return sign | ((rounded - (112 << 23)) >>> 13);
}

/** xorshift32: fast and the same everywhere. */
function randomBits(seed) {
    let state = seed >>> 0;
    return () => {
        state ^= state << 13;
        state ^= state >>> 17;
        state ^= state << 5;
        return state >>> 0;
    };
}

/**
 * Uniform weights of variance 1 / embedding: activations stay finite from block to block, and no
 * weight is zero, subnormal-heavy or special, so arithmetic runs at its usual speed.
 */
function weightBlock(numValues) {
    const LEVELS = 4096;
    const limit = Math.sqrt(3 / SHAPE.embedding);
    const levels = new Uint16Array(LEVELS);
    for (let i = 0; i < LEVELS; i++)
        levels[i] = halfBits(limit * ((2 * i + 1) / LEVELS - 1));
    const next = randomBits(0x9e3779b9);
    const values = new Uint16Array(numValues);
    for (let i = 0; i < numValues; i++)
        values[i] = levels[next() >>> 20];
    return Buffer.from(values.buffer);
}

class Bytes {
    parts = [];
    u32(x) { const b = Buffer.alloc(4); b.writeUInt32LE(x); this.parts.push(b); return this; }
    u64(x) { const b = Buffer.alloc(8); b.writeBigUInt64LE(BigInt(x)); this.parts.push(b); return this; }
    f32(x) { const b = Buffer.alloc(4); b.writeFloatLE(x); this.parts.push(b); return this; }
    string(s) { const b = Buffer.from(s, "utf8"); this.u64(b.length); this.parts.push(b); return this; }
    keyU32(key, x) { return this.string(key).u32(KEY_U32).u32(x); }
    keyF32(key, x) { return this.string(key).u32(KEY_F32).f32(x); }
    keyString(key, s) { return this.string(key).u32(KEY_STRING).string(s); }
    keyStrings(key, list) {
        this.string(key).u32(KEY_ARRAY).u32(KEY_STRING).u64(list.length);
        list.forEach((s) => this.string(s));
        return this;
    }
    keyInts(key, list) {
        this.string(key).u32(KEY_ARRAY).u32(KEY_I32).u64(list.length);
        list.forEach((x) => this.u32(x));
        return this;
    }
    join() { return Buffer.concat(this.parts); }
}

/** Byte-level BPE: 256 bytes, one end token, and as many merges of two letters as still fit. */
export function byteVocabulary(size) {
    const symbols = [];
    let shifted = 256; // Bytes that do not print are written as the letters from U+0100 on.
    for (let byte = 0; byte < 256; byte++) {
        const prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        symbols.push(String.fromCodePoint(prints ? byte : shifted++));
    }
    const letters = symbols.slice(65, 91).concat(symbols.slice(97, 123));
    const tokens = symbols.slice();
    const merges = [];
    for (const first of letters) {
        for (const second of letters) {
            if (tokens.length === size - 1)
                break;
            tokens.push(first + second);
            merges.push(`${first} ${second}`);
        }
    }
    tokens.push("<|endoftext|>");
    const types = tokens.map((_, i) => (i === size - 1 ? 3 : 1)); // 3: control, 1: ordinary
    return {tokens, merges, types};
}

/** [name, dimensions (fastest first), type] of every tensor, in the order of the file. */
export function tensorList(layers) {
    const {embedding: e, heads, kvHeads, headDim, feedForward: f, vocabulary} = SHAPE;
    const q = heads * headDim;
    const kv = kvHeads * headDim;
    const list = [["token_embd.weight", [e, vocabulary], TYPE_F16]];
    for (let layer = 0; layer < layers; layer++) {
        const block = [
            ["attn_norm.weight", [e], TYPE_F32],
            ["attn_q.weight", [e, q], TYPE_F16], ["attn_q.bias", [q], TYPE_F32],
            ["attn_k.weight", [e, kv], TYPE_F16], ["attn_k.bias", [kv], TYPE_F32],
            ["attn_v.weight", [e, kv], TYPE_F16], ["attn_v.bias", [kv], TYPE_F32],
            ["attn_output.weight", [q, e], TYPE_F16],
            ["ffn_norm.weight", [e], TYPE_F32],
            ["ffn_gate.weight", [e, f], TYPE_F16],
            ["ffn_up.weight", [e, f], TYPE_F16],
            ["ffn_down.weight", [f, e], TYPE_F16]
        ];
        block.forEach(([name, dims, type]) => list.push([`blk.${layer}.${name}`, dims, type]));
    }
    list.push(["output_norm.weight", [e], TYPE_F32], ["output.weight", [e, vocabulary], TYPE_F16]);
    return list;
}

const numValues = (dims) => dims.reduce((a, b) => a * b, 1);
const numBytes = (dims, type) => numValues(dims) * (type === TYPE_F16 ? 2 : 4);
const aligned = (x) => Math.ceil(x / ALIGNMENT) * ALIGNMENT;

function header(layers, tensors) {
    const keys = new Bytes();
    const {tokens, merges, types} = byteVocabulary(SHAPE.vocabulary);
    keys.keyString("general.architecture", "qwen2")
        .keyString("general.name", `Qwen2-7B shape, ${layers} blocks, synthetic weights`)
        .keyU32("general.file_type", 1) // mostly F16
        .keyU32("general.alignment", ALIGNMENT)
        .keyU32("qwen2.block_count", layers)
        .keyU32("qwen2.context_length", CONTEXT_TOKENS)
        .keyU32("qwen2.embedding_length", SHAPE.embedding)
        .keyU32("qwen2.feed_forward_length", SHAPE.feedForward)
        .keyU32("qwen2.attention.head_count", SHAPE.heads)
        .keyU32("qwen2.attention.head_count_kv", SHAPE.kvHeads)
        .keyF32("qwen2.attention.layer_norm_rms_epsilon", SHAPE.rmsEpsilon)
        .keyF32("qwen2.rope.freq_base", SHAPE.ropeBase)
        .keyString("tokenizer.ggml.model", "gpt2")
        .keyString("tokenizer.ggml.pre", "qwen2")
        .keyStrings("tokenizer.ggml.tokens", tokens)
        .keyInts("tokenizer.ggml.token_type", types)
        .keyStrings("tokenizer.ggml.merges", merges)
        .keyU32("tokenizer.ggml.eos_token_id", SHAPE.vocabulary - 1)
        .keyU32("tokenizer.ggml.padding_token_id", SHAPE.vocabulary - 1);
    const NUM_KEYS = 19;
    const descriptions = new Bytes();
    let offset = 0;
    for (const [name, dims, type] of tensors) {
        descriptions.string(name).u32(dims.length);
        dims.forEach((d) => descriptions.u64(d));
        descriptions.u32(type).u64(offset);
        offset += aligned(numBytes(dims, type));
    }
    const start = new Bytes();
    start.parts.push(Buffer.from("GGUF"));
    start.u32(3).u64(tensors.length).u64(NUM_KEYS);
    return Buffer.concat([start.join(), keys.join(), descriptions.join()]);
}

function writeAll(fd, buffer) {
    for (let done = 0; done < buffer.length;)
        done += fs.writeSync(fd, buffer, done, buffer.length - done);
}

function checkSpace(folder, bytes) {
    const {bavail, bsize} = fs.statfsSync(folder);
    if (bavail * bsize < bytes + 2 ** 30)
        throw new Error(`[write_gguf] ${folder}: ${Math.ceil(bytes / 2 ** 20)} MiB and 1 GiB of reserve are needed, ` +
            `${Math.floor(bavail * bsize / 2 ** 20)} MiB are free`);
}

/** Writes `file` (under a temporary name until it is complete). Returns its size in bytes. */
export function writeGguf(file, layers) {
    const tensors = tensorList(layers);
    const head = header(layers, tensors);
    const size = aligned(head.length) +
        tensors.reduce((sum, [, dims, type]) => sum + aligned(numBytes(dims, type)), 0);
    fs.mkdirSync(path.dirname(file), {recursive: true});
    checkSpace(path.dirname(file), size);
    // An odd number of values: consecutive rows of a tensor differ wherever the block starts anew.
    const block = weightBlock(2 ** 22 + 3);
    const temporary = `${file}.part`;
    const fd = fs.openSync(temporary, "w");
    try {
        writeAll(fd, head);
        writeAll(fd, Buffer.alloc(aligned(head.length) - head.length));
        let blockAt = 0;
        for (const [name, dims, type] of tensors) {
            const bytes = numBytes(dims, type);
            if (type === TYPE_F32) { // Norms are one, biases zero.
                const value = name.endsWith(".bias") ? 0 : 1;
                writeAll(fd, Buffer.from(new Float32Array(numValues(dims)).fill(value).buffer));
            } else {
                for (let left = bytes; left > 0;) {
                    const piece = Math.min(left, block.length - blockAt);
                    writeAll(fd, block.subarray(blockAt, blockAt + piece));
                    blockAt = (blockAt + piece) % block.length;
                    left -= piece;
                }
            }
            writeAll(fd, Buffer.alloc(aligned(bytes) - bytes));
        }
    } finally {
        fs.closeSync(fd);
    }
    fs.renameSync(temporary, file);
    return size;
}

if (process.argv[1] && import.meta.filename === fs.realpathSync(process.argv[1])) {
    const {values} = parseArgs({options: {out: {type: "string"}, layers: {type: "string", default: "2"}}});
    const layers = Number(values.layers);
    if (!values.out || !Number.isInteger(layers) || layers < 1) {
        console.error("usage: node write_gguf.mjs --out FILE [--layers N]    (N >= 1, 2 unless told)");
        process.exit(2);
    }
    if (fs.existsSync(values.out)) {
        console.error(`${values.out} is there already`);
    } else {
        try {
            console.error(`${values.out}: ${(writeGguf(values.out, layers) / 1e6).toFixed(0)} MB`);
        } catch (error) {
            console.error(error.message);
            process.exit(1);
        }
    }
}
