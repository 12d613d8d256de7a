// Puts the answer on the page once per animation frame, however many tokens came in between.

const NEAR_END_PX = 48;

export class Printer {
  constructor({ output, given, continuation, ticker }) {
    this.output = output;
    this.given = given;
    this.continuation = continuation;
    this.ticker = ticker;
    this.pending = [];
    this.frame = null;
  }

  begin(prompt) {
    this.flush();
    this.given.textContent = prompt;
    this.text = document.createTextNode("");
    this.continuation.replaceChildren(this.text);
    this.ticker.clear();
    this.output.scrollTop = this.output.scrollHeight;
  }

  push(entry, text) {
    this.pending.push({ entry, text });
    this.frame ??= requestAnimationFrame(() => this.flush());
  }

  end(entry, reason) {
    this.flush();
    this.ticker.print([{ entry, text: reason, terminal: true }]);
  }

  flush() {
    if (this.frame === null) return;
    cancelAnimationFrame(this.frame);
    this.frame = null;

    this.keepEnd(() => this.text.appendData(this.pending.map(({ text }) => text).join("")));
    this.ticker.print(this.pending);
    this.pending = [];
  }

  /** Keeps the end in sight through a change; a reader who scrolled back is left where they are. */
  keepEnd(change) {
    const { scrollHeight, scrollTop, clientHeight } = this.output;
    const atEnd = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    change();
    if (atEnd) this.output.scrollTop = this.output.scrollHeight;
  }
}
