"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const MEAN = ""; // the "data set" that is the mean over all of them
const METHODS = new Map(DATA.methods.map((method) => [method.name, method]));
const SETS = DATA.sets.map((set) => set.name);
const hidden = new Set(); // methods that the user switched off
const state = { sort: "budget", up: false, budget: "all", failed: true, plot: SETS.length > 1 ? MEAN : SETS[0] };

const $ = (id) => document.getElementById(id);
const percent = (share, digits = 1) => (100 * share).toFixed(digits);
const keyOf = (row) => (row.budget === null ? row.method : `${row.method}@${budgetKey(row.budget)}`);
const budgetKey = (value) => DATA.budgets.find((budget) => budget.value === value).key;
const budgetName = (value) => (value === null ? "all tokens" : DATA.budgets.find((b) => b.value === value).name);

/** An element with attributes (functions become listeners) and children; texts are never read as HTML. */
function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}
function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...present(children));
  return element;
}
const present = (children) =>
  children.flat().filter((child) => child !== null && child !== undefined && child !== "");

function choice(title, options, chosen, changed) {
  const select = make("select", { change: () => changed(select.value) });
  for (const [value, name] of options) select.append(make("option", { value }, name));
  select.value = chosen;
  return make("label", {}, title, select);
}

/* Overview */

const CELLS = new Map(DATA.cells.map((cell) => [`${cell.data}\n${keyOf(cell)}`, cell]));
const cellOf = (set, row) => CELLS.get(`${set}\n${keyOf(row)}`);

const COLUMNS = [
  { id: "method", name: "method", of: (row) => row.method },
  { id: "budget", name: "budget", of: (row) => row.budget ?? Infinity },
  ...SETS.map((set) => ({ id: `set:${set}`, name: `${set}, %`, set, of: (row) => cellOf(set, row).score })),
  { id: "relative", name: "relative, %", of: (row) => row.relative },
  { id: "mean_tokens", name: "true tokens", of: (row) => row.mean_tokens },
  { id: "select_ms", name: "selector, ms", of: (row) => row.select_ms },
  { id: "prefill_ms", name: "prefill, ms", of: (row) => row.prefill_ms },
];
const RISING = new Set(["method", "mean_tokens", "select_ms", "prefill_ms"]); // first click: smallest first

function compare(a, b) {
  return inOrder(state.sort, state.up, a, b) || inOrder("relative", false, a, b);
}
function inOrder(id, up, a, b) {
  const column = COLUMNS.find((each) => each.id === id);
  const [x, y] = [column.of(a), column.of(b)];
  if (x === y) return 0;
  if (x === null || x === undefined) return 1;
  if (y === null || y === undefined) return -1;
  return (x < y ? -1 : 1) * (up ? 1 : -1);
}

function overview() {
  $("filters").replaceChildren(
    choice(
      "Budget",
      [["all", "all budgets"], ...DATA.budgets.map((b) => [b.key, b.name])],
      state.budget,
      (value) => {
        state.budget = value;
        table();
      },
    ),
    tick("rows that were not run", state.failed, (on) => {
      state.failed = on;
      table();
    }),
  );
  $("legend").textContent =
    `Each score with its 95 % interval (bar: the score; line: the interval). "+a \u2212b": right on a questions ` +
    `where ${DATA.baseline} at the same budget is wrong, wrong on b where it is right; press it to see them. ` +
    "\u25b2 \u25bc: p < 0.05 (McNemar, exact). \u2260: the true budget is another; not tested. " +
    "Bold: best of its budget.";
  table();
}

function tick(title, on, changed) {
  const box = make("input", { type: "checkbox", change: () => changed(box.checked) });
  box.checked = on;
  return make("label", { class: "tick" }, box, title);
}

function table() {
  const head = COLUMNS.map((column) =>
    make(
      "th",
      { scope: "col", "aria-sort": column.id !== state.sort ? "none" : state.up ? "ascending" : "descending" },
      make("button", { type: "button", "data-sort": column.id, click: () => sortBy(column.id) }, column.name),
    ),
  );
  const rows = DATA.averages
    .filter((row) => !hidden.has(row.method))
    .filter((row) => row.budget === null || state.budget === "all" || budgetKey(row.budget) === state.budget)
    .filter((row) => state.failed || SETS.some((set) => !cellOf(set, row).reason));
  rows.sort(compare);
  $("table").replaceChildren(
    make("caption", { class: "small", hidden: "" }, "Methods, budgets and scores"),
    make("thead", {}, make("tr", {}, head)),
    make("tbody", {}, rows.map(line)),
  );
}

function sortBy(id) {
  state.up = state.sort === id ? !state.up : RISING.has(id);
  state.sort = id;
  table();
  document.querySelector(`[data-sort="${CSS.escape(id)}"]`).focus();
}

function line(row) {
  const about = METHODS.get(row.method);
  const kinds = [about.control ? "control" : null, about.question_aware ? "question-aware" : null];
  const first = make(
    "td",
    { title: about.title },
    row.method,
    kinds.filter(Boolean).map((kind) => make("span", { class: "kind" }, kind)),
  );
  const cells = SETS.map((set) => cellOf(set, row));
  const reasons = [...new Set(cells.map((cell) => cell.reason))];
  const budget = make(
    "td",
    {},
    row.budget === null ? "all" : Number.isInteger(row.budget) ? row.budget : `${100 * row.budget} %`,
  );
  if (reasons.length === 1 && reasons[0]) {
    return make(
      "tr",
      {},
      first,
      budget,
      make("td", { class: "reason", colspan: COLUMNS.length - 2 }, `not run: ${reasons[0]}`),
    );
  }
  const figure = (value, digits = 1, mark = "") =>
    make("td", {}, value === null || value === undefined ? "\u2013" : value.toFixed(digits) + mark);
  return make(
    "tr",
    { class: row.budget === null ? "whole" : null },
    first,
    budget,
    cells.map(score),
    figure(row.relative, 1, row.equal === false ? " \u2260" : ""),
    figure(row.mean_tokens),
    figure(row.select_ms, 2),
    figure(row.prefill_ms),
  );
}

function isBest(cell) {
  const same = DATA.cells.filter((each) => each.data === cell.data && each.budget === cell.budget && each.equal);
  return cell.equal && cell.score === Math.max(...same.map((each) => each.score));
}

function score(cell) {
  if (cell.reason) return make("td", { class: "reason", title: cell.reason }, "not run, see below");
  const bar = make(
    "span",
    { class: "meter", "aria-hidden": "true" },
    make("i", { style: `width:${percent(cell.score)}%` }),
    make("b", { style: `left:${percent(cell.low)}%;width:${percent(cell.high - cell.low)}%` }),
  );
  const official = cell.official === undefined ? "" : `; the benchmark's own figure: ${cell.official}`;
  const range = `${percent(cell.low, 0)}\u2013${percent(cell.high, 0)}`;
  return make(
    "td",
    { title: `${cell.samples} counted${official}` },
    make(
      "span",
      { class: "score" },
      make("span", { class: isBest(cell) ? "best" : null }, percent(cell.score)),
      make("span", { class: "range" }, range),
      versus(cell),
    ),
    bar,
  );
}

/** Wins and losses against the baseline, as a button that leads to those samples. */
function versus(cell) {
  if (cell.equal === false) {
    return make(
      "span",
      { class: "worse", title: `asked ${cell.asked.toFixed(1)}, reached ${cell.reached.toFixed(1)} tokens` },
      "\u2260",
    );
  }
  if (cell.p === undefined) return null;
  const sign = cell.p >= 0.05 ? " " : cell.wins > cell.losses ? "\u25b2" : "\u25bc";
  return [
    make("span", { class: sign === "\u25b2" ? "better" : "worse" }, sign),
    make(
      "button",
      {
        type: "button",
        class: "versus",
        title: `p = ${cell.p.toPrecision(2)}; show the questions`,
        click: () => {
          Object.assign(browser, {
            set: cell.data,
            budget: budgetKey(cell.budget),
            a: cell.method,
            isA: "1",
            b: DATA.baseline,
            isB: "0",
            text: "",
          });
          if (cell.wins === 0) Object.assign(browser, { isA: "0", isB: "1" });
          samples();
          $("samples").scrollIntoView();
          document.querySelector("#sample-bar select").focus({ preventScroll: true });
        },
      },
      `+${cell.wins} \u2212${cell.losses}`,
    ),
  ];
}

/* Trade-off */

const NARROWEST = 300,
  HEIGHT = 340,
  LEFT = 46,
  RIGHT = 14,
  TOP = 14,
  BOTTOM = 44;
const SHAPES = {
  o: "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0Z",
  s: "M-4.6,-4.6h9.2v9.2h-9.2Z",
  "^": "M0,-5.8L5.4,4.6H-5.4Z",
  D: "M0,-6.2L6.2,0L0,6.2L-6.2,0Z",
  v: "M0,5.8L5.4,-4.6H-5.4Z",
  P: "M-1.9,-5.6h3.8v3.7h3.7v3.8h-3.7v3.7h-3.8v-3.7h-3.7v-3.8h3.7Z",
  X: "M-5.4,-3L-3,-5.4L0,-2.4L3,-5.4L5.4,-3L2.4,0L5.4,3L3,5.4L0,2.4L-3,5.4L-5.4,3L-2.4,0Z",
};

const symbol = (method) =>
  draw("path", { d: SHAPES[method.shape], fill: method.colour, stroke: "#fff", "stroke-width": 1 });

function steps(low, high, count) {
  const rough = (high - low) / count,
    power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((each) => each * power >= rough);
  const values = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step)
    values.push(Number(value.toPrecision(6)));
  return values;
}

function front(points) {
  const best = [];
  for (const point of [...points].sort((a, b) => a.x - b.x || b.y - a.y)) {
    if (!best.length || point.y > best[best.length - 1].y) best.push(point);
  }
  return best;
}

function tradeOff() {
  const options = [
    ...(SETS.length > 1 ? [[MEAN, `mean of ${SETS.join(", ")}`]] : []),
    ...SETS.map((set) => [set, set]),
  ];
  $("plot-bar").replaceChildren(
    choice("Data set", options, state.plot, (value) => {
      state.plot = value;
      plots();
    }),
  );
  const drawn = DATA.methods.filter((method) => method.shape);
  const chip = (method) =>
    make(
      "button",
      {
        type: "button",
        title: method.title,
        "aria-pressed": String(!hidden.has(method.name)),
        click: () => {
          if (!hidden.delete(method.name)) hidden.add(method.name);
          refresh(method.name);
        },
      },
      draw("svg", { viewBox: "-7 -7 14 14", width: 14, height: 14, "aria-hidden": "true" }, symbol(method)),
      make("span", {}, method.name),
    );
  const none = drawn.every((method) => hidden.has(method.name));
  const toggle = make(
    "button",
    {
      type: "button",
      click: () => {
        for (const method of drawn) none ? hidden.delete(method.name) : hidden.add(method.name);
        refresh("");
      },
    },
    none ? "all" : "none",
  );
  $("methods").replaceChildren(...drawn.map(chip), toggle);
  plots();
}

function refresh(name) {
  tradeOff();
  table();
  samples();
  const chips = [...$("methods").children];
  (chips.find((chip) => chip.textContent === name) ?? chips[chips.length - 1]).focus();
}

function plots() {
  const rows = state.plot === MEAN ? DATA.averages : DATA.cells.filter((cell) => cell.data === state.plot);
  plot($("plot-tokens"), rows, "mean_tokens", "visual tokens, mean over the decoder's layers");
  plot($("plot-time"), rows, "prefill_ms", "vision tower + prefill, ms (median)");
  $("tip").textContent =
    "Point at a mark, or go there with Tab and the arrow keys, to read its figures. Grey band: the Pareto front.";
}

function plot(figure, rows, x, title) {
  const known = rows.filter((row) => row.score !== undefined && typeof row[x] === "number");
  const points = known
    .filter((row) => row.budget !== null && !hidden.has(row.method))
    .map((row) => ({ x: row[x], y: 100 * row.score, row, method: METHODS.get(row.method) }));
  const levels = known.filter((row) => row.budget === null);
  if (!points.length) {
    figure.replaceChildren(make("p", { class: "small" }, `${title}: nothing to draw`));
    return;
  }
  points.sort((a, b) => a.x - b.x || a.y - b.y);
  const WIDTH = Math.max(NARROWEST, figure.clientWidth - 14);
  const xs = points.map((point) => point.x),
    ys = points.map((p) => p.y);
  ys.push(...levels.filter((row) => row.method === "unpruned").map((row) => 100 * row.score));
  const padX = (Math.max(...xs) - Math.min(...xs)) * 0.06 || 1,
    padY = (Math.max(...ys) - Math.min(...ys)) * 0.06 || 1;
  const [x0, x1] = [Math.min(...xs) - padX, Math.max(...xs) + padX],
    [y0, y1] = [Math.max(0, Math.min(...ys) - padY), Math.min(100, Math.max(...ys)) + padY];
  const sx = (value) => LEFT + ((value - x0) / (x1 - x0)) * (WIDTH - LEFT - RIGHT);
  const sy = (value) => HEIGHT - BOTTOM - ((value - y0) / (y1 - y0)) * (HEIGHT - BOTTOM - TOP);
  const svg = draw("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    role: "group",
    "aria-label": `Accuracy over ${title}; arrow keys go from mark to mark`,
    keydown: walk,
  });
  for (const value of steps(y0, y1, 6)) {
    svg.append(
      draw("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: sy(value), y2: sy(value), stroke: "#e6e9ed" }),
      draw("text", { class: "tick", x: LEFT - 6, y: sy(value) + 4, "text-anchor": "end" }, String(value)),
    );
  }
  for (const value of steps(x0, x1, WIDTH / 75)) {
    svg.append(
      draw("line", { x1: sx(value), x2: sx(value), y1: TOP, y2: HEIGHT - BOTTOM, stroke: "#f0f2f4" }),
      draw(
        "text",
        { class: "tick", x: sx(value), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" },
        String(value),
      ),
    );
  }
  svg.append(
    draw("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, title),
    draw(
      "text",
      { x: 12, y: HEIGHT / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${HEIGHT / 2})` },
      "accuracy, %",
    ),
  );
  const names = [];
  for (const row of levels) {
    const below = 100 * row.score < y0,
      y = below ? HEIGHT - BOTTOM : sy(100 * row.score);
    const dash = row.method === "blind" ? "2 4" : "7 4";
    if (!below)
      svg.append(
        draw("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y, stroke: "#57606a", "stroke-dasharray": dash }),
      );
    const name = `${row.method} ${percent(row.score)}${below ? " (below)" : ""}`;
    names.push(draw("text", { class: "tick halo", x: WIDTH - RIGHT, y: y - 5, "text-anchor": "end" }, name));
  }
  const best = front(points);
  const path =
    best.map((p, k) => (k ? `H${sx(p.x)}V${sy(p.y)}` : `M${sx(p.x)},${sy(p.y)}`)).join("") + `H${WIDTH - RIGHT}`;
  svg.append(
    draw("path", {
      d: path,
      fill: "none",
      stroke: "#c3c9d0",
      "stroke-width": 7,
      "stroke-linejoin": "round",
      opacity: 0.7,
    }),
  );
  for (const method of DATA.methods) {
    const own = points.filter((point) => point.method === method).sort((a, b) => a.x - b.x);
    const path = own.map((p, k) => `${k ? "L" : "M"}${sx(p.x)},${sy(p.y)}`).join("");
    if (own.length > 1)
      svg.append(
        draw("path", { d: path, fill: "none", stroke: method.colour, "stroke-width": 1.2, opacity: 0.75 }),
      );
  }
  for (const [k, point] of points.entries()) {
    const text = describe(point.row);
    const say = () => ($("tip").textContent = text);
    const mark = draw(
      "g",
      {
        class: "point",
        tabindex: k ? -1 : 0,
        role: "img",
        "aria-label": text,
        transform: `translate(${sx(point.x)} ${sy(point.y)})`,
        mouseenter: say,
        focus: say,
      },
      draw("circle", { r: 10, fill: "transparent", class: "ring", stroke: "transparent" }),
      symbol(point.method),
    );
    mark.append(draw("title", {}, text));
    svg.append(mark);
  }
  svg.append(...names);
  figure.replaceChildren(svg);
}

/** Arrow keys in a chart: one mark can be reached with Tab, the others from there. */
function walk(event) {
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const marks = [...event.currentTarget.querySelectorAll(".point")],
    next = marks[marks.indexOf(event.target) + by];
  if (!next) return;
  event.preventDefault();
  event.target.setAttribute("tabindex", -1);
  next.setAttribute("tabindex", 0);
  next.focus();
}

function describe(row) {
  const parts = [`${row.method}, budget ${budgetName(row.budget)}: ${percent(row.score)} %`];
  if (row.low !== undefined) parts.push(`95 % interval ${percent(row.low)} to ${percent(row.high)}`);
  parts.push(`${row.mean_tokens.toFixed(1)} tokens in the mean`);
  if (typeof row.prefill_ms === "number") parts.push(`prefill ${row.prefill_ms.toFixed(1)} ms`);
  parts.push(`selector ${row.select_ms.toFixed(2)} ms`);
  if (row.equal === false) parts.push("true budget differs from the one asked for");
  return parts.join("; ");
}

/* Samples */

const EITHER = [
  ["1", "right"],
  ["0", "wrong"],
  ["", "right or wrong"],
];
const browser = {
  set: SETS[0],
  budget: DATA.budgets[DATA.budgets.length - 1].key,
  a: DATA.baseline,
  isA: "",
  b: "unpruned",
  isB: "",
  text: "",
  pictured: false,
  outline: false,
  id: null,
};

/** The place in a sample's verdicts of a method at the chosen budget. */
function place(method) {
  const keys = DATA.samples[browser.set].keys,
    at = keys.indexOf(`${method}@${browser.budget}`);
  return at >= 0 ? at : keys.indexOf(method);
}

function found() {
  const { a, isA, b, isB, text, pictured } = browser,
    [atA, atB] = [place(a), place(b)];
  return DATA.samples[browser.set].rows.filter(
    (row) =>
      (!isA || row.v[atA] === isA) &&
      (!isB || row.v[atB] === isB) &&
      (!pictured || row.shown) &&
      (!text || [row.q, row.id, ...row.refs].some((part) => part.toLowerCase().includes(text.toLowerCase()))),
  );
}

function samples() {
  const change = (name) => (value) => {
    browser[name] = value;
    list();
  };
  const names = DATA.methods.map((method) => [method.name, method.name]);
  const pair = (letter, method, verdict) => [
    choice(`Method ${letter}`, names, browser[method], change(method)),
    choice(`${letter} is`, EITHER, browser[verdict], change(verdict)),
  ];
  const search = make("input", { type: "search", input: () => change("text")(search.value) });
  search.value = browser.text;
  $("sample-bar").replaceChildren(
    choice(
      "Data set",
      SETS.map((set) => [set, set]),
      browser.set,
      change("set"),
    ),
    choice(
      "Budget",
      DATA.budgets.map((b) => [b.key, b.name]),
      browser.budget,
      change("budget"),
    ),
    ...pair("A", "a", "isA"),
    ...pair("B", "b", "isB"),
    make("label", {}, "Search in question and answers", search),
    tick("with picture only", browser.pictured, change("pictured")),
    tick("outline kept tokens", browser.outline, change("outline")),
  );
  list();
}

function list() {
  const rows = found();
  const all = DATA.samples[browser.set].rows.length,
    pictured = rows.filter((row) => row.shown).length;
  $("count").textContent = `${rows.length} of ${all} questions, ${pictured} of them with picture`;
  if (!rows.some((row) => row.id === browser.id))
    browser.id = (rows.find((row) => row.shown) ?? rows[0])?.id ?? null;
  $("list").replaceChildren(...rows.map((row) => make("li", {}, entry(row))));
  panel(rows);
}

function entry(row) {
  const shown = DATA.methods
    .filter((method) => !hidden.has(method.name))
    .map((method) => row.v[place(method.name)]);
  const right = shown.filter((v) => v === "1").length,
    asked = shown.filter((v) => v === "0" || v === "1").length;
  return make(
    "button",
    {
      type: "button",
      "data-id": row.id,
      "aria-current": row.id === browser.id,
      tabindex: row.id === browser.id ? 0 : -1,
      click: () => choose(row.id),
    },
    make("span", { class: "ask" }, row.q),
    make("span", { class: "strip" }, `${right} of ${asked} right${row.shown ? "" : ", no picture here"}`),
  );
}

function choose(id) {
  browser.id = id;
  for (const button of $("list").querySelectorAll("button")) {
    const here = button.dataset.id === id;
    button.setAttribute("aria-current", here);
    button.tabIndex = here ? 0 : -1;
    if (!here) continue;
    $("list").scrollTop += Math.min(0, button.offsetTop - $("list").scrollTop);
    $("list").scrollTop += Math.max(
      0,
      button.offsetTop + button.offsetHeight - $("list").scrollTop - $("list").clientHeight,
    );
    if ($("list").contains(document.activeElement)) button.focus({ preventScroll: true });
  }
  panel(found());
}

function step(by) {
  const rows = found(),
    next = rows[rows.findIndex((row) => row.id === browser.id) + by];
  if (next) choose(next.id);
}

function panel(rows) {
  const at = rows.findIndex((row) => row.id === browser.id),
    row = rows[at];
  if (!row) {
    $("panel").replaceChildren(make("p", {}, "No question is like that: choose other filters."));
    return;
  }
  const texts = DATA.samples[browser.set].texts;
  const cards = DATA.methods
    .filter((method) => !hidden.has(method.name))
    .map((method) => ({ method, at: place(method.name) }))
    .filter(({ at }) => at >= 0 && row.v[at] !== "-");
  const turn = (by, name) =>
    make(
      "button",
      {
        type: "button",
        click: () => {
          step(by);
          $("panel").querySelector(`[data-step="${by}"]`).focus({ preventScroll: true });
        },
        "data-step": by,
      },
      name,
    );
  const parts = [
    make(
      "div",
      { class: "turn" },
      make("h3", {}, `${browser.set}, ${row.id}`),
      make("span", {}, turn(-1, "\u2190 previous"), ` ${at + 1} of ${rows.length} `, turn(1, "next \u2192")),
    ),
    make("p", { class: "question" }, row.q),
    make("p", { class: "refs" }, make("strong", {}, "Right: "), row.refs.join(" | ")),
    row.shown
      ? null
      : make("p", { class: "small" }, "The pictures of this question are not in this file (--pictures)."),
    row.shown?.note ? make("p", { class: "small" }, row.shown.note) : null,
    make(
      "div",
      { class: "cards" },
      cards.map(({ method, at }) => card(row, method, at, texts)),
    ),
  ];
  $("panel").replaceChildren(...present(parts));
}

function card(row, method, at, texts) {
  const right = row.v[at] === "1",
    key = DATA.samples[browser.set].keys[at];
  const kept = row.shown?.kept?.[key];
  const whole = method.name === "unpruned";
  const unseen =
    row.shown && !kept && !whole
      ? method.name === "blind"
        ? "sees grey alone"
        : "other images: no tokens to draw"
      : null;
  return make(
    "div",
    { class: `card ${right ? "right" : "wrong"}`, "data-method": method.name },
    make("h4", { title: method.title }, method.name),
    row.shown && !unseen ? pictures(row.shown.views, kept, method.name) : null,
    unseen ? make("p", { class: "small" }, unseen) : null,
    make("p", { class: "verdict" }, right ? "\u2713 right" : "\u2717 wrong"),
    make("p", {}, texts[row.a[at]] || "(no words)"),
  );
}

function pictures(views, kept, name) {
  const bits = kept ? Uint8Array.from(atob(kept), (letter) => letter.charCodeAt(0)) : null;
  const box = make("div", {});
  let first = 0;
  const all = [];
  for (const view of views) {
    const [rows, columns] = view.grid,
      cells = view.cells ?? Array.from({ length: rows * columns }, (_, k) => k);
    const start = first,
      alive = new Set();
    cells.forEach((cell, k) => {
      const bit = start + k;
      if (cell >= 0 && (!bits || bits[bit >> 3] & (128 >> (bit & 7)))) alive.add(cell);
    });
    first += cells.length;
    view.images.forEach((source, k) =>
      all.push(canvas(source, rows, columns, bits ? alive : null, `${view.titles[k]}, ${name}`)),
    );
  }
  box.className = all.length > 1 ? "frames" : "frames one";
  box.append(...all);
  return box;
}

/** The picture with dropped patches darkened. alive: patches that stay, or null for all. */
function canvas(source, rows, columns, alive, title) {
  const element = make("canvas", {
    role: "img",
    "aria-label": alive ? `${title}: ${alive.size} of ${rows * columns} patches kept` : title,
    title,
  });
  const image = new Image();
  image.onload = () => {
    element.width = image.naturalWidth;
    element.height = image.naturalHeight;
    const pen = element.getContext("2d");
    const edge = (k, count, length) => Math.round((k * length) / count);
    pen.drawImage(image, 0, 0);
    for (let cell = 0; alive && cell < rows * columns; cell++) {
      const column = cell % columns,
        row = Math.floor(cell / columns);
      const x = edge(column, columns, element.width),
        wide = edge(column + 1, columns, element.width) - x;
      const y = edge(row, rows, element.height),
        high = edge(row + 1, rows, element.height) - y;
      if (!alive.has(cell)) {
        pen.fillStyle = "rgba(12, 16, 22, 0.74)";
        pen.fillRect(x, y, wide, high);
      } else if (browser.outline) {
        pen.strokeStyle = "#ffb000";
        pen.strokeRect(x + 0.5, y + 0.5, wide - 1, high - 1);
      }
    }
  };
  image.src = source;
  return element;
}

document.addEventListener("keydown", (event) => {
  if (event.target.matches("select, input") || event.ctrlKey || event.metaKey || event.altKey) return;
  const inside = event.target.closest("#list, #panel"),
    by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!inside || !by || (inside.id === "panel" && event.key.match(/Up|Down/))) return;
  event.preventDefault();
  const pressed = event.target.dataset.step;
  step(by);
  if (pressed) $("panel").querySelector(`[data-step="${pressed}"]`)?.focus({ preventScroll: true });
});
window.addEventListener("resize", plots);

$("notes").replaceChildren(
  ...[...DATA.notes, ...DATA.reasons].map((note) => make("li", {}, note.replace(/^- /, ""))),
);
overview();
tradeOff();
samples();
