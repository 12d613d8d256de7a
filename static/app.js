// The page: puts the views, the history, the panels and the server's lamp together.

import { openHistory } from "/static/chat/history.js";
import { Composer } from "/static/chat/composer.js";
import { ConversationView } from "/static/chat/conversation.js";
import { listen, showHelp } from "/static/chat/keyboard.js";
import { Settings } from "/static/chat/settings.js";
import { Sidebar } from "/static/chat/sidebar.js";
import { CompareView } from "/static/compare.js";
import { CompleteView } from "/static/complete.js";
import { announce, byId } from "/static/dom.js";
import { askForKey, hideKeyField, keyProblem } from "/static/key.js";
import * as server from "/static/server.js";
import { SharedTapeView } from "/static/shared_tape.js";
import { SidePanel } from "/static/side_panel.js";
import { load, save } from "/static/storage.js";
import { WireDrawer } from "/static/wire/drawer.js";

const OPEN_CHAT = "tickertape.open-chat";
const VIEWS = ["chat", "complete", "compare", "tape"];
const STATES = {
  loading: "the model is loading",
  recovering: "the engine is restarting",
  draining: "the server is shutting down",
  unreachable: "the server is out of reach",
};

const model = { chat: true, demo: false, sampling: {} }; // filled in when the server has told
const settings = new Settings(byId("settings-form"));
const wire = new WireDrawer();
const panel = new SidePanel(() => wire.show());
const sharedTape = new URLSearchParams(location.search).get("tape");

let view = "chat";
let isReady = false;

const { store: history, problem } = await openHistory(() => {
  tellHistory("Another tab has a newer version of Tickertape. Reload this tab.");
});
if (problem) tellHistory(problem);

const chat = new ConversationView({ history, settings, model });
const complete = new CompleteView({ settings, model });
const compare = new CompareView({ settings, model });
const composer = new Composer({ send: (text) => chat.ask(text), stop: () => chat.current?.stop() });
const views = { chat, complete, compare };

const sidebar = new Sidebar(history, {
  open: openChat,
  create: newChat,
  removed: (id) => {
    removed.add(id);
    tellOtherTabs();
    if (chat.conversation.id === id) newChat();
  },
  renamed: (conversation) => {
    if (chat.conversation.id === conversation.id) chat.conversation.title = conversation.title;
    tellOtherTabs();
  },
  changed: tellOtherTabs,
});
const removed = new Set();
chat.isRemoved = (id) => removed.has(id);

// ---- chats

async function openChat(conversation) {
  showView("chat");
  closeSidebar();
  await chat.open(conversation);
  save("sessionStorage", OPEN_CHAT, conversation.id);
  showChat();
}

function newChat() {
  showView("chat");
  closeSidebar();
  chat.begin();
  save("sessionStorage", OPEN_CHAT, null);
  showChat();
  byId("prompt").focus();
}

function showChat() {
  sidebar.live = new Set([...chat.answers.values()].filter(({ isLive }) => isLive).map(({ message }) => message.conversation));
  markOpenChat();
  byId("welcome").hidden = !chat.isEmpty;
  byId("chat-title").textContent = chat.isEmpty ? "New chat" : chat.conversation.title;
  document.title = chat.isEmpty ? "Tickertape" : `${chat.conversation.title} · Tickertape`;
  showComposer();
}

function showComposer() {
  const isLive = Boolean(chat.current?.isLive);
  composer.show({ isReady: isReady && model.chat, isLive });
  byId("settings-digest").textContent = settings.digest();
}

chat.addEventListener("saved", async () => {
  if (!chat.isEmpty) save("sessionStorage", OPEN_CHAT, chat.conversation.id);
  await sidebar.load();
  tellOtherTabs();
});
chat.addEventListener("change", showChat);
chat.addEventListener("emptied", () => sidebar.remove(chat.conversation));
chat.addEventListener("change", askForMissingKey);
for (const one of [chat, complete, compare]) {
  if (one === chat) one.addEventListener("current", watchCurrent);
  else one.onCurrent = watchCurrent;
}

function askForMissingKey() {
  if (chat.current?.failure?.status === 401) askForKey();
}

for (const example of document.querySelectorAll(".example")) {
  example.addEventListener("click", () => {
    composer.put(example.textContent.trim());
    composer.send();
  });
}

// ---- other tabs of this browser

const tabs = window.BroadcastChannel ? new BroadcastChannel("tickertape") : null;
let isTold = false;

function tellOtherTabs() {
  if (!isTold) tabs?.postMessage("history");
}

tabs?.addEventListener("message", async () => {
  isTold = true;
  await sidebar.load();
  isTold = false;
});

// ---- views and panels

function showView(name) {
  view = VIEWS.includes(name) ? name : "chat";
  document.documentElement.dataset.view = view;
  for (const one of VIEWS) byId(`view-${one}`).hidden = one !== view;
  for (const link of document.querySelectorAll("[data-tab]")) {
    if (link.dataset.tab === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  markOpenChat();
  watchCurrent();
}

function markOpenChat() {
  sidebar.current = view === "chat" && !chat.isEmpty ? chat.conversation.id : null;
  sidebar.draw();
}

function watchCurrent() {
  const shown = views[view];
  wire.watch(shown?.current ?? shown?.answer ?? null);
}

addEventListener("hashchange", () => showView(location.hash.slice(1) || "chat"));
settings.addEventListener("reveal", () => panel.open("settings"));
settings.addEventListener("change", () => { byId("settings-digest").textContent = settings.digest(); });
byId("settings-digest").addEventListener("click", () => panel.open("settings"));

const closeSidebar = () => {
  document.documentElement.removeAttribute("data-sidebar");
  byId("show-chats").setAttribute("aria-expanded", "false");
};
byId("show-chats").addEventListener("click", () => {
  const isOpen = document.documentElement.dataset.sidebar === "open";
  if (isOpen) closeSidebar();
  else document.documentElement.dataset.sidebar = "open";
  byId("show-chats").setAttribute("aria-expanded", String(!isOpen));
  if (!isOpen) byId("new-chat").focus();
});
byId("sidebar-shade").addEventListener("click", closeSidebar);
byId("show-keys").addEventListener("click", showHelp);

const stop = () => {
  if (document.documentElement.dataset.sidebar === "open") closeSidebar();
  else if (view === "compare") byId("compare-stop").click();
  else (views[view]?.current ?? views[view]?.answer)?.stop();
};
listen({
  Escape: stop,
  "/": () => byId({ chat: "prompt", complete: "prompt-text", compare: "compare-text" }[view] ?? "prompt").focus(),
  n: newChat,
  r: () => {
    const last = chat.current;
    if (view === "chat" && last && !last.isLive) chat.again(last.message);
  },
  "[": () => chat.stepLast(-1),
  "]": () => chat.stepLast(1),
  w: () => panel.toggle("wire"),
  s: () => panel.toggle("settings"),
});

// ---- the server

server.watch(async (state, health) => {
  isReady = state === "ready";
  byId("server").dataset.ready = String(isReady);
  byId("server").dataset.state = state;
  byId("model").textContent = STATES[state] ?? "the server is ready";
  showComposer();
  for (const id of ["complete-send", "compare-send"]) byId(id).disabled = !isReady;
  if (isReady) await introduce();
  else announce(STATES[state] ?? state);
  if (health.engine_pid) chat.current?.reader?.hurry();
});

async function introduce() {
  const { version, model: name, dtype, torch, max_model_len: context } = await server.version();
  if (!isReady) return; // the server has gone meanwhile, and the lamp says so
  byId("model").textContent = [name ?? "model ready", dtype].filter(Boolean).join(" · ");
  const facts = [version && `Tickertape ${version}`, torch && `torch ${torch}`, context && `context ${context} tokens`];
  byId("server").title = facts.filter(Boolean).join(" · ");
  model.max_model_len ??= context;
  try {
    Object.assign(model, { chat: true, demo: false }, await server.model());
  } catch (error) {
    if (error.status !== 401) return;
    byId("key-problem").textContent = keyProblem();
    byId("key-problem").hidden = false;
    askForKey();
    return;
  }
  byId("key-problem").hidden = true;
  hideKeyField();
  settings.introduce(model);
  compare.introduce(model);
  byId("no-chat").hidden = model.chat !== false;
  showComposer();
}

byId("key-field").addEventListener("submit", (event) => {
  event.preventDefault();
  introduce().then(() => {
    const last = chat.current;
    if (last?.failure?.status === 401) chat.again(last.message);
  });
});

function tellHistory(message) {
  byId("history-problem").textContent = message;
  byId("history-problem").hidden = false;
}

// ---- what was open before

if (sharedTape) {
  views.tape = new SharedTapeView(sharedTape, { model, settings });
  views.tape.onCurrent = watchCurrent;
  showView("tape");
} else {
  showView(location.hash.slice(1) || "chat");
}
complete.reattach();
const conversations = await sidebar.load();
const last = conversations.find(({ id }) => id === load("sessionStorage", OPEN_CHAT));
if (last && !sharedTape) await chat.open(last);
showChat();
document.documentElement.dataset.loaded = "true";
