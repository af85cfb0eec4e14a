"use strict";
// One page, one shared clock: frame k is shown everywhere, or not yet anywhere. Text is only ever set as text.
const data = JSON.parse(document.getElementById("data").textContent);
const state = { job: -1, frame: 0, playing: false, sort: null, order: 1, count: 1, fps: 8, screens: [], turn: 0 };
const status = document.documentElement.dataset; // read by whoever drives the page
Object.assign(status, { errors: "0", videos: "0", shown: "0", steps: "0", points: "0", apart: "0" });
window.addEventListener("error", () => { status.errors = String(Number(status.errors) + 1); });

const byId = (id) => document.getElementById(id);
const TRAIL = 8; // frames of path drawn behind a point
const SVG = "http://www.w3.org/2000/svg";

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

function drawn(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const tone = (method) => `m${data.methods.indexOf(method) % 8}`;
const shownNumber = (value, column) => (value === null || value === undefined ? "—" : value.toFixed(column.digits));

// ------------------------------------------------------------------------------------------------ tables

function summaryTable(table) {
  const head = element("tr", {}, ...table.head.map((text, i) => element("th", { className: i ? "" : "name" }, text)));
  const lines = table.lines.map((line) =>
    element("tr", {}, ...line.map((text, i) => element("td", { className: i ? "" : "name" }, text))));
  const made = element("table", {}, element("thead", {}, head), element("tbody", {}, ...lines));
  return [element("div", { className: "wide" }, made), element("p", {}, table.caption)];
}

const textColumns = [
  { key: "method", title: "method" },
  { key: "name", title: "video" },
  { key: "prompt", title: "prompt" },
];

function sortValue(row, key) {
  return textColumns.some((column) => column.key === key) ? row[key] : row.values[key];
}

function compareRows(a, b) {
  const [x, y] = [sortValue(a, state.sort), sortValue(b, state.sort)];
  const [noX, noY] = [x === null || x === undefined, y === null || y === undefined];
  if (noX || noY) return noX - noY; // what has no value goes last either way
  return state.order * (typeof x === "string" ? x.localeCompare(y) : x - y);
}

function videoTable() {
  const columns = [...textColumns, ...data.columns];
  const head = columns.map((column) => {
    const button = element("button", { type: "button" }, column.label || column.title);
    button.addEventListener("click", () => sortBy(column.key, state.sort === column.key ? -state.order : 1));
    const cell = element("th", { className: column.digits === undefined ? "name" : "" }, button);
    cell.dataset.key = column.key;
    return cell;
  });
  byId("videos").tHead.replaceChildren(element("tr", {}, ...head));
  fillVideos();
}

function fillVideos() {
  const rows = state.sort === null ? data.rows : [...data.rows].sort(compareRows);
  const lines = rows.map((row) => {
    const cells = [
      ...textColumns.map((column) => element("td", { className: `name ${column.key}` }, row[column.key] ?? "—")),
      ...data.columns.map((column) => element("td", {}, shownNumber(row.values[column.key], column))),
    ];
    const line = element("tr", { tabIndex: 0, className: row.job === state.job ? "chosen" : "" }, ...cells);
    line.addEventListener("click", () => choose(row.job, 0));
    line.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(row.job, 0); });
    return line;
  });
  byId("videos").tBodies[0].replaceChildren(...lines);
}

function sortBy(key, order) {
  if (![...textColumns, ...data.columns].some((column) => column.key === key)) return;
  Object.assign(state, { sort: key, order });
  for (const cell of byId("videos").tHead.querySelectorAll("th")) {
    if (cell.dataset.key === key) cell.setAttribute("aria-sort", order > 0 ? "ascending" : "descending");
    else cell.removeAttribute("aria-sort");
  }
  fillVideos();
  remember();
}

// ------------------------------------------------------------------------------------------------ screens

function screen(title, source, className) {
  const box = element("div", { className: "screen" });
  const made = { video: null, canvas: null, tracks: source.tracks, points: 0 };
  if (source.video) {
    made.video = element("video", { muted: true, playsInline: true, preload: "auto" });
    made.canvas = element("canvas");
    made.video.addEventListener("loadedmetadata", () => { status.videos = String(Number(status.videos) + 1); });
    made.video.addEventListener("error", () => {
      box.replaceChildren(element("div", { className: "missing" }, "this browser cannot play this video"));
      made.video = null;
    });
    box.append(made.video, made.canvas);
    made.video.src = source.video;
  } else {
    box.className = "missing";
    box.append(source.why || "not in this report");
  }
  const swatch = element("span", { className: `swatch ${className}` });
  made.figure = element("figure", {}, element("figcaption", {}, ...(className ? [swatch, " "] : []), title), box);
  return made;
}

function seek(video, time) {
  // resolves once the video shows that moment (or cannot)
  return new Promise((resolve) => {
    const done = () => {
      video.removeEventListener("seeked", done);
      video.removeEventListener("error", done);
      resolve();
    };
    const go = () => {
      video.addEventListener("seeked", done);
      video.currentTime = time;
    };
    video.addEventListener("error", done);
    if (video.readyState >= 2) go();
    else video.addEventListener("loadeddata", go, { once: true });
  });
}

async function show(frame) {
  const turn = ++state.turn;
  state.frame = ((frame % state.count) + state.count) % state.count;
  const playable = state.screens.filter((one) => one.video);
  await Promise.all(playable.map((one) => seek(one.video, (state.frame + 0.5) / state.fps)));
  if (turn !== state.turn) return; // a newer frame was asked for meanwhile
  let points = 0;
  for (const one of state.screens) points += overlay(one);
  moveCursors();
  byId("scrub").value = String(state.frame);
  byId("frame").textContent = `frame ${state.frame + 1} / ${state.count}`;
  const times = playable.filter((one) => one.video).map((one) => one.video.currentTime);
  status.apart = String(times.length ? Math.max(...times) - Math.min(...times) : 0);
  status.points = String(points);
  status.frame = String(state.frame);
  status.shown = String(Number(status.shown) + 1);
}

function overlay(one) {
  // the paths of the last frames, each in the colour of its direction; returns how many points were drawn
  if (!one.video || !one.canvas || !one.tracks) return 0;
  const { canvas, tracks } = one;
  const scale = 4;
  canvas.width = one.video.videoWidth * scale;
  canvas.height = one.video.videoHeight * scale;
  if (!byId("tracks").checked) return 0;
  const pen = canvas.getContext("2d");
  const unit = Math.max(canvas.width, canvas.height) / 288;
  let points = 0;
  for (let n = 0; n < tracks.xy.length; n += 1) {
    const [path, seen] = [tracks.xy[n], tracks.seen[n]];
    const at = (k) => [(path[2 * k] / 10 + 0.5) * scale, (path[2 * k + 1] / 10 + 0.5) * scale];
    if (seen[state.frame] !== "1") continue;
    const first = Math.max(0, state.frame - TRAIL);
    const [x, y] = at(state.frame);
    const [fromX, fromY] = at(first);
    const moved = Math.hypot(x - fromX, y - fromY) > scale * 0.5;
    const hue = (Math.atan2(y - fromY, x - fromX) * 180) / Math.PI;
    pen.strokeStyle = pen.fillStyle = moved ? `hsl(${hue} 95% 60%)` : "hsl(0 0% 85% / 0.7)";
    pen.lineWidth = 1.4 * unit;
    if (moved) {
      pen.beginPath();
      for (let k = first; k <= state.frame; k += 1) pen.lineTo(...at(k));
      pen.stroke();
    }
    pen.beginPath();
    pen.arc(x, y, (moved ? 2 : 1) * unit, 0, 2 * Math.PI);
    pen.fill();
    points += 1;
  }
  return points;
}

// ------------------------------------------------------------------------------------------------ curves

const WIDTH = 272, HEIGHT = 120, LEFT = 34, RIGHT = 8, TOP = 8, BOTTOM = 18;

function curve(title, lines) {
  const values = lines.flatMap((line) => line.values.filter((value) => value !== null));
  if (!values.length) return null;
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = Math.max(high - low, 1e-3) * 0.08;
  const length = Math.max(...lines.map((line) => line.values.length));
  const shift = length < state.count ? 0.5 : 0; // a step lies between two frames
  const x = (k) => LEFT + ((WIDTH - LEFT - RIGHT) * (k + shift)) / Math.max(1, state.count - 1);
  const y = (value) => TOP + ((HEIGHT - TOP - BOTTOM) * (high + room - value)) / (high - low + 2 * room);
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
  svg.append(drawn("line", { class: "axis", x1: LEFT, x2: LEFT, y1: TOP, y2: HEIGHT - BOTTOM }));
  svg.append(drawn("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }));
  const ends = high === low ? [high] : [high, low];
  for (const value of ends) svg.append(drawn("text", { x: 2, y: y(value) + 3 }, value.toFixed(2)));
  svg.append(drawn("text", { x: WIDTH - RIGHT, y: HEIGHT - 5, "text-anchor": "end" }, "frame"));
  for (const line of lines) {
    let run = [];
    const flush = () => {
      if (run.length > 1) svg.append(drawn("polyline", { class: tone(line.method), points: run.join(" ") }));
      else if (run.length) svg.append(dot(run[0], line.method));
      run = [];
    };
    line.values.forEach((value, k) => { if (value === null) flush(); else run.push(`${x(k)},${y(value)}`); });
    flush();
  }
  svg.append(drawn("line", { class: "now", y1: TOP, y2: HEIGHT - BOTTOM, x1: LEFT, x2: LEFT }));
  return element("figure", {}, element("figcaption", {}, title), svg);
}

function dot(place, method) {
  const [cx, cy] = place.split(",");
  return drawn("circle", { class: tone(method), cx, cy, r: 2 });
}

function moveCursors() {
  const at = LEFT + ((WIDTH - LEFT - RIGHT) * state.frame) / Math.max(1, state.count - 1);
  for (const line of document.querySelectorAll("svg .now")) {
    line.setAttribute("x1", at);
    line.setAttribute("x2", at);
  }
}

// ------------------------------------------------------------------------------------------------ choosing, playing

function choose(number, frame) {
  const job = data.jobs[number];
  if (!job) return Promise.resolve();
  const rows = data.rows.filter((row) => row.job === number);
  Object.assign(state, { job: number, count: Math.max(1, job.frames), fps: job.fps });
  byId("prompt").textContent = job.prompt ?? "no prompt known";
  byId("job").textContent = `reference ${job.reference ?? "unknown"}, seed ${job.seed ?? "unknown"}`;
  status.videos = "0";
  const reference = { video: job.video, tracks: job.tracks, why: "no reference frames in this report" };
  state.screens = [screen("reference", reference, ""), ...rows.map((row) => screen(row.method, row, tone(row.method)))];
  byId("screens").replaceChildren(...state.screens.map((one) => one.figure));
  const titles = [...new Set(rows.flatMap((row) => Object.keys(row.curves)))];
  const lines = (title) => rows.filter((row) => row.curves[title])
    .map((row) => ({ method: row.method, values: row.curves[title] }));
  byId("curves").replaceChildren(...titles.map((title) => curve(title, lines(title))).filter(Boolean));
  byId("scrub").max = String(state.count - 1);
  fillVideos();
  return show(frame).then(remember);
}

async function run() {
  while (state.playing) {
    const started = performance.now();
    await show(state.frame + 1);
    status.steps = String(Number(status.steps) + 1);
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, 1000 / state.fps - (performance.now() - started))));
  }
}

function play(on) {
  const start = on && !state.playing;
  state.playing = on;
  byId("play").textContent = on ? "Pause" : "Play";
  if (start) run();
  else if (!on) remember();
}

function remember() {
  if (state.playing) return;
  const parts = { job: state.job, frame: state.frame };
  if (state.sort) Object.assign(parts, { sort: state.sort, order: state.order > 0 ? "up" : "down" });
  try {
    history.replaceState(null, "", `#${new URLSearchParams(parts)}`);
  } catch { /* pages without an address of their own cannot keep one */ }
}

// ------------------------------------------------------------------------------------------------ start

byId("about").textContent = data.about;
byId("summary").append(...data.tables.flatMap(summaryTable));
if (data.problems.length) {
  byId("problems").append(
    element("h2", {}, "Problems"), element("ul", {}, ...data.problems.map((line) => element("li", {}, line))));
}
videoTable();
byId("play").addEventListener("click", () => play(!state.playing));
byId("back").addEventListener("click", () => { play(false); show(state.frame - 1).then(remember); });
byId("on").addEventListener("click", () => { play(false); show(state.frame + 1).then(remember); });
byId("scrub").addEventListener("input", () => { play(false); show(Number(byId("scrub").value)).then(remember); });
byId("tracks").addEventListener("change", () => show(state.frame));
document.addEventListener("keydown", (event) => {
  if (event.target.closest("button, input, tr")) return;
  if (event.key === " ") { event.preventDefault(); play(!state.playing); }
  if (event.key === "ArrowLeft") byId("back").click();
  if (event.key === "ArrowRight") byId("on").click();
});
const asked = new URLSearchParams(location.hash.slice(1));
if (asked.has("sort")) sortBy(asked.get("sort"), asked.get("order") === "down" ? -1 : 1);
choose(Number(asked.get("job") ?? 0), Number(asked.get("frame") ?? 0)).then(() => {
  status.ready = "yes";
  if (asked.has("play")) play(true);
});
