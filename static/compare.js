// The tab Compare: the same question with two settings, side by side.

import { Answer } from "/static/chat/answer.js";
import { AnswerCard } from "/static/chat/answer_card.js";
import { FIELDS, partOf } from "/static/chat/fields.js";
import { forkBody } from "/static/tape/client.js";
import { byId, el } from "/static/dom.js";

const COMPARED = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"];

export class CompareView {
  constructor({ settings, model }) {
    Object.assign(this, { settings, model });
    this.sides = [new Side("A", { temperature: "0" }, this), new Side("B", { temperature: "1" }, this)];
    byId("sides").append(...this.sides.map(({ node }) => node));
    byId("compare-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    byId("compare-stop").addEventListener("click", () => {
      for (const { answer } of this.sides) answer?.stop();
    });
  }

  get answer() {
    return this.sides.find(({ answer }) => answer?.isLive)?.answer ?? this.sides[0].answer;
  }

  /** What the model takes where a field is empty. */
  introduce({ sampling = {} }) {
    for (const side of this.sides) side.introduce(sampling);
  }

  run() {
    const body = this.settings.body();
    const text = byId("compare-text").value.trim();
    if (!body || !text || this.sides.some(({ answer }) => answer?.isLive)) return;
    const system = this.settings.system.trim();
    const turns = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: text }];
    const asked = this.model.chat ? { messages: turns } : { prompt: text };
    for (const side of this.sides) side.run({ ...asked, ...body });
    this.onCurrent?.();
  }

  showButtons() {
    const isLive = this.sides.some(({ answer }) => answer?.isLive);
    byId("compare-send").hidden = isLive;
    byId("compare-stop").hidden = !isLive;
  }
}

class Side {
  constructor(name, values, view) {
    this.view = view;
    this.answer = null;
    this.inputs = COMPARED.map((param) => {
      const field = FIELDS.find(({ name: one }) => one === param);
      const id = `side-${name}-${param}`.toLowerCase().replaceAll("_", "-");
      const input = el("input", { id, type: "number", value: values[param] ?? "", placeholder: field.placeholder ?? "model's" });
      input.step = "any";
      return { field, input, node: el("div", { class: "field" }, el("label", { for: id }, field.label), input) };
    });
    this.problem = el("p", { class: "field-error", hidden: true });
    this.place = el("div", { class: "side-answer" });
    this.node = el(
      "section", { class: "side", "aria-label": `Setting ${name}` },
      el("h2", {}, `Setting ${name}`),
      el("div", { class: "grid three" }, ...this.inputs.map(({ node }) => node)),
      this.problem, this.place,
    );
  }

  introduce(sampling) {
    for (const { field, input } of this.inputs) {
      if (sampling[field.name] !== undefined) input.placeholder = String(sampling[field.name]);
    }
  }

  async run(body) {
    const own = this.parts();
    if (!own) return;
    await this.begin((answer) => answer.start({ ...body, ...own }));
  }

  parts() {
    this.problem.hidden = true;
    try {
      return Object.assign({}, ...this.inputs.map(({ field, input }) => partOf(field, input.validity.badInput ? "?" : input.value)));
    } catch (error) {
      this.problem.textContent = error.message;
      this.problem.hidden = false;
      return null;
    }
  }

  async begin(start) {
    const answer = new Answer({ id: "", role: "assistant", content: "", status: "starting", tape: null });
    answer.addEventListener("change", () => this.view.showButtons());
    this.answer = answer;
    this.card?.remove();
    this.card = new AnswerCard(answer, {
      again: () => this.begin((next) => next.start(answer.asked)),
      fork: (changes) => this.begin((next) => next.fork(answer.tape, forkBody({ ...this.view.settings.body(), ...this.parts() }, changes, answer, this.view.model.max_model_len))),
      settings: (param) => this.view.settings.focus(param),
      step: () => {},
    }, { isMarkdown: true, capabilities: this.view.model, hasTape: true, branch: null });
    this.place.replaceChildren(this.card.node);
    await start(answer);
  }
}
