// Plots as SVG: axes with ticks, lines, areas and markers, as wide as the page gives them.
"use strict";

const relaxationPlot = (() => {
  const NAMESPACE = "http://www.w3.org/2000/svg";

  // A number as people write it, with a true minus sign.
  function format(value, digits = 3) {
    if (!Number.isFinite(value)) return "–";
    const text = value !== 0 && Math.abs(value) < 1e-3 ? value.toPrecision(1) : Number(value.toPrecision(digits)).toString();
    return text.replace("-", "−");
  }

  // The same with so many decimals, for columns of numbers.
  function fixed(value, decimals) {
    const text = value.toFixed(decimals);
    return (Number(text) === 0 ? (0).toFixed(decimals) : text).replace("-", "−");
  }

  function niceTicks(low, high, wanted) {
    const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= 0.8 * raw);
    const ticks = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) ticks.push(Number((k * step).toPrecision(12)));
    return ticks;
  }

  const decades = (low, high) => {
    const ticks = [];
    for (let k = Math.ceil(Math.log10(low) - 1e-9); 10 ** k <= high * (1 + 1e-9); k++) ticks.push(10 ** k);
    return ticks;
  };

  const SHAPES = {
    circle: (x, y, r) => `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`,
    triangle: (x, y, r) => `M${x},${y - 1.2 * r}L${x + 1.1 * r},${y + 0.8 * r}L${x - 1.1 * r},${y + 0.8 * r}Z`,
    diamond: (x, y, r) => `M${x},${y - r}L${x + r},${y}L${x},${y + r}L${x - r},${y}Z`,
  };

  // `host`: an element. `options`: title (for screen readers), xTitle, yTitle, height, narrowHeight, logY.
  class Plot {
    constructor(host, options) {
      this.host = host;
      this.options = options;
      this.parts = new Map();
      this.x = [0, 1];
      this.y = [0, 1];
      this.svg = this.make("svg", { role: "img", "aria-label": options.title }, host);
      this.axes = this.make("g", { "aria-hidden": "true" });
      const id = `${host.id}-clip`;
      this.clip = this.make("rect", {}, this.make("clipPath", { id }));
      this.marks = this.make("g", { "clip-path": `url(#${id})` });
      this.measure();
    }

    make(tag, attributes, parent = this.svg) {
      const element = document.createElementNS(NAMESPACE, tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      parent.append(element);
      return element;
    }

    // Takes the width that there is; true if it changed.
    measure() {
      const width = Math.max(240, Math.floor(this.host.clientWidth));
      if (width === this.width) return false;
      const narrow = width < 480;
      Object.assign(this, { width, narrow, height: (narrow && this.options.narrowHeight) || this.options.height });
      this.box = { left: narrow ? 40 : 52, right: width - 12, top: 28, bottom: this.height - 44 };
      this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
      this.svg.setAttribute("height", this.height);
      const { left, right, top, bottom } = this.box;
      for (const [name, value] of Object.entries({ x: left, y: top, width: right - left, height: bottom - top })) this.clip.setAttribute(name, value);
      this.drawn = "";
      return true;
    }

    px(x) { return this.box.left + ((x - this.x[0]) / (this.x[1] - this.x[0])) * (this.box.right - this.box.left); }

    py(y) {
      const of = this.options.logY ? Math.log : (v) => v;
      const part = (of(y) - of(this.y[0])) / (of(this.y[1]) - of(this.y[0]));
      return this.box.bottom - part * (this.box.bottom - this.box.top);
    }

    // The data coordinates of a pointer event.
    locate(event) {
      const area = this.svg.getBoundingClientRect(), { left, right, top, bottom } = this.box;
      const across = (event.clientX - area.left - left) / (right - left), up = (bottom - (event.clientY - area.top)) / (bottom - top);
      const [low, high] = this.y.map(this.options.logY ? Math.log : (v) => v);
      const y = low + Math.max(0, Math.min(1, up)) * (high - low);
      return { x: this.x[0] + Math.max(0, Math.min(1, across)) * (this.x[1] - this.x[0]), y: this.options.logY ? Math.exp(y) : y };
    }

    // Axes for these limits; redrawn only when they change.
    limits(x, y) {
      const key = `${x},${y},${this.width}`;
      if (key === this.drawn) return;
      Object.assign(this, { x, y, drawn: key });
      this.axes.replaceChildren();
      const { left, right, top, bottom } = this.box;
      const text = (label, place, more) => { this.make("text", { ...place, ...more }, this.axes).textContent = label; };
      for (const tick of niceTicks(...x, this.width < 400 ? 5 : 8)) {
        const place = this.px(tick);
        this.make("line", { class: "grid", x1: place, x2: place, y1: top, y2: bottom }, this.axes);
        text(format(tick), { x: place, y: bottom + 18 }, { class: "tick", "text-anchor": "middle" });
      }
      const ticks = this.options.logY ? decades(...y) : niceTicks(...y, this.height < 240 ? 5 : 6);
      for (const tick of ticks) {
        const place = this.py(tick);
        this.make("line", { class: "grid", x1: left, x2: right, y1: place, y2: place }, this.axes);
        text(format(tick), { x: left - 7, y: place + 5 }, { class: "tick", "text-anchor": "end" });
      }
      this.make("path", { class: "frame", d: `M${left},${top}V${bottom}H${right}` }, this.axes);
      text(this.options.xTitle, { x: (left + right) / 2, y: this.height - 7 }, { "text-anchor": "middle" });
      text(this.options.yTitle, { x: 2, y: 15 }, {});
    }

    // The path called `name`, made at its first use; later names lie on top.
    part(name, look, d) {
      if (!this.parts.has(name)) this.parts.set(name, this.make("path", { class: look }, this.marks));
      this.parts.get(name).setAttribute("d", d);
    }

    points(xs, ys) {
      const step = 1 / Math.max(1, window.devicePixelRatio);
      let d = "", lastX = -Infinity;
      for (let i = 0; i < xs.length; i++) {
        const x = this.px(xs[i]);
        if (x - lastX < step * 0.5 && i + 1 < xs.length) continue;
        lastX = x;
        d += `${d ? "L" : ""}${x.toFixed(2)},${Math.max(-1e4, Math.min(1e4, this.py(ys[i]))).toFixed(2)}`;
      }
      return d;
    }

    line(name, look, xs, ys) { this.part(name, `line ${look}`, `M${this.points(xs, ys)}`); }

    area(name, look, xs, ys) {
      const floor = this.py(this.y[0]);
      this.part(name, `area ${look}`, `M${this.px(xs[0])},${floor}L${this.points(xs, ys)}L${this.px(xs[xs.length - 1])},${floor}Z`);
    }

    // Line segments [[x, y], [x, y]].
    segments(name, look, list) {
      const at = ([x, y]) => `${this.px(x).toFixed(2)},${this.py(y).toFixed(2)}`;
      this.part(name, look, list.map(([a, b]) => `M${at(a)}L${at(b)}`).join(""));
    }

    dots(name, look, shape, radius, xs, ys) {
      this.part(name, look === "ring" ? look : `dots ${look}`, Array.from(xs, (x, i) => SHAPES[shape](this.px(x), this.py(ys[i]), radius)).join(""));
    }
  }

  return { Plot, format, fixed };
})();
