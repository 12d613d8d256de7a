// The tab Complete: the model goes on with a raw text, without any chat template.

import { Answer } from "/static/chat/answer.js";
import { AnswerCard } from "/static/chat/answer_card.js";
import { forkBody } from "/static/tape/client.js";
import { byId } from "/static/dom.js";
import { load, save } from "/static/storage.js";

const KEY = "tickertape.completion";

export class CompleteView {
  constructor({ settings, model }) {
    Object.assign(this, { settings, model });
    this.place = byId("completion");
    this.branches = [];
    this.at = -1;
    byId("complete-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.generate();
    });
    byId("complete-stop").addEventListener("click", () => this.answer?.stop());
  }

  get answer() {
    return this.branches[this.at] ?? null;
  }

  /** A reload does not lose the text: its tape is read again. */
  reattach() {
    const kept = load("sessionStorage", KEY);
    if (!kept?.tape) return;
    byId("prompt-text").value = kept.prompt;
    const answer = this.create();
    answer.message.tape = kept.tape;
    answer.prompt = kept.prompt;
    answer.read();
    this.shown();
  }

  async generate() {
    const body = this.settings.body();
    const prompt = byId("prompt-text").value;
    if (!body || !prompt || this.answer?.isLive) return;
    this.branches = [];
    await this.run(prompt, (answer) => answer.start({ prompt, ...body }));
  }

  async fork(changes) {
    const body = this.settings.body();
    const { tape, prompt } = this.answer;
    if (body) await this.run(prompt, (answer) => answer.fork(tape, forkBody(body, changes, this.branches.at(-2) ?? this.answer, this.model.max_model_len)));
  }

  async run(prompt, begin) {
    const answer = this.create();
    answer.prompt = prompt;
    this.shown();
    await begin(answer);
    if (answer.failure?.param && answer.failure.param !== "prompt") this.settings.showError(answer.failure.param, answer.failure.message);
  }

  create() {
    const answer = new Answer({ id: "", role: "assistant", content: "", status: "starting", tape: null });
    this.branches.push(answer);
    this.at = this.branches.length - 1;
    answer.addEventListener("save", () => save("sessionStorage", KEY, { tape: answer.tape, prompt: answer.prompt }));
    answer.addEventListener("change", () => this.showButtons());
    return answer;
  }

  shown() {
    this.card?.remove();
    this.card = new AnswerCard(this.answer, {
      again: () => this.generate(),
      fork: (changes) => this.fork(changes),
      settings: (param) => this.settings.focus(param),
      step: (by) => {
        this.at += by;
        this.shown();
      },
    }, {
      isMarkdown: false,
      capabilities: this.model,
      hasTape: true,
      branch: this.branches.length > 1 ? { at: this.at + 1, of: this.branches.length } : null,
    });
    this.place.replaceChildren(this.card.node);
    this.showButtons();
    this.onCurrent?.();
  }

  showButtons() {
    const isLive = Boolean(this.answer?.isLive);
    byId("complete-send").hidden = isLive;
    byId("complete-stop").hidden = !isLive;
  }
}
