// The page: takes a recording and words, asks the worker, shows its answer.

import {decode, record} from "./audio.js";
import {show} from "./drawings.js";

const find = (id) => document.getElementById(id);
const [file, recordButton, clear, player, heard, call, each, voices, own, text, analyse, state, outcome] =
  ["file", "record", "clear", "player", "heard", "call", "each", "voices", "own", "text", "analyse", "state",
    "outcome"].map(find);
const about = await (await fetch(new URL("page.json", import.meta.url))).json();
const worker = new Worker(new URL("worker.js", import.meta.url), {type: "module"});
let manifest, recorder, recording = null, answer = null;

find("model").textContent = `Model ${about.name}, trained on ${about.trained_on}.`;
recordButton.hidden = !navigator.mediaDevices; // over http browsers do not record

// ---- the model ---------------------------------------------------------------------------------

const ON = {
  loading({loaded, size}) {
    const whole = size >= loaded ? ` of ${megabytes(size)}` : "";
    state.textContent = `Loading the model: ${megabytes(loaded)}${whole}`;
  },
  ready(found) {
    manifest = found;
    analyse.disabled = false;
    state.textContent = "Ready.";
    document.body.dataset.ready = "";
    if (file.files.length) take(file.files[0]);
  },
  broken(message) {
    state.textContent = `The model cannot be loaded: ${message}`;
  },
  progress(share) {
    state.textContent = share < 1 ? `Listening: ${Math.floor(100 * share)} %` : "Ready.";
  },
  answer(found) {
    answer = found;
    analyse.disabled = false;
    state.textContent = "Ready.";
    draw();
    if (outcome.getBoundingClientRect().top > innerHeight / 2) outcome.scrollIntoView({behavior: "smooth"});
  },
  refused(message) {
    analyse.disabled = false;
    state.textContent = "Ready.";
    refuse(message);
  },
};
worker.onmessage = ({data: {kind, content}}) => ON[kind](content);
worker.onerror = () => ON.broken("this browser cannot run it.");

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(0)} MB`;

// ---- the input ---------------------------------------------------------------------------------

async function take(chosen) {
  forget();
  file.value = ""; // the same file may be chosen again
  try {
    recording = await decode(chosen, manifest.audio.shortest_s);
  } catch (error) {
    return refuse(error.message);
  }
  const {channels, rate} = recording, count = channels.length, seconds = channels[0].length / rate;
  player.src = URL.createObjectURL(chosen);
  heard.textContent = `${chosen.name}, ${seconds.toFixed(1)} s${count > 1 ? `, ${count} channels` : ""}`;
  player.hidden = clear.hidden = false;
  call.hidden = count < 2;
}

function forget() {
  URL.revokeObjectURL(player.src);
  player.removeAttribute("src");
  recording = null;
  each.checked = own.checked = false;
  heard.textContent = "";
  player.hidden = clear.hidden = call.hidden = voices.hidden = true;
}

file.onchange = () => manifest && file.files.length && take(file.files[0]);
clear.onclick = forget;
each.onchange = () => {
  voices.hidden = !(each.checked && manifest.graph.outputs.includes("state_mean"));
  own.checked = false;
};

recordButton.onclick = async () => {
  if (recorder) {
    const stopping = recorder;
    recorder = null;
    recordButton.textContent = "Record";
    return take(await stopping.stop());
  }
  try {
    recorder = await record();
    recordButton.textContent = "Stop";
  } catch (error) {
    refuse(`The microphone cannot be used (${error.message}).`);
  }
};

find("input").onsubmit = (event) => {
  event.preventDefault();
  if (!recording && !text.value.trim())
    return refuse("There is nothing to hear or read yet: record or choose speech, or type what was said.");
  analyse.disabled = true;
  state.textContent = "Listening …";
  worker.postMessage({recording, text: text.value, isCall: each.checked, ownVoices: own.checked});
};

// ---- the answer --------------------------------------------------------------------------------

function refuse(message) {
  answer = null;
  const said = Object.assign(document.createElement("p"), {className: "refused", textContent: message});
  said.setAttribute("role", "alert");
  outcome.replaceChildren(said);
}

function draw() {
  if (answer) outcome.innerHTML = show(answer, about, manifest.config, outcome.clientWidth);
}

let width = outcome.clientWidth;
new ResizeObserver(() => {
  if (outcome.clientWidth === width) return;
  width = outcome.clientWidth;
  draw();
}).observe(outcome);
