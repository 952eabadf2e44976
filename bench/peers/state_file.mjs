// Deep caches without hours of prefill: takes a sequence state that llama.cpp saved after a short
// prompt and repeats its rows until the state is as deep as wanted.
//
// The values are real keys and values of the model; only their order repeats. The file is as large
// as a genuine one, and llama.cpp checks types, row sizes and counts when it loads it.
//
// Layout (llama.cpp's sequence state, version 3, little endian; sizes checked here to the byte):
//   u32 magic, u32 version, u32 tokens, i32 token[tokens]
//   u32 streams (1), u32 cells, per cell: i32 position, u32 sequences (1), i32 sequence
//   u32 v_transposed, u32 layers
//   per layer, keys:   i32 type, u64 bytes per row, cells rows
//   per layer, values: the same; or, where transposed,
//                      i32 type, u32 bytes per value, u32 rows, rows x (cells values)

import fs from "node:fs";

const MAGIC = 0x67677371;
const VERSION = 3;
const CELL_BYTES = 12;
const FLUSH_BYTES = 4 << 20;

function fail(what, value, expected) {
    throw new Error(`[state_file] ${what}: ${value}, expected ${expected}; this llama.cpp saves states ` +
        "in another layout: use --fill prefill");
}

class Reader {
    constructor(buffer) { this.buffer = buffer; this.at = 0; }
    u32() { this.at += 4; return this.buffer.readUInt32LE(this.at - 4); }
    u64() { this.at += 8; return Number(this.buffer.readBigUInt64LE(this.at - 8)); }
    bytes(n) {
        if (this.at + n > this.buffer.length)
            fail("size", this.buffer.length, `at least ${this.at + n} bytes`);
        this.at += n;
        return this.buffer.subarray(this.at - n, this.at);
    }
    expect(what, value, expected) {
        if (value !== expected)
            fail(what, value, expected);
    }
}

/** What a saved state holds: {tokens, transposed, layers: {keys, values}[]}. */
export function parseState(buffer) {
    const r = new Reader(buffer);
    r.expect("magic", r.u32(), MAGIC);
    r.expect("version", r.u32(), VERSION);
    const numTokens = r.u32();
    const tokens = r.bytes(4 * numTokens);
    r.expect("streams", r.u32(), 1);
    r.expect("cells", r.u32(), numTokens);
    for (let i = 0; i < numTokens; i++) {
        r.expect("position", r.u32(), i);
        r.expect("sequences of a cell", r.u32(), 1);
        r.expect("sequence", r.u32(), 0);
    }
    const transposed = r.u32();
    if (transposed > 1)
        fail("transposed values", transposed, "0 or 1");
    const numLayers = r.u32();
    const readRows = () => {
        const type = r.u32();
        const rowBytes = r.u64();
        return {type, rowBytes, data: r.bytes(numTokens * rowBytes)};
    };
    const readColumns = () => {
        const type = r.u32();
        const valueBytes = r.u32();
        const rows = r.u32();
        return {type, valueBytes, rows, data: r.bytes(rows * numTokens * valueBytes)};
    };
    const keys = Array.from({length: numLayers}, readRows);
    const values = Array.from({length: numLayers}, transposed ? readColumns : readRows);
    r.expect("size", buffer.length, r.at);
    return {numTokens, tokens, transposed, keys, values};
}

class Writer {
    pending = [];
    pendingBytes = 0;
    constructor(fd) { this.fd = fd; }
    u32(x) { const b = Buffer.alloc(4); b.writeUInt32LE(x); this.push(b); }
    u64(x) { const b = Buffer.alloc(8); b.writeBigUInt64LE(BigInt(x)); this.push(b); }
    push(buffer) {
        this.pending.push(buffer);
        this.pendingBytes += buffer.length;
        if (this.pendingBytes >= FLUSH_BYTES)
            this.flush();
    }
    // `count` units of `unitBytes`, from `data` over and over.
    repeat(data, unitBytes, count) {
        for (let left = count * unitBytes; left > 0; left -= data.length)
            this.push(data.subarray(0, Math.min(left, data.length)));
    }
    flush() {
        const all = Buffer.concat(this.pending);
        for (let done = 0; done < all.length;)
            done += fs.writeSync(this.fd, all, done, all.length - done);
        this.pending = [];
        this.pendingBytes = 0;
    }
}

/** Writes to `file` the state `base` (from parseState), repeated until it has `depth` tokens. */
export function writeDeepState(file, base, depth) {
    const fd = fs.openSync(file, "w");
    try {
        const w = new Writer(fd);
        w.u32(MAGIC);
        w.u32(VERSION);
        w.u32(depth);
        w.repeat(base.tokens, 4, depth);
        w.u32(1);
        w.u32(depth);
        const cells = Buffer.alloc(depth * CELL_BYTES);
        for (let i = 0; i < depth; i++) {
            cells.writeUInt32LE(i, i * CELL_BYTES);
            cells.writeUInt32LE(1, i * CELL_BYTES + 4);
        }
        w.push(cells);
        w.u32(base.transposed);
        w.u32(base.keys.length);
        const writeRows = (rows) => {
            w.u32(rows.type);
            w.u64(rows.rowBytes);
            w.repeat(rows.data, rows.rowBytes, depth);
        };
        base.keys.forEach(writeRows);
        for (const v of base.values) {
            if (!base.transposed) {
                writeRows(v);
                continue;
            }
            w.u32(v.type);
            w.u32(v.valueBytes);
            w.u32(v.rows);
            const columnBytes = base.numTokens * v.valueBytes;
            for (let row = 0; row < v.rows; row++)
                w.repeat(v.data.subarray(row * columnBytes, (row + 1) * columnBytes), v.valueBytes, depth);
        }
        w.flush();
    } finally {
        fs.closeSync(fd);
    }
}
