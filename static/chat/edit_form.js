// The form that takes the place of a message while its words are edited.

import { button, el } from "/static/dom.js";

/** Replaces `shown` by a form. `send(text)` hears what was typed; `closed()` that nothing was. */
export function editInPlace(shown, { text, label, action, rows = 3 }, { send, closed }) {
  const area = el("textarea", { class: "edit-area", value: text, rows, "aria-label": label });
  const finish = () => {
    const typed = area.value.trim();
    if (typed) send(typed);
  };
  const back = () => {
    form.replaceWith(shown);
    closed();
  };
  const form = el(
    "form", { class: "edit-form", onsubmit: (event) => { event.preventDefault(); finish(); } }, area,
    el("div", { class: "row" }, el("button", { class: "primary small", type: "submit" }, action), button("Cancel", back, { class: "quiet" })),
  );
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      back();
    }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      finish();
    }
  });
  shown.replaceWith(form);
  area.focus();
  area.setSelectionRange(area.value.length, area.value.length);
}
