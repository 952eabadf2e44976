// Checks that a deep cache is what it claims to be: for every KV type, llama.cpp loads a state made
// by repeating rows, saves it again, and both files are equal byte for byte. To be run after the
// package's version is raised: node check_state.mjs OUT (a folder that run.sh has filled).

import fs from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";
import {parseState, writeDeepState} from "./state_file.mjs";

const SHORT = 96;
const DEEP = 1000; // No multiple of SHORT: the last repetition is cut.
const KINDS = [["F16", true], ["F16", false], ["Q8_0", true], ["Q4_0", true]];

const out = process.argv[2];
const model = out && path.join(out, "qwen2-7b-2-blocks-f16.gguf");
if (!model || !fs.existsSync(model)) {
    console.error("usage: node check_state.mjs OUT    (the folder of run.sh, with packages and model)");
    process.exit(2);
}
const {getLlama} = await import(pathToFileURL(path.resolve(out, "node_modules/node-llama-cpp/dist/index.js")).href);
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, maxThreads: 2, logLevel: "error"});
const loaded = await llama.loadModel({modelPath: model, gpuLayers: 0});
const [short, deep, again] = ["short", "deep", "again"]
    .map((name) => path.join(out, `check-${process.pid}-${name}.bin`));
let failures = 0;
const check = (what, good) => {
    failures += good ? 0 : 1;
    console.log(`${good ? "ok    " : "FAILED"} ${what}`);
};
for (const [type, flashAttention] of KINDS) {
    const name = `${type}, flash attention ${flashAttention ? "on" : "off"}`;
    const context = await loaded.createContext({
        contextSize: 2048, batchSize: 512, flashAttention, threads: 2, ignoreMemorySafetyChecks: true,
        experimentalKvCacheKeyType: type, experimentalKvCacheValueType: type
    });
    try {
        const sequence = context.getSequence();
        await sequence.evaluateWithoutGeneratingNewTokens(Array.from({length: SHORT}, (_, i) => i));
        await sequence.saveStateToFile(short);
        const saved = fs.readFileSync(short);
        const base = parseState(saved);
        writeDeepState(deep, base, SHORT);
        check(`${name}: a state written at its own depth is the saved one`, saved.equals(fs.readFileSync(deep)));
        writeDeepState(deep, base, DEEP);
        await sequence.loadStateFromFile(deep, {acceptRisk: true});
        check(`${name}: ${DEEP} tokens are stored`, sequence.nextTokenIndex === DEEP);
        await sequence.saveStateToFile(again);
        check(`${name}: saved again it is the same`, fs.readFileSync(deep).equals(fs.readFileSync(again)));
    } finally {
        await context.dispose();
        [short, deep, again].forEach((file) => fs.rmSync(file, {force: true}));
    }
}
await loaded.dispose();
await llama.dispose();
process.exit(failures === 0 ? 0 : 1);
