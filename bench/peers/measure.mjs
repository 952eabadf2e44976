// One round of measurements of llama.cpp, through node-llama-cpp, on the CPU. Prints one line of
// JSON per measurement to standard output; anything for people goes to standard error.
//
// Times are those of the engine's decode call (batch handed over until logits are there), without
// the JavaScript around it.

import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import {pathToFileURL} from "node:url";
import {parseArgs} from "node:util";
import {spreadOf} from "./statistics.mjs";
import {parseState, writeDeepState} from "./state_file.mjs";

const BASE_TOKENS = 512; // The prompt that a deep cache is made from, and the batch of a prefill.
const VOCABULARY = 1024;
// Names for --kv. Without flash attention llama.cpp keeps V transposed, and accepts no quantised V.
const KV_TYPES = {
    "f16": {type: "F16", flash: true},
    "f16-noflash": {type: "F16", flash: false},
    "q8_0": {type: "Q8_0", flash: true},
    "q4_0": {type: "Q4_0", flash: true}
};

const USAGE = `usage: node measure.mjs --modules DIR --model FILE.gguf --work DIR
  --kv LIST        ${Object.keys(KV_TYPES).join(",")}
  --depths LIST    tokens stored before decoding (0,4096,16384,32768)
  --tokens N       decodes timed at each depth (30)
  --prefills N     prefills of ${BASE_TOKENS} tokens timed, f16 cache (5; 0: none)
  --threads N      (2)
  --fill HOW       tile: repeat a short prompt's cache; prefill: evaluate every token (tile)
  --mmap           map the weights instead of reading them into memory`;

function usage(message) {
    console.error(`${message}\n${USAGE}`);
    process.exit(2);
}

function parseCount(name, text, least) {
    const value = Number(text);
    if (!Number.isInteger(value) || value < least)
        usage(`--${name}: ${text}, expected a whole number from ${least}`);
    return value;
}

function parseOptions() {
    let values;
    try {
        ({values} = parseArgs({options: {
            modules: {type: "string"}, model: {type: "string"}, work: {type: "string"},
            kv: {type: "string", default: "f16,f16-noflash,q8_0,q4_0"},
            depths: {type: "string", default: "0,4096,16384,32768"},
            tokens: {type: "string", default: "30"}, prefills: {type: "string", default: "5"},
            threads: {type: "string", default: "2"}, fill: {type: "string", default: "tile"},
            mmap: {type: "boolean", default: false}
        }}));
    } catch (error) {
        usage(error.message);
    }
    for (const name of ["modules", "model", "work"]) {
        if (!values[name])
            usage(`--${name} is missing`);
    }
    const kv = values.kv.split(",");
    kv.forEach((name) => KV_TYPES[name] ?? usage(`--kv: ${name}, expected ${Object.keys(KV_TYPES).join(", ")}`));
    if (!["tile", "prefill"].includes(values.fill))
        usage(`--fill: ${values.fill}, expected tile or prefill`);
    return {
        ...values, kv, depths: values.depths.split(",").map((d) => parseCount("depths", d, 0)),
        tokens: parseCount("tokens", values.tokens, 1), prefills: parseCount("prefills", values.prefills, 0),
        threads: parseCount("threads", values.threads, 1)
    };
}

function report(fields) {
    const {what, kv, depth, logits, ms} = fields;
    if (ms) {
        const where = logits ? `logits of ${logits}` : `depth ${depth}`;
        console.error(`llama.cpp ${what}, ${kv}, ${where}: ${ms.median.toFixed(2)} ms`);
    }
    console.log(JSON.stringify({engine: "llama.cpp", ...fields, load_average: os.loadavg()[0]}));
}

const promptTokens = (n) => Array.from({length: n}, (_, i) => (i * 37 + 11) % (VOCABULARY - 1));

// Milliseconds of every call of the engine, as they come; the caller empties the list.
function timeEngine(context) {
    const times = [];
    const native = context._ctx;
    if (typeof native?.decodeBatch !== "function")
        throw new Error("[measure] this version of node-llama-cpp has no LlamaContext._ctx.decodeBatch");
    const timed = async () => {
        const start = performance.now();
        await native.decodeBatch();
        times.push(performance.now() - start);
    };
    context._ctx = new Proxy(native, {get(target, name) {
        const member = target[name];
        if (name === "decodeBatch")
            return timed;
        return typeof member === "function" ? member.bind(target) : member;
    }});
    return times;
}

async function createContext(model, options, kvName, contextSize) {
    const {type, flash} = KV_TYPES[kvName];
    return await model.createContext({
        contextSize, batchSize: BASE_TOKENS, sequences: 1, flashAttention: flash,
        threads: {ideal: options.threads, min: options.threads},
        experimentalKvCacheKeyType: type, experimentalKvCacheValueType: type,
        ignoreMemorySafetyChecks: true
    });
}

// A token whose logits are wanted: without them llama.cpp leaves out most of the last block.
const withLogits = (token) => [token, {generateNext: {token: true, options: {temperature: 0}}}];

async function fillTo(sequence, depth, options, base) {
    await sequence.clearHistory();
    if (depth === 0)
        return;
    if (options.fill === "prefill") {
        await sequence.evaluateWithoutGeneratingNewTokens(promptTokens(depth));
    } else {
        const file = path.join(options.work, `state-${process.pid}.bin`);
        try {
            writeDeepState(file, base, depth);
            await sequence.loadStateFromFile(file, {acceptRisk: true});
        } finally {
            fs.rmSync(file, {force: true});
        }
    }
    if (sequence.nextTokenIndex !== depth)
        throw new Error(`[measure] depth: ${sequence.nextTokenIndex} tokens stored, expected ${depth}`);
}

async function savedBase(sequence, options) {
    const file = path.join(options.work, `base-${process.pid}.bin`);
    try {
        await sequence.evaluateWithoutGeneratingNewTokens(promptTokens(BASE_TOKENS));
        await sequence.saveStateToFile(file);
        return parseState(fs.readFileSync(file));
    } finally {
        fs.rmSync(file, {force: true});
    }
}

async function measureDecode(model, options, kvName) {
    const WARM_UP = 3;
    const deepest = Math.max(...options.depths);
    const context = await createContext(model, options, kvName, deepest + BASE_TOKENS + options.tokens + WARM_UP);
    const times = timeEngine(context);
    const sequence = context.getSequence();
    const needsBase = options.fill === "tile" && deepest > 0;
    const base = needsBase ? await savedBase(sequence, options) : null;
    for (const depth of options.depths) {
        await fillTo(sequence, depth, options, base);
        for (let i = 0; i < WARM_UP + options.tokens; i++) {
            if (i === WARM_UP)
                times.length = 0;
            await sequence.controlledEvaluate([withLogits(i % (VOCABULARY - 1))]);
        }
        if (times.length !== options.tokens)
            throw new Error(`[measure] decode calls: ${times.length}, expected ${options.tokens}`);
        const spread = spreadOf(times);
        report({
            what: "decode", kv: kvName, flash_attention: KV_TYPES[kvName].flash, depth, ms: spread,
            tokens_per_s: 1000 / spread.median, threads: context.currentThreads
        });
    }
    await context.dispose();
}

// Twice: with logits of the last token only, as an engine prefills (llama.cpp then runs the last
// block's output projection and feed-forward layer for that one token), and with logits of all.
async function measurePrefill(model, options) {
    const context = await createContext(model, options, "f16", 2 * BASE_TOKENS);
    const times = timeEngine(context);
    const sequence = context.getSequence();
    const tokens = promptTokens(BASE_TOKENS);
    const inputs = {
        last: tokens.map((token, i) => (i === BASE_TOKENS - 1 ? withLogits(token) : token)),
        all: tokens.map(withLogits)
    };
    const samples = {last: [], all: []};
    for (let run = -1; run < options.prefills; run++) { // Run -1 warms up.
        for (const logits of ["last", "all"]) {
            await sequence.clearHistory();
            times.length = 0;
            await sequence.controlledEvaluate(inputs[logits]);
            if (times.length !== 1)
                throw new Error(`[measure] prefill calls: ${times.length}, expected 1`);
            if (run >= 0)
                samples[logits].push(times[0]);
        }
    }
    for (const logits of ["last", "all"]) {
        const spread = spreadOf(samples[logits]);
        report({
            what: "prefill", kv: "f16", logits, tokens: BASE_TOKENS, ms: spread,
            tokens_per_s: 1000 * BASE_TOKENS / spread.median, threads: context.currentThreads
        });
    }
    await context.dispose();
}

async function main() {
    const options = parseOptions();
    fs.mkdirSync(options.work, {recursive: true});
    const entry = path.resolve(options.modules, "node-llama-cpp/dist/index.js");
    const {getLlama} = await import(pathToFileURL(entry).href);
    const llama = await getLlama({
        gpu: false, build: "never", skipDownload: true, maxThreads: options.threads, logLevel: "error"
    });
    const model = await llama.loadModel({modelPath: options.model, gpuLayers: 0, useMmap: options.mmap});
    report({
        what: "facts", llama_cpp: llama.llamaCppRelease.release, cpu: os.cpus()[0].model,
        features: llama.systemInfo, threads: options.threads, mmap: options.mmap, fill: options.fill
    });
    for (const kvName of options.kv)
        await measureDecode(model, options, kvName);
    if (options.prefills > 0)
        await measurePrefill(model, options);
    await model.dispose();
    await llama.dispose();
}

try {
    await main();
} catch (error) {
    console.error(error.message);
    process.exit(1);
}
