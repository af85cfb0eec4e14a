// The part of a clip that is used: two handles over a strip of its frames.
import {h} from "./dom.js";

const PARTS = 1000; // steps of a handle

export class Trim {
  constructor(root, changed, moved) {
    this.told = moved; // with [from, to] in seconds, as it is moved
    this.handles = [["from", 0], ["to", PARTS]].map(([name, value]) =>
      h("input", {type: "range", min: 0, max: PARTS, value, "aria-label": `Use the clip ${name}`, "data-end": name,
        oninput: (event) => this.moved(event.target), onchange: () => changed()}));
    this.strip = h("img", {alt: "", draggable: false});
    this.label = h("output.trim-time", {"aria-live": "off"});
    this.root = root;
    root.replaceChildren(h("div.strip", {}, this.strip, h("div.window"), ...this.handles), this.label);
  }

  show(clip, start = null, length = null) {
    this.seconds = clip.seconds;
    this.frames = clip.frames;
    this.strip.src = `page/clips/${clip.id}/strip`;
    const [from, to] = this.handles;
    from.value = start === null ? 0 : Math.round((start / clip.seconds) * PARTS);
    to.value = length === null ? PARTS : Math.round((((start || 0) + length) / clip.seconds) * PARTS);
    this.tell();
  }

  moved(handle) {
    const [from, to] = this.handles;
    const least = Math.ceil((PARTS * Math.min(2, this.frames)) / this.frames); // two frames
    if (handle === from) from.value = Math.min(Number(from.value), Number(to.value) - least);
    else to.value = Math.max(Number(to.value), Number(from.value) + least);
    this.tell();
  }

  tell() {
    const [from, to] = this.handles.map((handle) => Number(handle.value) / PARTS);
    this.root.style.setProperty("--from", `${100 * from}%`);
    this.root.style.setProperty("--to", `${100 * to}%`);
    const seconds = (share) => `${(share * this.seconds).toFixed(1)} s`;
    this.handles[0].setAttribute("aria-valuetext", seconds(from));
    this.handles[1].setAttribute("aria-valuetext", seconds(to));
    this.told(this.seconds_used);
    this.label.textContent = from === 0 && to === 1 ? `whole clip, ${seconds(1)}` : `${seconds(from)} to ${seconds(to)}`;
  }

  // [from, to] in seconds.
  get seconds_used() { return this.handles.map((handle) => (Number(handle.value) / PARTS) * this.seconds); }

  // {start, duration} in seconds, null where the clip is used from its beginning, to its end.
  get part() {
    const [from, to] = this.handles.map((handle) => Number(handle.value) / PARTS);
    const round = (seconds) => Math.round(seconds * 1000) / 1000;
    return {start: from > 0 ? round(from * this.seconds) : null, duration: to < 1 ? round((to - from) * this.seconds) : null};
  }
}
