// What went over the wire, as lines for the drawer. Keeps the newest; knows nothing of the page.

const KEPT = 400;

export class WireLog {
  constructor() {
    this.lines = [];
    this.total = 0;
    this.changed = () => {};
  }

  add(kind, text) {
    this.total += 1;
    this.lines.push({ number: this.total, kind, text });
    if (this.lines.length > 2 * KEPT) this.lines.splice(0, this.lines.length - KEPT);
    this.changed();
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
