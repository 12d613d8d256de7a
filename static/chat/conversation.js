// The conversation on the page: its messages, and what can be done with them.

import { Answer } from "/static/chat/answer.js";
import { AnswerCard } from "/static/chat/answer_card.js";
import { QuestionCard } from "/static/chat/question_card.js";
import { titleOf, Tree, turnsOf } from "/static/chat/tree.js";
import { SCHEMA } from "/static/chat/history.js";
import { announce, byId, el, randomId } from "/static/dom.js";
import { forkBody, tokenCount } from "/static/tape/client.js";

const NEAR_END_PX = 90;

// There the text has the room; the tape opens at a press.
const isPhone = matchMedia("(max-width: 34rem)");

/**
 * Events: `saved` after the history has changed, `current` when another answer is the newest, `change`
 * when an answer begins or ends.
 */
export class ConversationView extends EventTarget {
  constructor({ history, settings, model }) {
    super();
    Object.assign(this, { history, settings, model });
    this.list = byId("messages");
    this.scroller = byId("chat-scroll");
    this.sticks = true; // whether the end is kept in sight
    this.toEnd = byId("to-end");
    this.toEnd.addEventListener("click", () => this.goToEnd());
    this.scroller.addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = this.scroller;
      this.sticks = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
      this.toEnd.hidden = this.sticks;
    }, { passive: true });
    this.systemNote = el("p", { class: "system-note" });
    settings.addEventListener("change", () => this.showSystem());
    // After the layout of a frame, so that none has to be made only to scroll.
    new ResizeObserver(() => this.keepEnd()).observe(this.list);
    this.answers = new Map(); // by message id: those that run go on while another chat is shown
    this.deleted = new Set(); // ids of messages
    this.cards = [];
    this.begin();
  }

  get isEmpty() {
    return this.tree.messages.size === 0;
  }

  /** The answer that the keyboard and the drawer mean: the one that runs, or the last. */
  get current() {
    const shown = this.tree.path().filter(({ role }) => role === "assistant").map(({ id }) => this.answers.get(id));
    return shown.find((answer) => answer?.isLive) ?? shown.at(-1) ?? null;
  }

  begin() {
    const now = Date.now();
    this.conversation = { id: randomId(), schema: SCHEMA, title: "", system: "", created: now, updated: now, chosen: {} };
    this.tree = new Tree();
    this.settings.system = this.settings.usualSystem;
    this.draw();
  }

  async open(conversation) {
    const messages = await this.history.messages(conversation.id);
    const logs = await Promise.all(messages.map(({ id, role }) => (role === "assistant" && !this.answers.has(id) ? this.history.log(id) : null)));
    this.conversation = conversation;
    // An answer that runs in this tab is newer than its record.
    const live = messages.map((message) => this.answers.get(message.id)?.message ?? message);
    this.tree = new Tree(live, conversation.chosen);
    messages.forEach((message, place) => {
      if (message.role === "assistant" && !this.answers.has(message.id)) this.adopt(message, logs[place]);
    });
    this.settings.system = conversation.system ?? "";
    this.sticks = true;
    this.draw();
  }

  /** An answer from the history: read on if its tape may still be there. */
  adopt(message, stored) {
    const answer = this.watched(new Answer(message));
    if (stored) answer.restore(stored);
    if (answer.isLive && message.tape) answer.read();
    else if (answer.isLive) message.status = "failed";
    return answer;
  }

  // ---- asking

  /** A new question below what is shown. */
  async ask(text) {
    const body = this.settings.body();
    if (!body) return false;
    await this.put(text, this.tree.path().at(-1)?.id ?? null, body);
    return true;
  }

  /** Another wording of a question: a branch beside it. */
  async edit(message, text) {
    const body = this.settings.body();
    if (body) await this.put(text, message.parent, body);
  }

  async put(text, parent, body) {
    const question = this.message("user", parent, text);
    if (this.isEmpty) this.conversation.title = titleOf(text);
    this.tree.add(question);
    await this.answerTo(question, body);
  }

  /** Another answer beside this one. */
  async again(message) {
    const body = this.settings.body();
    if (!body) return;
    await this.answerTo(this.tree.messages.get(message.parent), body);
  }

  async answerTo(question, body) {
    const message = this.message("assistant", question.id, "");
    const turns = turnsOf([...this.tree.above(question), question], this.settings.system);
    this.conversation.system = this.settings.system;
    const answer = this.beginAnswer(message, [question, message]);
    await this.fit(body, { messages: turns });
    await answer.start({ messages: turns, ...body });
    this.explain(answer);
  }

  /** A new tape that shares the first entries of an old one. */
  async fork(message, changes) {
    const body = this.settings.body();
    const from = this.answers.get(message.id);
    if (!body || !from.tape) return;
    const answer = this.beginAnswer(this.message("assistant", message.parent, ""));
    await answer.fork(from.tape, forkBody(body, changes, from, this.model.max_model_len));
    this.explain(answer);
  }

  /** The same answer, from its last token on: a new tape that begins with the old one's entries. */
  async continue(message, changes) {
    const body = this.settings.body();
    const from = this.answers.get(message.id);
    if (!body || !from.tape) return;
    const before = { ...message };
    const answer = this.beginAnswer(message, [], { isNew: false });
    await answer.fork(from.tape, forkBody(body, changes, { message: before }, this.model.max_model_len));
    if (!answer.failure || answer.tape !== before.tape) return;
    // No new tape: the old answer stays, and says why.
    for (const name of Object.keys(message)) if (!(name in before)) delete message[name];
    Object.assign(message, before);
    const { failure } = answer;
    this.answers.set(message.id, from);
    this.draw();
    announce(failure.message);
    this.cards.find((card) => card.answer === from)?.tell(failure.message);
  }

  /** Other words for an answer: a branch beside it, without a tape. */
  editAnswer(message, text) {
    const edited = { ...this.message("assistant", message.parent, text), status: "done", finish: "edited", tape: null };
    this.tree.add(edited);
    this.watched(new Answer(edited));
    this.save([edited]);
    this.draw();
  }

  /** Deletes a message and all that follow it. */
  remove(message) {
    const gone = this.tree.remove(message);
    for (const { id } of gone) {
      this.deleted.add(id);
      this.answers.get(id)?.stop();
      this.answers.delete(id);
    }
    this.history.removeMessages(gone.map(({ id }) => id)).catch(() => {});
    announce(gone.length === 1 ? "Message deleted." : `${gone.length} messages deleted.`);
    if (this.isEmpty) {
      this.dispatchEvent(new Event("emptied"));
      return;
    }
    this.save([]);
    this.draw();
  }

  beginAnswer(message, toSave = [message], { isNew = true } = {}) {
    if (isNew) this.tree.add(message);
    const answer = this.watched(new Answer(message));
    message.status = "starting";
    this.save(toSave);
    this.sticks = true;
    this.draw();
    announce("Asking.");
    return answer;
  }

  /** Lowers the length to what fits beside the prompt: only a long prompt has to be counted. */
  async fit(body, prompt) {
    const context = this.model.max_model_len;
    const characters = JSON.stringify(prompt).length;
    if (!context || characters / 2 + body.max_length < context) return;
    const count = await tokenCount(prompt).catch(() => null);
    if (count !== null && count < context) body.max_length = Math.min(body.max_length, context - count);
  }

  /** A refused field is named beside its control. */
  explain({ failure }) {
    if (failure?.param) this.settings.showError(failure.param, failure.message);
  }

  message(role, parent, content) {
    // Two messages may be made within one millisecond; siblings must keep their order.
    this.lastCreated = Math.max(Date.now(), (this.lastCreated ?? 0) + 1);
    return { id: randomId(), conversation: this.conversation.id, parent, role, content, created: this.lastCreated };
  }

  watched(answer) {
    const { conversation } = this;
    this.answers.set(answer.message.id, answer);
    answer.addEventListener("save", ({ detail: { withLog } }) => {
      const log = withLog ? { id: answer.message.id, ...answer.log.stored() } : undefined;
      if (this.isRemoved?.(answer.message.conversation) || this.deleted.has(answer.message.id)) return;
      this.history.save({ messages: [{ ...answer.message }], log }).catch(() => {});
    });
    let wasLive = answer.isLive;
    answer.addEventListener("change", () => {
      if (answer.isLive === wasLive) return;
      wasLive = answer.isLive;
      if (!wasLive) this.ended(answer, conversation);
      this.dispatchEvent(new Event("change"));
    });
    return answer;
  }

  ended(answer, conversation) {
    conversation.updated = Date.now();
    this.saveConversation(conversation);
    if (answer.message.status === "done") announce(`Answer complete, ${answer.message.usage?.completion_tokens ?? ""} tokens.`);
    else announce("The answer failed.");
  }

  // ---- what is shown

  draw() {
    for (const card of this.cards) card.remove();
    const path = this.tree.path();
    const lastAnswer = path.findLast(({ role }) => role === "assistant");
    this.cards = path.map((message) => (message.role === "user" ? this.questionCard(message) : this.answerCard(message, message === lastAnswer)));
    this.list.replaceChildren(this.systemNote, ...this.cards.map(({ node }) => node));
    this.showSystem();
    this.keepEnd();
    this.dispatchEvent(new Event("current"));
    this.dispatchEvent(new Event("change"));
  }

  questionCard(message) {
    return new QuestionCard(message, {
      edit: (text) => this.edit(message, text),
      step: (by) => this.step(message, by),
      ...this.removal(message),
    }, this.branch(message));
  }

  removal(message) {
    return { count: () => this.tree.below(message).length, remove: () => this.remove(message) };
  }

  /** What the model is told before the first question. */
  showSystem() {
    const text = this.settings.system.trim();
    this.systemNote.textContent = text && `System prompt: ${text}`;
    this.systemNote.hidden = !text || this.isEmpty;
  }

  goToEnd() {
    this.sticks = true;
    this.toEnd.hidden = true;
    this.keepEnd();
    byId("prompt").focus({ preventScroll: true });
  }

  answerCard(message, isLast) {
    const answer = this.answers.get(message.id) ?? this.adopt(message);
    return new AnswerCard(answer, {
      again: () => this.again(message),
      fork: (changes) => this.fork(message, changes),
      continue: (changes) => this.continue(message, changes),
      edit: (text) => this.editAnswer(message, text),
      settings: (param) => this.settings.focus(param),
      step: (by) => this.step(message, by),
      ...this.removal(message),
    }, {
      isMarkdown: true,
      capabilities: this.model,
      hasTape: isLast && !isPhone.matches && message.finish !== "edited",
      branch: this.branch(message),
    });
  }

  branch(message) {
    const all = this.tree.siblings(message);
    return all.length > 1 ? { at: all.indexOf(message) + 1, of: all.length } : null;
  }

  /** Shows the neighbour of a message, with what belongs to it. */
  step(message, by) {
    const other = this.tree.neighbour(message, by);
    if (!other) return;
    this.tree.choose(other);
    this.save([]);
    this.sticks = false;
    const top = this.scroller.scrollTop;
    this.draw();
    this.scroller.scrollTop = top;
    const { at, of } = this.branch(other);
    announce(`Branch ${at} of ${of}.`);
  }

  /** For the keyboard: the last message that has branches. */
  stepLast(by) {
    const last = this.tree.path().findLast((message) => this.tree.siblings(message).length > 1);
    if (last) this.step(last, by);
  }

  keepEnd() {
    if (this.sticks) this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  // ---- history

  save(messages) {
    this.conversation.updated = Date.now();
    this.conversation.chosen = { ...this.tree.chosen };
    this.history.save({ conversation: { ...this.conversation }, messages: messages.map((one) => ({ ...one })) })
      .then(() => this.dispatchEvent(new Event("saved")), () => {});
  }

  saveConversation(conversation) {
    if (this.isRemoved?.(conversation.id)) return;
    this.history.save({ conversation: { ...conversation } }).then(() => this.dispatchEvent(new Event("saved")), () => {});
  }
}
