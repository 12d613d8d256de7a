// Keys of the page, and the dialog that lists them.

import { el, iconButton, ICONS } from "/static/dom.js";
import { load, save } from "/static/storage.js";
import { openDialog } from "/static/tape/snippets.js";

const KEY = "tickertape.single-keys";

const KEYS = [
  ["Enter", "Send the question"],
  ["Shift + Enter", "Begin a new line"],
  ["Esc", "Stop the answer"],
  ["/", "Go to the question"],
  ["n", "New chat"],
  ["r", "Ask the last question again"],
  ["[ and ]", "Previous and next branch"],
  ["w", "Open or close On the wire"],
  ["s", "Open or close the settings"],
  ["← and →", "On the line or the strip: move along the tape"],
  ["?", "This list"],
];

/** `acts` maps "n", "r", "/", "[", "]", "w", "s" and "Escape" to what they do. */
export function listen(acts) {
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") {
      acts.Escape();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    if (event.key === "?") {
      event.preventDefault();
      showHelp();
    } else if (acts[event.key] && load("localStorage", KEY) !== false) {
      event.preventDefault();
      acts[event.key]();
    }
  });
}

function isTyping(target) {
  return target.isContentEditable || ["TEXTAREA", "SELECT"].includes(target.tagName)
    || (target.tagName === "INPUT" && !["checkbox", "range", "radio"].includes(target.type));
}

export function showHelp() {
  const single = el("input", { type: "checkbox", id: "single-keys", checked: load("localStorage", KEY) !== false });
  single.addEventListener("change", () => save("localStorage", KEY, single.checked));
  const rows = KEYS.map(([key, does]) => el("tr", {}, el("th", { scope: "row" }, el("kbd", {}, key)), el("td", {}, does)));
  const close = iconButton(ICONS.close, "Close", () => dialog.close());
  const dialog = el(
    "dialog", { class: "dialog", "aria-label": "Keyboard" },
    el("div", { class: "dialog-head" }, el("h2", {}, "Keyboard"), close),
    el("table", { class: "keys" }, el("tbody", {}, ...rows)),
    el("p", { class: "check" }, single, el("label", { for: "single-keys" }, " Single keys work while no text field has the focus")),
  );
  openDialog(dialog);
}
