// Where the question is typed. Enter sends, Shift+Enter begins a line.

import { byId } from "/static/dom.js";
import { load, save } from "/static/storage.js";

const DRAFT = "tickertape.draft";

export class Composer {
  /** `on`: `send(text)`, which resolves to whether it was taken, and `stop()`. */
  constructor(on) {
    this.on = on;
    this.field = byId("prompt");
    this.field.value = load("sessionStorage", DRAFT) ?? "";
    this.field.addEventListener("input", () => save("sessionStorage", DRAFT, this.field.value));
    this.field.addEventListener("keydown", (event) => this.onKey(event));
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("stop").addEventListener("click", () => on.stop());
    this.isReady = false;
    this.isLive = false;
  }

  onKey(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.send();
  }

  async send() {
    const text = this.field.value.trim();
    if (!text || !this.isReady || this.isLive) return;
    this.clear();
    if (!await this.on.send(text)) this.put(text);
  }

  put(text) {
    this.field.value = text;
    save("sessionStorage", DRAFT, text);
    this.field.focus();
  }

  clear() {
    this.field.value = "";
    save("sessionStorage", DRAFT, "");
  }

  /** The hidden one of the two buttons must not take the keyboard focus with it. */
  show({ isReady, isLive }) {
    Object.assign(this, { isReady, isLive });
    const [shown, gone] = isLive ? [byId("stop"), byId("generate")] : [byId("generate"), byId("stop")];
    const hadFocus = document.activeElement === gone;
    byId("generate").disabled = !isReady;
    shown.hidden = false;
    gone.hidden = true;
    if (hadFocus) (isLive ? shown : this.field).focus();
  }
}
