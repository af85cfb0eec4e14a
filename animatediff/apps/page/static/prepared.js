// What a preparation found, to look at before it is used; a click on a person chooses whom it is about.
import {ask, h, toast} from "./dom.js";

export class Prepared {
  constructor(root, prepare) {
    this.root = root;
    this.prepare = prepare; // with the subjects chosen, anew
    this.id = null;
    this.basis = null;
    this.subjects = {};
  }

  // A preparation of `basis` is under way.
  begin(basis, subjects) {
    this.id = null;
    this.basis = JSON.stringify(basis);
    this.subjects = subjects;
    sessionStorage.setItem("prepared", JSON.stringify([this.basis, subjects]));
  }

  // Whether what was found is of these clips.
  isOf(basis) { return this.id !== null && this.basis === JSON.stringify(basis); }

  // final: as it is, whoever is meant in it.
  async show(id, final = false) {
    const clip = await ask(`clips/${id}`);
    this.id = id;
    try { [this.basis, this.subjects] = JSON.parse(sessionStorage.getItem("prepared")); } catch { /* another visit's */ }
    this.root.replaceChildren(
      h("p", {}, h("strong", {}, "Is this right? "), !final && clip.views.some((view) => view.subject)
        ? "If another person is meant, click on them. Otherwise make the video." : "Then make the video."),
      h("ul", {}, clip.views.map((view, number) => this.view(id, final ? {...view, subject: ""} : view, number))));
  }

  view(id, view, number) {
    const video = h("video", {src: `page/clips/${id}/views/${number}`, autoplay: true, loop: true, playsInline: true, tabIndex: -1,
      "aria-hidden": "true"});
    video.muted = true;
    const at = this.subjects[view.subject];
    const spot = h("span.spot", {hidden: !view.subject || !at});
    const put = ([x, y]) => { spot.style.left = `${100 * x}%`; spot.style.top = `${100 * y}%`; spot.hidden = false; };
    if (at) put(at);
    const choose = async (event) => {
      const box = video.getBoundingClientRect();
      const point = event.detail === 0 ? [0.5, 0.5] // by the keyboard
        : [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((side) => Math.min(1, Math.max(0, side)));
      put(point);
      try { await this.prepare({...this.subjects, [view.subject]: point}); } catch (error) { toast(error.message); }
    };
    const frame = view.subject
      ? h("button.frame", {type: "button", onclick: choose, "aria-label": `${view.title}: click on the person who is meant`}, video, spot)
      : h("div.frame", {}, video);
    return h("li", {}, h("h3", {}, view.title), frame);
  }
}
