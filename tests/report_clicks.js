// Clicks through the report of a comparison; what it saw is the JSON of #seen. Put after the page's own script.
"use strict";
const all = (selector) => [...document.querySelectorAll(selector)];
const texts = (selector) => all(selector).map((element) => element.textContent);
const pick = (bar, label, value) => {
  const select = all(`${bar} label`)
    .find((each) => each.textContent.startsWith(label))
    .querySelector("select");
  select.value = value;
  select.dispatchEvent(new Event("change"));
};
const press = (element, key) =>
  element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const rows = () => texts("#table tbody td:first-child");
const light = (canvas) => {
  const values = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return values.reduce((sum, value) => sum + value, 0) / values.length;
};
const seen = {};

seen.rows = rows().length;
document.querySelector('[data-sort="method"]').click();
seen.rising = rows();
document.querySelector('[data-sort="method"]').click();
seen.falling = rows();
seen.sorted = document.querySelector('th[aria-sort="descending"]').textContent;
seen.focus = document.activeElement.dataset.sort;
pick("#filters", "Budget", "8");
seen.budget = rows().length;
pick("#filters", "Budget", "all");

seen.points = all("#plot-tokens .point").length;
const points = all("#plot-tokens .point");
points[0].focus();
press(points[0], "ArrowRight");
seen.tip = document.getElementById("tip").textContent;
seen.moved = document.activeElement === points[1];
const chip = () => all("#methods button").find((each) => each.textContent === "fastv");
chip().click();
seen.without = {
  rows: rows().filter((name) => name.startsWith("fastv")).length,
  points: all("#plot-tokens .point").length,
};
seen.pressed = chip().getAttribute("aria-pressed");
chip().click();

pick("#sample-bar", "Budget", "8");
seen.bold = all("#panel .question b").length;
const list = document.getElementById("list");
list.querySelector("[aria-current=true]").focus();
seen.first = document.querySelector("#panel h3").textContent;
press(document.activeElement, "ArrowDown");
seen.second = document.querySelector("#panel h3").textContent;
document.querySelector('[data-step="-1"]').click();
seen.back = document.querySelector("#panel h3").textContent;
pick("#sample-bar", "Method A", "unpruned");
pick("#sample-bar", "A is", "1");
pick("#sample-bar", "Method B", "blind");
pick("#sample-bar", "B is", "0");
seen.filtered = document.getElementById("count").textContent;
pick("#sample-bar", "A is", "");
pick("#sample-bar", "B is", "");
seen.wide = document.documentElement.scrollWidth > window.innerWidth;
setTimeout(() => {
  const canvas = (method) => document.querySelector(`[data-method=${method}] canvas`);
  seen.light = { unpruned: light(canvas("unpruned")), dart: light(canvas("dart")) };
  seen.label = canvas("dart").getAttribute("aria-label");
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
}, 500);
