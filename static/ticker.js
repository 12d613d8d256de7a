// The strip above the answer: the newest entries of the tape, numbered as they are on the wire.

const KEPT = 40;
const BLANKS = { " ": "·", "\n": "↵", "\t": "⇥" };

export class Ticker {
  constructor(strip) {
    this.strip = strip;
  }

  clear() {
    this.strip.replaceChildren();
  }

  /** `entries` are `{entry, text}`; the last one `terminal` at the end of a tape. */
  print(entries) {
    this.strip.append(...entries.slice(-KEPT).map(cell));
    while (this.strip.childElementCount > KEPT) this.strip.firstElementChild.remove();
  }
}

function cell({ entry, text, terminal = false }) {
  const piece = span("piece", visible(text));
  const box = span("cell", "");
  box.append(span("number", String(entry)), piece);
  box.classList.toggle("terminal", terminal);
  return box;
}

function span(name, text) {
  const element = document.createElement("span");
  element.className = name;
  element.textContent = text;
  return element;
}

/** A token may be all blanks, or none yet: half a character waits for its other half. */
function visible(text) {
  return text.replace(/[ \n\t]/g, (blank) => BLANKS[blank]) || "…";
}
