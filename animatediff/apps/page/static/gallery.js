// Earlier results: a wall of cards, filtered, and two of them compared.
import {$, ago, ask, h, icon} from "./dom.js";
import {Duo} from "./player.js";

export class Gallery {
  constructor(root, methods) {
    this.root = root;
    this.methods = methods;
    this.chosen = [];
    this.words = h("input", {type: "search", placeholder: "Words of the prompt", "aria-label": "Words of the prompt",
      oninput: () => this.draw()});
    this.method = h("select", {"aria-label": "Method", onchange: () => this.draw()});
    this.reference = h("select", {"aria-label": "Reference", onchange: () => this.draw()});
    this.compareButton = h("button.primary#compare", {type: "button", disabled: true,
      onclick: () => { location.hash = `compare=${this.chosen.join(",")}`; }}, "Compare two");
    this.wall = h("ul.wall");
    this.empty = h("p.nothing", {hidden: true});
    this.lower = h("div.lower", {}, this.wall, this.empty);
    this.filters = h("div.filters", {role: "search"}, h("h1", {}, "Gallery"), this.words, this.method, this.reference,
      this.compareButton);
    root.replaceChildren(this.filters, this.lower);
  }

  async open() {
    this.root.classList.remove("comparing");
    this.lower.replaceChildren(this.wall, this.empty);
    this.results = await ask("results");
    const options = (select, all, values, title) => {
      const before = select.value;
      select.replaceChildren(h("option", {value: ""}, all), ...values.map((value) => h("option", {value}, title(value))));
      if (values.includes(before)) select.value = before;
    };
    const seen = (key) => [...new Set(this.results.map((result) => result[key]))].sort();
    options(this.method, "Every method", seen("method"), (name) => this.title(name));
    options(this.reference, "Every reference", seen("reference"), (name) => name);
    this.chosen = this.chosen.filter((id) => this.results.some((result) => result.id === id));
    this.draw();
  }

  title(name) { return this.methods.find((method) => method.name === name)?.title ?? name; }

  draw() {
    const words = this.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = this.results.filter((result) =>
      (!this.method.value || result.method === this.method.value) &&
      (!this.reference.value || result.reference === this.reference.value) &&
      words.every((word) => (result.prompt || "").toLowerCase().includes(word)));
    this.wall.replaceChildren(...shown.map((result) => this.card(result)));
    this.empty.hidden = shown.length > 0;
    this.empty.textContent = this.results.length ? "No result matches." : "Nothing was made yet. The first result will be here.";
    this.compareButton.disabled = this.chosen.length !== 2;
  }

  card(result) {
    const video = h("video", {src: `page/results/${result.id}/video`, loop: true, playsInline: true, preload: "metadata",
      tabIndex: -1, "aria-hidden": "true"});
    video.muted = true;
    const play = () => video.play().catch(() => {});
    const box = h("input", {type: "checkbox", checked: this.chosen.includes(result.id),
      "aria-label": `Choose ${result.prompt || result.reference} for comparison`,
      onchange: () => {
        this.chosen = box.checked ? [...this.chosen, result.id].slice(-2) : this.chosen.filter((id) => id !== result.id);
        this.draw();
      }});
    return h("li.card", {onmouseenter: play, onmouseleave: () => video.pause(), onfocusin: play},
      h("a", {href: `#result=${result.id}`}, h("div.thumb", {}, video),
        h("p.prompt", {}, result.prompt || "(no prompt)"),
        h("p.faint", {}, `${this.title(result.method)} · ${result.reference} · seed ${result.seed} · ${ago(result.when)}`)),
      h("label.choose", {}, box, h("span", {}, icon("over"))));
  }

  async compare(ids) {
    const [one, two] = await Promise.all(ids.map((id) => ask(`results/${id}`)));
    const place = h("div.compare-stage");
    this.root.classList.add("comparing");
    this.lower.replaceChildren(h("a.link.back", {href: "#gallery"}, "All results"), place);
    const duo = new Duo(place);
    duo.load([one, two].map((result) => `page/results/${result.id}/video`), {fps: one.fps, frames: one.num_frames,
      captions: [one, two].map((result) => `${this.title(result.method)}, seed ${result.seed}: ${result.prompt || ""}`)});
    const [first, second] = await Promise.all(ids.map((id) => ask(`results/${id}/measures`)));
    duo.setTracks(first.tracks, second.tracks);
    const names = [...new Set([...first.measures, ...second.measures].map((measure) => measure.name))];
    const value = (told, name) => told.measures.find((measure) => measure.name === name);
    this.lower.append(h("table.facts", {}, h("tbody", {}, names.map((name) => h("tr", {}, h("th", {scope: "row"}, name),
      [first, second].map((told) => h("td", {}, value(told, name) ? `${value(told, name).value}, ${value(told, name).word}` : "")))))));
  }
}
