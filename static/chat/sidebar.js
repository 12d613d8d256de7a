// The list of chats: search, open, rename, delete, export and import.

import { fromJSON, toJSON, toMarkdown } from "/static/chat/transfer.js";
import { announce, button, byId, download, el, iconButton, ICONS } from "/static/dom.js";

export class Sidebar {
  /** `on`: `open(conversation)`, `create()`, `removed(id)`, `renamed(conversation)`, `changed()`. */
  constructor(history, on) {
    Object.assign(this, { history, on });
    this.list = byId("chats");
    this.searchField = byId("chat-search");
    this.current = null; // the id of the chat that is shown, null for none
    this.live = new Set(); // conversations with an answer that runs
    this.conversations = [];
    this.found = null; // ids that match, null for all
    this.searchField.addEventListener("input", () => this.search());
    byId("new-chat").addEventListener("click", () => on.create());
    byId("export-all").addEventListener("click", () => this.exportAll());
    byId("import").addEventListener("click", () => byId("import-file").click());
    byId("import-file").addEventListener("change", ({ target }) => this.import(target));
  }

  async load() {
    const all = await this.history.conversations();
    this.conversations = all.sort((one, other) => other.updated - one.updated);
    this.draw();
    return this.conversations;
  }

  /** By title and by every message. */
  async search() {
    const wanted = this.searchField.value.trim().toLowerCase();
    if (!wanted) {
      this.found = null;
      this.draw();
      return;
    }
    const messages = await this.history.allMessages();
    if (this.searchField.value.trim().toLowerCase() !== wanted) return;
    const has = (text) => text.toLowerCase().includes(wanted);
    this.found = new Set(messages.filter(({ content }) => has(content)).map(({ conversation }) => conversation));
    for (const { id, title } of this.conversations) if (has(title)) this.found.add(id);
    this.draw();
    announce(`${this.found.size} chats found.`);
  }

  draw() {
    const focused = document.activeElement?.closest?.("#chats li")?.dataset.id;
    const shown = this.conversations.filter(({ id }) => !this.found || this.found.has(id));
    this.list.replaceChildren(...shown.map((conversation) => this.row(conversation)));
    const none = byId("no-chats");
    none.hidden = shown.length > 0;
    none.textContent = this.found ? "No chat has these words." : "Your chats are kept in this browser.";
    byId("export-all").disabled = !this.conversations.length;
    if (focused) this.list.querySelector(`[data-id="${CSS.escape(focused)}"] .chat-open`)?.focus();
  }

  row(conversation) {
    const open = el("button", { type: "button", class: "chat-open", title: conversation.title, onclick: () => this.on.open(conversation) },
      el("span", { class: "chat-title" }, conversation.title),
      this.live.has(conversation.id) ? el("span", { class: "chat-when typing" }, "● typing") : el("span", { class: "chat-when" }, when(conversation.updated)));
    if (conversation.id === this.current) open.setAttribute("aria-current", "true");
    const more = iconButton(ICONS.more, `More about ${conversation.title}`, () => this.menu(row, conversation));
    more.setAttribute("aria-expanded", "false");
    const row = el("li", { data: { id: conversation.id } }, open, more);
    return row;
  }

  menu(row, conversation) {
    const more = row.querySelector(".tool");
    const old = row.querySelector(".chat-menu");
    for (const other of this.list.querySelectorAll(".chat-menu")) {
      other.parentElement.querySelector(".tool").setAttribute("aria-expanded", "false");
      other.remove();
    }
    if (old) return;
    const menu = el(
      "div", { class: "chat-menu", role: "group", "aria-label": `About ${conversation.title}` },
      button("Rename", () => this.rename(row, conversation)),
      button("Export as Markdown", () => this.exportMarkdown(conversation)),
      button("Export as JSON", () => this.export([conversation], conversation.title)),
      button("Delete", () => this.askToRemove(row, menu, conversation), { class: "danger" }),
    );
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.menu(row, conversation);
      more.focus();
    });
    more.setAttribute("aria-expanded", "true");
    row.append(menu);
    menu.firstElementChild.focus();
  }

  rename(row, conversation) {
    const field = el("input", { value: conversation.title, class: "chat-rename", maxLength: 120, "aria-label": "New name" });
    let isDone = false;
    const finish = async (isKept) => {
      if (isDone) return;
      isDone = true;
      const title = field.value.trim();
      if (isKept && title && title !== conversation.title) {
        conversation.title = title;
        await this.history.save({ conversation: { ...conversation } });
        this.on.renamed(conversation);
      }
      await this.load();
      this.list.querySelector(`[data-id="${conversation.id}"] .chat-open`)?.focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter") finish(true);
      if (event.key === "Escape") {
        event.stopPropagation();
        finish(false);
      }
    });
    field.addEventListener("blur", () => finish(true));
    row.replaceChildren(field);
    field.select();
  }

  askToRemove(row, menu, conversation) {
    menu.replaceChildren(
      el("p", {}, "Delete this chat?"),
      button("Delete for good", () => this.remove(conversation), { class: "danger" }),
      button("Keep it", () => this.menu(row, conversation)),
    );
    menu.querySelector("button").focus();
  }

  async remove(conversation) {
    await this.history.remove(conversation.id);
    this.on.removed(conversation.id);
    await this.load();
    announce("Chat deleted.");
    byId("new-chat").focus();
  }

  async exportMarkdown(conversation) {
    const messages = await this.history.messages(conversation.id);
    download(`${fileName(conversation.title)}.md`, "text/markdown", toMarkdown(conversation, messages));
  }

  async export(conversations, name) {
    download(`${fileName(name)}.json`, "application/json", await toJSON(this.history, conversations));
  }

  exportAll() {
    return this.export(this.conversations, "tickertape-chats");
  }

  async import(input) {
    const [file] = input.files;
    input.value = "";
    if (!file) return;
    const told = byId("history-problem");
    try {
      const count = await fromJSON(this.history, await file.text());
      told.hidden = true;
      await this.load();
      this.on.changed();
      announce(`${count} chats imported.`);
    } catch (error) {
      told.textContent = error.message;
      told.hidden = false;
    }
  }
}

function when(time) {
  const date = new Date(time);
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday
    ? date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })
    : date.toLocaleDateString([], { day: "numeric", month: "short", year: "numeric" });
}

const fileName = (title) => title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "chat";
