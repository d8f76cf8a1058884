"use strict";
// The network on the GPU, through WebGPU where the browser has it. Its results are copied to where the
// WebAssembly program keeps the same maps, so all figures read them there.

class Gpu {
  #device; #buffers = {}; #calls = []; #model; #table; #read; #last = Promise.resolve();

  static async open(model) {
    const adapter = await navigator.gpu.requestAdapter();
    if (!adapter) throw new Error("WebGPU: expected a GPU, found none");
    const { bytes } = await load(`${model.name}_${model.info.size}_webgpu`);
    const table = JSON.parse(new TextDecoder().decode(bytes));
    const gpu = new Gpu(await adapter.requestDevice(), model, table);
    await gpu.#compile();
    return gpu;
  }

  constructor(device, model, table) {
    [this.#device, this.#model, this.#table] = [device, model, table];
    const { STORAGE, COPY_DST, COPY_SRC, MAP_READ } = GPUBufferUsage;
    const make = (floats, usage) => device.createBuffer({ size: 4 * floats, usage });
    for (const [name, floats] of Object.entries(table.sizes))
      this.#buffers[name] = make(floats, STORAGE | COPY_DST | COPY_SRC);
    this.#read = make(this.#wanted.reduce((sum, { floats }) => sum + floats, 0), MAP_READ | COPY_DST);
  }

  /** What is read after a run: the logits, and the maps that are kept. */
  get #wanted() {
    const { maps, sizes } = this.#table;
    return [["", "output"], ...Object.entries(maps)].map(([name, value]) => ({
      name,
      value,
      floats: sizes[value],
    }));
  }

  /** The shaders as pipelines, and a group of buffers for each call. */
  async #compile() {
    const [device, { shaders, calls }] = [this.#device, this.#table];
    const infinity = device.createBuffer({ size: 4, usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST });
    device.queue.writeBuffer(infinity, 0, Float32Array.of(Infinity));
    const counts = shaders.map((_, i) => calls.find(([shader]) => shader === i)[2].length);
    const layouts = counts.map((count) => {
      const entries = Array.from({ length: count + 1 }, (_, binding) => ({
        binding,
        visibility: GPUShaderStage.COMPUTE,
        buffer: { type: binding ? "storage" : "uniform" },
      }));
      return device.createBindGroupLayout({ entries });
    });
    const pipelines = await Promise.all(
      shaders.map((code, i) =>
        device.createComputePipelineAsync({
          layout: device.createPipelineLayout({ bindGroupLayouts: [layouts[i]] }),
          compute: { module: device.createShaderModule({ code }), entryPoint: "main" },
        }),
      ),
    );
    this.#calls = calls.map(([shader, groups, names]) => {
      const buffers = [infinity, ...names.map((name) => this.#buffers[name])];
      const entries = buffers.map((buffer, binding) => ({ binding, resource: { buffer } }));
      const group = device.createBindGroup({ layout: layouts[shader], entries });
      return { pipeline: pipelines[shader], groups, group };
    });
  }

  /** Run the network with the model's current weights -> logits. One run after the other. */
  run(picture) {
    this.#last = this.#last.then(() => this.#run(picture));
    return this.#last;
  }

  async #run(picture) {
    const { queue } = this.#device;
    const { network, info } = this.#model;
    queue.writeBuffer(this.#buffers.input, 0, picture);
    for (const [name, place] of Object.entries(info.weights))
      if (this.#buffers[name]) queue.writeBuffer(this.#buffers[name], 0, network.weights(...place).slice());
    const encoder = this.#device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    for (const { pipeline, groups, group } of this.#calls) {
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      pass.dispatchWorkgroups(...groups);
    }
    pass.end();
    let at = 0;
    for (const { value, floats } of this.#wanted) {
      encoder.copyBufferToBuffer(this.#buffers[value], 0, this.#read, at, 4 * floats);
      at += 4 * floats;
    }
    queue.submit([encoder.finish()]);
    await this.#read.mapAsync(GPUMapMode.READ);
    const values = new Float32Array(this.#read.getMappedRange()).slice();
    this.#read.unmap();
    return this.#handOver(values);
  }

  #handOver(values) {
    let at = 0;
    const parts = this.#wanted.map(({ name, floats }) => [name, values.subarray(at, (at += floats))]);
    for (const [name, part] of parts.slice(1)) this.#model.network.keep(name, part);
    return parts[0][1];
  }

  close() {
    this.#device.destroy();
  }
}
