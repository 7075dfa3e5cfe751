// FLOPs, share of peak, device hours and price; stages, runs and devices over time.
import { ask, element, one, percent, say, short } from "./parts.js";
import { Plot } from "./plots.js";

const SECONDS_BETWEEN = 5;
const spans = new Plot(one("timeline-chart"), "timeline"), devices = new Plot(one("devices-chart"), "devices");
const specs = {};
let next = 0, asking = false, seen = "";

export function showCompute(state) {
  const told = state.compute, hours = (value) => (value === null ? null : `${short(value)} device hours`);
  const joined = (...parts) => parts.filter((part) => part !== null).join(", ");
  const price = (value) => (value === null ? null : `${value.toFixed(2)} at ${told.hour_price} an hour`);
  const rows = [
    ["planned", joined(`${short(told.planned_flops)} FLOPs (cells)`, hours(told.planned_hours))],
    ["spent", joined(`${short(told.spent_flops)} FLOPs, MNTP of this experiment included`, hours(told.spent_hours), price(told.spent_price))],
    ["to come", joined(hours(told.left_hours), price(told.left_price)) || "not known"],
    ["lost", `${short(told.lost_flops)} FLOPs that were done again after restarts`],
    ["device", told.device === null ? "not known" : joined(told.device, told.peak_flops === null ? null : `peak ${short(told.peak_flops)} FLOP/s`)],
    ["share of peak", told.peak_share === null ? "not known" : `${percent(told.peak_share, 1)}, of the steps of this command's runs`],
  ];
  one("flops").replaceChildren(...rows.flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
}

export async function drawTimeline(state) {
  if (asking || Date.now() < next) return;
  asking = true;
  try {
    const told = await ask("api/timeline"), text = JSON.stringify(told);
    next = Date.now() + 1000 * SECONDS_BETWEEN;
    if (text === seen) return;
    seen = text;
    say(one("timeline-note"), told.spans.length
      ? "Thick: as it was; thin, below: as planned. Devices: how many runs held, of " + `${told.devices} that training may hold.`
      : "No plan is told of.");
    if (!told.spans.length) return;
    const zero = Math.min(...told.spans.map((span) => span.begin));
    const minutes = (at) => (at - zero) / 60;
    for (const name of ["timeline", "devices"]) specs[name] ??= await ask(`api/chart/${name}`);
    const rows = told.spans.map((span) => ({ ...span, state: span.what === "planned" ? "planned" : span.state, begin: minutes(span.begin), end: minutes(span.end) }));
    await spans.draw(specs.timeline, rows, `${specs.timeline.description}, of ${state.runs.length} runs`);
    const held = told.held.map((one) => ({ ...one, at: minutes(one.at) }));
    await devices.draw(specs.devices, held, specs.devices.description);
  } catch (fault) {
    say(one("timeline-note"), `The timeline cannot be had now (${fault.message}).`);
  } finally {
    asking = false;
  }
}
