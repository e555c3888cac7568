"use strict";
// The page: what is set (`world`, `runs`), what came out (`results`), what is shown of it.

const MOST_RUNS = COLOURS.length, NUDGE = 1e-12;
let world, runs, chosen = 0, results = [], shown = 0;
let atEnd = true, playing = null, awaited = null, linkTimer = null;

function titleOf(run) {
  const schedule = run.schedule === "constant" ? "" : `, ${SCHEDULES[run.schedule].name}`;
  return `${run.optimizer}, lr ${run.lr}${schedule}${run.warmup_steps ? ", warmup" : ""}`;
}

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
  const draws = DATA.noise[world.seed];
  results = runs.map(run => {
    const done = train(world, run, draws), near = train(world, run, draws, NUDGE).path;
    const parted = (x, y) => Math.abs(x - y) > 1e8 * NUDGE * Math.max(1, Math.abs(x));
    done.chaotic = near.some((point, k) => point.some((x, i) => parted(x, done.path[k]?.[i])));
    return done;
  });
  if (atEnd) shown = world.steps;
  showCommand();
  const hash = link();
  const current = EXAMPLES.find(([, words]) => `#${words}` === hash);
  [...$("examples").children].forEach((a, i) => { a.ariaCurrent = String(EXAMPLES[i] === current); });
  $("story").textContent = current ? current[2] : "Your own settings. The examples above are places to start from.";
}

function showCommand() {
  const run = runs[chosen], { path } = results[chosen];
  $("chosen").replaceChildren(mark(chosen), titleOf(run));
  $("command-title").replaceChildren(mark(chosen), `${titleOf(run)}: the command that trains the same`);
  const words = command(world, run).split(" ").flatMap(word => [element("span", { textContent: word }), " "]);
  $("command").replaceChildren(...words.slice(0, -1));
  $("chaos").textContent = !results[chosen].chaotic ? ""
    : "This path is chaotic: a start moved by a trillionth leads elsewhere. " +
      "So may the command, as it rounds another last digit.";
}

function mark(i) {
  const span = element("span");
  span.innerHTML = `<svg class="mark" viewBox="-1.2 -1.2 2.4 2.4" aria-hidden="true">
    <path d="${MARKS[i]}" fill="${COLOURS[i]}"/></svg>`;
  return span.firstChild;
}

function showRuns() {
  const body = document.querySelector("#runs tbody");
  const same = body.children.length === runs.length;
  if (!same) body.replaceChildren(...runs.map((_, i) => runRow(i)));
  runs.forEach((run, i) => {
    const done = results[i], row = body.children[i], k = Math.min(shown, done.path.length - 1);
    const step = Math.min(k, done.lrs.length - 1);
    const diverged = done.diverged && shown >= done.diverged && `diverged at step ${done.diverged}`;
    const note = diverged || (done.chaotic ? "chaotic" : "");
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
  const [title, note] = ["title", "note"].map(className => element("span", { className }));
  const choose = element("button", { type: "button" }, mark(i), title, note);
  const remove = element("button", { type: "button", textContent: "✕", ariaLabel: "Remove this optimizer" });
  choose.onclick = () => {
    chosen = i;
    showSettings();
    showCommand();
    redraw();
  };
  remove.onclick = () => {
    runs.splice(i, 1);
    chosen = Math.min(chosen, runs.length - 1);
    structureChanged();
  };
  const kinds = ["", "wide", "wide y", "wide", "wide", "wide y"];
  const cells = kinds.map(kind => element("td", { className: `value ${kind}` }));
  return element("tr", {}, element("td", {}, choose), ...cells, element("td", {}, remove));
}

function number(value) {
  if (value === undefined || !Number.isFinite(value)) return "–";
  return Math.abs(value) < 1e-12 ? "0" : String(shorter(value)).replace("e-", "e−").replace(/^-/, "−");
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
  const begun = performance.now(), from = shown >= world.steps ? 0 : shown;
  const speed = world.steps / bounded(world.steps * 40, 2500, 6000); // steps in a millisecond
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
    world.surface = event.target.value;
    world.start = view.map(([low, high]) => shorter(low + (high - low) / 5));
    structureChanged();
  };
  const canvas = $("surface");
  drag(canvas, event => {
    const { left, top } = canvas.getBoundingClientRect(), plot = surfacePlot;
    const across = (event.clientX - left - plot.left) / plot.width;
    const up = 1 - (event.clientY - top - plot.top) / plot.height;
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
    showStep(world.steps * (event.clientX - left - LEFT) / (width - LEFT - RIGHT));
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
