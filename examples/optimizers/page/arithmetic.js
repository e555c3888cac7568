"use strict";
// All that the page computes, in float64, as torch and Anneal do. tests/test_lab.py compares both.

// ---- surfaces: [loss, gradient] at a point; views and minima come from functions.py

const SURFACES = {
  well: x => [x * x / 2, [x]],
  two_wells(x) {
    const root = Math.sqrt(1 + x * x), dent = 0.8 * Math.exp(-8 * (x - 3) ** 2);
    return [root - dent, [x / root + 16 * (x - 3) * dent]];
  },
  quadratic: (x, y) => [(x * x + 10 * y * y) / 2, [x, 10 * y]],
  valley(x, y) {
    const root = Math.sqrt(1 + 25 * y * y);
    return [x * x / 20 + root - 1, [x / 10, 25 * y / root]];
  },
  scales: (x, y) => [50 * x * x + 0.005 * y * y, [100 * x, 0.01 * y]],
  saddle: (x, y) => [x * x / 2 - y * y / 2 + y ** 4 / 16, [x, -y + y ** 3 / 4]],
  rosenbrock(x, y) {
    const off = y - x * x;
    return [(1 - x) ** 2 + 100 * off * off, [-2 * (1 - x) - 400 * x * off, 200 * off]];
  },
  beale(x, y) {
    let loss = 0, dx = 0, dy = 0;
    for (const [c, i] of [[1.5, 1], [2.25, 2], [2.625, 3]]) {
      const term = c - x + x * y ** i;
      loss += term * term;
      dx += 2 * term * (y ** i - 1);
      dy += 2 * term * x * i * y ** (i - 1);
    }
    return [loss, [dx, dy]];
  },
  rastrigin(x, y) {
    const turn = 2 * Math.PI;
    const loss = 20 + x * x + y * y - 10 * Math.cos(turn * x) - 10 * Math.cos(turn * y);
    return [loss, [2 * x + 10 * turn * Math.sin(turn * x), 2 * y + 10 * turn * Math.sin(turn * y)]];
  },
  himmelblau(x, y) {
    const a = x * x + y - 11, b = x + y * y - 7;
    return [a * a + b * b, [4 * x * a + 2 * b, 2 * a + 4 * y * b]];
  },
};

// ---- optimizers
// step(x, g, o, s, t) returns the new value of one parameter x with the gradient g at step t = 1, 2, ...
// o holds the settings and the learning rate of the step. s is the parameter's state: it keeps
// s.rate, the effective learning rate, by which the gradient (or its running mean) is multiplied.

const OPTIMIZERS = {
  SGD: {
    about: "a step down the slope: lr · gradient",
    settings: ["lr", "weight_decay"],
    step(x, g, o, s) {
      s.rate = o.lr;
      return x - o.lr * (g + o.weight_decay * x);
    },
  },
  Momentum: {
    about: "SGD that keeps its speed: a weighted sum of all gradients so far",
    torch: "SGD", settings: ["lr", "momentum", "weight_decay"],
    step(x, g, o, s) {
      g += o.weight_decay * x;
      s.rate = o.lr;
      s.speed = o.momentum * (s.speed ?? 0) + g;
      return x - o.lr * s.speed;
    },
  },
  Nesterov: {
    about: "momentum, with the gradient from where the speed leads",
    torch: "SGD", fixed: { nesterov: true }, settings: ["lr", "momentum", "weight_decay"],
    step(x, g, o, s) {
      g += o.weight_decay * x;
      s.rate = o.lr;
      s.speed = o.momentum * (s.speed ?? 0) + g;
      return x - o.lr * (g + o.momentum * s.speed);
    },
  },
  Adagrad: {
    about: "divides by the root of the sum of all squared gradients, which only grows",
    settings: ["lr", "weight_decay"],
    step(x, g, o, s) {
      g += o.weight_decay * x;
      s.sum = (s.sum ?? 0) + g * g;
      s.rate = o.lr / (Math.sqrt(s.sum) + 1e-10);
      return x - s.rate * g;
    },
  },
  Adadelta: {
    about: "Adagrad with a memory that fades, and steps in the unit of the parameter",
    settings: ["lr", "rho", "weight_decay"],
    step(x, g, o, s) {
      g += o.weight_decay * x;
      s.square = o.rho * (s.square ?? 0) + (1 - o.rho) * g * g;
      const ratio = Math.sqrt((s.moved ?? 0) + 1e-6) / Math.sqrt(s.square + 1e-6);
      s.moved = o.rho * (s.moved ?? 0) + (1 - o.rho) * (ratio * g) ** 2;
      s.rate = o.lr * ratio;
      return x - s.rate * g;
    },
  },
  RMSprop: {
    about: "divides by the root of a running mean of squared gradients",
    settings: ["lr", "alpha", "weight_decay"],
    step(x, g, o, s) {
      g += o.weight_decay * x;
      s.square = o.alpha * (s.square ?? 0) + (1 - o.alpha) * g * g;
      s.rate = o.lr / (Math.sqrt(s.square) + 1e-8);
      return x - s.rate * g;
    },
  },
  Rprop: {
    about: "uses the sign alone: longer steps while it stays, half as long when it changes",
    settings: ["lr"], // its first step; a schedule has no effect
    step(x, g, o, s) {
      s.size ??= o.lr;
      const turn = g * (s.before ?? 0);
      s.size = Math.min(50, Math.max(1e-6, s.size * (turn > 0 ? 1.2 : turn < 0 ? 0.5 : 1)));
      s.rate = s.size / Math.abs(g);
      s.before = turn < 0 ? 0 : g;
      return x - Math.sign(s.before) * s.size;
    },
  },
  Adam: {
    about: "momentum, divided by the root of a running mean of squared gradients",
    settings: ["lr", "beta1", "beta2", "weight_decay"],
    step: (x, g, o, s, t) => adam(x, g + o.weight_decay * x, o, s, t),
  },
  AdamW: {
    about: "Adam, with a weight decay that is not divided",
    settings: ["lr", "beta1", "beta2", "weight_decay"], defaults: { weight_decay: 0.01 },
    step: (x, g, o, s, t) => adam(x * (1 - o.lr * o.weight_decay), g, o, s, t),
  },
  Adamax: {
    about: "Adam, divided by the largest recent gradient instead",
    settings: ["lr", "beta1", "beta2", "weight_decay"],
    step(x, g, o, s, t) {
      g += o.weight_decay * x;
      s.mean = (s.mean ?? 0) + (1 - o.beta1) * (g - (s.mean ?? 0));
      s.largest = Math.max(o.beta2 * (s.largest ?? 0), Math.abs(g) + 1e-8);
      s.rate = o.lr / (1 - o.beta1 ** t) / s.largest;
      return x - s.rate * s.mean;
    },
  },
  NAdam: {
    about: "Adam with Nesterov's momentum",
    settings: ["lr", "beta1", "beta2", "weight_decay"],
    step(x, g, o, s, t) {
      g += o.weight_decay * x;
      moments(g, o, s);
      const mu = step => o.beta1 * (1 - 0.5 * 0.96 ** (step * 0.004));
      s.product = Math.fround((s.product ?? 1) * Math.fround(mu(t))); // a float32 in torch
      s.rate = o.lr / (Math.sqrt(s.square / (1 - o.beta2 ** t)) + 1e-8);
      const now = s.rate * (1 - mu(t)) / (1 - s.product);
      return x - now * g - s.rate * mu(t + 1) / (1 - s.product * mu(t + 1)) * s.mean;
    },
  },
  RAdam: {
    about: "Adam that divides only when it has seen enough gradients",
    settings: ["lr", "beta1", "beta2", "weight_decay"],
    step(x, g, o, s, t) {
      moments(g + o.weight_decay * x, o, s);
      const fade = 1 - o.beta2 ** t, most = 2 / (1 - o.beta2) - 1;
      const seen = most - 2 * t * o.beta2 ** t / fade;
      const trust = (seen - 4) * (seen - 2) * most / ((most - 4) * (most - 2) * seen);
      s.rate = seen > 5 ? o.lr * Math.sqrt(trust * fade) / (Math.sqrt(s.square) + 1e-8) : o.lr;
      return x - s.rate * s.mean / (1 - o.beta1 ** t);
    },
  },
};

function moments(g, o, s) {
  s.mean = (s.mean ?? 0) + (1 - o.beta1) * (g - (s.mean ?? 0));
  s.square = o.beta2 * (s.square ?? 0) + (1 - o.beta2) * g * g;
}

function adam(x, g, o, s, t) {
  moments(g, o, s);
  s.rate = o.lr / (Math.sqrt(s.square / (1 - o.beta2 ** t)) + 1e-8);
  return x - s.rate * s.mean / (1 - o.beta1 ** t);
}

// ---- schedules: lr(k, o, length) is the learning rate k steps after the warmup, of length steps

const halfCosine = t => (1 + Math.cos(Math.PI * t)) / 2;
const VALIDATE_EVERY = 10; // steps, for the plateau

const SCHEDULES = {
  constant: { name: "constant", about: "the same all the way", settings: [], lr: (k, o) => o.lr },
  StepLR: {
    name: "step",
    about: "times gamma, every so many steps",
    settings: ["step_size", "gamma"], fixed: { interval: "step" },
    lr: (k, o) => o.lr * o.gamma ** Math.floor(k / o.step_size),
  },
  ReduceLROnPlateau: {
    name: "plateau",
    about: `times factor, when the loss stalls (looked at every ${VALIDATE_EVERY} steps)`,
    settings: ["factor", "patience"], lr: (k, o) => o.lr,
  },
  CosineAnnealingLR: {
    name: "cosine",
    about: "half a cosine down",
    settings: ["eta_min"],
    lr: (k, o, length) => o.eta_min + (o.lr - o.eta_min) * halfCosine(k / length),
  },
  CosineAnnealingWarmRestarts: {
    name: "warm restarts",
    about: "a cosine down, and again from the top",
    settings: ["T_0", "T_mult"], fixed: { interval: "step" },
    lr(k, o) {
      let length = o.T_0;
      while (k >= length) {
        k -= length;
        length *= o.T_mult;
      }
      return o.lr * halfCosine(k / length);
    },
  },
  LinearLR: {
    name: "linear",
    about: "a straight line down",
    settings: ["end_factor"],
    lr: (k, o, length) => o.lr * (1 + (o.end_factor - 1) * k / length),
  },
  OneCycleLR: {
    name: "one cycle",
    about: "up to the learning rate, and far down",
    settings: ["pct_start", "div_factor"], fixed: { "scheduler.cycle_momentum": false },
    lr(k, o, length) {
      const first = o.lr / o.div_factor, peak = o.pct_start * length - 1;
      const [from, to, t] = k <= peak ? [first, o.lr, k / peak]
        : [o.lr, first / 1e4, (k - peak) / (length - 1 - peak)];
      return to + (from - to) * halfCosine(t);
    },
  },
  WSD: {
    name: "WSD",
    about: "warmup, stable, and a decay at the end",
    settings: ["decay", "shape"],
    lr(k, o, length, warmup) {
      const total = warmup + length;
      const start = Math.max(warmup, total - Math.max(1, roundHalfToEven(o.decay * total)));
      const t = Math.min(1, Math.max(0, (warmup + k - start) / Math.max(1, total - start)));
      return o.lr * { sqrt: 1 - Math.sqrt(t), linear: 1 - t, cosine: halfCosine(t) }[o.shape];
    },
  },
};

function roundHalfToEven(v) { // as Python does
  const rounded = Math.round(v);
  return rounded - v === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

function lrAt(run, step, steps) {
  const warmup = run.warmup_steps, length = steps - warmup, { lr } = SCHEDULES[run.schedule];
  if (step > warmup || !warmup) return lr(step - warmup, run, length, warmup);
  return lr(0, run, length, warmup) * (0.01 + 0.99 * step / warmup);
}

// Returns a function that takes a validation's loss and returns by what the plateau multiplies.
function plateau(run) {
  let best = Infinity, bad = 0, scale = 1;
  return loss => {
    if (loss < best * (1 - 1e-4)) [best, bad] = [loss, 0];
    else if (++bad > run.patience) {
      bad = 0;
      if (run.lr * scale * (1 - run.factor) > 1e-8) scale *= run.factor;
    }
    return scale;
  };
}

// ---- a training

// world: {surface, start, steps, noise, seed}; run: {optimizer, schedule, and all settings}.
// Of `steps` steps until the path is no longer finite: points and losses before each and at the
// end; the learning rate and the effective one of each parameter at each. The start is moved by nudge.
function train(world, run, draws, nudge = 0) {
  const surface = SURFACES[world.surface], { step } = OPTIMIZERS[run.optimizer];
  const point = world.start.map(x => Math.fround(x) + nudge); // a float32, as a start is in torch
  const states = point.map(() => ({})), options = { ...run };
  const watch = run.schedule === "ReduceLROnPlateau" ? plateau(run) : () => 1;
  const done = { path: [[...point]], losses: [], lrs: [], rates: [] };
  let [loss, gradient] = surface(...point), scale = 1;
  for (let t = 0; t < world.steps; t++) {
    options.lr = lrAt(run, t, world.steps) * scale;
    for (let i = 0; i < point.length; i++) {
      const noise = world.noise ? world.noise * draws[2 * t + i] : 0;
      point[i] = step(point[i], gradient[i] + noise, options, states[i], t + 1);
    }
    const before = loss;
    [loss, gradient] = surface(...point);
    if (!(Number.isFinite(loss) && point.every(Number.isFinite) && gradient.every(Number.isFinite))) {
      done.diverged = t + 1;
      loss = before;
      break;
    }
    done.losses.push(before);
    done.path.push([...point]);
    done.lrs.push(options.lr);
    done.rates.push(states.map(state => state.rate));
    if ((t + 1) % VALIDATE_EVERY === 0 && t + 1 >= run.warmup_steps) scale = watch(loss);
  }
  done.losses.push(loss);
  return done;
}

// The words of the command that trains the same.
function command(world, run) {
  const optimizer = OPTIMIZERS[run.optimizer], schedule = SCHEDULES[run.schedule];
  const words = [
    "python", "train.py", "--config=examples/optimizers/configs/surface_descent.yaml",
    `--model.function=${world.surface}`, `--model.start=[${world.start}]`,
    `--data.steps=${world.steps}`, `--model.optimizer=${optimizer.torch ?? run.optimizer}`,
  ];
  const flag = (name, value) => words.push(`--model.${name}=${value}`);
  for (const [name, value] of Object.entries(optimizer.fixed ?? {})) flag(`optimizer.${name}`, value);
  for (const name of optimizer.settings) {
    if (name === "beta1") flag("optimizer.betas", `[${run.beta1},${run.beta2}]`);
    else if (name !== "beta2") flag(`optimizer.${name}`, run[name]);
  }
  if (run.schedule !== "constant") {
    flag("schedule.scheduler", run.schedule);
    for (const name of schedule.settings) flag(`schedule.scheduler.${name}`, run[name]);
    for (const [name, value] of Object.entries(schedule.fixed ?? {})) flag(`schedule.${name}`, value);
  }
  if (run.warmup_steps) flag("schedule.warmup_steps", run.warmup_steps);
  if (run.schedule === "ReduceLROnPlateau") words.push(`--trainer.val_check_interval=${VALIDATE_EVERY}`);
  if (world.noise) words.push(`--model.noise=${world.noise}`, `--seed_everything=${world.seed}`);
  words.push("--trainer.precision=64-true");
  return words.map(word => /[[\]]/.test(word) ? `'${word}'` : word).join(" ");
}
