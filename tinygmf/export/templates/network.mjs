// @TITLE@
//
//   import { load } from "./network.mjs";
//   const network = await load();
//   network.classify(image); // [{ index, name, probability }, …], the likeliest first
//
// In browsers, over http, and in Node. `page.html` holds everything and also opens from a disk.

export const info = @INFO@;

/** Whether there is an instruction that multiplies and adds: of this module, f32x4.relaxed_madd. */
export const relaxed = WebAssembly.validate(new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 19, 1, 17, 0,
  65, 0, 253, 15, 65, 0, 253, 15, 65, 0, 253, 15, 253, 133, 2, 11,
]));

/** The network, from the files beside this module or from their bytes. */
export async function load(
  code = read(relaxed ? "network_relaxed.wasm" : "network.wasm"), weights = read("weights.bin"),
) {
  const { instance } = await WebAssembly.instantiate(await code);
  return new Network(instance.exports, new Uint8Array(await weights), info);
}

async function read(name) {
  const url = new URL(name, import.meta.url);
  if (url.protocol === "file:") return (await import("node:fs/promises")).readFile(url);
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status} ${answer.statusText}`);
  return answer.arrayBuffer();
}

@NETWORK@