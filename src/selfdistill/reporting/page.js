"use strict";
// Everything of the page is there without this script: it sorts, filters, copies, and tells a dot's run.
const make = (tag, text, attributes = {}) => {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};
const all = (query, where = document) => [...where.querySelectorAll(query)];
const said = make("p", "", {class: "skip", role: "status"});
document.querySelector("main").append(said);

// ---- sorting: a click on a column's head; empty cells stay last
for (const table of all("table.sortable")) {
  const body = table.tBodies[0], heads = all("thead th", table);
  heads.forEach((th, column) => {
    const button = make("button", th.textContent.trim(), {type: "button"});
    th.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = th.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      th.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = [...body.rows].map((row) => [row.cells[column].dataset.value ?? row.cells[column].textContent.trim(), row]);
      keyed.sort(([x], [y]) => {
        if (x === "" || y === "") return (x === "") - (y === "");
        const difference = x - y;
        return (Number.isNaN(difference) ? x.localeCompare(y) : difference) * (down ? -1 : 1);
      });
      body.append(...keyed.map(([, row]) => row));
    });
  });
}

// ---- copying what is shown, as it is sorted and filtered, which the button says
const cells = (table) => all("tr", table).filter((row) => !row.hidden).map((row) => [...row.cells].map((c) => c.textContent.trim()));
const csv = (table) => cells(table).map((row) => row.map((c) => /[",\n]/.test(c) ? `"${c.replaceAll('"', '""')}"` : c).join(",")).join("\n") + "\n";
const latex = (table) => {
  const rows = cells(table).map((row) => row.map((c) => c.replace(/[\\&%$#_{}~^]/g, (sign) =>
    ({"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"})[sign] ?? "\\" + sign)
    .replaceAll("±", "$\\pm$").replaceAll("<", "$<$")).join(" & ") + " \\\\");
  const form = "l" + "c".repeat(table.tHead.rows[0].cells.length - 1);
  return [`\\begin{tabular}{${form}}`, "\\toprule", rows[0], "\\midrule", ...rows.slice(1), "\\bottomrule", "\\end{tabular}", ""].join("\n");
};
const copy = async (text) => {
  try { await navigator.clipboard.writeText(text); } catch {  // not allowed here, or not there
    const area = make("textarea", text);
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
};
for (const line of all("[id^=table-] > .files")) {
  const table = line.parentElement.querySelector("table");
  for (const [name, as] of [["CSV", csv], ["LaTeX", latex]]) {
    const button = make("button", `copy as ${name}`, {type: "button"});
    button.addEventListener("click", async () => {
      await copy(as(table));
      const rows = [...table.tBodies[0].rows], shown = rows.filter((row) => !row.hidden).length;
      const part = shown < rows.length ? `${shown} of ${rows.length} rows` : "";
      said.textContent = part ? `${part}, those that are shown, are copied as ${name}.` : `The table is copied as ${name}.`;
      button.textContent = part ? `copied ${part}` : "copied";
      setTimeout(() => { button.textContent = `copy as ${name}`; }, 1500);
    });
    line.append(line.childNodes.length ? ", " : "", button);
  }
}

// ---- filtering rows of every table by method, network and group
const filter = document.querySelector("form.filter");
if (filter) {
  filter.hidden = false;
  filter.addEventListener("submit", (event) => event.preventDefault());
  filter.addEventListener("input", () => {
    const words = filter.elements.method.value.toLowerCase().split(",").map((word) => word.trim()).filter(Boolean);
    const wanted = ["network", "group"].map((key) => [key, filter.elements[key]?.value ?? ""]);
    let shown = 0, of = 0;
    for (const row of all("tr[data-method]")) {
      const method = row.dataset.method.toLowerCase();
      row.hidden = !((!words.length || words.some((word) => method.includes(word))) &&
        wanted.every(([key, value]) => !value || !(key in row.dataset) || row.dataset[key] === value));
      shown += !row.hidden;
      of += 1;
    }
    filter.querySelector("output").textContent = shown < of ? `${shown} of ${of} rows are shown` : "";
  });
}

// ---- a dot's run, from its row in the table of runs
const tip = make("div", "", {id: "tip", role: "tooltip", hidden: ""});
document.body.append(tip);
const tell = (event) => {
  const row = document.getElementById(event.target.closest?.("[data-run]")?.dataset.run);
  tip.hidden = !row;
  if (!row) return;
  const list = document.createElement("dl"), heads = all("thead th", row.closest("table"));
  [...row.cells].forEach((cell, i) => {
    if (cell.textContent.trim()) list.append(make("dt", heads[i].textContent), make("dd", cell.textContent.trim()));
  });
  tip.replaceChildren(list);
  const x = Math.min(event.pageX + 12, scrollX + document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(x, 8)}px`;
  tip.style.top = `${event.pageY + 14}px`;
};
for (const svg of all("svg")) svg.addEventListener("mouseover", tell);
for (const svg of all("svg")) svg.addEventListener("mouseleave", () => { tip.hidden = true; });
addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

// ---- contents: folded where the window is narrow, and marking the part that is read
const folded = document.querySelector(".contents details"), narrow = matchMedia("(max-width: 63.99rem)");
const fold = () => { if (folded) folded.open = !narrow.matches; };
narrow.addEventListener("change", fold);
fold();
const links = new Map(all(".contents a").map((link) => [link.hash.slice(1), link]));
const seen = new IntersectionObserver((entries) => {
  for (const {isIntersecting, target} of entries) if (isIntersecting) {
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(target.id)?.setAttribute("aria-current", "true");
  }
}, {rootMargin: "0px 0px -80% 0px"});
for (const section of all("main section[id]")) seen.observe(section);

// ---- what scrolls is reached by keyboard; a link into what is folded, and paper, unfold it
const reach = () => {
  for (const box of all(".scroll")) {
    const as = {tabindex: "0", role: "region", "aria-labelledby": box.dataset.label};
    for (const [name, value] of Object.entries(as)) {
      if (box.scrollWidth > box.clientWidth + 1) box.setAttribute(name, value);
      else box.removeAttribute(name);
    }
  }
};
addEventListener("resize", reach);
addEventListener("toggle", reach, true);
reach();
const unfold = () => {
  const target = document.getElementById(location.hash.slice(1)), inside = target?.closest("details");
  if (inside && !inside.open) { inside.open = true; target.scrollIntoView(); }
};
addEventListener("hashchange", unfold);
unfold();
addEventListener("beforeprint", () => { for (const part of all("main details")) part.open = true; });
