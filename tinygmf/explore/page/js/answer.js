"use strict";
// The answer: probabilities, beside those of the whole network if parts are off.

const FEW = 10; // up to so many classes each have a bar, in their own order

function answerFigure(element) {
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  return {
    element,
    draw({ model, baseline }) {
      const { classes, head } = model.info;
      if (!head) return element.replaceChildren(make("li", "features", told(model, model.logits, baseline)));
      const [now, before] = [softmax(model.logits), softmax(baseline)];
      const order = classes.map((_, i) => i).sort((a, b) => now[b] - now[a]);
      const shown = classes.length > FEW ? order.slice(0, 5) : classes.map((_, i) => i);
      const differs = largest(now.map((share, i) => share - before[i])) > 1e-6;
      element.classList.toggle("differs", differs);
      element.replaceChildren(
        ...shown.map((i) => {
          const bars = make("span", "bars", bar(now[i], "now"));
          if (differs) bars.append(bar(before[i], "before"));
          const row = make("li", i === order[0] ? "best" : "", make("b", "", classes[i]), bars);
          row.append(make("output", "", percent(now[i])));
          if (differs) row.title = `whole network: ${percent(before[i])}`;
          return row;
        }),
      );
    },
  };
}

/** The likeliest class; for a network without classes, how far its features are from others. */
function told({ info }, values, others) {
  if (!info.head) {
    const change = largest(values.map((value, i) => value - others[i])) / largest(others);
    const changed = change && `; changed by ${(100 * change).toFixed(1)} %`;
    return `${values.length} features, no classes${changed || ""}`;
  }
  const shares = softmax(values);
  const best = shares.indexOf(Math.max(...shares));
  return `${info.classes[best]}, ${(100 * shares[best]).toFixed(1)} %`;
}

function bar(share, kind) {
  const element = make("i", kind);
  element.style.width = `${100 * share}%`;
  return element;
}
