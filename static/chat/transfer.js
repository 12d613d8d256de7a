// Export and import of chats: JSON carries everything, Markdown is for reading.

import { SCHEMA } from "/static/chat/history.js";
import { titleOf, Tree } from "/static/chat/tree.js";
import { randomId } from "/static/dom.js";

const KIND = "tickertape-chats";

export async function toJSON(store, conversations) {
  const chats = await Promise.all(conversations.map(async (conversation) => ({
    conversation,
    messages: await store.messages(conversation.id),
  })));
  return JSON.stringify({ kind: KIND, schema: SCHEMA, exported: new Date().toISOString(), chats }, null, 2);
}

/** The branch that is shown. */
export function toMarkdown(conversation, messages) {
  const parts = [`# ${conversation.title}`];
  if (conversation.system) parts.push(`> ${conversation.system.replaceAll("\n", "\n> ")}`);
  for (const { role, content } of new Tree(messages, conversation.chosen).path()) {
    parts.push(`## ${role === "user" ? "You" : "Answer"}`, content);
  }
  return `${parts.join("\n\n")}\n`;
}

/**
 * Adds the chats of a file; those that are here already come as copies. Returns how many there were.
 * Throws Error with what to tell the user: then nothing was changed.
 */
export async function fromJSON(store, text) {
  const { schema, chats } = checked(text);
  if (schema > SCHEMA) {
    throw new Error(`This file was written by a newer version of Tickertape (format ${schema}; this one reads ${SCHEMA}). Nothing was imported. Update Tickertape, then import it again.`);
  }
  const copies = chats.map(copied);
  for (const { conversation, messages } of copies) await store.save({ conversation, messages });
  return copies.length;
}

function checked(text) {
  const wrong = (why) => new Error(`This file is no export of Tickertape: ${why}. Nothing was imported. Choose a .json file that "Export" has written.`);
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw wrong("it is not JSON");
  }
  if (file?.kind !== KIND) throw wrong(`its "kind" is not "${KIND}"`);
  if (!Number.isInteger(file.schema) || !Array.isArray(file.chats)) throw wrong("a part is missing");
  for (const chat of file.chats) {
    if (typeof chat?.conversation !== "object" || !Array.isArray(chat.messages)) throw wrong("a chat in it is damaged");
  }
  return file;
}

/** With new ids, and only with what we know: the file is anybody's. */
function copied({ conversation, messages }) {
  const ids = new Map(messages.map(({ id }) => [id, randomId()]));
  const id = randomId();
  const chosen = Object.entries(conversation.chosen ?? {})
    .filter(([parent, child]) => (parent === "" || ids.has(parent)) && ids.has(child))
    .map(([parent, child]) => [ids.get(parent) ?? "", ids.get(child)]);
  const now = Date.now();
  return {
    conversation: {
      id,
      schema: SCHEMA,
      title: titleOf(String(conversation.title ?? "")),
      system: String(conversation.system ?? ""),
      created: Number(conversation.created) || now,
      updated: Number(conversation.updated) || now,
      chosen: Object.fromEntries(chosen),
    },
    messages: messages.map((message, place) => ({
      id: ids.get(message.id),
      conversation: id,
      parent: ids.get(message.parent) ?? null,
      role: message.role === "user" ? "user" : "assistant",
      content: String(message.content ?? ""),
      created: Number(message.created) || now + place,
      status: "done",
      tape: null, // the tape belongs to the server that it was made on
      finish: typeof message.finish === "string" ? message.finish : null,
      usage: message.usage ?? null,
      timings: message.timings ?? null,
    })),
  };
}
