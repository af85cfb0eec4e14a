"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const element = (tag, text, className) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
};

at("title").textContent = data.title;
document.title = data.title;
at("about").textContent = [
  data.clips.source ? `${data.clips.source} is edited` : "",
  data.clips.driving ? `the motion is that of ${data.clips.driving}` : "",
].filter(Boolean).join("; ");

const images = {};
const loading = [];
for (const [name, uris] of Object.entries(data.sequences)) {
  images[name] = uris.map((uri) => {
    const image = new Image();
    image.src = uri;
    loading.push(image.decode().catch(() => undefined));
    return image;
  });
}
const count = Math.min(...Object.values(images).map((sequence) => sequence.length));

const panels = data.panels.map((panel) => {
  const figure = element("figure");
  const canvas = element("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", panel.title);
  const caption = element("figcaption");
  caption.append(element("b", panel.title));
  figure.append(canvas, caption);
  at("panels").append(figure);
  return { ...panel, canvas };
});

function draw(frame) {
  const over = at("over").checked;
  for (const panel of panels) {
    const own = images[panel.name][frame];
    const { canvas } = panel;
    if (canvas.width !== own.naturalWidth || canvas.height !== own.naturalHeight) {
      canvas.width = own.naturalWidth;
      canvas.height = own.naturalHeight;
    }
    const context = canvas.getContext("2d");
    const lay = (image, mode, alpha) => {
      context.globalCompositeOperation = mode;
      context.globalAlpha = alpha;
      context.drawImage(image, 0, 0, canvas.width, canvas.height);
    };
    context.globalCompositeOperation = "source-over";
    context.globalAlpha = 1;
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (!panel.under) {
      lay(own, "source-over", 1);
      if (over && panel.name === "target_images") lay(images[data.over][frame], "screen", 1);
    } else if (!over) {
      lay(own, "source-over", 1);
    } else if (panel.name.endsWith("masks")) {
      lay(images[panel.under][frame], "source-over", 1);
      lay(own, "multiply", 0.72);
    } else {
      lay(images[panel.under][frame], "source-over", 0.45);
      lay(own, "screen", 1);
    }
  }
  at("scrub").value = String(frame);
  at("frame").textContent = `${frame + 1} of ${count}`;
}

let frame = 0;
let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
let last = 0;
function show(next) {
  frame = (next + count) % count;
  draw(frame);
}
function play(on) {
  playing = on;
  at("play").textContent = on ? "Pause" : "Play";
}
function tick(now) {
  if (playing && now - last >= 1000 / (data.fps * Number(at("speed").value))) {
    last = now;
    show(frame + 1);
  }
  requestAnimationFrame(tick);
}
at("scrub").max = String(count - 1);
at("play").addEventListener("click", () => play(!playing));
at("back").addEventListener("click", () => { play(false); show(frame - 1); });
at("on").addEventListener("click", () => { play(false); show(frame + 1); });
at("scrub").addEventListener("input", () => { play(false); show(Number(at("scrub").value)); });
at("over").addEventListener("change", () => draw(frame));

for (const stage of data.stages) {
  const row = element("tr");
  const checks = element("td");
  for (const check of stage.checks) checks.append(element("div", check.text, check.good ? "good" : "bad"));
  for (const line of stage.warnings) checks.append(element("div", line, "note"));
  row.append(element("td", stage.name), element("td", stage.made_by), checks);
  row.append(element("td", stage.seconds === null ? "" : stage.seconds.toFixed(1), "number"));
  at("stages").append(row);
}
Promise.all(loading).then(() => {
  play(playing);
  show(0);
  requestAnimationFrame(tick);
});
