"use strict";
// The Group-Mix Attention of one block: five segments of Q, K and V before and after aggregation, the
// heads, and the ensemble layer.

function blockFigure(onSegment) {
  const rows = PARTS.map((part, segment) => branch(part, segment));
  const ensemble = new TokenMap("what the ensemble layer adds to the tokens");
  find("#branches").append(...rows.map(({ element }) => element));
  find("#ensemble").append(ensemble.element);
  const legends = ["before", "after", "heads", "ensemble"].map((name) => find(`#legend-${name}`));

  function branch(part, segment) {
    const maps = (names) => names.map((name) => new TokenMap(`${name}, ${part}`));
    const before = maps(["Q before", "K before", "V before"]);
    const after = maps(segment < 4 ? ["Q", "K", "V"] : ["the branch's result"]);
    const heads = maps(segment < 4 ? [`head ${2 * segment + 1}`, `head ${2 * segment + 2}`] : []);
    const group = (list, ...more) => make("div", "maps", ...list.map((map) => map.element), ...more);
    const title = make("button", "", part);
    title.addEventListener("click", () => onSegment(segment));
    const size = [1, 3, 5, 7, 3][segment];
    const element = make(
      "div",
      `branch part${segment}`,
      make("div", "title", title, windowIcon(size)),
      group(before),
      group(after),
      segment < 4 ? group(heads) : make("div", "maps skips", "skips attention"),
    );
    return { element, before, after, heads, title };
  }

  return {
    element: find("#block"),
    draw({ block, attention, state }) {
      const channel = Math.min(state.channel, block.segment - 1);
      const before = PARTS.map((_, s) => [0, 1, 2].map((part) => block.before(part, s, channel)));
      const after = PARTS.map((_, s) =>
        (s < 4 ? [0, 1, 2] : [0]).map((part) => block.after(part, s, channel)),
      );
      const heads = [0, 1, 2, 3].map((s) =>
        [2 * s, 2 * s + 1].map((head) => attention.strength(head)),
      );
      const added = strengthOf(block.att, block.dim);
      const scales = [
        signed(...before.flat()),
        signed(...after.flat()),
        strength(...heads.flat()),
        strength(added),
      ];
      rows.forEach((row, s) => {
        row.before.forEach((map, i) => map.draw(before[s][i], block.side, scales[0]));
        row.after.forEach((map, i) => map.draw(after[s][i], block.side, scales[1]));
        row.heads.forEach((map, i) => map.draw(heads[s][i], block.side, scales[2]));
        row.title.setAttribute("aria-pressed", s === state.segment);
        row.element.classList.toggle("off", state.off.has(PARTS[s]));
      });
      ensemble.draw(added, block.side, scales[3]);
      const names = ["as they come", "as compared", "heads, strength", "ensemble layer, strength"];
      legends.forEach((element, i) => legend(element, scales[i], names[i]));
    },
  };
}

/** 7x7 tokens, those in the window filled. */
function windowIcon(size) {
  const icon = make("i", "window");
  for (let i = 0; i < 49; i++) {
    const far = Math.max(Math.abs((i % 7) - 3), Math.abs(Math.floor(i / 7) - 3));
    icon.append(make("i", far <= (size - 1) / 2 ? "in" : ""));
  }
  return icon;
}
