// One question on the page; it can be edited, which makes a branch.

import { branchTools } from "/static/chat/answer_card.js";
import { deleteButton } from "/static/chat/delete_button.js";
import { editInPlace } from "/static/chat/edit_form.js";
import { copyFrom, el, iconButton, ICONS } from "/static/dom.js";

export class QuestionCard {
  /** `on`: `edit(text)`, `count()` and `remove()` of this and what is below, and `step(±1)`. */
  constructor(message, on, branch) {
    Object.assign(this, { message, on });
    const copy = iconButton(ICONS.copy, "Copy the question", () => copyFrom(copy, message.content));
    this.editButton = iconButton(ICONS.edit, "Edit (makes a branch)", () => this.edit());
    this.text = el("div", { class: "bubble", dir: "auto" }, message.content);
    this.tools = el("div", { class: "meta" }, copy, this.editButton, deleteButton(on), branch ? branchTools(branch, on.step) : null);
    this.node = el("article", { class: "question", "aria-label": "Question" }, this.text, this.tools);
  }

  remove() {
    this.node.remove();
  }

  edit() {
    editInPlace(this.text, { text: this.message.content, label: "Edit the question", action: "Ask" }, {
      send: (text) => this.on.edit(text),
      closed: () => this.editButton.focus(),
    });
  }
}
