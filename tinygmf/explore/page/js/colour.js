"use strict";
// Numbers to colours. Signed ones diverge from zero, which has the colour of the page; strengths, which
// have no sign, run from dark to bright. Both read the same to the colour-blind.

const dark = matchMedia("(prefers-color-scheme: dark)");

const SIGNED = {
  light: ["#0b3c7d", "#3f7fc1", "#a9cdea", "#f4f4f2", "#f6bf94", "#d9702e", "#8a3206"],
  dark: ["#a8d1ff", "#4f93dd", "#2b4f7c", "#22272d", "#7a4526", "#e0813f", "#ffd0a6"],
};
const STRENGTH = ["#3b0f55", "#453781", "#33638d", "#238a8d", "#29af7f", "#74d055", "#fde725"];

/** One scale for some maps, symmetric around zero. */
function signed(...maps) {
  const { most, beyond } = bounds(maps);
  return { low: -most, high: most, beyond, colours: SIGNED[dark.matches ? "dark" : "light"] };
}

/** One scale for some maps of strengths, from zero. */
function strength(...maps) {
  const { most, beyond } = bounds(maps);
  return { low: 0, high: most, beyond, colours: STRENGTH };
}

/** The largest value; or, if a few values would make all others look like zero, the one that 99 %
 * stay within. The legend then says that there is more beyond. */
function bounds(maps) {
  const sizes = new Float32Array(maps.reduce((count, { length }) => count + length, 0));
  let at = 0;
  for (const map of maps) {
    sizes.set(map, at);
    at += map.length;
  }
  sizes.forEach((value, i) => (sizes[i] = Math.abs(value)));
  sizes.sort();
  const [top, most] = [sizes.at(-1), sizes[Math.floor(0.99 * (sizes.length - 1))]];
  return most && 2 * most < top ? { most, beyond: true } : { most: top, beyond: false };
}

const hex = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));

/** A table of 256 colours, [r, g, b] each. */
function table({ colours }) {
  return Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (colours.length - 1);
    const left = Math.min(Math.floor(place), colours.length - 2);
    const [a, b] = [hex(colours[left]), hex(colours[left + 1])];
    return a.map((value, k) => Math.round(value + (b[k] - value) * (place - left)));
  });
}

const shadeOf = ({ low, high }, value) =>
  high > low ? Math.min(255, Math.max(0, Math.round((255 * (value - low)) / (high - low)))) : 127;

/** A colour of the scale, for CSS. */
const colourOf = (scale, value) => `rgb(${table(scale)[shadeOf(scale, value)].join(" ")})`;

/** The legend of a scale: a bar with its ends. */
function legend(element, scale, what) {
  element.className = "legend";
  const bar = document.createElement("i");
  bar.style.background = `linear-gradient(to right, ${scale.colours.join(", ")})`;
  const [least, most] = scale.beyond ? [scale.low && "≤ ", "≥ "] : ["", ""];
  element.replaceChildren(`${what} ${least || ""}${short(scale.low)} `, bar, ` ${most}${short(scale.high)}`);
}

/** A number in at most three digits; a minus sign as long as a plus. */
function short(value) {
  if (!value) return "0";
  const digits = Math.abs(value) >= 0.001 && Math.abs(value) < 1000;
  return (digits ? String(Number(value.toPrecision(3))) : value.toExponential(1)).replace("-", "−");
}
