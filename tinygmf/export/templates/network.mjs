// @TITLE@
//
//   import { load } from "./network.mjs";
//   const network = await load();
//   network.classify(image); // [{ index, name, probability }, …], the likeliest first
//
// In browsers, over http, and in Node. `page.html` holds everything and also opens from a disk.

export const info = @INFO@;

/** The network, from the files beside this module or from their bytes. */
export async function load(code = read("network.wasm"), weights = read("weights.bin")) {
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