// The answer as HTML and SVG; as demo/drawings.py and mtmm_training/pictures/of_answers.py.
// Words of users and models are escaped; colours are attributes, since the page allows no inline style.

const MISSING = {audio: "No recording was heard.", text: "No words were read."};
const UNFAMILIAR = {
  audio: "The recording is unlike what the model was trained on.",
  text: "The words are unlike what the model was trained on.",
};
const CORNERS = {tense: [0.25, 0.75], excited: [0.75, 0.75], gloomy: [0.25, 0.25], calm: [0.75, 0.25]};
const NO_DIMENSIONS = ["start", "end", "agreement", "seconds"];
const SIDE = 240, EDGE = 30; // of the plane, and around it
const LEFT = 46, RIGHT = 8; // of the timeline: for its numbers
const TICKS_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120];

/** All of the answer, `width` pixels wide. `about` is page.json, `config` the model's. */
export function show(answer, about, config, width) {
  const range = config.dimension_range, plane = [answer.valence, answer.arousal].every(Number.isFinite);
  const json = encodeURIComponent(JSON.stringify(answer, null, 1));
  return `${summary(answer, range)}
    <div class="pair">${isHeard(answer) && answer.scores ? bars(answer, about) : ""}${plane ? drawPlane(answer, about, range) : ""}</div>
    ${answer.timeline?.some(isHeard) ? timeline(answer, about, range, width) : ""}
    <p><a id="json" download="answer.json" href="data:application/json,${json}">The answer as JSON</a></p>`;
}

function summary(answer, [low, high]) {
  const told = Object.entries(dimensions(answer)).map(([name, value]) =>
    `<span>${escape(name)} <b>${value.toFixed(2)}</b></span>`);
  if (told.length) told.push(`<span>on a scale from ${low} to ${high}</span>`);
  const notes = answer.no_signal ? ["The recording has no signal."] : [];
  if (answer.unsure) notes.push("The model is not sure of an emotion.");
  if ("agreement" in answer) notes.push(`About ${percent(answer.agreement)} of listeners would agree.`);
  notes.push(...answer.missing.map((name) => MISSING[name]));
  notes.push(...(answer.unfamiliar ?? []).map((name) => UNFAMILIAR[name]));
  if (answer.untrained.length) notes.push(`This model was never trained for: ${answer.untrained.join(", ")}.`);
  const emotion = isHeard(answer) && answer.scores ? `<p class="emotion">${escape(named(answer))}</p>` : "";
  return `<div id="summary">${emotion}<div class="numbers">${told.join("")}</div><p>${escape(notes.join(" "))}</p></div>`;
}

function bars(answer, about) {
  const rows = Object.entries(answer.scores).map(([name, share]) => `<tr><th>${escape(name)}</th>
    <td><svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">
    <rect class="track" width="100" height="10"/><rect width="${100 * share}" height="10" fill="${about.colours[name]}"/></svg></td>
    <td>${percent(share)}</td></tr>`);
  return `<table class="scores"><caption>Emotion</caption>${rows.join("")}</table>`;
}

/** The whole as a large dot, a timeline's windows as small ones. */
function drawPlane(answer, about, [low, high]) {
  const place = (right, up) => `x="${EDGE + SIDE * right}" y="${EDGE + SIDE * (1 - up)}"`;
  const dot = (entry, radius, kind) => {
    const [right, up] = [entry.valence, entry.arousal].map((value) => (value - low) / (high - low));
    const tip = `${named(entry)}: valence ${entry.valence.toFixed(2)}, arousal ${entry.arousal.toFixed(2)}`;
    return `<circle class="${kind}" r="${radius}" c${place(right, up).replace(" y", " cy")}
      fill="${colour(entry, about)}"><title>${escape(tip)}</title></circle>`;
  };
  const corners = Object.entries(CORNERS).map(([word, at]) => `<text class="corner" ${place(...at)}>${word}</text>`);
  const end = EDGE + SIDE, middle = EDGE + SIDE / 2;
  return `<svg class="plane" viewBox="0 0 ${SIDE + 2 * EDGE} ${SIDE + 2 * EDGE}" role="img"
    aria-label="valence ${answer.valence.toFixed(2)}, arousal ${answer.arousal.toFixed(2)}">
    <rect x="${EDGE}" y="${EDGE}" width="${SIDE}" height="${SIDE}"/>
    <path d="M${EDGE} ${middle}H${end}M${middle} ${EDGE}V${end}"/>${corners.join("")}
    <text x="${middle}" y="${end + 20}">valence: unpleasant → pleasant</text>
    <text transform="translate(${EDGE - 12} ${middle}) rotate(-90)">arousal: calm → excited</text>
    ${(answer.timeline ?? []).filter(isHeard).map((entry) => dot(entry, 4, "window")).join("")}${dot(answer, 9, "whole")}</svg>`;
}

// ---- over time ---------------------------------------------------------------------------------

function timeline(answer, about, range, width) {
  const entries = answer.timeline.filter(isHeard), end = Math.max(...answer.timeline.map((entry) => entry.end));
  const x = (second) => LEFT + (width - LEFT - RIGHT) * second / end;
  const speakers = [...new Set(entries.flatMap((entry) => entry.speaker ?? []))].sort();
  const groups = speakers.length ? speakers : [null];
  const of = (speaker) => { // up to the next one, where that overlaps
    const own = entries.filter((entry) => speaker === null || entry.speaker === speaker);
    return own.map((entry, i) => ({...entry, end: Math.min(entry.end, own[i + 1]?.start ?? end)}));
  };
  const words = answer.untimed_text ? " All words are read with each: when they were said is unknown." : "";
  const counted = speakers.length ? `${entries.length} parts of ${speakers.length} speakers, each heard by itself.`
    : `${entries.length} windows, each heard by itself.`;
  const drawn = groups.map((speaker) => `${speaker === null ? "" : total(speaker, answer.speakers[speaker])}
    ${answer.scores ? emotions(of(speaker), about, x, width, end) : ""}
    ${"valence" in answer || "arousal" in answer ? curves(of(speaker), about, range, x, width, end) : ""}`);
  return `<h2>Over time</h2><p>${counted}${words}</p>${legend(entries, about)}${drawn.join("")}
    <details><summary>All in numbers</summary><div class="windows">${table(entries)}</div></details>`;
}

function total(speaker, own) {
  const numbers = Object.entries(dimensions(own)).map(([name, value]) => `, ${name} ${value.toFixed(2)}`);
  const emotion = own.scores ? ` ${named(own)}${numbers.join("")};` : "";
  return `<h3>${escape(speaker)}:${escape(emotion)} ${own.seconds.toFixed(1)} s</h3>`;
}

function legend(entries, about) {
  const names = entries[0].scores ? [...new Set(entries.map(named))].sort() : [];
  const paint = [...names.map((name) => [name, about.colours[name], 12]),
    ...Object.keys(dimensions(entries[0])).map((name) => [name, about.dimensions[name] ?? "currentColor", 3])];
  const items = paint.map(([name, fill, tall]) => `<span><svg viewBox="0 0 12 12" aria-hidden="true">
    <rect y="${6 - tall / 2}" width="12" height="${tall}" fill="${fill}"/></svg> ${escape(name)}</span>`);
  return `<p class="legend">${items.join("")}</p>`;
}

/** A bar for each entry, as high as its emotion is probable. */
function emotions(entries, about, x, width, end) {
  const height = 70;
  const drawn = entries.map((entry) => {
    const share = Math.max(...Object.values(entry.scores)), tall = height * share, wide = x(entry.end) - x(entry.start);
    const tip = `${entry.start.toFixed(1)} to ${entry.end.toFixed(1)} s: ${named(entry)} ${percent(share)}`;
    const letter = wide > 12 && tall > 16
      ? `<text class="letter" x="${x(entry.start) + wide / 2}" y="${height - 5}">${escape(named(entry)[0])}</text>` : "";
    return `<g><title>${escape(tip)}</title><rect x="${x(entry.start)}" y="${height - tall}" width="${Math.max(wide - 1, 1)}"
      height="${tall}" fill="${colour(entry, about)}"/>${letter}</g>`;
  });
  return chart(height, width, [[0, "0 %"], [1, "100 %"]], x, end, drawn.join(""), "emotions over time");
}

/** A level line for each entry and dimension. */
function curves(entries, about, [low, high], x, width, end) {
  const height = 90, y = (value) => height * (high - value) / (high - low);
  const paths = Object.keys(dimensions(entries[0])).map((name) => {
    const steps = entries.map((entry, i) => {
      const joined = i && entry.start <= entries[i - 1].end + 1e-6;
      return `${joined ? "L" : "M"}${x(entry.start).toFixed(1)} ${y(entry[name]).toFixed(1)}H${x(entry.end).toFixed(1)}`;
    });
    return `<path class="curve" d="${steps.join("")}" stroke="${about.dimensions[name] ?? "currentColor"}"><title>${escape(name)}</title></path>`;
  });
  const ticks = [[0, low], [0.5, (low + high) / 2], [1, high]];
  return chart(height, width, ticks, x, end, paths.join(""), "dimensions over time");
}

/** Axes with ticks, shares of the height by label, around what is drawn. */
function chart(height, width, ticks, x, end, drawn, label) {
  const step = TICKS_S.find((s) => end / s <= width / 60) ?? TICKS_S.at(-1);
  const times = Array.from({length: Math.floor(end / step + 1e-9) + 1}, (_, i) => i * step);
  const levels = ticks.map(([share, name]) => {
    const at = height * (1 - share);
    return `<path class="grid" d="M${LEFT} ${at}H${width - RIGHT}"/><text class="level" x="${LEFT - 5}" y="${at + 3}">${name}</text>`;
  });
  const seconds = times.map((time) => `<text x="${x(time)}" y="${height + 18}">${clock(time, step)}</text>`);
  return `<svg class="chart" viewBox="0 -8 ${width} ${height + 32}" width="${width}" height="${height + 32}" role="img"
    aria-label="${label}">${levels.join("")}${drawn}${seconds.join("")}</svg>`;
}

function clock(second, step) {
  if (second < 60) return `${Number(second.toFixed(step < 1 ? 1 : 0))} s`;
  return `${Math.floor(second / 60)}:${String(Math.round(second % 60)).padStart(2, "0")}`;
}

function table(entries) {
  const names = ["start", "end", ...("speaker" in entries[0] ? ["speaker"] : []),
    ...(entries[0].scores ? ["emotion", "probability"] : []), ...Object.keys(dimensions(entries[0]))];
  const rows = entries.map((entry) => {
    const own = entry.scores ? {emotion: named(entry), probability: Math.max(...Object.values(entry.scores))} : {};
    const cells = names.map((name) => ({...entry, ...own})[name]);
    return `<tr>${cells.map((cell) => `<td>${escape(typeof cell === "number" ? cell.toFixed(2) : cell)}</td>`).join("")}</tr>`;
  });
  return `<table><thead><tr>${names.map((name) => `<th>${escape(name)}</th>`).join("")}</tr></thead><tbody>${rows.join("")}</tbody></table>`;
}

// ---- words and numbers -------------------------------------------------------------------------

/** Valence, arousal and others by name; those that were trained. */
function dimensions(entry) {
  return Object.fromEntries(Object.entries(entry).filter(([name, value]) =>
    typeof value === "number" && !NO_DIMENSIONS.includes(name) && !name.endsWith("_sd")));
}

const isHeard = (entry) => !entry.scores || Object.keys(entry.scores).length > 0; // not without a signal
const named = (entry) => entry.emotion ?? "unsure";
const colour = (entry, about) => ("scores" in entry ? about.colours[named(entry)] : "currentColor");
const percent = (share) => `${Math.round(100 * share)} %`;
const ESCAPED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"};
const escape = (text) => String(text).replace(/[&<>"]/g, (character) => ESCAPED[character]);
