// The scrubber: the whole tape as a line, with the engine's write head, every reader's head, and marks.

import { el } from "/static/dom.js";

const MARKS = {
  leave: (mark) => [mark.own ? `✂ cut at ${mark.entry}` : `a reader left at ${mark.entry}`, `✂ ${mark.entry}`],
  pause: (mark) => [`⏸ paused at ${mark.entry}`, `⏸ ${mark.entry}`],
  resume: (mark) => [`resumed${mark.replayed ? `, ${mark.replayed} replayed` : ""}`, `↻ ${mark.entry}`],
  engine: (mark) => [`☠ engine restarted at ${mark.entry}`, `☠ ${mark.entry}`],
  fork: (mark) => [`↳ branched at ${mark.entry}`, `↳ ${mark.entry}`],
};
const CHARACTER_PX = 7.3; // of the labels' monospace
const APART_PX = 10;
const NARROW_PX = 480; // of the line: labels are short below
const LEVELS = 4;

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
    this.width = 0;
    new ResizeObserver(([{ contentRect }]) => {
      this.width = contentRect.width;
      this.place();
    }).observe(this.line);
  }

  /**
   * `place` is where this reader stands, `written` the last entry of the engine, `expected` how long
   * the tape may become, `readers` `[{name, entry}]`, `marks` `[{kind, entry}]`.
   */
  show({ place, written, expected, isWriting, readers, marks }) {
    this.isWriting = isWriting;
    const end = Math.max(written, isWriting ? Math.min(expected, Math.ceil(written * 1.25) + 20) : written, 1);
    const share = (entry) => (100 * Math.min(entry, end)) / end;
    this.input.max = String(end);
    this.input.value = String(Math.min(place, written));
    this.input.setAttribute("aria-valuetext", `Entry ${Math.min(place, written)} of ${written}`);
    this.line.style.setProperty("--written", `${share(written)}%`);
    this.line.style.setProperty("--place", `${share(place)}%`);

    const heads = readers.map((reader) => ({ ...reader, at: share(reader.entry), kind: reader.own ? "you" : "reader", texts: [reader.name, reader.name] }));
    const says = isWriting ? `engine writes ${written} ▸` : `end ${written}`;
    const writer = { at: share(written), kind: "writer", texts: [says, says] };
    const events = thinned(marks).map((mark) => ({ at: share(mark.entry), kind: mark.kind, texts: MARKS[mark.kind]?.(mark) ?? [mark.kind, mark.kind], entry: mark.entry }));
    const up = [writer, ...events.filter(({ kind }) => ["leave", "engine", "pause", "fork"].includes(kind))];
    const down = [...heads, ...events.filter(({ kind }) => kind === "resume")];
    const picture = JSON.stringify([isWriting, up, down]);
    if (picture === this.shown) return;
    this.shown = picture;
    this.labels = { up, down };
    this.place();
    this.story.replaceChildren(...[...up, ...down].map(({ texts: [text] }) => el("li", {}, text)));
  }

  place() {
    if (!this.labels) return;
    this.draw(this.above, this.labels.up);
    this.draw(this.below, this.labels.down);
  }

  /** Labels that would overlap go to different levels. While it types, a second one has its place. */
  draw(holder, labels) {
    const width = this.width || 700;
    const ends = []; // of each level: where its last label ends, in px
    const placed = labels.map((label) => extent(label, width)).sort((one, other) => one.begin - other.begin);
    const nodes = placed.map(({ at, kind, text, side, begin, end }) => {
      let level = ends.findIndex((last) => begin - last >= APART_PX);
      if (level < 0) level = ends.length < LEVELS ? ends.length : ends.indexOf(Math.min(...ends));
      ends[level] = end;
      const node = el("span", { class: `scrub-label ${kind}`, data: { side, level } }, el("span", {}, text));
      node.style.left = `${at}%`;
      return node;
    });
    holder.dataset.levels = String(Math.max(this.isWriting ? 2 : 1, ends.length));
    holder.replaceChildren(...nodes);
  }
}

/** Where the label lies: beside its place where it would not fit in the middle above it. */
function extent({ at, kind, texts: [long, short] }, width) {
  const text = width < NARROW_PX ? short : long;
  const size = text.length * CHARACTER_PX;
  const x = (at / 100) * width;
  if (x - size / 2 < 0) return { at, kind, text, side: "right", begin: x, end: x + size };
  if (x + size / 2 > width) return { at, kind, text, side: "left", begin: x - size, end: x };
  return { at, kind, text, side: "centre", begin: x - size / 2, end: x + size / 2 };
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
