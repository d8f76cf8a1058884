// A network in WebAssembly, one program for one size of picture, with its weights.

class Network {
  #code; #memory; #weights; #arena; #pictures; #logits; #pixels;

  constructor(code, file, info) {
    this.info = info;
    let end = code.__heap_base.value;
    const place = (bytes) => {
      const start = Math.ceil(end / 64) * 64;
      end = start + bytes;
      return start;
    };
    const values = (count) => place(4 * count);
    const { batch, picture } = info;
    [this.#code, this.#memory] = [code, code.memory];
    const at = place(file.length);
    [this.#arena, this.#pictures] = [values(info.arena), values(batch * picture)];
    [this.#logits, this.#pixels] = [values(batch * info.classes.length), place(picture)];
    const pages = Math.ceil((end - this.#memory.buffer.byteLength) / 65536);
    if (pages > 0) this.#memory.grow(pages);
    new Uint8Array(this.#memory.buffer).set(file, at);
    this.#weights = code.network_weights(at, file.length);
    if (!this.#weights) throw new Error("expected this network's weights, whole: export them again");
  }

  #floats(start, count) {
    return new Float32Array(this.#memory.buffer, start, count);
  }

  /** Pictures, three normalized planes each, side by side -> the rows of logits. */
  run(pictures) {
    const expected = this.info.batch * this.info.picture;
    if (pictures.length !== expected) throw new Error(`expected ${expected} values`);
    this.#floats(this.#pictures, expected).set(pictures);
    return this.#runFrom(0);
  }

  #runFrom(call) {
    this.#code.network_run_from(call, this.#weights, this.#arena, this.#pictures, this.#logits);
    return this.#floats(this.#logits, this.info.batch * this.info.classes.length).slice();
  }

  /** A kept intermediate of the last run, by its checkpoint name: tokens times channels. */
  map(name) {
    const { offset, size, channels } = this.info.maps[name];
    return { channels, values: this.#floats(this.#arena + 4 * offset, size).slice() };
  }

  /** Puts other values for a kept intermediate in its place. */
  keep(name, values) {
    const { offset, size } = this.info.maps[name];
    if (values.length !== size) throw new Error(`expected ${size} values`);
    this.#floats(this.#arena + 4 * offset, size).set(values);
  }

  /** What the rest of the network makes of other values for a kept intermediate -> logits. */
  runFrom(name, values) {
    const { next } = this.info.maps[name];
    if (!next) throw new Error(`${name}: expected what all that follows comes from alone`);
    this.keep(name, values);
    return this.#runFrom(next);
  }

  /** An array of the folded weights, which may be written to. */
  weights(offset, size) {
    return this.#floats(this.#weights + 4 * offset, size);
  }

  /** ImageData of the network's size, or anything that a canvas can draw -> a picture for `run`. */
  prepare(source) {
    const { info } = this;
    const { data } = source.data ? source : crop(source, info);
    const pixels = new Uint8Array(this.#memory.buffer, this.#pixels, info.picture);
    if (data.length !== (4 * info.picture) / 3) throw new Error(`expected ${info.size} x ${info.size}`);
    for (let i = 0; i < info.picture; i++) pixels[i] = data[4 * Math.floor(i / 3) + (i % 3)];
    this.#code.network_prepare(this.#pixels, this.#pictures);
    return this.#floats(this.#pictures, info.picture).slice();
  }

  /** What a picture shows. A network for several pictures at a time sees the same one in each. */
  classify(source, count = 5) {
    const { info } = this;
    const picture = this.prepare(source);
    const pictures = new Float32Array(info.batch * info.picture);
    for (let i = 0; i < info.batch; i++) pictures.set(picture, i * info.picture);
    const row = [...this.run(pictures).subarray(0, info.classes.length)];
    const largest = Math.max(...row);
    const sum = row.reduce((total, logit) => total + Math.exp(logit - largest), 0);
    return row
      .map((logit, index) => ({
        index,
        name: info.classes[index],
        probability: Math.exp(logit - largest) / sum,
      }))
      .sort((a, b) => b.probability - a.probability)
      .slice(0, count);
  }
}

/** The centre of a picture, as in training: its shorter side is `size / crop` pixels. */
function crop(source, info) {
  const canvas = Object.assign(document.createElement("canvas"), { width: info.size, height: info.size });
  const context = canvas.getContext("2d");
  const width = source.naturalWidth || source.videoWidth || source.width;
  const height = source.naturalHeight || source.videoHeight || source.height;
  const scale = info.size / info.crop / Math.min(width, height);
  const [w, h] = [width * scale, height * scale];
  context.imageSmoothingQuality = "high";
  context.drawImage(source, (info.size - w) / 2, (info.size - h) / 2, w, h);
  return context.getImageData(0, 0, info.size, info.size);
}
