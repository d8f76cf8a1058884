"use strict";
// A group proxy appears: a window over the tokens, its weights, their sums, the proxy.

const SIZES = [1, 3, 5, 7];
const still = matchMedia("(prefers-reduced-motion: reduce)");

function proxyFigure(look) {
  const tokens = new TokenMap("tokens under the window: move it", look.point);
  const proxies = new TokenMap("proxies, one in each token's place", look.point);
  find("#proxy-tokens").append(tokens.element);
  find("#proxy-map").append(proxies.element);
  choices(find("#proxy-part"), "radio", "part", [["0", "Q", true], ["1", "K"], ["2", "V"]], (value) =>
    look.change({ part: Number(value) }),
  );
  choices(
    find("#proxy-segment"),
    "radio",
    "segment",
    [0, 1, 2, 3].map((s) => [String(s), s ? `${SIZES[s]}×${SIZES[s]}` : "tokens", s === 1]),
    (value) => look.change({ segment: Number(value) }),
  );
  let swept = Infinity; // proxies that are shown
  let timer = 0;
  find("#sweep").addEventListener("click", () => {
    clearInterval(timer);
    swept = 0;
    timer = setInterval(() => {
      const { side } = tokens;
      swept += still.matches ? side : Math.max(1, Math.round(side ** 2 / 128));
      if (swept < side ** 2) return look.point(Math.floor(swept / side), swept % side);
      clearInterval(timer);
      swept = Infinity;
      look.change({});
    }, 60);
  });

  return {
    element: find("#proxies"),
    draw({ block, state, place }) {
      const s = Math.min(state.segment, 3);
      for (const [name, value] of [["part", state.part], ["segment", s]])
        find(`input[name=${name}][value="${value}"]`).checked = true;
      const channel = Math.min(state.channel, block.segment - 1);
      const before = block.before(state.part, s, channel);
      const after = block.after(state.part, s, channel);
      const scales = [signed(before), signed(after)];
      tokens.draw(before, block.side, scales[0]);
      proxies.draw(after, block.side, scales[1], (i) => i < swept);
      tokens.mark({ ...place, size: SIZES[s], kind: "window" });
      proxies.mark(place);
      legend(find("#legend-tokens"), scales[0], "tokens");
      legend(find("#legend-proxies"), scales[1], "proxies");
      const steps = proxySteps(block, state.part, s, place);
      drawCells(steps, channel, SIZES[s], scales[0]);
      tell(steps, channel, block, state, after[place.row * block.side + place.column]);
    },
  };

  function drawCells(steps, channel, size, scale) {
    const { seen, weights } = steps;
    const products = seen[channel].map((value, i) => value && value * weights[channel][i]);
    const most = signed(weights[channel]);
    fill(find("#cells-tokens"), seen[channel], size, scale);
    fill(find("#cells-weights"), weights[channel], size, most);
    fill(find("#cells-products"), products, size, signed(products));
    fill(find("#cells-sums"), steps.sums, steps.sums.length, signed(steps.sums), channel);
  }

  function tell({ sums, mixed, proxy }, channel, block, state, found) {
    const own = state.segment === 0 ? "the token itself" : `sum ${short(sums[channel])}`;
    find("#proxy-numbers").textContent =
      `Channel ${channel + 1} of ${block.segment}: ${own}; all channels mixed, scaled and shifted ` +
      `${short(mixed[channel])}; after Hardswish ${short(proxy[channel])}. ` +
      `The network's own map holds ${short(found)} here.`;
  }
}

/** The proxy at a place step by step, in every channel of a segment of Q, K or V. */
function proxySteps(block, part, segment, { row, column }) {
  const { segment: channels, dim, side, width } = block;
  const [size, rim] = [SIZES[segment], (SIZES[segment] - 1) / 2];
  const offset = part * dim + segment * channels;
  const windows = block.model.weights(block, "windows"); // 7 x 7 x 3D
  const mix = block.model.weights(block, "mix"); // 4D/5 x 4D/5
  const shift = block.model.weights(block, "mix_bias");
  const cells = Array.from({ length: size ** 2 }, (_, i) => [
    Math.floor(i / size) - rim,
    (i % size) - rim,
  ]);
  const every = (value) => Array.from({ length: channels }, (_, c) => value(c));
  const seen = every((c) =>
    cells.map(([y, x]) => {
      const [at, across] = [row + y, column + x];
      if (Math.min(at, across) < 0 || Math.max(at, across) >= side) return null; // outside: zero
      return block.qkv[(at * side + across) * 3 * dim + offset + c];
    }),
  );
  const weights = every((c) =>
    cells.map(([y, x]) => windows[((y + 3) * 7 + x + 3) * 3 * dim + offset + c]),
  );
  const sums = seen.map((values, c) =>
    values.reduce((sum, value, i) => sum + (value ?? 0) * weights[c][i], 0),
  );
  const first = segment * channels;
  const mixed = every((out) =>
    sums.reduce(
      (sum, value, c) => sum + value * mix[(first + c) * width + first + out],
      shift[first + out],
    ),
  );
  const proxy = mixed.map((x) => (x * Math.min(6, Math.max(0, x + 3))) / 6); // Hardswish
  return { seen, weights, sums, mixed, proxy };
}

/** Values as colored cells, `across` in a row; values outside the map are null. */
function fill(element, values, across, scale, chosen = -1) {
  element.style.setProperty("--across", across);
  element.replaceChildren(
    ...values.map((value, i) => {
      const cell = make("i", value === null ? "outside" : i === chosen ? "chosen" : "");
      if (value !== null) cell.style.background = colourOf(scale, value);
      cell.title = value === null ? "outside: zero" : short(value);
      if (across <= 3) cell.append(make("span", "", value === null ? "0" : short2(value)));
      return cell;
    }),
  );
}

const short2 = (value) => (Math.round(100 * value) / 100 || 0).toFixed(2).replace("-", "−");
