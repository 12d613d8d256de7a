// Small helpers to build DOM nodes. Text always becomes a text node, never HTML.

export const byId = (id) => document.getElementById(id);

/** `properties` are set on the element; `class`, `data` and names with a dash are treated by kind. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === "class") made.className = value;
    else if (name === "data") Object.assign(made.dataset, value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function button(label, onclick, properties = {}) {
  return el("button", { type: "button", onclick, ...properties }, label);
}

const SVG = "http://www.w3.org/2000/svg";

/** A small line icon; `path` is SVG path data in a box of 20 x 20. */
export function icon(path) {
  const svg = document.createElementNS(SVG, "svg");
  const line = document.createElementNS(SVG, "path");
  const box = { viewBox: "0 0 20 20", width: 16, height: 16, "aria-hidden": "true", class: "icon" };
  for (const [name, value] of Object.entries(box)) svg.setAttribute(name, value);
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

export const ICONS = {
  copy: "M7 7V4.5A1.5 1.5 0 0 1 8.5 3h7A1.5 1.5 0 0 1 17 4.5v7a1.5 1.5 0 0 1-1.5 1.5H13M4.5 7h7A1.5 1.5 0 0 1 13 8.5v7a1.5 1.5 0 0 1-1.5 1.5h-7A1.5 1.5 0 0 1 3 15.5v-7A1.5 1.5 0 0 1 4.5 7z",
  again: "M16 10a6 6 0 1 1-2-4.5M16 3v3.5h-3.5",
  edit: "M4 16l.7-3.2L13.5 4a1.4 1.4 0 0 1 2 0l.5.5a1.4 1.4 0 0 1 0 2L7.2 15.3z",
  previous: "M12 5l-5 5 5 5",
  next: "M8 5l5 5-5 5",
  cut: "M6 8a2 2 0 1 0 0-4 2 2 0 0 0 0 4zm0 8a2 2 0 1 0 0-4 2 2 0 0 0 0 4zM7.6 7.2L17 14M7.6 12.8L17 6",
  pause: "M7 4.5v11M13 4.5v11",
  play: "M6.5 4.5v11l9-5.5z",
  readers: "M3 4.5h6.5V16H3zM12 4.5h5V16h-5M5 8h2.5M5 11h2.5",
  fork: "M5 3v14M5 11c6 0 10-1 10-6M12 7l3-3 3 3",
  code: "M7 6l-4 4 4 4M13 6l4 4-4 4",
  kill: "M10 2.5l7.5 14h-15zM10 8v4M10 14v.5",
  menu: "M3 5h14M3 10h14M3 15h14",
  check: "M4 10.5l4 4 8-9",
  down: "M10 4v12M5 11l5 5 5-5",
  trash: "M4 6h12M8 6V4h4v2M6 6l.7 10h6.600L14 6",
  more: "M4 10h1.2M9.4 10h1.200M14.8 10h1.2",
  close: "M5 5l10 10M15 5L5 15",
  tape: "M2.5 6.5h15v7h-15zM5 8.5h.01M8.5 8.5h.01M12 8.5h.01M15.5 8.5h.01M5 11.5h.01M8.5 11.5h.01M12 11.5h.01M15.5 11.5h.01",
  heat: "M3 15h2.5V9H3zM8.5 15H11V5H8.5zM14 15h2.500v-4H14z",
};

/** A button that shows an icon; screen readers and the tooltip get `label`. */
export function iconButton(path, label, onclick, properties = {}) {
  const made = button(icon(path), onclick, { class: "tool", title: label, ...properties });
  made.setAttribute("aria-label", label);
  return made;
}

/** Screen readers hear the start and the end of an answer, never each token. */
export function announce(message) {
  byId("announcer").textContent = message;
}

/** Calls `work` once in the next frame, however often it is asked for before. */
export function oncePerFrame(work) {
  let frame = null;
  const run = () => {
    frame = null;
    work();
  };
  const ask = () => { frame ??= requestAnimationFrame(run); };
  ask.now = () => {
    if (frame !== null) cancelAnimationFrame(frame);
    run();
  };
  ask.cancel = () => {
    if (frame !== null) cancelAnimationFrame(frame);
    frame = null;
  };
  return ask;
}

/** Calls `work` at once, then at most every `milliseconds`, however often it is asked for. */
export function seldom(milliseconds, work) {
  const frame = oncePerFrame(work);
  let timer = null;
  const ask = () => {
    timer ??= setTimeout(() => {
      timer = null;
      frame();
    }, milliseconds);
  };
  ask.now = frame.now;
  ask.cancel = () => {
    clearTimeout(timer);
    timer = null;
    frame.cancel();
  };
  return ask;
}

/** The clipboard API exists on https and localhost only; a plain http host still has the selection. */
export async function copyText(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = el("textarea", { value: text, class: "visually-hidden" });
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  if (!isCopied) throw new Error("refused");
}

/** Copies, and shows on the icon button for a moment whether it worked. */
export async function copyFrom(pressed, text) {
  if (pressed.dataset.copied) return;
  const before = { label: pressed.title, shown: [...pressed.childNodes] };
  const isCopied = await copyText(text).then(() => true, () => false);
  const told = isCopied ? "Copied" : "The browser refused to copy. Select the text and copy it yourself.";
  announce(told);
  pressed.dataset.copied = String(isCopied);
  rename(pressed, told, icon(isCopied ? ICONS.check : ICONS.close));
  setTimeout(() => {
    delete pressed.dataset.copied;
    rename(pressed, before.label, ...before.shown);
  }, 1500);
}

function rename(pressed, label, ...shown) {
  pressed.title = label;
  pressed.setAttribute("aria-label", label);
  pressed.replaceChildren(...shown);
}

export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** A random id, also on a plain http host, where crypto.randomUUID is missing. */
export function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(12))]
    .map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
