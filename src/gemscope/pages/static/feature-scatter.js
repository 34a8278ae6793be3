// <feature-scatter>: density against maximum on a canvas. A cell of one feature leads to it, one of several to a table of them.
class FeatureScatter extends HTMLElement {
  connectedCallback() {
    if (this.canvas || !this.dataset.cells) return;
    [this.columns, this.rows] = this.dataset.grid.split(" ").map(Number);
    this.extent = this.dataset.extent.split(" ").map(Number);
    this.cells = new Map();
    let at = 0;
    this.most = 1;
    for (const cell of this.dataset.cells.split(" ")) {
      const [gap, count, one] = cell.split(",").map(Number);
      this.cells.set((at += gap), { count, one });
      this.most = Math.max(this.most, count);
    }
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", "Features by density and maximum; the table beside it says how they are spread");
    this.note = document.createElement("p");
    this.note.className = "muted under";
    this.note.textContent = "Point at a cell.";
    this.prepend(this.canvas, this.note);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    this.canvas.addEventListener("click", (event) => {
      this.point(event);
      if (this.near) location.href = this.address(this.near);
    });
    const draw = () => this.draw();
    new ResizeObserver(draw).observe(this.canvas);
    document.addEventListener("gemscope:theme", draw);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  }

  get plot() {
    const { clientWidth: wide, clientHeight: high } = this.canvas;
    return { left: 46, top: 10, wide: wide - 56, high: high - 46 };
  }

  // The bounds of a column's densities, or of a row's maxima.
  across(column) {
    const [left, right] = this.extent;
    return 10 ** (left + (column / this.columns) * (right - left));
  }

  up(row) {
    const [, , low, high] = this.extent;
    return 10 ** (low + (row / this.rows) * (high - low));
  }

  draw() {
    const { canvas, plot, columns, rows } = this;
    const dense = devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * dense;
    canvas.height = canvas.clientHeight * dense;
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(this);
    pen.scale(dense, dense);
    pen.font = `11px ${style.fontFamily}`;
    pen.fillStyle = pen.strokeStyle = style.color;
    const [left, right, low, high] = this.extent;
    const x = (value) => plot.left + ((value - left) / (right - left)) * plot.wide;
    const y = (value) => plot.top + (1 - (value - low) / (high - low)) * plot.high;
    const line = (...points) => {
      pen.beginPath();
      points.forEach(([a, b], index) => pen[index ? "lineTo" : "moveTo"](a, b));
      pen.stroke();
    };
    pen.textAlign = "center";
    for (let power = Math.ceil(left); power <= right; power++) {
      pen.globalAlpha = 0.2;
      line([x(power), plot.top], [x(power), plot.top + plot.high]);
      pen.globalAlpha = 1;
      pen.fillText(`${+(100 * 10 ** power).toPrecision(2)} %`, x(power), plot.top + plot.high + 15);
    }
    pen.textAlign = "right";
    for (let power = Math.ceil(low); power <= high; power++) {
      for (const step of high - low < 2.5 ? [1, 2, 5] : [1]) {
        const value = power + Math.log10(step);
        if (value > high) break;
        pen.globalAlpha = 0.2;
        line([plot.left, y(value)], [plot.left + plot.wide, y(value)]);
        pen.globalAlpha = 1;
        pen.fillText(+(step * 10 ** power).toPrecision(2), plot.left - 6, y(value) + 4);
      }
    }
    pen.textAlign = "left";
    pen.fillText("density →", plot.left, plot.top + plot.high + 32);
    pen.textAlign = "right";
    pen.fillText("↑ max", plot.left + plot.wide, plot.top + plot.high + 32);
    const [wide, tall] = [Math.max(plot.wide / columns, 2.4), Math.max(plot.high / rows, 2.4)];
    pen.fillStyle = getComputedStyle(canvas).color;
    for (const [cell, { count }] of this.cells) {
      pen.globalAlpha = 0.4 + (0.6 * Math.log1p(count)) / Math.log1p(this.most);
      pen.fillRect(...this.corner(cell), wide, tall);
    }
    if (this.near) {
      const [a, b] = this.corner(this.near.cell);
      pen.globalAlpha = 1;
      pen.strokeStyle = style.color;
      pen.lineWidth = 2;
      pen.strokeRect(a - 3, b - 3, wide + 6, tall + 6);
    }
  }

  corner(cell) {
    const { plot, columns, rows } = this;
    const [column, row] = [cell % columns, Math.floor(cell / columns)];
    return [plot.left + (column / columns) * plot.wide, plot.top + (1 - (row + 1) / rows) * plot.high];
  }

  point(event) {
    const before = this.near?.cell;
    this.near = event && this.nearest(event.offsetX, event.offsetY);
    if (this.near?.cell === before) return;
    this.canvas.style.cursor = this.near ? "pointer" : "";
    this.note.textContent = this.near ? this.words(this.near) : "Point at a cell.";
    this.draw();
  }

  nearest(x, y) {
    const { plot, columns, rows } = this;
    const column = Math.floor(((x - plot.left) / plot.wide) * columns);
    const row = Math.floor((1 - (y - plot.top) / plot.high) * rows);
    let best = null;
    for (let dy = -4; dy <= 4; dy++) {
      for (let dx = -4; dx <= 4; dx++) {
        const [a, b] = [column + dx, row + dy];
        const found = a >= 0 && a < columns && b >= 0 && b < rows && this.cells.get(b * columns + a);
        const far = dx * dx + dy * dy;
        if (found && (!best || far < best.far)) best = { ...found, cell: b * columns + a, column: a, row: b, far };
      }
    }
    return best;
  }

  words({ count, one, column, row }) {
    const density = `density about ${+(100 * this.across(column + 0.5)).toPrecision(2)} %`;
    const max = `max about ${+this.up(row + 0.5).toPrecision(3)}`;
    return `${count === 1 ? `Feature ${one}` : `${count} features, ${one} among them`}: ${density}, ${max}`;
  }

  address({ count, one, column, row }) {
    if (count === 1 || !this.dataset.browse) return this.dataset.feature.replace(/0(?=(\/index\.html)?$)/, one);
    const short = (value) => value.toPrecision(5);
    const range = {
      min_density: short(this.across(column)),
      max_density: short(this.across(column + 1)),
      min_max: short(this.up(row)),
      max_max: short(this.up(row + 1)),
    };
    return `${this.dataset.browse}?${new URLSearchParams(range)}`;
  }
}
customElements.define("feature-scatter", FeatureScatter);
