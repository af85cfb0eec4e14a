// Two videos in step: side by side, or one over the other with a slider; tracks drawn over both.
import {$, h, icon} from "./dom.js";

const TRAIL = 7; // frames

export class Duo {
  constructor(place, {captions = ["Reference", "Result"]} = {}) {
    this.tracks = [[], []];
    this.playing = true;
    this.fps = 8;
    this.frames = 16;
    this.screens = captions.map((caption, side) => this.screen(caption, side));
    this.slider = h("input.split", {type: "range", min: 0, max: 100, value: 50, "aria-label": "How much of each is seen",
      oninput: () => this.showSplit()});
    this.box = h("div.screens", {}, this.screens.map((screen) => screen.box), this.slider);
    this.playButton = h("button.icon.play", {type: "button", onclick: () => this.toggle(), "aria-label": "Pause"});
    this.scrub = h("input.scrub", {type: "range", min: 0, max: 15, step: 1, value: 0, "aria-label": "Frame",
      oninput: () => this.goTo(Number(this.scrub.value))});
    this.clock = h("output.clock", {}, "");
    this.viewButtons = [["side", "Side by side"], ["over", "Overlay"]].map(([view, title]) =>
      h("button", {type: "button", onclick: () => this.setView(view), "data-view": view, title, "aria-label": title},
        icon(view), h("span", {}, title)));
    this.tracksButton = h("button.toggle", {type: "button", onclick: () => this.toggleTracks(), "aria-pressed": "false",
      title: "Paths of points", hidden: true}, icon("tracks"), h("span", {}, "Paths"));
    this.views = h("div.segments", {role: "group", "aria-label": "View", hidden: true}, this.viewButtons);
    this.controls = h("div.controls", {}, this.playButton, this.scrub, this.clock, this.views, this.tracksButton);
    this.root = h("div.duo", {}, this.box, this.controls);
    this.place = place;
    this.part = null; // [from, to] in seconds, where not the whole is played
    place.replaceChildren(this.root);
    this.setView("side");
    this.showPlaying();
    this.showSplit();
    const tick = () => { if (this.root.isConnected) { this.step(); requestAnimationFrame(tick); } };
    requestAnimationFrame(tick);
  }

  screen(caption, side) {
    const video = h("video", {muted: true, playsInline: true, preload: "auto", loop: false, tabIndex: -1,
      "aria-label": caption});
    video.muted = true;
    video.addEventListener("loadedmetadata", () => {
      if (video.videoWidth) {
        this.place.style.setProperty("--ratio", video.videoWidth / video.videoHeight);
        box.classList.toggle("small", Math.max(video.videoWidth, video.videoHeight) <= 160);
      }
    });
    const canvas = h("canvas", {"aria-hidden": "true"});
    const cover = h("div.cover");
    const label = h("figcaption", {}, caption);
    const box = h("figure.screen", {"data-side": side}, h("div.frame", {}, video, canvas, cover), label);
    return {box, video, canvas, cover, label};
  }

  get master() { return this.screens.map((s) => s.video).find((video) => video.readyState >= 1 && video.currentSrc); }

  // What each side plays: an address, or null for nothing.
  load(sources, {fps = 8, frames = 16, captions} = {}) {
    this.fps = fps;
    this.frames = frames;
    this.tracks = [[], []];
    this.part = null;
    this.scrub.max = Math.max(1, frames - 1);
    this.screens.forEach((screen, side) => {
      const source = sources[side];
      if (captions) screen.label.textContent = captions[side];
      screen.cover.replaceChildren();
      screen.box.classList.toggle("empty", !source);
      if (source) { screen.video.src = source; screen.video.load(); }
      else if (screen.video.hasAttribute("src")) { screen.video.removeAttribute("src"); screen.video.load(); }
    });
    const both = sources.every(Boolean);
    this.views.hidden = !both;
    this.tracksButton.hidden = true;
    if (!both) this.setView("side");
  }

  cover(side, ...children) { this.screens[side].cover.replaceChildren(...children); }

  setTracks(reference, own) {
    this.tracks = [reference, own];
    this.tracksButton.hidden = !own.length;
  }

  toggleTracks() {
    this.tracksButton.setAttribute("aria-pressed", this.tracksButton.getAttribute("aria-pressed") !== "true");
  }

  setView(view) {
    this.root.dataset.view = view;
    this.slider.hidden = view !== "over";
    for (const button of this.viewButtons) button.setAttribute("aria-pressed", button.dataset.view === view);
  }

  showSplit() { this.root.style.setProperty("--split", `${this.slider.value}%`); }

  toggle() { this.playing = !this.playing; this.showPlaying(); }

  showPlaying() {
    this.playButton.replaceChildren(icon(this.playing ? "pause" : "play"));
    this.playButton.setAttribute("aria-label", this.playing ? "Pause" : "Play");
  }

  goTo(frame) {
    this.playing = false;
    this.showPlaying();
    for (const {video} of this.screens) if (video.readyState) { video.pause(); video.currentTime = (frame + 0.5) / this.fps; }
  }

  // Once a screen refresh: the first video leads, the other follows it.
  step() {
    const leader = this.master;
    if (!leader) { this.clock.textContent = ""; return; }
    const [from, to] = this.part || [0, Infinity];
    if (this.playing && (leader.ended || leader.currentTime >= to || leader.currentTime < from - 0.05) && !leader.seeking) {
      leader.currentTime = from;
    }
    if (this.playing === leader.paused) { if (this.playing) leader.play().catch(() => {}); else leader.pause(); }
    const time = leader.currentTime;
    for (const {video} of this.screens) {
      if (video === leader || !video.currentSrc || video.readyState < 1 || video.seeking) continue;
      const wanted = Math.min(time, Math.max(0, video.duration - 0.01));
      if (Math.abs(video.currentTime - wanted) > 0.4 / this.fps) video.currentTime = wanted;
      if (this.playing && !video.ended) { if (video.paused) video.play().catch(() => {}); }
      else if (!video.paused) video.pause();
    }
    const frame = Math.min(this.frames - 1, Math.floor(time * this.fps + 1e-3));
    if (document.activeElement !== this.scrub || this.playing) this.scrub.value = frame;
    this.clock.textContent = `${String(frame + 1).padStart(2, "0")} / ${this.frames}`;
    const shown = this.tracksButton.getAttribute("aria-pressed") === "true" && !this.tracksButton.hidden;
    this.screens.forEach((screen, side) => draw(screen.canvas, shown ? this.tracks[side] : [], frame));
  }
}

function draw(canvas, tracks, frame) {
  const scale = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth * scale, canvas.clientHeight * scale];
  if (canvas.width !== Math.round(width)) canvas.width = Math.round(width);
  if (canvas.height !== Math.round(height)) canvas.height = Math.round(height);
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.lineWidth = 2 * scale;
  pen.lineCap = pen.lineJoin = "round";
  for (const track of tracks) {
    const start = track.find(Boolean);
    if (!start || !track[frame]) continue;
    const colour = `hsl(${Math.round(360 * start[0] + 140 * start[1])} 95% 60%)`;
    pen.strokeStyle = pen.fillStyle = colour;
    pen.beginPath();
    for (let k = Math.max(0, frame - TRAIL); k <= frame; k += 1) {
      if (track[k]) pen.lineTo(track[k][0] * canvas.width, track[k][1] * canvas.height);
    }
    pen.stroke();
    pen.beginPath();
    pen.arc(track[frame][0] * canvas.width, track[frame][1] * canvas.height, 3 * scale, 0, 7);
    pen.fill();
  }
}
