// /?tape=ID: another browser reads along on a tape that this one did not start.

import { Answer } from "/static/chat/answer.js";
import { AnswerCard } from "/static/chat/answer_card.js";
import { byId } from "/static/dom.js";
import { forkBody } from "/static/tape/client.js";

export class SharedTapeView {
  constructor(tape, { model, settings }) {
    Object.assign(this, { tape, model, settings });
    byId("shared-id").textContent = tape;
    this.open(new Answer({ id: "", role: "assistant", content: "", status: "running", tape }));
    this.answer.read();
  }

  open(answer) {
    this.answer = answer;
    this.card?.remove();
    this.card = new AnswerCard(answer, {
      again: () => answer.read(),
      fork: (changes) => this.fork(changes),
      settings: (param) => this.settings.focus(param),
      step: () => {},
    }, { isMarkdown: true, capabilities: this.model, hasTape: true, branch: null });
    byId("shared-answer").replaceChildren(this.card.node);
    this.onCurrent?.();
  }

  async fork(changes) {
    const from = this.answer;
    const body = this.settings.body();
    if (!body) return;
    this.open(new Answer({ id: "", role: "assistant", content: "", status: "starting", tape: null }));
    await this.answer.fork(from.tape, forkBody(body, changes, from, this.model.max_model_len));
    byId("shared-id").textContent = this.answer.tape ?? from.tape;
  }
}
