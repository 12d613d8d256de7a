// The drawer "On the wire": raw frames as they come, and the counters that prove that nothing is lost.

import { byId, el, seldom } from "/static/dom.js";
import { isEvent } from "/static/wire/log.js";

const SHOWN = 80; // lines
const DRAW_MS = 60; // as the strip and the line of the tape

export class WireDrawer {
  constructor() {
    this.lines = byId("wire-lines");
    this.answer = null;
    this.drawn = 0; // the number of the last line that is drawn
    this.show = seldom(DRAW_MS, () => this.draw());
    this.onChange = () => this.show();
    byId("wire-wrap").addEventListener("change", ({ target }) => this.lines.classList.toggle("whole", target.checked));
    this.eventsOnly = byId("wire-events");
    this.eventsOnly.addEventListener("change", () => this.again());
  }

  /** Shows what is on the wire of this answer; null for none. */
  watch(answer) {
    if (answer === this.answer) return;
    if (this.answer) {
      this.answer.wire.changed = () => {};
      this.answer.removeEventListener("change", this.onChange);
      this.answer.removeEventListener("text", this.onChange);
    }
    this.answer = answer;
    if (answer) {
      answer.wire.changed = this.onChange;
      answer.addEventListener("change", this.onChange);
      answer.addEventListener("text", this.onChange);
    }
    this.again();
  }

  /** Draws all lines anew. */
  again() {
    this.lines.replaceChildren();
    this.drawn = 0;
    this.show();
  }

  draw() {
    if (document.documentElement.dataset.panel !== "wire") return;
    const { answer } = this;
    const all = answer?.wire.lines ?? [];
    const lines = this.eventsOnly.checked ? all.filter(isEvent) : all;
    byId("wire-empty").hidden = lines.length > 0;
    this.lines.hidden = lines.length === 0;
    const fresh = lines.slice(-SHOWN).filter(({ number }) => number > this.drawn);
    if (fresh.length) this.append(fresh);
    this.drawCounters();
  }

  append(fresh) {
    // The list is laid out from its end (page.css), which keeps the newest line in sight.
    this.lines.prepend(...fresh.map(lineOf).reverse());
    while (this.lines.childElementCount > SHOWN) this.lines.lastElementChild.remove();
    this.drawn = fresh.at(-1).number;
  }

  drawCounters() {
    const counters = this.answer?.isLive || !this.answer?.message.counters ? this.answer?.counters() : this.answer.message.counters;
    for (const name of ["entries", "gaps", "doubles", "connections", "engines"]) {
      const holder = byId(`count-${name}`);
      const value = String(counters?.[name] ?? 0);
      if (holder.textContent !== value) holder.textContent = value;
    }
    const isWrong = Boolean(counters && (counters.gaps || counters.doubles));
    byId("counters").classList.toggle("wrong", isWrong);
    byId("wire-verdict").textContent = verdict(counters, isWrong);
  }
}

function verdict(counters, isWrong) {
  if (isWrong) return "Entries are missing, or came twice";
  return counters?.entries ? "Nothing lost, nothing twice" : "Delivery";
}

/** The tape's id is the same in every frame: its middle is shown with whole frames only. */
function lineOf({ kind, text }) {
  const id = kind === "frame" && /^(id: [\w-]{4})([\w-]{8,})([\w-]{3}:\d+)/.exec(text);
  if (!id) return el("div", { class: `wire-line ${kind}` }, text);
  const [whole, begin, middle, end] = id;
  return el("div", { class: "wire-line frame" }, begin, el("span", { class: "id-middle" }, middle), end, text.slice(whole.length));
}
