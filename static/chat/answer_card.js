// One answer on the page: its text, how it goes, its figures, its tools, and its tape.

import { deleteButton } from "/static/chat/delete_button.js";
import { editInPlace } from "/static/chat/edit_form.js";
import { outcomeOf } from "/static/chat/outcome.js";
import { button, copyFrom, el, iconButton, ICONS, oncePerFrame } from "/static/dom.js";
import { figure } from "/static/format.js";
import { HeatText } from "/static/chat/heat_text.js";
import { MarkdownStream } from "/static/markdown/stream.js";
import { TapePanel } from "/static/tape/panel.js";

const ACTIONS = {
  again: "Ask again",
  continue: "Continue",
  settings: "Open the settings",
  unpause: "Resume",
  hurry: "Try now",
};

/**
 * `on`: `again()`, `fork(changes)`, `settings(param)`, and `step(±1)` for branches; in a chat also
 * `continue()`, `edit(text)`, `count()` and `remove()`. `options`: `{isMarkdown, capabilities, hasTape, branch: {at, of} | null}`.
 */
export class AnswerCard {
  constructor(answer, on, options) {
    Object.assign(this, { answer, on, options });
    this.view = null; // the entry that is looked at, null for the newest
    this.body = el("div", { class: options.isMarkdown ? "body markdown" : "body plain-text", dir: "auto" });
    this.writer = options.isMarkdown ? new MarkdownStream(this.body) : new PlainText(this.body);
    this.notice = el("p", { class: "notice" });
    this.actionButton = button("", () => this.act(), { class: "quiet", hidden: true });
    this.meta = el("div", { class: "meta" });
    this.figures = el("span", { class: "figures" });
    this.outcome = el("div", { class: "outcome" }, this.notice, this.actionButton);
    this.node = el("article", { class: "answer", "aria-label": "Answer" }, this.body, this.outcome, this.meta);
    this.makeTools();
    this.show = oncePerFrame(() => this.draw());
    this.onChange = () => this.show();
    answer.addEventListener("text", this.onChange);
    answer.addEventListener("change", this.onChange);
    this.draw();
    if (options.hasTape) this.openTape();
  }

  remove() {
    this.show.cancel();
    this.answer.removeEventListener("text", this.onChange);
    this.answer.removeEventListener("change", this.onChange);
    this.panel?.remove();
    this.node.remove();
  }

  draw() {
    const { answer } = this;
    const { message, log } = answer;
    const isAtEnd = this.view === null;
    const text = isAtEnd ? message.content : log.textUpTo(this.view);
    this.writer.show(text, isAtEnd && !answer.isLive, this.view);
    this.body.classList.toggle("typing", answer.isLive && isAtEnd && answer.reader?.state !== "paused");
    this.node.classList.toggle("rewound", !isAtEnd);
    this.drawOutcome();
    this.drawFigures();
    this.tapeButton.hidden = !log.entries.length;
    this.again.hidden = answer.isLive;
    if (this.edit) this.edit.hidden = answer.isLive || !message.content;
    this.copy.hidden = !message.content;
  }

  /** Says why something that was asked for cannot be. */
  tell(text) {
    this.told = { kind: "error", text, action: null };
    this.drawOutcome();
  }

  drawOutcome() {
    const { kind, text, action } = this.view === null
      ? this.told ?? outcomeOf(this.answer)
      : { kind: "rewound", text: `Rewound to entry ${this.view} of ${this.answer.log.lastToken}.`, action: null };
    this.node.dataset.state = this.answer.message.status;
    this.node.dataset.tape = this.answer.tape ?? "";
    this.node.dataset.entries = String(this.answer.log.last);
    this.notice.dataset.kind = kind;
    if (this.notice.textContent !== text) this.notice.textContent = text;
    this.notice.hidden = !text;
    this.outcome.hidden = !text && !action;
    this.action = action;
    this.actionButton.hidden = !action;
    if (action) this.actionButton.textContent = ACTIONS[action];
  }

  drawFigures() {
    const { ttft, rate, tokens } = this.answer.figures();
    const parts = [
      ttft !== null && `first token ${figure(ttft)} ms`,
      rate !== null && `${figure(rate, 1)} tokens/s`,
      tokens ? `${tokens} tokens` : null,
    ];
    this.figures.textContent = parts.filter(Boolean).join(" · ");
  }

  // ---- tools

  makeTools() {
    const { on, options } = this;
    this.copy = iconButton(ICONS.copy, "Copy the answer", () => copyFrom(this.copy, this.answer.message.content));
    this.again = iconButton(ICONS.again, "Ask again (another answer)", () => on.again());
    this.tapeButton = iconButton(ICONS.tape, "Show the tape", () => this.toggleTape(), { class: "tool tape-toggle" });
    this.tapeButton.append("Tape");
    this.tapeButton.setAttribute("aria-label", "Tape of this answer");
    this.tapeButton.setAttribute("aria-expanded", "false");
    this.meta.append(this.copy, this.again);
    if (on.edit) {
      this.edit = iconButton(ICONS.edit, "Edit the answer (makes a branch)", () => this.editAnswer());
      this.meta.append(this.edit, deleteButton(on));
    }
    if (options.branch) this.meta.append(branchTools(options.branch, on.step));
    this.meta.append(this.tapeButton, this.figures);
  }

  toggleTape() {
    if (this.panel) this.closeTape();
    else this.openTape();
  }

  openTape() {
    if (this.panel) return;
    this.panel = new TapePanel(this.answer, {
      view: (place) => {
        this.view = place;
        this.show();
      },
      fork: (changes) => this.on.fork(changes),
      heat: (isOn) => this.setHeat(isOn),
    }, this.options.capabilities);
    this.node.append(this.panel.node);
    this.panel.show(); // in the next frame it is on the page, and the strip can scroll
    this.tapeButton.setAttribute("aria-expanded", "true");
  }

  closeTape() {
    this.panel?.remove();
    this.panel = null;
    this.view = null;
    this.setHeat(false);
    this.tapeButton.setAttribute("aria-expanded", "false");
  }

  setHeat(isOn) {
    this.body.replaceChildren();
    this.body.classList.toggle("heat", isOn);
    this.body.classList.toggle("markdown", !isOn && this.options.isMarkdown);
    if (isOn) this.writer = new HeatText(this.body, this.answer.log, (entry, span) => this.panel.openToken(entry, span));
    else this.writer = this.options.isMarkdown ? new MarkdownStream(this.body) : new PlainText(this.body);
    this.show();
  }

  /** The model takes the edited words for its own in what follows. */
  editAnswer() {
    const { content } = this.answer.message;
    editInPlace(this.body, { text: content, label: "Edit the answer", action: "Save", rows: Math.min(20, content.split("\n").length + 2) }, {
      send: (text) => this.on.edit(text),
      closed: () => this.edit.focus(),
    });
  }

  act() {
    const { answer } = this;
    const acts = {
      again: () => this.on.again(),
      settings: () => this.on.settings(answer.failure?.param ?? "max_length"),
      unpause: () => answer.unpause(),
      hurry: () => answer.reader.hurry(),
      continue: () => (this.on.continue ?? this.on.fork)({ after: answer.log.lastToken }),
    };
    acts[this.action]?.();
  }
}

/** ‹ 2/3 › */
export function branchTools({ at, of }, step) {
  const previous = iconButton(ICONS.previous, "Previous branch", () => step(-1), { disabled: at === 1 });
  const next = iconButton(ICONS.next, "Next branch", () => step(1), { disabled: at === of });
  const count = el("span", { class: "branch-count", "aria-label": `Branch ${at} of ${of}` }, `${at}/${of}`);
  count.setAttribute("role", "img");
  return el("span", { class: "branches" }, previous, count, next);
}

/** Text as it is, for raw completions. */
class PlainText {
  constructor(root) {
    this.text = document.createTextNode("");
    root.replaceChildren(this.text);
  }

  show(text) {
    const shown = this.text.data;
    if (text.startsWith(shown)) this.text.appendData(text.slice(shown.length));
    else this.text.data = text;
  }
}
