// What the sampler saw at one entry: the token's id and probability, and the alternatives.

import { button, el, iconButton, ICONS } from "/static/dom.js";
import { visible } from "/static/tape/strip.js";

/** `on.rewind(n)`, `on.forkAfter(n)` and `on.forkWith(n, alternative)`; `on.close()` when it goes. */
export function tokenCard(entry, on, { canFork }) {
  const title = el("h3", {}, `Entry ${entry.n} `, el("code", {}, visible(entry.token ?? entry.text)));
  const close = iconButton(ICONS.close, "Close", on.close);
  const facts = el(
    "p", { class: "token-facts" },
    `token id ${entry.id ?? "?"}`,
    entry.logprob === null || entry.logprob === undefined ? "" : ` · probability ${percent(entry.logprob)}`,
  );
  const parts = [el("div", { class: "token-head" }, title, close), facts];
  if (entry.top?.length) parts.push(alternatives(entry, on, canFork));
  else parts.push(el("p", { class: "note" }, "This tape carries no probabilities. Set Alternatives in the settings to 1 or more, then ask again."));
  parts.push(el(
    "div", { class: "row" },
    button("Rewind to here", () => on.rewind(entry.n), { class: "quiet" }),
    button("Go on differently after this token", () => on.forkAfter(entry.n), { class: "quiet", disabled: !canFork }),
  ));
  return el("div", { class: "token-card", role: "group", "aria-label": `Entry ${entry.n}` }, ...parts);
}

function alternatives(entry, on, canFork) {
  const rows = entry.top.map((one) => {
    const isChosen = one.token_id === entry.id;
    const bar = el("span", { class: "bar-fill" });
    bar.style.width = `${100 * Math.exp(one.logprob)}%`;
    const choose = isChosen
      ? el("span", { class: "chosen" }, "chosen")
      : button("Use this token", () => on.forkWith(entry.n, one), { class: "quiet small", disabled: !canFork, "aria-label": `Use this token: ${visible(one.token)}` });
    return el(
      "tr", {},
      el("td", {}, el("code", {}, visible(one.token))),
      el("td", { class: "amount" }, percent(one.logprob)),
      el("td", { class: "bar-cell", "aria-hidden": "true" }, bar),
      el("td", {}, choose),
    );
  });
  const head = el("thead", {}, el("tr", {}, ...["Token", "Probability", "", ""].map((name) => el(name ? "th" : "td", name ? { scope: "col" } : {}, name))));
  return el("table", { class: "alternatives" }, head, el("tbody", {}, ...rows));
}

export function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  if (share >= 99.95) return "100 %";
  return share < 0.01 ? "< 0.01 %" : `${share.toFixed(share < 1 ? 2 : 1)} %`;
}
