// The page: what is chosen, what runs, what was made. The address says where one is, so that a reload comes back to it.
import {$, ask, complain, duration, h, icon, send, toast} from "./dom.js";
import {Gallery} from "./gallery.js";
import {Inputs} from "./inputs.js";
import {showResult} from "./outcome.js";
import {Duo} from "./player.js";
import {Prepared} from "./prepared.js";
import {Settings} from "./settings.js";
import {Trim} from "./trim.js";

const POLL = 400; // milliseconds
const state = {clip: null, uploads: [], method: null, preset: null, chosen: {}};
let told, duo, trim, inputs, settings, gallery, prepared, polling;

async function begin() {
  showTheme();
  told = await ask("start");
  duo = new Duo($("#duo"));
  trim = new Trim($("#trim"), keep, (part) => { if (!location.hash.includes("=")) duo.part = part; });
  inputs = new Inputs($("#inputs"), ready, chooseExample);
  settings = new Settings($("#drawer"), {order, changed: (count) => {
    $("#changed").textContent = count;
    $("#changed").hidden = count === 0;
    $("#advanced").setAttribute("aria-label", count ? `Advanced, ${count} changed` : "Advanced");
    keep();
  }});
  prepared = new Prepared($("#views"), prepare);
  gallery = new Gallery($("#gallery"), told.methods);
  listen();
  await restore();
  window.addEventListener("hashchange", route);
  await route();
  document.documentElement.dataset.ready = "yes";
}

function listen() {
  $("#form").addEventListener("submit", (event) => { event.preventDefault(); run(); });
  $("#file").addEventListener("change", (event) => { upload(event.target.files[0]); event.target.value = ""; });
  $("#advanced").addEventListener("click", () => $("#drawer").showModal());
  $("#preset").addEventListener("change", (event) => choosePreset(event.target.value));
  $("#prompt").addEventListener("input", keep);
  $("#prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
  });
  $("#example").addEventListener("click", () => {
    const at = told.prompts.indexOf($("#prompt").value);
    $("#prompt").value = told.prompts[(at + 1) % told.prompts.length] ?? "";
    keep();
  });
  $("#theme").addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
      (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    localStorage.setItem("theme", dark ? "light" : "dark");
    showTheme();
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.toggle("dropping", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files[0]) { location.hash = "make"; upload(event.dataTransfer.files[0]); }
    });
  }
}

function showTheme() {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
  $("#theme").replaceChildren(icon("sun"));
}

// ------------------------------------------------------------------------------------------- what is chosen

// What would be sent now.
function order() {
  const method = state.method;
  return {
    preset: state.preset.key, ...(inputs.pair ? {} : {clip: state.clip.id}), settings: settings.values,
    inputs: inputs.preparing ? {[method.preparation.key]: [inputs.pair ?? prepared.id]} : inputs.ids,
    ...(method.needs_prompt ? {prompt: $("#prompt").value} : {}),
    ...(method.can_trim ? trim.part : {}),
  };
}

function keep() {
  if (!state.preset) return;
  state.chosen[state.preset.key] = settings.values;
  const part = trim.part;
  sessionStorage.setItem("form", JSON.stringify({clip: state.clip?.id, uploads: state.uploads.map((clip) => clip.id),
    preset: state.preset.key, chosen: state.chosen, prompt: $("#prompt").value, ...part}));
}

async function restore() {
  let form = {};
  try { form = JSON.parse(sessionStorage.getItem("form")) || {}; } catch { /* someone else's */ }
  const found = await Promise.all((form.uploads || []).map((id) => ask(`clips/${id}`).catch(() => null)));
  state.uploads = found.filter(Boolean);
  state.chosen = form.chosen || {};
  const clip = [...state.uploads, ...told.clips].find((one) => one.id === form.clip) || told.clips[0];
  $("#prompt").value = form.prompt ?? told.prompts[0] ?? "";
  state.clip = clip;
  trim.show(clip, clip.id === form.clip ? form.start : null, clip.id === form.clip ? form.duration : null);
  const preset = told.presets.find((one) => one.key === form.preset) || told.presets[0];
  choosePreset(preset.key);
}

function choosePreset(key) {
  state.preset = told.presets.find((preset) => preset.key === key);
  state.method = told.methods.find((method) => method.name === state.preset.method);
  const {method, preset} = state;
  const kin = told.presets.filter((other) => other.method === method.name);
  $("#preset").replaceChildren(...kin.map((other) => h("option", {value: other.key, selected: other === preset},
    other.missing.length ? `${other.name} (needs weights)` : other.name)));
  $("#methods").replaceChildren(...told.methods.map((other) => {
    const own = told.presets.filter((one) => one.method === other.name);
    const able = own.some((one) => !one.missing.length);
    return h("label.chip", {className: `chip${able ? "" : " off"}`},
      h("input", {type: "radio", name: "method", value: other.name, checked: other === method, disabled: !own.length,
        onchange: () => choosePreset(own[0].key)}), h("span", {}, other.title));
  }));
  $("#about").replaceChildren(preset.missing.length
    ? h("span.missing", {}, h("strong", {}, "Weights are missing. "), preset.missing[0]) : preset.about);
  $("#about").title = preset.missing.length ? preset.missing.join("\n") : preset.about;
  $("#content").hidden = !method.needs_prompt;
  $("#trim").hidden = !method.can_trim;
  inputs.show(method);
  drawTiles();
  settings.show(method, preset, state.chosen[preset.key]);
  ready();
  keep();
}

function ready() {
  $("#run").disabled = state.preset.missing.length > 0 || !inputs.complete;
  $("#run").textContent = mustPrepare() ? "Prepare" : "Make the video";
}

function mustPrepare() { return inputs.preparing && !inputs.pair && !prepared.isOf(basis()); }

// What a preparation is made from.
function basis() {
  if (inputs.pair) return {preset: state.preset.key, example: inputs.pair};
  const clips = Object.fromEntries(Object.entries(inputs.ids).map(([key, ids]) => [key, ids[0]]));
  return {preset: state.preset.key, clip: state.clip.id, clips};
}

async function prepare(subjects = {}) {
  prepared.begin(basis(), subjects);
  location.hash = `job=${(await ask("preparations", {...basis(), subjects})).id}`;
}

// A bundled preparation, to be looked at as one of one's own.
function chooseExample(id) {
  prepared.begin(basis(), {});
  drawTiles();
  location.hash = `prepared=${id}`;
}

function drawTiles(sending = null) {
  const tile = (clip) => {
    const video = h("video", {src: `page/clips/${clip.id}/play`, autoplay: true, loop: true, playsInline: true, tabIndex: -1,
      "aria-hidden": "true"});
    video.muted = true;
    video.play().catch(() => {});
    return h("label.tile", {title: clip.title}, h("input", {type: "radio", name: "clip", value: clip.id,
      checked: clip.id === state.clip?.id && !inputs.pair, "aria-label": clip.title, onchange: () => chooseClip(clip)}), video);
  };
  $("#tiles").replaceChildren(
    h("button.tile.drop#drop", {type: "button", onclick: () => $("#file").click(), "aria-label": "Choose a clip of yours"},
      sending === null ? [icon("plus"), h("span", {}, "Your clip")] : h("span.sending", {}, `${Math.round(100 * sending)} %`)),
    ...[...state.uploads, ...told.clips].map(tile));
}

function chooseClip(clip) {
  state.clip = clip;
  inputs.choose(null);
  complain("#clip-error", "");
  trim.show(clip);
  ready();
  keep();
  if (location.hash === "#make" || !location.hash) showIdle(); else location.hash = "make";
}

async function upload(file) {
  if (!file) return;
  complain("#clip-error", "");
  if (file.size > told.limits.megabytes * 1e6) {
    complain("#clip-error", `${file.name} is larger than ${told.limits.megabytes} MB; cut or compress it first`);
    return;
  }
  try {
    drawTiles(0);
    const clip = await send(file, (share) => drawSending(share));
    state.uploads = [clip, ...state.uploads].slice(0, 4);
    chooseClip(clip);
    if (clip.warnings.length) toast(clip.warnings[0]);
  } catch (error) {
    complain("#clip-error", error.message);
  }
  drawTiles();
}

function drawSending(share) {
  const place = $("#drop .sending");
  if (place) place.textContent = share < 1 ? `${Math.round(100 * share)} %` : "checking";
}

// ------------------------------------------------------------------------------------------- where one is

async function route() {
  clearTimeout(polling);
  const [view, what] = location.hash.slice(1).split("=");
  const wall = view === "gallery" || view === "compare";
  $("#make").hidden = wall;
  $("#gallery").hidden = !wall;
  for (const tab of document.querySelectorAll(".tab")) {
    if ((tab.hash === "#gallery") === wall) tab.setAttribute("aria-current", "page"); else tab.removeAttribute("aria-current");
  }
  complain("#form-error", "");
  $("#views").hidden = view !== "prepared";
  $("#duo").hidden = view === "prepared";
  try {
    if (view === "gallery") await gallery.open();
    else if (view === "compare") await gallery.compare(what.split(",").slice(0, 2));
    else if (view === "job") await follow(what);
    else if (view === "prepared") await showPrepared(what);
    else if (view === "result") { showRecent(); await showResult(duo, $("#outcome"), what, {title: (name) => gallery.title(name), again}); }
    else showIdle();
  } catch (error) {
    if (wall) { toast(error.message); return; }
    showIdle();
    complain("#form-error", error.message);
  }
}

function showIdle() {
  const clip = inputs.pair ? inputs.driving : {...state.clip, url: `page/clips/${state.clip.id}/play`};
  $("#clip-facts").textContent = `${clip.title}, ${clip.seconds.toFixed(1)} s, ${clip.width}×${clip.height}`;
  $("#outcome").replaceChildren();
  showRecent();
  duo.load([clip.url, null], {fps: Math.max(1, Math.min(clip.frames, 96) / clip.seconds),
    frames: Math.min(clip.frames, 96), captions: ["Reference", "Result"]});
  duo.part = state.method.can_trim ? trim.seconds_used : null;
  duo.cover(1, h("p.empty-text", {}, "Your video will be here."));
}

// The latest results.
async function showRecent() {
  const results = (await ask("results").catch(() => [])).slice(0, 10);
  $("#recent").hidden = !results.length;
  $("#recent").replaceChildren(h("h2#recent-title", {}, "Made here before"), h("ul", {}, results.map((result) => {
    const video = h("video", {src: `page/results/${result.id}/video`, autoplay: true, loop: true, playsInline: true, tabIndex: -1,
      "aria-hidden": "true"});
    video.muted = true;
    return h("li", {}, h("a", {href: `#result=${result.id}`, title: result.prompt || "", "aria-label":
      `${result.prompt || result.reference}, seed ${result.seed}`}, video));
  })));
}

async function run() {
  complain("#form-error", "");
  $("#run").disabled = true;
  try {
    if (mustPrepare()) await prepare();
    else location.hash = `job=${(await ask("jobs", order())).id}`;
  } catch (error) {
    complain("#form-error", error.message);
  }
  ready();
}

async function showPrepared(id) {
  $("#outcome").replaceChildren();
  showRecent();
  if (inputs.isExample(id)) inputs.choose(id);
  await prepared.show(id, inputs.pair === id);
  ready();
}

async function again(id) {
  try {
    const seed = Math.floor(Math.random() * 2 ** 31);
    location.hash = `job=${(await ask(`results/${id}/again`, {seed})).id}`;
  } catch (error) { toast(error.message); }
}

// Tell how a job stands until it ends; then show its result.
async function follow(id) {
  const picture = h("img.preview", {alt: "", hidden: true});
  const bar = h("progress", {max: 1, "aria-label": "Progress"});
  const line = h("p.stage-line", {role: "status"});
  const more = h("p.faint.left");
  const stop = h("button.quiet#cancel", {type: "button", onclick: async () => {
    stop.disabled = true;
    try { await ask(`jobs/${id}/cancel`, {}); } catch (error) { toast(error.message); }
  }}, icon("close"), "Cancel");
  showIdle();
  duo.cover(1, picture, h("div.running", {}, line, bar, h("div.row", {}, more, stop)));
  let seen = 0;
  const look = async () => {
    let job;
    try { job = await ask(`jobs/${id}`); } catch (error) {
      if (location.hash !== `#job=${id}`) return;
      showIdle();
      complain("#form-error", error.message);
      return;
    }
    if (location.hash !== `#job=${id}`) return;
    if (job.state === "done") {
      if (job.note) toast(job.note);
      history.replaceState(null, "", job.prepared ? `#prepared=${job.prepared}` : `#result=${job.result}`);
      await route();
      return;
    }
    if (job.state === "cancelled" || job.state === "failed") {
      history.replaceState(null, "", "#make");
      await route();
      if (job.state === "failed") complain("#form-error", job.note);
      else toast("Cancelled; nothing was written");
      return;
    }
    line.textContent = job.place > 0 ? `In the queue: ${job.place === 1 ? "one job" : `${job.place} jobs`} before yours`
      : job.stage || "about to begin";
    more.textContent = [job.steps ? `step ${job.step} of ${job.steps}` : "",
      job.left !== null ? `about ${duration(job.left)} left` : ""].filter(Boolean).join(", ");
    if (job.steps) bar.value = job.step / job.steps; else bar.removeAttribute("value");
    if (job.previews > seen) {
      seen = job.previews;
      picture.src = `page/jobs/${id}/preview?${seen}`;
      picture.hidden = false;
    }
    polling = setTimeout(look, POLL);
  };
  await look();
}

begin().catch((error) => { complain("#form-error", error.message); });
