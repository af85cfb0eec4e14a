// What a method needs beside clip and prompt: one place to drop each, made from what the method says of its inputs.
import {$, h, icon, send} from "./dom.js";

export class Inputs {
  constructor(root, changed) {
    this.root = root;
    this.changed = changed;
    this.sent = {}; // key -> clips
    try { this.sent = JSON.parse(sessionStorage.getItem("inputs")) || {}; } catch { /* someone else's */ }
    this.own = false; // whether a visitor brings what a preparation would make
  }

  show(method) {
    this.method = method;
    const wanted = this.wanted;
    this.root.hidden = wanted.length === 0;
    const turn = () => { this.own = !this.own; this.show(method); this.changed(); };
    this.root.replaceChildren(h("div.heading", {}, h("h2", {}, "Also needed"), method.preparation && method.inputs.length
      ? h("button.link", {type: "button", onclick: turn}, this.own ? "prepare them here" : "I have them prepared") : ""),
    h("ul.inputs", {}, wanted.map((input) => this.place(input))));
  }

  // Whether the method's own preparation makes what it needs.
  get preparing() { return Boolean(this.method.preparation) && !this.own; }

  get wanted() { return this.preparing ? this.method.preparation.clips : this.method.inputs; }

  get complete() { return this.wanted.every((input) => !input.required || this.sent[input.key]?.length); }

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
