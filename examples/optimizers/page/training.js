"use strict";
// Schedules and trainings, as Anneal has them, and the command that trains the same.

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

const warmupOf = (world, run) => Math.min(run.warmup_steps, world.steps - 20);

function lrAt(world, run, step) {
  const warmup = warmupOf(world, run), length = world.steps - warmup, { lr } = SCHEDULES[run.schedule];
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
  const surface = SURFACES[world.surface], { step, settings, decoupled } = OPTIMIZERS[run.optimizer];
  const decay = settings.includes("weight_decay") && !decoupled ? run.weight_decay : 0;
  const point = world.start.map(x => Math.fround(x) + nudge); // a float32, as a start is in torch
  const states = point.map(() => ({})), options = { ...run };
  const watch = run.schedule === "ReduceLROnPlateau" ? plateau(run) : () => 1;
  const done = { path: [[...point]], losses: [], lrs: [], rates: [] };
  let [loss, gradient] = surface(...point), scale = 1;
  for (let t = 0; t < world.steps; t++) {
    options.lr = lrAt(world, run, t) * scale;
    for (let i = 0; i < point.length; i++) {
      const noise = world.noise ? world.noise * draws[2 * t + i] : 0;
      const g = gradient[i] + noise + decay * point[i];
      point[i] = step(point[i], g, options, states[i], t + 1);
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
    if ((t + 1) % VALIDATE_EVERY === 0 && t + 1 >= warmupOf(world, run)) scale = watch(loss);
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
  if (warmupOf(world, run)) flag("schedule.warmup_steps", warmupOf(world, run));
  if (run.schedule === "ReduceLROnPlateau") words.push(`--trainer.val_check_interval=${VALIDATE_EVERY}`);
  if (world.noise) words.push(`--model.noise=${world.noise}`, `--seed_everything=${world.seed}`);
  words.push("--trainer.precision=64-true");
  return words.map(word => /[[\]]/.test(word) ? `'${word}'` : word).join(" ");
}
