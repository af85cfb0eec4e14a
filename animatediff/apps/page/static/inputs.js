// What a method needs beside clip and prompt: one place to drop each, made from what the method says of its inputs.
import {$, h, icon, send} from "./dom.js";

export class Inputs {
  constructor(root, changed, chosen) {
    this.root = root;
    this.changed = changed;
    this.chosen = chosen; // an example was
    this.sent = {}; // key -> clips
    try { this.sent = JSON.parse(sessionStorage.getItem("inputs")) || {}; } catch { /* someone else's */ }
    this.example = sessionStorage.getItem("example") || null; // id of a bundled preparation that stands for one of one's own
    this.own = false; // whether a visitor brings what a preparation would make
  }

  show(method) {
    this.method = method;
    const wanted = this.wanted;
    this.root.hidden = wanted.length === 0;
    const turn = () => { this.own = !this.own; this.show(method); this.changed(); };
    this.root.replaceChildren(h("div.heading", {}, h("h2", {}, "Also needed"), method.preparation && method.inputs.length
      ? h("button.link", {type: "button", onclick: turn}, this.own ? "prepare them here" : "I have them prepared") : ""),
    h("ul.inputs", {}, wanted.map((input) => this.place(input))), this.preparing ? this.examples() : "");
  }

  // What comes along, each a pair of moving thumbnails.
  examples() {
    const examples = this.method.preparation.examples;
    const moving = (example, view, number) => {
      const video = h("video", {src: `page/clips/${example.id}/views/${number}`, autoplay: true, loop: true, playsInline: true,
        tabIndex: -1, "aria-hidden": "true"});
      video.muted = true;
      return video;
    };
    if (!examples.length) return "";
    return h("div.examples", {role: "group", "aria-label": "Bundled pairs"}, examples.map((example) =>
      h("button.pair", {type: "button", title: example.title, "aria-label": example.title, "aria-pressed": String(example.id === this.example),
        onclick: () => { this.choose(example.id); this.chosen(example.id); }},
      example.views.map((view, number) => (view.subject ? moving(example, view, number) : "")))));
  }

  // An example, or null for what one brings.
  choose(id) {
    if (id === this.example) return;
    this.example = id;
    sessionStorage.setItem("example", id || "");
    if (this.method) this.show(this.method);
    this.changed();
  }

  // Whether the method's own preparation makes what it needs.
  get preparing() { return Boolean(this.method.preparation) && !this.own; }

  get wanted() { return this.preparing ? this.method.preparation.clips : this.method.inputs; }

  isExample(id) { return this.preparing && this.method.preparation.examples.some((example) => example.id === id); }

  // The example that is chosen and in use.
  get pair() { return this.isExample(this.example) ? this.example : null; }

  // What of it moves as the reference does: the address of a video, and its facts.
  get driving() {
    const example = this.method.preparation.examples.find((one) => one.id === this.pair);
    const number = example.views.findIndex((view) => view.subject === "ref_video_path");
    return {...example, url: `page/clips/${example.id}/views/${Math.max(0, number)}`};
  }

  get complete() { return this.pair !== null || this.wanted.every((input) => !input.required || this.sent[input.key]?.length); }

  place(input) {
    const many = input.kind === "images";
    const file = h("input.hidden", {type: "file", multiple: many, tabIndex: -1, "aria-hidden": "true",
      accept: many ? "image/*" : "video/*,image/*,.mkv,.ts,.avi", onchange: () => this.take(input, [...file.files], box)});
    const button = h("button.quiet", {type: "button", onclick: () => file.click()}, icon("plus"),
      h("span.what", {}, input.key.replace(/_paths?$/, "").replaceAll("_", " ")));
    const box = h("li.input", {title: input.help, "data-key": input.key,
      ondragover: (event) => event.preventDefault(),
      ondrop: (event) => { event.preventDefault(); event.stopPropagation(); this.take(input, [...event.dataTransfer.files], box); }},
      button, file, h("span.state.faint", {}, this.state(input)));
    return box;
  }

  state(input) {
    if (this.pair) return "of the bundled pair";
    const clips = this.sent[input.key] || [];
    if (clips.length) return clips.map((clip) => clip.title).join(", ");
    return `${input.required ? "needed: " : ""}${input.help}`;
  }

  async take(input, files, box) {
    const state = $(".state", box);
    try {
      const clips = [];
      for (const file of input.kind === "images" ? files : files.slice(0, 1)) {
        clips.push(await send(file, (share) => { state.textContent = `sending ${file.name}, ${Math.round(100 * share)} %`; }));
      }
      this.sent[input.key] = clips;
      sessionStorage.setItem("inputs", JSON.stringify(this.sent));
      state.textContent = this.state(input);
      box.classList.remove("wrong");
      this.choose(null);
    } catch (error) {
      state.textContent = error.message;
      box.classList.add("wrong");
    }
    this.changed();
  }

  // {key: [ids]} of what was sent for this method.
  get ids() {
    const wanted = this.wanted.map((input) => input.key).filter((key) => this.sent[key]?.length);
    return Object.fromEntries(wanted.map((key) => [key, this.sent[key].map((clip) => clip.id)]));
  }
}
