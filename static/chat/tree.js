// A conversation is a tree of messages: an edit or a new answer is a sibling, and nothing is lost.

/** A message is `{id, conversation, parent, role, content, created, ...}`; `parent` is null at the top. */
export class Tree {
  /** `chosen` maps a message's id ("" at the top) to the child that is shown. */
  constructor(messages = [], chosen = {}) {
    this.messages = new Map();
    this.children = new Map();
    this.chosen = { ...chosen };
    for (const message of [...messages].sort((one, other) => one.created - other.created)) {
      this.insert(message);
    }
  }

  insert(message) {
    this.messages.set(message.id, message);
    const key = message.parent ?? "";
    if (!this.children.has(key)) this.children.set(key, []);
    this.children.get(key).push(message);
  }

  /** Adds a message and shows it. */
  add(message) {
    this.insert(message);
    this.choose(message);
  }

  choose(message) {
    this.chosen[message.parent ?? ""] = message.id;
  }

  /** The message and all that follow it, in every branch. */
  below(message) {
    const found = [message];
    for (const one of found) found.push(...(this.children.get(one.id) ?? []));
    return found;
  }

  /** Takes away a message and all that follow it; returns them. */
  remove(message) {
    const gone = this.below(message);
    for (const { id, parent } of gone) {
      this.messages.delete(id);
      delete this.chosen[id];
      const key = parent ?? "";
      this.children.set(key, this.children.get(key).filter((one) => one.id !== id));
    }
    return gone;
  }

  siblings(message) {
    return this.children.get(message.parent ?? "") ?? [];
  }

  /** The message `step` places further among its siblings, or null. */
  neighbour(message, step) {
    const all = this.siblings(message);
    return all[all.indexOf(message) + step] ?? null;
  }

  /** The messages that are shown, from the first to the last. */
  path() {
    const shown = [];
    for (let key = ""; ;) {
      const all = this.children.get(key);
      if (!all?.length) return shown;
      const message = all.find(({ id }) => id === this.chosen[key]) ?? all.at(-1);
      shown.push(message);
      key = message.id;
    }
  }

  /** The messages above `message`, from the first on. */
  above(message) {
    const found = [];
    for (let at = this.messages.get(message.parent); at; at = this.messages.get(at.parent)) {
      found.unshift(at);
    }
    return found;
  }
}

/** What the model is asked. An answer without text is left out, and the question it belongs to. */
export function turnsOf(messages, system) {
  const turns = system.trim() ? [{ role: "system", content: system.trim() }] : [];
  messages.forEach((message, place) => {
    const answer = messages[place + 1];
    const isUnanswered = answer && !answer.content.trim();
    if (message.role === "user" && isUnanswered) return;
    if (message.role === "assistant" && !message.content.trim()) return;
    turns.push({ role: message.role, content: message.content });
  });
  return turns;
}

export function titleOf(text) {
  const line = text.trim().replace(/\s+/g, " ");
  return line.length > 48 ? `${line.slice(0, 47)}…` : line || "Empty chat";
}
