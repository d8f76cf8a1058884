"use strict";
// Parts of the network switched off: their weights are zero, and the network runs again.

const SWITCHES = [
  [PARTS[0], "tokens (heads 1, 2)"],
  [PARTS[1], "groups of 3×3 (heads 3, 4)"],
  [PARTS[2], "groups of 5×5 (heads 5, 6)"],
  [PARTS[3], "groups of 7×7 (heads 7, 8)"],
  [PARTS[4], "non-attention branch"],
  ["cpe", "position encoding before the block (cpe)"],
  ["crpe", "position encoding inside attention (crpe)"],
];

function switchesFigure(onSwitch) {
  const options = SWITCHES.map(([part, label]) => [part, label, true]);
  const off = () =>
    new Set([...find("#switches").querySelectorAll("input:not(:checked)")].map(({ value }) => value));
  choices(find("#switches"), "checkbox", "part-on", options, () => onSwitch({ off: off() }));
  choices(
    find("#where"),
    "radio",
    "where",
    [["one", "in the chosen block"], ["all", "in every block", true]],
    (value) => onSwitch({ everywhere: value === "all" }),
  );
  find("#all-on").addEventListener("click", () => {
    for (const input of find("#switches").querySelectorAll("input")) input.checked = true;
    onSwitch({ off: off() });
  });
  const answer = answerFigure(find("#switched"));
  return {
    element: find("#parts"),
    draw(view) {
      answer.draw(view);
      const { off, everywhere } = view.state;
      const where = everywhere ? "every block" : "the chosen block";
      find("#off").textContent = off.size ? `Off in ${where}: ${[...off].join(", ")}.` : "Everything is on.";
    },
  };
}
