"use strict";
// The reader's picture: drawn, opened, dropped, or a bundled one.

const DRAWING = 256; // pixels a side
const PEN = 26;

function pictureFigure(pictures, onPicture) {
  const canvas = find("#drawing");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  let cursor = { x: DRAWING / 2, y: DRAWING / 2 };
  clear();

  function clear() {
    context.fillStyle = "black";
    context.fillRect(0, 0, DRAWING, DRAWING);
  }

  function line(to) {
    Object.assign(context, { strokeStyle: "white", lineWidth: PEN, lineCap: "round" });
    context.beginPath();
    context.moveTo(cursor.x, cursor.y);
    context.lineTo(to.x, to.y);
    context.stroke();
    cursor = to;
    find(".hint").hidden = true;
  }

  function placeOf(event) {
    const box = canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * DRAWING,
      y: ((event.clientY - box.top) / box.height) * DRAWING,
    };
  }

  const drawn = () => onPicture({ source: fitted(canvas), drawn: true });

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    line((cursor = placeOf(event)));
  });
  canvas.addEventListener("pointermove", (event) => event.buttons && line(placeOf(event)));
  canvas.addEventListener("pointerup", drawn);
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [0, -16], ArrowDown: [0, 16], ArrowLeft: [-16, 0], ArrowRight: [16, 0] };
    if (!step[event.key]) return;
    event.preventDefault();
    const inside = (value) => Math.min(DRAWING - PEN, Math.max(PEN, value));
    const to = { x: inside(cursor.x + step[event.key][0]), y: inside(cursor.y + step[event.key][1]) };
    if (event.shiftKey) cursor = to; // without ink
    else line(to);
    drawn();
  });
  find("#clear").addEventListener("click", clear);

  find("#pictures").append(
    ...pictures.map(({ label, network, url }) => {
      const image = Object.assign(new Image(), { src: url, alt: "" });
      const button = make("button", "thumbnail", image);
      button.setAttribute("aria-label", label);
      button.addEventListener("click", async () => onPicture({ source: await decoded(url), network }));
      return button;
    }),
  );

  const open = async (file) => {
    if (!file) return;
    const url = URL.createObjectURL(file);
    try {
      onPicture({ source: await decoded(url), network: "" });
    } catch {
      const found = "found another kind of file: open a JPEG or PNG";
      find("#status").textContent = `${file.name}: expected a picture, ${found}`;
    }
    URL.revokeObjectURL(url);
  };
  find("#file").addEventListener("change", ({ target }) => open(target.files[0]));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    open(event.dataTransfer.files[0]);
  });
}

async function decoded(url) {
  const image = Object.assign(new Image(), { src: url });
  await image.decode();
  return image;
}

/** A drawing treated like the training digits: cropped, reduced to 8x8 and enlarged. */
function fitted(canvas) {
  const { data } = canvas.getContext("2d").getImageData(0, 0, DRAWING, DRAWING);
  let [left, top, right, bottom] = [DRAWING, DRAWING, 0, 0];
  for (let i = 0; i < data.length; i += 4) {
    if (data[i] < 64) continue;
    const [x, y] = [(i / 4) % DRAWING, Math.floor(i / 4 / DRAWING)];
    [left, right] = [Math.min(left, x), Math.max(right, x + 1)];
    [top, bottom] = [Math.min(top, y), Math.max(bottom, y + 1)];
  }
  if (right <= left) return resized(canvas, [0, 0, DRAWING, DRAWING], 8, 32);
  const side = Math.max(right - left, bottom - top);
  const box = [(left + right - side) / 2, (top + bottom - side) / 2, side, side];
  return resized(canvas, box, 8, 32);
}

/** A box of a picture, resized to each of `sizes` in turn. */
function resized(source, box, ...sizes) {
  for (const size of sizes) {
    const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.fillRect(0, 0, size, size);
    context.drawImage(source, ...box, 0, 0, size, size);
    [source, box] = [canvas, [0, 0, size, size]];
  }
  return source;
}
