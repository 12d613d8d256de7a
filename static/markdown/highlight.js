// Colours code once it is complete. Grammars are loaded when a block first needs one.

const LONGEST = 12_000; // characters: more would take longer than a frame
const ALIASES = {
  sh: "bash", shell: "bash", console: "bash", zsh: "bash", js: "javascript", mjs: "javascript",
  jsx: "javascript", ts: "typescript", tsx: "typescript", py: "python", python3: "python",
  rb: "ruby", rs: "rust", golang: "go", "c++": "cpp", cc: "cpp", h: "c", cs: "csharp", "c#": "csharp",
  html: "xml", svg: "xml", yml: "yaml", md: "markdown", kt: "kotlin", docker: "dockerfile",
  toml: "ini", make: "makefile",
};
const KNOWN = new Set([
  "bash", "c", "cpp", "csharp", "css", "diff", "dockerfile", "go", "ini", "java", "javascript",
  "json", "kotlin", "lua", "makefile", "markdown", "php", "python", "r", "ruby", "rust", "sql",
  "swift", "typescript", "xml", "yaml",
]);

let core = null;
const loaded = new Map();

/** Replaces the text of `code` by coloured spans, when it has time. */
export function colour(code, language) {
  const text = code.textContent;
  const name = ALIASES[language] ?? language;
  if (!KNOWN.has(name) || text.length > LONGEST) return;
  const idle = window.requestIdleCallback ?? ((work) => setTimeout(work, 50));
  idle(async () => {
    const highlighter = await grammar(name).catch(() => null);
    if (!highlighter || code.textContent !== text) return;
    const result = highlighter.highlight(text, { language: name, ignoreIllegals: true });
    code.replaceChildren(...nodesOf(result._emitter.rootNode.children));
  }, { timeout: 2000 });
}

async function grammar(name) {
  core ??= (await import("/static/vendor/highlight/core.min.js")).default;
  if (!loaded.has(name)) {
    loaded.set(name, import(`/static/vendor/highlight/languages/${name}.min.js`).then((module) => {
      core.registerLanguage(name, module.default);
    }));
  }
  await loaded.get(name);
  return core;
}

/** highlight.js would give HTML; its tree becomes nodes without any HTML in between. */
function nodesOf(children) {
  return children.map((child) => {
    if (typeof child === "string") return document.createTextNode(child);
    const nodes = nodesOf(child.children);
    if (!child.scope) {
      const fragment = document.createDocumentFragment();
      fragment.append(...nodes);
      return fragment;
    }
    const span = document.createElement("span");
    span.className = `hl-${child.scope.split(/[.:]/)[0]}`;
    span.append(...nodes);
    return span;
  });
}
