// Deletes a message with all that follows it, once the user has said so twice.

import { button, el, iconButton, ICONS } from "/static/dom.js";

/** `count()` is how many messages would go, this one included; `remove()` lets them go. */
export function deleteButton({ count, remove }) {
  const ask = () => {
    const many = count();
    const what = many === 1 ? "Delete this message?" : `Delete this message and ${many - 1} below it?`;
    const keep = button("Keep", () => {
      asked.replaceWith(first);
      first.focus();
    }, { class: "quiet small" });
    const asked = el("span", { class: "row", role: "group", "aria-label": what }, what, button("Delete", remove, { class: "quiet small danger" }), keep);
    first.replaceWith(asked);
    keep.focus();
  };
  const first = iconButton(ICONS.trash, "Delete", ask);
  return first;
}
