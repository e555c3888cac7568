"use strict";
// Surfaces and optimizers in float64, as Anneal and torch have them. tests/test_lab.py compares them.

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
// Weight decay is in g already, unless it is decoupled.

const OPTIMIZERS = {
  SGD: {
    about: "a step down the slope: lr · gradient",
    settings: ["lr", "weight_decay"],
    step(x, g, o, s) {
      s.rate = o.lr;
      return x - o.lr * g;
    },
  },
  Momentum: {
    about: "SGD that keeps its speed: a weighted sum of all gradients so far",
    torch: "SGD", settings: ["lr", "momentum", "weight_decay"],
    step(x, g, o, s) {
      s.rate = o.lr;
      s.speed = o.momentum * (s.speed ?? 0) + g;
      return x - o.lr * s.speed;
    },
  },
  Nesterov: {
    about: "momentum, with the gradient from where the speed leads",
    torch: "SGD", fixed: { nesterov: true }, settings: ["lr", "momentum", "weight_decay"],
    step(x, g, o, s) {
      s.rate = o.lr;
      s.speed = o.momentum * (s.speed ?? 0) + g;
      return x - o.lr * (g + o.momentum * s.speed);
    },
  },
  ASGD: {
    about: "SGD whose learning rate fades by itself, with a slight decay of its own",
    settings: ["lr", "lambd", "weight_decay"],
    step(x, g, o, s, t) {
      s.rate = s.next ?? o.lr; // made at the step before: a schedule counts one step later
      s.next = o.lr / (1 + o.lambd * o.lr * t) ** 0.75;
      return x * (1 - o.lambd * s.rate) - s.rate * g;
    },
  },
  Adagrad: {
    about: "divides by the root of the sum of all squared gradients, which only grows",
    settings: ["lr", "weight_decay"],
    step(x, g, o, s) {
      s.sum = (s.sum ?? 0) + g * g;
      s.rate = o.lr / (Math.sqrt(s.sum) + 1e-10);
      return x - s.rate * g;
    },
  },
  Adadelta: {
    about: "Adagrad with a memory that fades, and steps in the unit of the parameter",
    settings: ["lr", "rho", "weight_decay"],
    step(x, g, o, s) {
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
    step: adam,
  },
  AdamW: {
    about: "Adam, with a weight decay that is not divided",
    settings: ["lr", "beta1", "beta2", "weight_decay"], defaults: { weight_decay: 0.01 }, decoupled: true,
    step: (x, g, o, s, t) => adam(x * (1 - o.lr * o.weight_decay), g, o, s, t),
  },
  Adamax: {
    about: "Adam, divided by the largest recent gradient instead",
    settings: ["lr", "beta1", "beta2", "weight_decay"],
    step(x, g, o, s, t) {
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
      moments(g, o, s);
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
