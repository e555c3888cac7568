"use strict";
// The surface with the paths, and the curves beside it.

const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]; // Okabe and Ito's
const MARKS = [ // in a square from -1 to 1, one for each colour
  "M-.9 0A.9 .9 0 1 1 .9 0A.9 .9 0 1 1-.9 0Z", "M-.8-.8H.8V.8H-.8Z", "M0-1.05 1 .75H-1Z",
  "M0-1.15 1.15 0 0 1.15-1.15 0Z",
  "M0 1.05 1-.75H-1Z", "M-.35-1H.35V-.35H1V.35H.35V1H-.35V.35H-1V-.35H-.35Z",
];
const STAR = "M0-1 .29-.4 .95-.31 .48 .15 .59 .81 0 .5-.59 .81-.48 .15-.95-.31-.29-.4Z";
const MOST_DOTS = 250; // more would hide the line

const LEFT = 46, RIGHT = 18; // of the curves, pixels

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
    this.left = yName ? 50 : LEFT;
    this.top = 8;
    this.width = clientWidth - this.left - RIGHT; // half of a number's width
    this.height = clientHeight - this.top - (xName ? 36 : 22);
  }

  x(value) {
    return this.left + this.width * (value - this.xLow) / (this.xHigh - this.xLow);
  }

  y(value) {
    const { yLow, yHigh } = this;
    const t = this.log ? Math.log(value / yLow) / Math.log(yHigh / yLow) : (value - yLow) / (yHigh - yLow);
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
    for (const [x, y] of points) {
      const [left, top] = this.at(x, y);
      context.lineTo(left, top);
    }
    context.setLineDash(dash);
    Object.assign(context, { strokeStyle: colour, lineWidth: width, lineJoin: "bevel" });
    context.stroke();
    context.setLineDash([]);
  }

  shape(path, x, y, size, fill, edge = "#fff", edgeWidth = 1.5) {
    const { context } = this, [left, top] = this.at(x, y);
    context.save();
    context.translate(left, top);
    context.scale(size, size);
    Object.assign(context, { fillStyle: fill, strokeStyle: edge, lineJoin: "round" });
    context.lineWidth = 2 * edgeWidth / size;
    context.stroke(new Path2D(path));
    context.fill(new Path2D(path));
    context.restore();
  }

  axes(grid = true) {
    const { context, left, top, width, height } = this;
    Object.assign(context, { fillStyle: "#3f4a59", strokeStyle: "#e3e7ed", lineWidth: 1 });
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "top";
    const rule = (x1, y1, x2, y2) => {
      context.beginPath();
      context.moveTo(x1, y1);
      context.lineTo(x2, y2);
      context.stroke();
    };
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
  if (last - first >= 1) return found;
  for (let e = first - 1; e <= last; e++) found.push(2 * 10 ** e, 5 * 10 ** e);
  return found.filter(value => value >= low && value <= high);
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
  for (let i = 0; i < 60; i++) for (let j = 0; j < 60; j++) {
    sample.push(surface(xLow + (xHigh - xLow) * i / 59, yLow + (yHigh - yLow) * j / 59)[0]);
  }
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
    minima.forEach((at, i) => {
      const colours = depth[i] < depth[0] + 1e-3 ? ["#000", "#fff"] : ["#fff", "#000"];
      plot.shape(STAR, ...place(at), 13, ...colours);
    });
    const order = [...runs.keys()].sort((a, b) => (a === chosen) - (b === chosen)); // the chosen one on top
    for (const i of order) drawPath(plot, results[i].path.slice(0, shown + 1).map(place), i);
    for (const i of order) {
      const { path } = results[i], at = path[Math.min(shown, path.length - 1)];
      plot.shape(MARKS[i], ...place(at), i === chosen ? 9 : 7, COLOURS[i]);
    }
  });
  if (!flat) plot.axes(false);
  plot.shape(MARKS[0], ...place(world.start), 7, "#fff", "#000", 2.5);
  $("surface").ariaLabel = `The surface ${world.surface} with the paths of ${runs.length} optimizers. ` +
    `The start is at ${world.start.join(", ")}: arrow keys move it, with Shift in small steps.`;
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
  const rates = results.flatMap(done => done.rates.flat()).filter(rate => rate > 0).sort((a, b) => a - b);
  const middle = rates[rates.length >> 1] ?? 1; // where a gradient is next to 0, Adam's rate is nearly infinite
  const most = Math.min(rates.at(-1) ?? 1, 1e4 * middle), least = Math.min(rates[0] ?? 1, most);
  const ofEach = done => world.start.map((_, i) => done.rates.map(rate => rate[i]));
  chart("rate", [Math.max(least, 1e-6 * most) / 1.6, most * 1.6], true, ofEach);
  $("rate-title").textContent = "Effective learning rate" + (world.start.length > 1 ? ": x solid, y dashed" : " of x");
}

function chart(id, range, log, curves) {
  const plot = new Plot($(id), [0, world.steps], range, { log, xName: id === "rate" ? "step" : "" });
  const marked = [];
  plot.axes();
  plot.inside(() => {
    if (shown < world.steps) plot.line([[shown, range[0]], [shown, range[1]]], { colour: "#5b6675", width: 1 });
    results.forEach((done, i) => curves(done).forEach((values, j) => {
      const points = [];
      for (let k = 0; k <= shown && k < values.length; k++) if (Number.isFinite(values[k])) points.push([k, values[k]]);
      plot.line(points, { colour: COLOURS[i], width: i === chosen ? 2.6 : 1.6, dash: j ? [5, 4] : [] });
      marked.push([i, points[Math.floor(points.length * (i + 1) / (runs.length + 1))]], [i, points.at(-1)]);
    }));
  });
  for (const [i, point] of marked) {
    if (point && point[1] >= range[0] && point[1] <= range[1]) plot.shape(MARKS[i], ...point, 5, COLOURS[i]);
  }
  const last = results.map((done, i) => {
    const values = curves(done).map(curve => number(curve[Math.min(shown, curve.length - 1)]));
    return `${titleOf(runs[i])} ${values.join(" and ")}`;
  });
  $(id).ariaLabel = `At step ${shown}: ${last.join("; ")}`;
}
