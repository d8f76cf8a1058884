"use strict";
// The state of the page, and what happens when the reader changes it.

const state = {
  name: "", // of the network
  size: 0, // of its pictures, in pixels
  source: null, // what the picture is made from
  stage: 0,
  index: 0, // of the block in its stage
  y: 0.5, // the place pointed at, as a fraction of the picture
  x: 0.5,
  part: 0, // Q, K or V
  segment: 1,
  channel: 0, // of a segment
  form: "linear",
  scale: "one", // for all heads
  off: new Set(),
  everywhere: true,
  seed: 1,
  engine: "wasm", // or "webgpu"
};
const view = { state, model: null, block: null, attention: null, baseline: null, canvas: null };
let networks = [];
let figures = [];
let opening = Promise.resolve();

/** Change network, size or picture. Calls run one after the other, as loading takes time. */
function reopen(changes) {
  opening = opening.then(async () => {
    const wanted = { ...state, ...changes };
    try {
      find("#status").textContent = "loading …";
      if (!view.model || wanted.name !== state.name || wanted.size !== state.size) {
        const model = await Model.load(wanted.name, wanted.size);
        view.model?.close();
        view.model = model;
      }
      const trouble = await view.model.use(wanted.engine).catch((error) => error);
      Object.assign(state, changes, trouble && { engine: "wasm" });
      const { info, network } = view.model;
      state.stage = Math.min(state.stage, info.depths.length - 1);
      state.index = Math.min(state.index, info.depths[state.stage] - 1);
      const pixels = crop(state.source, info);
      view.canvas = Object.assign(document.createElement("canvas"), { width: info.size, height: info.size });
      view.canvas.getContext("2d").putImageData(pixels, 0, 0);
      view.picture = network.prepare(pixels);
      view.baseline = await view.model.run(view.picture);
      await run();
      tellPace();
      fillSelects();
      find("#status").textContent = trouble?.message ?? "";
    } catch (error) {
      find("#status").textContent = error.message;
    }
  });
  return opening;
}

/** Run the network again, with some parts off. */
function run(changes = {}) {
  Object.assign(state, changes);
  const chosen = [{ stage: state.stage, index: state.index }];
  const where = state.everywhere ? view.model.blocks : chosen;
  const done = view.model.run(view.picture, state.off, where);
  return view.model.gpu ? done.then(lookAtBlock) : lookAtBlock();
}

function lookAtBlock() {
  view.block = new Block(view.model, state);
  view.attention = new Attention(view.block);
  find("#channel").max = view.block.segment;
  state.channel = Math.min(state.channel, view.block.segment - 1);
  redraw();
}

/** Change place, channel or form: nothing runs again. */
function change(changes) {
  Object.assign(state, changes);
  redraw();
}

/** Figures in view are drawn at the next frame, others when they scroll into view. */
function redraw() {
  for (const figure of figures) figure.stale = true;
  requestAnimationFrame(drawStale);
}

function drawStale() {
  if (!view.block) return;
  const { side } = view.block;
  view.place = { row: Math.floor(state.y * side), column: Math.floor(state.x * side) };
  for (const figure of figures) {
    if (!figure.stale || figure.hidden) continue;
    figure.stale = false;
    figure.draw(view);
  }
}

const point = (row, column) => {
  const { side } = view.block;
  change({ y: (row + 0.5) / side, x: (column + 0.5) / side });
};

function benchFigure() {
  const picture = new TokenMap("the picture: point at a place", point);
  find("#bench-picture").append(picture.element);
  return {
    element: find("#bench"),
    draw({ model, block, canvas, place }) {
      picture.drawPicture(canvas, block.side);
      picture.mark(place);
      find("#verdict").textContent = model.info.head ? told(model, model.logits) : "";
      find("#channel").value = state.channel + 1;
      find("#channel-number").textContent = `${state.channel + 1} of ${block.segment}`;
      find("#block-select").value = `${state.stage}.${state.index}`;
      const numbers = `row ${place.row + 1}, column ${place.column + 1} of ${block.side}×${block.side}`;
      find("#place").textContent = numbers;
    },
  };
}

function tellPace() {
  const { took, team, gpu } = view.model;
  const threads = team.threads > 1 ? `${team.threads} threads` : "one thread";
  const on = gpu ? "the GPU" : threads;
  const time = took < 1 ? "less than 1 ms" : `${short(took)} ms`; // some browsers count whole ones
  find("#pace").textContent = `${time} on ${on}`;
}

function fillSelects() {
  const option = (value, text) => new Option(text, value);
  const known = networks.find(({ name }) => name === state.name);
  find("#network-select").replaceChildren(...networks.map(({ name }) => option(name, name)));
  find("#network-select").value = state.name;
  const label = (size) => `${size}×${size}${size === known.trained ? " (as trained)" : ""}`;
  find("#size-select").replaceChildren(...known.sizes.map((size) => option(size, label(size))));
  find("#size-select").value = state.size;
  for (const radio of find("#engine").querySelectorAll("input")) radio.checked = radio.value === state.engine;
  find("#block-select").replaceChildren(
    ...view.model.blocks.map(({ stage, index }) =>
      option(`${stage}.${index}`, `stage ${stage + 1}, block ${index + 1}`),
    ),
  );
  const note = `It was trained at ${known.trained}×${known.trained} pixels. At other sizes trust its maps
    more than its answer.`;
  find("#note").textContent = known.trained && state.size !== known.trained ? note : "";
  find("#parameters").textContent = known.parameters.toLocaleString("en");
}

/** Show a picture, with the network and the size that suit it. */
function take({ source, network = "", drawn = false }) {
  const names = networks.map(({ name }) => name);
  const wanted = drawn && names.includes("digits") ? "digits" : network;
  const known = networks.find(({ name }) => name === (names.includes(wanted) ? wanted : state.name));
  const own = known.trained ?? 224;
  const size = wanted || own > 64 ? own : Math.max(...known.sizes); // small sizes show little of a photograph
  reopen({ source, name: known.name, size });
}

async function start() {
  const [contents, pictures] = await Promise.all([load("contents"), load("pictures")]);
  networks = contents.value;
  const chooseBlock = (stage, index) => run({ stage, index });
  const look = { state, point, change };
  figures = [
    benchFigure(),
    answerFigure(find("#answer")),
    stagesFigure(chooseBlock),
    blockFigure((segment) => change({ segment })),
    proxyFigure(look),
    attentionFigure(look),
    switchesFigure(run),
    positionFigure(look),
  ];
  const sight = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries)
        figures.find(({ element }) => element === target).hidden = !isIntersecting;
      drawStale();
    },
    { rootMargin: "300px" },
  );
  for (const { element } of figures) sight.observe(element);
  dark.addEventListener("change", redraw);
  pictureFigure(pictures.value, take);
  find("#network-select").addEventListener("change", ({ target }) => {
    const { name, sizes } = networks.find(({ name }) => name === target.value);
    reopen({ name, size: sizes[0] });
  });
  const engines = [["wasm", "WebAssembly", true], ["webgpu", "WebGPU"]];
  if (await navigator.gpu?.requestAdapter())
    choices(find("#engine"), "radio", "engine", engines, (engine) => reopen({ engine }));
  find("#size-select").addEventListener("change", ({ target }) => reopen({ size: Number(target.value) }));
  find("#block-select").addEventListener("change", ({ target }) =>
    chooseBlock(...target.value.split(".").map(Number)),
  );
  find("#channel").addEventListener("input", ({ target }) => change({ channel: target.value - 1 }));
  const first = pictures.value.find(({ network }) => network === networks[0].name) ?? pictures.value[0];
  Object.assign(state, { name: networks[0].name });
  take({ source: await decoded(first.url), network: first.network });
}

start().catch((error) => (find("#status").textContent = error.message));
