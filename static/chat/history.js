// The history of chats, in this browser's IndexedDB. Every message is a record of its own, so that two
// tabs never overwrite each other's.

export const SCHEMA = 1;

const NAME = "tickertape";

// What brings a database from version n to n + 1. Records are changed, never dropped.
const MIGRATIONS = [
  (database) => {
    database.createObjectStore("conversations", { keyPath: "id" });
    database.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
    database.createObjectStore("logs", { keyPath: "id" });
  },
];

export const NEWER = "This browser's history was written by a newer version of Tickertape. It is untouched. " +
  "New chats last until you close this tab. Update Tickertape to see your history.";
export const UNAVAILABLE = "This browser refuses storage. Chats last until you close this tab. " +
  "Allow storage for this site, or export a chat to keep it.";

/** `problem` is what to tell the user when history is only kept in memory, else null. */
export async function openHistory(outdated) {
  try {
    return { store: new StoredHistory(await open(outdated)), problem: null };
  } catch (error) {
    const problem = error?.name === "VersionError" ? NEWER : UNAVAILABLE;
    return { store: new MemoryHistory(), problem };
  }
}

function open(outdated) {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, SCHEMA);
    request.onupgradeneeded = ({ oldVersion }) => {
      for (const migrate of MIGRATIONS.slice(oldVersion)) migrate(request.result, request.transaction);
    };
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab holds an older history"));
    request.onsuccess = () => {
      const database = request.result;
      // A tab with a newer version must be able to migrate.
      database.onversionchange = () => {
        database.close();
        outdated();
      };
      resolve(database);
    };
  });
}

class StoredHistory {
  constructor(database) {
    this.database = database;
  }

  run(stores, mode, work) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(stores, mode);
      let result;
      transaction.oncomplete = () => resolve(result instanceof IDBRequest ? result.result : result);
      transaction.onerror = () => reject(transaction.error);
      transaction.onabort = () => reject(transaction.error);
      result = work(...[stores].flat().map((name) => transaction.objectStore(name)));
    });
  }

  conversations() {
    return this.run("conversations", "readonly", (store) => store.getAll());
  }

  messages(conversation) {
    return this.run("messages", "readonly", (store) => store.index("conversation").getAll(conversation));
  }

  allMessages() {
    return this.run("messages", "readonly", (store) => store.getAll());
  }

  log(id) {
    return this.run("logs", "readonly", (store) => store.get(id));
  }

  /** Whatever is given is written in one transaction. */
  save({ conversation, messages = [], log }) {
    return this.run(["conversations", "messages", "logs"], "readwrite", (conversations, all, logs) => {
      if (conversation) conversations.put(conversation);
      for (const message of messages) all.put(message);
      if (log) logs.put(log);
    });
  }

  removeMessages(ids) {
    return this.run(["messages", "logs"], "readwrite", (messages, logs) => {
      for (const id of ids) {
        messages.delete(id);
        logs.delete(id);
      }
    });
  }

  remove(id) {
    return this.run(["conversations", "messages", "logs"], "readwrite", (conversations, messages, logs) => {
      conversations.delete(id);
      messages.index("conversation").openCursor(id).onsuccess = ({ target: { result: cursor } }) => {
        if (!cursor) return;
        logs.delete(cursor.value.id);
        cursor.delete();
        cursor.continue();
      };
    });
  }
}

/** Where storage is refused: the same, until the tab is closed. */
class MemoryHistory {
  kept = { conversations: new Map(), messages: new Map(), logs: new Map() };

  async conversations() { return [...this.kept.conversations.values()]; }
  async allMessages() { return [...this.kept.messages.values()]; }
  async log(id) { return this.kept.logs.get(id); }

  async messages(conversation) {
    return [...this.kept.messages.values()].filter((one) => one.conversation === conversation);
  }

  async save({ conversation, messages = [], log }) {
    if (conversation) this.kept.conversations.set(conversation.id, conversation);
    for (const message of messages) this.kept.messages.set(message.id, message);
    if (log) this.kept.logs.set(log.id, log);
  }

  async removeMessages(ids) {
    for (const id of ids) {
      this.kept.messages.delete(id);
      this.kept.logs.delete(id);
    }
  }

  async remove(id) {
    this.kept.conversations.delete(id);
    for (const { id: message } of await this.messages(id)) this.kept.messages.delete(message);
  }
}
