// marked's tokens -> DOM nodes. No HTML is ever parsed: a tag in the text is shown as text.

import { copyFrom, el, iconButton, ICONS } from "/static/dom.js";
import { safeUrl } from "/static/markdown/urls.js";

const DEEPEST = 12; // levels of lists, quotes and emphasis within each other
const MOST_CELLS = 40; // columns of a table

const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: "\"", apos: "'", nbsp: "\u00a0", mdash: "—", ndash: "–", hellip: "…", copy: "©", rarr: "→", larr: "←", times: "×", deg: "°", middot: "·" };

/** One node for each token; tokens without anything to show give none. */
export function blocks(tokens, depth = 0) {
  if (depth > DEEPEST) return [el("p", {}, tokens.map(({ raw }) => raw).join(""))];
  return tokens.map((token) => block(token, depth)).filter(Boolean);
}

export function block(token, depth = 0) {
  switch (token.type) {
    case "space":
    case "def":
      return null;
    case "heading":
      // The page's own headings end at level 2.
      return el(`h${Math.min(6, token.depth + 2)}`, {}, ...inline(token.tokens, depth + 1));
    case "paragraph":
      return el("p", { dir: "auto" }, ...inline(token.tokens, depth + 1));
    case "text":
      return el("p", { dir: "auto" }, ...inlineOf(token, depth + 1));
    case "code":
      return codeBlock(token);
    case "blockquote":
      return el("blockquote", {}, ...blocks(token.tokens, depth + 1));
    case "list":
      return list(token, depth);
    case "table":
      return table(token, depth);
    case "hr":
      return el("hr");
    default: // HTML, and whatever a later marked may know
      return el("p", { class: "raw" }, token.raw.trimEnd());
  }
}

export function codeBlock({ text, lang }) {
  const language = (lang ?? "").trim().split(/\s+/)[0].toLowerCase().slice(0, 30);
  const code = el("code", {}, text);
  const copy = iconButton(ICONS.copy, "Copy this code", () => copyFrom(copy, code.textContent));
  const bar = el("div", { class: "code-bar" }, el("span", {}, language || "code"), copy);
  const pre = el("pre", { tabIndex: 0, role: "region", "aria-label": `Code, ${language || "no language named"}` }, code);
  return el("div", { class: "code-block", dir: "ltr", data: { language } }, bar, pre);
}

export function list(token, depth = 0) {
  const made = el(token.ordered ? "ol" : "ul", { dir: "auto" });
  if (token.ordered && Number.isSafeInteger(token.start)) made.start = token.start;
  made.append(...token.items.map((item) => listItem(item, depth)));
  return made;
}

export function listItem(item, depth = 0) {
  const made = el("li");
  for (const token of item.tokens) {
    if (token.type === "checkbox") continue;
    if (token.type === "text" && !item.loose) made.append(...inlineOf(token, depth + 1));
    else if (depth >= DEEPEST) made.append(token.raw);
    else made.append(block(token, depth + 1) ?? "");
  }
  if (item.task) {
    const box = el("input", { type: "checkbox", disabled: true, checked: item.checked });
    box.setAttribute("aria-label", item.checked ? "done" : "not done");
    made.prepend(box, " ");
    made.className = "task";
  }
  return made;
}

export function table(token, depth = 0) {
  const head = el("tr", {}, ...token.header.slice(0, MOST_CELLS).map((cell) => tableCell("th", cell, depth)));
  const body = el("tbody", {}, ...token.rows.map((row) => tableRow(row, depth)));
  const made = el("table", {}, el("thead", {}, head), body);
  return el("div", { class: "table-scroll", tabIndex: 0, role: "region", "aria-label": "Table" }, made);
}

export function tableRow(row, depth = 0) {
  return el("tr", {}, ...row.slice(0, MOST_CELLS).map((cell) => tableCell("td", cell, depth)));
}

function tableCell(tag, { tokens, align }, depth) {
  const made = el(tag, align ? { class: `align-${align}` } : {}, ...inline(tokens, depth + 1));
  if (tag === "th") made.scope = "col";
  return made;
}

const inlineOf = (token, depth) => (token.tokens ? inline(token.tokens, depth) : [decoded(token.text)]);

function inline(tokens = [], depth = 0) {
  if (depth > DEEPEST) return [tokens.map(({ raw }) => raw).join("")];
  return tokens.map((token) => span(token, depth + 1));
}

function span(token, depth) {
  switch (token.type) {
    case "strong":
      return el("strong", {}, ...inline(token.tokens, depth));
    case "em":
      return el("em", {}, ...inline(token.tokens, depth));
    case "del":
      return el("del", {}, ...inline(token.tokens, depth));
    case "codespan":
      return el("code", { dir: "ltr" }, token.text);
    case "br":
      return el("br");
    case "link":
      return link(token.href, inline(token.tokens, depth));
    case "image": // never loaded: an address may carry what the conversation says
      return link(token.href, [`🖼 ${token.text || "image"}`]);
    case "escape":
      return document.createTextNode(token.text);
    case "text":
      return token.tokens ? el("span", {}, ...inline(token.tokens, depth)) : decoded(token.text);
    default:
      return document.createTextNode(token.raw);
  }
}

function link(address, content) {
  const href = safeUrl(address);
  if (!href) return el("span", { class: "dead-link", title: "This address is not allowed as a link" }, ...content);
  return el("a", { href, rel: "noopener noreferrer nofollow", target: "_blank" }, ...content);
}

function decoded(text) {
  if (!text.includes("&")) return document.createTextNode(text);
  return document.createTextNode(text.replace(/&(?:#(\d{1,7})|#x([0-9a-f]{1,6})|([a-z]{2,8}));/gi, (all, decimal, hex, name) => {
    if (name) return ENTITIES[name] ?? all;
    const point = decimal ? Number(decimal) : parseInt(hex, 16);
    return point > 0 && point <= 0x10ffff ? String.fromCodePoint(point) : all;
  }));
}
