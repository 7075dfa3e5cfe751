// Charts: Vega-Lite of the server, drawn here; each can be saved as SVG, PNG and CSV.
import { element } from "./parts.js";

const EMBED = { actions: false, ast: true, defaultStyle: false, renderer: "svg", tooltip: false, logLevel: 1 };
const PIXELS_A_UNIT = 2;

let loading = null;

// 0.9 MB: only when there is something to draw.
function vega() {
  loading ??= new Promise((ready, failed) => {
    const script = element("script", null, { src: "page/vega.js" });
    script.addEventListener("load", () => ready(window.vegaEmbed));
    script.addEventListener("error", () => { loading = null; failed(new Error("the charts' library did not come")); });
    document.head.append(script);
  });
  return loading;
}

export class Plot {
  // place: an element with the class `plot`. name: of the files that are saved.
  constructor(place, name) {
    this.place = place;
    this.name = name;
    this.view = null;
    this.rows = [];
    this.queue = Promise.resolve();
    this.drawn = element("div", null, { role: "img", "aria-label": name });
    this.tools = element("p", null, { class: "tools" });
    for (const kind of ["SVG", "PNG", "CSV"]) {
      const button = element("button", kind, { type: "button", "aria-label": `Save ${name} as ${kind}` });
      button.addEventListener("click", () => this.save(kind));
      this.tools.append(button);
    }
    place.append(this.drawn, this.tools);
  }

  // One drawing after the other: of two that come at once the later one stays.
  draw(spec, rows, label) {
    this.queue = this.queue.then(() => this.now(spec, rows, label)).catch((fault) => console.warn(fault.message));
    return this.queue;
  }

  async now(spec, rows, label) {
    const embed = await vega();
    this.place.hidden = false;
    this.drawn.setAttribute("aria-label", label);
    if (this.view === null || spec !== this.spec) {
      if (this.view) this.view.finalize();
      const whole = rows ? { ...spec, datasets: { rows } } : spec; // no scale may see a chart without rows
      this.view = (await embed(this.drawn, whole, EMBED)).view;
      this.spec = spec;
      this.drawn.setAttribute("role", "img");
    } else if (rows) await this.view.data("rows", rows).resize().runAsync();
    this.rows = rows ?? dataOf(spec);
  }

  async save(kind) {
    if (!this.view) return;
    let blob;
    if (kind === "SVG") blob = new Blob([await this.view.toSVG()], { type: "image/svg+xml" });
    else if (kind === "CSV") blob = new Blob([csv(this.rows)], { type: "text/csv" });
    else {
      const canvas = await this.view.toCanvas(PIXELS_A_UNIT);
      blob = await new Promise((ready) => canvas.toBlob(ready, "image/png"));
    }
    const address = URL.createObjectURL(blob);
    const link = element("a", null, { href: address, download: `${this.name}.${kind.toLowerCase()}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }
}

// The rows that stand in a description, those of its legend left out.
function dataOf(spec) {
  const found = [];
  const look = (part) => {
    if (!part || typeof part !== "object") return;
    const values = part.data && part.data.values;
    if (Array.isArray(values)) found.push(...values.filter((row) => row && "role" in row));
    for (const inner of Array.isArray(part) ? part : Object.values(part)) if (inner !== part.data) look(inner);
  };
  look(spec);
  return found;
}

function csv(rows) {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const field = (value) => {
    if (value === null || value === undefined) return "";
    let text = String(value);
    if (typeof value === "string" && /^[=+@\t\r-]/.test(text)) text = `'${text}`; // no formula in a spreadsheet
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [names, ...rows.map((row) => names.map((name) => row[name]))].map((line) => line.map(field).join(",")).join("\n") + "\n";
}
