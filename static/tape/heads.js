// Asks where the heads of a tape are, for as long as somebody looks.

import { heads } from "/static/tape/client.js";

const POLL_MS = 600;

export class HeadsWatch {
  /** `on(heads)` hears `{status, last_entry, readers, marks}`. */
  constructor(tape, on) {
    Object.assign(this, { tape, on });
    this.timer = null;
    this.isOpen = false;
  }

  start() {
    if (this.isOpen) return;
    this.isOpen = true;
    this.look();
  }

  stop() {
    this.isOpen = false;
    clearTimeout(this.timer);
  }

  async look() {
    if (!document.hidden) {
      const found = await heads(this.tape).catch((error) => ({ error }));
      if (!this.isOpen) return;
      if (found.error?.status === 404) {
        this.stop(); // the tape is gone, or the server is older
        return;
      }
      if (!found.error) this.on(found);
      if (found.status === "done" && found.readers.length === 0) {
        this.stop();
        return;
      }
    }
    this.timer = setTimeout(() => this.look(), POLL_MS);
  }
}
