// What all parts of the page share. All that a storage says is put into text nodes, never into markup.

export const one = (id) => document.getElementById(id);

export function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== null && text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(key, value);
  return made;
}

export function row(cells, header = null) {
  const line = element("tr");
  if (header !== null) line.append(element("th", header, { scope: "row" }));
  for (const cell of cells) line.append(cell instanceof Node ? cell : element("td", cell));
  return line;
}

export function clock(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const whole = Math.round(seconds), hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60, rest = String(whole % 60).padStart(2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

export function short(value, digits = 3) {
  if (value === null || value === undefined) return "";
  const rounded = Number(Number(value).toPrecision(digits)), size = Math.abs(rounded);
  return size && (size >= 1e6 || size < 1e-3) ? rounded.toExponential() : String(rounded);
}

export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
export const moment = (at) => new Date(1000 * at).toLocaleString();
export const say = (place, text) => { if (place.textContent !== text) place.textContent = text; };

export async function ask(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  return answer.json();
}

// The view: what stands in the address, so that it can be sent to a colleague.
const params = new URLSearchParams(location.search);
export const view = {
  get: (name, otherwise = "") => params.get(name) ?? otherwise,
  all: (name) => params.getAll(name),
  set(values) {
    for (const [name, value] of Object.entries(values)) {
      params.delete(name);
      for (const text of Array.isArray(value) ? value : [value])
        if (text !== null && text !== "" && text !== false) params.append(name, text);
    }
    const query = params.toString();
    history.replaceState(null, "", `${location.pathname}${query ? `?${query}` : ""}${location.hash}`);
  },
};

// A control of a form whose value is part of the view.
export function bound(id, name, otherwise, changed) {
  const control = one(id), box = control.type === "checkbox";
  if (box) control.checked = view.get(name, otherwise) === "1";
  else if (view.get(name, otherwise)) control.value = view.get(name, otherwise);
  control.addEventListener("change", () => {
    const value = box ? (control.checked ? "1" : "0") : control.value;
    view.set({ [name]: value === otherwise ? null : value });
    changed();
  });
  return control;
}

export function fill(select, values, chosen) {
  const known = [...select.options].map((option) => option.value);
  if (JSON.stringify(known) !== JSON.stringify(values))
    select.replaceChildren(...values.map((value) => element("option", value, { value })));
  if (values.includes(chosen)) select.value = chosen;
}
