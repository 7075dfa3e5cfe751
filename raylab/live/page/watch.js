// The page of `raylab watch`: follows the states of a laboratory and hands each to the parts of the page.
import { clock, element, moment, one, say } from "./parts.js";
import { showMatrix } from "./grid.js";
import { drawScaling } from "./scaling.js";
import { showCurves } from "./curves.js";
import { drawTimeline, showCompute } from "./compute.js";
import { offerSystems } from "./queries.js";
import { offerCells } from "./search.js";

const POLL_MS = 3000;
let version = "";

function showDriver(state) {
  const driver = state.driver, line = one("driver");
  const texts = {
    running: "running",
    silent: `silent since ${moment(driver.at)}: the driver is dead, or cannot reach the storage`,
    ended: `ended at ${moment(driver.at)}`,
    failed: `failed at ${moment(driver.at)}: ${driver.text}`,
    unknown: state.rows ? "finished, or from before laboratories told of themselves" : "nothing has been told yet",
  };
  let text = texts[driver.state];
  if (state.fault) text += `. Not all could be read: ${state.fault}`;
  if (state.torn) text += `. ${state.torn} line(s) could not be read`;
  say(line, text);
  line.className = driver.state;
  const stage = driver.stage ? `${driver.stage} ${driver.done} of ${driver.total}` : "";
  const left = state.left_s === null ? "" : `training left ${clock(state.left_s)}`;
  say(one("left"), [stage, left].filter(Boolean).join(", ")); // changes often: no screen reader is told
  one("report").hidden = !state.report;
  document.title = `${state.collection || state.storage}: ${driver.state}`;
}

function showEvents(state) {
  const line = (event) => element("li", `${moment(event.at)}: ${event.kind} ${event.name} ${event.text}`.trim());
  const faults = state.faults.map(line);
  one("faults").replaceChildren(...(faults.length ? faults : [element("li", "none so far")]));
  one("log").replaceChildren(...state.events.slice().reverse().map(line));
}

function show(told) {
  if (!told.state) return;
  version = told.version;
  const state = told.state;
  for (const part of [showDriver, showMatrix, showCompute, showEvents, showCurves, drawScaling, drawTimeline, offerSystems, offerCells])
    part(state);
}

async function poll() {
  try {
    const answer = await fetch(`api/state?after=${encodeURIComponent(version)}`);
    if (answer.ok) show(await answer.json());
    else say(one("driver"), `the server of this page answers ${answer.status}`);
  } catch {
    say(one("driver"), "the server of this page does not answer");
  }
}

// Server-sent events go on where they stopped; while they cannot be had, the state is asked for.
function follow() {
  let polling = null;
  const stream = new EventSource(`api/stream?after=${encodeURIComponent(version)}`);
  stream.addEventListener("open", () => { clearInterval(polling); polling = null; });
  stream.addEventListener("state", (event) => show(JSON.parse(event.data)));
  stream.addEventListener("error", () => {
    polling ??= setInterval(poll, POLL_MS);
    if (stream.readyState === EventSource.CLOSED) setTimeout(() => { clearInterval(polling); follow(); }, 5 * POLL_MS);
  });
}

poll().then(follow);
