// A finished result: measures in words, downloads, again with another seed, the line that makes it.
import {$, ask, copy, h, icon, toast} from "./dom.js";

export async function showResult(duo, place, id, {title, again}) {
  const result = await ask(`results/${id}`);
  const side = (what) => `page/results/${id}/${what}`;
  duo.load([result.has_reference ? side("reference") : null, side("video")],
    {fps: result.fps, frames: result.num_frames, captions: ["Reference", "Result"]});
  if (!result.has_reference) duo.cover(0, h("p.empty-text", {}, "The reference is no longer here."));
  const measures = h("dl.measures", {}, h("p.faint", {}, "Measuring the motion…"));
  const link = (what, text) => h("a.quiet", {href: `${side(what)}?download=true`, download: ""}, icon("down"), text);
  place.replaceChildren(...[
    h("div.made", {},
      h("p.said", {}, result.prompt || result.reference),
      h("p.faint", {}, `${title(result.method)} · motion of ${result.reference} · seed ${result.seed} · ` +
        `${result.num_frames} frames, ${result.width}×${result.height}` +
        (result.seconds ? ` · made in ${result.seconds.toFixed(1)} s` : ""))),
    result.warnings.length ? h("ul.warnings", {}, result.warnings.map((line) => h("li", {}, line))) : null,
    measures,
    h("div.actions", {},
      h("button.quiet#again", {type: "button", disabled: !result.can_repeat, onclick: () => again(id),
        title: result.can_repeat ? "" : "The reference is no longer here; drop it again"}, icon("again"), "Another seed"),
      link("video", "MP4"), link("gif", "GIF"), link("sidecar", "Sidecar"),
      h("button.quiet#result-command", {type: "button", onclick: () => copy(result.command, "Command")}, icon("copy"), "Command"),
      h("button.quiet", {type: "button", onclick: () => copy(result.yaml, "YAML")}, icon("copy"), "YAML"))].filter(Boolean));
  try {
    const told = await ask(`results/${id}/measures`);
    if (!measures.isConnected) return;
    duo.setTracks(told.reference_tracks, told.tracks);
    measures.replaceChildren(...told.measures.map((measure) => h("div.measure", {"data-key": measure.key, title: measure.about},
      h("dt", {}, measure.name), h("dd", {}, h("strong", {}, measure.value), h("span", {}, measure.word)))));
    if (!told.measures.length) measures.replaceChildren(h("p.faint", {}, "Nothing to measure: too little moves, or there is no reference."));
  } catch (error) { toast(error.message); }
}
