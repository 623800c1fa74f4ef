// The page: its setting, what is computed from it, and what is drawn.
//
// window.relaxation, for the console and for tests:
//   state      {f, t, T, k, T2, c, s}: the loss, smoothing time, temperature (0: Hopf-Lax), step; panel 2's temperature,
//              cost of control, time
//   set(some)  changes parts of it and redraws at once; numbers go to the nearest place on their slider
//   curves     {x, f, u, slope, bend, minima, minimaOfF}: at the grid points x, f, u, ∂u/∂x and ∂²u/∂x²; positions of
//              the minima
//   tracks     {t, minima, barriers}: positions at every t, computed in the background: await relaxation.ready
//   paths      {starts, onF, onU, stepF, stepU, endF, endU}: [start][step] of both descents, and the mean f at their ends
//   control    {x, f, s, sgd, csgd, value, alpha, lossSgd, lossCsgd, …}: densities [time][place] and so on
//   playing    [panel 1, panel 2]
//   mathematics, problems: the functions of mathematics.js and the constants of problems.js
"use strict";

(() => {
  const { makeLoss, relax, crossings, extrema, interpolated, descend, control } = relaxationMathematics;
  const { Plot, format, fixed } = relaxationPlot;
  const STEPS = 400, POINTS = 601, STARTS = 11, TRACK_TIMES = 141, TRACK_POINTS = 301;
  const VIEWS = { well: [-1.75, 1.75] }; // the others show their domains
  const losses = Object.fromEntries(["rugged", "sharp", "well", "rastrigin", "absolute"].map((kind) => [kind, makeLoss(kind, relaxationProblems[kind])]));
  const wells = makeLoss("well", relaxationProblems.controlled);
  const still = window.matchMedia("(prefers-reduced-motion: reduce)");
  const at = (id) => document.getElementById(id);
  const time = "param²/loss";

  // Sliders: position on the input ↔ value.
  const exponential = { value: (p) => 10 ** p, place: (v) => Math.log10(Math.max(v, 1e-9)) };
  const plain = { value: (p) => p, place: (v) => v };
  const SLIDERS = {
    t: { ...exponential, text: (v) => `${format(v, 2)} ${time}` },
    T: { value: (p) => (p < -2.01 ? 0 : 10 ** p), place: (v) => (v > 0 ? Math.log10(v) : -9), text: (v) => (v > 0 ? `${format(v, 2)} loss` : "0 (Hopf–Lax)") },
    k: { ...plain, text: (v) => `${v} of ${STEPS}` },
    T2: { ...exponential, text: (v) => `${format(v, 2)} loss` },
    c: { ...exponential, text: (v) => format(v, 2) },
    s: { ...plain, text: (v) => `${v.toFixed(2)} ${time}` },
  };
  const PANEL = { f: 1, t: 1, T: 1, k: 1, T2: 2, c: 2, s: 2 };
  const DEFAULTS = { f: "rugged", t: 0.1, T: 0.3, k: 0, T2: 0.2, c: 1, s: 0 };
  const state = {}, relaxation = { state, playing: [false, false], mathematics: relaxationMathematics, problems: relaxationProblems };
  window.relaxation = relaxation;

  const plots = {
    loss: new Plot(at("plot-loss"), { title: "The loss f, the relaxed loss u, and particles descending both", xTitle: "x  [param]", yTitle: "f, u  [loss]", height: 400, narrowHeight: 270 }),
    tracks: new Plot(at("plot-tracks"), { title: "Positions of the minima of u against the smoothing time", xTitle: "x  [param]", yTitle: "t  [param²/loss]", height: 270, narrowHeight: 220, logY: true }),
    density: new Plot(at("plot-density"), { title: "Densities of SGD and of controlled SGD", xTitle: "x  [param]", yTitle: "density ρ(x, s)  [1/param]", height: 360, narrowHeight: 260 }),
    mean: new Plot(at("plot-mean"), { title: "Mean loss of both against time", xTitle: "s  [param²/loss]", yTitle: "E f  [loss]", height: 230, narrowHeight: 210 }),
    control: new Plot(at("plot-control"), { title: "The push of the control against x", xTitle: "x  [param]", yTitle: "push −α  [loss/param]", height: 230, narrowHeight: 210 }),
  };

  const spaced = (low, high, n) => Float64Array.from({ length: n }, (_, i) => low + ((high - low) * i) / (n - 1));
  const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;
  const view = (loss) => VIEWS[loss.kind] || [loss.numbers.lower, loss.numbers.upper];

  // ---- what is computed ----

  function computeRelaxation() {
    const loss = losses[state.f], [low, high] = view(loss), x = spaced(low, high, POINTS);
    if (!loss.shown) {
      const slopes = x.map(loss.slope), starts = spaced(low + 0.04 * (high - low), high - 0.04 * (high - low), STARTS);
      loss.shown = { f: x.map(loss.value), minima: crossings(x, slopes, true), starts, paths: descend(loss.slope, starts, loss.step, STEPS) };
    }
    const { u, slope, bend } = relax(loss, state.t, state.T, x), { f, starts } = loss.shown;
    relaxation.curves = { x, f, u, slope, bend, minima: extrema(loss, state.t, state.T, x, slope, true, 30), minimaOfF: loss.shown.minima };
    const stepU = loss.step + state.t;
    const onU = descend(interpolated(x, slope, state.T > 0 && bend), starts, stepU, STEPS), onF = loss.shown.paths;
    const end = (paths) => mean(paths.map((path) => loss.value(path[STEPS])));
    relaxation.paths = { starts, onF, onU, stepF: loss.step, stepU, endF: end(onF), endU: end(onU) };
  }

  // The tracks take a while: a few milliseconds a turn, and kept for settings that come back.
  const keptTracks = new Map();
  let trackKey = "", trackRun = 0, announceReady = null;
  function computeTracks() {
    const key = `${state.f} ${state.T}`, loss = losses[state.f];
    if (key === trackKey) return;
    trackKey = key;
    if (!announceReady) relaxation.ready = new Promise((resolve) => { announceReady = resolve; });
    if (!keptTracks.has(key)) {
      if (keptTracks.size > 40) keptTracks.clear();
      const x = spaced(...view(loss), TRACK_POINTS);
      keptTracks.set(key, { T: state.T, x, t: spaced(-2.7, 0.7, TRACK_TIMES).map((p) => 10 ** p), minima: [], barriers: [] });
    }
    const tracks = keptTracks.get(key), run = ++trackRun;
    relaxation.tracks = tracks;
    const more = () => {
      if (run !== trackRun) return;
      const stop = performance.now() + 10;
      while (tracks.minima.length < TRACK_TIMES && performance.now() < stop) {
        const t = tracks.t[tracks.minima.length], { slope } = relax(loss, t, tracks.T, tracks.x);
        tracks.minima.push(extrema(loss, t, tracks.T, tracks.x, slope, true, 6));
        tracks.barriers.push(extrema(loss, t, tracks.T, tracks.x, slope, false, 6));
      }
      drawTracks();
      if (tracks.minima.length < TRACK_TIMES) setTimeout(more, 0);
      else { announceReady(); announceReady = null; }
    };
    more();
  }

  // The colder, the narrower the densities: both grids leave 1e-3.
  function computeControl() { relaxation.control = control(wells, state.T2, state.c, state.T2 < 0.25 ? 401 : 301, 81); }

  // ---- what is drawn ----

  function drawRelaxation() {
    const { x, f, u, minima: wellsOfU } = relaxation.curves, loss = losses[state.f], plot = plots.loss;
    const low = Math.min(...f), high = Math.max(...f), size = high - low;
    plot.limits([x[0], x[POINTS - 1]], [low - 0.2 * size, Math.max(high, Math.min(...u) + 0.5 * size)]);
    const dx = x[1] - x[0];
    const uAt = (point) => {
      const i = Math.max(0, Math.min(POINTS - 2, Math.floor((point - x[0]) / dx))), r = (point - x[i]) / dx;
      return (1 - r) * u[i] + r * u[i + 1];
    };
    const heights = wellsOfU.map(uAt);
    plot.segments("drop", "drop", wellsOfU.map((point, i) => [[point, plot.y[0]], [point, heights[i]]]));
    plot.line("f", "f", x, f);
    plot.line("u", "u", x, u);
    const radius = plot.narrow ? 5 : 6.5;
    const base = (points) => points.map(() => plot.y[0] + (16 * (plot.y[1] - plot.y[0])) / (plot.box.bottom - plot.box.top));
    const lowest = heights.indexOf(Math.min(...heights)), alone = lowest < 0 ? [] : [wellsOfU[lowest]];
    plot.dots("minima", "minima", "diamond", radius + 1, wellsOfU, base(wellsOfU));
    plot.dots("ring", "ring", "circle", radius + 5, alone, base(alone));
    const { onF, onU, endF, endU } = relaxation.paths;
    const nowF = onF.map((path) => path[state.k]), nowU = onU.map((path) => path[state.k]);
    plot.dots("onF", "on-f", "triangle", radius, nowF, nowF.map(loss.value));
    plot.dots("onU", "on-u", "circle", radius, nowU, nowU.map(uAt));

    const distinct = (paths) => {
      const ends = paths.map((path) => path[STEPS]).sort((a, b) => a - b);
      return ends.filter((end, i) => i === 0 || end - ends[i - 1] > 0.02 * (x[POINTS - 1] - x[0])).length;
    };
    const count = wellsOfU.length, lossOf = (points) => `${fixed(mean(points.map(loss.value)), 3)} loss`;
    const write = (id, text) => { at(id).textContent = text; };
    write("r-width", `${format(Math.sqrt(state.t * state.T), 2)} param`);
    write("r-minima", `${relaxation.curves.minimaOfF.length} / ${count}`);
    write("r-lowest", lowest < 0 ? "–" : `${fixed(wellsOfU[lowest], 2)} param`);
    write("r-now-f", lossOf(nowF));
    write("r-now-u", lossOf(nowU));
    write("r-end-f", `${fixed(endF, 3)} loss`);
    write("r-end-u", `${fixed(endU, 3)} loss`);
    write("r-ends", `${distinct(onF)} / ${distinct(onU)}`);
    const gain = endF - endU;
    write("verdict-1", Math.abs(gain) < 5e-3
      ? "Both descents end equally low on f."
      : gain > 0
        ? `Descent on u ends lower on f, by ${format(gain, 2)} loss on average.`
        : `Descent on u ends higher on f, by ${format(-gain, 2)} loss on average: the minimum of u is not where that of f is.`);
    plot.svg.setAttribute("aria-label", `${plot.options.title}. u has ${count} ${count === 1 ? "minimum" : "minima"}, f has ${relaxation.curves.minimaOfF.length}.`);
  }

  // Segments between the nearest positions at neighbouring times; what ends is joined to the maximum it meets.
  function linked(tracks) {
    const { t } = tracks, widest = (tracks.x[TRACK_POINTS - 1] - tracks.x[0]) * 0.06, list = { minima: [], barriers: [] };
    for (let i = 0; i + 1 < tracks.minima.length; i++) {
      const lost = {};
      for (const kind of ["minima", "barriers"]) {
        const before = tracks[kind][i], taken = new Set();
        for (const place of tracks[kind][i + 1]) {
          let best = -1;
          before.forEach((from, j) => { if (best < 0 || Math.abs(from - place) < Math.abs(before[best] - place)) best = j; });
          if (best >= 0 && Math.abs(before[best] - place) < widest) {
            taken.add(best);
            list[kind].push([[before[best], t[i]], [place, t[i + 1]]]);
          }
        }
        lost[kind] = before.filter((_, j) => !taken.has(j));
      }
      const middle = Math.sqrt(t[i] * t[i + 1]);
      for (const place of lost.minima) {
        const other = lost.barriers.find((point) => Math.abs(point - place) < widest);
        if (other === undefined) continue;
        list.minima.push([[place, t[i]], [(place + other) / 2, middle]]);
        list.barriers.push([[other, t[i]], [(place + other) / 2, middle]]);
      }
    }
    return list;
  }

  function drawTracks() {
    const tracks = relaxation.tracks, plot = plots.tracks;
    plot.limits(view(losses[state.f]), [10 ** -2.7, 10 ** 0.7]);
    const lines = linked(tracks);
    plot.segments("barriers", "line barriers", lines.barriers);
    plot.segments("minima", "line minima", lines.minima);
    drawCursor();
  }

  function drawCursor() {
    const plot = plots.tracks, { minima: wellsOfU } = relaxation.curves;
    plot.segments("cursor", "cursor", [[[plot.x[0], state.t], [plot.x[1], state.t]]]);
    plot.dots("now", "minima", "diamond", plot.narrow ? 6 : 7.5, wellsOfU, wellsOfU.map(() => state.t));
  }

  function drawControl() {
    const { x, f, s, sgd, csgd, alpha, lossSgd, lossCsgd, beyondSgd, beyondCsgd, cost } = relaxation.control;
    const frame = Math.round(state.s / s[1]), last = s.length - 1, range = [x[0], x[x.length - 1]];
    const density = plots.density, shown = [-1.8, 1.8];
    const highest = Math.max(1.6, ...[...sgd, ...csgd].map((part) => Math.max(...part)));
    density.limits(shown, [0, Math.ceil(highest * 5) / 5]);
    const lift = (value) => (0.12 + (0.5 * (value - Math.min(...f))) / 1.3) * density.y[1];
    density.line("f", "f", x, f.map(lift));
    density.area("sgd-area", "on-u", x, sgd[frame]);
    density.area("csgd-area", "on-f", x, csgd[frame]);
    density.line("sgd", "on-u", x, sgd[frame]);
    density.line("csgd", "on-f", x, csgd[frame]);

    const both = [...lossSgd, ...lossCsgd], low = Math.min(...both), high = Math.max(...both);
    plots.mean.limits([0, s[last]], [low - 0.08 * (high - low), high + 0.08 * (high - low)]);
    plots.mean.line("sgd", "on-u", s, lossSgd);
    plots.mean.line("csgd", "on-f", s, lossCsgd);
    plots.mean.segments("cursor", "cursor", [[[state.s, plots.mean.y[0]], [state.s, plots.mean.y[1]]]]);

    // Beyond the wells the loss itself does the work, and α there says little.
    const inside = (i) => Math.abs(x[i]) <= 1.1;
    const size = Math.max(0.1, ...alpha.map((part) => part.reduce((most, a, i) => (inside(i) ? Math.max(most, Math.abs(a)) : most), 0)));
    plots.control.limits(shown, [-1.05 * size, 1.05 * size]);
    plots.control.segments("zero", "frame", [[[range[0], 0], [range[1], 0]]]);
    plots.control.line("push", "on-f", x, alpha[frame].map((a) => -a));

    const write = (id, text) => { at(id).textContent = text; };
    const paid = cost - lossCsgd[last], gain = lossSgd[last] - lossCsgd[last];
    const loss = (value) => `${fixed(value, 3)} loss`, share = (value) => `${(100 * value).toFixed(1)} %`;
    write("r-sgd", loss(lossSgd[frame]));
    write("r-csgd", loss(lossCsgd[frame]));
    write("r-across-sgd", share(beyondSgd[frame]));
    write("r-across-csgd", share(beyondCsgd[frame]));
    write("r-sgd-end", loss(lossSgd[last]));
    write("r-csgd-end", loss(lossCsgd[last]));
    write("r-paid", loss(paid));
    write("verdict-2", `Control lowers E f at S by ${format(gain, 3)} loss and costs ${format(paid, 3)} loss.`);
  }

  // ---- changes ----

  let announcing = [0, 0], linking = 0, written = "";
  function announce(panel) {
    clearTimeout(announcing[panel - 1]);
    announcing[panel - 1] = setTimeout(() => {
      const text = panel === 1
        ? `u has ${relaxation.curves.minima.length} minima. ${at("verdict-1").textContent}`
        : `At time ${state.s.toFixed(2)}: mean loss ${at("r-sgd").textContent} for SGD, ${at("r-csgd").textContent} controlled. ${at("verdict-2").textContent}`;
      at(`status-${panel}`).textContent = text;
    }, 600);
  }

  function writeLink() {
    clearTimeout(linking);
    linking = setTimeout(() => {
      const parts = Object.keys(DEFAULTS).map((name) => `${name}=${typeof state[name] === "number" ? Number(state[name].toPrecision(4)) : state[name]}`);
      if (state.theme) parts.push(`theme=${state.theme}`);
      const hash = `#${parts.join("&")}`;
      if (hash === location.hash) return;
      written = hash;
      location.replace(hash); // history.replaceState is barred from some local files
    }, 300);
  }

  // Takes what changed to its slider's nearest place; the names that really did.
  function accept(some) {
    const changed = new Set();
    for (const [name, wanted] of Object.entries(some)) {
      let value = wanted;
      if (Object.hasOwn(SLIDERS, name)) {
        const input = at(name), slider = SLIDERS[name], number = Number(wanted);
        if (!Number.isFinite(number)) continue;
        input.value = slider.place(number); // the browser rounds to a step and stays in range
        value = slider.value(Number(input.value));
        const text = slider.text(value);
        input.setAttribute("aria-valuetext", text);
        at(`${name}-value`).textContent = text;
      } else if (name === "f") {
        if (!Object.hasOwn(losses, wanted)) continue;
        at("f").value = wanted;
      } else if (name === "theme") {
        if (wanted !== "light" && wanted !== "dark") continue;
      } else continue;
      if (state[name] !== value) { state[name] = value; changed.add(name); }
    }
    return changed;
  }

  function set(some) { apply(accept(some)); }
  relaxation.set = set;

  // Computes and draws what depends on the names that changed.
  function apply(changed) {
    const any = (...names) => names.some((name) => changed.has(name));
    if (!changed.size) return;
    if (any("theme")) showTheme();
    if (any("f", "t", "T")) computeRelaxation();
    if (any("f", "t", "T", "k")) { drawRelaxation(); if (!relaxation.playing[0]) announce(1); }
    if (any("f", "T")) computeTracks();
    if (any("t") && relaxation.tracks) drawCursor();
    if (any("T2", "c")) computeControl();
    if (any("T2", "c", "s")) { drawControl(); if (!relaxation.playing[1]) announce(2); }
    if (!relaxation.playing.includes(true)) writeLink();
  }

  // Sliders are heard at most once a frame.
  let pending = {}, waiting = false;
  function schedule(some) {
    Object.assign(pending, some);
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; const now = pending; pending = {}; set(now); });
  }

  // ---- play, step, reset ----

  // One frame forward, for panel 1 slow at first, when most happens; in jumps where motion is not wanted.
  const LENGTH = [STEPS, 4], NAME = ["k", "s"], exact = [0, 0], started = [0, 0];
  const stride = (panel) => (panel === 0 ? 0.5 + exact[0] / 120 : 0.02);
  function play(panel, on) {
    if (relaxation.playing[panel] === on) return;
    relaxation.playing[panel] = on;
    at(`play-${panel + 1}`).textContent = on ? "Pause" : "Play";
    if (!on) { writeLink(); announce(panel + 1); return; }
    exact[panel] = state[NAME[panel]] >= LENGTH[panel] ? 0 : state[NAME[panel]];
    const run = ++started[panel];
    let before = performance.now();
    const advance = (now) => {
      if (!relaxation.playing[panel] || run !== started[panel]) return;
      const frames = Math.min(4, Math.max(0, (now - before) / 16.7));
      before = now;
      exact[panel] = Math.min(LENGTH[panel], exact[panel] + (still.matches ? LENGTH[panel] / 8 : frames * stride(panel)));
      set({ [NAME[panel]]: panel === 0 ? Math.floor(exact[0]) : exact[1] });
      if (exact[panel] >= LENGTH[panel]) play(panel, false);
      else if (still.matches) setTimeout(() => advance(performance.now()), 700);
      else requestAnimationFrame(advance);
    };
    set({ [NAME[panel]]: exact[panel] });
    requestAnimationFrame(advance);
  }

  for (const panel of [0, 1]) {
    const n = panel + 1, name = NAME[panel];
    at(`play-${n}`).addEventListener("click", () => play(panel, !relaxation.playing[panel]));
    at(`step-${n}`).addEventListener("click", () => { play(panel, false); set({ [name]: state[name] + (panel === 0 ? 1 : 0.05) }); });
    at(`reset-${n}`).addEventListener("click", () => { play(panel, false); set({ [name]: 0 }); });
    at(name).addEventListener("input", () => play(panel, false));
  }
  for (const name of Object.keys(SLIDERS)) at(name).addEventListener("input", (event) => schedule({ [name]: SLIDERS[name].value(Number(event.target.value)) }));
  at("f").addEventListener("change", (event) => set({ f: event.target.value }));
  plots.tracks.svg.classList.add("tappable");
  plots.tracks.svg.addEventListener("click", (event) => set({ t: plots.tracks.locate(event).y }));
  plots.mean.svg.classList.add("tappable");
  plots.mean.svg.addEventListener("click", (event) => { play(1, false); set({ s: plots.mean.locate(event).x }); });
  document.addEventListener("keydown", (event) => {
    if (event.key !== " " || event.target.closest("button, select, summary, a")) return;
    event.preventDefault();
    const panel = event.target.closest("#panel-2") ? 1 : 0;
    if (!event.repeat) play(panel, !relaxation.playing[panel]);
  });

  // ---- light and dark ----

  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const theme = () => state.theme || (prefersDark.matches ? "dark" : "light");
  function showTheme() {
    document.documentElement.dataset.theme = theme();
    at("theme").textContent = theme() === "dark" ? "Light" : "Dark";
    at("theme").setAttribute("aria-label", `Switch to ${theme() === "dark" ? "light" : "dark"} colours`);
  }
  prefersDark.addEventListener("change", showTheme);
  at("theme").addEventListener("click", () => set({ theme: theme() === "dark" ? "light" : "dark" }));

  // ---- start ----

  const linkedState = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  // By then a link of the page's own may be out of date.
  window.addEventListener("hashchange", () => { if (location.hash !== written) set(linkedState()); });
  new ResizeObserver(() => {
    const changed = Object.values(plots).map((plot) => plot.measure());
    if (!changed.includes(true) || !relaxation.curves || !relaxation.control) return;
    drawRelaxation();
    drawTracks();
    drawControl();
  }).observe(document.querySelector("main"));
  showTheme();
  apply(new Set([...accept(DEFAULTS), ...accept(linkedState())]));
})();
