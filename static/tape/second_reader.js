// A second reader of the same tape: a pane with a connection of its own, a link and a QR code.

import { copyFrom, el, iconButton, ICONS, oncePerFrame } from "/static/dom.js";
import { TapeLog } from "/static/tape/log.js";
import { TapeReader } from "/static/tape/reader.js";
import { encode } from "/static/vendor/uqr/uqr.js";
import { WireLog } from "/static/wire/log.js";

const LOCAL = ["localhost", "127.0.0.1", "[::1]"];

export class SecondReader {
  constructor(tape, closed) {
    this.log = new TapeLog();
    const text = document.createTextNode("");
    const state = el("p", { class: "note", role: "status" }, "Connecting …");
    const show = oncePerFrame(() => {
      if (this.log.text.length > text.length) text.appendData(this.log.text.slice(text.length));
      output.scrollTop = output.scrollHeight;
      const ended = this.log.end ? " · ended" : "";
      state.textContent = `Reader ${this.reader.number ?? "?"} has entries 1 to ${this.log.last} · gaps ${this.log.missing} · duplicates ${this.log.doubles}${ended}`;
    });
    const output = el("div", { class: "second-text", tabIndex: 0, role: "region", "aria-label": "What the second reader has received" }, text);
    this.reader = new TapeReader(tape, this.log, new WireLog(), {
      entries: show,
      end: show,
      status: () => {},
      state: () => {},
      refused: (error) => { state.textContent = `The second reader cannot read: ${error.message}`; },
    });
    const close = iconButton(ICONS.close, "Close the second reader", () => {
      this.close();
      closed();
    });
    this.node = el(
      "section", { class: "second", "aria-label": "Second reader" },
      el("div", { class: "second-head" }, el("h3", {}, "Second reader"), close),
      el("div", { class: "second-body" }, el("div", { class: "second-read" }, output, state), share(tape)),
    );
    this.reader.open();
  }

  close() {
    this.reader.close();
    this.node.remove();
  }
}

export function linkTo(tape) {
  return `${location.origin}/?tape=${encodeURIComponent(tape)}`;
}

function share(tape) {
  const address = linkTo(tape);
  const copy = iconButton(ICONS.copy, "Copy the link", () => copyFrom(copy, address));
  const isLocal = LOCAL.includes(location.hostname);
  const hint = isLocal
    ? "The code leads a phone to this machine only when the server was started with --host 0.0.0.0 and this page was opened by its network address."
    : "Scan the code, or open the link in another browser. It reads from entry 1.";
  return el(
    "div", { class: "share" },
    qrCode(address),
    el("div", { class: "share-text" }, el("p", { class: "row" }, el("a", { href: address, target: "_blank", rel: "noopener" }, "Open in another tab"), copy), el("p", { class: "note" }, hint)),
  );
}

function qrCode(text) {
  const { data, size } = encode(text, { border: 2 });
  const scale = 4;
  const canvas = el("canvas", { width: size * scale, height: size * scale, class: "qr", role: "img", "aria-label": "QR code of the link" });
  const paint = canvas.getContext("2d");
  paint.fillStyle = "#fff";
  paint.fillRect(0, 0, canvas.width, canvas.height);
  paint.fillStyle = "#000";
  data.forEach((row, y) => row.forEach((isDark, x) => {
    if (isDark) paint.fillRect(x * scale, y * scale, scale, scale);
  }));
  return canvas;
}
