// Measures llama.cpp, and pmkvq where a program is given, in alternating rounds; prints a table of
// medians over the rounds, and ratios. Every line measured is kept in OUT/results.jsonl.

import {spawn} from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import {parseArgs} from "node:util";
import {attentionRatios, decodeRatios, prefillRatios, decodeTable, prefillTable} from "./tables.mjs";

const here = import.meta.dirname;
const LAYERS = 2;
const PREFILL_TOKENS = 512;

const OPTIONS = {
    out: {type: "string", default: path.resolve(here, "../../build/peers")},
    pmkvq: {type: "string"},
    "pmkvq-args": {type: "string", default: ""},
    bits: {type: "string", default: "16,8,4,2"},
    kv: {type: "string", default: "f16,f16-noflash,q8_0,q4_0"},
    depths: {type: "string", default: "0,4096,16384,32768"},
    rounds: {type: "string", default: "3"},
    tokens: {type: "string", default: "30"},
    prefills: {type: "string", default: "5"},
    threads: {type: "string", default: "2"},
    mmap: {type: "boolean", default: false},
    fill: {type: "string", default: "tile"},
    quick: {type: "boolean", default: false},
    help: {type: "boolean", short: "h", default: false}
};

const USAGE = `usage: run.sh [options]
  --out DIR          packages, model (950 MB) and results (build/peers)
  --pmkvq FILE       the program to alternate with, built for release; none: llama.cpp alone
  --pmkvq-args=TEXT  more options for its \`bench decode\`, such as "--pmkvq-args=--attention fast"
  --bits LIST        its widths (${OPTIONS.bits.default})
  --kv LIST          llama.cpp's cache types (${OPTIONS.kv.default})
  --depths LIST      tokens stored before decoding (${OPTIONS.depths.default})
  --rounds N         rounds of both engines, the order changing each time (${OPTIONS.rounds.default})
  --tokens N         decodes timed per round, type and depth (${OPTIONS.tokens.default})
  --prefills N       prefills of ${PREFILL_TOKENS} tokens timed per round (${OPTIONS.prefills.default}; 0: none)
  --threads N        (${OPTIONS.threads.default})
  --fill HOW         how llama.cpp's cache gets deep: tile, prefill (tile)
  --mmap             llama.cpp maps the weights instead of reading them into memory
  --quick            one round, depths 0 and 4096, 5 decodes, 1 prefill: to see that all works`;

function usage(message) {
    console.error(`${message}\n${USAGE}`);
    process.exit(2);
}

function parseOptions() {
    let values;
    try {
        ({values} = parseArgs({options: OPTIONS}));
    } catch (error) {
        usage(error.message);
    }
    if (values.help) {
        console.log(USAGE);
        process.exit(0);
    }
    if (values.quick)
        Object.assign(values, {rounds: "1", depths: "0,4096", tokens: "5", prefills: "1"});
    values.rounds = Number(values.rounds);
    if (!Number.isInteger(values.rounds) || values.rounds < 1)
        usage("--rounds: expected a whole number from 1");
    if (!values.depths.split(",").includes("0"))
        usage(`--depths: ${values.depths}, expected 0 among them (attention is the time above depth 0)`);
    if (values.pmkvq) {
        values.pmkvq = path.resolve(values.pmkvq);
        if (!fs.statSync(values.pmkvq, {throwIfNoEntry: false})?.isFile())
            usage(`--pmkvq: ${values.pmkvq}, expected a program`);
    }
    values.out = path.resolve(values.out);
    return values;
}

/** Standard output of a program; its standard error passes through. */
async function run(program, args) {
    const child = spawn(program, args, {stdio: ["ignore", "pipe", "inherit"]});
    const chunks = [];
    child.stdout.on("data", (chunk) => chunks.push(chunk));
    const code = await new Promise((resolve, reject) => {
        child.on("error", (error) => reject(new Error(`[compare] ${program}: ${error.message}`)));
        child.on("close", (status, signal) => resolve(status ?? signal));
    });
    if (code !== 0)
        throw new Error(`[compare] ${[program, ...args].join(" ")}: ended with ${code}`);
    return Buffer.concat(chunks).toString("utf8");
}

async function measurePeer(options, model) {
    const args = [
        path.join(here, "measure.mjs"), "--modules", path.join(options.out, "node_modules"),
        "--model", model, "--work", options.out, "--kv", options.kv, "--depths", options.depths,
        "--tokens", options.tokens, "--prefills", options.prefills, "--threads", options.threads,
        "--fill", options.fill
    ];
    if (options.mmap)
        args.push("--mmap");
    const text = await run(process.execPath, args);
    return text.trim().split("\n").map((line) => JSON.parse(line));
}

const finite = (value, what) => {
    if (!Number.isFinite(value))
        throw new Error(`[compare] pmkvq's JSON, ${what}: ${value}, expected a number`);
    return value;
};

async function measureOurs(options) {
    const shape = ["--shape", "qwen2-7b", "--layers", `${LAYERS}`, "--threads", options.threads];
    const more = options["pmkvq-args"].split(" ").filter((word) => word !== "");
    const lines = [];
    const decode = JSON.parse(await run(options.pmkvq,
        ["bench", "decode", ...shape, "--bits", options.bits, "--depth", options.depths, ...more, "--json", "-"]));
    for (const row of decode.rows) {
        lines.push({
            engine: "pmkvq", what: "decode", kv: `${row.bits} bit`, depth: row.depth,
            ms: {median: 1000 / finite(row.tokens_per_s, "rows[].tokens_per_s")},
            tokens_per_s: row.tokens_per_s, attention_ms: row.attention_ms, load_average: os.loadavg()[0]
        });
    }
    if (Number(options.prefills) > 0) {
        const prefill = JSON.parse(await run(options.pmkvq,
            ["bench", "prefill", ...shape, "--bits", "16", "--depth", "0", "--tokens", `${PREFILL_TOKENS}`,
                "--json", "-"]));
        for (const row of prefill.rows) {
            lines.push({
                engine: "pmkvq", what: "prefill", kv: `${row.bits ?? 16} bit`,
                ms: {median: 1000 * PREFILL_TOKENS / finite(row.tokens_per_s, "rows[].tokens_per_s")},
                tokens_per_s: row.tokens_per_s, load_average: os.loadavg()[0]
            });
        }
    }
    return lines;
}

async function main() {
    const options = parseOptions();
    const model = path.join(options.out, `qwen2-7b-${LAYERS}-blocks-f16.gguf`);
    await run(process.execPath, [path.join(here, "write_gguf.mjs"), "--out", model, "--layers", `${LAYERS}`]);
    const results = path.join(options.out, "results.jsonl");
    fs.writeFileSync(results, "");
    const lines = [];
    for (let round = 0; round < options.rounds; round++) {
        const engines = [() => measurePeer(options, model)];
        if (options.pmkvq)
            engines.push(() => measureOurs(options));
        if (round % 2 === 1)
            engines.reverse();
        console.error(`round ${round + 1} of ${options.rounds}, load average ${os.loadavg()[0]}`);
        for (const measure of engines) {
            const measured = (await measure()).map((line) => ({round, ...line}));
            fs.appendFileSync(results, measured.map((line) => JSON.stringify(line) + "\n").join(""));
            lines.push(...measured);
        }
    }
    const facts = lines.find((line) => line.what === "facts");
    const loads = lines.map((line) => line.load_average);
    console.log(`llama.cpp ${facts.llama_cpp}, ${facts.cpu}, ${options.threads} threads, ${options.rounds} rounds, ` +
        `load average ${Math.min(...loads).toFixed(1)} to ${Math.max(...loads).toFixed(1)}`);
    console.log(`${facts.features}\n`);
    console.log(decodeTable(lines));
    console.log(prefillTable(lines));
    if (options.pmkvq)
        [decodeRatios, attentionRatios, prefillRatios].forEach((table) => console.log(table(lines)));
    console.log(`every measurement: ${results}`);
}

try {
    await main();
} catch (error) {
    console.error(error.message);
    process.exit(1);
}
