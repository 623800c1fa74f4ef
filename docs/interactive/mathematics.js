// The mathematics of the page: losses, the relaxed loss, descent, and the densities of controlled descent. No drawing.
"use strict";

const relaxationMathematics = (() => {
  const NEGLIGIBLE = 25; // what lies 25 T above the minimum weighs e⁻²⁵ = 1e-11

  // ---- losses: value and slope at a point, largest curvature, and where to look ----

  // `within(F)` is a half-width outside which the loss exceeds F; `spacing(t, T)` resolves what is not smooth.
  const makers = {
    rugged: (p) => ({
      value: (x) => p.wavenumbers.reduce((sum, k, i) => sum + p.cosines[i] * Math.cos(k * x) + p.sines[i] * Math.sin(k * x), x * x),
      slope: (x) => p.wavenumbers.reduce((sum, k, i) => sum + k * (p.sines[i] * Math.cos(k * x) - p.cosines[i] * Math.sin(k * x)), 2 * x),
      within: (level) => Math.sqrt(level + 4),
    }),
    sharp: (p) => {
      const wells = (x) => {
        const q = p.centres.map((c, i) => 0.5 * p.curvatures[i] * (x - c) ** 2 + p.heights[i]);
        const lowest = Math.min(...q);
        const weights = q.map((value) => Math.exp((lowest - value) / p.softness));
        const total = weights.reduce((a, b) => a + b);
        return { lowest, weights, total };
      };
      return {
        value: (x) => { const { lowest, total } = wells(x); return lowest - p.softness * Math.log(total); },
        slope: (x) => {
          const { weights, total } = wells(x);
          return weights.reduce((sum, w, i) => sum + (w / total) * p.curvatures[i] * (x - p.centres[i]), 0);
        },
        within: (level) => 1 + Math.sqrt(2 * (level + 0.5)),
        spacing: (t, T) => Math.max(0.003, 0.008 * Math.sqrt(t * T)), // the ridge is as good as a kink
      };
    },
    well: (p) => ({
      value: (x) => p.barrier * ((x / p.halfDistance) ** 2 - 1) ** 2 + p.tilt * x / p.halfDistance,
      slope: (x) => (4 * p.barrier * (x / p.halfDistance) * ((x / p.halfDistance) ** 2 - 1) + p.tilt) / p.halfDistance,
      within: (level) => p.halfDistance * Math.sqrt(1 + Math.sqrt((level + 5) / p.barrier)),
    }),
    rastrigin: (p) => ({
      value: (x) => x * x + p.amplitude * (1 - Math.cos(2 * Math.PI * x)),
      slope: (x) => 2 * x + 2 * Math.PI * p.amplitude * Math.sin(2 * Math.PI * x),
      within: (level) => Math.sqrt(level + 1),
    }),
    absolute: (p) => ({
      value: (x) => p.slope * Math.abs(x),
      slope: (x) => p.slope * Math.sign(x),
      within: (level) => level / p.slope,
      spacing: (t, T) => Math.min(0.01, 0.03 * Math.sqrt(t * T)),
      step: 0.02, // its curvature is no guide
    }),
  };

  function makeLoss(kind, numbers) {
    const loss = { kind, numbers, spacing: () => 0.02, ...makers[kind](numbers), tables: new Map() };
    const n = 4000;
    let lowest = Infinity, curvature = 0;
    for (let i = 0; i <= n; i++) {
      const x = numbers.lower + ((numbers.upper - numbers.lower) * i) / n;
      lowest = Math.min(lowest, loss.value(x));
      curvature = Math.max(curvature, (loss.slope(x + 1e-4) - loss.slope(x - 1e-4)) / 2e-4);
    }
    loss.lowest = lowest - 0.01;
    loss.curvature = loss.step ? 0 : curvature;
    loss.step = loss.step || 1 / curvature; // of descent on f: no step of 1/max f″ overshoots
    return loss;
  }

  // f at y = jh for |y| ≤ width, kept: h is 0.02·2^−level.
  function table(loss, level, width) {
    const h = 0.02 * 2 ** -level, wanted = Math.ceil(width / h) + 2;
    let kept = loss.tables.get(level);
    if (!kept || kept.reach < wanted) {
      const reach = Math.ceil(wanted * 1.2), values = new Float64Array(2 * reach + 1);
      for (let j = -reach; j <= reach; j++) values[j + reach] = loss.value(j * h);
      kept = { h, reach, values };
      loss.tables.set(level, kept);
    }
    return kept;
  }

  // ---- the relaxed loss ----

  // u, ∂u/∂x and ∂²u/∂x² at the points xs: Cole-Hopf for T > 0,
  //   u = −T log ∫ exp(−f(y)/T) N(y; x, tT) dy,  u′ = E[(x − y)/t],  u″ = 1/t − Var(y)/(t²T),
  // by the trapezoid rule, with the largest term taken out; the Moreau envelope min f(y) + (x − y)²/(2t) for T = 0.
  function relax(loss, t, T, xs) {
    const u = new Float64Array(xs.length), slope = new Float64Array(xs.length), bend = new Float64Array(xs.length);
    const wanted = T > 0 ? Math.min(0.8 * Math.sqrt(T / (loss.curvature + 1 / t)), loss.spacing(t, T)) : 0.0025;
    const level = Math.ceil(Math.log2(0.02 / wanted));
    for (let i = 0; i < xs.length; i++) {
      const x = xs[i], top = loss.value(x) + NEGLIGIBLE * T;
      const width = Math.max(loss.within(top), Math.abs(x));
      const { h, reach, values } = table(loss, level, width);
      const far = Math.sqrt(2 * t * (top - loss.lowest)) + 2 * h; // beyond, f(y) + (x − y)²/(2t) > top
      const first = Math.max(Math.ceil((x - far) / h), -Math.ceil(width / h)) + reach;
      const last = Math.min(Math.floor((x + far) / h), Math.ceil(width / h)) + reach;
      let lowest = Infinity, best = first;
      for (let j = first; j <= last; j++) {
        const d = x - (j - reach) * h, phi = values[j] + (d * d) / (2 * t);
        if (phi < lowest) { lowest = phi; best = j; }
      }
      if (T > 0) {
        let mass = 0, mean = 0, square = 0;
        const bound = lowest + NEGLIGIBLE * T;
        for (let j = first; j <= last; j++) {
          const d = x - (j - reach) * h, phi = values[j] + (d * d) / (2 * t);
          if (phi < bound) {
            const weight = Math.exp((lowest - phi) / T);
            mass += weight; mean += weight * d; square += weight * d * d;
          }
        }
        mean /= mass;
        u[i] = lowest - T * Math.log((mass * h) / Math.sqrt(2 * Math.PI * t * T));
        slope[i] = mean / t;
        bend[i] = 1 / t - (square / mass - mean * mean) / (t * t * T);
      } else {
        // The best point between grid points, on the parabola through three of them.
        const d = x - (best - reach) * h, below = values[best - 1], above = values[best + 1];
        const gradient = (above - below) / (2 * h) - d / t;
        const curvature = (above - 2 * values[best] + below) / (h * h) + 1 / t;
        // At a kink that opens upwards the grid point is the minimiser.
        const kinked = loss.kind === "absolute" && best === reach;
        const offset = kinked || curvature < 1 / (16 * t) ? 0 : Math.max(-h / 2, Math.min(h / 2, -gradient / curvature));
        u[i] = lowest + offset * gradient + (offset * offset * curvature) / 2;
        slope[i] = (d - offset) / t;
        bend[i] = kinked ? 1 / t : 1 / t - 1 / (t * t * Math.max(curvature, 1 / (16 * t)));
      }
    }
    return { u, slope, bend };
  }

  // Where a slope known on a grid changes sign upwards (minima) or downwards (maxima), by linear interpolation.
  function crossings(xs, slope, upwards) {
    const found = [], sign = upwards ? 1 : -1;
    for (let i = 0; i + 1 < xs.length; i++) {
      const a = sign * slope[i], b = sign * slope[i + 1];
      if (a < 0 && b >= 0) found.push(xs[i] + ((xs[i + 1] - xs[i]) * a) / (a - b));
    }
    return found;
  }

  // Minima (or maxima) of u(·, t): the crossings on a grid, each bisected with exact slopes.
  function extrema(loss, t, T, xs, slope, upwards, halvings) {
    const dx = xs[1] - xs[0], sign = upwards ? 1 : -1;
    return crossings(xs, slope, upwards).map((guess) => {
      const i = Math.floor((guess - xs[0]) / dx - 1e-9);
      let low = xs[0] + i * dx, high = low + dx;
      for (let k = 0; k < halvings; k++) {
        const middle = (low + high) / 2;
        if (sign * relax(loss, t, T, [middle]).slope[0] < 0) low = middle; else high = middle;
      }
      return (low + high) / 2;
    });
  }

  // ---- descent ----

  // A slope at any x from its values and derivatives on a uniform grid (cubic), or from its values only (linear).
  function interpolated(xs, slope, bend) {
    const x0 = xs[0], dx = xs[1] - xs[0], last = xs.length - 2;
    return (x) => {
      const place = (x - x0) / dx, i = Math.max(0, Math.min(last, Math.floor(place)));
      const r = Math.max(0, Math.min(1, place - i)), q = 1 - r;
      if (!bend) return q * slope[i] + r * slope[i + 1];
      return q * q * ((1 + 2 * r) * slope[i] + r * dx * bend[i]) + r * r * ((3 - 2 * r) * slope[i + 1] - q * dx * bend[i + 1]);
    };
  }

  // Gradient descent x ← x − step·slope(x) from every start: [start][0 … steps].
  function descend(slope, starts, step, steps) {
    return Array.from(starts, (start) => {
      const path = new Float64Array(steps + 1);
      path[0] = start;
      for (let k = 0; k < steps; k++) path[k + 1] = path[k] - step * slope(path[k]);
      return path;
    });
  }

  // ---- controlled descent dx = −f′ ds − α ds + √T dW, cost E[f(x(S)) + (c/2)∫α²] ----

  // On a grid, descent is a Markov chain (exponentially fitted rates, as in pde.solve_fokker_planck). With λ = cT and
  // u = −λ log w, the Bellman equation becomes the linear backward equation of that chain, w(S) = exp(−f/λ), and the
  // controlled density is w·μ, μ the density of plain descent from ρ₀/w(·, 0). Both keep signs and mass exactly.
  function control(loss, T, c, points, frames) {
    const { lower, upper, horizon, spread, minimisers, saddles } = loss.numbers;
    const h = (upper - lower) / (points - 1), D = T / 2, lambda = c * T;
    const x = Float64Array.from({ length: points }, (_, i) => lower + i * h);
    const f = x.map(loss.value), share = x.map((_, i) => (i === 0 || i === points - 1 ? 0.5 : 1));
    const bernoulli = (z) => (Math.abs(z) < 1e-8 ? 1 - z / 2 : z / Math.expm1(z));
    const right = new Float64Array(points), left = new Float64Array(points); // rates i → i + 1 and i → i − 1
    for (let i = 0; i + 1 < points; i++) {
      const z = (f[i] - f[i + 1]) / D;
      right[i] = (D / (h * h)) * bernoulli(-z) / share[i];
      left[i + 1] = (D / (h * h)) * bernoulli(z) / share[i + 1];
    }
    const fastest = right.reduce((most, rate, i) => Math.max(most, rate + left[i]), 0);
    const ds = horizon / (frames - 1), steps = Math.ceil(ds * fastest), dt = ds / steps;
    const forward = (m, out) => {
      for (let i = 0; i < points; i++) {
        let sum = -(right[i] + left[i]) * m[i];
        if (i > 0) sum += right[i - 1] * m[i - 1];
        if (i + 1 < points) sum += left[i + 1] * m[i + 1];
        out[i] = sum;
      }
    };
    const backward = (w, out) => {
      for (let i = 0; i < points; i++) {
        let sum = 0;
        if (i + 1 < points) sum += right[i] * (w[i + 1] - w[i]);
        if (i > 0) sum += left[i] * (w[i - 1] - w[i]);
        out[i] = sum;
      }
    };
    const run = (rate, initial) => { // Heun's method, positive for such steps
      const kept = [initial], value = initial.slice(), one = new Float64Array(points), two = new Float64Array(points);
      const tried = new Float64Array(points);
      for (let frame = 1; frame < frames; frame++) {
        for (let k = 0; k < steps; k++) {
          rate(value, one);
          for (let i = 0; i < points; i++) tried[i] = value[i] + dt * one[i];
          rate(tried, two);
          for (let i = 0; i < points; i++) value[i] += (dt / 2) * (one[i] + two[i]);
        }
        kept.push(value.slice());
      }
      return kept;
    };
    const floor = Math.min(...f);
    const w = run(backward, f.map((value) => Math.exp((floor - value) / lambda))).reverse();
    const start = Math.max(...minimisers);
    const bell = x.map((y, i) => share[i] * Math.exp(-((y - start) ** 2) / (2 * spread * spread)));
    const total = bell.reduce((a, b) => a + b), mass = bell.map((m) => m / total);
    const plain = run(forward, mass);
    const tilted = run(forward, mass.map((m, i) => m / w[0][i])).map((mu, k) => mu.map((m, i) => m * w[k][i]));
    const mean = (m, g) => m.reduce((sum, part, i) => sum + part * g[i], 0);
    const value = w.map((part) => part.map((v) => floor - lambda * Math.log(v)));
    const density = (m) => m.map((part, i) => part / (h * share[i]));
    const slope = (u) => u.map((_, i) => {
      const a = Math.max(0, i - 1), b = Math.min(points - 1, i + 1);
      return (u[b] - u[a]) / ((b - a) * h) / c;
    });
    const beyond = x.map((y) => (y < saddles[0] ? 1 : 0));
    const every = (masses, g) => Float64Array.from(masses, (m) => mean(m, g));
    return {
      x, f, s: Float64Array.from({ length: frames }, (_, k) => k * ds), barrier: saddles[0],
      sgd: plain.map(density), csgd: tilted.map(density), value, alpha: value.map(slope),
      lossSgd: every(plain, f), lossCsgd: every(tilted, f),
      beyondSgd: every(plain, beyond), beyondCsgd: every(tilted, beyond),
      cost: mean(mass, value[0]), // E u(x₀, 0) = E f(x(S)) + (c/2) E∫α²
    };
  }

  return { makeLoss, relax, crossings, extrema, interpolated, descend, control };
})();
