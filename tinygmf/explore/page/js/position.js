"use strict";
// Why no position encoding is needed: tokens shuffled, to see which parts notice, and tokens all
// alike, to see which parts still know where the border is.

function positionFigure(look) {
  const maps = [new TokenMap("the block's tokens"), new TokenMap("the same, shuffled")];
  const titles = ["its tokens", "shuffled"].map((title) => make("h3", "", title));
  find("#shuffle-maps").append(...maps.map((map, i) => make("div", "", titles[i], map.element)));
  find("#shuffle").addEventListener("click", () => look.change({ seed: look.state.seed + 1 }));
  const names = [...PARTS.slice(0, 4).map((part) => `Q of ${part}`), PARTS[4]];
  const equal = names.map((name) => {
    const map = new TokenMap(`${name}, of tokens that are all alike`);
    const count = make("output");
    find("#equal").append(make("div", "head", make("b", "", name), map.element, count));
    return { map, count };
  });

  return {
    element: find("#position"),
    draw({ model, block, state, place }) {
      const order = shuffled(block.n, state.seed);
      const strengths = strengthOf(block.cpe, block.dim);
      const scale = strength(strengths);
      maps[0].draw(strengths, block.side, scale);
      maps[1].draw(order.map((from) => strengths[from]), block.side, scale);
      block.noticed ??= {};
      const noticed = (block.noticed[state.seed] ??= whoNotices(model, block, order));
      drawNoticed(find("#noticed"), noticed.parts);
      tellAnswers(model, noticed.logits, block.n);
      drawEqual(model, block, state, place);
    },
  };

  function drawEqual(model, block, state, place) {
    const channel = Math.min(state.channel, block.segment - 1);
    const seen = allAlike(model, block, place.row * block.side + place.column);
    const middle = Math.floor(block.side / 2) * (block.side + 1);
    const parts = equal.map((_, s) => seen.after(0, s, channel));
    const apart = parts.map((values) => values.map((value) => value - values[middle]));
    const scale = signed(...apart);
    const most = largest(...parts);
    equal.forEach(({ map, count }, s) => {
      map.draw(apart[s], block.side, scale);
      const kinds = new Set(Array.from(parts[s], (value) => Math.round((1e5 * value) / most))).size;
      count.textContent = `${kinds} ${kinds === 1 ? "value" : "different values"}`;
    });
    legend(find("#legend-equal"), scale, "difference from the middle");
  }
}

/** Tokens in another order: where each comes from. The same for the same seed. */
function shuffled(n, seed) {
  const order = Array.from({ length: n }, (_, i) => i);
  let random = seed;
  for (let i = n - 1; i > 0; i--) {
    random = (Math.imul(random, 1664525) + 1013904223) >>> 0; // a linear congruential generator
    const j = Math.floor((random / 2 ** 32) * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

/** Rows of a map in another order. */
function reorder(values, order) {
  const channels = values.length / order.length;
  const out = new Float32Array(values.length);
  order.forEach((from, to) =>
    out.set(values.subarray(from * channels, (from + 1) * channels), to * channels),
  );
  return out;
}

/** Each part's largest change through the shuffle, as a share of its largest value: its result on
 * shuffled tokens is compared with its earlier result, shuffled. */
function whoNotices(model, block, order) {
  const input = model.inputName(block);
  const early = model.retry(block, input, reorder(model.network.map(input).values, order)).seen;
  const { seen: late, logits } = model.retry(block, `${block.name}.cpe`, reorder(block.cpe, order));
  const parts = (seen) => {
    const attention = new Attention(seen);
    const heads = (of) => Float32Array.from([0, 1].flatMap((head) => [...of(head)]));
    const group = (s) =>
      Float32Array.from({ length: seen.n * 3 * seen.segment }, (_, i) => {
        const [t, rest] = [Math.floor(i / (3 * seen.segment)), i % (3 * seen.segment)];
        const [part, c] = [Math.floor(rest / seen.segment), rest % seen.segment];
        return seen.mixed[(t * 3 + part) * seen.width + s * seen.segment + c];
      });
    return {
      "Q, K and V": [seen.qkv],
      [PARTS[0]]: [group(0)],
      "attention among tokens": [heads((head) => attention.result(head)), 2],
      [PARTS[1]]: [group(1)],
      [PARTS[2]]: [group(2)],
      [PARTS[3]]: [group(3)],
      [PARTS[4]]: [seen.fifth],
      "crpe, among tokens": [heads((head) => attention.position(head)), 2],
    };
  };
  const [before, after] = [parts(block), parts(late)];
  const noticed = Object.keys(before).map((name) => {
    const [values, repeats = 1] = before[name];
    return [name, largestChange(values, after[name][0], order, repeats)];
  });
  noticed.push(["cpe", largestChange(block.cpe, early.cpe, order, 1)]);
  return { parts: noticed, logits };
}

/** The largest change over `repeats` maps of tokens, stored one after the other. */
function largestChange(before, after, order, repeats) {
  const size = before.length / repeats;
  let most = 0;
  for (let i = 0; i < repeats; i++) {
    const expected = reorder(before.subarray(i * size, (i + 1) * size), order);
    most = Math.max(most, largest(expected.map((value, k) => value - after[i * size + k])));
  }
  return most / (largest(before) || 1);
}

/** The block's result when every token is a copy of one. */
function allAlike(model, block, token) {
  const same = Array.from({ length: block.n }, () => token);
  return model.retry(block, `${block.name}.cpe`, reorder(block.cpe, same)).seen;
}

function tellAnswers(model, logits, n) {
  const answer = (values) => told(model, values, model.logits);
  find("#shuffled-answer").textContent =
    n === 1
      ? "A single token has no order: choose a block with more tokens."
      : `The answer: ${answer(model.logits)}. With this block's tokens shuffled: ${answer(logits)}.`;
}

function drawNoticed(element, noticed) {
  element.replaceChildren(
    ...noticed.map(([name, share]) => {
      const row = make("li", share < 1e-4 ? "blind" : "", make("b", "", name));
      row.append(make("span", "bars", bar(Math.min(1, share), "now")));
      row.append(make("output", "", share < 1e-4 ? "does not notice" : `${(100 * share).toFixed(0)} %`));
      return row;
    }),
  );
}
