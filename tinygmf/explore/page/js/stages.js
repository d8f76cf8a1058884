"use strict";
// From the picture to the answer: the stem and the four stages, each with its map.

function stagesFigure(onBlock) {
  const element = find("#stages");
  let shape = "";
  let maps = [];

  function build(model) {
    const { dims, depths, sides, size } = model.info;
    const stem = new TokenMap("what the stem made of the picture");
    const picture = new TokenMap("the picture, as the network sees it");
    maps = [picture, stem, ...dims.map((_, i) => new TokenMap(`the map after stage ${i + 1}`))];
    const captions = [
      ["picture", `${size}×${size} pixels`, "3 channels"],
      ["stem", `${sides[0]}×${sides[0]} tokens`, `${dims[0]} channels`],
      ...dims.map((dim, i) => [`stage ${i + 1}`, `${sides[i]}×${sides[i]} tokens`, `${dim} channels`]),
    ];
    element.replaceChildren(
      ...captions.map(([name, ...lines], i) => {
        const box = make("div", "stage", make("b", "", name), maps[i].element);
        box.append(...lines.map((line) => make("span", "", line)));
        if (i >= 2) {
          box.append(blockButtons(i - 2, depths[i - 2]));
          maps[i].element.addEventListener("click", () => onBlock(i - 2, depths[i - 2] - 1));
        }
        return box;
      }),
    );
  }

  function blockButtons(stage, depth) {
    const row = make("span", "blocks");
    row.setAttribute("role", "radiogroup");
    row.setAttribute("aria-label", `blocks of stage ${stage + 1}`);
    const labels = Array.from({ length: depth }, (_, index) => [
      `${stage}.${index}`,
      depth === 1 ? "its block" : `${index + 1}`,
    ]);
    choices(row, "radio", "block", labels, () => {});
    row.addEventListener("change", ({ target }) => onBlock(...target.value.split(".").map(Number)));
    return row;
  }

  return {
    element: find("#pipeline"),
    draw({ model, block, canvas }) {
      const { dims, depths, sides, size } = model.info;
      if (shape !== `${model.name} ${size}`) build(model);
      shape = `${model.name} ${size}`;
      maps[0].drawPicture(canvas, size);
      const stem = model.network.map("conv_stem.act2");
      const last = dims.map((_, i) => model.network.map(blockName(i, depths[i] - 1)));
      [stem, ...last].forEach(({ values, channels }, i) => {
        const strengths = strengthOf(values, channels);
        const side = sides[Math.max(0, i - 1)];
        maps[i + 1].draw(strengths, side, strength(strengths));
      });
      for (const input of element.querySelectorAll("input"))
        input.checked = input.value === `${block.stage}.${block.index}`;
      [...element.children].forEach((box, i) => box.classList.toggle("chosen", i === block.stage + 2));
    },
  };
}
