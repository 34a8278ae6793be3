// What a server would do for a page of a static site: show a part of it in a frame, and search the labels.
{
  const asked = new URLSearchParams(location.search);
  const article = document.querySelector("article.feature");

  if (article && asked.get("embed") === "true") {
    document.body.classList.add("embed");
    const remove = (which) => document.querySelectorAll(which).forEach((one) => one.remove());
    remove(".skip, header.top, .way, footer, .beyond, .ranges, .check, .logit tbody tr:nth-child(n + 6)");
    for (const part of ["plots", "activations"]) {
      if (asked.get(`embed${part}`) === "false") remove(`[data-part="${part}"]`);
    }
    const title = article.querySelector("h1");
    if (asked.get("embedexplanation") === "false") title?.classList.add("unseen");
    const address = article.querySelector(".address");
    if (address && asked.get("embedlink") !== "false") {
      const link = Object.assign(document.createElement("a"), { target: "_blank", rel: "noopener" });
      link.href = location.href.split(/[?#]/)[0];
      link.append(...address.childNodes);
      address.append(link);
    }
  }

  const rows = document.querySelector("#rows");
  if (rows) {
    const form = document.createElement("form");
    form.className = "filters";
    form.setAttribute("role", "search");
    const label = Object.assign(document.createElement("label"), { className: "grow", textContent: "Label or token " });
    const field = Object.assign(document.createElement("input"), { type: "search", autocomplete: "off" });
    label.append(field);
    const found = Object.assign(document.createElement("ol"), { className: "found" });
    const note = Object.assign(document.createElement("p"), { className: "muted" });
    note.setAttribute("aria-live", "polite");
    form.append(label);
    rows.before(form, note, found);
    let loading;

    // Shards are scripts that call: from the disk a browser loads scripts and refuses to read data.
    const waiting = new Map();
    window.gemscopeLabels = (number, shard) => waiting.get(number)?.(shard);
    const read = (number) =>
      new Promise((resolve, reject) => {
        waiting.set(number, resolve);
        const script = Object.assign(document.createElement("script"), { src: `labels/${number}.js`, onerror: reject });
        document.head.append(script);
      });
    const load = async () => {
      const first = await read(0);
      const rest = await Promise.all(Array.from({ length: first.of - 1 }, (_, number) => read(number + 1)));
      return [first, ...rest].flatMap((one) => one.features);
    };

    const search = async () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows.hidden = words.length > 0;
      found.replaceChildren();
      note.textContent = "";
      if (!words.length) return;
      let features;
      try {
        features = await (loading ??= load());
      } catch {
        loading = undefined;
        note.textContent = "The labels could not be read: is the folder beside this page whole?";
        return;
      }
      const has = ([index, label, token]) => {
        const text = `${index} ${label} ${token}`.toLowerCase();
        return words.every((word) => text.includes(word));
      };
      const hits = features.filter(has);
      note.textContent = `${hits.length.toLocaleString("en")} found${hits.length > 100 ? ", 100 shown" : ""}`;
      for (const [index, label, token] of hits.slice(0, 100)) {
        const link = Object.assign(document.createElement("a"), { className: "number", textContent: index });
        link.href = `${index}/index.html`;
        const what = Object.assign(document.createElement("span"), { className: "what" });
        what.textContent = label || (token ? `no label; strongest on “${token.slice(0, 40)}”` : "no label");
        const line = document.createElement("li");
        line.append(link, what);
        found.append(line);
      }
    };

    form.addEventListener("submit", (event) => (event.preventDefault(), search()));
    field.addEventListener("input", search);
  }
}
