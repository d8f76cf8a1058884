"use strict";
// The network on one picture: its answer, its blocks, and parts of it switched off.

const PARTS = ["tokens", "groups of 3×3", "groups of 5×5", "groups of 7×7", "non-attention"];
const HEADS = 8;

class Model {
  static async load(name, size) {
    const [weights, program] = await Promise.all([load(name), load(`${name}_${size}`)]);
    const team = await Team.start(program);
    return new Model(name, team, new Network(team.code, weights.bytes, program.value));
  }

  constructor(name, team, network) {
    Object.assign(this, { name, team, network });
    this.info = network.info;
    this.original = network.weights(0, this.info.total).slice();
    this.blocks = this.info.depths.flatMap((depth, stage) =>
      Array.from({ length: depth }, (_, index) => ({ stage, index })),
    );
  }

  /** A normalized picture, three planes -> logits, or a promise of them on a GPU. `off` names
   * parts that are off in the blocks `where`. */
  run(picture, off = new Set(), where = this.blocks) {
    this.picture = picture;
    this.network.weights(0, this.info.total).set(this.original);
    for (const block of where) for (const part of off) this.#remove(part, block);
    return this.gpu ? this.#runOnGpu() : this.rerun();
  }

  async #runOnGpu() {
    const start = performance.now();
    this.logits = await this.gpu.run(this.picture);
    this.took = performance.now() - start;
    return this.logits;
  }

  /** Compute on the GPU, or in WebAssembly, from now on. */
  async use(engine) {
    if (engine === "webgpu") this.gpu ??= await Gpu.open(this);
    else this.gpu = this.gpu?.close();
  }

  close() {
    this.team.dismiss();
    this.gpu?.close();
  }

  rerun() {
    const start = performance.now();
    this.logits = this.network.run(this.picture);
    this.took = performance.now() - start; // milliseconds
    return this.logits;
  }

  weights({ stage, index }, field) {
    return this.network.weights(...this.info.weights[`stage${stage}_block${index}_${field}`]);
  }

  /** Zero the weights of a part; a position encoding then returns the tokens unchanged. */
  #remove(part, block) {
    const dim = this.info.dims[block.stage];
    if (part === "cpe") {
      this.weights(block, "cpe").fill(0).fill(1, 4 * dim, 5 * dim); // the window's middle
      this.weights(block, "cpe_bias").fill(0);
    } else if (part === "crpe") {
      for (const field of ["crpe", "crpe_bias"]) this.weights(block, field).fill(0);
    } else if (part === PARTS[4]) {
      this.weights(block, "proj_fifth").fill(0);
    } else {
      const rows = (dim / 5) * dim; // of the ensemble layer, for one segment
      const first = PARTS.indexOf(part) * rows;
      this.weights(block, "proj_heads").fill(0, first, first + rows);
    }
  }

  /** The name of the map that the block reads. */
  inputName({ stage, index }) {
    return index ? blockName(stage, index - 1) : `patch_embed_layers.${stage}.act`;
  }

  /** Run the network, always in WebAssembly, with `values` in place of a kept map; return the block
   * and the logits. */
  retry(block, name, values) {
    const logits = this.network.runFrom(name, values);
    const seen = new Block(this, block);
    this.rerun();
    return { seen, logits };
  }
}

const blockName = (stage, index) => `groupmixformer_backbone.${stage}.gma_stage.${index}`;

/** One block of the last run. N tokens of D channels, stored row by row, channels last. */
class Block {
  constructor(model, { stage, index }) {
    const name = blockName(stage, index);
    const map = (part) => model.network.map(`${name}.${part}`).values;
    Object.assign(this, { model, stage, index, name });
    this.dim = model.info.dims[stage];
    this.side = model.info.sides[stage];
    this.n = this.side ** 2;
    this.segment = this.dim / 5;
    this.width = 4 * this.segment; // of the four segments with attention
    this.headDim = this.dim / 10;
    this.scale = Math.floor(this.dim / HEADS) ** -0.5;
    this.cpe = map("cpe"); // N x D
    this.qkv = map("att.qkv"); // N x 3 x D
    this.mixed = map("att.aggregator"); // N x 3 x 4D/5
    this.fifth = map("att.aggregator.agg0"); // N x D/5
    this.around = map("att.crpe.conv_list"); // N x 4D/5
    const sum = map("cpe+att");
    this.att = sum.map((value, i) => value - this.cpe[i]); // N x D: what attention adds
  }

  /** A channel of a segment of Q, K or V (part 0, 1, 2), before the aggregators. */
  before(part, segment, channel) {
    return pick(this.qkv, 3 * this.dim, part * this.dim + segment * this.segment + channel);
  }

  /** The same after them: tokens or group proxies, or the non-attention branch. */
  after(part, segment, channel) {
    if (segment === 4) return pick(this.fifth, this.segment, channel);
    return pick(this.mixed, 3 * this.width, part * this.width + segment * this.segment + channel);
  }
}

/** Every `step`-th value from `first` on: a channel of a map. */
function pick(values, step, first) {
  return Float32Array.from({ length: values.length / step }, (_, i) => values[i * step + first]);
}

/** The root mean square over the channels: how strong each token is. */
function strengthOf(values, channels) {
  return Float32Array.from({ length: values.length / channels }, (_, i) => {
    let sum = 0;
    for (let c = 0; c < channels; c++) sum += values[i * channels + c] ** 2;
    return Math.sqrt(sum / channels);
  });
}

const largest = (...arrays) =>
  arrays.reduce((most, values) => values.reduce((m, v) => Math.max(m, Math.abs(v)), most), 0);

function softmax(logits) {
  const top = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}
