// The tape under an answer: the strip, the scrubber, and the buttons that prove what a tape can do.

import { announce, button, el, icon, ICONS, oncePerFrame, seldom } from "/static/dom.js";
import { killEngine } from "/static/tape/client.js";
import { HeadsWatch } from "/static/tape/heads.js";
import { Scrubber } from "/static/tape/scrubber.js";
import { SecondReader } from "/static/tape/second_reader.js";
import { showSnippets } from "/static/tape/snippets.js";
import { Strip } from "/static/tape/strip.js";
import { tokenCard } from "/static/tape/token_card.js";

const REPLAY_PER_S = 60; // entries
const ON_ITS_WAY = 20; // entries
const DRAW_MS = 60; // the strip and the line, while the answer types

/**
 * `on.view(place)` hears which entry the reader of the page looks at, or null for the newest;
 * `on.fork(changes)` asks for another answer; `on.heat(isOn)` for colours. `capabilities` is
 * `{demo, canFork}` of the server.
 */
export class TapePanel {
  constructor(answer, on, capabilities) {
    Object.assign(this, { answer, on, capabilities });
    this.place = null; // null follows the newest entry
    this.heads = null;
    this.strip = new Strip(answer.log, (entry, cell) => this.openToken(entry, cell));
    this.scrubber = new Scrubber((place) => this.moveTo(place));
    this.card = el("div", { class: "token-place" });
    this.buttons = el("div", { class: "tape-buttons" });
    this.second = el("div");
    this.hint = el("p", { class: "note tape-hint", role: "status" });
    this.node = el("section", { class: "tape-panel", "aria-label": "The tape of this answer" }, this.strip.node, this.scrubber.node, this.buttons, this.hint, this.card, this.second);
    this.node.addEventListener("keydown", (event) => this.onKey(event));
    this.show = oncePerFrame(() => this.draw());
    this.makeButtons();
    this.onText = seldom(DRAW_MS, () => this.draw());
    this.onChange = () => this.show();
    answer.addEventListener("text", this.onText);
    answer.addEventListener("change", this.onChange);
    this.show.now();
  }

  remove() {
    this.stopReplay();
    this.show.cancel();
    this.onText.cancel();
    this.answer.removeEventListener("text", this.onText);
    this.answer.removeEventListener("change", this.onChange);
    this.watch?.stop();
    this.reader2?.close();
    this.node.remove();
  }

  draw() {
    const { answer } = this;
    const { log, reader } = answer;
    this.strip.log = log;
    const tokens = log.lastToken;
    const isWriting = answer.isLive;
    // What a reader has, the engine has written: the heads that the server tells are a moment old.
    const written = Math.max(this.heads?.last_entry ?? 0, log.last, this.reader2?.log.last ?? 0);
    const last = log.end ? tokens : written;
    const place = this.place ?? Math.min(log.last, tokens || log.last);
    this.strip.show(place, { isFollowing: this.place === null, isLive: isWriting });
    this.scrubber.show({
      place,
      written: last,
      expected: Number(answer.asked?.max_length) || 1024,
      isWriting,
      readers: this.readers(place),
      marks: this.marks(),
    });
    this.showButtons(isWriting, reader?.state);
    if (isWriting && answer.tape) this.lookAtHeads();
  }

  lookAtHeads() {
    if (!this.watch) {
      this.watch = new HeadsWatch(this.answer.tape, (heads) => {
        this.heads = heads;
        this.show();
      });
    }
    this.watch.start();
  }

  readers(place) {
    const own = this.answer.reader?.number;
    const others = (this.heads?.readers ?? []).filter(({ reader }) => reader !== own);
    const isYours = (number) => number === this.reader2?.reader.number;
    return [
      { own: true, entry: place, name: this.place === null ? `you ${place}` : `◂ you look at ${place}` },
      ...others.map(({ reader, entry }) => this.other(isYours(reader), reader, entry)),
    ];
  }

  other(isYours, number, entry) {
    const at = isYours ? this.reader2.log.last : entry;
    return { entry: at, name: `${isYours ? "second reader" : `reader ${number}`} ${at}` };
  }

  /** The server knows of all readers. What this page's readers did, the page itself knows better. */
  marks() {
    const own = this.answer.marks;
    const numbers = this.answer.reader?.numbers ?? new Set();
    // The server sees a closed connection some entries later: what was on its way, nobody received.
    const isOwn = ({ kind, entry, reader }) => numbers.has(reader)
      || own.some((mark) => mark.kind === kind && mark.entry === entry)
      || (kind === "pause" && own.some((mark) => mark.kind !== "resume" && mark.entry <= entry && entry <= mark.entry + ON_ITS_WAY));
    return [...(this.heads?.marks ?? []).filter((mark) => !isOwn(mark)), ...own];
  }

  // ---- rewinding

  moveTo(place) {
    this.stopReplay();
    this.look(place >= this.answer.log.lastToken ? null : place);
  }

  look(place) {
    this.place = place;
    this.on.view(place);
    this.show();
  }

  toggleReplay() {
    if (this.replaying) {
      this.stopReplay();
      this.look(this.place);
      return;
    }
    const from = this.place ?? 0;
    const startedAt = performance.now();
    const step = (now) => {
      const place = from + Math.floor(((now - startedAt) / 1000) * REPLAY_PER_S);
      if (place >= this.answer.log.lastToken) {
        this.stopReplay();
        this.look(null);
        return;
      }
      this.replaying = requestAnimationFrame(step);
      this.look(place);
    };
    this.replaying = requestAnimationFrame(step);
    this.show();
  }

  stopReplay() {
    cancelAnimationFrame(this.replaying);
    this.replaying = null;
  }

  openToken(entry, cell) {
    if (this.card.dataset.n === String(entry.n)) {
      this.closeToken();
      return;
    }
    this.card.dataset.n = String(entry.n);
    this.strip.open(entry.n);
    this.opener = cell;
    const card = tokenCard(entry, {
      rewind: (n) => this.moveTo(n),
      forkAfter: (n) => this.fork({ after: n }),
      forkWith: (n, { token_id: id, token }) => this.fork({ after: n - 1, token_id: id }, token),
      close: () => this.closeToken(),
    }, { canFork: Boolean(this.answer.tape) });
    this.card.replaceChildren(card);
    card.scrollIntoView({ block: "nearest" });
  }

  onKey(event) {
    if (event.key !== "Escape" || !this.card.dataset.n) return;
    event.stopPropagation(); // it would stop the answer
    this.closeToken();
  }

  closeToken() {
    if (this.card.contains(document.activeElement)) this.opener?.focus();
    delete this.card.dataset.n;
    this.strip.open(null);
    this.card.replaceChildren();
  }

  /** From the place that is looked at. */
  forkHere() {
    if (this.place === null) {
      this.say("Drag the line back, or press a token first. The new answer keeps everything before that place.");
      return;
    }
    this.fork({ after: this.place });
  }

  fork(changes) {
    this.closeToken();
    this.stopReplay();
    this.place = null;
    this.on.fork(changes);
  }

  // ---- the buttons

  makeButtons() {
    const make = (name, path, label, act, kind = "quiet") => {
      const made = button("", act, { class: `${kind} proof`, data: { act: name } });
      made.append(icon(path), el("span", {}, label));
      this.buttons.append(made);
      return made;
    };
    const { answer } = this;
    this.cutButton = make("cut", ICONS.cut, "Cut my connection", () => answer.cut(), "quiet warn");
    this.pauseButton = make("pause", ICONS.pause, "Pause", () => this.togglePause());
    this.killButton = make("kill", ICONS.kill, "Kill the engine", () => this.kill(), "quiet warn");
    this.replayButton = make("replay", ICONS.play, "Replay", () => this.toggleReplay());
    this.secondButton = make("second", ICONS.readers, "Second reader", () => this.toggleSecond());
    this.forkButton = make("fork", ICONS.fork, "Go on differently from here", () => this.forkHere());
    this.heatButton = make("heat", ICONS.heat, "Colour by probability", () => this.toggleHeat());
    this.codeButton = make("code", ICONS.code, "As curl / Python / JS", () => this.showCode());
    this.heatButton.setAttribute("aria-pressed", "false");
    this.secondButton.setAttribute("aria-expanded", "false");
  }

  showButtons(isWriting, state) {
    const { log, tape } = this.answer;
    const isPaused = state === "paused";
    this.cutButton.hidden = !isWriting || isPaused;
    this.cutButton.disabled = state !== "reading";
    this.pauseButton.hidden = !isWriting;
    label(this.pauseButton, isPaused ? "Resume" : "Pause");
    this.killButton.hidden = !isWriting || !this.capabilities.demo;
    this.replayButton.hidden = isWriting || log.entries.length < 2;
    label(this.replayButton, this.replaying ? "Pause" : this.place === null ? "Replay" : `Replay from ${this.place}`);
    this.secondButton.hidden = !tape;
    this.forkButton.hidden = !tape || log.entries.length < 2;
    this.forkButton.classList.toggle("accent", this.place !== null);
    this.heatButton.hidden = !log.entries.some(({ logprob }) => logprob !== null && logprob !== undefined);
    this.codeButton.hidden = !this.answer.asked && !tape;
  }

  togglePause() {
    if (this.answer.reader.state === "paused") this.answer.unpause();
    else this.answer.pause();
  }

  async kill() {
    try {
      await killEngine();
      this.say("The engine is killed. The connection stays open; watch the tape go on.");
    } catch (error) {
      this.say(error.status === 404 ? "This server does not allow it. Start it with --demo, and open the page on the same machine." : error.message);
    }
  }

  toggleSecond() {
    if (this.reader2) {
      this.reader2.close();
      this.reader2 = null;
    } else {
      this.reader2 = new SecondReader(this.answer.tape, () => {
        this.reader2 = null;
        this.secondButton.setAttribute("aria-expanded", "false");
        this.secondButton.focus();
      });
      this.second.append(this.reader2.node);
      this.lookAtHeads();
    }
    this.secondButton.setAttribute("aria-expanded", String(Boolean(this.reader2)));
  }

  toggleHeat() {
    const isOn = this.heatButton.getAttribute("aria-pressed") !== "true";
    this.heatButton.setAttribute("aria-pressed", String(isOn));
    this.node.classList.toggle("with-heat", isOn);
    this.on.heat(isOn);
  }

  showCode() {
    const { asked, tape, log } = this.answer;
    showSnippets(asked ?? { prompt: "…" }, tape, this.place ?? log.lastToken);
  }

  say(message) {
    this.hint.textContent = message;
    announce(message);
  }
}

function label(made, text) {
  const span = made.lastElementChild;
  if (span.textContent !== text) span.textContent = text;
}
