// A classic script in the head: the saved theme, and which panel is open, must stand before the first paint.
(() => {
  const KEY = "tickertape.theme";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");

  const saved = (key) => {
    try { return localStorage.getItem(key); } catch { return null; }
  };
  const save = (theme) => {
    try { localStorage.setItem(KEY, theme); } catch { /* the choice lasts until the page closes */ }
  };
  const current = () => root.dataset.theme ?? (system.matches ? "dark" : "light");

  const theme = saved(KEY);
  if (theme === "dark" || theme === "light") root.dataset.theme = theme;

  const isWide = matchMedia("(min-width: 75rem)").matches;
  root.dataset.panel = isWide ? saved("tickertape.panel") ?? "wire" : "none";

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const mark = () => button.setAttribute("aria-pressed", String(current() === "dark"));
    button.addEventListener("click", () => {
      root.dataset.theme = current() === "dark" ? "light" : "dark";
      save(root.dataset.theme);
      mark();
    });
    system.addEventListener("change", mark);
    mark();
  });
})();
