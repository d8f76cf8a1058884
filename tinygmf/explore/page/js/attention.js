"use strict";
// Who attends to whom: a place of the picture, and what it draws from every other, head by head.

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
  const heads = Array.from({ length: HEADS }, (_, head) => {
    const map = new TokenMap(`what head ${head + 1} attends to`, look.point);
    const sum = make("output");
    const title = make("b", "", `head ${head + 1}`);
    const name = make("span", "", PARTS[head >> 1]);
    const element = make("div", `head part${head >> 1}`, title, name, map.element, sum);
    find("#heads").append(element);
    return { map, sum };
  });

  return {
    element: find("#attention"),
    draw({ block, attention, state, place, canvas }) {
      const query = place.row * block.side + place.column;
      const rows = heads.map((_, head) => attention.row(head, query, state.form));
      const scale = signed(largest(...rows)); // one for all heads
      picture.drawPicture(canvas, block.side);
      picture.mark(place);
      heads.forEach(({ map, sum }, head) => {
        map.draw(rows[head], block.side, scale);
        map.mark(...(head >= 2 ? [place, { ...place, size: SIZES[head >> 1], kind: "window" }] : [place]));
        sum.textContent = `sum ${short(rows[head].reduce((a, b) => a + b, 0))}`;
      });
      legend(find("#legend-rows"), scale, "weight of a value");
    },
  };
}
