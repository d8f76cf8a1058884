"use strict";
// The attention of a block, in both forms, from the network's own Q, K and V.

class Attention {
  #places;
  #strengths = [];

  constructor(block) {
    this.block = block;
    this.n = block.n;
    this.d = block.headDim;
  }

  /** Q, K or V (part 0, 1, 2) of a token, in one channel of a head. */
  at(part, token, head, channel) {
    const { mixed, width } = this.block;
    return mixed[(token * 3 + part) * width + head * this.d + channel];
  }

  /** softmax(K) over the tokens: each channel of K says where to look. 4D/5 x N. */
  get places() {
    this.#places ??= Array.from({ length: this.block.width }, (_, channel) => {
      const [head, c] = [Math.floor(channel / this.d), channel % this.d];
      return softmax(Float64Array.from({ length: this.n }, (_, t) => this.at(1, t, head, c)));
    });
    return this.#places;
  }

  /** What one query draws from every token: a row of Q softmax(K)ᵀ, or of softmax(QKᵀ/√d). */
  row(head, query, form) {
    const sums = Float64Array.from({ length: this.n }, (_, t) => {
      let sum = 0;
      for (let c = 0; c < this.d; c++) {
        const key = form === "linear" ? this.places[head * this.d + c][t] : this.at(1, t, head, c);
        sum += this.at(0, query, head, c) * key;
      }
      return sum;
    });
    return form === "linear" ? sums : softmax(sums.map((sum) => sum / Math.sqrt(this.d)));
  }

  /** The result of a head for every token, N x D/10: scale * Q (softmax(K)ᵀ V). */
  result(head) {
    const { d, n } = this;
    const found = new Float64Array(d * d); // softmax(K)ᵀ V
    for (let i = 0; i < d; i++)
      for (let t = 0; t < n; t++)
        for (let j = 0; j < d; j++)
          found[i * d + j] += this.places[head * d + i][t] * this.at(2, t, head, j);
    const out = new Float64Array(n * d);
    for (let t = 0; t < n; t++)
      for (let i = 0; i < d; i++)
        for (let j = 0; j < d; j++)
          out[t * d + j] += this.block.scale * this.at(0, t, head, i) * found[i * d + j];
    return out;
  }

  /** How strong what a head hands to the ensemble layer is, place by place: N. */
  strength(head) {
    this.#strengths[head] ??= strengthOf(this.sum(head), this.d);
    return this.#strengths[head];
  }

  /** What a head hands to the ensemble layer, N x D/10: attention and relative position. */
  sum(head) {
    const position = this.position(head);
    return this.result(head).map((value, i) => value + position[i]);
  }

  /** The relative position encoding of a head, N x D/10: Q times a convolution of V. */
  position(head) {
    const { d, n, block } = this;
    return Float64Array.from(
      { length: n * d },
      (_, i) =>
        this.at(0, Math.floor(i / d), head, i % d) *
        block.around[Math.floor(i / d) * block.width + head * d + (i % d)],
    );
  }
}
