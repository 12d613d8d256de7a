// One question on the page; it can be edited, which makes a branch.

import { branchTools } from "/static/chat/answer_card.js";
import { button, copyFrom, el, iconButton, ICONS } from "/static/dom.js";

export class QuestionCard {
  /** `on`: `edit(text)` and `step(±1)`. */
  constructor(message, on, branch) {
    Object.assign(this, { message, on });
    const copy = iconButton(ICONS.copy, "Copy the question", () => copyFrom(copy, message.content));
    this.editButton = iconButton(ICONS.edit, "Edit (makes a branch)", () => this.edit());
    this.text = el("div", { class: "bubble", dir: "auto" }, message.content);
    this.tools = el("div", { class: "meta" }, copy, this.editButton, branch ? branchTools(branch, on.step) : null);
    this.node = el("article", { class: "question", "aria-label": "Question" }, this.text, this.tools);
  }

  remove() {
    this.node.remove();
  }

  edit() {
    const area = el("textarea", { class: "edit-area", value: this.message.content, rows: 3, "aria-label": "Edit the question" });
    const send = () => {
      const text = area.value.trim();
      if (text) this.on.edit(text);
    };
    const back = () => {
      form.replaceWith(this.text);
      this.editButton.focus();
    };
    const form = el(
      "form", { class: "edit-form", onsubmit: (event) => { event.preventDefault(); send(); } }, area,
      el("div", { class: "row" }, el("button", { class: "primary small", type: "submit" }, "Ask"), button("Cancel", back, { class: "quiet" })),
    );
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        back();
      }
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      }
    });
    this.text.replaceWith(form);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}
