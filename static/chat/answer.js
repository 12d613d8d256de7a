// One answer: a tape, the reader of this page on it, and what has become of it. Knows no DOM.

import { ServerError } from "/static/http.js";
import * as client from "/static/tape/client.js";
import { TapeLog } from "/static/tape/log.js";
import { TapeReader } from "/static/tape/reader.js";
import { WireLog } from "/static/wire/log.js";

const SAVE_MS = 2000;

/**
 * `message` is the record of the history: `{tape, status, content, finish, ...}`. The status goes from
 * "starting" to "running" to "done", or to "failed" or "gone". Events: `text` for new entries, `change`
 * for all else, `save` when the record is to be written.
 */
export class Answer extends EventTarget {
  constructor(message, wire = new WireLog()) {
    super();
    this.message = message;
    this.wire = wire;
    this.log = new TapeLog();
    this.reader = null;
    this.marks = []; // what has happened at which entry
    this.progress = null; // the last status frame, until the next token
    this.failure = null; // {message, status, param}
    this.asked = null; // the body of the request
    this.sentAt = null;
    this.firstAt = null;
    this.engines = 1;
    this.lastSaved = 0;
  }

  get isLive() {
    return ["starting", "running"].includes(this.message.status);
  }

  get tape() {
    return this.message.tape;
  }

  /** Starts a tape; never throws. */
  async start(body) {
    this.asked = body;
    await this.begin(() => {
      this.wire.request("POST /v1/tapes", { "Content-Type": "application/json" });
      return client.start(body);
    });
  }

  /** Starts from the first `after` entries of another tape. */
  async fork(parent, changes) {
    this.message.parentTape = parent;
    this.message.forkedAt = changes.after;
    this.asked = changes;
    await this.begin(() => {
      this.wire.request(`POST ${client.locationOf(parent)}/fork`, { body: JSON.stringify(changes) });
      return client.fork(parent, changes);
    });
    if (this.message.tape) this.mark({ kind: "fork", entry: changes.after });
  }

  async begin(create) {
    this.sentAt = performance.now();
    this.message.status = "starting";
    this.changed();
    try {
      this.message.tape = await create();
    } catch (error) {
      this.fail(error);
      return;
    }
    this.wire.add("response", `201 · Location: ${client.locationOf(this.message.tape)}`);
    this.message.status = "running";
    this.save();
    this.read();
    if (this.isStopping) this.cancel();
  }

  /** Reads the tape, from where the log stands. */
  read() {
    this.failure = null;
    this.message.status = "running";
    this.reader ??= new TapeReader(this.tape, this.log, this.wire, {
      entries: () => this.onEntries(),
      status: (data) => this.onStatus(data),
      state: () => this.changed(),
      mark: (mark) => this.mark(mark),
      end: (data) => this.onEnd(data),
      refused: (error) => this.onRefused(error),
    });
    this.reader.open();
    this.changed();
  }

  onEntries() {
    this.firstAt ??= performance.now();
    this.lastAt = performance.now();
    this.progress = null;
    this.message.content = this.log.text;
    this.dispatchEvent(new Event("text"));
    if (performance.now() - this.lastSaved > SAVE_MS) this.save();
  }

  onStatus(data) {
    this.progress = data;
    if (data.state === "recovering") this.engines += 1;
    this.changed();
  }

  onEnd({ finish_reason: reason, usage, timings, error }) {
    Object.assign(this.message, {
      status: "done",
      content: this.log.text,
      finish: reason,
      error: error?.message ?? null,
      usage: usage ?? null,
      timings: timings ?? null,
      marks: this.marks,
      counters: this.counters(),
    });
    this.progress = null;
    this.save({ withLog: true });
    this.changed();
  }

  onRefused(error) {
    this.fail(error);
    if (error.status === 404) {
      this.message.status = "gone";
      this.save();
      this.changed();
    }
  }

  fail(error) {
    const known = error instanceof ServerError;
    this.failure = {
      message: error.message,
      status: known ? error.status : null,
      param: known ? error.param : null,
      code: known ? error.code : null,
      retryAfter: known ? error.retryAfter : null,
    };
    this.message.status = "failed";
    this.save();
    this.changed();
  }

  stop() {
    if (!this.isLive || this.isStopping) return;
    this.isStopping = true;
    this.changed();
    if (this.tape) this.cancel();
  }

  /** The terminal frame ends the answer; only if the server cannot be told does the page end it alone. */
  async cancel() {
    try {
      this.wire.request(`DELETE ${client.locationOf(this.tape)}`, {});
      await client.cancel(client.locationOf(this.tape));
      if (this.reader.state === "paused") this.reader.open();
      this.reader.hurry();
    } catch (error) {
      if (!this.isLive) return;
      this.reader.close();
      this.fail(error);
      this.failure.message = `The page stopped reading. ${error.message}`;
      this.changed();
    }
  }

  cut() {
    this.reader?.cut();
  }

  pause() {
    this.reader?.pause();
    this.changed();
  }

  unpause() {
    this.reader?.open();
    this.changed();
  }

  /** Leaves the tape to itself; it can be read on later. */
  leave() {
    this.reader?.close();
  }

  mark(mark) {
    this.marks.push({ at: Date.now(), ...mark });
    this.changed();
  }

  counters() {
    return {
      entries: this.log.entries.length + (this.log.end ? 1 : 0),
      gaps: this.log.missing + this.log.gaps.reduce((sum, { from, to }) => sum + to - from + 1, 0),
      doubles: this.log.doubles,
      connections: this.reader?.connections ?? this.message.counters?.connections ?? 0,
      engines: this.engines,
    };
  }

  /** First token in ms and tokens per second, as this page saw them; null where it did not. */
  figures() {
    const { timings, usage } = this.message;
    const seconds = (this.lastAt - this.firstAt) / 1000;
    const tokens = usage?.completion_tokens ?? this.log.entries.length;
    return {
      ttft: this.sentAt !== null && this.firstAt ? this.firstAt - this.sentAt : timings?.ttft_ms ?? null,
      rate: timings?.tokens_per_second ?? (seconds > 0.2 ? this.log.entries.length / seconds : null),
      tokens,
    };
  }

  save({ withLog = false } = {}) {
    this.lastSaved = performance.now();
    this.dispatchEvent(new CustomEvent("save", { detail: { withLog } }));
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }

  /** The stored log of an answer that has ended. */
  restore(stored) {
    this.log = TapeLog.of(stored);
    this.marks = this.message.marks ?? [];
    this.engines = this.message.counters?.engines ?? 1;
  }
}
