"use strict";
// A map of tokens, drawn one pixel per token, with marks over it. Mouse, finger and arrow keys point
// at it.

class TokenMap {
  constructor(label, onPoint) {
    this.canvas = document.createElement("canvas");
    this.element = document.createElement("div");
    this.element.className = "map";
    this.element.append(this.canvas);
    this.side = 1;
    this.marks = [];
    if (onPoint) this.#listen(onPoint);
    else this.element.setAttribute("role", "img");
    this.element.setAttribute("aria-label", label);
  }

  /** side x side values in the colours of a scale; `shown` may hide some. */
  draw(values, side, scale, shown = () => true) {
    this.side = side;
    Object.assign(this.canvas, { width: side, height: side });
    const context = this.canvas.getContext("2d");
    const image = context.createImageData(side, side);
    const colours = table(scale);
    values.forEach((value, i) => {
      if (shown(i)) image.data.set([...colours[shadeOf(scale, value)], 255], 4 * i);
    });
    context.putImageData(image, 0, 0);
  }

  /** A picture in place of values. `side` counts the tokens that can be pointed at. */
  drawPicture(source, side) {
    this.side = side;
    Object.assign(this.canvas, { width: source.width, height: source.height });
    this.canvas.getContext("2d").drawImage(source, 0, 0);
    this.canvas.classList.toggle("smooth", source.width > 64);
  }

  /** Frames over the map: each {row, column, size} in tokens, around the one in the middle. */
  mark(...frames) {
    for (const mark of this.marks) mark.remove();
    this.marks = frames.map(({ row, column, size = 1, kind = "place" }) => {
      const mark = document.createElement("i");
      const [top, left] = [row, column].map((x) => (100 * (x - (size - 1) / 2)) / this.side);
      const part = (100 * size) / this.side;
      mark.className = `mark ${kind}`;
      mark.style.cssText = `top:${top}%;left:${left}%;width:${part}%;height:${part}%`;
      return mark;
    });
    this.element.append(...this.marks);
    const [{ row, column } = {}] = frames;
    if (this.element.tabIndex < 0 || row === undefined) return;
    this.element.setAttribute("aria-valuetext", `row ${row + 1}, column ${column + 1}`);
    this.element.setAttribute("aria-valuenow", row * this.side + column + 1);
    this.element.setAttribute("aria-valuemax", this.side ** 2);
    this.place = { row, column };
  }

  #listen(onPoint) {
    const { element } = this;
    const inside = (x) => Math.min(this.side - 1, Math.max(0, x));
    const point = (event) => {
      const box = element.getBoundingClientRect();
      const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
      onPoint(inside(Math.floor(y * this.side)), inside(Math.floor(x * this.side)));
    };
    Object.assign(element, { tabIndex: 0 });
    for (const [name, value] of [["role", "slider"], ["aria-valuemin", 1], ["aria-valuenow", 1]])
      element.setAttribute(name, value);
    element.addEventListener("pointerdown", (event) => {
      element.setPointerCapture(event.pointerId);
      point(event);
    });
    element.addEventListener("pointermove", (event) => event.buttons && point(event));
    element.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[
        event.key
      ];
      if (!step || !this.place) return;
      event.preventDefault();
      onPoint(inside(this.place.row + step[0]), inside(this.place.column + step[1]));
    });
  }
}

/** A new element with its class and children. */
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

const find = (selector) => document.querySelector(selector);

/** Radio buttons or checkboxes that look like one row: [value, label] each. */
function choices(element, type, name, options, onChange) {
  element.append(
    ...options.map(([value, label, checked]) => {
      const input = Object.assign(document.createElement("input"), { type, name, value, checked });
      input.addEventListener("change", () => onChange(value, input.checked));
      return make("label", "", input, make("span", "", label));
    }),
  );
}
