// The drawer "On the wire": raw frames as they come, and the counters that prove that nothing is lost.

import { byId, el, seldom } from "/static/dom.js";

const SHOWN = 80; // lines
const DRAW_MS = 80; // faster than that nobody reads

export class WireDrawer {
  constructor() {
    this.lines = byId("wire-lines");
    this.answer = null;
    this.drawn = 0; // the number of the last line that is drawn
    this.show = seldom(DRAW_MS, () => this.draw());
    this.onChange = () => this.show();
    byId("wire-wrap").addEventListener("change", ({ target }) => this.lines.classList.toggle("whole", target.checked));
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
    this.lines.replaceChildren();
    this.drawn = 0;
    if (answer) {
      answer.wire.changed = this.onChange;
      answer.addEventListener("change", this.onChange);
      answer.addEventListener("text", this.onChange);
    }
    this.show();
  }

  draw() {
    if (document.documentElement.dataset.panel !== "wire") return;
    const { answer } = this;
    const lines = answer?.wire.lines ?? [];
    byId("wire-empty").hidden = lines.length > 0;
    this.lines.hidden = lines.length === 0;
    const fresh = lines.slice(-SHOWN).filter(({ number }) => number > this.drawn);
    if (fresh.length) this.append(fresh);
    this.drawCounters();
  }

  append(fresh) {
    // The list is laid out from its end (page.css), which keeps the newest line in sight.
    this.lines.prepend(...fresh.map(({ kind, text }) => el("div", { class: `wire-line ${kind}` }, text)).reverse());
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
    byId("counters").classList.toggle("wrong", Boolean(counters && (counters.gaps || counters.doubles)));
  }
}
