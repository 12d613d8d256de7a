// What went over the wire, as lines for the drawer. Keeps the newest; knows nothing of the page.

const KEPT = 400; // frames
const KEPT_EVENTS = 200; // requests, cuts, resumes and all else

export class WireLog {
  constructor() {
    this.lines = [];
    this.total = 0;
    this.changed = () => {};
  }

  add(kind, text) {
    this.total += 1;
    this.lines.push({ number: this.total, kind, text });
    if (this.lines.length > 2 * KEPT) this.trim();
    this.changed();
  }

  trim() {
    const firstEvent = this.lines.filter(isEvent).at(-KEPT_EVENTS)?.number ?? 0;
    const firstFrame = this.lines.at(-KEPT).number;
    this.lines = this.lines.filter((line) => line.number >= (isEvent(line) ? firstEvent : firstFrame));
  }

  clear() {
    this.lines = [];
    this.changed();
  }

  request(line, headers) {
    const shown = Object.entries(headers).map(([name, value]) => `${name}: ${value}`);
    this.add("request", [line, ...shown].join("\n"));
  }

  response(status, reader) {
    this.add("response", reader ? `${status} · X-Reader: ${reader}` : String(status));
  }

  frame(block, { name }) {
    const isComment = !name && block.startsWith(":");
    this.add(isComment ? "comment" : name === "status" ? "status" : "frame", block);
  }

  cut(text) {
    this.add("cut", `— ${text} —`);
  }

  note(kind, text) {
    this.add("note", text);
  }
}

export function isEvent({ kind }) {
  return kind !== "frame" && kind !== "comment";
}
