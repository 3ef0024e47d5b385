// Marked rows: kept in the page's history state, and saved as JSON or CSV.

const marks = new Set(history.state?.marks ?? []);

/** A check box for one row or for a group of rows. */
function markBox(rows) {
  const name = rows.length > 1 ? `Mark row ${rows[0]} and ${count(rows.length - 1, "near-duplicate")}` : `Mark row ${rows[0]}`;
  const box = el("input", { type: "checkbox", class: "mark", "data-rows": rows.join(" "), "aria-label": name });
  showMark(box);
  return el("label", { class: "mark-label" }, box, el("span", { "aria-hidden": "true" }, rows.length > 1 ? `Mark ${rows.length}` : "Mark"));
}

const rowsOf = (box) => box.dataset.rows.split(" ").map(Number);

function showMark(box) {
  const marked = rowsOf(box).filter((row) => marks.has(row)).length;
  box.checked = marked === rowsOf(box).length;
  box.indeterminate = marked > 0 && !box.checked;
}

function mark(rows, marked) {
  for (const row of rows) marked ? marks.add(row) : marks.delete(row);
  history.replaceState({ ...history.state, marks: [...marks] }, "");
  showMarks();
}

function showMarks() {
  document.querySelectorAll("input.mark").forEach(showMark);
  const rows = sorted();
  byId("bar").hidden = !rows.length;
  document.body.classList.toggle("has-bar", rows.length > 0);
  byId("bar-count").textContent = count(rows.length, "row");
  byId("marked-text").textContent = rows.length ? `${count(rows.length, "row")} marked.` : "No row is marked yet: mark rows in the list of training rows or in a query's hits, or mark many at once.";
  for (const button of document.querySelectorAll("[data-save], [data-copy], #clear")) button.disabled = !rows.length;
  byId("marked").replaceChildren(
    ...rows.map((row) => el("li", {}, el("button", { type: "button", class: "row", "aria-label": `Unmark row ${row}`, click: () => mark([row], false) }, String(row), el("span", { "aria-hidden": "true" }, " ×")))),
  );
}

const sorted = () => [...marks].sort((a, b) => a - b);

/** The formats that `python -m rept prove` and `datamodule.exclude` of train.py read: a JSON list of row numbers, or a CSV with a column `row`. */
const formats = { json: () => `${JSON.stringify(sorted())}\n`, csv: () => `row\n${sorted().join("\n")}\n` };

function save(kind) {
  const address = URL.createObjectURL(new Blob([formats[kind]()], { type: kind === "json" ? "application/json" : "text/csv" }));
  el("a", { href: address, download: `culprits.${kind}` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

async function copy(kind, button) {
  const name = button.textContent;
  try {
    await navigator.clipboard.writeText(formats[kind]());
    button.textContent = "Copied";
  } catch {
    button.textContent = copyBySelection(formats[kind]()) ? "Copied" : "Not allowed here";
  }
  setTimeout(() => (button.textContent = name), 1500);
}

/** For browsers that do not give a file:// page access to the clipboard. */
function copyBySelection(text) {
  const area = el("textarea", { "aria-label": "Row numbers" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

function startMarks() {
  document.querySelector(".marking").hidden = false;
  document.addEventListener("change", (event) => event.target.matches("input.mark") && mark(rowsOf(event.target), event.target.checked));
  for (const button of document.querySelectorAll("[data-save]")) button.addEventListener("click", () => save(button.dataset.save));
  for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button.dataset.copy, button));
  byId("clear").addEventListener("click", () => mark(sorted(), false));
  byId("bulk").addEventListener("submit", (event) => {
    event.preventDefault();
    const first = Number(byId("bulk-count").value);
    const listed = page.queries.filter((query) => page.shown.includes(query.query));
    mark(listed.flatMap((query) => query.hits.slice(0, first).map((hit) => hit.row)), true);
  });
  showMarks();
}
