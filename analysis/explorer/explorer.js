// The subspace explorer: one ES module, no build step, no request to anybody.
//
//   export default { render }     an anywidget: Jupyter, VS Code, Colab, marimo
//   hydrate(element, bytes)       a page without a kernel
//
// Text from models and corpora only ever becomes text nodes. Numbers follow analysis/explorer/numbers.py.

const VERSION = 1;
const FORGET = 0,
  RETAIN = 1;
const GRID = 1e-8;
const CODES = 2 ** 16, // int16
  MIDDLE = 2 ** 15;
const ROWS = 30; // snippets shown at once

// ------------------------------------------------------------------------------------------ payload

const TYPES = { f4: Float32Array, i1: Int8Array, i2: Int16Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };

/** A payload (ArrayBuffer, typed array or DataView) as a view: header, texts, tokens, block(place). */
export function unpack(data) {
  const { header, body } = open(data);
  if (header.version !== VERSION) throw new Error(`explorer payload version ${header.version}, not ${VERSION}`);
  const array = (name) => {
    const { dtype, shape, at } = header.arrays[name];
    return typed(body, dtype, shape, at);
  };
  header.places.forEach(measured);
  const view = { header, places: header.places, time: header.time, strings: header.strings };
  for (const name of ["text_start", "text_tokens", "text_corpus", "text_held", "token_text", "token_position", "items"])
    view[name] = array(name);
  // of tokens: the corpus, whether held out, and which are judged: held out and not unrelated
  view.token_corpus = Uint8Array.from(view.token_text, (text) => view.text_corpus[text]);
  view.token_held = Uint8Array.from(view.token_text, (text) => view.text_held[text]);
  view.judged = Uint32Array.from(view.token_text.keys()).filter(
    (i) => view.token_held[i] === 1 && view.token_corpus[i] <= RETAIN,
  );
  const blocks = new Map();
  view.block = (place) => {
    if (!blocks.has(place)) blocks.set(place, read(header, body, header.places[place]));
    return blocks.get(place);
  };
  view.replace = (bytes) => {
    // one place in full, from the kernel
    const full = open(bytes);
    const { place, entry } = full.header;
    header.places[place] = measured(entry);
    blocks.set(place, read(header, full.body, entry));
    return place;
  };
  return view;
}

/** Not measured is NaN, never 0; JSON has no NaN. */
function measured(entry) {
  for (const key of Object.keys(entry)) if (entry[key] === null) entry[key] = NaN;
  return entry;
}

function open(data) {
  let bytes = ArrayBuffer.isView(data)
    ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
    : new Uint8Array(data);
  if (bytes.byteOffset % 8) bytes = bytes.slice(); // typed arrays must be aligned
  if (String.fromCharCode(...bytes.subarray(0, 4)) !== "HLX1") throw new Error("these bytes are no explorer payload");
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(4, true);
  return {
    header: JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length))),
    body: bytes.subarray(8 + length),
  };
}

function typed(body, dtype, shape, at) {
  return new TYPES[dtype](
    body.buffer,
    body.byteOffset + at,
    shape.reduce((a, b) => a * b, 1),
  );
}

/** The arrays of one place, in the order of payload.layout. */
function read(header, body, entry) {
  const k = entry.count,
    points = header.time;
  const code = `i${entry.bits / 8}`,
    moving = entry.frames ? k : 0;
  const edited = points.filter((p) => p.arm === "edited").length;
  const block = {};
  let at = entry.at;
  for (const [name, dtype, shape] of [
    ["energy", "f4", [k, 3]],
    ["cosine", "f4", [k]],
    ["value", "f4", [k]],
    ["disruption", "f4", [k, k]],
    ["scale", "f4", [k]],
    ["item_scale", "f4", [k]],
    ["means", "f4", [points.length, k, 2]],
    ["lens", header.index, [k, 4, header.lens]],
    ["items", code, [header.items, k]],
    ["codes", code, [entry.tokens, k]],
    ["frame_scale", "f4", [moving]],
    ["frames", "i2", [edited, entry.frames, moving]],
  ]) {
    block[name] = typed(body, dtype, shape, at);
    at += Math.ceil(block[name].byteLength / 8) * 8;
  }
  return block;
}

// ------------------------------------------------------------------------------------------ numbers

/** P(forget score > retain score), ties half; the error is over texts. */
export function auc(forget, retain, forgetText, retainText) {
  const n = forget.length,
    m = retain.length;
  if (!n || !m) return { value: NaN, stderr: NaN, forget: n, retain: m };
  const f = Float64Array.from(forget).sort(),
    r = Float64Array.from(retain).sort();
  const above = Float64Array.from(forget, (v) => below(r, v) / m);
  const under = Float64Array.from(retain, (v) => 1 - below(f, v) / n);
  let value = 0;
  for (const v of above) value += v;
  value /= n;
  const variance = clustered(above, value, forgetText) + clustered(under, value, retainText);
  return { value, stderr: Math.sqrt(variance), forget: n, retain: m };
}

function below(ordered, value) {
  const bound = (right) => {
    let low = 0,
      high = ordered.length;
    while (low < high) {
      const mid = (low + high) >> 1;
      if (right ? ordered[mid] <= value : ordered[mid] < value) low = mid + 1;
      else high = mid;
    }
    return low;
  };
  return (bound(false) + bound(true)) / 2;
}

function clustered(values, mean, text) {
  const sums = new Map();
  for (let i = 0; i < values.length; i++) sums.set(text[i], (sums.get(text[i]) || 0) + values[i] - mean);
  const k = sums.size;
  if (k < 2) return NaN;
  let total = 0;
  for (const s of sums.values()) total += s * s;
  return (total * k) / (k - 1) / values.length ** 2;
}

/** Scores of `test` rows under a standardised logistic probe, L2 with C = 1; Newton with step halving. */
export function probe(rows, truth, test, k) {
  const n = truth.length,
    w = k + 1;
  const mean = new Float64Array(k),
    scale = new Float64Array(k);
  for (let j = 0; j < k; j++) {
    for (let i = 0; i < n; i++) mean[j] += rows[i * k + j];
    mean[j] /= n;
    for (let i = 0; i < n; i++) scale[j] += (rows[i * k + j] - mean[j]) ** 2;
    scale[j] = Math.sqrt(scale[j] / n);
    if (scale[j] <= 1e-12 * Math.abs(mean[j]) + 1e-300) scale[j] = 1;
  }
  const x = new Float64Array(n * w);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < k; j++) x[i * w + j] = (rows[i * k + j] - mean[j]) / scale[j];
    x[i * w + k] = 1;
  }
  const z = new Float64Array(n);
  let weights = new Float64Array(w),
    step = new Float64Array(w),
    best = Infinity;
  const moved = () => weights.map((v, j) => v + step[j]);
  const loss = (at) => {
    let sum = 0;
    for (let i = 0; i < n; i++) {
      let s = 0;
      for (let j = 0; j < w; j++) s += x[i * w + j] * at[j];
      z[i] = s;
      sum += Math.max(0, s) + Math.log1p(Math.exp(-Math.abs(s))) - s * truth[i];
    }
    for (let j = 0; j < k; j++) sum += (at[j] * at[j]) / 2;
    return sum;
  };
  for (let round = 0; round < 60; round++) {
    let now = loss(moved());
    for (let half = 0; half < 30 && !(now <= best + 1e-12 * Math.abs(now)); half++) {
      step = step.map((v) => v / 2);
      now = loss(moved());
    }
    weights = moved();
    best = now;
    const gradient = new Float64Array(w),
      hessian = new Float64Array(w * w);
    for (let i = 0; i < n; i++) {
      const p = 1 / (1 + Math.exp(-z[i])),
        d = p * (1 - p),
        row = i * w;
      for (let a = 0; a < w; a++) {
        const xa = x[row + a];
        gradient[a] += xa * (p - truth[i]);
        for (let b = 0; b <= a; b++) hessian[a * w + b] += d * xa * x[row + b];
      }
    }
    for (let j = 0; j < k; j++) {
      gradient[j] += weights[j];
      hessian[j * w + j] += 1;
    }
    step = solve(hessian, gradient, w).map((v) => -v);
    if (step.every((v) => Math.abs(v) < 1e-11)) break;
  }
  const scores = new Float64Array(test.length / k);
  for (let i = 0; i < scores.length; i++) {
    let s = weights[k];
    for (let j = 0; j < k; j++) s += ((test[i * k + j] - mean[j]) / scale[j]) * weights[j];
    scores[i] = Math.floor(s / GRID + 0.5);
  }
  return scores;
}

/** x with A x = b, for a positive definite A given by its lower triangle (Cholesky). */
function solve(a, b, n) {
  const l = Float64Array.from(a),
    x = Float64Array.from(b);
  for (let i = 0; i < n; i++)
    for (let j = 0; j <= i; j++) {
      let s = l[i * n + j];
      for (let k = 0; k < j; k++) s -= l[i * n + k] * l[j * n + k];
      l[i * n + j] = i === j ? Math.sqrt(s) : s / l[j * n + j];
    }
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < i; k++) x[i] -= l[i * n + k] * x[k];
    x[i] /= l[i * n + i];
  }
  for (let i = n - 1; i >= 0; i--) {
    for (let k = i + 1; k < n; k++) x[i] -= l[k * n + i] * x[k];
    x[i] /= l[i * n + i];
  }
  return x;
}

/** The live numbers for these components of a place; as Packed.readout. */
export function readout(view, place, components) {
  const block = view.block(place),
    entry = view.places[place],
    pick = [...components].sort((a, b) => a - b);
  const energy = [0, 0, 0];
  for (const c of pick) for (let i = 0; i < 3; i++) energy[i] += block.energy[c * 3 + i];
  let disruption = 0;
  for (const a of pick) for (const b of pick) disruption += block.disruption[a * entry.count + b];
  return {
    auc: heldOut(view, block, entry.count, pick),
    forget: energy[0],
    retain: energy[1],
    unrelated: energy[2],
    random: pick.length / entry.width,
    disruption: disruption / 2,
  };
}

function heldOut(view, block, count, pick) {
  const k = pick.length,
    parts = { fitted: [], truth: [], test: [], kind: [] };
  const counts = [0, 0, 0, 0]; // held forget, held retain, fitted forget, fitted retain
  view.items.forEach((text, i) => {
    const held = view.text_held[text] === 1,
      kind = view.text_corpus[text];
    counts[(held ? 0 : 2) + kind]++;
    const into = held ? parts.test : parts.fitted;
    for (const c of pick) into.push(block.items[i * count + c] * block.item_scale[c]);
    (held ? parts.kind : parts.truth).push(kind === FORGET ? 1 : 0);
  });
  if (!k || counts.includes(0)) return { value: NaN, stderr: NaN, forget: counts[0], retain: counts[1] };
  const scores = probe(parts.fitted, parts.truth, parts.test, k);
  const forget = scores.filter((_, i) => parts.kind[i] === 1),
    retain = scores.filter((_, i) => parts.kind[i] === 0);
  return auc(
    forget,
    retain,
    forget.map((_, i) => i),
    retain.map((_, i) => i),
  );
}

/** `auc` of single held-out tokens along one component, given its codes: integers, so ranks are counted, not sorted. */
export function tokenAuc(view, codes) {
  const { token_corpus: corpus, token_text: text } = view,
    own = view.judged.filter((i) => i < codes.length);
  const [forget, retain] = [FORGET, RETAIN].map((kind) => own.filter((i) => corpus[i] === kind)),
    [n, m] = [forget.length, retain.length];
  if (!n || !m) return { value: NaN, stderr: NaN, forget: n, retain: m };
  /** For every one of `these` the share of `others` below it, ties half. */
  const shareBelow = (these, others) => {
    const below = new Uint32Array(CODES + 1); // at a code: how many lower ones there are
    for (const i of others) below[codes[i] + MIDDLE + 1]++;
    for (let v = 1; v <= CODES; v++) below[v] += below[v - 1];
    const out = new Float64Array(these.length);
    these.forEach((i, j) => {
      out[j] = (below[codes[i] + MIDDLE] + below[codes[i] + MIDDLE + 1]) / 2 / others.length;
    });
    return out;
  };
  const above = shareBelow(forget, retain),
    under = shareBelow(retain, forget).map((v) => 1 - v),
    value = above.reduce((a, b) => a + b, 0) / n,
    texts = (these) => these.map((i) => text[i]);
  const variance = clustered(above, value, texts(forget)) + clustered(under, value, texts(retain));
  return { value, stderr: Math.sqrt(variance), forget: n, retain: m };
}

/** Per attack point the squared distance of the class means inside the chosen directions. */
export function signal(view, place, components) {
  const { means } = view.block(place),
    k = view.places[place].count;
  return view.time.map((_, t) => {
    let sum = 0;
    for (const c of components) sum += (means[(t * k + c) * 2] - means[(t * k + c) * 2 + 1]) ** 2;
    return sum;
  });
}

/** The codes of one component, of the original model (frame -1) or after an attack step; `unit` times these are coordinates. */
export function column(view, place, component, frame = -1) {
  const block = view.block(place),
    entry = view.places[place],
    k = entry.count,
    moved = frame >= 0,
    from = moved ? block.frames : block.codes,
    out = new Int16Array(moved ? entry.frames : entry.tokens);
  for (let i = 0, at = (moved ? frame * entry.frames * k : 0) + component; i < out.length; i++, at += k)
    out[i] = from[at];
  return out;
}

function unit(view, place, component, frame) {
  const block = view.block(place);
  return (frame < 0 ? block.scale : block.frame_scale)[component];
}

// ------------------------------------------------------------------------------------------ drawing

const SEPARATION = {
  light: ["#f0f1ee", "#c9dfe0", "#7db8c9", "#2f7fae", "#12456f", "#0a2746"],
  dark: ["#262b32", "#264754", "#2f7187", "#55a5ba", "#a3d3da", "#edf7f4"],
};
const RATIO = {
  light: ["#8a4a10", "#d9955a", "#f1dcc6", "#f0f0ee", "#cfdcec", "#6f9cc8", "#174f86"],
  dark: ["#f0b070", "#b9702e", "#5d4633", "#262b32", "#2f4a66", "#5b92c8", "#a9d1f5"],
};

const METRICS = {
  separation: {
    label: "separation",
    long: "held-out AUC minus AUC with shuffled labels",
    value: (p) => p.auc - p.auc_shuffled,
    colours: SEPARATION,
    from: 0,
    text: (v) => v.toFixed(2),
  },
  retain: {
    label: "retain",
    long: "share of retain energy inside, in multiples of a random subspace",
    value: (p) => Math.log2(p.retain_energy / p.random_energy),
    colours: RATIO,
    flip: true,
    text: (v) => `×${short(2 ** v)}`,
  },
  ratio: {
    label: "ratio",
    long: "forget / retain: share of forget energy over share of retain energy; a random subspace: ×1",
    value: (p) => Math.log2(p.forget_energy / p.retain_energy),
    colours: RATIO,
    text: (v) => `×${short(2 ** v)}`,
  },
};

/** "#rrggbb" as three numbers. */
const channels = (hex) => [1, 3, 5].map((j) => parseInt(hex.slice(j, j + 2), 16));

function between(stops, t) {
  const at = Math.min(1, Math.max(0, t)) * (stops.length - 1),
    i = Math.min(stops.length - 2, Math.floor(at)),
    f = at - i;
  const a = channels(stops[i]),
    b = channels(stops[i + 1]);
  return a.map((v, j) => Math.round(v + (b[j] - v) * f));
}

const short = (x) =>
  x >= 100 || x === 0
    ? x.toFixed(0)
    : x >= 10
      ? x.toFixed(1)
      : x >= 0.01
        ? x.toPrecision(2)
        : x.toExponential(1).replace("e-", "e−");
const number = (x) => (Number.isFinite(x) ? x.toLocaleString("en") : "–");
const fixed = (x, digits = 2) => (Number.isFinite(x) ? x.toFixed(digits).replace("-", "−") : "–");
const percent = (x) =>
  Number.isFinite(x) ? `${x * 100 >= 10 ? (x * 100).toFixed(0) : (x * 100).toPrecision(2)} %` : "–";
const nats = (x) =>
  !Number.isFinite(x) ? "–" : x === 0 ? "0" : x < 1e-4 ? x.toExponential(1).replace("e-", "e−") : x >= 100 ? x.toFixed(0) : x.toPrecision(2);
/** As many decimals as the error allows; no error where there is none to be had (a perfect separation). */
function plusMinus({ value, stderr }) {
  const digits = stderr > 0 && stderr < 0.005 ? 3 : 2;
  return fixed(value, digits) + (Number.isFinite(value) && stderr > 0 ? ` ± ${fixed(stderr, digits)}` : "");
}

/** An element. Strings become text nodes; there is no other way for text to get in. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [k, v] of Object.entries(value)) element.style.setProperty(k, v);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

const due = new Set();
let asked = false;

/** `work` in the next frame: once, however often it is asked for before. */
function soon(work) {
  due.add(work);
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    for (const next of due) {
      due.delete(next); // first: an error must not hold up what comes later
      next();
    }
  });
}

/** A canvas that follows the size of its box; `draw(context, width, height)` in CSS pixels, in the frame after `redraw()`. */
function surface(className, draw, attributes = {}) {
  const canvas = h("canvas", { class: className, ...attributes });
  const paint = () => {
    const { clientWidth: w, clientHeight: height } = canvas,
      ratio = Math.min(2, window.devicePixelRatio || 1);
    if (!w || !height) return;
    if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(w * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, w, height);
    draw(context, w, height);
  };
  canvas.redraw = () => soon(paint);
  return canvas;
}

/** Squares of `size` CSS pixels around points, blended one after the other over a ground (a colour and its opacity): what
 * fillRect would draw, which takes ten times as long for 20,000 of them. `kinds` are indices of `colours`; only the points
 * that have a mark. What was drawn on the canvas before is gone. */
function splat(context, { x, y, kinds, marks, colours, alpha, size, ground = null }) {
  const { width, height } = context.canvas,
    ratio = context.getTransform().a,
    side = size * ratio,
    image = context.createImageData(width, height),
    data = image.data,
    inks = colours.map(channels);
  if (ground) {
    const [r, g, b] = channels(ground.colour),
      opacity = Math.round(255 * ground.alpha);
    for (let row = 0; row < Math.round(ground.bottom * ratio); row++)
      for (let at = 4 * (row * width + Math.round(ground.left * ratio)); at < 4 * (row + 1) * width; at += 4) {
        data[at] = r;
        data[at + 1] = g;
        data[at + 2] = b;
        data[at + 3] = opacity;
      }
  }
  for (let i = 0; i < marks.length; i++) {
    if (!marks[i]) continue;
    const ink = inks[kinds[i]],
      left = x[i] * ratio - side / 2,
      top = y[i] * ratio - side / 2;
    const from = Math.max(0, Math.floor(left)),
      to = Math.min(width, Math.ceil(left + side)),
      last = Math.min(height, Math.ceil(top + side));
    for (let row = Math.max(0, Math.floor(top)); row < last; row++) {
      const share = alpha * (Math.min(row + 1, top + side) - Math.max(row, top));
      for (let col = from, at = 4 * (row * width + from); col < to; col++, at += 4) {
        const a = share * (Math.min(col + 1, left + side) - Math.max(col, left)),
          under = (data[at + 3] / 255) * (1 - a),
          all = a + under;
        if (all <= 0) continue;
        const own = a / all; // the colour of a pixel is not multiplied by its opacity
        data[at] += (ink[0] - data[at]) * own;
        data[at + 1] += (ink[1] - data[at + 1]) * own;
        data[at + 2] += (ink[2] - data[at + 2]) * own;
        data[at + 3] = 255 * all;
      }
    }
  }
  context.putImageData(image, 0, 0);
}

function ticks(low, high, wanted = 4) {
  const raw = (high - low) / wanted,
    power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const out = [];
  for (let v = Math.ceil(low / step) * step; v <= high + 1e-9 * step; v += step)
    out.push(Math.abs(v) < step / 1e6 ? 0 : v);
  return out;
}

/** Two quantiles of codes. */
function quantiles(codes, low, high) {
  if (!codes.length) return [-1, 1];
  const sorted = codes.slice().sort();
  return [low, high].map((q) => sorted[Math.round(q * (sorted.length - 1))]);
}

/** Whether a horizontal line from (x, y) to the right meets the edge from a to b; the same from b to a, to the last bit. */
function meets(ax, ay, bx, by, x, y) {
  if (ay > by) [ax, ay, bx, by] = [bx, by, ax, ay];
  return ay <= y && y < by && x < ax + ((y - ay) * (bx - ax)) / (by - ay);
}

/** A lasso that grows point by point: which of `count` tokens lie inside it, by the even-odd rule. Closed anew with every
 * point, it changes by the triangle of its first point and the last two, so that a long path costs no more than a short one. */
export class Lasso {
  constructor(count) {
    this.path = [];
    this.inside = new Uint8Array(count);
  }

  /** Takes in the tokens, at `xs` and `ys`, of the triangle that one more point adds, and lets go of those it covers twice. */
  add(point, xs, ys) {
    const [[ax, ay], [bx, by]] = [this.path[0] ?? point, this.path.at(-1) ?? point],
      [cx, cy] = point;
    this.path.push(point);
    const low = Math.min(ay, by, cy),
      high = Math.max(ay, by, cy),
      right = Math.max(ax, bx, cx);
    for (let i = 0; i < xs.length; i++) {
      const x = xs[i],
        y = ys[i];
      if (y < low || y >= high || x >= right) continue;
      this.inside[i] ^= meets(ax, ay, bx, by, x, y) ^ meets(bx, by, cx, cy, x, y) ^ meets(cx, cy, ax, ay, x, y);
    }
  }
}

// ------------------------------------------------------------------------------------------- explorer

const SHARED = ["place", "axes", "chosen", "pinned", "step", "picked"]; // what Python sees and sets
const MARGIN = { left: 38, right: 10, top: 10, bottom: 20 };

/** Everything on screen. `port` is the other side: get, set, save, on, send, live. */
class Explorer {
  constructor(el, view, port) {
    this.view = view;
    this.port = port;
    this.state = {
      place: view.header.open,
      axes: [0, 1],
      chosen: {},
      pinned: [],
      step: 0,
      picked: [],
      metric: "separation",
      side: view.places[view.header.open].side,
      shown: [true, true, true],
      held: false,
      mode: "lasso",
      rows: ROWS,
    };
    for (const key of SHARED) {
      const given = port.get(key);
      if (given !== undefined && given !== null && !(key === "place" && given < 0)) this.state[key] = given;
    }
    this.state.side = this.entry.side;
    // the points in time that the slider stops at: the original, then the edited arm
    const edited = view.time.map((p, i) => ({ ...p, i })).filter((p) => p.arm === "edited");
    this.stops = [{ arm: "original", step: 0, i: 0, frame: -1 }, ...edited.map((p, frame) => ({ ...p, frame }))];
    this.cache = new Map();
    this.readouts = new Map();
    this.cursor = { x: 0.5, y: 0.5, r: 0.06 };
    this.asked = new Set();
    this.follow = () => this.dragged();
    this.widen = () => this.brushed();
    this.build(el);
    this.theme();
    this.listen();
    this.openPlace();
  }

  get entry() {
    return this.view.places[this.state.place];
  }
  get count() {
    return this.entry.count;
  }
  get frame() {
    return this.entry.frames ? this.stops[this.state.step].frame : -1;
  }
  get n() {
    return this.frame < 0 ? this.entry.tokens : this.entry.frames;
  }
  get components() {
    const own = this.state.chosen[this.state.place];
    return own ? own.filter((c) => c < this.count) : Array.from({ length: this.count }, (_, i) => i);
  }
  /** Picked tokens stay picked from place to place; a place may hold fewer of them. */
  get picked() {
    return this.state.picked.filter((i) => i < this.n);
  }
  get axes() {
    return this.state.axes.map((a) => Math.min(a, this.count - 1));
  }

  name(p = this.entry) {
    return `${p.site} · ${p.side}`;
  }

  /** What is made of one component after one attack step is made once: its codes, and what follows from them. */
  along(component, frame = this.frame) {
    const { view, cache } = this,
      { place } = this.state,
      key = `${place} ${component} ${frame}`;
    if (!cache.has(key)) {
      if (cache.size > 128) cache.clear();
      const codes = column(view, place, component, frame),
        scale = unit(view, place, component, frame);
      const later = {};
      cache.set(key, {
        codes,
        scale,
        get auc() {
          return (later.auc ??= tokenAuc(view, codes));
        },
        /** What is shown of an axis; after an attack step fewer tokens are extreme by accident. */
        get reach() {
          const share = frame < 0 ? 0.002 : 0.01;
          return (later.reach ??= quantiles(codes, share, 1 - share).map((v) => v * scale));
        },
      });
    }
    return cache.get(key);
  }
  /** The live numbers of components of this place. */
  readout(components) {
    const key = `${this.state.place}: ${components}`;
    if (!this.readouts.has(key)) this.readouts.set(key, readout(this.view, this.state.place, components));
    return this.readouts.get(key);
  }

  /** Changes shared state, tells Python, draws what depends on it. */
  set(changes) {
    Object.assign(this.state, changes);
    for (const key of SHARED) if (key in changes) this.port.set(key, structuredClone(this.state[key]));
    this.port.save();
    this.changed(Object.keys(changes));
  }

  changed(keys) {
    const any = (...names) => names.some((n) => keys.includes(n));
    if (any("place")) return this.openPlace();
    if (any("metric", "side")) this.drawMap();
    if (any("pinned")) this.markMap();
    if (any("axes", "step", "shown", "held")) this.drawTokens();
    if (any("picked", "axes")) this.drawPicked();
    else if (any("step")) this.settle();
    if (any("chosen")) this.drawReadout();
    if (any("chosen", "step")) this.drawTime();
    if (any("axes")) this.drawAxes();
  }

  listen() {
    for (const key of SHARED)
      this.port.on(key, (value) => {
        if (value === undefined || JSON.stringify(value) === JSON.stringify(this.state[key])) return;
        this.state[key] = value;
        this.changed([key]);
      });
    this.port.receive((message, buffers) => {
      if (message.kind === "preview") this.drawAnswer(message);
      if (message.kind !== "place" || !buffers.length) return;
      const place = this.view.replace(buffers[0]);
      this.cache.clear();
      this.readouts.clear();
      if (place === this.state.place) this.openPlace();
    });
    const dark = window.matchMedia("(prefers-color-scheme: dark)"),
      follow = () => this.isDark() !== (this.root.dataset.theme === "dark") && this.theme();
    dark.addEventListener("change", follow);
    // notebooks have a theme of their own
    const watch = new MutationObserver(follow);
    watch.observe(document.body, { attributes: true, attributeFilter: ["class", "data-jp-theme-light", "data-theme"] });
    // also the first time that there is a size: a notebook attaches the element only after this, and with it the style
    const sizes = new ResizeObserver(() => this.theme());
    sizes.observe(this.root);
    this.close = () => {
      dark.removeEventListener("change", follow);
      watch.disconnect();
      sizes.disconnect();
    };
  }

  /** Whether the page around is dark: as the notebook says, or else the system. */
  isDark() {
    const { dataset, classList } = document.body;
    if (dataset.jpThemeLight) return dataset.jpThemeLight === "false";
    if (classList.contains("vscode-dark") || dataset.theme === "dark") return true;
    if (classList.contains("vscode-light") || dataset.theme === "light") return false;
    return window.matchMedia("(prefers-color-scheme: dark)").matches;
  }

  theme() {
    const name = this.isDark() ? "dark" : "light";
    const turned = this.root.dataset.theme !== name;
    this.root.dataset.theme = name;
    const style = getComputedStyle(this.root),
      colour = (role) => style.getPropertyValue(`--${role}`).trim();
    this.colour = Object.fromEntries(
      ["ink", "muted", "rule", "card", "forget", "retain", "unrelated", "accent", "edited", "original", "never"].map(
        (n) => [n, colour(n)],
      ),
    );
    this.colours = [this.colour.forget, this.colour.retain, this.colour.unrelated];
    this.font = `11px ${style.fontFamily}`;
    if (this.cells && turned) this.drawMap();
    this.redraw();
  }

  redraw() {
    for (const canvas of [this.grid, this.scatter, this.overlay, this.histogram, this.curve, this.line]) canvas?.redraw();
  }

  // ---------------------------------------------------------------------------------------- building

  build(el) {
    const { header } = this.view,
      facts = header.facts;
    const sides = [...new Set(header.places.map((p) => p.side))];
    this.root = h("div", {
      class: "hlx",
      role: "group",
      "data-lm-suppress-shortcuts": "true",
      "aria-label": "subspace explorer",
      onkeydown: (e) => this.key(e),
    });
    this.title = h("h3", {});
    this.pin = h("button", {
      class: "hlx-pin",
      type: "button",
      title: "keep this place for explorer.selection (p)",
      onclick: () => this.togglePin(),
    });
    const help = h(
      "details",
      { class: "hlx-help" },
      h("summary", { title: "keys" }, "keys"),
      h(
        "dl",
        {},
        ...[
          ["arrows on the map", "move to another place"],
          ["[  ]", "rank down, up"],
          ["1 … 9", "in or out: a component"],
          ["x  y", "next component on that axis"],
          ["arrows, + −, enter on the plot", "move and resize the ring, pick the tokens in it"],
          ["shift / alt while drawing", "add to, take from the picked"],
          [",  .", "earlier, later in the attack"],
          ["p", "keep the place"],
          ["esc", "pick nothing"],
        ].map(([k, v]) => h("div", {}, h("dt", {}, k), h("dd", {}, v))),
      ),
    );
    this.live = h("p", { class: "hlx-live", "aria-live": "polite" });

    // left: the map
    const segmented = (name, options, current, choose) =>
      h(
        "div",
        { class: "hlx-seg", role: "radiogroup", "aria-label": name },
        ...Object.entries(options).map(([value, label]) =>
          h(
            "label",
            {},
            h("input", {
              type: "radio",
              name: `${name}-${(this.id ??= Math.random().toString(36).slice(2))}`,
              value,
              checked: value === current,
              onchange: () => choose(value),
            }),
            h("span", {}, label),
          ),
        ),
      );
    this.map = h("div", { class: "hlx-map", role: "grid", "aria-label": "layers by sites" });
    this.scale = h("div", { class: "hlx-scale" });
    const left = h(
      "section",
      { class: "hlx-left", "aria-label": "where" },
      segmented(
        "measure",
        Object.fromEntries(Object.entries(METRICS).map(([k, m]) => [k, m.label])),
        this.state.metric,
        (metric) => this.set({ metric }),
      ),
      sides.length > 1 &&
        segmented("side", { x: "inputs x", g: "gradients g" }, this.state.side, (side) => this.setSide(side)),
      this.map,
      this.scale,
    );

    // middle: tokens
    this.axisSelects = [0, 1].map((i) =>
      h("select", {
        "aria-label": i ? "vertical axis" : "horizontal axis",
        onchange: (e) => this.set({ axes: this.axes.map((a, j) => (j === i ? +e.target.value : a)) }),
      }),
    );
    this.chips = header.corpora.map((name, c) => {
      const count = h("small", {}),
        toggle = () => this.set({ shown: this.state.shown.map((s, i) => (i === c ? !s : s)) });
      const chip = h("button", { type: "button", class: `hlx-chip hlx-${name}`, onclick: toggle }, h("i", {}), name, count);
      return { chip, count };
    });
    this.heldOnly = h("input", { type: "checkbox", onchange: (e) => this.set({ held: e.target.checked }) });
    this.legend = h(
      "div",
      { class: "hlx-legend" },
      ...this.chips.map(({ chip }) => chip),
      h("label", { class: "hlx-check" }, this.heldOnly, "held-out only"),
    );
    this.grid = surface("hlx-ticks", (c, w, height) => this.paintGrid(c, w, height));
    this.scatter = surface("hlx-dots", (c) => this.paintDots(c));
    this.overlay = surface("hlx-over", (c, w, height) => this.paintOver(c, w, height), {
      tabindex: "0",
      role: "application",
      "aria-label":
        "tokens on two components. Arrow keys move a ring, plus and minus resize it, enter picks the tokens in it, escape picks none.",
      onpointerdown: (e) => this.dragStart(e),
      onpointermove: (e) => this.dragMove(e),
      onpointerup: (e) => this.dragEnd(e),
      onpointercancel: (e) => this.dragEnd(e),
      onpointerleave: () => this.hover(null),
      onkeydown: (e) => this.plotKey(e),
      onfocus: () => this.overlay.redraw(),
      onblur: () => this.overlay.redraw(),
    });
    this.tip = h("div", { class: "hlx-tip", hidden: true });
    this.histogram = surface("hlx-hist", (c, w, height) => this.paintHistogram(c, w, height), {
      role: "img",
      onpointerdown: (e) => this.brushStart(e),
      onpointermove: (e) => this.brushMove(e),
      onpointerup: (e) => this.brushEnd(e),
      onpointercancel: (e) => this.brushEnd(e),
    });
    this.alongText = h("p", { class: "hlx-along" });
    this.list = h("div", { class: "hlx-picked" });
    const middle = h(
      "section",
      { class: "hlx-middle", "aria-label": "tokens" },
      h(
        "div",
        { class: "hlx-tools" },
        h("span", { class: "hlx-pair" }, this.axisSelects[0], h("i", {}, "×"), this.axisSelects[1]),
        segmented("mode", { lasso: "lasso", box: "box" }, this.state.mode, (mode) => {
          this.state.mode = mode;
        }),
      ),
      this.legend,
      h("div", { class: "hlx-plot" }, this.grid, this.scatter, this.overlay, this.tip),
      this.alongText,
      this.histogram,
      this.list,
    );

    // right: components
    this.tiles = h("div", { class: "hlx-tiles", role: "group", "aria-label": "read-outs for the chosen components" });
    this.curve = surface("hlx-curve", (c, w, height) => this.paintCurve(c, w, height), {
      role: "img",
      "aria-label": "held-out AUC by rank",
    });
    this.rank = h("input", {
      type: "range",
      min: "1",
      step: "1",
      class: "hlx-rank",
      "aria-label": "rank",
      oninput: (e) => this.setRank(+e.target.value),
    });
    this.rankLabel = h("output", { class: "hlx-ranklabel" });
    this.cards = h("ol", { class: "hlx-cards", tabindex: "0", "aria-label": "components" });
    const right = h(
      "section",
      { class: "hlx-right", "aria-label": "components" },
      this.tiles,
      h(
        "div",
        { class: "hlx-ranks" },
        h("div", {}, h("label", {}, "rank"), this.rankLabel),
        this.curve,
        this.rank,
        h("p", { class: "hlx-key" }, "line: held-out AUC by rank, dots: null · ", h("span", {}, "area: retain energy")),
      ),
      this.cards,
    );

    // below: time
    if (this.stops.length > 1) {
      this.line = surface("hlx-line", (c, w, height) => this.paintTime(c, w, height), { role: "img" });
      this.timeLabel = h("p", { class: "hlx-timelabel" });
      this.slider = h("input", {
        type: "range",
        min: "0",
        max: String(this.stops.length - 1),
        step: "1",
        value: String(this.state.step),
        "aria-label": "attack step",
        oninput: (e) => this.set({ step: +e.target.value }),
      });
      this.timePanel = h(
        "section",
        { class: "hlx-time", "aria-label": "attack steps" },
        h(
          "div",
          {},
          h("h4", {}, "Do the directions come back?", facts.attack && h("small", {}, ` under ${facts.attack}`)),
          this.timeLabel,
          this.slider,
          h(
            "div",
            { class: "hlx-stops" },
            ...this.stops.map((s) => h("span", {}, s.frame < 0 ? "original" : s.step ? number(s.step) : "edited")),
          ),
        ),
        this.line,
      );
    }
    // below: the model itself, where a kernel holds one
    if (this.port.live && this.port.get("asks")) {
      const prompt = h("input", { type: "text", "aria-label": "prompt", placeholder: "a prompt" });
      const scale = h("input", { type: "range", min: "-2", max: "4", step: "0.5", value: "0", "aria-label": "scale" });
      const says = h("output", {}),
        tell = () => says.replaceChildren(scaling(+scale.value));
      scale.addEventListener("input", tell);
      tell();
      this.answer = h("dl", { "aria-live": "polite" });
      this.ask = h("button", { type: "submit" }, "ask");
      this.askPanel = h(
        "form",
        {
          class: "hlx-ask",
          "aria-label": "what the model says",
          onsubmit: (e) => {
            e.preventDefault();
            if (!prompt.value.trim()) return prompt.focus();
            this.ask.disabled = true;
            this.port.send({ kind: "preview", prompt: prompt.value, scale: +scale.value });
          },
        },
        h("h4", {}, "What does it say with the chosen directions scaled?"),
        h("div", {}, prompt, scale, says, this.ask),
        this.answer,
      );
    }
    const scored = facts.n_tokens
      ? Object.entries(facts.n_tokens)
          .filter(([, v]) => v)
          .map(([k, v]) => `${number(v)} ${k}`)
          .join(", ")
      : "";
    this.root.append(
      h(
        "header",
        { class: "hlx-head" },
        h(
          "div",
          {},
          h("p", { class: "hlx-eyebrow" }, facts.model ? `Subspaces of ${facts.model}` : "Subspaces"),
          this.title,
        ),
        this.pin,
        help,
      ),
      h("div", { class: "hlx-grid" }, left, middle, right),
      ...[this.timePanel, this.askPanel].filter(Boolean),
      h(
        "p",
        { class: "hlx-note" },
        `${number(header.sampled)} tokens, a sample stratified by corpus and by held out or not${scored ? `, of ${scored}` : ""}. Stored are projections, rounded to 16 bits where a place is kept in full and to 8 elsewhere. `,
        (this.placeNote = h("span", {})),
        " Tokens beyond the frame of the plot stand on its edge. Components are fitted on other texts than the held-out ones; choosing by a held-out number makes that number optimistic.",
      ),
      this.live,
    );
    el.replaceChildren(this.root);
  }

  // -------------------------------------------------------------------------------------------- map

  drawMap() {
    const { metric, side } = this.state,
      m = METRICS[metric];
    const places = this.view.places.map((p, i) => ({ ...p, i })).filter((p) => p.side === side);
    const modules = [...new Set(places.map((p) => p.module))],
      layers = [...new Set(places.map((p) => p.layer))].sort((a, b) => a - b);
    const values = places.map(m.value).filter(Number.isFinite),
      top = Math.max(metric === "separation" ? 0.1 : 0.5, ...values.map(Math.abs));
    const low = m.from ?? -top,
      stops = m.colours[this.root.dataset.theme],
      ordered = m.flip ? [...stops].reverse() : stops;
    const at = new Map(places.map((p) => [`${p.layer} ${p.module}`, p]));
    this.cells = new Map();
    this.cellAt = layers.map((layer) => modules.map((module) => at.get(`${layer} ${module}`)?.i ?? -1));
    const cell = (p) => {
      if (!p) return h("span", { class: "hlx-none", role: "gridcell" });
      const v = m.value(p),
        known = Number.isFinite(v);
      const says = `${this.name(p)}: ${m.label} ${known ? m.text(v) : "not measured"} (AUC ${fixed(p.auc)}, shuffled ${fixed(p.auc_shuffled)}, random subspace ${fixed(p.auc_random)}; energy: forget ${percent(p.forget_energy)}, retain ${percent(p.retain_energy)}, random ${percent(p.random_energy)})`;
      const b = h("button", {
        type: "button",
        role: "gridcell",
        tabindex: "-1",
        title: says,
        "aria-label": says,
        class: known ? "" : "hlx-unknown",
        onclick: () => this.set({ place: p.i }),
      });
      if (known) b.style.background = `rgb(${between(ordered, (v - low) / (top - low))})`;
      this.cells.set(p.i, b);
      return b;
    };
    const every = layers.length > 16 ? 5 : 1;
    this.map.style.setProperty("--columns", modules.length);
    this.map.style.setProperty(
      "--row",
      `${layers.length > 48 ? 9 : layers.length > 24 ? 14 : layers.length > 12 ? 19 : 26}px`,
    );
    this.map.replaceChildren(
      h(
        "div",
        { role: "row", class: "hlx-modules" },
        h("span", {}),
        ...modules.map((name) => h("span", { role: "columnheader" }, name)),
      ),
      ...layers.map((layer, i) =>
        h(
          "div",
          { role: "row" },
          h(
            "span",
            { role: "rowheader", "aria-label": `layer ${layer}` },
            i % every && i !== layers.length - 1 ? "" : String(layer),
          ),
          ...modules.map((module) => cell(at.get(`${layer} ${module}`))),
        ),
      ),
    );
    const gradient = Array.from({ length: 9 }, (_, i) => `rgb(${between(ordered, i / 8)})`).join(", ");
    this.scale.replaceChildren(
      h("span", { class: "hlx-ramp", style: { background: `linear-gradient(to right, ${gradient})` } }),
      h(
        "span",
        { class: "hlx-ends" },
        h("span", {}, m.text(low)),
        m.from === undefined && h("span", {}, m.text(0)),
        h("span", {}, m.text(top)),
      ),
      h("p", {}, m.long),
    );
    this.markMap();
  }

  markMap() {
    for (const [i, b] of this.cells) {
      const current = i === this.state.place;
      b.setAttribute("aria-selected", current);
      b.tabIndex = current ? 0 : -1;
      b.classList.toggle("hlx-pinned", this.state.pinned.includes(i));
    }
    if (!this.cells.has(this.state.place)) this.cells.values().next().value.tabIndex = 0;
    const pinned = this.state.pinned.includes(this.state.place);
    this.pin.setAttribute("aria-pressed", pinned);
    this.pin.replaceChildren(
      pinned ? "kept" : "keep",
      h("small", {}, this.state.pinned.length ? ` ${this.state.pinned.length}` : ""),
    );
  }

  togglePin() {
    const { place, pinned } = this.state;
    this.set({
      pinned: pinned.includes(place) ? pinned.filter((p) => p !== place) : [...pinned, place].sort((a, b) => a - b),
    });
  }

  setSide(side) {
    const here = this.entry,
      twin = this.view.places.findIndex((p) => p.side === side && p.layer === here.layer && p.module === here.module);
    if (twin >= 0) return this.set({ place: twin }); // which shows its side
    this.state.side = side;
    this.drawMap();
  }

  moveOnMap(down, right) {
    let [r, c] = [0, 0];
    this.cellAt.forEach((row, i) =>
      row.forEach((p, j) => {
        if (p === this.state.place) [r, c] = [i, j];
      }),
    );
    do {
      r += down;
      c += right;
    } while (this.cellAt[r]?.[c] === -1);
    const to = this.cellAt[r]?.[c];
    if (to === undefined) return;
    this.set({ place: to });
    this.cells.get(to).focus();
  }

  // ------------------------------------------------------------------------------------------- place

  openPlace() {
    const p = this.entry;
    if (p.bits === 8 && this.port.live && !this.asked.has(this.state.place)) {
      this.asked.add(this.state.place);
      this.port.send({ kind: "place", place: this.state.place });
    }
    this.title.replaceChildren(
      h("code", {}, p.site),
      h("span", {}, p.side === "x" ? "inputs x" : "gradients g"),
      h("small", {}, `${p.fitter}, rank ${p.rank} of ${number(p.width)}`),
    );
    this.placeNote.textContent =
      p.bits === 8
        ? `Here: ${number(p.tokens)} of them, 8 bits${p.count < p.of ? `, ${p.count} of ${p.of} components` : ""}.`
        : "";
    for (const [i, select] of this.axisSelects.entries()) {
      select.replaceChildren(
        ...Array.from({ length: p.count }, (_, c) => h("option", { value: String(c) }, `component ${c + 1}`)),
      );
      select.value = String(this.axes[i]);
    }
    this.rank.max = String(p.count);
    if (!this.cells || this.state.side !== p.side) {
      this.state.side = p.side;
      for (const input of this.root.querySelectorAll('.hlx-seg input[value="x"], .hlx-seg input[value="g"]'))
        input.checked = input.value === p.side;
      this.drawMap();
    } else this.markMap();
    this.byRank = null;
    this.drawTokens();
    this.drawCards();
    this.drawReadout();
    this.drawPicked();
    this.drawTime();
    clearTimeout(this.later);
    this.later = setTimeout(() => {
      // the curve needs a probe per rank: after the first paint
      this.byRank = Array.from({ length: p.count }, (_, k) => this.readout(Array.from({ length: k + 1 }, (_, i) => i)));
      this.curve.redraw();
    }, 30);
  }

  drawAxes() {
    this.axisSelects.forEach((select, i) => {
      select.value = String(this.axes[i]);
    });
    for (const [c, card] of (this.cardOf ?? []).entries())
      card.dataset.axis = this.axes[0] === c ? "x" : this.axes[1] === c ? "y" : "";
  }

  // ------------------------------------------------------------------------------------------- tokens

  drawTokens() {
    const [a, b] = this.axes,
      { shown, held } = this.state,
      { token_corpus: corpus, token_held: isHeld } = this.view;
    // the frame of the original, so that what moves is seen to move
    this.range = [a, b].map((c) => {
      const [original, now] = [this.along(c, -1).reach, this.along(c).reach],
        low = Math.min(original[0], now[0]),
        high = Math.max(original[1], now[1]),
        pad = (high - low || 1) * 0.06;
      return [low - pad, high + pad];
    });
    this.spots = null;
    const counts = [0, 0, 0];
    this.visible = new Uint8Array(this.n);
    for (let i = 0; i < this.n; i++) {
      if (held && !isHeld[i]) continue;
      counts[corpus[i]]++;
      this.visible[i] = shown[corpus[i]] ? 1 : 0;
    }
    this.chips.forEach(({ chip, count }, c) => {
      chip.hidden = !counts[c] && shown[c];
      chip.setAttribute("aria-pressed", shown[c]);
      chip.title = shown[c] ? "hide" : "show";
      count.textContent = number(counts[c]);
    });
    this.heldOnly.checked = held;
    const at = this.along(a).auc;
    this.alongText.replaceChildren(
      h("strong", {}, `Along component ${a + 1}`),
      " held-out tokens: ",
      h("span", {}, `AUC ${plusMinus(at)}`),
      h("small", {}, ` ${number(at.forget)} forget, ${number(at.retain)} retain; error over texts`),
    );
    this.histogram.setAttribute(
      "aria-label",
      `histogram of forget against retain tokens along component ${a + 1}, AUC ${plusMinus(at)}`,
    );
    for (const canvas of [this.grid, this.scatter, this.overlay, this.histogram]) canvas.redraw();
  }

  /** From coordinates to pixels of the plot, and back. */
  project(w, height) {
    const [[x0, x1], [y0, y1]] = this.range,
      { left, right, top, bottom } = MARGIN;
    const sx = (w - left - right) / (x1 - x0),
      sy = (height - top - bottom) / (y1 - y0);
    return {
      x: (v) => left + Math.min(x1 - x0, Math.max(0, v - x0)) * sx,
      y: (v) => height - bottom - Math.min(y1 - y0, Math.max(0, v - y0)) * sy,
      left,
      right: w - right,
      top,
      bottom: height - bottom,
    };
  }

  /** Where the tokens stand on the plot, in CSS pixels: made once for what is shown. */
  get points() {
    const { clientWidth: w, clientHeight: height } = this.scatter;
    if (this.spots?.w === w && this.spots.height === height) return this.spots;
    const to = this.project(w, height),
      [x, y] = this.axes.map((c, i) => {
        const { codes, scale } = this.along(c),
          place = i ? to.y : to.x,
          out = new Float32Array(codes.length);
        for (let j = 0; j < out.length; j++) out[j] = place(codes[j] * scale);
        return out;
      });
    this.spots = { w, height, x, y };
    return this.spots;
  }

  paintGrid(c, w, height) {
    if (!this.range) return;
    const to = this.project(w, height);
    const line = (x0, y0, x1, y1) => {
      c.beginPath();
      c.moveTo(x0, y0);
      c.lineTo(x1, y1);
      c.stroke();
    };
    c.font = this.font;
    c.lineWidth = 1;
    c.textAlign = "center";
    for (const v of ticks(...this.range[0])) {
      const x = Math.round(to.x(v)) + 0.5;
      c.strokeStyle = v === 0 ? this.colour.muted : this.colour.rule;
      line(x, to.top, x, to.bottom);
      c.fillStyle = this.colour.muted;
      c.fillText(label(v), x, height - 6);
    }
    c.textAlign = "right";
    for (const v of ticks(...this.range[1])) {
      const y = Math.round(to.y(v)) + 0.5;
      c.strokeStyle = v === 0 ? this.colour.muted : this.colour.rule;
      line(to.left, y, to.right, y);
      c.fillStyle = this.colour.muted;
      c.fillText(label(v), to.left - 6, y + 4);
    }
  }

  /** In the order of the sample, so that no corpus lies on top of the others. */
  paintDots(c) {
    if (!this.range) return;
    const { x, y } = this.points;
    const [marks, alpha] = [this.visible, this.n > 4000 ? 0.5 : 0.62];
    splat(c, { x, y, kinds: this.view.token_corpus, marks, colours: this.colours, alpha, size: this.dot });
  }

  get dot() {
    return this.n > 12000 ? 1.7 : this.n > 4000 ? 2.2 : this.n > 1200 ? 3 : 4;
  }

  paintOver(c, w, height) {
    if (!this.range) return;
    const { picked } = this,
      { x, y } = this.points;
    if (picked.length) {
      const marks = new Uint8Array(this.n);
      for (const i of picked) marks[i] = this.visible[i];
      const ground = { colour: this.colour.card, alpha: 0.72, left: MARGIN.left, bottom: height - MARGIN.bottom };
      splat(c, { x, y, kinds: this.view.token_corpus, marks, colours: this.colours, alpha: 1, size: this.dot + 0.8, ground });
    }
    c.strokeStyle = this.colour.ink;
    c.lineWidth = 1.3;
    const outline = this.dragging?.outline ?? [];
    if (outline.length > 1) {
      c.beginPath();
      outline.forEach((point, i) => (i ? c.lineTo(...point) : c.moveTo(...point)));
      c.closePath();
      c.globalAlpha = 0.08;
      c.fillStyle = this.colour.ink;
      c.fill();
      c.globalAlpha = 1;
      c.setLineDash([4, 3]);
      c.stroke();
      c.setLineDash([]);
    }
    if (this.hovered >= 0) {
      c.beginPath();
      c.arc(x[this.hovered], y[this.hovered], 5, 0, 7);
      c.stroke();
    }
    if (this.overlay.matches(":focus-visible")) {
      c.beginPath();
      c.arc(...this.ring(w, height), 0, 7);
      c.stroke();
    }
  }

  ring(w = this.overlay.clientWidth, height = this.overlay.clientHeight) {
    return [this.cursor.x * w, this.cursor.y * height, this.cursor.r * Math.min(w, height)];
  }

  paintHistogram(c, w, height) {
    if (!this.range) return;
    const to = this.project(w, height),
      bottom = height - 2,
      most = Math.min(80, Math.floor((to.right - to.left) / 7));
    const bins = Math.max(14, Math.min(most, Math.round(1.4 * Math.sqrt(this.n / 3)))),
      { x } = this.points,
      { judged, token_corpus: corpus } = this.view;
    const counts = [new Float64Array(bins), new Float64Array(bins)],
      total = [0, 0];
    for (const i of judged) {
      if (i >= this.n) break;
      const bin = Math.min(bins - 1, Math.max(0, Math.floor(((x[i] - to.left) / (to.right - to.left)) * bins)));
      counts[corpus[i]][bin]++;
      total[corpus[i]]++;
    }
    const top = Math.max(1e-9, ...counts.map((b, k) => Math.max(...b) / (total[k] || 1))),
      step = (to.right - to.left) / bins;
    c.strokeStyle = this.colour.rule;
    c.beginPath();
    c.moveTo(to.left, bottom);
    c.lineTo(to.right, bottom);
    c.stroke();
    counts.forEach((b, kind) => {
      if (!total[kind]) return;
      const y = (i) => bottom - (b[i] / total[kind] / top) * (bottom - 6);
      c.beginPath();
      c.moveTo(to.left, bottom);
      for (let i = 0; i < bins; i++) {
        c.lineTo(to.left + i * step, y(i));
        c.lineTo(to.left + (i + 1) * step, y(i));
      }
      c.lineTo(to.right, bottom);
      c.fillStyle = c.strokeStyle = this.colours[kind];
      c.globalAlpha = 0.16;
      c.fill();
      c.globalAlpha = 1;
      c.lineWidth = 1.5;
      c.setLineDash(kind === RETAIN ? [5, 2] : []);
      c.stroke();
      c.setLineDash([]);
    });
    if (this.span) {
      c.globalAlpha = 0.12;
      c.fillStyle = this.colour.ink;
      c.fillRect(Math.min(...this.span), 0, Math.abs(this.span[1] - this.span[0]), bottom);
      c.globalAlpha = 1;
    }
  }

  // ------------------------------------------------------------------------------------------- picking

  where(e) {
    const box = e.currentTarget.getBoundingClientRect();
    return [e.clientX - box.left, e.clientY - box.top];
  }

  /** Marks of the visible tokens whose place on the plot passes. */
  within(test) {
    const { x, y } = this.points,
      marks = new Uint8Array(this.n);
    for (let i = 0; i < this.n; i++) marks[i] = this.visible[i] && test(x[i], y[i]) ? 1 : 0;
    return marks;
  }

  /** Which tokens are picked when these are drawn around: they, these and what was picked before (shift), or the latter
   * without them (alt). */
  combine(marks, e) {
    const before = new Uint8Array(this.view.token_text.length),
      out = [];
    if (e.shiftKey || e.altKey) for (const i of this.before) before[i] = 1;
    for (let i = 0; i < before.length; i++) {
      const here = i < marks.length && marks[i];
      if (e.altKey && !e.shiftKey ? before[i] && !here : before[i] || here) out.push(i);
    }
    return out;
  }

  dragStart(e) {
    if (e.button) return;
    e.currentTarget.setPointerCapture(e.pointerId);
    this.before = this.state.picked;
    const lasso = new Lasso(this.n),
      start = this.where(e);
    lasso.add(start, this.points.x, this.points.y);
    this.dragging = { start, lasso, ahead: [], outline: [start], last: start };
    this.hover(null);
  }

  dragMove(e) {
    const { dragging } = this;
    if (!dragging) return this.hover(this.where(e));
    // a browser may hand over several movements at once
    const box = e.currentTarget.getBoundingClientRect(),
      moves = e.getCoalescedEvents?.() ?? [];
    for (const move of moves.length ? moves : [e]) {
      const at = [move.clientX - box.left, move.clientY - box.top];
      if (Math.hypot(at[0] - dragging.last[0], at[1] - dragging.last[1]) < 3) continue;
      dragging.ahead.push(at);
      dragging.last = at;
    }
    dragging.keys = { shiftKey: e.shiftKey, altKey: e.altKey };
    if (dragging.ahead.length) soon(this.follow);
  }

  /** Live, while the pointer is down: the tokens inside are picked on screen, not yet told to Python. */
  dragged() {
    const { dragging } = this;
    if (!dragging?.ahead.length) return;
    const { x, y } = this.points,
      [x0, y0] = dragging.start,
      [x1, y1] = dragging.last;
    let marks;
    if (this.state.mode === "box") {
      const [left, right, top, bottom] = [Math.min(x0, x1), Math.max(x0, x1), Math.min(y0, y1), Math.max(y0, y1)];
      dragging.outline = [dragging.start, [x1, y0], dragging.last, [x0, y1]];
      marks = this.within((a, b) => a >= left && a <= right && b >= top && b <= bottom);
    } else {
      for (const point of dragging.ahead) dragging.lasso.add(point, x, y);
      dragging.outline = dragging.lasso.path;
      marks = dragging.lasso.inside.map((v, i) => v & this.visible[i]);
    }
    dragging.ahead = [];
    this.state.picked = this.combine(marks, dragging.keys);
    this.overlay.redraw();
    this.drawPicked(true);
  }

  dragEnd(e) {
    if (!this.dragging) return;
    this.dragged();
    const click = this.dragging.outline.length < 3;
    this.dragging = null;
    if (click) {
      const marks = new Uint8Array(this.n),
        i = this.nearest(...this.where(e));
      if (i >= 0) marks[i] = 1;
      this.set({ picked: this.combine(marks, e), rows: ROWS });
    } else this.set({ picked: this.state.picked, rows: ROWS });
  }

  nearest(x, y, reach = 9) {
    const { x: xs, y: ys } = this.points;
    let best = -1,
      distance = reach * reach;
    for (let i = 0; i < this.n; i++) {
      if (!this.visible[i]) continue;
      const d = (xs[i] - x) ** 2 + (ys[i] - y) ** 2;
      if (d < distance) {
        distance = d;
        best = i;
      }
    }
    return best;
  }

  hover(at) {
    const i = at ? this.nearest(...at) : -1;
    if (i === (this.hovered ?? -1)) return;
    this.hovered = i;
    this.overlay.redraw();
    this.tip.hidden = i < 0;
    if (i < 0) return;
    this.tip.replaceChildren(this.snippet(i));
    const { x, y, w } = this.points,
      left = x[i] > w / 2;
    this.tip.style.left = left ? "auto" : `${x[i] + 10}px`;
    this.tip.style.right = left ? `${w - x[i] + 10}px` : "auto";
    this.tip.style.top = `${y[i] + 10}px`;
  }

  brushStart(e) {
    if (e.button) return;
    e.currentTarget.setPointerCapture(e.pointerId);
    this.before = this.state.picked;
    this.span = [this.where(e)[0], this.where(e)[0]];
  }

  brushMove(e) {
    if (!this.span) return;
    this.span[1] = this.where(e)[0];
    this.spanKeys = { shiftKey: e.shiftKey, altKey: e.altKey };
    soon(this.widen);
  }

  brushed() {
    if (!this.span) return;
    const low = Math.min(...this.span),
      high = Math.max(...this.span);
    this.state.picked = this.combine(
      this.within((x) => x >= low && x <= high),
      this.spanKeys,
    );
    this.overlay.redraw();
    this.histogram.redraw();
    this.drawPicked(true);
  }

  brushEnd(e) {
    if (!this.span) return;
    const click = Math.abs(this.span[1] - this.span[0]) < 3;
    if (!click) this.brushed();
    this.span = null;
    this.histogram.redraw();
    this.set({ picked: click ? [] : this.state.picked, rows: ROWS });
  }

  /** The list of picked tokens, when the slider has come to rest. */
  settle() {
    clearTimeout(this.resting);
    this.resting = setTimeout(() => this.drawPicked(), 250);
  }

  drawPicked(live = false) {
    if (!live) this.overlay.redraw();
    const { picked } = this,
      corpus = this.view.token_corpus;
    const counts = [0, 0, 0];
    for (const i of picked) counts[corpus[i]]++;
    if (!picked.length) {
      this.list.replaceChildren(
        h("p", { class: "hlx-hint" }, "Draw around tokens, or drag across the histogram, to read them here."),
      );
      return;
    }
    const summary = h(
      "p",
      {},
      h("strong", {}, `${number(picked.length)} token${picked.length > 1 ? "s" : ""}`),
      ...counts.flatMap((n, k) =>
        n
          ? [
              " ",
              h(
                "span",
                { class: `hlx-tag hlx-${this.view.header.corpora[k]}` },
                `${number(n)} ${this.view.header.corpora[k]}`,
              ),
            ]
          : [],
      ),
    );
    if (live) return this.list.firstChild?.replaceWith(summary);
    const { codes, scale } = this.along(this.axes[0]),
      order = [...picked].sort((a, b) => codes[b] - codes[a]),
      shown = order.slice(0, this.state.rows);
    this.list.replaceChildren(
      summary,
      h("ul", {}, ...shown.map((i) => h("li", {}, this.snippet(i, codes[i] * scale)))),
      h(
        "p",
        { class: "hlx-more" },
        `highest on component ${this.axes[0] + 1} first`,
        order.length > shown.length &&
          h(
            "button",
            {
              type: "button",
              onclick: () => {
                this.state.rows += ROWS;
                this.drawPicked();
              },
            },
            `${number(order.length - shown.length)} more`,
          ),
        h("button", { type: "button", onclick: () => this.set({ picked: [] }) }, "pick none"),
      ),
    );
    this.say(`${picked.length} tokens picked: ${counts[0]} forget, ${counts[1]} retain`);
  }

  /** A token in its line: what stands before it, itself, what follows. */
  snippet(i, value) {
    const { view } = this,
      text = view.token_text[i],
      at = view.token_position[i],
      start = view.text_start[text],
      length = view.text_start[text + 1] - start;
    const words = (from, to) => {
      let s = "";
      for (let j = Math.max(0, from); j < Math.min(length, to); j++) s += view.strings[view.text_tokens[start + j]];
      return s;
    };
    const name = view.header.corpora[view.text_corpus[text]],
      held = view.text_held[text];
    const before = words(at - 24, at),
      token = words(at, at + 1),
      after = words(at + 1, at + 14);
    return h(
      "div",
      { class: "hlx-kwic", title: `${before}[${token}]${after}` },
      h("span", {
        class: `hlx-dot hlx-${name}`,
        title: `${name}, ${held ? "held out" : "fitted on"}`,
        role: "img",
        "aria-label": name,
      }),
      h("span", { class: "hlx-before" }, h("bdi", {}, before)),
      h("mark", {}, token),
      h("span", { class: "hlx-after" }, h("bdi", {}, after)),
      value !== undefined && h("small", {}, signed(value)),
    );
  }

  // ------------------------------------------------------------------------------------------- components

  drawCards() {
    const { view } = this,
      block = view.block(this.state.place),
      k = this.count,
      names = view.header.corpora;
    const top = Math.max(1e-12, ...block.energy.filter(Number.isFinite));
    this.boxes = [];
    this.cardOf = Array.from({ length: k }, (_, c) => {
      const { codes, scale, auc: at } = this.along(c, -1);
      const box = h("input", { type: "checkbox", "aria-label": `component ${c + 1}`, onchange: () => this.toggle(c) });
      this.boxes.push(box);
      const words = (i) =>
        Array.from(
          { length: view.header.lens },
          (_, j) => view.strings[block.lens[(c * 4 + i) * view.header.lens + j]],
        ).filter(Boolean);
      const says = (verb, i) => {
        const plus = words(i),
          minus = words(i + 1);
        return (
          plus.length + minus.length > 0 &&
          h(
            "div",
            { class: "hlx-says" },
            h("dt", {}, verb),
            h("dd", {}, h("i", {}, "+"), ...plus.map((t) => h("span", {}, t))),
            h("dd", {}, h("i", {}, "−"), ...minus.map((t) => h("span", {}, t))),
          )
        );
      };
      return h(
        "li",
        { class: "hlx-card" },
        h(
          "div",
          { class: "hlx-cardhead" },
          h("label", {}, box, h("strong", {}, `component ${c + 1}`)),
          h(
            "span",
            { class: "hlx-meta" },
            h(
              "span",
              { title: "token AUC along this component, held-out texts, no sign fixed" },
              "AUC ",
              fixed(at.value),
            ),
            h(
              "span",
              { title: "cosine with the difference of class means (held-out texts)" },
              "cos ",
              fixed(block.cosine[c]),
            ),
          ),
          ...["x", "y"].map((axis, i) =>
            h(
              "button",
              {
                type: "button",
                class: "hlx-axis",
                "data-for": axis,
                title: `show on the ${i ? "vertical" : "horizontal"} axis`,
                "aria-label": `component ${c + 1} on the ${axis} axis`,
                onclick: () => this.set({ axes: this.axes.map((a, j) => (j === i ? c : a)) }),
              },
              axis,
            ),
          ),
        ),
        h(
          "div",
          {
            class: "hlx-bars",
            role: "img",
            "aria-label": names.map((n, i) => `${n} energy ${percent(block.energy[c * 3 + i])}`).join(", "),
          },
          ...names.map(
            (n, i) =>
              Number.isFinite(block.energy[c * 3 + i]) &&
              h(
                "div",
                { class: `hlx-${n}` },
                h("span", {}, n),
                h("b", {}, h("i", { style: { width: `${(100 * block.energy[c * 3 + i]) / top}%` } })),
                h("span", {}, percent(block.energy[c * 3 + i])),
              ),
          ),
        ),
        h("dl", {}, says("writes", 0), says("reads", 2)),
        h("div", { class: "hlx-tops" }, ...this.extremes(codes).map((i) => this.snippet(i, codes[i] * scale))),
      );
    });
    this.cards.replaceChildren(...this.cardOf);
    this.drawAxes();
  }

  /** The two highest and the two lowest tokens, one a text. */
  extremes(values) {
    const pick = (sign) => {
      const found = [];
      for (let i = 0; i < values.length; i++) {
        const v = sign * values[i];
        if (found.length === 2 && v <= sign * values[found[1]]) continue;
        const same = found.findIndex((j) => this.view.token_text[j] === this.view.token_text[i]);
        if (same >= 0) {
          if (v <= sign * values[found[same]]) continue;
          found.splice(same, 1);
        }
        found.push(i);
        found.sort((a, b) => sign * (values[b] - values[a]));
        found.length = Math.min(2, found.length);
      }
      return found;
    };
    return [...pick(1), ...pick(-1).reverse()];
  }

  setRank(k) {
    this.choose(Array.from({ length: k }, (_, i) => i));
  }

  toggle(c) {
    const now = this.components;
    this.choose(now.includes(c) ? now.filter((i) => i !== c) : [...now, c].sort((a, b) => a - b));
  }

  choose(components) {
    this.set({ chosen: { ...this.state.chosen, [this.state.place]: components } });
  }

  drawReadout() {
    const chosen = this.components,
      k = chosen.length,
      p = this.entry,
      facts = this.view.header.facts;
    const r = this.readout(chosen);
    const tile = (name, value, note, key, title) =>
      h("div", { "data-key": key, title }, h("span", {}, name), h("b", {}, value), h("small", {}, note));
    this.tiles.replaceChildren(
      tile(
        "held-out AUC",
        plusMinus(r.auc),
        `${r.auc.forget} + ${r.auc.retain} texts · null ${fixed(p.auc_shuffled)}`,
        "auc",
        `logistic probe on text means; nulls at full rank: shuffled labels ${fixed(p.auc_shuffled)}, random subspace ${fixed(p.auc_random)}`,
      ),
      tile(
        "retain energy",
        percent(r.retain),
        `random ${percent(r.random)} · forget ${percent(r.forget)}`,
        "retain",
        "share of E||x||² of held-out retain tokens inside the chosen directions: what would be lost with them",
      ),
      tile(
        "predicted KL",
        nats(r.disruption),
        `nats per token · ${facts.disruption_tokens ? `${number(facts.disruption_tokens)} ` : ""}${facts.disruption_on ?? "other"} tokens`,
        "disruption",
        "second-order prediction for projecting the chosen directions out of this one place",
      ),
    );
    const prefix = chosen.every((c, i) => c === i);
    this.rank.value = String(Math.max(1, k));
    this.rank.classList.toggle("hlx-custom", !prefix);
    this.rankLabel.textContent =
      prefix && k ? `first ${k} of ${p.count}` : k ? `${k} of ${p.count}, chosen one by one` : "none chosen";
    this.boxes.forEach((box, c) => {
      box.checked = chosen.includes(c);
      this.cardOf[c].classList.toggle("hlx-out", !box.checked);
    });
    this.curve.redraw();
    this.say(
      `${this.rankLabel.textContent}: held-out AUC ${plusMinus(r.auc)}, retain energy ${percent(r.retain)}, predicted KL ${nats(r.disruption)} nats per token`,
    );
  }

  paintCurve(c, w, height) {
    const by = this.byRank,
      k = this.count;
    if (!by) return;
    const x = (i) => (k > 1 ? 9 + (i * (w - 18)) / (k - 1) : w / 2),
      y = (v) => height - 4 - ((v - 0.4) / 0.6) * (height - 12);
    const most = Math.max(1e-12, by[k - 1].retain),
      path = (f) => {
        c.beginPath();
        by.forEach((r, i) => (i ? c.lineTo(x(i), f(r)) : c.moveTo(x(i), f(r))));
      };
    path((r) => height - (r.retain / most) * (height - 12) * 0.7);
    c.lineTo(x(k - 1), height);
    c.lineTo(x(0), height);
    c.closePath();
    c.globalAlpha = 0.16;
    c.fillStyle = this.colour.retain;
    c.fill();
    c.globalAlpha = 1;
    const null_ = y(this.entry.auc_shuffled);
    c.setLineDash([2, 3]);
    c.strokeStyle = this.colour.muted;
    c.lineWidth = 1;
    c.beginPath();
    c.moveTo(0, null_);
    c.lineTo(w, null_);
    c.stroke();
    c.setLineDash([]);
    path((r) => y(Number.isFinite(r.auc.value) ? r.auc.value : 0.5));
    c.strokeStyle = this.colour.ink;
    c.lineWidth = 1.6;
    c.stroke();
    const chosen = this.components,
      here = chosen.length - 1;
    if (here >= 0 && chosen.every((v, i) => v === i)) {
      c.beginPath();
      c.arc(x(here), y(by[here].auc.value), 3.6, 0, 7);
      c.fillStyle = this.colour.accent;
      c.fill();
    }
  }

  // ------------------------------------------------------------------------------------------- time

  drawTime() {
    if (!this.line) return;
    const key = `${this.state.place}: ${this.components}`;
    if (this.sharesOf !== key) {
      const all = signal(this.view, this.state.place, this.components),
        base = all[0] || NaN;
      this.sharesOf = key;
      this.shares = all.map((v) => v / base);
      this.line.setAttribute(
        "aria-label",
        `signal inside the chosen directions: ${this.view.time.map((p, i) => `${p.arm} ${p.step}: ${percent(this.shares[i])}`).join(", ")}`,
      );
    }
    const stop = this.stops[this.state.step],
      share = this.shares[stop.i];
    const twin = this.view.time.findIndex((p) => p.arm === "never" && p.step === stop.step);
    this.slider.value = String(this.state.step);
    this.timeLabel.replaceChildren(
      stop.frame < 0
        ? "The original model: all of the signal is there."
        : `${stop.step ? `After ${number(stop.step)} attack steps` : "Edited, before any attack"}, ${percent(share)} of the original squared distance between the class means is inside the chosen directions${twin >= 0 ? ` (never-learned: ${percent(this.shares[twin])})` : ""}.`,
      !this.entry.frames && stop.frame >= 0
        ? h("small", {}, " Tokens were followed at other places only; the plot shows the original.")
        : "",
    );
    this.line.redraw();
  }

  paintTime(c, w, height) {
    if (!this.shares) return;
    const points = this.view.time,
      last = Math.max(1, ...points.map((p) => p.step)),
      top = Math.max(1.05, ...this.shares.filter(Number.isFinite));
    const x = (s) => 34 + (Math.log2(1 + s) / Math.log2(1 + last)) * (w - 34 - 62),
      y = (v) => height - 18 - (v / top) * (height - 30);
    c.font = this.font;
    c.lineWidth = 1;
    c.strokeStyle = this.colour.rule;
    c.fillStyle = this.colour.muted;
    c.textAlign = "right";
    for (const v of ticks(0, top, 4)) {
      c.beginPath();
      c.moveTo(34, y(v));
      c.lineTo(w - 62, y(v));
      c.stroke();
      c.fillText(`${Math.round(v * 100)}%`, 30, y(v) + 4);
    }
    c.textAlign = "center";
    const steps = [...new Set(points.map((p) => p.step))].sort((a, b) => a - b);
    let right = -Infinity;
    for (const s of steps)
      if (x(s) - right > 26) {
        c.fillText(number(s), x(s), height - 3);
        right = x(s);
      }
    const looks = {
      edited: [this.colour.edited, []],
      never: [this.colour.never, [5, 3]],
      original: [this.colour.original, [2, 2]],
    };
    c.textAlign = "left";
    const ends = [];
    for (const arm of new Set(points.map((p) => p.arm))) {
      const own = points
        .map((p, i) => ({ ...p, v: this.shares[i] }))
        .filter((p) => p.arm === arm && Number.isFinite(p.v));
      if (!own.length) continue;
      const [colour, dash] = looks[arm] ?? [this.colour.muted, []];
      c.strokeStyle = c.fillStyle = colour;
      c.lineWidth = arm === "edited" ? 2.2 : 1.6;
      c.setLineDash(own.length > 1 ? dash : []);
      c.beginPath();
      own.forEach((p, i) => (i ? c.lineTo(x(p.step), y(p.v)) : c.moveTo(x(p.step), y(p.v))));
      if (own.length === 1) {
        c.setLineDash(dash);
        c.lineTo(w - 62, y(own[0].v));
      }
      c.stroke();
      c.setLineDash([]);
      ends.push({ arm, colour, y: y(own[own.length - 1].v) });
    }
    ends
      .sort((a, b) => a.y - b.y)
      .forEach((e, i) => {
        if (i) e.y = Math.max(e.y, ends[i - 1].y + 12);
        c.fillStyle = e.colour;
        c.fillText(e.arm, w - 57, e.y + 4);
      });
    const stop = this.stops[this.state.step];
    c.beginPath();
    c.arc(x(stop.step), y(this.shares[stop.i]), 4.5, 0, 7);
    c.fillStyle = stop.frame < 0 ? this.colour.original : this.colour.edited;
    c.fill();
    c.lineWidth = 2;
    c.strokeStyle = this.colour.card;
    c.stroke();
  }

  // ------------------------------------------------------------------------------------------ asking

  drawAnswer({ plain, changed, scale, error }) {
    this.ask.disabled = false;
    const row = (name, text) => h("div", {}, h("dt", {}, name), h("dd", {}, text || "(nothing)"));
    this.answer.replaceChildren(
      ...(error ? [row("not asked", error)] : [row("as it is", plain), row(scaling(scale), changed)]),
    );
  }

  // ------------------------------------------------------------------------------------------- keys

  key(e) {
    if (e.ctrlKey || e.metaKey || e.defaultPrevented) return;
    const on = e.target,
      typing =
        on.matches?.('select, textarea, input[type="text"]') ||
        (on.matches?.("input") &&
          on.type !== "checkbox" &&
          on.type !== "radio" &&
          !/^[[\]1-9xyp,.]$|^Escape$/.test(e.key));
    if (typing) return;
    const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[e.key];
    const next = (i) => this.set({ axes: this.axes.map((a, j) => (j === i ? (a + 1) % this.count : a)) });
    if (arrows && on.getAttribute("role") === "gridcell") this.moveOnMap(...arrows);
    else if (e.key === "[") this.setRank(Math.max(1, this.components.length - 1));
    else if (e.key === "]") this.setRank(Math.min(this.count, this.components.length + 1));
    else if (/^[1-9]$/.test(e.key) && +e.key <= this.count) this.toggle(+e.key - 1);
    else if (e.key === "x") next(0);
    else if (e.key === "y") next(1);
    else if (e.key === "p") this.togglePin();
    else if (/^[,.]$/.test(e.key) && this.line)
      this.set({ step: Math.min(this.stops.length - 1, Math.max(0, this.state.step + (e.key === "." ? 1 : -1))) });
    else if (e.key === "Escape" && this.state.picked.length) this.set({ picked: [] });
    else return;
    e.preventDefault();
    e.stopPropagation(); // a notebook has its own meaning for most keys
  }

  plotKey(e) {
    if (e.ctrlKey || e.metaKey || (e.altKey && e.key.startsWith("Arrow"))) return; // the browser's own
    const step = e.shiftKey ? 0.01 : 0.04,
      c = this.cursor,
      bound = (v) => Math.min(1, Math.max(0, v));
    if (e.key === "ArrowLeft") c.x = bound(c.x - step);
    else if (e.key === "ArrowRight") c.x = bound(c.x + step);
    else if (e.key === "ArrowUp") c.y = bound(c.y - step);
    else if (e.key === "ArrowDown") c.y = bound(c.y + step);
    else if (e.key === "+" || e.key === "=") c.r = Math.min(0.5, c.r * 1.25);
    else if (e.key === "-") c.r = Math.max(0.01, c.r / 1.25);
    else if (e.key === "Enter" || e.key === " ") {
      const [x, y, r] = this.ring();
      this.before = this.state.picked;
      this.set({
        picked: this.combine(
          this.within((a, b) => Math.hypot(a - x, b - y) <= r),
          e,
        ),
        rows: ROWS,
      });
    } else return;
    e.preventDefault();
    e.stopPropagation();
    this.overlay.redraw();
  }

  say(text) {
    clearTimeout(this.saying);
    this.saying = setTimeout(() => {
      this.live.textContent = text;
    }, 400);
  }
}

const scaling = (s) => (s === 0 ? "ablated" : s === 1 ? "as it is" : `scaled by ${fixed(s, 1)}`);
const signed = (v) => `${v < 0 ? "−" : "+"}${short(Math.abs(v))}`;
const label = (v) =>
  (v < 0 ? "−" : "") +
  (Math.abs(v) >= 1e4 || (v && Math.abs(v) < 1e-2)
    ? (+Math.abs(v).toPrecision(3)).toExponential()
    : String(+Math.abs(v).toPrecision(3)));

// ------------------------------------------------------------------------------------------- two doors

function start(el, bytes, port) {
  try {
    const explorer = new Explorer(el, unpack(bytes), port);
    return () => explorer.close();
  } catch (error) {
    el.replaceChildren(h("p", { class: "hlx-error" }, `The explorer cannot show this: ${error.message}`));
    console.error(error);
    return () => {};
  }
}

/** Bytes or base64 on a page without a kernel. `port` may replace the memory that stands in for one. */
export function hydrate(el, payload, port = {}) {
  const bytes = typeof payload === "string" ? Uint8Array.from(atob(payload.trim()), (c) => c.charCodeAt(0)) : payload;
  const memory = {},
    host = h("div", {}),
    still = el.querySelector(".hlx-still"); // picture and table: for paper, where nothing can be clicked
  el.replaceChildren(host, ...(still ? [still] : []));
  const stop = start(host, bytes, {
    live: false,
    get: (key) => memory[key],
    set: (key, value) => {
      memory[key] = value;
    },
    save() {},
    on() {},
    send() {},
    receive() {},
    ...port,
  });
  if (still && host.querySelector(".hlx")) {
    host.classList.add("hlx-screen");
    still.classList.add("hlx-paper");
  }
  return stop;
}

function render({ model, el }) {
  let stop = () => {};
  const handlers = [];
  const on = (event, handler) => {
    model.on(event, handler);
    handlers.push([event, handler]);
  };
  const draw = () => {
    stop();
    for (const [event, handler] of handlers.splice(0)) model.off?.(event, handler);
    stop = start(el, model.get("payload"), {
      live: true,
      get: (key) => model.get(key),
      set: (key, value) => model.set(key, value),
      save: () => model.save_changes(),
      on: (key, handler) => on(`change:${key}`, () => handler(model.get(key))),
      send: (message) => model.send(message),
      receive: (handler) => on("msg:custom", (message, buffers) => handler(message, buffers ?? [])),
    });
    on("change:payload", draw);
  };
  draw();
  return () => {
    stop();
    for (const [event, handler] of handlers) model.off?.(event, handler);
  };
}

export default { render };
