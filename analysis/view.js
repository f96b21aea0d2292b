// The list of runs: sorting by a heading, and two ticked runs side by side. Text goes in as text only.
"use strict";
const table = document.getElementById("runs");
const body = table.tBodies[0];
const heads = [...table.tHead.rows[0].cells];
const two = document.getElementById("two");

const value = (row, column) => row.cells[column].dataset.value ?? "";
const number = (text) => (text === "" ? NaN : Number(text));

// Numbers by size, text by its letters; what was not measured stands last, whichever way.
function compare(a, b, sign) {
  const [x, y] = [number(a), number(b)];
  if (!Number.isNaN(x) && !Number.isNaN(y)) return sign * (x - y);
  if (a === "" || b === "") return (a === "") - (b === "");
  return sign * a.localeCompare(b, undefined, { numeric: true });
}

function sort(column) {
  const head = heads[column];
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of heads) if (other.dataset.key) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...body.rows].sort((a, b) => compare(value(a, column), value(b, column), down ? -1 : 1));
  body.append(...rows);
}

function element(name, text, scope) {
  const made = document.createElement(name);
  made.textContent = text;
  if (scope) made.setAttribute("scope", scope);
  return made;
}

function sideBySide(a, b) {
  const made = document.createElement("table");
  const top = made.createTHead().insertRow();
  top.append(element("th", ""), ...[a, b].map((r) => element("th", r.dataset.place, "col")), element("th", "difference", "col"));
  const rows = made.createTBody();
  heads.forEach((head, column) => {
    if (!head.dataset.key || head.dataset.key === "name") return;
    const line = rows.insertRow();
    const gap = number(value(b, column)) - number(value(a, column));
    const measured = head.classList.contains("n") && !Number.isNaN(gap);
    line.append(element("th", head.textContent, "row"), ...[a, b].map((r) => element("td", r.cells[column].textContent.trim())));
    line.append(element("td", measured ? Number(gap.toPrecision(3)).toString().replace("-", "−") : ""));
  });
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const words = element("p", "Paired by item and seed, with intervals; typed in the folder of this page:");
  words.className = "after";
  const paired = element("pre", `hooklearn compare ${quoted(a.dataset.place)} ${quoted(b.dataset.place)}`);
  const box = element("div", "");
  box.className = "scroll";
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", "two runs side by side");
  box.append(made);
  two.replaceChildren(box, words, paired);
}

function show() {
  const ticked = [...body.rows].filter((row) => row.querySelector("input").checked);
  for (const row of body.rows) row.querySelector("input").disabled = ticked.length === 2 && !ticked.includes(row);
  two.hidden = ticked.length !== 2;
  if (two.hidden) return;
  sideBySide(...ticked);
  two.scrollIntoView({ block: "nearest" });
}

heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => sort(column)));
body.addEventListener("change", show);
show();
