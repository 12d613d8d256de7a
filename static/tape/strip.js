// The strip: the entries around the place where the reader stands, numbered as they are on the wire.

import { el } from "/static/dom.js";

const REACH = 30; // cells on each side of the place; more when somebody scrolls there
const EDGE_PX = 120;
const BLANKS = { " ": "·", "\n": "↵", "\t": "⇥" };

export class Strip {
  /** `chosen(entry, cell)` hears of a cell that is pressed. */
  constructor(log, chosen) {
    this.log = log;
    this.cells = new Map();
    this.reach = { behind: REACH, ahead: REACH };
    this.opened = null; // the entry whose card is open
    this.track = el("div", { class: "strip-track" });
    this.node = el("div", { class: "strip", role: "group", "aria-label": "Entries of the tape. Press one to see its probability and alternatives." }, this.track);
    this.track.addEventListener("click", ({ target }) => {
      const cell = target.closest(".cell");
      const entry = cell && log.entry(Number(cell.dataset.n));
      if (entry) chosen(entry, cell);
    });
    this.track.addEventListener("keydown", (event) => this.onKey(event));
    this.track.addEventListener("scroll", () => this.onScroll(), { passive: true });
  }

  /** Near an edge, more cells come; what is in sight stays where it is. */
  onScroll() {
    const { scrollLeft, scrollWidth, clientWidth } = this.track;
    if (!this.shown || this.track.classList.contains("following")) return;
    const [before] = this.track.children;
    const isAtBegin = scrollLeft < EDGE_PX && before && before.dataset.n !== String(this.log.entries[0]?.n);
    const isAtEnd = scrollWidth - clientWidth - scrollLeft < EDGE_PX && !this.end;
    if (!isAtBegin && !isAtEnd) return;
    if (isAtBegin) this.reach.behind += REACH;
    if (isAtEnd) this.reach.ahead += REACH;
    this.fill(this.shown);
    if (isAtBegin) this.track.scrollLeft = scrollLeft + before.offsetLeft;
  }

  /** Marks the cell whose card is open; null for none. */
  open(n) {
    this.opened = n;
    for (const cell of this.track.querySelectorAll("[data-n]")) this.press(cell);
  }

  press(cell) {
    cell.setAttribute("aria-expanded", String(cell.dataset.n === String(this.opened)));
  }

  /** Shows the entries around `place`; at the end of a tape that is being written, the newest. */
  show(place, { isFollowing, isLive }) {
    const isSame = this.shown?.place === place && this.shown.isFollowing === isFollowing && this.shown.isLive === isLive;
    if (!isSame) this.reach = { behind: REACH, ahead: REACH };
    this.shown = { place, isFollowing, isLive };
    this.fill(this.shown);
    if (!isSame || !this.isPlaced) this.scrollTo(this.shown);
  }

  fill({ place, isFollowing, isLive }) {
    const { entries } = this.log;
    const at = this.log.placeOf(place);
    const from = Math.max(0, at - this.reach.behind);
    const to = Math.min(entries.length, isFollowing ? entries.length : at + this.reach.ahead);
    const wanted = new Set();
    let before = null;
    for (const entry of entries.slice(from, to)) {
      wanted.add(entry.n);
      let cell = this.cells.get(entry.n);
      if (!cell) {
        cell = cellOf(entry);
        this.press(cell);
        this.cells.set(entry.n, cell);
      }
      if (before ? before.nextSibling !== cell : this.track.firstChild !== cell) {
        if (before) before.after(cell);
        else this.track.prepend(cell);
      }
      before = cell;
    }
    for (const [n, cell] of this.cells) {
      if (wanted.has(n)) continue;
      cell.remove();
      this.cells.delete(n);
    }
    this.showEnd(to === entries.length);
    this.markPlace(place, isFollowing, isLive);
  }

  showEnd(isVisible) {
    this.end?.remove();
    this.end = null;
    this.track.classList.toggle("with-end", Boolean(isVisible && this.log.end));
    if (!isVisible || !this.log.end) return;
    this.end = el("span", { class: "cell terminal" }, el("span", { class: "number" }, String(this.log.last)), this.log.end.finish_reason ?? "end");
    this.track.append(this.end);
  }

  markPlace(place, isFollowing, isLive) {
    this.here?.classList.remove("here");
    if (this.here) this.here.tabIndex = -1;
    this.here = this.cells.get(place) ?? this.track.querySelector(".cell:not(.terminal)");
    if (!this.here) return;
    this.here.tabIndex = 0;
    this.here.classList.toggle("here", !isFollowing);
    // While it types, the end is in sight without any scrolling.
    this.track.classList.toggle("following", isFollowing && isLive);
  }

  scrollTo({ isFollowing, isLive }) {
    this.isPlaced = this.track.isConnected;
    if (isFollowing && !isLive) this.track.scrollLeft = this.track.scrollWidth;
    if (!isFollowing && this.here) this.track.scrollLeft = this.here.offsetLeft - this.track.clientWidth / 2;
  }

  onKey(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const cell = event.target.closest(".cell");
    if (!step || !cell) return;
    event.preventDefault();
    const next = step < 0 ? cell.previousElementSibling : cell.nextElementSibling;
    if (!next?.dataset.n) return;
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

function cellOf(entry) {
  const piece = el("span", { class: "piece" }, visible(entry.token ?? entry.text));
  return el("button", { type: "button", class: "cell", tabIndex: -1, data: { n: entry.n, heat: heatOf(entry) } }, el("span", { class: "number" }, String(entry.n)), piece);
}

/** A token may be all blanks, or none yet: half a character waits for its other half. */
export function visible(text) {
  return text.replace(/[ \n\t]/g, (blank) => BLANKS[blank]) || "…";
}

/** How unlikely the token was: 0 for more than 80 %, up to 4; empty where nothing is known. */
export function heatOf({ logprob }) {
  if (logprob === null || logprob === undefined) return "";
  const probability = Math.exp(logprob);
  return String([0.8, 0.5, 0.2, 0.05].filter((bound) => probability < bound).length);
}
