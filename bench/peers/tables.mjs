// Tables from the lines of JSON that the rounds left. A figure is the median over the rounds; a
// ratio is taken inside each round, and then its median.

import {median} from "./statistics.mjs";

const PEER = "llama.cpp";
const OURS = "pmkvq";

const fixed = (value, digits) => (value === undefined || Number.isNaN(value) ? "-" : value.toFixed(digits));
const spreadCells = (values, digits) =>
    [median(values), Math.min(...values), Math.max(...values)].map((value) => fixed(value, digits));
const unique = (values) => [...new Set(values)];

/** Columns as wide as their content, numbers to the right. */
export function format(heading, rows) {
    const widths = heading.map((_, i) => Math.max(...[heading, ...rows].map((row) => row[i].length)));
    const line = (row) => row.map((cell, i) => (i < 2 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join("  ");
    return [heading, ...rows].map((row) => line(row).trimEnd()).join("\n") + "\n";
}

// Of one round: a Map from "engine|kv|depth" to milliseconds.
function decodeRounds(lines) {
    const rounds = new Map();
    for (const line of decodes(lines)) {
        if (!rounds.has(line.round))
            rounds.set(line.round, new Map());
        rounds.get(line.round).set(`${line.engine}|${line.kv}|${line.depth}`, line.ms.median);
    }
    return [...rounds.values()];
}

const decodes = (lines) => lines.filter(({what}) => what === "decode");
const depthsOf = (lines) => unique(decodes(lines).map(({depth}) => depth)).sort((a, b) => a - b);
const kvOf = (lines, engine) => unique(decodes(lines).filter((l) => l.engine === engine).map(({kv}) => kv));

function attentionMs(round, engine, kv, depth) {
    return round.get(`${engine}|${kv}|${depth}`) - round.get(`${engine}|${kv}|0`);
}

export function decodeTable(lines) {
    const rounds = decodeRounds(lines);
    const rows = [];
    for (const engine of [PEER, OURS]) {
        for (const kv of kvOf(lines, engine)) {
            for (const depth of depthsOf(lines)) {
                const times = rounds.map((round) => round.get(`${engine}|${kv}|${depth}`));
                const attention = rounds.map((round) => attentionMs(round, engine, kv, depth));
                rows.push([
                    engine, kv, `${depth}`, fixed(1000 / median(times), 2), ...spreadCells(times, 2),
                    depth === 0 ? "" : fixed(median(attention), 2)
                ]);
            }
        }
    }
    return "Decoding one token\n" +
        format(["engine", "KV", "depth", "tokens/s", "ms", "least", "most", "attention ms"], rows);
}

const prefillKind = ({engine, logits}) => (engine === PEER ? `${PEER}|logits of ${logits}` : `${OURS}|`);

export function prefillTable(lines) {
    const prefills = lines.filter(({what}) => what === "prefill");
    if (prefills.length === 0)
        return "";
    const rows = unique(prefills.map(prefillKind)).map((kind) => {
        const times = prefills.filter((line) => prefillKind(line) === kind).map(({ms}) => ms.median);
        const {tokens_per_s: rate, ms} = prefills.find((line) => prefillKind(line) === kind);
        const numTokens = rate * ms.median; // 1000 times the tokens
        return [...kind.split("|"), fixed(numTokens / median(times), 1), ...spreadCells(times, 1)];
    });
    return "Prefill of 512 tokens, 16-bit cache\n" +
        format(["engine", "", "tokens/s", "ms", "least", "most"], rows);
}

// `value(round, engine, kv, depth)`, smaller is better: rows of best peer over ours, each depth. A
// round where noise left no positive value on a side has no ratio, and then its row has none.
function ratioTable(title, lines, depths, value) {
    const rounds = decodeRounds(lines);
    const rows = [];
    for (const kv of kvOf(lines, OURS)) {
        for (const depth of depths) {
            const bests = rounds.map((round) => kvOf(lines, PEER)
                .map((peerKv) => ({peerKv, ms: value(round, PEER, peerKv, depth)}))
                .filter(({ms}) => ms > 0)
                .reduce((a, b) => (b.ms < a.ms ? b : a), {peerKv: "none", ms: Infinity}));
            const ratios = rounds.map((round, i) => bests[i].ms / value(round, OURS, kv, depth));
            const usable = ratios.every((ratio) => Number.isFinite(ratio) && ratio > 0);
            rows.push([kv, unique(bests.map(({peerKv}) => peerKv)).join(", "), `${depth}`,
                ...spreadCells(usable ? ratios : [NaN], 2)]);
        }
    }
    return `${title}\n` + format(["ours", "their best", "depth", "ratio", "least", "most"], rows);
}

export function decodeRatios(lines) {
    return ratioTable("Speed of decoding, ours over llama.cpp's best KV type", lines, depthsOf(lines),
        (round, engine, kv, depth) => round.get(`${engine}|${kv}|${depth}`));
}

export function attentionRatios(lines) {
    return ratioTable("Speed of attention (time above depth 0), ours over llama.cpp's best KV type", lines,
        depthsOf(lines).filter((depth) => depth > 0), attentionMs);
}

export function prefillRatios(lines) {
    const prefills = lines.filter(({what}) => what === "prefill");
    if (prefills.length === 0)
        return "";
    const rows = ["last", "all"].map((logits) => {
        const ratios = unique(prefills.map(({round}) => round)).map((round) => {
            const rate = (engine) => prefills.find((line) => line.round === round && line.engine === engine &&
                (engine === OURS || line.logits === logits)).tokens_per_s;
            return rate(OURS) / rate(PEER);
        });
        return [`logits of ${logits}`, "", ...spreadCells(ratios, 2)];
    });
    return "Speed of prefill, ours over llama.cpp's\n" + format(["theirs", "", "ratio", "least", "most"], rows);
}
