"use strict";
// What can be set: examples, sliders, and the link that keeps it all.

// Of each setting: its name, its range, how a slider divides it, and the value to begin with.
const SETTINGS = {
  lr: { name: "learning rate", low: 1e-4, high: 30, scale: "log", first: 0.05 },
  momentum: { name: "momentum", low: 0, high: 0.99, scale: "linear", first: 0.9 },
  beta1: { name: "beta 1 (mean)", low: 0, high: 0.999, scale: "memory", first: 0.9 },
  beta2: { name: "beta 2 (squares)", low: 0, high: 0.9999, scale: "memory", first: 0.999 },
  alpha: { name: "alpha (squares)", low: 0, high: 0.9999, scale: "memory", first: 0.99 },
  rho: { name: "rho (squares)", low: 0, high: 0.9999, scale: "memory", first: 0.9 },
  weight_decay: { name: "weight decay", low: 1e-4, high: 1, scale: "zero", first: 0 },
  lambd: { name: "lambda (decay)", low: 1e-4, high: 1, scale: "zero", first: 1e-4 },
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

const EXAMPLES = [ // name, link, what to see
  ["Momentum in a valley",
    "surface=valley&start=-9,1.5&steps=400&run=Momentum,lr:0.05&run=SGD,lr:0.05&run=SGD,lr:0.5",
    "The walls allow small steps only, the floor needs large ones. Momentum adds up along the floor and " +
    "cancels between the walls. A large learning rate bounces between the walls for ever."],
  ["Small, large, annealed",
    "surface=two_wells&start=5&steps=60&run=SGD,lr:0.05&run=SGD,lr:4&run=SGD,lr:4,schedule:CosineAnnealingLR",
    "A small learning rate is stuck in the first well. A large one jumps across it and never settles. Large " +
    "first and small in the end, it jumps, and settles in the deep well."],
  ["Two scales",
    "surface=scales&start=1,1&steps=100&run=Adam,lr:0.1&run=SGD,lr:0.015",
    "Steep in x, flat in y. SGD's one learning rate must suit x, so y hardly moves. Adam divides by the size " +
    "of each parameter's own gradients: see its two effective learning rates."],
  ["Divergence",
    "surface=well&start=-4.5&steps=20&run=SGD,lr:0.3&run=SGD,lr:1.9&run=SGD,lr:2&run=SGD,lr:2.1",
    "On x²/2 each step multiplies x by 1 − lr. At 1.9 it jumps from side to side and still arrives, at 2 it " +
    "stays as far away for ever, above it diverges: the limit is 2 / curvature."],
  ["Mini-batch noise",
    "surface=quadratic&start=-4.5,2.5&steps=200&noise=4&run=SGD,lr:0.08" +
    "&run=SGD,lr:0.08,schedule:CosineAnnealingLR",
    "Each gradient has a random part, as a mini-batch's has. At a constant learning rate the path never comes " +
    "to rest; with a cosine down to 0 it does."],
  ["Warm restarts",
    "surface=two_wells&start=5&steps=70&noise=0.1&run=SGD,lr:0.4,schedule:CosineAnnealingWarmRestarts,T_0:10",
    "Two cycles end in the shallow well; the third keeps the learning rate high for long enough to leave it. " +
    "Try another seed, or another length of the first cycle."],
  ["Four minima",
    "surface=himmelblau&start=0.5,-5&steps=200&run=SGD,lr:0.01&run=Momentum,lr:0.005&run=Momentum,lr:0.01" +
    "&run=Adam,lr:0.5",
    "One start, and each ends in another minimum. Which one is reached depends on the optimizer as well as on " +
    "the start: drag it."],
  ["L2 or decay",
    "surface=himmelblau&start=4.5,4&steps=400&run=Adam,lr:0.1,weight_decay:0.5&run=AdamW,lr:0.1,weight_decay:0.5",
    "The same weight decay of 0.5. Adam adds it to the gradient and divides both, so that it hardly counts " +
    "beside large gradients. AdamW's is not divided, and pulls far toward 0."],
  ["A race",
    "surface=rosenbrock&start=-0.5,2.5&steps=1000&run=SGD,lr:0.002&run=Momentum,lr:0.001&run=Nesterov,lr:0.001" +
    "&run=Adagrad,lr:1&run=Adam,lr:0.1&run=NAdam,lr:0.1",
    "Down the wall is easy, along the bent floor is not. Find settings with which another one wins."],
];
const $ = id => document.getElementById(id);
const bounded = (value, low, high) => Math.min(high, Math.max(low, value));
const POSITIONS = 200; // of a slider
const shorter = (value, digits = 3) => Number(value.toPrecision(digits));

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
  const limits = { min: lowest(spec), max: spec.high, step: spec.whole ? 1 : "any" };
  const number = element("input", { type: "number", id: `${id}-number`, ...limits });
  number.ariaLabel = `${spec.name}, exactly`;
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
  for (const [key, kind] of Object.entries(kinds)) {
    select.append(new Option(kind.name ?? key, key, false, key === value));
  }
  select.onchange = () => {
    choose(select.value);
    structureChanged();
  };
  const label = element("label", { htmlFor: id, textContent: name });
  const about = element("span", { className: "about", textContent: kinds[value].about });
  return element("div", { className: "setting" }, label, select, about);
}

function showSettings() {
  const focus = document.activeElement?.id, run = runs[chosen];
  const optimizer = OPTIMIZERS[run.optimizer], schedule = SCHEDULES[run.schedule];
  const rows = names => names.map(name => settingRow(run, name, SETTINGS[name]));
  $("of-run").replaceChildren(
    choiceRow("optimizer", "set-optimizer", OPTIMIZERS, run.optimizer, name => { run.optimizer = name; }),
    ...rows(optimizer.settings),
    choiceRow("schedule", "set-schedule", SCHEDULES, run.schedule, name => { run.schedule = name; }),
    ...rows([...schedule.settings, "warmup_steps"]));
  const axes = ["x", "y"].slice(0, world.start.length).map((name, i) => {
    const number = element("input", { type: "number", id: `start-${name}`, step: "any", value: world.start[i] });
    number.onchange = () => moveStart(world.start.map((v, j) => j === i ? Number(number.value) : v));
    const label = element("label", { htmlFor: number.id, textContent: `start, ${name}` });
    return element("div", { className: "setting" }, label, number);
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
  for (const [key, { first }] of Object.entries(OF_WORLD)) {
    if (world[key] !== first || key === "steps") words.push(`${key}=${world[key]}`);
  }
  for (const run of runs) {
    const first = { ...of(run.optimizer), lr: null, schedule: "constant" };
    const ofOptimizer = OPTIMIZERS[run.optimizer].settings, ofSchedule = SCHEDULES[run.schedule].settings;
    const keys = [...ofOptimizer, "schedule", ...ofSchedule, "warmup_steps"].filter(key => run[key] !== first[key]);
    words.push(`run=${[run.optimizer, ...keys.map(key => `${key}:${run[key]}`)]}`);
  }
  return `#${words.join("&")}`;
}

// Takes the settings of a link; what it does not know, or gets wrong, is as in the beginning.
function load(hash) {
  const words = new URLSearchParams(hash.replace(/^#/, "") || EXAMPLES[0][1]);
  const surface = Object.hasOwn(SURFACES, words.get("surface")) ? words.get("surface") : "valley";
  world = { surface };
  for (const [key, spec] of Object.entries(OF_WORLD)) world[key] = valid(spec, words.get(key) ?? "");
  const start = (words.get("start") ?? "").split(",");
  world.start = DATA.surfaces[surface].view.map(([low, high], i) => {
    const value = parseFloat(start[i]);
    return bounded(Number.isFinite(value) ? value : low + (high - low) / 5, low, high);
  });
  runs = words.getAll("run").slice(0, MOST_RUNS).map(text => {
    const [optimizer, ...pairs] = text.split(",");
    const run = { ...of(Object.hasOwn(OPTIMIZERS, optimizer) ? optimizer : "SGD"), schedule: "constant" };
    for (const [key, value] of pairs.map(pair => pair.split(":"))) {
      if (Object.hasOwn(SETTINGS, key)) run[key] = valid(SETTINGS[key], value);
      else if (key === "schedule" && Object.hasOwn(SCHEDULES, value)) run.schedule = value;
    }
    return run;
  });
  if (!runs.length) runs = [{ ...of("SGD"), schedule: "constant" }];
  chosen = 0;
  structureChanged();
}
