// The drawer with every key of a method: generated from what the server tells of it, changes marked, each undone by a click.
import {$, ask, copy, h, icon, toast} from "./dom.js";

export class Settings {
  constructor(dialog, {order, changed}) {
    this.dialog = dialog;
    this.order = order; // what would be sent now
    this.changed = changed;
    this.values = {}; // of changed keys, as text
    this.rows = new Map();
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }

  // The fields of `method`, each by default as in `preset`. `values`: changes to keep.
  show(method, preset, values = {}) {
    this.method = method;
    this.preset = preset;
    const known = new Set(method.fields.map((field) => field.key));
    this.values = Object.fromEntries(Object.entries(values).filter(([key]) => known.has(key)));
    this.rows.clear();
    const groups = [["common", "Every method"], ["settings", method.title]].map(([place, title]) => {
      const fields = method.fields.filter((field) => field.place === place);
      return fields.length ? h("section.group", {}, h("h3", {}, title), fields.map((field) => this.row(field))) : null;
    });
    this.search = h("input.search", {type: "search", placeholder: "Find a setting", "aria-label": "Find a setting",
      oninput: () => this.find()});
    this.dialog.replaceChildren(h("div.drawer-body", {},
      h("header", {}, h("div", {}, h("h2#drawer-title", {}, "Advanced"),
        h("p.faint", {}, `${method.title}, preset ${preset.name}`)),
        h("button.icon", {type: "button", onclick: () => this.dialog.close(), "aria-label": "Close"}, icon("close"))),
      this.search,
      h("div.groups", {}, groups),
      h("footer", {},
        h("button.quiet#reset-all", {type: "button", onclick: () => this.resetAll()}, icon("undo"), "Reset all"),
        h("button.quiet#copy-yaml", {type: "button", onclick: () => this.copy("yaml", "YAML")}, icon("copy"), "YAML"),
        h("button.quiet#copy-command", {type: "button", onclick: () => this.copy("command", "Command")},
          icon("copy"), "Copy as command"))));
    this.tell();
  }

  usual(field) { return this.preset.values[field.key] ?? field.default; }

  row(field) {
    const id = `field-${field.key.replace(".", "-")}`;
    const input = control(field, id);
    put(input, this.values[field.key] ?? this.usual(field));
    const told = () => {
      const text = take(input);
      if (text === this.usual(field)) delete this.values[field.key]; else this.values[field.key] = text;
      this.tell();
    };
    input.addEventListener("input", told);
    input.addEventListener("change", told);
    const reset = h("button.icon.reset", {type: "button", "aria-label": `Reset ${field.name}`, title: "Reset",
      onclick: () => { put(input, this.usual(field)); told(); input.focus(); }}, icon("undo"));
    const box = h("div.field", {"data-key": field.key},
      h("label", {htmlFor: id}, field.name), h("div.control", {}, input, reset),
      h("p.help", {id: `${id}-help`}, help(field, this.usual(field))));
    input.setAttribute("aria-describedby", `${id}-help`);
    this.rows.set(field.key, {box, input, field, told});
    return box;
  }

  tell() {
    const count = Object.keys(this.values).length;
    for (const [key, {box}] of this.rows) box.classList.toggle("changed", key in this.values);
    $("#reset-all", this.dialog).disabled = count === 0;
    this.changed(count);
  }

  resetAll() {
    for (const {input, field, told} of this.rows.values()) {
      if (field.key in this.values) { put(input, this.usual(field)); told(); }
    }
  }

  find() {
    const words = this.search.value.toLowerCase();
    for (const {box, field} of this.rows.values()) box.hidden = !`${field.name} ${field.help}`.toLowerCase().includes(words);
  }

  async copy(what, name) {
    try { await copy((await ask("recipe", this.order()))[what], name); } catch (error) { toast(error.message); }
  }
}

function control(field, id) {
  const common = {id, name: field.key};
  if (field.kind === "switch") return h("input.switch", {...common, type: "checkbox", role: "switch"});
  if (field.kind === "choice") return h("select", common, field.choices.map((choice) => h("option", {value: choice}, choice)));
  const plain = (field.kind === "number" || field.kind === "whole") && !field.choices.length && !field.optional;
  if (plain && inRange(field)) {
    return h("input", {...common, type: "number", min: field.least ?? "", max: field.most ?? "",
      step: field.kind === "whole" ? 1 : "any"});
  }
  return h("input", {...common, type: "text", spellcheck: false});
}

// Larger numbers than this lose digits in a browser's number field.
function inRange(field) { return field.most === null || Math.abs(field.most) <= Number.MAX_SAFE_INTEGER; }

function put(input, text) { if (input.type === "checkbox") input.checked = text === "true"; else input.value = text; }

function take(input) { return input.type === "checkbox" ? String(input.checked) : input.value; }

function help(field, usual) {
  const parts = [field.help];
  const {least, most} = field;
  if (field.kind === "number" || field.kind === "whole" || field.of === "number" || field.of === "whole") {
    if (least !== null && most !== null && inRange(field)) parts.push(`${least} to ${most}`);
    else if (least !== null) parts.push(`${least} or more`);
  }
  if (field.choices.length && field.kind !== "choice") parts.push(`or ${field.choices.join(", ")}`);
  if (field.optional) parts.push("or null");
  parts.push(`default ${usual === "" ? "empty" : usual}`);
  return parts.filter(Boolean).join(" · ");
}
