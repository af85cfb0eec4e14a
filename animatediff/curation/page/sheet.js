"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const storage = "decisions " + data.id;
let decisions = Object.assign({}, data.decisions, stored());

function stored() {
  try { return JSON.parse(localStorage.getItem(storage)) || {}; } catch { return {}; }
}

function element(tag, parent, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  parent.append(made);
  return made;
}

function video(parent, source) {
  const made = element("video", parent);
  Object.assign(made, { src: source, muted: true, loop: true, autoplay: true, playsInline: true, controls: true });
  return made;
}

const cards = [];

function verdict(candidate) {
  return decisions[candidate.name] || (candidate.reasons.length ? "reject" : "keep");
}

function paint() {
  const show = document.getElementById("show").value;
  let kept = 0;
  for (const { card, candidate, hand } of cards) {
    const now = verdict(candidate);
    kept += now === "keep";
    card.classList.toggle("keep", now === "keep");
    card.classList.toggle("reject", now === "reject");
    hand.textContent = decisions[candidate.name] ? "by hand: " + decisions[candidate.name] : "";
    const hidden = show === "open" ? candidate.name in decisions : show !== "all" && show !== now;
    card.classList.toggle("hidden", hidden);
  }
  document.getElementById("about").textContent =
    `${kept} of ${cards.length} candidates kept, ${Object.keys(decisions).length} decided by hand. ` + data.about;
}

function decide(candidate, choice) {
  if (choice) decisions[candidate.name] = choice; else delete decisions[candidate.name];
  try { localStorage.setItem(storage, JSON.stringify(decisions)); } catch { /* private windows keep nothing */ }
  paint();
}

function addCard(parent, candidate) {
  const card = element("article", parent, undefined, "card");
  card.tabIndex = 0;
  video(card, candidate.video);
  element("p", card, candidate.prompt);
  element("p", card, candidate.scores, "scores");
  if (candidate.reasons.length) element("p", card, candidate.reasons.join("; "), "reasons");
  const hand = element("p", card, "", "hand");
  for (const [choice, label] of [["keep", "keep"], ["reject", "reject"], ["", "undo"]]) {
    const button = element("button", card, label);
    button.dataset.choice = choice;
    button.addEventListener("click", () => decide(candidate, choice));
  }
  card.addEventListener("keydown", (event) => {
    const choice = { k: "keep", r: "reject", u: "" }[event.key];
    if (choice !== undefined) decide(candidate, choice);
  });
  cards.push({ card, candidate, hand });
}

function addGroup(group) {
  const main = document.querySelector("main");
  element("h2", main, group.name);
  const row = element("section", main, undefined, "group");
  const reference = element("article", row, undefined, "card reference");
  const first = video(reference, group.video);
  element("p", reference, "reference: " + group.caption);
  for (const candidate of group.candidates) addCard(row, candidate);
  const restart = () => row.querySelectorAll("video").forEach((one) => { one.currentTime = first.currentTime; });
  first.addEventListener("seeked", restart);  // a loop ends in a seek, too
}

document.getElementById("show").addEventListener("change", paint);
document.getElementById("export").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(decisions, null, 2) + "\n"], { type: "application/json" }));
  link.download = "decisions.json";
  link.click();
  document.getElementById("said").textContent = Object.keys(decisions).length + " decisions exported";
});
document.getElementById("import").addEventListener("change", async (event) => {
  const said = document.getElementById("said");
  try {
    const read = JSON.parse(await event.target.files[0].text());
    const known = new Set(cards.map(({ candidate }) => candidate.name));
    for (const [name, choice] of Object.entries(read)) {
      if (!known.has(name) || !["keep", "reject"].includes(choice)) throw new Error(name);
    }
    decisions = read;
    said.textContent = Object.keys(read).length + " decisions imported";
  } catch (error) {
    said.textContent = "not this sheet's decisions: " + error.message;
  }
  paint();
});
data.groups.forEach(addGroup);
paint();
