// Markdown that grows: what is complete is put on the page once, only the last block again.

import { colour } from "/static/markdown/highlight.js";
import { block, codeBlock, listItem, tableRow } from "/static/markdown/nodes.js";
import { Lexer } from "/static/vendor/marked/marked.esm.js";

// Bounds for a model's text, which may be hostile: what is beyond them is shown as plain text.
const LARGEST_BLOCK = 16_000; // characters that are parsed again in each frame
const BLOCKS_OF_CHUNK = 12;
const LONGEST_PART = 1000; // characters of code that are laid out at once
const LARGEST_CODE = 400_000;
const MOST_MARKERS = 1500; // *, _, [, ` and their like in one block
const LONGEST_LEAD = 40; // characters of >, -, * or digits that open one line

// The beginning of a list item's marker. Shown alone it would be a paragraph, and end the list above.
const HALF_MARKER = /^[ \t]*(?:\d{1,9}[.)]?|[-*+])[ \t]*$/;

const LEAD = new RegExp(`^[ \\t>*+\\-\\d.)]{${LONGEST_LEAD},}`, "gm");
const MARKERS = /[*_[\]`<~!\\|]/g;

export class MarkdownStream {
  constructor(root) {
    this.root = root;
    this.clear();
  }

  clear() {
    this.root.replaceChildren();
    this.beginChunk();
    this.text = "";
    this.settled = 0; // the text up to here is on the page for good
    this.spare = null; // the last block of the frame before
    this.tail = []; // nodes of the text after it
    this.open = null; // a list, table or code block that goes on growing
    this.plain = null; // a text node, once a block was too much to parse
  }

  /** Blocks lie in chunks: those out of sight are skipped by the browser as a whole. */
  beginChunk() {
    this.chunk?.classList.add("settled");
    this.chunk = document.createElement("div");
    this.chunk.className = "chunk";
    this.root.append(this.chunk);
  }

  /** Shows `text`; cheap where it goes on from what is shown. */
  show(text, isComplete = false) {
    let lines = text.includes("\r") ? text.replace(/\r\n?/g, "\n") : text;
    const lastLine = lines.lastIndexOf("\n") + 1;
    if (!isComplete && HALF_MARKER.test(lines.slice(lastLine))) lines = lines.slice(0, lastLine);
    if (!lines.startsWith(this.text)) this.clear();
    this.text = lines;
    while (this.plain ? this.growPlain() : this.parse(isComplete));
  }

  /** True when there is more to parse. */
  parse(isComplete) {
    const rest = this.text.slice(this.settled);
    const { tokens, length } = this.lexed(rest);
    if (!tokens) {
      this.startPlain();
      return true;
    }
    const isCut = length < rest.length; // at the end of a block
    this.put(tokens, isComplete || isCut);
    return isCut;
  }

  /** The tokens of at least the first block; null when it is too much to parse. */
  lexed(rest) {
    const piece = bounded(rest);
    if (piece === null) return { tokens: null };
    const prefix = this.open?.prefix ?? "";
    try {
      return { tokens: new Lexer({ gfm: true, breaks: true }).lex(prefix + piece), length: piece.length };
    } catch {
      return { tokens: null };
    }
  }

  put(tokens, isComplete) {
    [this.spare] = this.tail;
    this.tail = [];
    const last = isComplete ? tokens.length : tokens.findLastIndex(({ type }) => type !== "space");
    tokens.forEach((token, place) => {
      const carried = place === 0 ? this.open : null;
      if (place < last) this.settle(token, carried);
      else this.grow(token, carried, place === last);
    });
    this.spare?.remove();
    this.spare = null;
  }

  /** Puts a block at the end; where the block of the last frame was, that one is changed. */
  place(node, canChange = true) {
    const { spare } = this;
    this.spare = null;
    if (!spare) {
      this.chunk.append(node);
    } else if (canChange && spare.tagName === node.tagName && spare.className === node.className) {
      spare.replaceChildren(...node.childNodes);
      return spare;
    } else {
      spare.replaceWith(node);
    }
    return node;
  }

  settle(token, carried) {
    const prefix = carried?.prefix.length ?? 0;
    if (carried && carried.type === token.type) {
      carried.finish(token);
    } else {
      const node = block(token);
      if (node) this.place(node, token.type !== "code");
      if (token.type === "code") colour(node.querySelector("code"), node.dataset.language);
    }
    this.open = null;
    this.settled += token.raw.length - prefix;
    if (this.chunk.childElementCount >= BLOCKS_OF_CHUNK && !this.spare) this.beginChunk();
  }

  /** The last block: it may change with every token. */
  grow(token, carried, isLast) {
    if (!isLast) return;
    const growing = GROWING[token.type];
    if (growing) {
      const same = carried && carried.type === token.type;
      const open = same ? carried : new growing(token);
      if (!same) this.place(open.node, false);
      this.open = open;
      this.settled += open.grow(token);
      return;
    }
    const node = block(token);
    if (node) this.tail.push(this.place(node));
  }

  startPlain() {
    for (const node of this.tail) node.remove();
    this.tail = [];
    this.open = null;
    this.plain = document.createTextNode("");
    const holder = document.createElement("p");
    holder.className = "plain";
    holder.append(this.plain);
    this.chunk.append(holder);
  }

  /** Until an empty line: there, a new block begins. True when one does. */
  growPlain() {
    const rest = this.text.slice(this.settled);
    const end = rest.indexOf("\n\n");
    const piece = end < 0 ? rest : rest.slice(0, end);
    this.plain.appendData(piece);
    this.settled += piece.length;
    if (end < 0) return false;
    this.plain = null;
    return true;
  }
}

/** A code block: its text only ever grows. */
class GrowingCode {
  type = "code";
  prefix = "";

  constructor(token) {
    this.node = codeBlock(token);
    this.code = this.node.querySelector("code");
    this.language = token.lang;
    this.done = 0; // characters in parts that are not laid out again
    this.code.replaceChildren();
    this.begin(token.text);
  }

  begin(text) {
    this.text = document.createTextNode(text);
    const part = document.createElement("div");
    part.append(this.text);
    this.code.append(part);
  }

  grow(token) {
    if (token.lang !== this.language) this.relabel(token);
    const text = token.text.slice(this.done);
    if (text.startsWith(this.text.data)) this.text.appendData(text.slice(this.text.length));
    else this.text.data = text;
    const end = this.text.data.lastIndexOf("\n", this.text.length - 2) + 1;
    if (end > LONGEST_PART) this.split(end);
    return 0;
  }

  /** The lines up to `end` are a part of their own. */
  split(end) {
    const rest = this.text.data.slice(end);
    this.text.data = this.text.data.slice(0, end);
    this.done += end;
    this.begin(rest);
  }

  /** The name of the language comes in pieces, too. */
  relabel(token) {
    this.language = token.lang;
    const fresh = codeBlock(token);
    this.node.dataset.language = fresh.dataset.language;
    this.node.querySelector("span").textContent = fresh.querySelector("span").textContent;
    this.node.querySelector("pre").setAttribute("aria-label", fresh.querySelector("pre").getAttribute("aria-label"));
  }

  finish(token) {
    this.grow(token);
    colour(this.code, this.node.dataset.language);
  }
}

/** A list or a table: parts that cannot change any more are kept, and not parsed again. */
class GrowingParts {
  constructor(token) {
    this.node = block(this.withoutParts(token));
    this.holder = this.holderOf(this.node);
    this.unsettled = [];
    this.prefix = "";
  }

  /** Returns how many characters are settled by this. */
  grow(token, keep = 2) {
    const before = this.unsettled;
    this.unsettled = [];
    const parts = this.partsOf(token);
    let settled = 0;
    parts.forEach((part, place) => {
      const node = this.changed(before[place], this.nodeOf(part));
      if (place < parts.length - keep && this.canSettle(part)) settled += this.lengthOf(part);
      else this.unsettled.push(node);
    });
    for (const node of before.slice(parts.length)) node.remove();
    if (settled && !this.prefix) settled += this.opened(token);
    return settled;
  }

  /** To take a part out of a long list and put another in costs much more than to fill it anew. */
  changed(shown, node) {
    if (!shown) {
      this.holder.append(node);
      return node;
    }
    shown.replaceChildren(...node.childNodes);
    shown.className = node.className;
    return shown;
  }

  finish(token) {
    this.grow(token, 0);
  }
}

class GrowingList extends GrowingParts {
  type = "list";

  withoutParts(token) { return { ...token, items: [] }; }
  holderOf(node) { return node; }
  partsOf(token) { return token.items; }
  nodeOf(item) { return listItem(item); }
  canSettle() { return true; }
  lengthOf(item) { return item.raw.length; }
  opened() { return 0; }
}

class GrowingTable extends GrowingParts {
  type = "table";

  withoutParts(token) { return { ...token, rows: [] }; }
  holderOf(node) { return node.querySelector("tbody"); }
  nodeOf(row) { return tableRow(row.cells); }
  canSettle() { return true; }
  lengthOf(row) { return row.length; }

  /** marked does not tell where a row lies: its lines do. */
  partsOf(token) {
    const lines = token.raw.split("\n").slice(2);
    return token.rows.map((cells, place) => ({ cells, length: (lines[place]?.length ?? 0) + 1 }));
  }

  /** Rows that come later are parsed below the same head. */
  opened(token) {
    this.prefix = `${token.raw.split("\n", 2).join("\n")}\n`;
    return this.prefix.length;
  }
}

const GROWING = { code: GrowingCode, list: GrowingList, table: GrowingTable };

/** As much of `text` as may be parsed in one go, up to the end of a block; null when one is too large. */
function bounded(text) {
  const isShort = text.length <= LARGEST_BLOCK;
  if (isShort && isHarmless(text)) return text;
  let good = 0;
  for (const end of blockEnds(text)) {
    if (end > LARGEST_BLOCK && good) break;
    if (!isHarmless(text.slice(good, end))) break;
    good = end;
    if (end > LARGEST_BLOCK) break; // one block of code
  }
  if (good) return text.slice(0, good);
  return startsCode(text) && fenceEnd(text) < 0 ? text : null;
}

/** Where blocks end for certain: at empty lines outside of code, and where code ends. */
function* blockEnds(text) {
  let at = 0;
  while (at < text.length) {
    const rest = text.slice(at);
    if (startsCode(rest)) {
      const end = fenceEnd(rest);
      if (end < 0) return;
      at += end;
      yield at;
      continue;
    }
    const line = rest.indexOf("\n");
    if (line < 0) return;
    at += line + 1;
    if (text[at] === "\n") {
      while (text[at] === "\n") at += 1;
      yield at;
    }
  }
}

const FENCE = /^ {0,3}(`{3,12}(?!`)|~{3,12}(?!~))/;
const startsCode = (text) => FENCE.test(text);

function fenceEnd(text) {
  const [, fence] = FENCE.exec(text);
  const close = new RegExp(`\\n {0,3}${fence}[\`~]*[ \\t]*(?:\\n|$)`).exec(text);
  return close ? close.index + close[0].length : -1;
}

function isHarmless(text) {
  if (startsCode(text)) return text.length < LARGEST_CODE;
  for (const [lead] of text.matchAll(LEAD)) {
    const isRule = /^[ \t]*([-*])(?:[ \t]*\1)+[ \t]*$/.test(lead);
    if (!isRule && lead.replace(/[^>*+-]/g, "").length > 12) return false;
  }
  const marked = text.match(MARKERS);
  return (marked?.length ?? 0) <= MOST_MARKERS;
}
