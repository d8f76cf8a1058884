"use strict";
// The network on several threads: workers that share one memory with the page. Browsers allow this
// if the server isolates the page (COOP and COEP); otherwise the page's own thread does all the work.

const PAGE_BYTES = 65536; // of WebAssembly's memory
const HELP = `onmessage = ({ data: { module, memory, stack, places } }) => {
  const { exports } = new WebAssembly.Instance(module, { env: { memory } });
  exports.__stack_pointer.value = stack;
  exports.network_help(...places);
}`;

class Team {
  #module; #workers = [];

  /** A program of the page, and as many workers as there are cores and pieces. */
  static async start({ bytes, value }) {
    const { pages, threads } = value;
    const memory = new WebAssembly.Memory({ initial: pages[0], maximum: pages[1], shared: true });
    const { module, instance } = await WebAssembly.instantiate(bytes, { env: { memory } });
    const count = crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, threads) : 1;
    return new Team(module, memory, instance.exports, count);
  }

  constructor(module, memory, exports, threads) {
    this.#module = module;
    Object.assign(this, { memory, exports, threads });
  }

  /** What a `Network` calls, with all threads. */
  get code() {
    const network_run_from = (first, ...places) => {
      while (this.#workers.length < this.threads - 1) this.#hire(places);
      this.exports.network_run_together(first, ...places);
    };
    return { ...this.exports, memory: this.memory, network_run_from };
  }

  #hire(places) {
    const worker = new Worker(URL.createObjectURL(new Blob([HELP], { type: "text/javascript" })));
    const stack = (this.memory.grow(1) + 1) * PAGE_BYTES; // from its end downwards
    worker.postMessage({ module: this.#module, memory: this.memory, stack, places });
    this.#workers.push(worker);
  }

  dismiss() {
    for (const worker of this.#workers) worker.terminate();
  }
}
