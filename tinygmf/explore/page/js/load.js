"use strict";
// Data from scripts, as a page opened from disk may load nothing else: each file in data/ calls
// `receive`.

const received = {};

const loading = {};

function receive(name, value, content) {
  received[name] = { value, content };
}

/** The value and the bytes of a file in data/; each file is loaded once. */
function load(name) {
  loading[name] ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `data/${name}.js`;
    script.onload = () => resolve(received[name]);
    const missing = `data/${name}.js: expected a file, found none: write the page again`;
    script.onerror = () => reject(new Error(missing));
    document.head.append(script);
  }).then(async ({ value, content }) => ({ value, bytes: content && (await inflate(content)) }));
  return loading[name];
}

async function inflate(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
