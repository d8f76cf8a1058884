// Milliseconds that an exported network takes for its pictures under node, the smallest of many:
//
//   tinygmf export WEIGHTS --to wasm --out FOLDER
//   node tests/tools/benchmarks/bench_wasm.mjs FOLDER [RUNS]

import { resolve } from "node:path";

const [folder, runs = "100"] = process.argv.slice(2);
const { load, relaxed } = await import(resolve(folder, "network.mjs"));
const network = await load();
const pictures = new Float32Array(network.info.batch * network.info.picture).fill(0.1);
let best = Infinity;
for (let turn = 0; turn < +runs; turn++) {
  const began = performance.now();
  network.run(pictures);
  best = Math.min(best, performance.now() - began);
}
console.log(`node ${process.version}, relaxed SIMD ${relaxed}: ${best.toFixed(3)} ms`);
