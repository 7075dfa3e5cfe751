// Curves of the chosen runs, and the table to choose them in.
import { ask, bound, clock, element, one, percent, say, short, view } from "./parts.js";
import { Plot } from "./plots.js";

const FEW = ["held_out", "active_terms", "collapse"]; // told of few points alone
const MOST_DRAWN = 8, MOST_LISTED = 200, MOST_KEPT = 1000;
const points = new Map(); // by run: {sessions, rows}
const chosen = new Set(view.all("run"));
const plot = new Plot(one("curve-chart"), "curves");
let byHand = chosen.size > 0, state = null, drawing = false, again = false, spec = null, specOf = "";

const controls = {
  x: bound("curve-x", "x", "step", draw), y: bound("curve-y", "y", "loss", draw),
  logX: bound("curve-log-x", "logx", "0", draw), logY: bound("curve-log-y", "logy", "0", draw),
  smooth: bound("curve-smooth", "smooth", "1", draw), filter: bound("run-filter", "filter", "", () => showRuns(state)),
};

export function showCurves(told) {
  state = told;
  showRuns(told);
  draw();
}

function showRuns(told) {
  if (!told) return;
  if (!byHand && !chosen.size) {
    const drawn = told.runs.filter((run) => run.told), trained = drawn.filter((run) => run.kind === "train");
    for (const run of (trained.length ? trained : drawn).slice(0, MOST_DRAWN)) chosen.add(run.run);
  }
  const wanted = controls.filter.value.toLowerCase();
  const listed = told.runs.filter((run) => run.run.toLowerCase().includes(wanted) || chosen.has(run.run));
  const body = one("runs").tBodies[0], focused = document.activeElement?.dataset?.run;
  body.replaceChildren(...listed.slice(0, MOST_LISTED).map(showRun));
  say(one("runs-note"), listed.length > MOST_LISTED
    ? `The first ${MOST_LISTED} of ${listed.length} runs; type a part of a name to see others.`
    : `${listed.length} of ${told.runs.length} runs. Choose at most ${MOST_DRAWN} to draw.`);
  if (focused) for (const box of body.querySelectorAll("input")) if (box.dataset.run === focused) box.focus();
}

function showRun(run) {
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
    run.peak_share === null ? "" : percent(run.peak_share, 1), memory, run.restarts ? String(run.restarts) : "", clock(run.left_s)];
  for (const text of numbers) row.append(element("td", text, { class: "n" }));
  return row;
}

function choose(run, drawn) {
  byHand = true;
  if (drawn) chosen.add(run); else chosen.delete(run);
  while (chosen.size > MOST_DRAWN) chosen.delete(chosen.values().next().value);
  view.set({ run: [...chosen] });
  showRuns(state);
  draw();
}

async function fetchPoints(run) {
  const known = points.get(run) || { sessions: 0, rows: [] };
  const last = known.rows.length ? known.rows[known.rows.length - 1].n : -1;
  const address = `api/run/${encodeURIComponent(run)}`;
  let told = await ask(`${address}?after=${last}`), rows = known.rows.concat(told.points);
  if ((known.sessions && told.sessions !== known.sessions) || rows.length > MOST_KEPT) {
    told = await ask(address);
    rows = told.points;
  }
  points.set(run, { sessions: told.sessions, rows });
}

// The mean over so many points around each; what is told of few points alone is left as it is.
function smoothed(rows, y, width) {
  if (width < 2 || FEW.includes(y)) return rows;
  const half = Math.floor(width / 2);
  return rows.map((row, place) => {
    const near = rows.slice(Math.max(0, place - half), place + half + 1);
    return { ...row, [y]: near.reduce((sum, one) => sum + one[y], 0) / near.length };
  });
}

async function draw() {
  if (!state) return;
  if (drawing) { again = true; return; }
  drawing = true;
  try {
    const known = new Set(state.runs.filter((run) => run.told).map((run) => run.run));
    const runs = [...chosen].filter((run) => known.has(run));
    await Promise.all(runs.map(fetchPoints));
    const x = controls.x.value, y = controls.y.value, logX = controls.logX.checked, logY = controls.logY.checked;
    const rows = runs.flatMap((run) => {
      const whole = points.get(run).rows.filter((row) => row[x] !== null && row[y] !== null && (!logX || row[x] > 0) && (!logY || row[y] > 0));
      return smoothed(whole, y, Number(controls.smooth.value)).map((row) => ({ run, ...row }));
    });
    say(one("curve-note"), rows.length ? "" : runs.length ? "The chosen runs have told nothing of this yet." : "No run is chosen.");
    one("curve-chart").hidden = !rows.length;
    if (!rows.length) return;
    const wanted = `api/chart/curves?x=${x}&y=${y}${logX ? "&log=x" : ""}${logY ? "&log=y" : ""}`;
    if (wanted !== specOf) [spec, specOf] = [await ask(wanted), wanted];
    await plot.draw(spec, rows, `${spec.description}: ${runs.join(", ")}`);
  } catch (fault) {
    say(one("curve-note"), `The curves cannot be had now (${fault.message}).`);
  } finally {
    drawing = false;
    if (again) { again = false; draw(); }
  }
}
