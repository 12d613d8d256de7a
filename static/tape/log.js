// What one reader has received of a tape: every entry once, in order.

/**
 * An entry is `{n, text, end, id, token, logprob, top}`: its number, its text, the length of the text
 * up to here, and what the sampler saw. `gaps` are `{from, to}`: entries that the server has dropped.
 */
export class TapeLog {
  constructor() {
    this.entries = [];
    this.text = "";
    this.last = 0; // the last entry that was received, the terminal one too
    this.gaps = [];
    this.missing = 0; // entries that never came
    this.doubles = 0; // entries that came twice
    this.end = null; // the data of the terminal entry
  }

  /** A log that was stored. */
  static of({ json }) {
    const { entries, end, last, gaps } = JSON.parse(json);
    const log = new TapeLog();
    for (const [n, text, id, token, logprob, top] of entries) {
      log.push({
        n, text, id, token, logprob,
        top: top?.map(([altId, altToken, altLogprob]) => ({
          token_id: altId, token: altToken, logprob: altLogprob,
        })),
      });
    }
    Object.assign(log, { end, last, gaps });
    return log;
  }

  /** The form for storage: one text, which the browser copies much faster than 10,000 objects. */
  stored() {
    const entries = this.entries.map(({ n, text, id, token, logprob, top }) => [
      n, text, id, token, logprob,
      top?.map((one) => [one.token_id, one.token, one.logprob]),
    ]);
    return { json: JSON.stringify({ entries, end: this.end, last: this.last, gaps: this.gaps }) };
  }

  /** A `token` frame whose last entry is `last`. Returns how many entries were new. */
  takeTokens({ text, token_ids: ids, logprobs = [] }, last) {
    const first = last - ids.length + 1;
    this.count(first, last);
    if (last <= this.last) return 0;
    const pieces = piecesOf(text, ids.length, logprobs);
    const skipped = Math.max(0, this.last - first + 1);
    for (let place = skipped; place < ids.length; place += 1) {
      const known = logprobs[place];
      this.push({
        n: first + place,
        text: pieces[place],
        id: ids[place],
        token: known?.token ?? null,
        logprob: known?.logprob ?? null,
        top: known?.top,
      });
    }
    this.last = last;
    return ids.length - skipped;
  }

  takeGap({ from, to }) {
    this.gaps.push({ from, to });
    this.last = Math.max(this.last, to);
  }

  takeEnd(data, entry) {
    this.count(entry, entry);
    this.last = Math.max(this.last, entry);
    this.end = data;
  }

  count(first, last) {
    if (first <= this.last) this.doubles += Math.min(last, this.last) - first + 1;
    else this.missing += first - this.last - 1;
  }

  push(entry) {
    this.text += entry.text;
    entry.end = this.text.length;
    this.entries.push(entry);
    this.last = Math.max(this.last, entry.n);
  }

  /** The number of the last entry with a token. */
  get lastToken() {
    return this.entries.at(-1)?.n ?? 0;
  }

  entry(n) {
    return this.entries[this.placeOf(n)]?.n === n ? this.entries[this.placeOf(n)] : null;
  }

  /** Where entry `n` lies, or would lie. */
  placeOf(n) {
    let [low, high] = [0, this.entries.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.entries[middle].n < n) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  textUpTo(n) {
    const place = this.placeOf(n + 1) - 1;
    return place < 0 ? "" : this.text.slice(0, this.entries[place].end);
  }
}

/** The text of each token of a frame: only the logprobs tell where one ends. */
function piecesOf(text, count, logprobs) {
  const tokens = logprobs.map(({ token }) => token);
  if (tokens.length === count && tokens.join("") === text) return tokens;
  return [...Array(count - 1).fill(""), text];
}
