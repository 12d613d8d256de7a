// One reader of one tape: reads it to its end, over as many connections as it takes.

import { ask, ServerError } from "/static/http.js";
import { blocksOf, parse } from "/static/stream.js";
import { locationOf } from "/static/tape/client.js";

const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 8000;
const CUT_MS = 1500; // a cut that was asked for stays open so long that it can be seen

/**
 * `on.entries()` is called after new entries, `on.status(data)` for progress, `on.state(state, detail)`
 * when the connection changes, `on.mark(mark)` for what belongs on the scrubber, `on.end(data)` at the
 * terminal entry, and `on.refused(error)` when the server will not let this tape be read.
 */
export class TapeReader {
  constructor(tape, log, wire, on) {
    Object.assign(this, { tape, log, wire, on });
    this.number = null; // what the server calls this connection
    this.numbers = new Set(); // and those before it
    this.connections = 0;
    this.tries = 0;
    this.state = "closed";
    this.controller = null;
    this.wake = null;
    this.running = false;
    this.broken = false; // whether the next connection is a resume
  }

  /** Reads from where the log stands. */
  open() {
    if (this.running) return;
    this.running = true;
    this.follow();
  }

  /** Closes the connection for good, or until `open`. */
  close(state = "closed") {
    if (!this.running) return;
    this.running = false;
    this.controller?.abort();
    this.wake?.();
    this.become(state);
  }

  /** Closes the connection so that nobody reads: the tape waits. */
  pause() {
    this.wire.note("paused", `The page closed the connection after entry ${this.log.last}.`);
    this.mark("pause");
    this.broken = true;
    this.close("paused");
  }

  /** Breaks the connection as a bad network would; it comes back by itself. */
  cut() {
    if (!this.running || !this.controller || this.state === "cut") return;
    this.wasCut = true;
    this.controller.abort();
  }

  /** Cuts a wait for the next try short. */
  hurry() {
    this.wake?.();
  }

  mark(kind, more = {}) {
    this.on.mark?.({ kind, entry: this.log.last, at: Date.now(), own: true, ...more });
  }

  become(state, detail) {
    this.state = state;
    this.on.state(state, detail);
  }

  async follow() {
    while (this.running) {
      const error = await this.connectOnce().then(() => null, (failed) => failed);
      if (!this.running) return;
      if (this.log.end) {
        this.running = false;
        this.become("ended");
        return;
      }
      if (this.wasCut) {
        await this.showCut();
        continue;
      }
      if (isRefusal(error)) {
        this.running = false;
        this.become("refused");
        this.on.refused(error);
        return;
      }
      await this.waitForNextTry();
    }
  }

  async showCut() {
    this.wasCut = false;
    this.wire.cut(`the connection was cut after entry ${this.log.last}`);
    this.mark("leave");
    this.broken = true;
    this.become("cut");
    await this.sleep(CUT_MS);
  }

  async waitForNextTry() {
    if (!this.broken) {
      this.wire.cut(`the connection was lost after entry ${this.log.last}`);
      this.mark("leave");
    }
    this.broken = true;
    const wait = Math.min(FIRST_RETRY_MS * 2 ** this.tries, LONGEST_RETRY_MS);
    this.tries += 1;
    dispatchEvent(new Event("server-unreachable")); // the lamp looks at once
    this.become("waiting", wait / 1000);
    await this.sleep(wait);
  }

  sleep(milliseconds) {
    return new Promise((wake) => {
      this.wake = wake;
      setTimeout(wake, milliseconds);
    });
  }

  /** One connection: takes what it brings, and returns when it ends. */
  async connectOnce() {
    const headers = { Accept: "text/event-stream" };
    const after = this.log.last;
    if (after) headers["Last-Event-ID"] = `${this.tape}:${after}`;
    this.controller = new AbortController();
    const { signal } = this.controller;
    this.wire.request(`GET ${locationOf(this.tape)}`, headers);
    const response = await ask(locationOf(this.tape), { headers, signal });
    this.connections += 1;
    this.number = Number(response.headers.get("X-Reader")) || null;
    this.numbers.add(this.number);
    this.wire.response(response.status, this.number);
    if (response.status === 204) throw new TypeError("the end was read already");
    this.become("reading");
    let isFirst = this.broken;
    for await (const block of blocksOf(response)) {
      if (signal.aborted) return;
      this.tries = 0;
      const event = parse(block);
      this.wire.frame(block, event);
      if (!event.data) continue;
      const isNew = this.take(event);
      if (isFirst && event.id && isNew) {
        isFirst = false;
        this.broken = false;
        this.wire.note("resumed", `The stream goes on after entry ${after}. ${replayed(isNew)}`);
        this.mark("resume", { entry: after, replayed: isNew });
      }
      if (this.log.end) return;
    }
  }

  /** How many entries were new. */
  take({ name, id, data }) {
    const content = JSON.parse(data);
    const entry = id === null ? null : Number(id.split(":").pop());
    if (name === "token") {
      const count = this.log.takeTokens(content, entry);
      if (count) this.on.entries();
      return count;
    }
    if (name === "done") {
      this.log.takeEnd(content, entry);
      this.on.end(content);
      return 1;
    }
    if (name === "gap") {
      this.log.takeGap(content);
      this.wire.note("gap", `The server has dropped entries ${content.from} to ${content.to}.`);
      this.on.status({ state: "gap", ...content });
    }
    if (name === "status") {
      if (content.state === "recovering") this.mark("engine");
      this.on.status(content);
    }
    return 0;
  }
}

function replayed(count) {
  return `Its first frame carries ${count} ${count === 1 ? "entry" : "entries"}.`;
}

/** A proxy answers 5xx for a server that is out of reach; that is no answer about the tape. */
function isRefusal(error) {
  return error instanceof ServerError && error.status < 500;
}
