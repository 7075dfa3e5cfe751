"use strict";
// The page of `raylab watch`. All that a storage says is put into text nodes, never into markup.

const EMBED = { actions: false, ast: true, defaultStyle: false, renderer: "svg", tooltip: false, logLevel: 1 };
const POLL_MS = 3000;
const MOST_DRAWN = 8;
const shown = { version: "", state: null, at: 0, chart: null, curves: null, view: null, axis: "steps" };
const points = new Map(); // by run: {sessions, rows, busy}
const chosen = new Set(new URLSearchParams(location.search).getAll("run"));
const byHand = chosen.size > 0;

const one = (id) => document.getElementById(id);

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== null && text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function clock(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const whole = Math.round(seconds), hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60, rest = String(whole % 60).padStart(2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

function short(value, digits = 3) {
  if (value === null || value === undefined) return "";
  const rounded = Number(Number(value).toPrecision(digits));
  return rounded && (rounded >= 1e6 || rounded < 1e-3) ? rounded.toExponential() : String(rounded);
}
const percent = (share) => `${Math.round(100 * share)} %`;
const moment = (at) => new Date(1000 * at).toLocaleString();

function showDriver(state) {
  const driver = state.driver, line = one("driver");
  const stage = driver.stage ? ` (${driver.stage} ${driver.done} of ${driver.total})` : "";
  const texts = {
    running: `running${stage}` + (state.left_s === null ? "" : `, training left ${clock(state.left_s)}`),
    silent: `silent since ${moment(driver.at)}${stage}: the driver is dead, or cannot reach the storage`,
    ended: `ended at ${moment(driver.at)}`,
    failed: `failed at ${moment(driver.at)}${stage}: ${driver.text}`,
    unknown: state.rows ? "finished, or from before laboratories told of themselves" : "nothing has been told yet",
  };
  let text = texts[driver.state];
  if (state.fault) text += `. Not all could be read: ${state.fault}`;
  if (state.torn) text += `. ${state.torn} line(s) could not be read`;
  if (line.textContent !== text) line.textContent = text;
  line.className = driver.state;
  one("report").hidden = !state.report;
}

function showMatrix(state) {
  const cells = state.cells, place = one("matrix");
  const done = cells.filter((cell) => cell.state === "done").length;
  const running = cells.filter((cell) => cell.state === "running").length;
  one("summary").textContent = cells.length
    ? `${done} of ${cells.length} cells are trained, ${running} in training. ${state.rows} rows are measured.`
    : "No cell is planned yet.";
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
  const left = place.scrollLeft;
  place.replaceChildren(table);
  place.scrollLeft = left;
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
  return place;
}

function showRuns(state) {
  if (!byHand && !chosen.size)
    for (const run of state.runs.filter((r) => r.told && r.kind === "train").slice(0, MOST_DRAWN)) chosen.add(run.run);
  const body = one("runs").tBodies[0];
  const focused = document.activeElement && document.activeElement.dataset.run;
  body.replaceChildren(...state.runs.map((run) => {
    const row = element("tr"), box = element("input", null, { type: "checkbox", "aria-label": `draw ${run.run}` });
    box.dataset.run = run.run;
    box.checked = chosen.has(run.run);
    box.disabled = !run.told;
    box.addEventListener("change", () => choose(run.run, box.checked));
    const place = element("td");
    place.append(box);
    row.append(place, element("th", run.run, { scope: "row" }), element("td", run.state));
    const memory = run.peak_bytes ? `${(run.peak_bytes / 2 ** 30).toFixed(2)} GiB` : "";
    const numbers = [`${run.step} of ${run.steps}`, short(run.loss, 4), short(run.learning_rate), short(run.tokens_per_s),
      memory, run.restarts ? String(run.restarts) : "", clock(run.left_s)];
    for (const text of numbers) row.append(element("td", text, { class: "n" }));
    return row;
  }));
  if (focused) for (const box of body.querySelectorAll("input")) if (box.dataset.run === focused) box.focus();
}

function choose(run, drawn) {
  if (drawn) chosen.add(run); else chosen.delete(run);
  while (chosen.size > MOST_DRAWN) chosen.delete(chosen.values().next().value);
  const query = new URLSearchParams([...chosen].map((name) => ["run", name]));
  history.replaceState(null, "", `?${query}${location.hash}`);
  showRuns(shown.state);
  drawCurves();
}

function showFlops(state) {
  const rows = [
    ["planned", `${short(state.compute.planned_flops)} FLOPs (cells)`],
    ["spent", `${short(state.compute.spent_flops)} FLOPs, MNTP of this experiment included`],
    ["lost", `${short(state.compute.lost_flops)} FLOPs that were done again after restarts`],
  ];
  one("flops").replaceChildren(...rows.flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
}

function showEvents(state) {
  const line = (event) => element("li", `${moment(event.at)}: ${event.kind} ${event.name} ${event.text}`.trim());
  const faults = state.faults.map(line);
  one("faults").replaceChildren(...(faults.length ? faults : [element("li", "none so far")]));
  one("log").replaceChildren(...state.events.slice().reverse().map(line));
}

async function drawScaling(state) {
  if (state.chart === null || state.chart === shown.chart || !window.vegaEmbed) return;
  shown.chart = state.chart;
  const chart = await (await fetch("api/chart/scaling")).json();
  if (!chart) return;
  const place = one("scaling-chart");
  place.hidden = false;
  one("scaling-note").textContent = `${chart.note} From the ${state.rows} rows that are measured so far.`;
  place.setAttribute("aria-label", `${chart.title}: ${chart.spec.description || ""}`);
  await window.vegaEmbed(place, chart.spec, EMBED);
}

async function fetchPoints(run) {
  const known = points.get(run) || { sessions: 0, rows: [] };
  const last = known.rows.length ? known.rows[known.rows.length - 1].n : -1;
  let told = await (await fetch(`api/run/${encodeURIComponent(run)}?after=${last}`)).json();
  const again = known.sessions && told.sessions !== known.sessions;
  if (again || known.rows.length > 1000) told = await (await fetch(`api/run/${encodeURIComponent(run)}`)).json();
  const rows = again || known.rows.length > 1000 ? told.points : known.rows.concat(told.points);
  points.set(run, { sessions: told.sessions, rows });
}

async function drawCurves() {
  if (!window.vegaEmbed || !shown.state) return;
  if (shown.drawing) { shown.again = true; return; }
  shown.drawing = true;
  try {
    const known = new Set(shown.state.runs.filter((run) => run.told).map((run) => run.run));
    const runs = [...chosen].filter((run) => known.has(run));
    await Promise.all(runs.map(fetchPoints));
    const rows = runs.flatMap((run) => points.get(run).rows.map((row) => ({ ...row, run })));
    const place = one("curve-chart");
    place.hidden = !rows.length;
    if (!rows.length) return;
    if (!shown.curves) shown.curves = await (await fetch(`api/chart/curves?x=${shown.axis === "flops" ? "flops&log=x" : "step"}`)).json();
    if (shown.view === null) shown.view = (await window.vegaEmbed(place, shown.curves, EMBED)).view;
    await shown.view.data("rows", rows).resize().runAsync();
  } finally {
    shown.drawing = false;
    if (shown.again) { shown.again = false; drawCurves(); }
  }
}

function show(told) {
  if (!told.state) return;
  shown.version = told.version;
  shown.state = told.state;
  showDriver(told.state);
  showMatrix(told.state);
  showRuns(told.state);
  showFlops(told.state);
  showEvents(told.state);
  drawScaling(told.state);
  drawCurves();
}

async function poll() {
  try {
    const answer = await fetch(`api/state?after=${encodeURIComponent(shown.version)}`);
    if (answer.ok) show(await answer.json());
  } catch {
    one("driver").textContent = "the server of this page does not answer";
  }
}

function follow() {
  let polling = null;
  const stream = new EventSource("api/stream");
  stream.addEventListener("state", (event) => {
    clearInterval(polling);
    polling = null;
    show(JSON.parse(event.data));
  });
  stream.addEventListener("error", () => {
    if (polling === null) polling = setInterval(poll, POLL_MS);
  });
}

for (const input of document.querySelectorAll("input[name=axis]"))
  input.addEventListener("change", () => { shown.axis = input.value; shown.view = shown.curves = null; drawCurves(); });
poll().then(follow);
