"use strict";
// Who attends to whom: a place of the picture, and what it draws from all places, head by head.

function attentionFigure(look) {
  const picture = new TokenMap("the picture: point at a place", look.point);
  find("#query").append(picture.element);
  choices(
    find("#form"),
    "radio",
    "form",
    [["linear", "linear: Q softmax(K)ᵀ", true], ["softmax", "softmax(QKᵀ/√d)"]],
    (form) => look.change({ form }),
  );
  choices(
    find("#scale"),
    "radio",
    "scale",
    [["one", "one scale", true], ["own", "each head its own"]],
    (scale) => look.change({ scale }),
  );
  const heads = Array.from({ length: HEADS }, (_, head) => {
    const map = new TokenMap(`what head ${head + 1} attends to`, look.point);
    const sum = make("output");
    const title = make("b", "", `head ${head + 1}`);
    const name = make("span", "", PARTS[head >> 1]);
    const element = make("div", `head part${head >> 1}`, title, name, map.element, sum);
    find("#heads").append(element);
    return { map, sum };
  });

  const legendOf = { one: "weight", own: "weight, as a share of the head's ±" };
  return {
    element: find("#attention"),
    draw({ block, attention, state, place, canvas }) {
      const query = place.row * block.side + place.column;
      const rows = heads.map((_, head) => attention.row(head, query, state.form));
      const common = signed(...rows);
      picture.drawPicture(canvas, block.side);
      picture.mark(place);
      heads.forEach(({ map, sum }, head) => {
        const scale = state.scale === "own" ? signed(rows[head]) : common;
        map.draw(rows[head], block.side, scale);
        map.mark(...(head >= 2 ? [place, { ...place, size: SIZES[head >> 1], kind: "window" }] : [place]));
        const total = short(rows[head].reduce((a, b) => a + b, 0));
        sum.textContent = state.scale === "own" ? `sum ${total}, ±${short(scale.high)}` : `sum ${total}`;
      });
      legend(find("#legend-rows"), state.scale === "own" ? signed([1]) : common, legendOf[state.scale]);
      const n = block.n.toLocaleString("en");
      find("#pairs").textContent = `${n}×${n} = ${(block.n ** 2).toLocaleString("en")}`;
      find("#products").textContent = `${block.headDim}×${block.headDim}`;
      const [first, second] = [2 * block.n * block.headDim ** 2, 2 * block.n ** 2 * block.headDim];
      find("#cost").textContent = first.toLocaleString("en");
      find("#map-cost").textContent = second.toLocaleString("en");
    },
  };
}
