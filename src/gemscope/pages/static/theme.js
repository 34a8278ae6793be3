// Light or dark: the system's choice unless the reader made one here. It runs before the page is drawn, so nothing flashes.
{
  const root = document.documentElement;
  const kept = (name, value) => {
    try {
      return value === undefined ? localStorage.getItem(name) : localStorage.setItem(name, value);
    } catch {
      return null; // a frame without an origin keeps nothing
    }
  };
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const chosen = kept("gemscope.theme");
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;

  document.addEventListener("DOMContentLoaded", () => {
    for (const button of document.querySelectorAll("[data-theme-switch]")) {
      const say = () => button.setAttribute("aria-label", dark() ? "Use the light theme" : "Use the dark theme");
      button.hidden = false;
      say();
      button.addEventListener("click", () => {
        root.dataset.theme = dark() ? "light" : "dark";
        kept("gemscope.theme", root.dataset.theme);
        say();
        document.dispatchEvent(new Event("gemscope:theme"));
      });
    }
  });
}
