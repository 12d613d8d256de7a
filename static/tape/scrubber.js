// The scrubber: the whole tape as a line, with the engine's write head, every reader's head, and marks.

import { el } from "/static/dom.js";

const MARKS = {
  leave: (mark) => (mark.own ? "✂ cut" : "a reader left"),
  pause: () => "⏸ pause",
  resume: (mark) => `resumed${mark.replayed ? `, ${mark.replayed} replayed` : ""}`,
  engine: () => "☠ engine restarted",
  fork: () => "↳ branched here",
};
const NEAR = 14; // per cent of the line: labels that are nearer share a level no more

export class Scrubber {
  /** `moved(place, isFinal)` hears where the reader is dragged. */
  constructor(moved) {
    this.input = el("input", { type: "range", min: "0", max: "1", value: "0", step: "1", class: "scrub-input" });
    this.input.setAttribute("aria-label", "Place on the tape");
    this.input.addEventListener("input", () => moved(Number(this.input.value)));
    this.above = el("div", { class: "scrub-labels above", "aria-hidden": "true" });
    this.below = el("div", { class: "scrub-labels below", "aria-hidden": "true" });
    const bars = ["rail", "filled", "read"].map((name) => el("div", { class: `scrub-${name}` }));
    this.line = el("div", { class: "scrub-line" }, el("div", { class: "scrub-bars" }, ...bars), this.input);
    this.story = el("ul", { class: "visually-hidden" });
    this.node = el("div", { class: "scrubber" }, this.above, this.line, this.below, this.story);
    this.shown = "";
  }

  /**
   * `place` is where this reader stands, `written` the last entry of the engine, `expected` how long
   * the tape may become, `readers` `[{name, entry}]`, `marks` `[{kind, entry}]`.
   */
  show({ place, written, expected, isWriting, readers, marks }) {
    const end = Math.max(written, isWriting ? Math.min(expected, Math.ceil(written * 1.25) + 20) : written, 1);
    const share = (entry) => (100 * Math.min(entry, end)) / end;
    this.input.max = String(end);
    this.input.value = String(Math.min(place, written));
    this.input.setAttribute("aria-valuetext", `Entry ${Math.min(place, written)} of ${written}`);
    this.line.style.setProperty("--written", `${share(written)}%`);
    this.line.style.setProperty("--place", `${share(place)}%`);

    const heads = readers.map((reader) => ({ ...reader, at: share(reader.entry), kind: reader.own ? "you" : "reader", text: reader.name }));
    const writer = { at: share(written), kind: "writer", text: isWriting ? `engine writes ${written} ▸` : `end ${written}` };
    const events = thinned(marks).map((mark) => ({ at: share(mark.entry), kind: mark.kind, text: MARKS[mark.kind]?.(mark) ?? mark.kind, entry: mark.entry }));
    const up = [writer, ...events.filter(({ kind }) => ["leave", "engine", "pause", "fork"].includes(kind))];
    const down = [...heads, ...events.filter(({ kind }) => kind === "resume")];
    const picture = JSON.stringify([up, down]);
    if (picture === this.shown) return;
    this.shown = picture;
    this.draw(this.above, up);
    this.draw(this.below, down);
    this.story.replaceChildren(...[...up, ...down].map(({ text, entry }) => el("li", {}, entry === undefined ? text : `${text}, at entry ${entry}`)));
  }

  /** Labels that would overlap go to different levels. */
  draw(holder, labels) {
    const levels = [];
    const nodes = [...labels].sort((one, other) => one.at - other.at).map(({ at, kind, text }) => {
      let level = levels.findIndex((last) => at - last >= NEAR);
      if (level < 0) level = levels.push(0) - 1;
      levels[level] = at;
      const side = at > 82 ? "left" : at < 12 ? "right" : "centre";
      const node = el("span", { class: `scrub-label ${kind}`, data: { side, level: Math.min(level, 3) } }, el("span", {}, text));
      node.style.left = `${at}%`;
      return node;
    });
    holder.dataset.levels = String(Math.min(levels.length, 4));
    holder.replaceChildren(...nodes);
  }
}

/** Marks of one kind at one entry are one; of many, the newest. */
function thinned(marks) {
  const newest = new Map();
  for (const mark of marks) {
    const key = `${mark.kind}:${mark.entry}`;
    newest.set(key, { ...newest.get(key), ...mark });
  }
  return [...newest.values()].slice(-12);
}
