// The table of tapes. Rows stay where they are while they are shown, and so does the keyboard's focus.

import { element } from "/static/dashboard/chart.js";
import { figure, NONE } from "/static/format.js";

export class Rows {
  /** `cancel` takes a tape's id and resolves when the server has taken it, or throws why not. */
  constructor({ table, region, rest, none, cancel, failed }) {
    Object.assign(this, { table, region, rest, none, cancel, failed });
    this.body = table.tBodies[0];
    this.shown = new Map(); // by tape
  }

  show(tapes, leftOut) {
    const focused = document.activeElement;
    const held = this.body.contains(focused) ? focused : null;
    this.removeAllBut(new Set(tapes.map(({ tape }) => tape)));
    tapes.forEach((tape, place) => this.put(this.updated(tape), place));
    this.table.hidden = !tapes.length;
    this.none.hidden = tapes.length > 0;
    this.table.classList.toggle("with-keys", tapes.some(({ owner }) => owner));
    this.rest.hidden = !leftOut;
    this.rest.textContent = `And ${leftOut} more.`;
    if (held) this.keepFocus(held);
  }

  removeAllBut(tapes) {
    for (const [tape, row] of this.shown) {
      if (tapes.has(tape)) continue;
      row.element.remove();
      this.shown.delete(tape);
    }
  }

  /** Moves it only when it is elsewhere: what is moved loses the focus. */
  put(row, place) {
    const there = this.body.rows[place];
    if (there !== row.element) this.body.insertBefore(row.element, there ?? null);
  }

  keepFocus(held) {
    const usable = held.isConnected && !held.hidden;
    if (usable) held.focus({ preventScroll: true });
    else this.region.focus({ preventScroll: true });
  }

  updated(tape) {
    const row = this.shown.get(tape.tape) ?? this.made(tape);
    row.element.dataset.state = tape.status;
    for (const [name, text] of Object.entries(texts(tape))) {
      if (row.cells[name].textContent !== text) row.cells[name].textContent = text;
    }
    row.button.hidden = tape.status === "done";
    return row;
  }

  made({ tape }) {
    const head = element("th");
    head.scope = "row";
    const link = element("a", "", tape);
    link.href = `/?tape=${encodeURIComponent(tape)}`;
    link.title = "Read along";
    const code = element("code");
    code.append(link);
    head.append(code);
    const names = Object.keys(texts({}));
    const cells = Object.fromEntries(names.map((name) => [name, element("td", name)]));
    const last = element("td", "do");
    const button = element("button", "quiet", "Cancel");
    button.type = "button";
    button.setAttribute("aria-label", `Cancel tape ${tape}`);
    button.addEventListener("click", () => this.cancelled(tape, button));
    last.append(button);
    const row = { element: element("tr"), cells, button };
    row.element.append(head, ...Object.values(cells), last);
    this.shown.set(tape, row);
    return row;
  }

  async cancelled(tape, button) {
    if (button.ariaDisabled === "true") return;
    button.ariaDisabled = "true"; // not `disabled`, which would drop the focus
    try {
      await this.cancel(tape);
    } catch (error) {
      button.ariaDisabled = "false";
      this.failed(error.message);
    }
  }
}

function texts(tape) {
  return {
    state: tape.finish_reason ? `${tape.status} (${tape.finish_reason})` : tape.status ?? "",
    tokens: figure(tape.completion_tokens),
    rate: figure(tape.tokens_per_second, 1),
    ttft: figure(tape.ttft_ms),
    age: figure(tape.age_s, 1),
    readers: tape.status === "done" ? NONE : figure(tape.readers),
    prompt: figure(tape.prompt_tokens),
    choices: figure(tape.choices),
    owner: tape.owner ?? "",
  };
}
