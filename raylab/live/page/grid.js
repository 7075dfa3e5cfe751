// The grid as a matrix: size x (head, objective, seed).
import { clock, element, one, percent, say, short } from "./parts.js";

let before = "";

export function showMatrix(state) {
  const cells = state.cells, place = one("matrix");
  const done = cells.filter((cell) => cell.state === "done").length;
  const running = cells.filter((cell) => cell.state === "running").length;
  say(one("summary"), cells.length
    ? `${done} of ${cells.length} cells are trained, ${running} in training. ${state.rows} rows are measured.`
    : "No cell is planned yet.");
  const told = JSON.stringify(cells);
  if (told === before) return;
  before = told;
  if (!cells.length) return place.replaceChildren();
  const rowOf = (cell) => [cell.size, cell.variant].filter(Boolean).join(", ");
  const columnOf = (cell) => `${cell.head} ${cell.objective}, seed ${cell.seed}`;
  const rows = [...new Set(cells.map(rowOf))], columns = [...new Set(cells.map(columnOf))];
  const table = element("table"), head = element("tr");
  head.append(element("th", "size", { scope: "col" }));
  for (const column of columns) head.append(element("th", column, { scope: "col" }));
  table.append(element("thead"));
  table.tHead.append(head);
  const body = table.createTBody();
  const byPlace = new Map(cells.map((cell) => [JSON.stringify([rowOf(cell), columnOf(cell)]), cell]));
  for (const row of rows) {
    const line = element("tr");
    line.append(element("th", row, { scope: "row" }));
    for (const column of columns) line.append(showCell(byPlace.get(JSON.stringify([row, column]))));
    body.append(line);
  }
  const left = place.scrollLeft, focused = document.activeElement?.dataset?.cell;
  place.replaceChildren(table);
  place.scrollLeft = left;
  if (focused) for (const link of place.querySelectorAll("a")) if (link.dataset.cell === focused) link.focus();
}

function showCell(cell) {
  if (!cell) return element("td", "");
  const place = element("td", null, { class: cell.state.replace(" ", "-"), title: cell.cell });
  place.append(element("span", cell.state, { class: "state" }));
  if (cell.state === "running" || cell.state === "stopped")
    place.append(element("progress", null, { max: 1, value: cell.share, "aria-label": `${cell.cell}: share of its budget` }));
  const facts = [];
  if (cell.state !== "done" && cell.state !== "left out") facts.push(`${percent(cell.share)} of ${short(cell.planned_flops)} FLOPs`);
  else if (cell.spent_flops) facts.push(`${short(cell.spent_flops)} FLOPs`);
  if (cell.left_s !== null) facts.push(`${clock(cell.left_s)} of its own left`);
  if (cell.loss !== null) facts.push(`loss ${short(cell.loss)}`);
  if (cell.quality) facts.push(cell.quality);
  for (const fact of facts) place.append(element("small", fact));
  if (cell.artifact) {
    const address = `api/artifact/${cell.artifact.split("/").map(encodeURIComponent).join("/")}`;
    const link = element("a", "artifact", { href: address, "aria-label": `artifact of ${cell.cell}` });
    link.dataset.cell = cell.cell;
    place.append(link);
  }
  return place;
}
