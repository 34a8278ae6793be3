// <feature-map>: all features as points on a canvas. Its places come in one piece, labels a tile at a time when they are
// near. What is drawn without a script stays in the page for those who need it.
class FeatureMap extends HTMLElement {
  static SIDE = 65536;
  static TILES = 16;
  static BIN = 256; // of the index by which the nearest is found

  async connectedCallback() {
    if (this.canvas || !this.dataset.points) return;
    const data = await FeatureMap.read(this.dataset.points, "arrayBuffer");
    if (!data) return; // the drawing stays
    const count = (this.count = data.byteLength / 8);
    const places = new DataView(data);
    const column = (at) => Float32Array.from({ length: count }, (_, one) => places.getUint16(2 * (at * count + one), true));
    [this.x, this.y] = [column(0), column(1).map((y) => FeatureMap.SIDE - y)];
    const bytes = (at) => new Uint8Array(data, (4 + at) * count, count);
    this.by = { density: bytes(0), strength: bytes(1), label: bytes(2) };
    this.colour = "density";
    this.lit = this.dataset.lit.split(" ").filter(Boolean).map(Number).filter((one) => one < count);
    this.names = [...document.querySelectorAll(".regions li")].map((one) => ({
      x: Number(one.dataset.x), y: FeatureMap.SIDE - one.dataset.y, level: Number(one.dataset.level), text: one.textContent.trim(),
    }));
    this.labels = new Map();
    this.tiles = new Map();
    this.bins = new Map();
    for (let one = 0; one < count; one++) {
      const bin = this.bin(this.x[one], this.y[one]);
      this.bins.has(bin) ? this.bins.get(bin).push(one) : this.bins.set(bin, [one]);
    }
    this.build();
    this.all();
    for (const tile of new Set(this.lit.slice(0, 40).map((one) => this.tile(one)))) this.load(tile).then(() => this.draw());
    const at = this.dataset.at ?? new URLSearchParams(location.search).get("feature");
    if (at !== null) this.go(Number(at), 5);
    else if (this.lit.length && this.lit.length <= 60) this.around(this.lit);
    this.draw();
  }

  // From a server as bytes or JSON; a static site has scripts that call, since from the disk no other thing can be read.
  static async read(url, as) {
    const [, name] = /([^/]+)\.js$/.exec(url) ?? [];
    if (!name) {
      const answer = await fetch(url).catch(() => null);
      return answer?.ok ? answer[as]() : null;
    }
    const content = await new Promise((resolve) => {
      (window.gemscopeMap ??= Object.assign((name, content) => gemscopeMap.waiting.get(name)?.(content), { waiting: new Map() })).waiting.set(name, resolve);
      document.head.append(Object.assign(document.createElement("script"), { src: url, onerror: () => resolve(null) }));
    });
    return as === "arrayBuffer" && content ? Uint8Array.from(atob(content), (one) => one.charCodeAt(0)).buffer : content;
  }

  bin(x, y) {
    return (y >> 8) * FeatureMap.BIN + (x >> 8);
  }

  build() {
    const make = (tag, said, ...inside) => {
      const one = Object.assign(document.createElement(tag), said);
      one.append(...inside);
      return one;
    };
    this.canvas = make("canvas", { tabIndex: 0 });
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-label", "Map of features: arrow keys go from one to the next, Enter opens it");
    this.told = make("p", { className: "told" });
    this.told.setAttribute("role", "status");
    const press = (text, said, act) => {
      const button = make("button", { type: "button", textContent: text });
      button.setAttribute("aria-label", said);
      button.addEventListener("click", act);
      return button;
    };
    const choice = make("select");
    choice.setAttribute("aria-label", "What colours stand for");
    for (const [value, text] of [["density", "by density"], ["strength", "by maximum"], ["label", "by label's score"]]) choice.append(make("option", { value, textContent: text }));
    choice.addEventListener("change", () => this.draw((this.colour = choice.value)));
    const middle = () => [this.canvas.clientWidth / 2, this.canvas.clientHeight / 2];
    this.scale = make("p", { className: "scale" });
    this.scale.append("low", make("i"), "high");
    const tools = make("div", { className: "tools" }, choice, press("+", "Zoom in", () => this.zoom(1.6, ...middle())), press("−", "Zoom out", () => this.zoom(1 / 1.6, ...middle())), press("⤢", "Show everything", () => this.draw(this.all())));
    this.querySelector("svg")?.remove();
    this.append(this.canvas, this.scale, tools, this.told);
    this.say();
    this.listen();
    let known = false;
    new ResizeObserver(() => {
      if (known && this.whole) this.all();
      known = true;
      this.draw();
    }).observe(this.canvas);
    document.addEventListener("gemscope:theme", () => this.draw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  // --- where things are: screen = place * k + (ox, oy)

  all() {
    const { clientWidth: wide, clientHeight: high } = this.canvas;
    this.least = this.k = Math.min(wide, high - 36) / (FeatureMap.SIDE * 1.04);
    this.ox = (wide - FeatureMap.SIDE * this.k) / 2;
    this.oy = (high - 36 - FeatureMap.SIDE * this.k) / 2;
    this.whole = true;
  }

  around(some) {
    const [xs, ys] = [some.map((one) => this.x[one]), some.map((one) => this.y[one])];
    const [left, right, top, low] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const { clientWidth: wide, clientHeight: high } = this.canvas;
    this.k = Math.max(this.least, Math.min(this.least * 12, 0.7 * Math.min(wide / (right - left + 1), high / (low - top + 1))));
    this.ox = wide / 2 - ((left + right) / 2) * this.k;
    this.oy = high / 2 - ((top + low) / 2) * this.k;
    this.whole = false;
  }

  zoom(by, x, y) {
    const k = Math.max(this.least * 0.8, Math.min(this.least * 400, this.k * by));
    this.ox = x - (x - this.ox) * (k / this.k);
    this.oy = y - (y - this.oy) * (k / this.k);
    this.k = k;
    this.whole = false;
    this.draw();
  }

  go(one, closer) {
    if (!(one < this.count)) return;
    if (closer && this.k < this.least * closer) this.k = this.least * closer;
    const { clientWidth: wide, clientHeight: high } = this.canvas;
    const [x, y] = [this.x[one] * this.k + this.ox, this.y[one] * this.k + this.oy];
    if (closer || x < 30 || y < 30 || x > wide - 30 || y > high - 66) {
      this.ox = wide / 2 - this.x[one] * this.k;
      this.oy = high / 2 - this.y[one] * this.k;
      this.whole = false;
    }
    this.choose(one);
  }

  nearest(sx, sy, reach) {
    const [x, y, r] = [(sx - this.ox) / this.k, (sy - this.oy) / this.k, reach / this.k];
    let [best, far] = [null, r * r];
    const last = FeatureMap.BIN - 1;
    for (let row = Math.max(0, (y - r) >> 8); row <= Math.min(last, (y + r) >> 8); row++) {
      for (let column = Math.max(0, (x - r) >> 8); column <= Math.min(last, (x + r) >> 8); column++) {
        for (const one of this.bins.get(row * FeatureMap.BIN + column) ?? []) {
          const away = (this.x[one] - x) ** 2 + (this.y[one] - y) ** 2;
          if (away <= far) [best, far] = [one, away];
        }
      }
    }
    return best;
  }

  // The nearest in a direction: what is aside counts as farther.
  towards(dx, dy) {
    if (this.chosen === undefined) {
      const { clientWidth: wide, clientHeight: high } = this.canvas;
      return this.nearest(wide / 2, high / 2, Math.max(wide, high));
    }
    let [best, far] = [null, Infinity];
    for (let one = 0; one < this.count; one++) {
      const [x, y] = [this.x[one] - this.x[this.chosen], this.y[one] - this.y[this.chosen]];
      const [ahead, aside] = [x * dx + y * dy, Math.abs(x * dy) + Math.abs(y * dx)];
      if (ahead <= 0 || aside > ahead * 1.2) continue;
      const away = ahead + 2 * aside;
      if (away < far) [best, far] = [one, away];
    }
    return best;
  }

  // --- what is said of a feature

  choose(one) {
    if (one === this.chosen) return this.draw();
    this.chosen = one;
    this.say();
    this.draw();
    if (one !== undefined) this.load(this.tile(one)).then(() => this.chosen === one && (this.say(), this.draw()));
  }

  tile(one) {
    const part = FeatureMap.SIDE / FeatureMap.TILES;
    return Math.floor((FeatureMap.SIDE - this.y[one]) / part) * FeatureMap.TILES + Math.floor(this.x[one] / part);
  }

  load(tile) {
    if (!this.tiles.has(tile)) {
      const url = this.dataset.tiles.replace(/0(?=\.js(on)?(\?|$))/, tile);
      this.tiles.set(tile, FeatureMap.read(url, "json").catch(() => null).then((found) => {
        const { labels = {}, tokens = {} } = found ?? {};
        for (const [one, text] of Object.entries(labels)) this.labels.set(Number(one), text);
        for (const [one, text] of Object.entries(tokens)) this.labels.set(Number(one), `strongest on “${text.trim()}”`);
      }));
    }
    return this.tiles.get(tile);
  }

  say() {
    const one = this.chosen;
    if (one === undefined) this.told.textContent = this.lit.length ? `${this.lit.length.toLocaleString("en")} lit up. Point at a feature, or press an arrow key.` : "Point at a feature, or press an arrow key.";
    else this.told.textContent = `${one}${this.labels.has(one) ? `: ${this.labels.get(one)}` : this.by.density[one] ? "" : ": never fired"}`;
  }

  address(one) {
    return this.dataset.feature.replace(/0(?=(\/index\.html)?$)/, one);
  }

  // --- pointer, touch, keys

  listen() {
    const { canvas } = this;
    const held = new Map();
    const at = (event) => [event.offsetX, event.offsetY];
    let [moved, apart, chosen] = [0, 0, undefined];
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      try {
        canvas.setPointerCapture(event.pointerId);
      } catch {} // one that is gone already
      held.set(event.pointerId, at(event));
      if (held.size === 1) [moved, chosen] = [0, this.chosen];
    });
    canvas.addEventListener("pointermove", (event) => {
      const here = at(event);
      if (!held.has(event.pointerId)) {
        const one = this.nearest(...here, 14) ?? undefined;
        canvas.style.cursor = one === undefined ? "grab" : "pointer";
        if (one !== this.chosen && (one !== undefined || document.activeElement !== canvas)) this.choose(one);
        return;
      }
      const before = held.get(event.pointerId);
      held.set(event.pointerId, here);
      if (held.size === 2) {
        const [[ax, ay], [bx, by]] = held.values();
        const now = Math.hypot(ax - bx, ay - by);
        if (apart) this.zoom(now / apart, (ax + bx) / 2, (ay + by) / 2);
        apart = now;
        moved = 99;
        return;
      }
      moved += Math.hypot(here[0] - before[0], here[1] - before[1]);
      if (moved < 5) return;
      this.ox += here[0] - before[0];
      this.oy += here[1] - before[1];
      this.whole = false;
      this.draw();
    });
    const up = (event) => {
      held.delete(event.pointerId);
      apart = 0;
      if (event.type !== "pointerup" || moved >= 5) return;
      const one = this.nearest(...at(event), event.pointerType === "touch" ? 24 : 14);
      // The first touch says what it is, the second goes there.
      if (one === null) this.choose(undefined);
      else if (event.pointerType === "touch" && one !== chosen) this.choose(one);
      else if (event.ctrlKey || event.metaKey) open(this.address(one), "_blank", "noopener");
      else location.href = this.address(one);
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-Math.max(-120, Math.min(120, event.deltaY)) / 300), ...at(event));
    }, { passive: false });
    canvas.addEventListener("dblclick", (event) => this.zoom(2, ...at(event)));
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      const middle = this.chosen === undefined ? [canvas.clientWidth / 2, canvas.clientHeight / 2] : [this.x[this.chosen] * this.k + this.ox, this.y[this.chosen] * this.k + this.oy];
      if (way) {
        const one = this.towards(...way);
        if (one !== null) this.go(one);
      } else if (event.key === "Enter" && this.chosen !== undefined) location.href = this.address(this.chosen);
      else if (event.key === "+" || event.key === "=") this.zoom(1.6, ...middle);
      else if (event.key === "-" || event.key === "−") this.zoom(1 / 1.6, ...middle);
      else if (event.key === "0" || event.key === "Home") this.draw(this.all());
      else if (event.key === "n" && this.lit.length) this.go(this.lit[(this.lit.indexOf(this.chosen) + 1) % this.lit.length], 3);
      else if (event.key === "Escape") this.choose(undefined);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
  }

  // --- drawing, once for all that happens before the next frame

  draw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.paint();
    });
  }

  paint() {
    const { canvas, k, ox, oy } = this;
    const dense = devicePixelRatio || 1;
    const [wide, high] = [canvas.clientWidth, canvas.clientHeight];
    if (!wide) return;
    if (canvas.width !== Math.round(wide * dense) || canvas.height !== Math.round(high * dense)) [canvas.width, canvas.height] = [Math.round(wide * dense), Math.round(high * dense)];
    const pen = canvas.getContext("2d");
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    pen.clearRect(0, 0, wide, high);
    const style = getComputedStyle(this);
    const probe = (name) => {
      this.told.style.color = `var(${name})`;
      const found = getComputedStyle(this.told).color;
      this.told.style.color = "";
      return found;
    };
    const [ink, card, gone, lit] = ["--ink", "--card", "--gone", "--lit"].map(probe);
    const shades = this.shades(["--low", "--middle", "--high"].map(probe));
    const zoomed = k / this.least;
    const size = Math.max(1.6, Math.min(9, 1.9 * zoomed ** 0.4 * Math.min(1.5, Math.sqrt(9000 / this.count) + 0.45)));
    const values = this.by[this.colour];
    const classes = Array.from({ length: shades.length + 1 }, () => []);
    const seen = [];
    for (let one = 0; one < this.count; one++) {
      const [x, y] = [this.x[one] * k + ox, this.y[one] * k + oy];
      if (x < -size || y < -size || x > wide + size || y > high + size) continue;
      seen.push(one);
      classes[values[one] ? 1 + Math.floor(((values[one] - 1) * shades.length) / 255) : 0].push(x, y);
    }
    classes.forEach((points, shade) => {
      pen.fillStyle = shade ? shades[shade - 1] : gone;
      pen.globalAlpha = this.lit.length ? 0.35 : shade ? 0.8 : 0.6;
      for (let at = 0; at < points.length; at += 2) pen.fillRect(points[at] - size / 2, points[at + 1] - size / 2, size, size);
    });
    pen.globalAlpha = 1;
    const ring = (one, r, colour, full) => {
      pen.beginPath();
      pen.arc(this.x[one] * k + ox, this.y[one] * k + oy, r, 0, 7);
      [pen.fillStyle, pen.strokeStyle, pen.lineWidth] = [colour, full ? card : colour, full ? 1 : 2];
      if (full) pen.fill();
      pen.stroke();
    };
    for (const one of this.lit) ring(one, size / 2 + 2.5, lit, true);
    if (this.chosen !== undefined) ring(this.chosen, size / 2 + 5, ink, false);
    this.words(pen, style, { ink, card, seen, size, wide, high, zoomed });
  }

  // Nine steps from one colour over a second to a third.
  shades(colours) {
    const parts = colours.map((colour) => colour.match(/[\d.]+/g).slice(0, 3).map(Number));
    return Array.from({ length: 9 }, (_, step) => {
      const [from, to, share] = step < 5 ? [parts[0], parts[1], step / 4] : [parts[1], parts[2], (step - 4) / 4];
      return `rgb(${from.map((one, at) => Math.round(one + (to[at] - one) * share)).join(" ")})`;
    });
  }

  words(pen, style, { ink, card, seen, size, wide, high, zoomed }) {
    const { k, ox, oy } = this;
    const near = seen.length <= 220 && zoomed > 3;
    if (near) for (const tile of new Set(seen.map((one) => this.tile(one)))) if (!this.tiles.has(tile)) this.load(tile).then(() => this.draw());
    const said = [];
    const add = (x, y, text, weight, first) => text && said.push({ x, y, text: text.length > 44 ? `${text.slice(0, 43).trimEnd()}…` : text, weight, first });
    const spot = (one) => [this.x[one] * k + ox, this.y[one] * k + oy - size / 2 - 5];
    if (this.chosen !== undefined) add(...spot(this.chosen), this.labels.get(this.chosen) ?? `${this.chosen}`, 600, true);
    for (const one of this.lit.slice(0, 40)) if (this.labels.has(one)) add(...spot(one), this.labels.get(one), 400);
    if (near) for (const one of [...seen].sort((a, b) => this.by.label[b] - this.by.label[a])) add(...spot(one), this.labels.get(one), 400);
    else {
      const level = zoomed < 1.4 ? 1 : 2;
      for (const one of this.names) if (one.level <= level) add(one.x * k + ox, one.y * k + oy, one.text, one.level ? 400 : 600);
    }
    const taken = [[wide - 240, 0, wide, 44], [0, high - 36, wide, high]];
    pen.textAlign = "center";
    pen.lineJoin = "round";
    [pen.lineWidth, pen.strokeStyle, pen.fillStyle] = [4, card, ink];
    for (const { x, y, text, weight, first } of said) {
      pen.font = `${weight} 12.5px ${style.fontFamily}`;
      const half = pen.measureText(text).width / 2;
      const middle = Math.max(half + 6, Math.min(wide - half - 6, x));
      const box = [middle - half - 4, y - 14, middle + half + 4, y + 5];
      if (!first && (y < 12 || y > high || x < -20 || x > wide + 20 || taken.some((one) => box[0] < one[2] && box[2] > one[0] && box[1] < one[3] && box[3] > one[1]))) continue;
      taken.push(box);
      pen.strokeText(text, middle, y);
      pen.fillText(text, middle, y);
    }
  }
}
customElements.get("feature-map") || customElements.define("feature-map", FeatureMap);
