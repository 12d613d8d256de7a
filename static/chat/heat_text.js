// The answer token by token, coloured by how likely each one was.

import { el } from "/static/dom.js";
import { heatOf } from "/static/tape/strip.js";
import { percent } from "/static/tape/token_card.js";

export class HeatText {
  constructor(root, log, chosen) {
    Object.assign(this, { root, log });
    this.shown = 0;
    root.onclick = ({ target }) => {
      const entry = target.dataset?.n && log.entry(Number(target.dataset.n));
      if (entry) chosen(entry, target);
    };
  }

  show(_text, _isComplete, view) {
    if (!this.root.classList.contains("heat")) return;
    const { entries } = this.log;
    const count = view === null ? entries.length : this.log.placeOf(view + 1);
    while (this.shown > count) {
      this.root.lastChild.remove();
      this.shown -= 1;
    }
    this.root.append(...entries.slice(this.shown, count).map(token));
    this.shown = Math.max(this.shown, count);
  }
}

function token(entry) {
  const title = entry.logprob === null || entry.logprob === undefined ? `entry ${entry.n}` : `entry ${entry.n} · ${percent(entry.logprob)}`;
  return el("span", { class: "token", title, data: { n: entry.n, heat: heatOf(entry) } }, entry.text);
}
