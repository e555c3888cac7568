"use strict";
// What is shown and what can be moved. The state is `world`, `runs`, `chosen` and `shown`.

const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]; // Okabe and Ito's
const MARKS = [ // in a square from -1 to 1, one for each colour
  "M-.9 0A.9 .9 0 1 1 .9 0A.9 .9 0 1 1-.9 0Z", "M-.8-.8H.8V.8H-.8Z", "M0-1.05 1 .75H-1Z", "M0-1.15 1.15 0 0 1.15-1.15 0Z",
  "M0 1.05 1-.75H-1Z", "M-.35-1H.35V-.35H1V.35H.35V1H-.35V.35H-1V-.35H-.35Z",
];
const STAR = "M0-1 .29-.4 .95-.31 .48 .15 .59 .81 0 .5-.59 .81-.48 .15-.95-.31-.29-.4Z";

// Of each setting: its name, its range, how a slider divides it, and the value to begin with.
const SETTINGS = {
  lr: { name: "learning rate", low: 1e-4, high: 30, scale: "log", first: 0.05 },
  momentum: { name: "momentum", low: 0, high: 0.99, scale: "linear", first: 0.9 },
  beta1: { name: "beta 1 (mean)", low: 0, high: 0.999, scale: "memory", first: 0.9 },
  beta2: { name: "beta 2 (squares)", low: 0, high: 0.9999, scale: "memory", first: 0.999 },
  alpha: { name: "alpha (squares)", low: 0, high: 0.9999, scale: "memory", first: 0.99 },
  rho: { name: "rho (squares)", low: 0, high: 0.9999, scale: "memory", first: 0.9 },
  weight_decay: { name: "weight decay", low: 1e-4, high: 1, scale: "zero", first: 0 },
  step_size: { name: "steps between cuts", low: 1, high: 500, scale: "log", whole: true, first: 50 },
  gamma: { name: "gamma", low: 0.05, high: 1, scale: "linear", first: 0.5 },
  factor: { name: "factor", low: 0.05, high: 0.95, scale: "linear", first: 0.5 },
  patience: { name: "patience", low: 0, high: 20, scale: "linear", whole: true, first: 2 },
  eta_min: { name: "lowest learning rate", low: 1e-4, high: 1, scale: "zero", first: 0 },
  T_0: { name: "first cycle, steps", low: 2, high: 500, scale: "log", whole: true, first: 20 },
  T_mult: { name: "each next longer by", low: 1, high: 4, scale: "linear", whole: true, first: 2 },
  end_factor: { name: "fraction at the end", low: 0, high: 1, scale: "linear", first: 0 },
  pct_start: { name: "part that rises", low: 0.1, high: 0.9, scale: "linear", first: 0.3 },
  div_factor: { name: "start: peak divided by", low: 1, high: 100, scale: "log", first: 25 },
  decay: { name: "part that decays", low: 0.05, high: 1, scale: "linear", first: 0.2 },
  shape: { name: "shape of the decay", choices: ["sqrt", "linear", "cosine"], first: "sqrt" },
  warmup_steps: { name: "warmup, steps", low: 0, high: 300, scale: "linear", whole: true, first: 0 },
};
const OF_WORLD = {
  steps: { name: "steps", low: 20, high: 1000, scale: "log", whole: true, first: 200 },
  noise: { name: "noise of the gradient", low: 0.01, high: 20, scale: "zero", first: 0 },
  seed: { name: "seed of the noise", low: 0, high: DATA.noise.length - 1, scale: "linear", whole: true, first: 0 },
};
const MOST_RUNS = COLOURS.length, POSITIONS = 200, MOST_DOTS = 250, NUDGE = 1e-12;

const EXAMPLES = [
  ["Momentum in a valley", "surface=valley&start=-9,1.5&steps=400&run=SGD,lr:0.05&run=Momentum,lr:0.05&run=SGD,lr:0.5",
    "The walls allow small steps only, the floor needs large ones. Momentum adds up along the floor and cancels between the walls. A large learning rate bounces between the walls for ever."],
  ["Small, large, annealed", "surface=two_wells&start=5&steps=60&run=SGD,lr:0.05&run=SGD,lr:4&run=SGD,lr:4,schedule:CosineAnnealingLR",
    "A small learning rate is stuck in the first well. A large one jumps across it and never settles. Large first and small in the end, it jumps, and settles in the deep well."],
  ["Two scales", "surface=scales&start=1,1&steps=100&run=Adam,lr:0.1&run=SGD,lr:0.015",
    "Steep in x, flat in y. SGD's one learning rate must suit x, so y hardly moves. Adam divides by the size of each parameter's own gradients: see its two effective learning rates."],
  ["Divergence", "surface=well&start=-4.5&steps=20&run=SGD,lr:0.3&run=SGD,lr:1.9&run=SGD,lr:2&run=SGD,lr:2.1",
    "On x²/2 each step multiplies x by 1 − lr. At 1.9 it jumps from side to side and still arrives, at 2 it stays as far away for ever, above it diverges: the limit is 2 / curvature."],
  ["Mini-batch noise", "surface=quadratic&start=-4.5,2.5&steps=200&noise=4&run=SGD,lr:0.08&run=SGD,lr:0.08,schedule:CosineAnnealingLR",
    "Each gradient has a random part, as a mini-batch's has. At a constant learning rate the path never comes to rest; with a cosine down to 0 it does."],
  ["Warm restarts", "surface=two_wells&start=5&steps=70&noise=0.1&run=SGD,lr:0.4,schedule:CosineAnnealingWarmRestarts,T_0:10",
    "Two cycles end in the shallow well; the third keeps the learning rate high for long enough to leave it. Try another seed, or another length of the first cycle."],
  ["Four minima", "surface=himmelblau&start=0.5,-5&steps=200&run=SGD,lr:0.01&run=Momentum,lr:0.005&run=Momentum,lr:0.01&run=Adam,lr:0.5",
    "One start, and each ends in another minimum. Which one is reached depends on the optimizer as well as on the start: drag it."],
  ["L2 or decay", "surface=himmelblau&start=4.5,4&steps=400&run=Adam,lr:0.1,weight_decay:0.5&run=AdamW,lr:0.1,weight_decay:0.5",
    "The same weight decay of 0.5. Adam adds it to the gradient and divides both, so that it hardly counts beside large gradients. AdamW's is not divided, and pulls far toward 0."],
  ["A race", "surface=rosenbrock&start=-0.5,2.5&steps=1000&run=SGD,lr:0.002&run=Momentum,lr:0.001&run=Nesterov,lr:0.001&run=Adagrad,lr:1&run=Adam,lr:0.1&run=NAdam,lr:0.1",
    "Down the wall is easy, along the bent floor is not. Find settings with which another one wins."],
];

const $ = id => document.getElementById(id);
const bounded = (value, low, high) => Math.min(high, Math.max(low, value));
const shorter = (value, digits = 3) => Number(value.toPrecision(digits));
let world, runs, chosen = 0, results = [], shown = 0, playing = null;

// ---- settings and sliders

const lowest = spec => spec.scale === "zero" ? 0 : spec.low;

function valid(spec, value) {
  if (spec.choices) return spec.choices.includes(value) ? value : spec.first;
  if (value === "" || !Number.isFinite(Number(value))) return spec.first;
  const inside = bounded(Number(value), lowest(spec), spec.high);
  return spec.whole ? Math.round(inside) : inside;
}

function valueAt(spec, position) {
  const { low, high, scale } = spec, t = position / POSITIONS;
  if (scale === "linear") return valid(spec, shorter(low + (high - low) * t));
  if (scale === "memory") return shorter(1 - shorter((1 - low) * ((1 - high) / (1 - low)) ** t, 2), 6);
  return scale === "zero" && t === 0 ? 0 : valid(spec, shorter(low * (high / low) ** t, 2));
}

function positionOf({ low, high, scale }, value) {
  const t = scale === "linear" ? (value - low) / (high - low)
    : scale === "memory" ? Math.log((1 - value) / (1 - low)) / Math.log((1 - high) / (1 - low))
    : value <= 0 ? 0 : Math.log(value / low) / Math.log(high / low);
  return Math.round(POSITIONS * bounded(t, 0, 1));
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, attributes);
  made.append(...children);
  return made;
}

// A setting of `owner`, which is `world` or a run, as a row of the panel.
function settingRow(owner, key, spec) {
  const id = `set-${key}`, row = element("div", { className: "setting" });
  row.append(element("label", { htmlFor: id, textContent: spec.name }));
  if (spec.choices) {
    const select = element("select", { id }, ...spec.choices.map(name => element("option", { textContent: name })));
    select.value = owner[key];
    select.onchange = () => { owner[key] = select.value; changed(); };
    row.append(select);
    return row;
  }
  const attributes = { min: lowest(spec), max: spec.high, step: spec.whole ? 1 : "any", ariaLabel: `${spec.name}, exactly` };
  const number = element("input", { type: "number", id: `${id}-number`, ...attributes });
  const range = element("input", { type: "range", id, min: 0, max: POSITIONS });
  const show = () => { range.ariaValueText = String(owner[key]); };
  if (spec.whole && spec.scale === "linear") range.step = POSITIONS / (spec.high - spec.low); // a value each
  number.value = owner[key];
  range.value = positionOf(spec, owner[key]);
  range.oninput = () => {
    owner[key] = valueAt(spec, Number(range.value));
    number.value = owner[key];
    show();
    changed();
  };
  number.onchange = () => {
    number.value = owner[key] = valid(spec, number.value);
    range.value = positionOf(spec, owner[key]);
    show();
    changed();
  };
  show();
  row.append(number, range);
  return row;
}

function choiceRow(name, id, kinds, value, choose) {
  const select = element("select", { id });
  for (const [key, kind] of Object.entries(kinds)) select.append(new Option(kind.name ?? key, key, false, key === value));
  select.onchange = () => { choose(select.value); structureChanged(); };
  return element("div", { className: "setting" }, element("label", { htmlFor: id, textContent: name }), select,
    element("span", { className: "about", textContent: kinds[value].about }));
}

function showSettings() {
  const focus = document.activeElement?.id, run = runs[chosen];
  const optimizer = OPTIMIZERS[run.optimizer], schedule = SCHEDULES[run.schedule];
  const rows = names => names.map(name => settingRow(run, name, SETTINGS[name]));
  $("of-run").replaceChildren(
    choiceRow("optimizer", "set-optimizer", OPTIMIZERS, run.optimizer, name => Object.assign(run, of(name), { lr: run.lr })),
    ...rows(optimizer.settings),
    choiceRow("schedule", "set-schedule", SCHEDULES, run.schedule, name => { run.schedule = name; }),
    ...rows([...schedule.settings, "warmup_steps"]));
  const axes = ["x", "y"].slice(0, world.start.length).map((name, i) => {
    const number = element("input", { type: "number", id: `start-${name}`, step: "any", value: world.start[i] });
    number.onchange = () => moveStart(world.start.map((v, j) => j === i ? Number(number.value) : v));
    return element("div", { className: "setting" }, element("label", { htmlFor: number.id, textContent: `start, ${name}` }), number);
  });
  $("of-world").replaceChildren(...axes, ...Object.keys(OF_WORLD).map(key => settingRow(world, key, OF_WORLD[key])));
  $("surface-select").value = world.surface;
  $("formula").textContent = DATA.surfaces[world.surface].about.replace(/ \([A-Z].*\)/, "");
  document.body.classList.toggle("of-one", world.start.length === 1);
  if (focus) $(focus)?.focus();
}

// ---- state and link

function of(optimizer) { // the settings to begin with
  const first = Object.fromEntries(Object.entries(SETTINGS).map(([key, spec]) => [key, spec.first]));
  return { ...first, ...OPTIMIZERS[optimizer].defaults, optimizer };
}

function link() {
  const words = [`surface=${world.surface}`, `start=${world.start}`];
  for (const key in OF_WORLD) if (world[key] !== OF_WORLD[key].first || key === "steps") words.push(`${key}=${world[key]}`);
  for (const run of runs) {
    const first = { ...of(run.optimizer), lr: null, schedule: "constant" };
    const used = ["lr", ...OPTIMIZERS[run.optimizer].settings, "schedule", ...SCHEDULES[run.schedule].settings, "warmup_steps"];
    const told = [...new Set(used)].filter(key => run[key] !== first[key]).map(key => `${key}:${run[key]}`);
    words.push(`run=${[run.optimizer, ...told]}`);
  }
  return `#${words.join("&")}`;
}

// Takes the settings of a link; what it does not know, or gets wrong, is as in the beginning.
function load(hash) {
  const words = new URLSearchParams(hash.replace(/^#/, "") || EXAMPLES[0][1]);
  const surface = words.get("surface") in SURFACES ? words.get("surface") : "valley";
  world = { surface };
  for (const [key, spec] of Object.entries(OF_WORLD)) world[key] = valid(spec, words.get(key) ?? "");
  const start = (words.get("start") ?? "").split(",");
  world.start = DATA.surfaces[surface].view.map(([low, high], i) => {
    const value = parseFloat(start[i]);
    return bounded(Number.isFinite(value) ? value : low + (high - low) / 5, low, high);
  });
  runs = words.getAll("run").slice(0, MOST_RUNS).map(text => {
    const [optimizer, ...pairs] = text.split(",");
    const run = { ...of(optimizer in OPTIMIZERS ? optimizer : "SGD"), schedule: "constant" };
    for (const [key, value] of pairs.map(pair => pair.split(":"))) {
      if (key in SETTINGS) run[key] = valid(SETTINGS[key], value);
      else if (key === "schedule" && value in SCHEDULES) run.schedule = value;
    }
    return run;
  });
  if (!runs.length) runs = [{ ...of("SGD"), schedule: "constant" }];
  chosen = 0;
  structureChanged();
}

function titleOf(run) {
  const schedule = run.schedule === "constant" ? "" : `, ${SCHEDULES[run.schedule].name}`;
  return `${run.optimizer} ${run.lr}${schedule}${run.warmup_steps ? ", warmup" : ""}`;
}

let atEnd = true, awaited = null, linkTimer = null;

function structureChanged() { // other controls than before
  showSettings();
  changed();
}

function changed() { // another path
  pause();
  atEnd = true;
  results = [];
  redraw();
  clearTimeout(linkTimer);
  linkTimer = setTimeout(() => history.replaceState(null, "", link()), 250);
}

function redraw() {
  awaited ??= requestAnimationFrame(() => { awaited = null; update(); });
}

function update() {
  if (!results.length) compute();
  drawSurface();
  drawCharts();
  showRuns();
}

function compute() {
  const draws = noiseOf(world.seed);
  for (const run of runs) run.warmup_steps = Math.min(run.warmup_steps, world.steps - 20);
  results = runs.map(run => {
    const done = train(world, run, draws), near = train(world, run, draws, NUDGE).path;
    const apart = (point, k) => near[k] && Math.hypot(...point.map((x, i) => x - near[k][i]));
    done.chaotic = done.path.some((point, k) => apart(point, k) > 1e8 * NUDGE);
    return done;
  });
  if (atEnd) shown = world.steps;
  showCommand();
  const hash = link();
  let current = EXAMPLES.find(([, words]) => `#${words}` === hash);
  for (const [i, a] of [...$("examples").children].entries()) a.ariaCurrent = String(EXAMPLES[i] === current);
  $("story").textContent = current ? current[2] : "Your own settings. The examples above are places to start from.";
}

const unpacked = {};
function noiseOf(seed) {
  unpacked[seed] ??= new Float64Array(Uint8Array.from(atob(DATA.noise[seed]), c => c.charCodeAt(0)).buffer);
  return unpacked[seed];
}

function showCommand() {
  const run = runs[chosen], { path } = results[chosen];
  $("chosen").replaceChildren(mark(chosen), titleOf(run));
  $("command-title").replaceChildren(mark(chosen), `${titleOf(run)}: the command that trains the same`);
  const words = command(world, run).split(" ").flatMap(word => [element("span", { textContent: word }), " "]);
  $("command").replaceChildren(...words.slice(0, -1));
  $("chaos").textContent = !results[chosen].chaotic ? ""
    : "This path is chaotic: a start moved by a trillionth leads elsewhere. So may the command, as it rounds another last digit.";
}

function mark(i) {
  const span = element("span");
  span.innerHTML = `<svg class="mark" viewBox="-1.2 -1.2 2.4 2.4" aria-hidden="true"><path d="${MARKS[i]}" fill="${COLOURS[i]}"/></svg>`;
  return span.firstChild;
}

function showRuns() {
  const body = document.querySelector("#runs tbody");
  const same = body.children.length === runs.length;
  if (!same) body.replaceChildren(...runs.map((_, i) => runRow(i)));
  runs.forEach((run, i) => {
    const done = results[i], row = body.children[i], k = Math.min(shown, done.path.length - 1);
    const step = Math.min(k, done.lrs.length - 1);
    const note = done.diverged && shown >= done.diverged ? `diverged at step ${done.diverged}` : done.chaotic ? "chaotic" : "";
    const values = [done.losses[k], done.path[k][0], done.path[k][1], done.lrs[step], ...(done.rates[step] ?? [])];
    row.ariaSelected = String(i === chosen);
    row.querySelector("button").ariaPressed = String(i === chosen);
    row.querySelector(".title").textContent = titleOf(run);
    row.querySelector(".note").textContent = note && ` ${note}`;
    row.querySelectorAll("td.value").forEach((cell, j) => { cell.textContent = number(values[j]); });
    row.lastChild.firstChild.disabled = runs.length === 1;
  });
  $("add").disabled = runs.length === MOST_RUNS;
  $("step").max = world.steps;
  $("step").value = shown;
  $("step-shown").textContent = `${shown} of ${world.steps}`;
}

function runRow(i) {
  const choose = element("button", { type: "button" }, mark(i), element("span", { className: "title" }), element("span", { className: "note" }));
  const remove = element("button", { type: "button", textContent: "✕", title: "Remove", ariaLabel: "Remove this optimizer" });
  choose.onclick = () => { chosen = i; showSettings(); showCommand(); redraw(); };
  remove.onclick = () => {
    runs.splice(i, 1);
    chosen = Math.min(chosen, runs.length - 1);
    structureChanged();
  };
  const cells = ["", "wide", "wide y", "wide", "wide", "wide y"].map(name => element("td", { className: `value ${name}` }));
  return element("tr", {}, element("td", {}, choose), ...cells, element("td", {}, remove));
}

function number(value) {
  if (value === undefined || !Number.isFinite(value)) return "–";
  return Math.abs(value) < 1e-12 ? "0" : String(shorter(value)).replace("e-", "e−").replace(/^-/, "−");
}

// ---- drawing

// A canvas with axes: at(x, y) is where a point lies on it.
class Plot {
  constructor(canvas, [xLow, xHigh], [yLow, yHigh], { log = false, xName = "", yName = "" } = {}) {
    const scale = devicePixelRatio, { clientWidth, clientHeight } = canvas;
    if (canvas.width !== Math.round(clientWidth * scale)) canvas.width = Math.round(clientWidth * scale);
    if (canvas.height !== Math.round(clientHeight * scale)) canvas.height = Math.round(clientHeight * scale);
    this.context = canvas.getContext("2d");
    this.context.setTransform(scale, 0, 0, scale, 0, 0);
    this.context.clearRect(0, 0, clientWidth, clientHeight);
    Object.assign(this, { xLow, xHigh, yLow, yHigh, log, xName, yName });
    this.left = yName ? 50 : 46;
    this.top = 8;
    this.width = clientWidth - this.left - 14;
    this.height = clientHeight - this.top - (xName ? 36 : 22);
  }

  x(value) {
    return this.left + this.width * (value - this.xLow) / (this.xHigh - this.xLow);
  }

  y(value) {
    const t = this.log ? Math.log(value / this.yLow) / Math.log(this.yHigh / this.yLow) : (value - this.yLow) / (this.yHigh - this.yLow);
    return this.top + this.height * (1 - t);
  }

  at(x, y) { // not too far outside: no renderer takes 1e300
    return [bounded(this.x(x), -1e4, 1e4), bounded(this.y(this.log ? Math.max(y, 1e-300) : y), -1e4, 1e4)];
  }

  inside(draw) {
    const { context, left, top, width, height } = this;
    context.save();
    context.beginPath();
    context.rect(left, top, width, height);
    context.clip();
    draw(context);
    context.restore();
  }

  line(points, { colour, width = 1.6, dash = [] }) {
    const { context } = this;
    context.beginPath();
    for (const [x, y] of points) context.lineTo(...this.at(x, y));
    context.setLineDash(dash);
    Object.assign(context, { strokeStyle: colour, lineWidth: width, lineJoin: "round" });
    context.stroke();
    context.setLineDash([]);
  }

  shape(path, x, y, size, fill, edge = "#fff", edgeWidth = 1.5) {
    const { context } = this, [left, top] = this.at(x, y);
    context.save();
    context.translate(left, top);
    context.scale(size, size);
    Object.assign(context, { fillStyle: fill, strokeStyle: edge, lineWidth: 2 * edgeWidth / size, lineJoin: "round" });
    context.stroke(new Path2D(path));
    context.fill(new Path2D(path));
    context.restore();
  }

  axes(grid = true) {
    const { context, left, top, width, height } = this;
    Object.assign(context, { fillStyle: "#3f4a59", strokeStyle: "#e3e7ed", lineWidth: 1, font: "12px system-ui, sans-serif" });
    context.textAlign = "center";
    context.textBaseline = "top";
    const rule = (...ends) => { context.beginPath(); context.moveTo(ends[0], ends[1]); context.lineTo(ends[2], ends[3]); context.stroke(); };
    for (const value of ticks(this.xLow, this.xHigh, width / 70)) {
      if (grid) rule(this.x(value), top, this.x(value), top + height);
      context.fillText(tickText(value), this.x(value), top + height + 5);
    }
    if (this.xName) context.fillText(this.xName, left + width / 2, top + height + 21);
    context.textAlign = "right";
    context.textBaseline = "middle";
    const marks = this.log ? decades(this.yLow, this.yHigh, height / 28) : ticks(this.yLow, this.yHigh, height / 32);
    for (const value of marks) {
      if (grid) rule(left, this.y(value), left + width, this.y(value));
      context.fillText(tickText(value), left - 6, this.y(value));
    }
    if (this.yName) {
      context.save();
      context.translate(11, top + height / 2);
      context.rotate(-Math.PI / 2);
      context.textAlign = "center";
      context.fillText(this.yName, 0, 0);
      context.restore();
    }
    context.strokeStyle = "#8a94a2";
    context.strokeRect(left, top, width, height);
  }
}

function ticks(low, high, most) {
  const rough = (high - low) / Math.max(2, most), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(m => m * power).find(size => size >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  return found;
}

function decades(low, high, most) {
  const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
  const stride = Math.max(1, Math.ceil((last - first + 1) / Math.max(2, most)));
  const found = [];
  for (let e = first; e <= last; e += stride) found.push(10 ** e);
  if (last - first < 1) {
    for (const m of [2, 5]) for (let e = first - 1; e <= last; e++) if (m * 10 ** e > low && m * 10 ** e < high) found.push(m * 10 ** e);
  }
  return found;
}

function tickText(value) {
  const text = String(shorter(value)), small = Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5;
  return (value && small ? value.toExponential(0).replace("e+", "e") : text).replace(/-/g, "−");
}

// The surface itself, by pixels: darker is higher, lines are equal losses.
const LOW = [242, 245, 250], HIGH = [150, 160, 178];
let painted = {};
function paint(plot) {
  const scale = Math.min(devicePixelRatio, 1e3 / Math.hypot(plot.width, plot.height)); // in a blink, on any screen
  const width = Math.round(plot.width * scale), height = Math.round(plot.height * scale);
  const key = [world.surface, width, height].join();
  if (painted.key === key) return painted.image;
  const surface = SURFACES[world.surface], [[xLow, xHigh], [yLow, yHigh]] = DATA.surfaces[world.surface].view;
  const dx = (xHigh - xLow) / width, dy = (yHigh - yLow) / height, sample = [];
  for (let i = 0; i < 60; i++) for (let j = 0; j < 60; j++) sample.push(surface(xLow + (xHigh - xLow) * i / 59, yLow + (yHigh - yLow) * j / 59)[0]);
  sample.sort((a, b) => a - b);
  const levels = Array.from({ length: 17 }, (_, i) => sample[Math.round((i / 16) ** 1.5 * (sample.length - 1))]);
  const last = levels.length - 2, pixels = new ImageData(width, height);
  for (let row = 0, at = 0; row < height; row++) for (let column = 0; column < width; column++, at += 4) {
    const [loss, [gx, gy]] = surface(xLow + (column + 0.5) * dx, yHigh - (row + 0.5) * dy);
    let band = 0;
    while (band < last && loss > levels[band + 1]) band++;
    const apart = Math.min(band ? loss - levels[band] : Infinity, band < last ? levels[band + 1] - loss : Infinity);
    const line = bounded(scale * 0.5 + 0.5 - apart / Math.hypot(gx * dx, gy * dy), 0, 0.9), t = band / last;
    for (let i = 0; i < 3; i++) {
      const shade = LOW[i] + (HIGH[i] - LOW[i]) * t;
      pixels.data[at + i] = shade + (255 - shade) * line;
    }
    pixels.data[at + 3] = 255;
  }
  const image = element("canvas", { width, height });
  image.getContext("2d").putImageData(pixels, 0, 0);
  painted = { key, image };
  return image;
}

let surfacePlot;
function drawSurface() {
  const { view, minima } = DATA.surfaces[world.surface], surface = SURFACES[world.surface];
  const flat = view.length === 1, loss = x => surface(x)[0];
  const xs = flat && Array.from({ length: 401 }, (_, i) => view[0][0] + (view[0][1] - view[0][0]) * i / 400);
  const heights = flat && xs.map(loss), top = flat && Math.max(...heights), bottom = flat && Math.min(...heights);
  const yRange = flat ? [bottom - 0.06 * (top - bottom), top + 0.06 * (top - bottom)] : view[1];
  const plot = surfacePlot = new Plot($("surface"), view[0], yRange, { xName: "x", yName: flat ? "loss" : "y" });
  const place = point => [point[0], flat ? loss(point[0]) : point[1]];
  if (flat) plot.axes();
  else plot.context.drawImage(paint(plot), plot.left, plot.top, plot.width, plot.height);
  plot.inside(() => {
    if (flat) plot.line(xs.map((x, i) => [x, heights[i]]), { colour: "#8a94a2", width: 3 });
    const depth = minima.map(at => surface(...at)[0]);
    minima.forEach((at, i) => plot.shape(STAR, ...place(at), 13, depth[i] < depth[0] + 1e-3 ? "#000" : "#fff", depth[i] < depth[0] + 1e-3 ? "#fff" : "#000"));
    const order = [...runs.keys()].sort((a, b) => (a === chosen) - (b === chosen)); // the chosen one on top
    for (const i of order) drawPath(plot, results[i].path.slice(0, shown + 1).map(place), i);
    for (const i of order) plot.shape(MARKS[i], ...place(results[i].path[Math.min(shown, results[i].path.length - 1)]), i === chosen ? 9 : 7, COLOURS[i]);
  });
  if (!flat) plot.axes(false);
  plot.shape(MARKS[0], ...place(world.start), 7, "#fff", "#000", 2.5);
  $("surface").ariaLabel = `The surface ${world.surface} with the paths of ${runs.length} optimizers, from the start at ${world.start.join(", ")}. ` +
    "Arrow keys move the start, with Shift in small steps.";
}

function drawPath(plot, points, i) {
  const { context } = plot, strong = i === chosen;
  if (strong) plot.line(points, { colour: "#ffffffb0", width: 5 });
  plot.line(points, { colour: COLOURS[i], width: strong ? 2.2 : 1.5 });
  if (points.length > MOST_DOTS) return;
  context.fillStyle = COLOURS[i];
  for (const point of points) {
    context.beginPath();
    context.arc(...plot.at(...point), strong ? 2.8 : 2.1, 0, 7);
    context.fill();
  }
}

function drawCharts() {
  const first = results[0].losses[0], finite = results.flatMap(done => done.losses);
  const low = finite.reduce((a, b) => Math.min(a, b)), high = finite.reduce((a, b) => Math.max(a, b));
  if (low >= 0 && first > 0) {
    const floor = Math.max(low, 1e-8 * first);
    chart("loss", [floor / 1.3, Math.max(2 * floor, Math.min(high, 1e3 * first)) * 1.3], true, done => [done.losses]);
  } else {
    const most = Math.min(high, first + 2 * (first - low)), margin = 0.05 * (most - low) || 1;
    chart("loss", [low - margin, most + margin], false, done => [done.losses]);
  }
  const peaks = results.map(done => Math.max(...done.lrs, 0)).filter(peak => peak > 0), peak = Math.max(...peaks);
  const log = peak > 100 * Math.min(...peaks);
  chart("lr", log ? [Math.min(...peaks) / 10, peak * 1.5] : [0, peak * 1.08], log, done => [done.lrs]);
  const rates = results.flatMap(done => done.rates.flat()).filter(rate => rate > 0 && rate < 1e12);
  const most = rates.reduce((a, b) => Math.max(a, b), 1e-9), least = rates.reduce((a, b) => Math.min(a, b), most);
  chart("rate", [Math.max(least, 1e-6 * most) / 1.6, most * 1.6], true, done => world.start.map((_, i) => done.rates.map(rate => rate[i])));
  $("rate-title").textContent = "Effective learning rate" + (world.start.length > 1 ? ": x solid, y dashed" : " of x");
}

function chart(id, range, log, curves) {
  const plot = new Plot($(id), [0, world.steps], range, { log, xName: id === "rate" ? "step" : "" });
  const marked = [];
  plot.axes();
  plot.inside(() => {
    if (shown < world.steps) plot.line([[shown, range[0]], [shown, range[1]]], { colour: "#5b6675", width: 1 });
    results.forEach((done, i) => curves(done).forEach((values, j) => {
      const points = Array.from(values.slice(0, shown + 1).entries()).filter(([, value]) => Number.isFinite(value));
      plot.line(points, { colour: COLOURS[i], width: i === chosen ? 2.6 : 1.6, dash: j ? [5, 4] : [] });
      marked.push([i, points[Math.floor(points.length * (i + 1) / (runs.length + 1))]], [i, points.at(-1)]);
    }));
  });
  for (const [i, point] of marked) {
    if (point && point[1] >= range[0] && point[1] <= range[1]) plot.shape(MARKS[i], ...point, 5, COLOURS[i]);
  }
  const last = results.map((done, i) => `${titleOf(runs[i])}: ${curves(done).map(values => number(values[Math.min(shown, values.length - 1)])).join(" and ")}`);
  $(id).ariaLabel = `At step ${shown}: ${last.join("; ")}`;
}

// ---- what is moved

function moveStart(point) {
  const { view } = DATA.surfaces[world.surface];
  world.start = view.map(([low, high], i) => bounded(Number(point[i].toFixed(3)), low, high));
  world.start.forEach((value, i) => { $(`start-${"xy"[i]}`).value = value; });
  changed();
}

function drag(canvas, move) {
  canvas.onpointerdown = event => { canvas.setPointerCapture(event.pointerId); move(event); };
  canvas.onpointermove = event => { if (event.buttons) move(event); };
}

function pause() {
  cancelAnimationFrame(playing);
  playing = null;
  $("play").textContent = "▶ Play";
}

function play() {
  if (playing) return pause();
  atEnd = false;
  const begun = performance.now(), from = shown >= world.steps ? 0 : shown, speed = world.steps / bounded(world.steps * 40, 2500, 6000);
  const tick = now => {
    shown = Math.min(world.steps, Math.round(from + Math.max(0, now - begun) * speed));
    update();
    if (shown < world.steps) playing = requestAnimationFrame(tick);
    else pause();
  };
  $("play").textContent = "❚❚ Pause";
  playing = requestAnimationFrame(tick);
}

function showStep(step) {
  pause();
  shown = bounded(Math.round(step), 0, world.steps);
  redraw();
}

async function copied(button, text, shownBy) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch { // not allowed here: the reader copies what is selected
    if (shownBy) getSelection().selectAllChildren(shownBy);
    button.textContent = shownBy ? "Selected: copy it" : "Copy the address above";
  }
  setTimeout(() => { button.textContent = before; }, 1500);
}

function begin() {
  for (const [name, words] of EXAMPLES) $("examples").append(element("a", { href: `#${words}`, textContent: name }));
  for (const name in SURFACES) $("surface-select").append(new Option(name));
  $("surface-select").onchange = event => {
    const { view } = DATA.surfaces[event.target.value];
    Object.assign(world, { surface: event.target.value, start: view.map(([low, high]) => shorter(low + (high - low) / 5)) });
    structureChanged();
  };
  const canvas = $("surface");
  drag(canvas, event => {
    const { left, top } = canvas.getBoundingClientRect(), plot = surfacePlot;
    const across = (event.clientX - left - plot.left) / plot.width, up = 1 - (event.clientY - top - plot.top) / plot.height;
    moveStart([plot.xLow + across * (plot.xHigh - plot.xLow), plot.yLow + up * (plot.yHigh - plot.yLow)]);
  });
  canvas.onkeydown = event => {
    const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] }[event.key] ?? [];
    if (x === undefined) return;
    event.preventDefault();
    const { view } = DATA.surfaces[world.surface], part = event.shiftKey ? 500 : 50;
    moveStart(world.start.map((value, i) => value + [x, y][i] * (view[i][1] - view[i][0]) / part));
  };
  for (const id of ["loss", "lr", "rate"]) drag($(id), event => {
    const { left, width } = $(id).getBoundingClientRect();
    showStep(world.steps * (event.clientX - left - 46) / (width - 60));
  });
  $("step").oninput = () => showStep(Number($("step").value));
  $("play").onclick = play;
  $("add").onclick = () => {
    runs.push({ ...runs[chosen] });
    chosen = runs.length - 1;
    structureChanged();
  };
  $("copy").onclick = () => copied($("copy"), $("command").textContent, $("command"));
  $("link").onclick = () => { history.replaceState(null, "", link()); copied($("link"), location.href); };
  addEventListener("hashchange", () => {
    load(location.hash);
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play();
  });
  new ResizeObserver(redraw).observe($("view"));
  load(location.hash);
}

begin();
