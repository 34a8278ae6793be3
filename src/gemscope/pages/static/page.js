// Keys that turn pages and go to the search box, and how much of each text the reader chose to see, remembered.
{
  const kept = (name, value) => {
    try {
      return value === undefined ? localStorage.getItem(name) : localStorage.setItem(name, value);
    } catch {
      return null;
    }
  };

  // In somebody else's frame a press counts where the browser vouches that the button could be seen. Elsewhere the form
  // does what it does without scripts: it opens a page of ours, filled in.
  if (self !== top && document.body.classList.contains("embed")) {
    const seen = new WeakMap();
    const watch = new IntersectionObserver(
      (found) => found.forEach((one) => seen.set(one.target.form, one.isVisible === true)),
      { trackVisibility: true, delay: 100 },
    );
    for (const button of document.querySelectorAll("form button[type=submit]:not(.unseen)")) watch.observe(button);
    addEventListener("submit", (event) => seen.get(event.target) || event.stopImmediatePropagation(), true);
  }

  // Who waits for the model is told how many are before them.
  let asked = 0;
  document.addEventListener("htmx:config:request", ({ target, detail }) => {
    const busy = target.querySelector(".busy");
    if (!busy) return;
    const name = (detail.ctx.request.headers["x-asked"] = `${performance.timeOrigin}-${++asked}`);
    const said = (busy.dataset.said ??= busy.textContent);
    const watch = setInterval(async () => {
      const { ahead } = await (await fetch(`/queue/${name}.json`)).json();
      busy.textContent = ahead ? `waiting, ${ahead} before you…` : said;
    }, 700);
    target.addEventListener("htmx:finally:request", () => {
      clearInterval(watch);
      busy.textContent = said;
    }, { once: true });
  });

  const typing = (event) => event.target.closest("input:not([type=radio], [type=checkbox]), textarea, select, [contenteditable]");
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || typing(event)) return;
    const box = ["main ", ""].map((where) => document.querySelector(`${where}[role=search] [type=search]`)).find(Boolean);
    if (!box) return;
    event.preventDefault();
    box.focus();
    box.select();
  });

  const turns = { ArrowLeft: "prev", k: "prev", ArrowRight: "next", j: "next", r: "nofollow" };
  document.addEventListener("keydown", (event) => {
    const to = turns[event.key];
    if (!to || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    if (event.target.closest("input, textarea, select, [contenteditable], [tabindex='0']")) return;
    document.querySelector(`.turn a[rel="${to}"]`)?.click();
  });

  const mode = kept("gemscope.mode");
  for (const radio of document.querySelectorAll(".modes input")) {
    if (!/-mode$/.test(radio.name)) continue;
    if (radio.value === mode) radio.checked = true;
    radio.addEventListener("change", () => kept("gemscope.mode", radio.value));
  }
}
