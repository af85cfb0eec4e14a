// Small helpers: elements, requests, words for numbers.

export const $ = (selector, root = document) => root.querySelector(selector);

// h("button.primary#go", {type: "button", onclick}, "text", child): an element. Text is text, never markup.
export function h(spec, properties = {}, ...children) {
  const [, tag, rest] = spec.match(/^([a-z0-9]+)(.*)$/);
  const element = document.createElement(tag);
  for (const [, kind, name] of rest.matchAll(/([.#])([\w-]+)/g)) {
    if (kind === "#") element.id = name; else element.classList.add(name);
  }
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.startsWith("aria") && name !== "list") element[name] = value;
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export function icon(name) {
  const paths = {
    play: "M7 5l11 7-11 7z", pause: "M7 5h3.500v14H7zM13.500 5H17v14h-3.500z",
    side: "M4 6h7v12H4zM13 6h7v12h-7z", over: "M4 6h16v12H4zM12 3v18",
    tracks: "M4 18c3-9 6 2 9-5s4-5 7-7M20 6h-4M20 6v4", down: "M12 4v11m0 0l-4.500-4.500M12 15l4.500-4.500M5 20h14",
    again: "M19 8a8 8 0 1 0 1 5M19 3v5h-5", copy: "M9 9h10v11H9zM5 15V4h10", close: "M6 6l12 12M18 6L6 18",
    plus: "M12 5v14M5 12h14", undo: "M9 7L4 12l5 5M4 12h10a6 6 0 0 1 6 6",
    sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2.500M12 19.500V22M4.500 4.500l2 2M17.500 17.500l2 2M2 12h2.500M19.500 12H22" +
      "M4.500 19.500l2-2M17.500 6.500l2-2",
  };
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add(name === "play" || name === "pause" ? "solid" : "line");
  const path = document.createElementNS(svg.namespaceURI, "path");
  path.setAttribute("d", paths[name]);
  svg.append(path);
  return svg;
}

// The answer of the server as JSON; an Error with its one line where it refuses.
export async function ask(path, body) {
  let answer;
  try {
    answer = await fetch(`page/${path}`, body === undefined ? {} : {
      method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(body),
    });
  } catch {
    throw new Error("the server cannot be reached; is it still running?");
  }
  return understood(answer.ok, await answer.text());
}

function understood(ok, text) {
  let told;
  try { told = JSON.parse(text); } catch { told = {error: text.slice(0, 200) || "the server gave no answer"}; }
  if (!ok) throw new Error(told.error || told.detail || "the server refused");
  return told;
}

// Send a file; told(share) as it goes.
export function send(file, told) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    request.open("POST", `page/clips?name=${encodeURIComponent(file.name)}`);
    request.upload.onprogress = (event) => told(event.lengthComputable ? event.loaded / event.total : 0);
    request.onerror = () => failed(new Error("the upload broke off; try again"));
    request.onload = () => {
      try { done(understood(request.status === 200, request.responseText)); } catch (error) { failed(error); }
    };
    request.send(file);
  });
}

export function duration(seconds) {
  if (seconds < 1) return "less than a second";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export function ago(when) {
  const seconds = Date.now() / 1000 - when;
  if (seconds < 60) return "just now";
  if (seconds < 172800) return `${duration(seconds)} ago`;
  return new Date(when * 1000).toLocaleDateString();
}

let hiding;
export function toast(text) {
  const line = $("#toast");
  line.textContent = text;
  line.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => { line.hidden = true; }, 2600);
}

export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // without https a page may not use the clipboard directly
    const area = h("textarea", {value: text, readOnly: true, className: "unseen"});
    (document.querySelector("dialog[open]") || document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast(`${what} copied`);
}

export function complain(selector, text) {
  const line = $(selector);
  line.textContent = text || "";
  line.hidden = !text;
}
